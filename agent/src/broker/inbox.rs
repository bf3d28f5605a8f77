//! Messages of QoS 1 and 2 that came and are not acknowledged yet.
//!
//! # Promises
//! - A message is acknowledged only when its receipt has settled, and only after all that came before it.
//! - What settles after its connection has ended is not acknowledged: the broker sends that message again.
//! - A message whose receipt failed stays, and is handed out again.
//! - Until then no later message of its topic is handed out: who keeps topics in order sees them in order.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Incoming;
use super::signal::Signal;
use crate::receipt::{NotKept, Receipt};

/// Shared between the connection and the receipts that are out.
#[derive(Clone, Debug)]
pub(super) struct Inbox {
    state: Arc<Mutex<State>>,
    signal: Arc<Signal>,
}

#[derive(Debug, Default)]
struct State {
    /// Counts connections.
    generation: u64,
    /// Sequence of the front of `slots`.
    first: u64,
    slots: VecDeque<Slot>,
    failed: usize,
    last_failure: Option<String>,
}

#[derive(Debug)]
struct Slot {
    id: u16,
    progress: Progress,
    /// Kept to hand it out again.
    message: Incoming,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Open,
    Settled,
    Failed,
}

impl Inbox {
    pub(super) fn new(signal: Arc<Signal>) -> Self {
        Self { state: Arc::default(), signal }
    }

    /// Takes `message` in; the receipt is the promise about it. `None`: it waits behind one of its topic that has failed.
    pub(super) fn admit(&self, id: u16, message: Incoming) -> Option<Receipt> {
        let mut state = self.lock();
        let (generation, sequence) = (state.generation, state.first + state.slots.len() as u64);
        let waits = state.failed > 0
            && state.slots.iter().any(|slot| slot.progress == Progress::Failed && slot.message.topic == message.topic);
        state.failed += usize::from(waits);
        let progress = if waits { Progress::Failed } else { Progress::Open };
        state.slots.push_back(Slot { id, progress, message });
        drop(state);
        (!waits).then(|| self.receipt(generation, sequence))
    }

    /// Has a message be acknowledged in its turn that nobody is to hear.
    pub(super) fn admit_unheard(&self, id: u16, qos: u8) {
        let message = Incoming { qos, ..Incoming::default() };
        self.lock().slots.push_back(Slot { id, progress: Progress::Settled, message });
        self.signal.raise();
    }

    /// Whether `id` is here already: some brokers send again on the same connection.
    pub(super) fn holds(&self, id: u16) -> bool {
        self.lock().slots.iter().any(|slot| slot.id == id)
    }

    /// How many are not acknowledged.
    pub(super) fn len(&self) -> usize {
        self.lock().slots.len()
    }

    /// Takes out what can be acknowledged now, in the order of arrival: packet id and QoS.
    pub(super) fn take_settled(&self, mut acknowledge: impl FnMut(u16, u8)) {
        let mut state = self.lock();
        while state.slots.front().is_some_and(|slot| slot.progress == Progress::Settled) {
            state.first += 1;
            if let Some(slot) = state.slots.pop_front() {
                acknowledge(slot.id, slot.message.qos);
            }
        }
    }

    /// How many have failed and wait to be handed out again, and why the last did.
    pub(super) fn failed(&self) -> (usize, Option<String>) {
        let state = self.lock();
        (state.failed, state.last_failure.clone())
    }

    /// Hands out again what has failed, as duplicates; of a topic no more than until one fails at once.
    pub(super) fn hand_out_failed(&self, mut hand_out: impl FnMut(Incoming, Receipt)) {
        let (generation, first, count) = {
            let state = self.lock();
            (state.generation, state.first, state.slots.len())
        };
        let mut held = HashSet::new();
        for (index, sequence) in (first..).enumerate().take(count) {
            let Some(message) = self.reopen(index, &held) else { continue };
            let topic = Arc::clone(&message.topic);
            hand_out(message, self.receipt(generation, sequence));
            if self.lock().slots.get(index).is_some_and(|slot| slot.progress == Progress::Failed) {
                held.insert(topic);
            }
        }
    }

    /// The message at `index`, when it has failed and its topic is not `held`.
    fn reopen(&self, index: usize, held: &HashSet<Arc<str>>) -> Option<Incoming> {
        let mut state = self.lock();
        let slot = state.slots.get_mut(index)?;
        if slot.progress != Progress::Failed || held.contains(&slot.message.topic) {
            return None;
        }
        slot.progress = Progress::Open;
        let message = Incoming { duplicate: true, ..slot.message.clone() };
        state.failed -= 1;
        Some(message)
    }

    /// The connection has ended: the broker sends all of it again.
    pub(super) fn forget(&self) {
        let mut state = self.lock();
        state.generation += 1;
        state.failed = 0;
        // The messages may be many; they are dropped outside of the lock.
        let gone = std::mem::take(&mut state.slots);
        drop(state);
        drop(gone);
    }

    fn receipt(&self, generation: u64, sequence: u64) -> Receipt {
        let inbox = self.clone();
        Receipt::new(move |result| inbox.settle(generation, sequence, result))
    }

    fn settle(&self, generation: u64, sequence: u64, result: Result<(), NotKept>) {
        let mut state = self.lock();
        if state.generation != generation {
            return;
        }
        let Some(index) = sequence.checked_sub(state.first).and_then(|i| usize::try_from(i).ok()) else { return };
        let Some(slot) = state.slots.get_mut(index) else { return };
        let wakes = match result {
            Ok(()) => {
                slot.progress = Progress::Settled;
                index == 0
            }
            Err(why) => {
                slot.progress = Progress::Failed;
                state.failed += 1;
                state.last_failure = Some(why.to_string());
                true
            }
        };
        drop(state);
        if wakes {
            self.signal.raise();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inbox() -> Inbox {
        Inbox::new(Arc::default())
    }

    fn message(topic: &str) -> Incoming {
        Incoming { topic: topic.into(), qos: 1, ..Incoming::default() }
    }

    fn admit(inbox: &Inbox, id: u16, topic: &str) -> Receipt {
        inbox.admit(id, message(topic)).unwrap()
    }

    fn acknowledged(inbox: &Inbox) -> Vec<u16> {
        let mut ids = Vec::new();
        inbox.take_settled(|id, _| ids.push(id));
        ids
    }

    #[test]
    fn acknowledgements_leave_in_the_order_of_arrival() {
        let inbox = inbox();
        let (a, b, c) = (admit(&inbox, 1, "a"), admit(&inbox, 2, "a"), admit(&inbox, 3, "a"));
        b.keep();
        assert!(acknowledged(&inbox).is_empty());
        a.keep();
        assert_eq!(acknowledged(&inbox), [1, 2]);
        c.keep();
        assert_eq!(acknowledged(&inbox), [3]);
    }

    #[test]
    fn what_settles_after_its_connection_is_not_acknowledged_on_the_next() {
        let inbox = inbox();
        let old = admit(&inbox, 1, "a");
        inbox.forget();
        let new = admit(&inbox, 1, "a");
        old.keep();
        assert!(acknowledged(&inbox).is_empty());
        new.keep();
        assert_eq!(acknowledged(&inbox), [1]);
    }

    #[test]
    fn what_failed_is_handed_out_again_and_holds_up_the_acknowledgements() {
        let inbox = inbox();
        let (a, b) = (admit(&inbox, 1, "a"), admit(&inbox, 2, "a"));
        a.fail("disk full");
        b.keep();
        assert!(acknowledged(&inbox).is_empty());
        assert_eq!(inbox.failed(), (1, Some("disk full".to_owned())));
        let mut again = 0;
        inbox.hand_out_failed(|message, receipt| {
            assert!(message.duplicate);
            again += 1;
            receipt.keep();
        });
        assert_eq!((again, inbox.failed().0), (1, 0));
        assert_eq!(acknowledged(&inbox), [1, 2]);
    }

    #[test]
    fn what_failed_is_not_overtaken_within_its_topic() {
        let inbox = inbox();
        admit(&inbox, 1, "a").fail("no room");
        assert!(inbox.admit(2, message("a")).is_none(), "it would overtake the one that failed");
        admit(&inbox, 3, "b").keep();
        // The first one fails again: the one behind it does not even come.
        let mut seen = Vec::new();
        inbox.hand_out_failed(|message, receipt| {
            seen.push(message.topic);
            receipt.fail("no room");
        });
        assert_eq!(seen, ["a".into()]);
        let mut again = 0;
        inbox.hand_out_failed(|_, receipt| {
            again += 1;
            receipt.keep();
        });
        assert_eq!((again, inbox.failed().0), (2, 0));
        assert_eq!(acknowledged(&inbox), [1, 2, 3]);
        assert!(inbox.admit(4, message("a")).is_some());
    }
}
