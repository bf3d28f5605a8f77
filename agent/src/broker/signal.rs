//! Wakes the connection's task, once for any number of reasons.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// A flag that one task waits for. Raising it while it is up costs one atomic read.
#[derive(Debug, Default)]
pub(super) struct Signal {
    raised: AtomicBool,
    waker: AtomicWaker,
}

impl Signal {
    pub(super) fn raise(&self) {
        if !self.raised.load(Ordering::SeqCst) && !self.raised.swap(true, Ordering::SeqCst) {
            self.waker.wake();
        }
    }

    /// Ready when it was raised since the last time; that takes it down.
    pub(super) fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        if self.raised.swap(false, Ordering::SeqCst) {
            return Poll::Ready(());
        }
        self.waker.register(cx.waker());
        if self.raised.swap(false, Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
    }
}
