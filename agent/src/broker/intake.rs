//! What is published on the embedded broker, on its way to the functions of this agent, with no session between.
//!
//! # Promises
//! - A device's message of QoS 1 or 2 is acknowledged only when every function that it matched has taken care of it, or when
//!   it is on disk.
//! - What cannot be taken care of is not acknowledged: the device's connection ends, and it sends the message again.
//! - What the agent publishes itself does not wait for its turn on a connection: a function that publishes on what another
//!   one listens to would wait for itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::held::Held;
use super::transport::BackOff;
use super::{Incoming, OnMessage};
use crate::clock::Clock;
use crate::invocation::Publish;
use crate::journal::Journal;
use crate::limits::Limits;
use crate::receipt::{NotKept, Receipt};
use crate::topic::TopicFilter;

/// Functions that take longer than this get the message from disk if they must: its device is acknowledged meanwhile.
const SLOW: Duration = Duration::from_secs(2);
/// Waits between two tries to have a message taken care of, while its device waits.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(1);
/// And when it is on disk.
const HELD_RETRY_FIRST: Duration = Duration::from_secs(1);
const HELD_RETRY_LAST: Duration = Duration::from_secs(60);

/// Who listens.
#[derive(Clone, Default)]
enum Ears {
    /// Nobody yet: the agent starts.
    #[default]
    NotYet,
    Open {
        filters: Arc<[TopicFilter]>,
        to: Arc<dyn OnMessage>,
    },
    /// The agent stops.
    Closed,
}

/// Between the embedded broker and the agent's triggers.
pub struct Intake {
    ears: watch::Sender<Ears>,
    held: Option<Held>,
    clock: Clock,
    received: AtomicU64,
    dropped: AtomicU64,
    waiting: AtomicUsize,
}

impl Intake {
    /// One that nobody listens at yet: what comes waits. With a journal, what takes long is brought to disk.
    pub fn new(journal: Option<Arc<Journal>>, limits: &Limits, clock: Clock) -> Self {
        Self {
            ears: watch::Sender::default(),
            held: journal.map(|journal| Held::new(journal, limits)),
            clock,
            received: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Messages that came, repeats included.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Messages that other clients' sessions had no room for.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn note_dropped(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Messages of devices that are not acknowledged yet.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Replaces who listens, and to what. Gives back the filters that are new.
    pub(super) fn hear(self: &Arc<Self>, filters: Vec<TopicFilter>, to: Arc<dyn OnMessage>) -> Vec<TopicFilter> {
        // What an earlier run has left on disk comes first, or at least at once.
        let left = self.held.as_ref().map_or(0, Held::newest);
        let ears = Ears::Open { filters: filters.clone().into(), to };
        match self.ears.send_replace(ears) {
            Ears::Open { filters: before, .. } => filters.into_iter().filter(|one| !before.contains(one)).collect(),
            Ears::Closed => filters,
            Ears::NotYet => {
                if left > 0 {
                    tokio::spawn(Arc::clone(self).resume(left));
                }
                filters
            }
        }
    }

    /// Nothing more is handed out, so nothing more is acknowledged.
    pub(super) fn close(&self) {
        self.ears.send_replace(Ears::Closed);
    }

    /// Hands out what the agent itself publishes; `receipt` then also waits for those who hear it.
    pub(super) fn hear_own(&self, publish: &Publish, receipt: &Receipt) {
        let Ears::Open { to, .. } = self.ears.borrow().clone() else { return };
        self.received.fetch_add(1, Ordering::Relaxed);
        let properties = publish.properties.iter().map(|(name, value)| (name.as_ref().to_owned(), value.clone()));
        let message = Incoming {
            topic: Arc::clone(&publish.topic),
            payload: publish.data.clone(),
            qos: publish.qos,
            own: true,
            content_type: publish.content_type.as_deref().map(Arc::from),
            properties: properties.collect(),
            ..Incoming::default()
        };
        to.on_message(message, (publish.qos > 0).then(|| receipt.clone()));
    }

    /// Hands out `message`, and returns when it may be acknowledged: at once for QoS 0, else within `patience`.
    ///
    /// # Errors
    /// Why it was not taken care of. It may be later, so the device is to send it again.
    pub(super) async fn take(self: &Arc<Self>, mut message: Incoming, patience: Duration) -> Result<(), NotKept> {
        self.received.fetch_add(1, Ordering::Relaxed);
        if message.qos == 0 {
            if let Ears::Open { to, .. } = self.ears.borrow().clone() {
                to.on_message(message, None);
            }
            return Ok(());
        }
        let _waiting = Waiting::one_of(&self.waiting);
        let until = self.clock.instant() + patience;
        let mut back_off = BackOff::new(RETRY_FIRST, RETRY_LAST);
        loop {
            let (settle, settled) = oneshot::channel();
            let receipt = Receipt::new(move |result| drop(settle.send(result)));
            timeout_at(until, self.hand_out(message.clone(), receipt)).await.map_err(|_| "the agent starts")??;
            let mut settled = Settled(settled);
            let slow_at = until.min(self.clock.instant() + SLOW.min(patience / 2));
            let result = match timeout_at(slow_at, settled.wait()).await {
                Ok(result) => result,
                Err(_) => match self.settled_or_held(&message, settled, until).await {
                    Some(result) => result,
                    None => return Err(format!("not taken care of within {patience:?}").into()),
                },
            };
            let Err(why) = result else { return Ok(()) };
            let again_at = self.clock.instant() + back_off.step();
            if again_at >= until {
                return Err(why);
            }
            sleep_until(again_at).await;
            message.duplicate = true;
        }
    }

    /// How a message that takes long is settled: well, when it is on disk. `None` when neither is before `until`.
    async fn settled_or_held(
        self: &Arc<Self>,
        message: &Incoming,
        mut settled: Settled,
        until: Instant,
    ) -> Option<Result<(), NotKept>> {
        if let Some(held) = &self.held {
            let room = tokio::select! {
                biased;
                result = settled.wait() => return Some(result),
                room = timeout_at(until, held.room()) => room.ok()??,
            };
            // Not given up half-way: what is on disk is somebody's to see through.
            match held.keep(message, self.clock.now_ms()).await {
                Ok(sequence) => {
                    // The place is given back with the message.
                    room.forget();
                    tokio::spawn(Arc::clone(self).see_through(sequence, message.clone(), Some(settled), 1));
                    return Some(Ok(()));
                }
                Err(why) => {
                    tracing::warn!(topic = %message.topic, why, "a message that takes long cannot be brought to disk")
                }
            }
        }
        timeout_at(until, settled.wait()).await.ok()
    }

    /// Hands out what an earlier run left on disk, up to number `last`.
    async fn resume(self: Arc<Self>, last: u64) {
        let Some(held) = &self.held else { return };
        let mut after = 0;
        while after < last {
            let page = match held.read(after).await {
                Ok(page) => page,
                Err(why) => return tracing::error!(why, "messages that wait on disk cannot be read"),
            };
            if page.is_empty() {
                return;
            }
            let mut messages = Vec::new();
            for (sequence, message) in page {
                after = sequence;
                match message {
                    // Newer ones are this run's own.
                    _ if sequence > last => break,
                    Some(message) => messages.push((sequence, message)),
                    None => {
                        tracing::error!(sequence, "a record of messages on disk is not one, and is left out");
                        let _ = held.done(sequence).await;
                    }
                }
            }
            tracing::info!(
                messages = messages.len(),
                "messages that devices were acknowledged are handed out from disk"
            );
            let all = messages
                .into_iter()
                .map(|(sequence, message)| Arc::clone(&self).see_through(sequence, message, None, 0));
            futures_util::future::join_all(all).await;
        }
    }

    /// Has a message on disk taken care of, however long it takes, and gives back `places`.
    async fn see_through(
        self: Arc<Self>,
        sequence: u64,
        mut message: Incoming,
        mut under_way: Option<Settled>,
        places: usize,
    ) {
        let Some(held) = &self.held else { return };
        message.duplicate = true;
        let mut back_off = BackOff::new(HELD_RETRY_FIRST, HELD_RETRY_LAST);
        loop {
            let mut settled = match under_way.take() {
                Some(settled) => settled,
                None => {
                    let (settle, settled) = oneshot::channel();
                    let receipt = Receipt::new(move |result| drop(settle.send(result)));
                    // The agent stops, and finds it after its next start.
                    if self.hand_out(message.clone(), receipt).await.is_err() {
                        return;
                    }
                    Settled(settled)
                }
            };
            let result = match settled.wait().await {
                Ok(()) => held.done(sequence).await.map_err(|error| error.to_string()),
                Err(why) => Err(why.to_string()),
            };
            match result {
                Ok(()) => return held.leave(places),
                Err(why) => {
                    tracing::warn!(topic = %message.topic, why, "a message on disk could not be handled, and is kept");
                    sleep(back_off.step()).await;
                }
            }
        }
    }

    /// Waits until somebody listens.
    async fn hand_out(&self, message: Incoming, receipt: Receipt) -> Result<(), NotKept> {
        let mut ears = self.ears.subscribe();
        let ears = ears.wait_for(|ears| !matches!(ears, Ears::NotYet)).await.map(|ears| ears.clone());
        match ears {
            Ok(Ears::Open { to, .. }) => {
                to.on_message(message, Some(receipt));
                Ok(())
            }
            _ => {
                receipt.keep();
                Err("the agent stops".into())
            }
        }
    }
}

/// How a message that was handed out is settled.
struct Settled(oneshot::Receiver<Result<(), NotKept>>);

impl Settled {
    /// Can be given up and called again.
    async fn wait(&mut self) -> Result<(), NotKept> {
        (&mut self.0).await.unwrap_or_else(|_| Err("the work was abandoned".into()))
    }
}

impl std::fmt::Debug for Intake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intake").field("waiting", &self.waiting()).finish_non_exhaustive()
    }
}

/// Counts one message that waits, also when its connection is torn down meanwhile.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn one_of(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    /// Answers each message as it was told to, in turn.
    struct Listener(Mutex<Vec<Option<&'static str>>>);

    impl OnMessage for Listener {
        fn on_message(&self, _: Incoming, receipt: Option<Receipt>) {
            let Some(receipt) = receipt else { return };
            match self.0.lock().unwrap().pop() {
                Some(Some(why)) => receipt.fail(why),
                Some(None) => receipt.keep(),
                None => std::mem::forget(receipt),
            }
        }
    }

    fn deaf() -> Arc<Intake> {
        Arc::new(Intake::new(None, &Limits::default(), Clock::system()))
    }

    fn intake(mut answers: Vec<Option<&'static str>>) -> Arc<Intake> {
        answers.reverse();
        let intake = deaf();
        intake.hear(Vec::new(), Arc::new(Listener(Mutex::new(answers))));
        intake
    }

    fn message() -> Incoming {
        Incoming { topic: "a".into(), qos: 1, ..Incoming::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_handled_now_is_tried_again_before_the_device_must() {
        assert_eq!(intake(vec![Some("full"), Some("full"), None]).take(message(), PATIENCE).await, Ok(()));
        let refused = intake(vec![Some("full"); 100]).take(message(), PATIENCE).await;
        assert_eq!(refused, Err("full".into()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_settled_in_time_is_not_acknowledged() {
        let intake = intake(Vec::new());
        let refused = intake.take(message(), PATIENCE).await;
        assert_eq!(refused, Err("not taken care of within 5s".into()));
        assert_eq!(intake.waiting(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn before_the_start_and_after_the_stop_nothing_is_acknowledged() {
        let intake = deaf();
        assert_eq!(intake.take(message(), PATIENCE).await, Err("the agent starts".into()));
        intake.close();
        assert_eq!(intake.take(message(), PATIENCE).await, Err("the agent stops".into()));
    }

    #[test]
    fn filters_that_are_new_are_told() {
        let filter = |text: &str| TopicFilter::parse(text).unwrap();
        let intake = deaf();
        let nobody = || Arc::new(Listener(Mutex::default())) as Arc<dyn OnMessage>;
        assert_eq!(intake.hear(vec![filter("a")], nobody()), [filter("a")]);
        assert_eq!(intake.hear(vec![filter("a"), filter("b")], nobody()), [filter("b")]);
    }
}
