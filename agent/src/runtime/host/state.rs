//! What the host functions of one instance know: its function, the agent's services, and the invocation under way.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtxView, WasiHttpView};

use super::http::Http;
use super::log::Log;
use crate::capability::Capabilities;
use crate::function::FunctionSpec;
use crate::inference::Loaded;
use crate::invocation::Effects;
use crate::journal::Journal;
use crate::limits::Limits;
use crate::runtime::Services;
use crate::runtime::guard::MemoryGuard;

/// Most handles (open files, buckets, tensors, …) that one instance may hold; a leak then fails its function, not the agent.
const HANDLES_MAX: usize = 10_000;

/// Why a host call was refused, remembered so that a handler that gives up because of it ends with the right outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The capability, as it is written in `capabilities`, that was not granted.
    Denied(String),
    /// What was sent was over a limit or malformed.
    BadOutput(String),
}

/// What one invocation has done so far.
#[derive(Debug, Default)]
pub(crate) struct Call {
    /// Held back until the handler succeeds.
    pub(crate) effects: Effects,
    /// Payload bytes in `effects`.
    pub(crate) effects_bytes: u64,
    /// The first refusal.
    pub(crate) fault: Option<Fault>,
    /// See [`Context::publish_qos`](crate::invocation::Context::publish_qos).
    pub(crate) publish_qos: u8,
    /// Time spent in models.
    pub(crate) inference: Duration,
    /// Those of the gateway when it began.
    pub(crate) models: Arc<Loaded>,
}

/// The data of an instance's store.
pub(crate) struct HostState {
    /// Handles that the guest holds.
    pub(crate) table: ResourceTable,
    /// The invocation under way.
    pub(crate) call: Call,
    /// When wasm code that runs is stopped.
    pub(crate) deadline: Instant,
    /// Counts linear memory.
    pub(crate) memory: MemoryGuard,
    /// Standard output and error.
    pub(crate) log: Log,
    pub(super) spec: Arc<FunctionSpec>,
    pub(super) services: Arc<Services>,
    /// Bytes of the tensors that the guest holds.
    pub(super) tensor_bytes: u64,
    wasi: WasiCtx,
    http: Http,
}

impl HostState {
    pub(crate) fn new(spec: Arc<FunctionSpec>, services: Arc<Services>, wasi: WasiCtx, log: Log) -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(HANDLES_MAX);
        let memory = MemoryGuard::new(spec.memory.0);
        let deadline = services.clock.instant();
        let call = Call { models: services.models.current(), ..Call::default() };
        let http = Http::new(log.clone());
        Self { table, call, deadline, memory, log, spec, services, tensor_bytes: 0, wasi, http }
    }

    /// Whether wasm code that runs has had its time.
    pub(crate) fn is_late(&self) -> bool {
        self.services.clock.instant() >= self.deadline
    }

    /// The models that the invocation under way sees.
    pub(crate) fn models(&self) -> &Arc<Loaded> {
        &self.call.models
    }

    /// Where committed key-values are.
    pub(super) fn journal(&self) -> &Journal {
        &self.services.journal
    }

    /// Its function.
    pub(crate) fn spec(&self) -> &FunctionSpec {
        &self.spec
    }

    /// What the function was granted.
    pub(crate) fn capabilities(&self) -> &Capabilities {
        &self.spec.capabilities
    }

    /// The bounds in force.
    pub(crate) fn limits(&self) -> &Limits {
        &self.services.limits
    }

    /// Remembers that `capability` was missing; gives the error for the guest.
    pub(crate) fn deny(&mut self, capability: String) -> String {
        let text = format!("capability `{capability}` is not granted to function `{}`", self.spec.name);
        self.call.fault.get_or_insert(Fault::Denied(capability));
        text
    }

    /// Remembers that what the guest sent was over a limit or malformed; gives the error for the guest.
    pub(crate) fn refuse(&mut self, why: String) -> String {
        self.call.fault.get_or_insert_with(|| Fault::BadOutput(why.clone()));
        why
    }

    /// Adds to the time that this invocation spent in models.
    pub(crate) fn add_inference(&mut self, spent: Duration) {
        self.call.inference += spent;
    }
}

impl WasiView for HostState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for HostState {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        self.http.view(&mut self.table)
    }
}

impl std::fmt::Debug for HostState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostState").field("function", &self.spec.name).field("call", &self.call).finish_non_exhaustive()
    }
}
