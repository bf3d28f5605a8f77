//! Hops of what we publish over MQTT 3.1.1, which has no user properties to carry them.
//!
//! A circle of functions through the broker ends because each event knows how often it was handed on. Over 3.1.1 a message
//! comes back as topic and payload alone; so we remember, of each publish that we may hear again, what it looked like.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;

/// Publishes that are remembered: longer than a message takes to come back, and 200 KB.
const REMEMBERED_MAX: usize = 4_096;

/// What was published lately.
#[derive(Debug, Default)]
pub(super) struct Echoes {
    hasher: RandomState,
    hops: HashMap<u64, u32>,
    /// Oldest first; each once.
    order: VecDeque<u64>,
}

impl Echoes {
    /// A message that has gone through `hops` functions is published.
    pub(super) fn remember(&mut self, topic: &str, payload: &[u8], hops: u32) {
        let hash = self.hash(topic, payload);
        if self.hops.insert(hash, hops).is_some() {
            return;
        }
        self.order.push_back(hash);
        if self.order.len() > REMEMBERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.hops.remove(&oldest);
        }
    }

    /// Through how many functions a message has gone that looks like this one. A device that publishes the very same is taken
    /// for an echo too: its count grows only where there is a circle.
    pub(super) fn hops(&self, topic: &str, payload: &[u8]) -> Option<u32> {
        if self.hops.is_empty() {
            return None;
        }
        self.hops.get(&self.hash(topic, payload)).copied()
    }

    fn hash(&self, topic: &str, payload: &[u8]) -> u64 {
        self.hasher.hash_one((topic, payload))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_published_keeps_its_hops_over_mqtt_3() {
        let mut echoes = Echoes::default();
        assert_eq!(echoes.hops("a", b"1"), None);
        echoes.remember("a", b"1", 1);
        assert_eq!(echoes.hops("a", b"1"), Some(1));
        assert_eq!(echoes.hops("a", b"2"), None);
        assert_eq!(echoes.hops("b", b"1"), None);
        echoes.remember("a", b"1", 5);
        assert_eq!(echoes.hops("a", b"1"), Some(5), "the last time counts");
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        let mut echoes = Echoes::default();
        for i in 0..3 * REMEMBERED_MAX {
            echoes.remember("a", &i.to_be_bytes(), 1);
        }
        assert_eq!((echoes.hops.len(), echoes.order.len()), (REMEMBERED_MAX, REMEMBERED_MAX));
        assert_eq!(echoes.hops("a", &(3 * REMEMBERED_MAX - 1).to_be_bytes()), Some(1));
    }
}
