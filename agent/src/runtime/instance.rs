//! One live instance of a function: serves one event at a time, and is kept warm between them unless it is called with requests.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};
use wasmtime::{Store, UpdateDeadline};
use wasmtime_wasi_http::p2::bindings::Proxy;

use super::failure;
use super::host::HostState;
use super::host::http;
use super::host::log::Log;
use super::host::state::{Call, Fault};
use super::host::wasi;
use super::host::world::function as wit;
use super::load::Entry;
use super::{Function, Shared};
use crate::event::Event;
use crate::inference::Loaded;
use crate::invocation::{Context, Effects, Outcome, Timings};
use crate::trigger::http::wasi as request;
use crate::units::ByteSize;

/// A component that needs longer than this to come up would hold up its events for ever.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Least that one host call may pass by value, in bytes: a large tensor.
const PASSED_BYTES_MIN: u64 = 16 << 20;
/// Most that one host call may pass by value, in bytes.
const PASSED_BYTES_MAX: u64 = 128 << 20;

/// How one invocation went.
#[derive(Debug)]
pub struct Invoked {
    /// How it ended.
    pub outcome: Outcome,
    /// What it wants done; empty unless it succeeded.
    pub effects: Effects,
    /// Where its time went; `cold_start` is the caller's to fill in.
    pub timings: Timings,
    /// Whether the instance can serve another event. If not, drop it.
    pub reusable: bool,
}

/// What an instance is called by.
enum Handler {
    /// With events.
    Event(wit::Function),
    /// With requests. The standard leaves open whether it can be called again, and hosts call it once.
    Http(Proxy),
}

/// A live instance.
pub struct Instance {
    store: Store<HostState>,
    handler: Handler,
    shared: Arc<Shared>,
    timeout: Duration,
    /// Which folders are mounted.
    folders: Vec<Option<(u64, u64)>>,
}

impl Function {
    /// Makes an instance.
    ///
    /// # Errors
    /// With the outcome for the event that waited for it: `Unavailable` when the machine has no room, `OutOfMemory`, `Trapped` or
    /// `TimedOut` when the component itself cannot come up.
    pub async fn instantiate(&self) -> Result<Instance, Outcome> {
        let shared = Arc::clone(&self.shared);
        let clock = &shared.services.clock;
        let log = Log::new(self.spec.name.clone(), shared.services.limits.log_bytes_max.0);
        let folders = wasi::folder_ids(&self.spec);
        let wasi = wasi::context(&self.spec, &shared.services, &log, self.files).map_err(|error| {
            let root = self.spec.root.display();
            Outcome::Unavailable(format!("the folder `{root}` of the function cannot be opened: {error:#}"))
        })?;
        let mut state = HostState::new(Arc::clone(&self.spec), Arc::clone(&shared.services), wasi, log);
        if matches!(self.entry, Entry::Http(_)) {
            state.table.set_max_capacity(http::HANDLES_MAX);
        }
        let mut store = Store::new(&shared.engine, state);
        store.limiter(|state| &mut state.memory);
        store.set_hostcall_fuel(passed_bytes(self.spec.memory));
        store.epoch_deadline_callback(|store| {
            Ok(if store.data().is_late() { UpdateDeadline::Interrupt } else { UpdateDeadline::Yield(1) })
        });
        store.set_epoch_deadline(1);
        let deadline = clock.instant() + START_TIMEOUT;
        store.data_mut().deadline = deadline;
        let running = shared.ticker.enter();
        let made = async {
            match &self.entry {
                Entry::Event(component) => component.instantiate_async(&mut store).await.map(Handler::Event),
                Entry::Http(component) => component.instantiate_async(&mut store).await.map(Handler::Http),
            }
        };
        let made = timeout_at(deadline, made).await;
        drop(running);
        match made {
            Ok(Ok(handler)) => Ok(Instance { store, handler, shared, timeout: self.spec.timeout.0, folders }),
            Ok(Err(error)) => Err(store.data_mut().failed(&error, START_TIMEOUT)),
            Err(_) => Err(Outcome::TimedOut { after_ms: millis(START_TIMEOUT) }),
        }
    }
}

impl Instance {
    /// Whether the folders that it reads are still those in their places.
    pub fn is_current(&self) -> bool {
        self.folders.is_empty() || self.folders == wasi::folder_ids(self.store.data().spec())
    }

    /// Runs the handler on `event`, with the models of now.
    pub async fn invoke(&mut self, event: &Arc<Event>, context: Context) -> Invoked {
        let models = self.shared.services.models.current();
        self.invoke_with(event, context, models).await
    }

    /// Runs the handler on `event`, with `models`.
    pub async fn invoke_with(&mut self, event: &Arc<Event>, context: Context, models: Arc<Loaded>) -> Invoked {
        let started = self.shared.services.clock.instant();
        let deadline = started + self.timeout;
        self.store.data_mut().begin(&context, deadline, models);
        self.store.set_epoch_deadline(1);
        let running = self.shared.ticker.enter();
        let call = async {
            match &self.handler {
                Handler::Event(handler) => call(&mut self.store, handler, event, &context).await,
                Handler::Http(component) => answer(&mut self.store, component, event, &context).await,
            }
        };
        // A handler that computes is stopped at a tick; this stops one that waits.
        let called = timeout_at(deadline, call).await;
        drop(running);
        let handler = self.shared.services.clock.instant() - started;
        self.conclude(called, handler)
    }

    fn conclude(
        &mut self,
        called: Result<wasmtime::Result<Result<Vec<u8>, wit::Failure>>, tokio::time::error::Elapsed>,
        handler: Duration,
    ) -> Invoked {
        let state = self.store.data_mut();
        state.log.end();
        let output_max = state.limits().output_bytes_max;
        let (outcome, reusable) = match called {
            Err(_) => (Outcome::TimedOut { after_ms: millis(self.timeout) }, false),
            Ok(Err(error)) => (state.failed(&error, self.timeout), false),
            Ok(Ok(Err(failure))) => (state.gave_up(failure), true),
            Ok(Ok(Ok(value))) if value.len() as u64 > output_max.0 => {
                let size = ByteSize(value.len() as u64);
                (Outcome::BadOutput(format!("it returned {size}, more than `output_bytes_max` = {output_max}")), true)
            }
            Ok(Ok(Ok(value))) => (Outcome::Succeeded(Bytes::from(value)), true),
        };
        let reusable = reusable && matches!(self.handler, Handler::Event(_));
        let Call { effects, inference, .. } = std::mem::take(&mut state.call);
        // What it read led to its failure; what it wanted done is not done.
        let effects = match outcome {
            Outcome::Succeeded(_) => effects,
            _ => Effects { reads: effects.reads, ..Effects::default() },
        };
        Invoked { outcome, effects, timings: Timings { cold_start: None, handler, inference }, reusable }
    }
}

async fn call(
    store: &mut Store<HostState>,
    handler: &wit::Function,
    event: &Event,
    context: &Context,
) -> wasmtime::Result<Result<Vec<u8>, wit::Failure>> {
    let attributes: Vec<(&str, &str)> =
        event.attributes.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let event = wit::Event {
        id: &event.id,
        source: &event.source,
        kind: &event.kind,
        subject: event.subject.as_deref(),
        time_ms: event.time_ms,
        content_type: event.content_type.as_deref(),
        attributes: &attributes,
        data: &event.data,
    };
    let context = wit::Context {
        function: context.function.as_str(),
        version: &context.version,
        invocation: &context.invocation,
        attempt: context.attempt,
        deadline_ms: context.deadline_ms,
        memory_bytes: context.memory_bytes,
        trace_parent: context.trace_parent.as_deref(),
    };
    handler.call_handle(store, event, context).await
}

/// The same of a component that is called with requests; a response is what it returns.
async fn answer(
    store: &mut Store<HostState>,
    component: &Proxy,
    event: &Event,
    context: &Context,
) -> wasmtime::Result<Result<Vec<u8>, wit::Failure>> {
    let request = match request::request(event, context.trace_parent.as_deref()) {
        Ok(request) => request,
        Err(why) => return Ok(Err(wit::Failure::Reject(why))),
    };
    let bytes_max = usize::try_from(store.data().limits().output_bytes_max.0).unwrap_or(usize::MAX);
    let answered = http::answer(store, component, request, bytes_max).await?;
    Ok(answered.map_err(|why| wit::Failure::Reject(store.data_mut().refuse(why))))
}

impl HostState {
    fn begin(&mut self, context: &Context, deadline: Instant, models: Arc<Loaded>) {
        self.deadline = deadline;
        self.log.begin(&context.invocation);
        self.memory.take_refused();
        self.call = Call { publish_qos: context.publish_qos, models, ..Call::default() };
    }

    /// The outcome of wasm code that ended without an answer within `timeout`.
    fn failed(&mut self, error: &wasmtime::Error, timeout: Duration) -> Outcome {
        if failure::is_interrupt(error) {
            self.log.stopped(failure::place(error).as_deref());
            return Outcome::TimedOut { after_ms: millis(timeout) };
        }
        let limit = self.memory.limit_bytes();
        let refused_memory = self.memory.take_refused().then_some(limit);
        let outcome = failure::outcome(error, refused_memory, self.log.last_words());
        match (outcome, self.call.fault.take()) {
            // A handler that unwraps the error of a refused call gives up because of it all the same.
            (Outcome::Trapped(message), Some(Fault::Denied(capability))) if message.contains(&capability) => {
                Outcome::Denied { capability, message }
            }
            (outcome, _) => outcome,
        }
    }

    /// The outcome of a handler that returned `failure`. What it says is cut: it is kept with the event, beside its payload.
    fn gave_up(&mut self, failure: wit::Failure) -> Outcome {
        let (outcome, mut message): (fn(String) -> Outcome, _) = match failure {
            wit::Failure::Retry(message) => (Outcome::Retry, message),
            wit::Failure::Reject(message) => (Outcome::Rejected, message),
        };
        message.truncate(message.floor_char_boundary(self.limits().failure_bytes_max));
        message.shrink_to_fit();
        match self.call.fault.take() {
            Some(Fault::Denied(capability)) => Outcome::Denied { capability, message },
            Some(Fault::BadOutput(why)) if message.contains(&why) => Outcome::BadOutput(message),
            Some(Fault::BadOutput(why)) => Outcome::BadOutput(format!("{why} ({message})")),
            None => outcome(message),
        }
    }
}

fn passed_bytes(memory: ByteSize) -> usize {
    usize::try_from(memory.0.clamp(PASSED_BYTES_MIN, PASSED_BYTES_MAX)).unwrap_or(usize::MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instance").field("state", self.store.data()).finish_non_exhaustive()
    }
}
