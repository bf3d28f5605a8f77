//! Who did what, written in the same transaction as what was done.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sync_protocol::Digest;

/// One line of the audit log, before it is chained to those before it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Unix time.
    pub at_ms: u64,
    /// The token's name, or `gateway/NAME`, or `control-plane`.
    pub who: String,
    /// `publish`, `deploy`, ….
    pub did: String,
    /// To what.
    pub what: String,
    /// The rest: digests, numbers.
    pub detail: Value,
}

/// The hash of a line: over the hash before it, in hexadecimal, and the line's JSON.
pub fn hash(previous: &str, entry: &str) -> String {
    Digest::of(format!("{previous}{entry}").as_bytes()).hex()
}

/// Goes along the log. What was changed, taken out or put in breaks it there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// How many lines fit so far.
    pub lines: u64,
    /// The hash of the last of them.
    pub head: String,
}

impl Chain {
    /// Whether the line follows those before it; then it is the head.
    pub fn fits(&mut self, entry: &str, said: &str) -> bool {
        let fits = hash(&self.head, entry) == said;
        if fits {
            self.lines += 1;
            said.clone_into(&mut self.head);
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_was_changed_taken_out_or_moved_is_found() {
        let mut head = String::new();
        let log: Vec<(String, String)> = ["one", "two", "three"]
            .map(|entry| {
                head = hash(&head, entry);
                (entry.to_owned(), head.clone())
            })
            .into();
        let fitting = |log: &[(String, String)]| {
            let mut chain = Chain::default();
            log.iter().take_while(|(entry, hash)| chain.fits(entry, hash)).count()
        };
        assert_eq!(fitting(&log), 3);
        let mut changed = log.clone();
        changed[1].0 = "zwei".to_owned();
        assert_eq!(fitting(&changed), 1);
        assert_eq!(fitting(&[log[0].clone(), log[2].clone()]), 1);
        assert_eq!(fitting(&[log[1].clone(), log[0].clone()]), 0);
    }
}
