//! The events of one topic that passed, in their order, until they have ended. What is left out stands behind them: it is settled
//! when all have ended that passed before it.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::receipt::{NotKept, Receipt};

#[derive(Default)]
pub(super) struct Line(Mutex<Places>);

#[derive(Default)]
struct Places {
    /// Number of the next event that passes.
    next: u64,
    /// Those that have not ended, each with what was left out after it and before the next of them.
    open: BTreeMap<u64, Vec<Receipt>>,
    /// Why one ended badly, the last time that one did.
    failure: Option<NotKept>,
}

impl Line {
    /// An event passes. Its number.
    pub(super) fn join(&self) -> u64 {
        let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let number = line.next;
        line.next += 1;
        line.open.insert(number, Vec::new());
        number
    }

    /// Has `receipt` settled when all have ended that passed until now. Whether it has to wait for that.
    pub(super) fn stand_behind(&self, receipt: Receipt) -> bool {
        let failure = {
            let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match (line.failure.clone(), line.open.values_mut().next_back()) {
                (None, Some(behind)) => {
                    behind.push(receipt);
                    return true;
                }
                (failure, _) => failure,
            }
        };
        receipt.settle(failure.map_or(Ok(()), Err));
        false
    }

    /// Event `number` has ended. How many receipts were settled by that: when it ended badly, all behind it, since any may be of a
    /// repetition of it.
    pub(super) fn end(&self, number: u64, result: &Result<(), NotKept>) -> usize {
        let settled = {
            let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let Places { open, failure, .. } = &mut *line;
            let mut behind = open.remove(&number).unwrap_or_default();
            if let Err(why) = result {
                open.range_mut(number..).for_each(|(_, later)| behind.append(later));
                // Who was just going to stand behind it is too late. Nobody else comes: the line is forgotten with its topic.
                *failure = Some(why.clone());
            } else if let Some((_, before)) = open.range_mut(..number).next_back() {
                before.append(&mut behind);
            }
            behind
        };
        // Outside of the lock: who hears of it may come back here at once.
        let count = settled.len();
        settled.into_iter().for_each(|receipt| receipt.settle(result.clone()));
        count
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    fn behind(line: &Line) -> Receiver<Result<(), NotKept>> {
        let (sender, settled) = channel();
        line.stand_behind(Receipt::new(move |result| drop(sender.send(result))));
        settled
    }

    #[test]
    fn what_is_left_out_waits_for_all_that_passed_before() {
        let line = Line::default();
        assert_eq!(behind(&line).try_recv(), Ok(Ok(())), "nothing is under way");
        let (first, second) = (line.join(), line.join());
        let left_out = behind(&line);
        let third = line.join();
        let last = behind(&line);
        assert_eq!(line.end(second, &Ok(())), 0);
        assert_eq!(line.end(third, &Ok(())), 0);
        assert!(left_out.try_recv().is_err() && last.try_recv().is_err());
        assert_eq!(line.end(first, &Ok(())), 2);
        assert_eq!([left_out.try_recv(), last.try_recv()], [Ok(Ok(())), Ok(Ok(()))]);
        assert_eq!(behind(&line).try_recv(), Ok(Ok(())));
    }

    #[test]
    fn what_stands_behind_a_failure_fails_at_once() {
        let line = Line::default();
        let first = line.join();
        let before = behind(&line);
        let second = line.join();
        let (after, third) = (behind(&line), line.join());
        let last = behind(&line);
        let failure = Err(NotKept::from("disk full"));
        assert_eq!(line.end(second, &failure), 2);
        assert_eq!([after.try_recv(), last.try_recv()], [Ok(failure.clone()), Ok(failure.clone())]);
        assert!(before.try_recv().is_err());
        assert_eq!(behind(&line).try_recv(), Ok(failure), "it comes too late");
        assert_eq!(line.end(third, &Ok(())) + line.end(first, &Ok(())), 1);
        assert_eq!(before.try_recv(), Ok(Ok(())));
    }

    #[test]
    fn those_that_have_ended_take_no_room() {
        let line = Line::default();
        let first = line.join();
        for _ in 0..1_000 {
            let number = line.join();
            line.end(number, &Ok(()));
        }
        assert_eq!(line.0.lock().unwrap().open.len(), 1);
        assert_eq!(line.end(first, &Ok(())), 0);
    }
}
