//! One event on its way through one function.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::idempotency::Claim;
use super::load::Waiting;
use super::order::{Turn, topic_of};
use super::parked::Place;
use crate::event::Event;
use crate::invocation::{Outcome, Timings};
use crate::journal::Batch;
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
    /// When the event first came here, in this run of the agent.
    pub(super) first: Instant,
    /// How old it was then; `retry.max_age` counts both.
    pub(super) age: Duration,
    /// When it was put into the queue this time.
    pub(super) enqueued: Instant,
    /// A hash of its topic; 0 when it has none.
    pub(super) topic: u64,
    /// Its record in `~parked.FUNCTION`, when it is on disk.
    pub(super) parked: Option<Place>,
    /// How often in a row it ran for nothing, because what it had read was changed by another.
    pub(super) conflicts: u32,
    /// Counts it among those that wait in memory.
    pub(super) waiting: Option<Waiting>,
    // What is below goes after `reply`: whoever hears that the event was dealt with hears it before the next one starts.
    /// Makes other events with its idempotency key wait.
    pub(super) claim: Option<Claim>,
    /// Makes later events of its topic wait.
    pub(super) turn: Option<Turn>,
}

impl Item {
    /// An event that has just come.
    pub(super) fn new(event: Arc<Event>, delivery: Delivery, reply: Reply, now: Instant) -> Self {
        Self {
            topic: topic_of(&event),
            event,
            delivery,
            reply,
            attempt: 1,
            first: now,
            age: Duration::ZERO,
            enqueued: now,
            parked: None,
            conflicts: 0,
            waiting: None,
            claim: None,
            turn: None,
        }
    }

    /// Adds what the item itself wants in the batch of its success. A batch that is not empty then must be committed.
    pub(super) fn settle_in(&self, batch: &mut Batch) {
        self.end_in(batch);
        if let Some(claim) = &self.claim {
            claim.mark_in(batch);
        }
    }

    /// Adds what the item itself wants in the batch that ends it in any other way: a dead letter.
    pub(super) fn end_in(&self, batch: &mut Batch) {
        if let Some(parked) = &self.parked {
            batch.done.push((parked.stream.clone(), parked.sequence));
        }
    }

    /// Whether it can wait on disk as well as in the queue: it is there for nobody who waits, and holds nothing up.
    pub(super) fn may_spill(&self) -> bool {
        self.delivery == Delivery::AtLeastOnce
            && self.parked.is_none()
            && self.turn.is_none()
            && self.claim.is_none()
            && matches!(self.reply, Reply::Receipt(_))
    }

    /// How long ago the event first came.
    pub(super) fn age(&self, now: Instant) -> Duration {
        self.age.saturating_add(now.saturating_duration_since(self.first))
    }

    /// All effects of its success are safe.
    pub(super) fn succeeded(self) {
        if let Reply::Receipt(receipt) = self.reply {
            receipt.keep();
        }
        if let Some(claim) = self.claim {
            claim.succeeded();
        }
    }
}
