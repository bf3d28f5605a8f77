//! The task of one function's windows: brings events to disk, makes windows of them, hands these over, and lets go of what was taken
//! care of.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::config::WindowConfig;
use super::gather::{Gather, Key, Member, Window, cost};
use super::inlet::Inlet;
use super::record::{Waiting, array};
use super::{END_ATTRIBUTE, KIND, Time, stream_of};
use crate::api::cloudevents;
use crate::config::function::KeyPart;
use crate::config::{StreamConfig, WhenFull};
use crate::event::Event;
use crate::journal::{Batch, Journal, JournalError, Record, RecordMeta};
use crate::limits::Limits;
use crate::metrics::FunctionMetrics;
use crate::name::{FunctionName, StreamName};
use crate::receipt::{NotKept, Receipt};
use crate::trigger::{Delivery, Submit};
use crate::units::ByteSize;

/// Records that are read at once at the start.
const PAGE_RECORDS: usize = 512;
const PAGE_BYTES: usize = 1 << 20;
/// How soon a window is delivered again that was not taken or not taken care of, and the disk is asked again after it refused.
const AGAIN: Duration = Duration::from_secs(1);
/// Windows that are under way in the function. The others wait here, where they are on disk already: there they would be parked.
const UNDER_WAY_MAX: usize = 16;
/// Events that are let go of together.
const DONE_MAX: usize = 512;
/// How long they wait for others. A crash meanwhile only repeats their windows.
const DONE_WAIT: Duration = Duration::from_millis(100);
/// How long an end waits for windows that are under way.
const DRAIN: Duration = Duration::from_secs(2);
/// Longest sleep.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

/// What makes windows of a trigger's events that is no longer there: they are delivered as they are.
pub(super) const ADRIFT: WindowConfig = WindowConfig { count: None, time: None, every: None, per: KeyPart::Topic };

/// A window that has ended, until those before it and itself were taken care of.
struct Ended {
    id: u32,
    window: Window,
    /// How often it was handed over.
    attempt: u32,
    settled: bool,
}

/// How an attempt to deliver a window went.
struct Answer {
    number: u64,
    attempt: u32,
    result: Result<(), NotKept>,
}

/// See the module.
pub(super) struct Keeper {
    function: FunctionName,
    stream: StreamName,
    inlet: Arc<Inlet>,
    submit: Arc<dyn Submit>,
    journal: Arc<Journal>,
    metrics: Arc<FunctionMetrics>,
    limits: Arc<Limits>,
    time: Time,
    configs: BTreeMap<u32, WindowConfig>,
    gathers: BTreeMap<u32, Gather>,
    /// By their number, in the order in which they ended.
    ended: BTreeMap<u64, Ended>,
    /// That of the next one.
    number: u64,
    /// Those of them that are to be handed over.
    waiting: BTreeSet<u64>,
    /// How many of them were handed over and have no answer yet.
    under_way: usize,
    /// Those of one key. One lets go of its events after those before it, which may have the same ones.
    lines: HashMap<(u32, Key), VecDeque<u64>>,
    /// Events that no window needs any more.
    done: Vec<u64>,
    /// When these are to be written.
    write_at: Option<Instant>,
    /// Nothing is handed over until then.
    rest_until: Option<Instant>,
    /// Whether the log has told that the disk takes nothing.
    is_told: bool,
    /// Whether it has told that windows end early.
    is_cut_told: bool,
    answers: mpsc::UnboundedSender<Answer>,
    answered: mpsc::UnboundedReceiver<Answer>,
}

impl Keeper {
    pub(super) fn new(
        function: FunctionName,
        inlet: Arc<Inlet>,
        (submit, journal): (Arc<dyn Submit>, Arc<Journal>),
        metrics: Arc<FunctionMetrics>,
        (limits, time): (Arc<Limits>, Time),
    ) -> Self {
        let (answers, answered) = mpsc::unbounded_channel();
        Self {
            stream: stream_of(&function),
            function,
            inlet,
            submit,
            journal,
            metrics,
            limits,
            time,
            configs: BTreeMap::new(),
            gathers: BTreeMap::new(),
            ended: BTreeMap::new(),
            number: 0,
            waiting: BTreeSet::new(),
            under_way: 0,
            lines: HashMap::new(),
            done: Vec::new(),
            write_at: None,
            rest_until: None,
            is_told: false,
            is_cut_told: false,
            answers,
            answered,
        }
    }

    /// Runs until `stop`. `before` is the task of the same function that this one replaces: it ends first.
    pub(super) async fn run(mut self, before: Option<JoinHandle<()>>, stop: CancellationToken) {
        if let Some(before) = before {
            // It ended, or failed; either way it touches the stream no more.
            let _ = before.await;
        }
        // The inlet knows exactly what waits, the journal only about: its bound never comes first.
        let max_bytes = ByteSize(u64::MAX);
        let settings = StreamConfig { max_bytes, when_full: WhenFull::Reject, ..StreamConfig::default() };
        self.journal.own_stream(self.stream.clone(), settings);
        self.configs = self.inlet.changed_windows().unwrap_or_default();
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.load() => {}
        }
        let inlet = Arc::clone(&self.inlet);
        while !stop.is_cancelled() {
            self.advance().await;
            let timer = self.timer();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(answer) = self.answered.recv() => self.settle(answer),
                () = inlet.filled() => self.write().await,
                () = sleep_until(timer) => {}
            }
        }
        self.finish().await;
    }

    /// Makes windows of what an earlier run has left.
    async fn load(&mut self) {
        let mut after = 0;
        loop {
            match self.page(after).await {
                Ok(records) => {
                    let Some(last) = records.last() else { break };
                    after = last.sequence;
                    records.into_iter().for_each(|record| self.load_one(record));
                }
                Err(error) => {
                    tracing::warn!(stream = %self.stream, %error, "events that wait for their window cannot be read, trying again");
                    sleep(AGAIN).await;
                }
            }
        }
    }

    async fn page(&self, after: u64) -> Result<Vec<Record>, JournalError> {
        let (journal, stream) = (Arc::clone(&self.journal), self.stream.clone());
        let read = crate::clock::aside(move || journal.read(&stream, after, PAGE_RECORDS, PAGE_BYTES));
        read.await.map_err(|_| JournalError::Closed)?
    }

    fn load_one(&mut self, record: Record) {
        let Some((waiting, age_ms)) = Waiting::decode(&record.data) else {
            let sequence = record.sequence;
            tracing::error!(stream = %self.stream, sequence, "an event of another agent's format was left out of its window");
            return self.let_go(sequence);
        };
        self.inlet.found(1, waiting.cost());
        self.add(waiting, record.sequence, age_ms);
    }

    fn add(&mut self, waiting: Waiting, sequence: u64, age_ms: u64) {
        let Waiting { window: id, key, hops, item } = waiting;
        let config = self.configs.get(&id).unwrap_or(&ADRIFT);
        let gather = self.gathers.entry(id).or_insert_with(|| Gather::new(config, &self.limits));
        let ended = gather.add(key, Member { sequence, age_ms, hops, item });
        self.end(id, ended);
    }

    /// Does what is due.
    async fn advance(&mut self) {
        if let Some(windows) = self.inlet.changed_windows() {
            self.change(windows);
        }
        let age_ms = self.time.age_ms();
        let due: Vec<_> = self.gathers.iter_mut().map(|(id, gather)| (*id, gather.due(age_ms))).collect();
        for (id, ended) in due {
            self.end(id, ended);
        }
        self.cut();
        let now = self.time.clock.instant();
        if self.rest_until.is_some_and(|until| until <= now) {
            self.rest_until = None;
        }
        self.hand_over();
        if self.write_at.is_some_and(|at| at <= now) {
            self.write_done().await;
        }
    }

    /// What windows are from now on. What waits for one that is longer or shorter now waits for that.
    fn change(&mut self, windows: BTreeMap<u32, WindowConfig>) {
        let before = std::mem::replace(&mut self.configs, windows);
        for (id, config) in self.configs.clone() {
            if before.get(&id) == Some(&config) {
                continue;
            }
            if let Some(gather) = self.gathers.get_mut(&id) {
                let ended = gather.reshape(&config, &self.limits);
                self.end(id, ended);
            }
        }
    }

    /// Ends windows early: those of triggers that are gone, and the oldest ones when too much waits.
    fn cut(&mut self) {
        let gone: Vec<u32> = self.gathers.keys().filter(|id| !self.configs.contains_key(id)).copied().collect();
        for id in gone {
            while let Some(window) = self.gathers.get_mut(&id).and_then(Gather::end_oldest) {
                self.end(id, vec![window]);
            }
        }
        let bytes_max = usize::try_from(self.limits.windowed_bytes_max.0 / 2).unwrap_or(usize::MAX);
        let events_max = self.limits.windowed_events_max / 2;
        loop {
            let (events, bytes) =
                self.gathers.values().fold((0, 0), |sum, it| (sum.0 + it.events(), sum.1 + it.cost()));
            // Just below the bound the next events are above it again.
            self.is_cut_told &= events > events_max / 2 || bytes > bytes_max / 2;
            if events <= events_max && bytes <= bytes_max {
                return;
            }
            let largest = self.gathers.iter_mut().max_by_key(|(_, gather)| gather.cost());
            let Some((id, window)) = largest.and_then(|(id, gather)| Some((*id, gather.end_oldest()?))) else { return };
            if !std::mem::replace(&mut self.is_cut_told, true) {
                tracing::warn!(function = %self.function, events, bytes, "too much waits in windows: those that are open for longest end early");
            }
            self.end(id, vec![window]);
        }
    }

    fn end(&mut self, id: u32, windows: Vec<Window>) {
        for window in windows {
            self.metrics.window_ended(window.end);
            let number = self.number;
            self.number += 1;
            self.lines.entry((id, window.key.clone())).or_default().push_back(number);
            self.waiting.insert(number);
            self.ended.insert(number, Ended { id, window, attempt: 0, settled: false });
        }
    }

    /// The first window that can be handed over now.
    fn next(&self) -> Option<u64> {
        let may = self.rest_until.is_none() && self.under_way < UNDER_WAY_MAX && !self.inlet.is_closed();
        self.waiting.first().copied().filter(|_| may)
    }

    /// Hands over what can be, in the order in which it ended.
    fn hand_over(&mut self) {
        while let Some(number) = self.next() {
            let now_ms = self.time.clock.now_ms();
            let Some(ended) = self.ended.get_mut(&number) else { return };
            ended.attempt += 1;
            let (answers, attempt) = (self.answers.clone(), ended.attempt);
            let Some(gather) = self.gathers.get(&ended.id) else { return };
            // The task may have ended: then its events stay on disk.
            let receipt = Receipt::new(move |result| drop(answers.send(Answer { number, attempt, result })));
            let members = gather.members(&ended.window);
            let event = Arc::new(event(&self.function, (ended.id, &ended.window), members, now_ms));
            match self.submit.submit(&self.function, event, Delivery::AtLeastOnce, receipt) {
                Ok(()) => {
                    self.waiting.remove(&number);
                    self.under_way += 1;
                }
                Err(_) => {
                    // It keeps its place; the answer to this attempt comes too late.
                    ended.attempt += 1;
                    self.rest_until = Some(self.time.clock.instant() + AGAIN);
                }
            }
        }
    }

    fn settle(&mut self, Answer { number, attempt, result }: Answer) {
        let Some(ended) = self.ended.get_mut(&number).filter(|ended| ended.attempt == attempt) else { return };
        self.under_way -= 1;
        if let Err(why) = result {
            tracing::debug!(function = %self.function, %why, "a window was not taken care of, and is delivered again");
            self.waiting.insert(number);
            self.rest_until = Some(self.time.clock.instant() + AGAIN);
            return;
        }
        ended.settled = true;
        let line = (ended.id, ended.window.key.clone());
        while let Some(first) = self.lines.get(&line).and_then(|line| line.front().copied())
            && self.ended.get(&first).is_some_and(|ended| ended.settled)
        {
            self.lines.get_mut(&line).map(VecDeque::pop_front);
            let Some(Ended { window, .. }) = self.ended.remove(&first) else { continue };
            let released = self.gathers.get_mut(&line.0).map(|gather| gather.release(&window)).unwrap_or_default();
            let bytes = released.iter().map(|member| cost(&line.1, &member.item)).sum();
            self.inlet.release(released.len(), bytes);
            released.iter().for_each(|member| self.let_go(member.sequence));
        }
        if self.gathers.get(&line.0).is_some_and(Gather::is_empty) {
            self.gathers.remove(&line.0);
        }
        if self.lines.get(&line).is_some_and(VecDeque::is_empty) {
            self.lines.remove(&line);
        }
    }

    fn let_go(&mut self, sequence: u64) {
        self.done.push(sequence);
        let now = self.time.clock.instant();
        let at = if self.done.len() >= DONE_MAX { now } else { now + DONE_WAIT };
        self.write_at = Some(self.write_at.map_or(at, |earlier| earlier.min(at)));
    }

    /// When something is due next.
    fn timer(&self) -> Instant {
        let (now, age_ms) = (self.time.clock.instant(), self.time.age_ms());
        let ends = self.gathers.values().filter_map(Gather::next_due).min();
        let ends = ends.map(|ends| now + Duration::from_millis(ends.saturating_sub(age_ms)).min(SLEEP_MAX));
        let more = self.next().map(|_| now);
        [ends, self.write_at, self.rest_until, more].into_iter().flatten().min().unwrap_or(now + SLEEP_MAX)
    }

    /// Brings the next events to disk, together with the end of those that no window needs.
    async fn write(&mut self) {
        let puts = self.inlet.take();
        if puts.is_empty() {
            return self.inlet.written();
        }
        let (age_ms, time_ms) = (self.time.age_ms(), self.time.clock.now_ms());
        let record = |waiting: &Waiting| {
            (self.stream.clone(), waiting.encode(age_ms), RecordMeta { time_ms, ..RecordMeta::default() })
        };
        let records = puts.iter().map(|put| record(&put.waiting)).collect();
        match self.journal.commit(Batch { records, ..Batch::default() }).await {
            Ok(committed) => {
                if std::mem::take(&mut self.is_told) {
                    tracing::info!(function = %self.function, "events can wait for their windows again");
                }
                for (put, sequence) in puts.into_iter().zip(committed.sequences) {
                    put.receipt.keep();
                    self.add(put.waiting, sequence, age_ms);
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_told, true) {
                    tracing::error!(function = %self.function, %error, "events cannot wait for their windows: they are not acknowledged");
                }
                for put in puts {
                    self.inlet.release(1, put.waiting.cost());
                    put.receipt.fail(error.to_string());
                }
            }
        }
        self.inlet.written();
    }

    /// Lets go of what was taken care of. It costs no sync of its own: what a crash forgets is delivered again.
    async fn write_done(&mut self) {
        self.write_at = None;
        if self.done.is_empty() {
            return;
        }
        let done = self.done.iter().map(|sequence| (self.stream.clone(), *sequence)).collect();
        match self.journal.commit(Batch { done, ..Batch::default() }).await {
            Ok(_) => self.done.clear(),
            Err(error) => {
                tracing::warn!(stream = %self.stream, %error, "events of windows could not be let go of, trying again");
                self.write_at = Some(self.time.clock.instant() + AGAIN);
            }
        }
    }

    /// Brings to disk what has come, waits a moment for what is under way, and remembers what was taken care of.
    async fn finish(mut self) {
        while self.inlet.has_more() {
            self.write().await;
        }
        let all = async {
            while self.under_way > 0
                && let Some(answer) = self.answered.recv().await
            {
                self.settle(answer);
            }
        };
        // Those that do not come in time are delivered again.
        let _ = timeout(DRAIN, all).await;
        self.write_done().await;
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.inlet.abandon();
    }
}

/// A window of the trigger `id` as its function gets it. The id tells which events it has, so that it is the same one when it is
/// delivered again.
pub(super) fn event<'a>(
    function: &FunctionName,
    (id, window): (u32, &Window),
    members: impl Iterator<Item = &'a Member> + Clone,
    time_ms: u64,
) -> Event {
    Event {
        id: format!("{function}.{id:08x}.{}-{}", window.first, window.last).into(),
        source: format!("window:{function}").into(),
        kind: Cow::Borrowed(KIND),
        subject: window.key.as_deref().map(|key| String::from_utf8_lossy(key).into()),
        time_ms,
        content_type: Some(cloudevents::BATCH.into()),
        attributes: vec![(END_ATTRIBUTE.to_owned(), window.end.label().to_owned())],
        data: array(members.clone().map(|member| &member.item)),
        trace_parent: None,
        hops: members.map(|member| member.hops).max().unwrap_or(0),
    }
}
