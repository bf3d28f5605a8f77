//! Tells a source, once, whether everything that its event caused is safe.
//!
//! A [`Receipt`] is cloned for each piece of work that an event causes: each function that it matches, each publish that
//! waits for its PUBACK. When the last clone is gone the source hears: settled when all were [kept](Receipt::keep), else
//! the first reason why not. A clone that is dropped by accident (a panic, a task that is cancelled) counts as not kept:
//! an event is repeated rather than lost.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

type OnSettled = Box<dyn FnOnce(Result<(), String>) + Send>;

struct Inner {
    on_settled: Mutex<Option<OnSettled>>,
    broken: Mutex<Option<String>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        let broken = self.broken.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(on_settled) = self.on_settled.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            on_settled(broken.map_or(Ok(()), Err));
        }
    }
}

/// One share in the promise that an event is taken care of.
#[must_use = "a receipt that is dropped says that its work was abandoned"]
pub struct Receipt {
    inner: Arc<Inner>,
    kept: bool,
}

impl Receipt {
    /// A promise; `on_settled` hears how it went, on whichever thread is last, so it must be quick.
    pub fn new(on_settled: impl FnOnce(Result<(), String>) + Send + 'static) -> Self {
        let inner = Inner { on_settled: Mutex::new(Some(Box::new(on_settled))), broken: Mutex::new(None) };
        Self { inner: Arc::new(inner), kept: false }
    }

    /// This share's work is safe.
    pub fn keep(mut self) {
        self.kept = true;
    }

    /// This share's work cannot be done.
    pub fn fail(mut self, why: impl Into<String>) {
        self.kept = true;
        self.inner.broken.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why.into());
    }
}

impl Clone for Receipt {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner), kept: false }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if !self.kept {
            let mut broken = self.inner.broken.lock().unwrap_or_else(PoisonError::into_inner);
            broken.get_or_insert_with(|| "the work was abandoned".to_owned());
        }
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt").field("shares", &Arc::strong_count(&self.inner)).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn receipt() -> (Receipt, std::sync::mpsc::Receiver<Result<(), String>>) {
        let (sender, receiver) = std::sync::mpsc::channel();
        (Receipt::new(move |result| sender.send(result).unwrap()), receiver)
    }

    #[test]
    fn an_event_is_settled_when_all_of_its_work_is() {
        let (receipt, settled) = receipt();
        let other = receipt.clone();
        receipt.keep();
        assert!(settled.try_recv().is_err());
        other.keep();
        assert_eq!(settled.try_recv().unwrap(), Ok(()));
    }

    #[test]
    fn work_that_is_dropped_is_not_settled() {
        let (receipt, settled) = receipt();
        let other = receipt.clone();
        drop(other);
        receipt.keep();
        assert_eq!(settled.try_recv().unwrap(), Err("the work was abandoned".to_owned()));
    }

    #[test]
    fn the_first_reason_is_the_one_told() {
        let (receipt, settled) = receipt();
        receipt.clone().fail("disk full");
        receipt.fail("too late");
        assert_eq!(settled.try_recv().unwrap(), Err("disk full".to_owned()));
    }
}
