//! Where functions get random numbers from.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rand_core::TryRng;

/// The machine's randomness; or, for a replay, numbers that a seed decides.
#[derive(Clone, Debug, Default)]
pub enum Chance {
    /// As unpredictable as the machine has it.
    #[default]
    Machine,
    /// The same numbers after the same [`Chance::seed`].
    Seeded(Seeded),
}

/// A sequence of numbers that all its clones share: SplitMix64, which takes any seed.
#[derive(Clone, Debug, Default)]
pub struct Seeded(Arc<AtomicU64>);

impl Chance {
    /// One whose numbers are always the same.
    pub fn seeded() -> Self {
        Self::Seeded(Seeded::default())
    }

    /// Begins the sequence that belongs to `text`; the machine's randomness stays what it is.
    pub fn seed(&self, text: &str) {
        if let Self::Seeded(Seeded(state)) = self {
            // FNV-1a.
            let hash = text
                .bytes()
                .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
            state.store(hash, Ordering::Relaxed);
        }
    }
}

impl Seeded {
    /// The next number.
    pub(super) fn draw(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        let drawn = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        let mixed = (drawn ^ (drawn >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl TryRng for Seeded {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let [a, b, c, d, ..] = self.draw().to_le_bytes();
        Ok(u32::from_le_bytes([a, b, c, d]))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.draw())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.draw().to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_what_is_drawn() {
        let chance = Chance::seeded();
        let Chance::Seeded(mut numbers) = chance.clone() else { unreachable!() };
        let mut draw = |seed: &str| {
            chance.seed(seed);
            let mut bytes = [0; 13];
            numbers.try_fill_bytes(&mut bytes).unwrap();
            (bytes, numbers.try_next_u64().unwrap(), numbers.try_next_u32().unwrap())
        };
        let first = draw("a");
        assert_ne!(first, draw("b"));
        assert_eq!(first, draw("a"));
    }
}
