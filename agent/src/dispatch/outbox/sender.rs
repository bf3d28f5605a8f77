//! The task of one outbox: hands to the broker what is on disk, in order, and lets go of what has been confirmed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::{Lane, Outgoing, lock};
use crate::broker::Link;
use crate::clock::Clock;
use crate::dispatch::dead_letter::DeadLetter;
use crate::dispatch::outlets::Outlets;
use crate::journal::{Batch, Journal, JournalError, RecordMeta};
use crate::metrics::Metrics;
use crate::name::StreamName;
use crate::receipt::{NotKept, Receipt};

/// How often a broker may refuse a publish for now before it is a dead letter.
const ATTEMPTS_MAX: u32 = 5;
/// Wait before the second attempt; twice as long before each further one.
const REFUSED_WAIT: Duration = Duration::from_secs(1);
/// Publishes under way to the broker: half of what a broker takes, so that those that need no disk find room beside them.
const WINDOW: usize = 500;
/// Payload bytes of those.
const WINDOW_BYTES: usize = 4 << 20;
/// Confirmations that are written together.
const CONFIRMED_MAX: usize = 500;
/// How long a confirmation waits for others. A crash meanwhile only repeats its publish.
const CONFIRMED_WAIT: Duration = Duration::from_millis(100);
/// Wait after the disk was in the way.
const DISK_WAIT: Duration = Duration::from_secs(1);
/// How long an end waits for confirmations that are under way.
const DRAIN: Duration = Duration::from_secs(2);

type Answer = (u64, Result<(), NotKept>);

/// A publish that the broker refused.
struct Refused {
    attempts: u32,
    why: NotKept,
    /// When it is due again, or its end is; none while it is under way.
    due: Option<Instant>,
}

impl Refused {
    fn is_over(&self) -> bool {
        self.why.is_for_good() || self.attempts >= ATTEMPTS_MAX
    }
}

pub(super) struct Sender {
    lane: Arc<Lane>,
    journal: Arc<Journal>,
    dead_letters: StreamName,
    metrics: Metrics,
    clock: Clock,
    sent: u64,
    /// Payload bytes of each publish that is under way.
    under_way: HashMap<u64, usize>,
    bytes: usize,
    refused: BTreeMap<u64, Refused>,
    confirmed: Vec<u64>,
    /// When what was confirmed is to be written.
    write_at: Option<Instant>,
    /// The disk was in the way: nothing is read until then.
    rest_until: Option<Instant>,
    answers: mpsc::UnboundedSender<Answer>,
    answered: mpsc::UnboundedReceiver<Answer>,
}

impl Sender {
    pub(super) fn new(lane: Arc<Lane>, outlets: &Outlets) -> Self {
        let (answers, answered) = mpsc::unbounded_channel();
        Self {
            journal: Arc::clone(outlets.journal()),
            dead_letters: outlets.dead_letters(),
            metrics: outlets.metrics().clone(),
            clock: outlets.clock().clone(),
            lane,
            sent: 0,
            under_way: HashMap::new(),
            bytes: 0,
            refused: BTreeMap::new(),
            confirmed: Vec::new(),
            write_at: None,
            rest_until: None,
            answers,
            answered,
        }
    }

    /// Runs until the lane is stopped.
    pub(super) async fn run(mut self) {
        let cancel = self.lane.cancel.clone();
        let mut newest = self.journal.subscribe(&self.lane.stream);
        let mut link = self.lane.broker.link();
        self.sent = self.journal.floor(&self.lane.stream);
        while !cancel.is_cancelled() {
            self.show_progress();
            let timer = self.timer();
            // What is refused for now comes first: a broker that is over its quota would only refuse the others too.
            let may_send = self.refused.is_empty() && self.rest_until.is_none();
            let has_room = may_send && self.under_way.len() < WINDOW && self.bytes < WINDOW_BYTES;
            tokio::select! {
                biased;
                () = cancel.cancelled() => break,
                Some(answer) = self.answered.recv() => self.take(answer),
                () = sleep_until(timer.unwrap_or_else(|| self.clock.instant())), if timer.is_some() => self.on_time().await,
                durable = next_durable(&mut link, &mut newest, self.sent), if has_room => self.send_up_to(durable).await,
            }
        }
        self.finish().await;
    }

    /// When something is due next.
    fn timer(&self) -> Option<Instant> {
        let refused = self.refused.values().filter_map(|refused| refused.due);
        refused.chain(self.write_at).chain(self.rest_until).min()
    }

    fn show_progress(&self) {
        let mut progress = lock(&self.lane.progress);
        progress.sent = self.sent;
        progress.open = self.under_way.len() + self.refused.values().filter(|refused| refused.due.is_some()).count();
    }

    async fn send_up_to(&mut self, durable: u64) {
        let publishes = match self.next(durable).await {
            Ok(publishes) => publishes,
            Err(error) => {
                tracing::warn!(outbox = %self.lane.stream, error, "publishes could not be read, trying again");
                self.rest_until = Some(self.clock.instant() + DISK_WAIT);
                return;
            }
        };
        if publishes.is_empty() {
            // They are done with, or their commits have failed.
            self.sent = self.sent.max(durable);
        }
        for (sequence, outgoing) in publishes {
            self.sent = sequence;
            match outgoing {
                Some(outgoing) => self.hand_over(sequence, outgoing).await,
                None => self.give_up_unreadable(sequence),
            }
            if self.lane.cancel.is_cancelled() {
                return;
            }
        }
    }

    /// The next publishes that are on disk, oldest first.
    async fn next(&self, durable: u64) -> Result<Vec<(u64, Option<Outgoing>)>, String> {
        let count_max = WINDOW - self.under_way.len();
        let fresh = lock(&self.lane.fresh).take(self.sent, durable, count_max);
        if !fresh.is_empty() {
            return Ok(fresh.into_iter().map(|(sequence, outgoing)| (sequence, Some(outgoing))).collect());
        }
        let (journal, stream, sent) = (Arc::clone(&self.journal), self.lane.stream.clone(), self.sent);
        let bytes_max = WINDOW_BYTES - self.bytes;
        let read = crate::clock::aside(move || journal.read(&stream, sent, count_max, bytes_max)).await;
        let records = read.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        Ok(records.into_iter().map(|record| (record.sequence, Outgoing::decode(record.data))).collect())
    }

    async fn hand_over(&mut self, sequence: u64, outgoing: Outgoing) {
        let bytes = outgoing.publish.data.len();
        self.under_way.insert(sequence, bytes);
        self.bytes += bytes;
        let answers = self.answers.clone();
        // The task may have ended: then the record stays, and is sent again.
        let receipt = Receipt::new(move |result| drop(answers.send((sequence, result))));
        tokio::select! {
            biased;
            () = self.lane.broker.publish(outgoing.publish, receipt) => {}
            () = self.lane.cancel.cancelled() => {}
        }
    }

    fn take(&mut self, (sequence, result): Answer) {
        if let Some(bytes) = self.under_way.remove(&sequence) {
            self.bytes -= bytes;
        }
        let now = self.clock.instant();
        match result {
            Ok(()) => {
                self.refused.remove(&sequence);
                self.done(sequence);
            }
            Err(why) => {
                lock(&self.lane.progress).last_error = Some(why.to_string());
                let attempts = self.refused.get(&sequence).map_or(0, |refused| refused.attempts) + 1;
                let mut refused = Refused { attempts, why, due: None };
                let wait = if refused.is_over() { Duration::ZERO } else { REFUSED_WAIT * 2_u32.pow(attempts - 1) };
                refused.due = Some(now + wait);
                self.refused.insert(sequence, refused);
            }
        }
    }

    fn done(&mut self, sequence: u64) {
        self.confirmed.push(sequence);
        let now = self.clock.instant();
        let at = if self.confirmed.len() >= CONFIRMED_MAX { now } else { now + CONFIRMED_WAIT };
        self.write_at = Some(self.write_at.map_or(at, |earlier| earlier.min(at)));
    }

    async fn on_time(&mut self) {
        let now = self.clock.instant();
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_due(self.rest_until) {
            self.rest_until = None;
        }
        if is_due(self.write_at) {
            self.write_confirmed(false).await;
        }
        let due = self.refused.iter().filter(|(_, refused)| is_due(refused.due)).map(|(sequence, _)| *sequence);
        for sequence in due.collect::<Vec<_>>() {
            if let Err(error) = self.try_again(sequence).await {
                tracing::warn!(outbox = %self.lane.stream, %error, "a refused publish could not be dealt with, trying again");
                if let Some(refused) = self.refused.get_mut(&sequence) {
                    refused.due = Some(now + DISK_WAIT);
                }
            }
        }
    }

    /// Lets go of what the broker has. A group of its own costs no sync: what a crash forgets is published twice.
    async fn write_confirmed(&mut self, durable: bool) {
        self.write_at = None;
        if self.confirmed.is_empty() {
            return;
        }
        let done = self.confirmed.iter().map(|sequence| (self.lane.stream.clone(), *sequence)).collect();
        let batch = Batch { done, ..Batch::default() };
        let written = async {
            let committing = self.journal.begin(batch).await?;
            if durable { committing.durable().await.map(drop) } else { Ok(()) }
        };
        match written.await {
            Ok(()) => {
                self.confirmed.clear();
                self.lane.freed.notify_waiters();
            }
            Err(error) => {
                tracing::warn!(outbox = %self.lane.stream, %error, "confirmed publishes could not be let go of, trying again");
                self.write_at = Some(self.clock.instant() + DISK_WAIT);
            }
        }
    }

    /// Another attempt for a publish that was refused, or its end.
    async fn try_again(&mut self, sequence: u64) -> Result<(), JournalError> {
        let (journal, stream) = (Arc::clone(&self.journal), self.lane.stream.clone());
        let read = crate::clock::aside(move || journal.read_one(&stream, sequence)).await;
        let Some(record) = read.map_err(|_| JournalError::Closed)?? else {
            self.refused.remove(&sequence);
            return Ok(());
        };
        let Some(outgoing) = Outgoing::decode(record.data) else {
            self.refused.remove(&sequence);
            self.give_up_unreadable(sequence);
            return Ok(());
        };
        match self.refused.get_mut(&sequence) {
            Some(refused) if !refused.is_over() => {
                refused.due = None;
                self.hand_over(sequence, outgoing).await;
                Ok(())
            }
            Some(refused) => {
                let (why, attempts) = (refused.why.to_string(), refused.attempts);
                self.bury(sequence, outgoing, why, attempts).await?;
                self.refused.remove(&sequence);
                Ok(())
            }
            None => Ok(()),
        }
    }

    async fn bury(&self, sequence: u64, outgoing: Outgoing, why: String, attempts: u32) -> Result<(), JournalError> {
        let broker = self.lane.broker.name();
        let Outgoing { function, publish } = outgoing;
        tracing::warn!(
            %function, %broker, topic = %publish.topic, attempts, reason = why,
            "a publish was refused; it is now a dead letter"
        );
        let function_metrics = self.metrics.function(&function);
        let letter = DeadLetter::of_publish(function, broker.clone(), publish, why, attempts);
        let meta = RecordMeta { time_ms: self.clock.now_ms(), ..RecordMeta::default() };
        let batch = Batch {
            records: vec![(self.dead_letters.clone(), letter.encode(), meta)],
            done: vec![(self.lane.stream.clone(), sequence)],
            ..Batch::default()
        };
        self.journal.commit(batch).await?;
        function_metrics.dead_letters.inc();
        self.lane.freed.notify_waiters();
        Ok(())
    }

    fn give_up_unreadable(&mut self, sequence: u64) {
        tracing::error!(outbox = %self.lane.stream, sequence, "a publish of another agent's format was left out");
        self.done(sequence);
    }

    /// Waits a moment for what is under way, and remembers what was confirmed. The rest is sent again by whoever comes next.
    async fn finish(mut self) {
        let all = async {
            while !self.under_way.is_empty()
                && let Some((sequence, result)) = self.answered.recv().await
            {
                self.under_way.remove(&sequence);
                if result.is_ok() {
                    self.confirmed.push(sequence);
                }
            }
        };
        // Those that do not come in time are published again.
        let _ = timeout(DRAIN, all).await;
        self.write_confirmed(true).await;
        self.show_progress();
    }
}

/// Waits until there is a broker to send to, and something after `sent` on disk. Gives the newest sequence that is.
async fn next_durable(link: &mut watch::Receiver<Link>, newest: &mut watch::Receiver<u64>, sent: u64) -> u64 {
    let is_up = link.wait_for(|link| *link != Link::Down).await.is_ok();
    let durable = newest.wait_for(|newest| *newest > sent).await.map(|newest| *newest);
    match durable {
        Ok(durable) if is_up => durable,
        // The connection's task, or the journal, is gone: there is nothing more to send, and the lane will be stopped.
        _ => std::future::pending().await,
    }
}
