//! Tells a source, once, whether everything that its event caused is safe.
//!
//! A [`Receipt`] is cloned for each piece of work that an event causes: each function that it matches, each publish that
//! waits for its PUBACK. When the last clone is gone the source hears: settled when all were [kept](Receipt::keep), else
//! the first reason why not. A clone that is dropped by accident (a panic, a task that is cancelled) counts as not kept:
//! an event is repeated rather than lost.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

/// Why an event's work, or a publish, did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotKept {
    /// It may go well another time: the disk is full, the broker is away, the agent stops.
    #[error("{0}")]
    NotNow(String),
    /// It goes as badly each time: the broker does not take such a message. Trying again would hold up the others for ever.
    #[error("{0}")]
    ForGood(String),
    /// It goes as badly each time, until somebody changes what the broker allows: the message is as good as any.
    #[error("{0}")]
    NotAllowed(String),
}

impl NotKept {
    /// Whether trying again soon is of no use.
    pub fn is_for_good(&self) -> bool {
        matches!(self, Self::ForGood(_) | Self::NotAllowed(_))
    }

    /// The same, told in other words.
    #[must_use]
    pub fn told(self, tell: impl FnOnce(String) -> String) -> Self {
        match self {
            Self::NotNow(why) => Self::NotNow(tell(why)),
            Self::ForGood(why) => Self::ForGood(tell(why)),
            Self::NotAllowed(why) => Self::NotAllowed(tell(why)),
        }
    }
}

impl From<String> for NotKept {
    fn from(why: String) -> Self {
        Self::NotNow(why)
    }
}

impl From<&str> for NotKept {
    fn from(why: &str) -> Self {
        Self::NotNow(why.to_owned())
    }
}

type OnSettled = Box<dyn FnOnce(Result<(), NotKept>) + Send>;

struct Inner {
    on_settled: Mutex<Option<OnSettled>>,
    broken: Mutex<Option<NotKept>>,
}

impl Inner {
    /// The first reason is the one told, but one that may pass comes before one that stays: trying again can still help.
    fn break_with(&self, why: NotKept) {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        if broken.as_ref().is_none_or(|told| told.is_for_good() && !why.is_for_good()) {
            *broken = Some(why);
        }
    }
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
    pub fn new(on_settled: impl FnOnce(Result<(), NotKept>) + Send + 'static) -> Self {
        let inner = Inner { on_settled: Mutex::new(Some(Box::new(on_settled))), broken: Mutex::new(None) };
        Self { inner: Arc::new(inner), kept: false }
    }

    /// This share's work is safe.
    pub fn keep(mut self) {
        self.kept = true;
    }

    /// This share's work is not done. A reason that is only text may pass: [`NotKept::NotNow`].
    pub fn fail(mut self, why: impl Into<NotKept>) {
        self.kept = true;
        self.inner.break_with(why.into());
    }

    /// This share's work ended as something else did.
    pub fn settle(self, result: Result<(), NotKept>) {
        match result {
            Ok(()) => self.keep(),
            Err(why) => self.fail(why),
        }
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
            self.inner.break_with("the work was abandoned".into());
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

    fn receipt() -> (Receipt, std::sync::mpsc::Receiver<Result<(), NotKept>>) {
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
        assert_eq!(settled.try_recv().unwrap(), Err("the work was abandoned".into()));
    }

    #[test]
    fn the_first_reason_is_the_one_told() {
        let (receipt, settled) = receipt();
        receipt.clone().fail("disk full");
        receipt.fail("too late");
        assert_eq!(settled.try_recv().unwrap(), Err("disk full".into()));
    }

    #[test]
    fn a_reason_that_may_pass_comes_before_one_that_stays() {
        for (first, second) in [(true, false), (false, true)] {
            let (receipt, settled) = receipt();
            for for_good in [first, second] {
                let why = if for_good { NotKept::ForGood("too large".to_owned()) } else { "disk full".into() };
                receipt.clone().fail(why);
            }
            receipt.keep();
            assert_eq!(settled.try_recv().unwrap(), Err("disk full".into()));
        }
    }
}
