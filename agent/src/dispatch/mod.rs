//! Brings events to functions: a bounded queue and warm workers per function, then commit, retry or dead letter.
//!
//! # Promises
//! - An event's receipt is kept only when all its effects are safe, or when it is on disk: parked, or as a dead letter.
//! - An event is tried again only while `retry` allows, and the wait between is never less than [`retry::BACKOFF_MIN`].
//! - One function's backlog, crashes or slowness never hold up another's.
//! - Nothing that is submitted waits: an event is queued or refused at once.

mod commit;
pub mod dead_letter;
mod idempotency;
mod item;
mod letters;
mod load;
mod order;
mod orphans;
mod outbox;
mod outlets;
mod parked;
mod queue;
mod recorded;
mod retry;
#[cfg(test)]
mod tests;
mod worker;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use tokio::sync::oneshot;

use self::idempotency::Seen;
pub use self::item::Answer;
use self::item::{Item, Reply};
pub use self::letters::{LetterError, LetterPage, StoredLetter};
use self::load::{FunctionLoad, Load, Waiting};
pub use self::outlets::{OutboxStatus, Outlets};
use self::parked::Parked;
use self::queue::{Queue, SCOUT_DELAY, Wanted};
use crate::clock::Clock;
use crate::event::Event;
use crate::function::FunctionSpec;
use crate::inference::Loaded;
use crate::limits::Limits;
use crate::metrics::{Dropped, FunctionMetrics, Metrics};
use crate::name::{FunctionName, Own};
use crate::receipt::Receipt;
use crate::recording::tap::{Recording, Selection, Tap, TooManyRecordings};
use crate::runtime::{Function, Runtime};
use crate::telemetry::Tracer;
use crate::trigger::{Delivery, Refused, Submit};

/// How long an agent that stops may take to bring what it has not begun to disk.
const PARK_PATIENCE: Duration = Duration::from_secs(5);

/// One function that is deployed here. Its queue outlives a change of version, so no event is dropped by one.
struct Running {
    name: FunctionName,
    queue: Queue,
    parked: Parked,
    seen: Seen,
    load: Arc<FunctionLoad>,
    /// The version that new instances are made of.
    current: RwLock<Arc<Function>>,
    /// Successes whose effects are not safe yet.
    unsettled: AtomicUsize,
    metrics: Arc<FunctionMetrics>,
    inner: Weak<Inner>,
}

impl Running {
    fn new(inner: &Arc<Inner>, function: Function) -> Self {
        let spec = Arc::clone(&function.spec);
        let running = Self {
            queue: Queue::new(&inner.limits, spec.concurrency),
            parked: Parked::new(&spec.name, spec.order, inner.outlets.journal(), &inner.limits),
            seen: Seen::new(&spec.name, &inner.limits),
            load: Arc::new(FunctionLoad::new(&inner.load)),
            current: RwLock::new(Arc::new(function)),
            unsettled: AtomicUsize::new(0),
            metrics: inner.metrics.function(&spec.name),
            inner: Arc::downgrade(inner),
            name: spec.name.clone(),
        };
        running.configure(inner, &spec);
        running
    }

    fn configure(&self, inner: &Inner, spec: &FunctionSpec) {
        if let Some(idempotency) = &spec.idempotency {
            self.seen.configure(inner.outlets.journal(), idempotency);
        }
    }

    /// Whether nothing waits or runs, but what waits on disk.
    fn is_idle(&self) -> bool {
        matches!(self.queue.depth(), (0, 0, _)) && self.unsettled.load(Ordering::Acquire) == 0 && !self.parked.is_busy()
    }

    fn current(&self) -> Arc<Function> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Inner {
    runtime: Runtime,
    functions: RwLock<HashMap<FunctionName, Arc<Running>>>,
    /// Functions that were taken out of service: what they have on disk waits there until they are back.
    removed: Mutex<HashMap<FunctionName, Arc<Running>>>,
    load: Arc<Load>,
    /// Held for writing while functions and models are exchanged, so that an event sees those that belong together.
    switching: RwLock<()>,
    outlets: Outlets,
    metrics: Metrics,
    tracer: Tracer,
    tap: Tap,
    limits: Arc<Limits>,
    clock: Clock,
}

/// Handle to all functions of this gateway.
#[derive(Clone)]
pub struct Dispatcher {
    inner: Arc<Inner>,
}

/// What [`Dispatcher::functions`] tells of one function.
#[derive(Clone, Debug)]
pub struct FunctionStatus {
    /// What runs.
    pub spec: Arc<FunctionSpec>,
    /// Events that wait in memory.
    pub queued: usize,
    /// Events that wait on disk.
    pub parked: usize,
    /// Instances that serve an event now.
    pub busy: u32,
    /// Instances that wait for one.
    pub idle: u32,
    /// Counters and histograms.
    pub metrics: Arc<FunctionMetrics>,
}

impl Dispatcher {
    /// A dispatcher with no functions yet.
    pub fn new(
        runtime: Runtime,
        outlets: Outlets,
        metrics: Metrics,
        tracer: Tracer,
        limits: Arc<Limits>,
        clock: Clock,
    ) -> Self {
        let (functions, removed, load) = (RwLock::default(), Mutex::default(), Arc::default());
        let (switching, tap) = (RwLock::default(), Tap::new(Arc::clone(&limits)));
        let inner =
            Inner { runtime, functions, removed, load, switching, outlets, metrics, tracer, tap, limits, clock };
        let inner = Arc::new(inner);
        inner.runtime.spawn(orphans::watch(Arc::downgrade(&inner)));
        Self { inner }
    }

    /// Puts a function into service, or a new version in place of the one that serves: events that wait, and those that
    /// come, go to the new one; what runs ends on the old one.
    pub fn deploy(&self, function: Function) {
        self.switch(vec![function], || {});
    }

    /// The same for several at once, with the models that `exchange` exchanges: an event sees all as it was, or all as it is now.
    pub fn switch(&self, functions: Vec<Function>, exchange: impl FnOnce()) {
        let switching = self.inner.switching.write().unwrap_or_else(PoisonError::into_inner);
        exchange();
        let replaced: Vec<_> = functions.into_iter().filter_map(|function| self.replace(function)).collect();
        drop(switching);
        for running in replaced {
            let spec = Arc::clone(&running.current().spec);
            running.configure(&self.inner, &spec);
            running.queue.set_workers_max(spec.concurrency);
            running.queue.reopen();
            running.parked.resume();
            for item in running.parked.set_order(spec.order) {
                running.run(item);
            }
        }
    }

    /// Has new instances be made of `function`. `None` when it is new here.
    fn replace(&self, function: Function) -> Option<Arc<Running>> {
        let name = function.spec.name.clone();
        let inner = &self.inner;
        let mut functions = inner.functions.write().unwrap_or_else(PoisonError::into_inner);
        let before = functions.get(&name).map(Arc::clone).or_else(|| inner.removed().remove(&name));
        let Some(running) = before else {
            let running = Arc::new(Running::new(inner, function));
            inner.runtime.spawn(parked::tend(Arc::clone(inner), Arc::clone(&running)));
            functions.insert(name, running);
            return None;
        };
        *running.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(function);
        functions.insert(name, Arc::clone(&running));
        Some(running)
    }

    /// Takes a function out of service. Events that wait in memory are still served; those on disk wait until it is back.
    pub fn remove(&self, function: &FunctionName) {
        let removed = self.inner.functions.write().unwrap_or_else(PoisonError::into_inner).remove(function);
        if let Some(running) = removed {
            running.parked.pause();
            running.queue.close();
            self.inner.removed().insert(function.clone(), running);
        }
    }

    /// Runs `function` once on `event` for a caller who waits for the outcome: no retry, no dead letter.
    ///
    /// # Errors
    /// When the event was not taken.
    pub async fn invoke(&self, function: &FunctionName, event: Arc<Event>) -> Result<Answer, Refused> {
        let (sender, receiver) = oneshot::channel();
        self.inner.enqueue(function, event, Delivery::AtMostOnce, Reply::Answer(sender))?;
        receiver.await.map_err(|_| Refused::Stopping)
    }

    /// Hears of the runs that are `wanted`, from now on.
    ///
    /// # Errors
    /// When too many do.
    pub fn record(&self, wanted: Selection) -> Result<Recording, TooManyRecordings> {
        self.inner.tap.listen(wanted)
    }

    /// The version of `function` that serves now.
    pub fn version(&self, function: &FunctionName) -> Option<Arc<str>> {
        let functions = self.inner.functions.read().unwrap_or_else(PoisonError::into_inner);
        functions.get(function).map(|running| Arc::clone(&running.current().spec.version))
    }

    /// Which functions there are, and what they do.
    pub fn functions(&self) -> Vec<FunctionStatus> {
        let functions = self.inner.functions.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = functions
            .values()
            .map(|running| {
                let (queued, busy, idle) = running.queue.depth();
                let spec = Arc::clone(&running.current().spec);
                let (parked, _) = running.parked.depth();
                FunctionStatus { spec, queued, parked, busy, idle, metrics: Arc::clone(&running.metrics) }
            })
            .collect();
        all.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        all
    }

    /// Functions that are not in service, and how many events of each wait on disk until they are.
    pub fn orphans(&self) -> Vec<(FunctionName, u64)> {
        self.inner.orphans(Own::Parked)
    }

    /// Lets what waits in memory and what runs come to its end, for `patience` at most. What has not begun then goes to disk;
    /// what has begun is abandoned: its source keeps it.
    pub async fn drain(&self, patience: Duration) {
        let running: Vec<_> = {
            let functions = self.inner.functions.read().unwrap_or_else(PoisonError::into_inner);
            functions.values().map(Arc::clone).chain(self.inner.removed().values().map(Arc::clone)).collect()
        };
        running.iter().for_each(|function| function.parked.pause());
        if !within(patience, || running.iter().all(|function| function.is_idle())).await {
            tracing::warn!(
                ?patience,
                "functions were still busy when the agent stopped; what they run now comes again"
            );
        }
        let now = self.inner.clock.instant();
        for function in &running {
            drop(function.parked.stop(function.queue.abandon(), now));
        }
        if !within(PARK_PATIENCE, || running.iter().all(|function| function.parked.is_written())).await {
            tracing::warn!("events could not be brought to disk when the agent stopped; their sources keep them");
        }
    }
}

/// Waits until `done`, for `patience` at most.
async fn within(patience: Duration, done: impl Fn() -> bool) -> bool {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(patience, wait).await.is_ok()
}

impl fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let functions = self.inner.functions.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_set().entries(functions.keys()).finish()
    }
}

impl Submit for Dispatcher {
    fn submit(
        &self,
        function: &FunctionName,
        event: Arc<Event>,
        delivery: Delivery,
        receipt: Receipt,
    ) -> Result<(), Refused> {
        self.inner.enqueue(function, event, delivery, Reply::Receipt(receipt))
    }
}

impl Inner {
    fn enqueue(
        self: &Arc<Self>,
        function: &FunctionName,
        event: Arc<Event>,
        delivery: Delivery,
        reply: Reply,
    ) -> Result<(), Refused> {
        let running = {
            let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
            functions.get(function).map(Arc::clone).ok_or_else(|| Refused::Unknown(function.clone()))?
        };
        let item = Item::new(event, delivery, reply, self.clock.instant());
        match self.admit(&running, item) {
            Ok(()) => {
                running.metrics.received.inc();
                Ok(())
            }
            Err(refused) => {
                let why = if refused == Refused::Stopping { Dropped::Stopping } else { Dropped::QueueFull };
                running.metrics.dropped(why);
                Err(refused)
            }
        }
    }

    /// The version that an event meets now, with the models that belong to it.
    fn current(&self, running: &Running) -> (Arc<Function>, Arc<Loaded>) {
        let _together = self.switching.read().unwrap_or_else(PoisonError::into_inner);
        (running.current(), self.runtime.models())
    }

    fn running(&self, function: &FunctionName) -> Option<Arc<Running>> {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        functions.get(function).map(Arc::clone)
    }

    /// Takes in an event that has just come: it runs, waits for its turn, or goes to disk.
    fn admit(self: &Arc<Self>, running: &Arc<Running>, mut item: Item) -> Result<(), Refused> {
        if matches!(item.reply, Reply::Answer(_)) {
            return self.queue(running, item);
        }
        let (events, bytes) = running.load.waiting();
        if events >= self.limits.queue_events_max {
            return Err(Refused::Full { events, bytes });
        }
        item.waiting = Some(Waiting::new(&running.load, item.event.data.len()));
        let bytes_max = usize::try_from(self.limits.queue_bytes_max.0 / 2).unwrap_or(usize::MAX);
        let now = self.clock.instant();
        let crowded = running.load.is_crowded(self.limits.spill_events, bytes_max)
            || running.queue.is_late(now, self.limits.spill_after.0);
        match running.admit(item, crowded, now) {
            Some(item) => self.queue(running, item),
            None => Ok(()),
        }
    }

    fn queue(self: &Arc<Self>, running: &Arc<Running>, item: Item) -> Result<(), Refused> {
        // The refused item goes here, where no lock is held.
        let wanted = running.queue.push(item).map_err(|(refused, _)| refused)?;
        self.start(running, &wanted);
        Ok(())
    }

    /// Puts an event into the queue that was admitted before. When the agent stops it is dropped, and its source keeps it.
    fn push(self: &Arc<Self>, running: &Arc<Running>, item: Item) {
        if let Ok(wanted) = running.queue.push_again(item) {
            self.start(running, &wanted);
        }
    }

    fn start(self: &Arc<Self>, running: &Arc<Running>, wanted: &Wanted) {
        match wanted {
            Wanted::Nothing => {}
            Wanted::Worker => self.start_worker(running),
            Wanted::Scout => self.start_scout(running),
        }
    }

    /// Functions that are not in service, and how many records `what` has of each.
    fn orphans(&self, what: Own) -> Vec<(FunctionName, u64)> {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        let waiting = self.outlets.journal().own_status().into_iter().filter(|status| status.records > 0);
        let named = waiting.filter_map(|status| Some((status.name.own_of(what)?, status.records)));
        named.filter(|(function, _)| !functions.contains_key(function)).collect()
    }

    fn removed(&self) -> MutexGuard<'_, HashMap<FunctionName, Arc<Running>>> {
        self.removed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_worker(self: &Arc<Self>, running: &Arc<Running>) {
        self.runtime.spawn(worker::work(Arc::clone(self), Arc::clone(running)));
    }

    fn start_scout(self: &Arc<Self>, running: &Arc<Running>) {
        let (inner, running) = (Arc::clone(self), Arc::clone(running));
        self.runtime.spawn(async move {
            loop {
                tokio::time::sleep(SCOUT_DELAY).await;
                if running.queue.scout(inner.clock.instant()) == Wanted::Worker {
                    inner.start_worker(&running);
                }
                if !running.queue.keep_scouting() {
                    return;
                }
            }
        });
    }
}

/// Reads `bytes` as each kind of record that the agent keeps for itself: one that is taken reads back as it was.
///
/// # Panics
/// When it does not.
pub(crate) fn check_stored(bytes: &[u8]) {
    let bytes = bytes::Bytes::copy_from_slice(bytes);
    if let Some(outgoing) = outbox::Outgoing::decode(bytes.clone()) {
        assert_eq!(outbox::Outgoing::decode(outgoing.encode()), Some(outgoing));
    }
    if let Some((header, _)) = parked::Header::decode(bytes.clone()) {
        assert!(header.place_of(1) > 0 && (!header.is_too_old(0) || header.is_too_old(u64::MAX)), "{header:?}");
    }
    if let Some(letter) = dead_letter::DeadLetter::decode(&bytes) {
        assert!(dead_letter::DeadLetter::decode(&letter.encode()).is_some(), "{letter:?}");
    }
}
