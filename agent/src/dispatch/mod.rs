//! Brings events to functions: a bounded queue and warm workers per function, then commit, retry or dead letter.
//!
//! # Promises
//! - An event's receipt is kept only when all its effects are safe, or when it is a dead letter on disk.
//! - An event is tried again only while `retry` allows, and the wait between is never less than [`retry::BACKOFF_MIN`].
//! - One function's backlog, crashes or slowness never hold up another's.
//! - Nothing that is submitted waits: an event is queued or refused at once.

mod commit;
mod item;
mod queue;
mod retry;
mod worker;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::oneshot;

pub use self::commit::Outlets;
pub use self::item::Answer;
use self::item::{Item, Reply};
use self::queue::{Queue, SCOUT_DELAY, Wanted};
use crate::clock::Clock;
use crate::event::Event;
use crate::function::FunctionSpec;
use crate::limits::Limits;
use crate::metrics::{Dropped, FunctionMetrics, Metrics};
use crate::name::FunctionName;
use crate::receipt::Receipt;
use crate::runtime::{Function, Runtime};
use crate::telemetry::Tracer;
use crate::trigger::{Delivery, Refused, Submit};

/// One function that is deployed here. Its queue outlives a change of version, so no event is dropped by one.
struct Running {
    queue: Queue,
    /// The version that new instances are made of.
    current: RwLock<Arc<Function>>,
    /// Successes whose effects are not safe yet.
    unsettled: AtomicUsize,
    metrics: Arc<FunctionMetrics>,
}

impl Running {
    fn current(&self) -> Arc<Function> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Inner {
    runtime: Runtime,
    functions: RwLock<HashMap<FunctionName, Arc<Running>>>,
    outlets: Outlets,
    metrics: Metrics,
    tracer: Tracer,
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
    /// Events that wait.
    pub queued: usize,
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
        let functions = RwLock::default();
        Self { inner: Arc::new(Inner { runtime, functions, outlets, metrics, tracer, limits, clock }) }
    }

    /// Puts a function into service, or a new version in place of the one that serves: events that wait, and those that
    /// come, go to the new one; what runs ends on the old one.
    pub fn deploy(&self, function: Function) {
        let spec = Arc::clone(&function.spec);
        let mut functions = self.inner.functions.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = functions.get(&spec.name) {
            *running.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(function);
            running.queue.set_workers_max(spec.concurrency);
            return;
        }
        let running = Running {
            queue: Queue::new(&self.inner.limits, spec.concurrency),
            current: RwLock::new(Arc::new(function)),
            unsettled: AtomicUsize::new(0),
            metrics: self.inner.metrics.function(&spec.name),
        };
        functions.insert(spec.name.clone(), Arc::new(running));
    }

    /// Takes a function out of service. Events that wait are still served.
    pub fn remove(&self, function: &FunctionName) {
        let removed = self.inner.functions.write().unwrap_or_else(PoisonError::into_inner).remove(function);
        if let Some(running) = removed {
            running.queue.close();
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
                FunctionStatus { spec, queued, busy, idle, metrics: Arc::clone(&running.metrics) }
            })
            .collect();
        all.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        all
    }

    /// Lets what waits and runs come to its end, for `patience` at most. What remains is abandoned: its source keeps it.
    pub async fn drain(&self, patience: Duration) {
        let running: Vec<_> = {
            let functions = self.inner.functions.read().unwrap_or_else(PoisonError::into_inner);
            functions.values().map(Arc::clone).collect()
        };
        let idle = || {
            let settled = |function: &Running| function.unsettled.load(Ordering::Acquire) == 0;
            running.iter().all(|function| matches!(function.queue.depth(), (0, 0, _)) && settled(function))
        };
        let drained = tokio::time::timeout(patience, async {
            while !idle() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        if drained.await.is_err() {
            tracing::warn!(?patience, "functions were still busy when the agent stopped; their events will come again");
        }
        for function in &running {
            function.queue.close();
            drop(function.queue.take_all());
        }
    }
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
        let now = self.clock.instant();
        let item = Item { event, delivery, reply, attempt: 1, first: now, enqueued: now };
        match self.push(&running, item) {
            Ok(()) => {
                running.metrics.received.inc();
                Ok(())
            }
            Err((refused, _)) => {
                let why = if refused == Refused::Stopping { Dropped::Stopping } else { Dropped::QueueFull };
                running.metrics.dropped(why);
                Err(refused)
            }
        }
    }

    fn push(self: &Arc<Self>, running: &Arc<Running>, item: Item) -> Result<(), (Refused, Item)> {
        match running.queue.push(item)? {
            Wanted::Nothing => {}
            Wanted::Worker => self.start_worker(running),
            Wanted::Scout => self.start_scout(running),
        }
        Ok(())
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
