//! One event on its way through one function.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::event::Event;
use crate::invocation::{Outcome, Timings};
use crate::receipt::Receipt;
use crate::trigger::Delivery;

/// Who hears how it ended.
pub(super) enum Reply {
    /// The source of the event: an acknowledgement, after retries and the dead letter.
    Receipt(Receipt),
    /// A caller that waits for the value: one attempt, and the outcome is theirs.
    Answer(oneshot::Sender<Answer>),
}

/// How a synchronous invocation ended.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Id of the run.
    pub invocation: Arc<str>,
    /// The version that ran.
    pub version: Arc<str>,
    /// How it ended.
    pub outcome: Outcome,
    /// Where the time went.
    pub timings: Timings,
    /// Between arrival and the start of the handler.
    pub queued: Duration,
}

/// See the module.
pub(super) struct Item {
    pub(super) event: Arc<Event>,
    pub(super) delivery: Delivery,
    pub(super) reply: Reply,
    /// 1 for the first.
    pub(super) attempt: u32,
    /// When the event first came here; `retry.max_age` counts from it.
    pub(super) first: Instant,
    /// When it was put into the queue this time.
    pub(super) enqueued: Instant,
}
