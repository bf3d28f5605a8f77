//! Messages of QoS 1 and 2 that came and are not acknowledged yet.
//!
//! # Promises
//! - A message is acknowledged only when its receipt has settled, and only after all that came before it.
//! - What settles after its connection has ended is not acknowledged: the broker sends that message again.
//! - A message whose receipt failed stays, and is handed out again.

use std::collections::VecDeque;
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

    /// Takes `message` in; the receipt is the promise about it.
    pub(super) fn admit(&self, id: u16, message: Incoming) -> Receipt {
        let mut state = self.lock();
        let sequence = state.first + state.slots.len() as u64;
        let generation = state.generation;
        state.slots.push_back(Slot { id, progress: Progress::Open, message });
        drop(state);
        self.receipt(generation, sequence)
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

    /// Hands out again what has failed, as duplicates.
    pub(super) fn take_failed(&self) -> Vec<(Incoming, Receipt)> {
        let mut state = self.lock();
        let (generation, first) = (state.generation, state.first);
        state.failed = 0;
        let mut again = Vec::new();
        for (sequence, slot) in (first..).zip(&mut state.slots) {
            if slot.progress == Progress::Failed {
                slot.progress = Progress::Open;
                again.push((sequence, Incoming { duplicate: true, ..slot.message.clone() }));
            }
        }
        drop(state);
        again.into_iter().map(|(sequence, message)| (message, self.receipt(generation, sequence))).collect()
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

    fn message(qos: u8) -> Incoming {
        Incoming { topic: "a".into(), qos, ..Incoming::default() }
    }

    fn acknowledged(inbox: &Inbox) -> Vec<u16> {
        let mut ids = Vec::new();
        inbox.take_settled(|id, _| ids.push(id));
        ids
    }

    #[test]
    fn acknowledgements_leave_in_the_order_of_arrival() {
        let inbox = inbox();
        let (a, b, c) = (inbox.admit(1, message(1)), inbox.admit(2, message(1)), inbox.admit(3, message(1)));
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
        let old = inbox.admit(1, message(1));
        inbox.forget();
        let new = inbox.admit(1, message(1));
        old.keep();
        assert!(acknowledged(&inbox).is_empty());
        new.keep();
        assert_eq!(acknowledged(&inbox), [1]);
    }

    #[test]
    fn what_failed_is_handed_out_again_and_holds_up_the_acknowledgements() {
        let inbox = inbox();
        let (a, b) = (inbox.admit(1, message(1)), inbox.admit(2, message(1)));
        a.fail("disk full");
        b.keep();
        assert!(acknowledged(&inbox).is_empty());
        assert_eq!(inbox.failed(), (1, Some("disk full".to_owned())));
        let again = inbox.take_failed();
        assert_eq!(again.len(), 1);
        for (message, receipt) in again {
            assert!(message.duplicate);
            receipt.keep();
        }
        assert_eq!(acknowledged(&inbox), [1, 2]);
    }
}
