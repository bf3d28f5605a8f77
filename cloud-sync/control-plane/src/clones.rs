//! Cloned identities: each start of an agent gives itself a new id, so an id that comes back after another one means that two machines speak under
//! one name. One is never cut off for it by itself: which of the two is the right one only a person knows.

/// Starts that are remembered of one gateway.
const SEEN_MAX: usize = 16;
/// How much of an id counts.
const BOOT_BYTES_MAX: usize = 64;
/// How often an old one must come back: a single report that was held up on the way is no clone.
const RETURNS_MIN: u64 = 2;

/// What was seen of one gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Boots {
    /// Newest last.
    pub seen: Vec<String>,
    /// How often one came back.
    pub returns: u64,
}

impl Boots {
    /// Notes who speaks now. `true`: something changed that is to be kept.
    pub fn notice(&mut self, boot: &str) -> bool {
        let boot = boot.get(..BOOT_BYTES_MAX).unwrap_or(boot);
        if self.seen.last().is_some_and(|last| last == boot) {
            return false;
        }
        let known = self.seen.len();
        self.seen.retain(|seen| seen != boot);
        self.returns += u64::from(self.seen.len() < known);
        self.seen.push(boot.to_owned());
        let over = self.seen.len().saturating_sub(SEEN_MAX);
        self.seen.drain(..over);
        true
    }

    /// Whether two machines speak under the name.
    pub fn cloned(&self) -> bool {
        self.returns >= RETURNS_MIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(boots: &str, cloned: bool) {
        let mut seen = Boots::default();
        boots.split(' ').for_each(|boot| {
            seen.notice(boot);
        });
        assert_eq!(seen.cloned(), cloned, "{boots}");
    }

    #[test]
    fn two_that_alternate_are_clones_and_one_that_restarts_is_not() {
        check("a a a", false);
        check("a b c d e", false);
        check("a b a", false);
        check("a b a b", true);
        check("a b c a c", true);
    }
}
