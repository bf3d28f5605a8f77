//! Runs functions: WebAssembly components on wasmtime, each instance within its memory, its time and its capabilities.
//!
//! A [`Runtime`] compiles a [`FunctionSpec`] into a [`Function`], which makes any number of [`Instance`]s; each serves one event
//! at a time. How many there are and how long they live is the dispatcher's to decide.

mod cache;
mod engine;
mod error;
mod failure;
mod guard;
mod host;
mod instance;
mod load;
mod pool;
#[cfg(test)]
mod tests;
mod ticker;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use wasmtime::Engine;
use wasmtime::component::Linker;

pub use self::error::{LoadError, RuntimeError};
pub use self::instance::{Instance, Invoked};
pub use self::load::Function;

use self::cache::Cache;
use self::host::HostState;
use self::pool::{Machine, Plan};
use self::ticker::Ticker;
use crate::clock::Clock;
#[cfg(doc)]
use crate::function::FunctionSpec;
use crate::inference::Models;
use crate::journal::Journal;
use crate::limits::Limits;

/// What host functions need of the rest of the agent.
#[derive(Clone)]
pub struct Services {
    /// Models by name.
    pub models: Arc<Models>,
    /// Knows the streams and the key-values.
    pub journal: Arc<Journal>,
    /// Time.
    pub clock: Clock,
    /// Bounds.
    pub limits: Arc<Limits>,
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Services").finish_non_exhaustive()
    }
}

/// How a runtime is made.
#[derive(Clone, Debug, Default)]
pub struct RuntimeConfig {
    /// Where compiled code is kept; without it each start compiles.
    pub cache_dir: Option<PathBuf>,
    /// Instances that the configuration may need at the same time: the sum of `concurrency`.
    pub instances_max: u32,
    /// Threads that functions run on; one per core unless said.
    pub threads: Option<usize>,
}

/// What all functions share.
struct Shared {
    engine: Engine,
    plan: Plan,
    linker: Linker<HostState>,
    cache: Option<Cache>,
    services: Arc<Services>,
    ticker: Ticker,
    /// One compilation at a time: each uses all cores, and much memory.
    compiling: Semaphore,
}

/// Compiles and runs functions. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    shared: Arc<Shared>,
    threads: Arc<Threads>,
}

impl Runtime {
    /// Starts the engine and its threads. Nothing is compiled yet.
    ///
    /// # Errors
    /// When the machine refuses the engine, the threads or the folder for compiled code.
    pub fn new(config: RuntimeConfig, services: Services) -> Result<Self, RuntimeError> {
        let plan = Plan::new(Machine::this(), config.instances_max, &services.limits);
        Self::with_plan(plan, config, services)
    }

    fn with_plan(plan: Plan, config: RuntimeConfig, services: Services) -> Result<Self, RuntimeError> {
        let (engine, plan) = engine::build(plan).map_err(RuntimeError::Engine)?;
        tracing::debug!(?plan, "engine started");
        let linker = host::linker(&engine).map_err(RuntimeError::Engine)?;
        let open = |dir: PathBuf| Cache::open(&dir, &engine).map_err(|source| RuntimeError::Cache { dir, source });
        let cache = config.cache_dir.map(open).transpose()?;
        let ticker = Ticker::start(engine.clone()).map_err(RuntimeError::Threads)?;
        let threads = Threads::start(config.threads).map_err(RuntimeError::Threads)?;
        let services = Arc::new(services);
        let shared = Shared { engine, plan, linker, cache, services, ticker, compiling: Semaphore::new(1) };
        Ok(Self { shared: Arc::new(shared), threads: Arc::new(threads) })
    }

    /// Runs `future` on the threads of functions, away from those of the network.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.threads.handle().spawn(future)
    }

    /// Removes the compiled code of all components but those with one of `digests`.
    pub fn retain(&self, digests: &[&str]) {
        if let Some(cache) = &self.shared.cache {
            cache.retain(digests);
        }
    }
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").field("plan", &self.shared.plan).finish_non_exhaustive()
    }
}

/// The threads that functions run on.
#[derive(Debug)]
struct Threads(Option<tokio::runtime::Runtime>);

impl Threads {
    fn start(count: Option<usize>) -> std::io::Result<Self> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        if let Some(count) = count {
            builder.worker_threads(count);
        }
        // A function that computes gives way every few milliseconds, always with itself next in line. By tokio's defaults, made
        // for tasks of microseconds, new work and timers would then wait for a third of a second.
        builder.global_queue_interval(2).event_interval(8);
        builder.thread_name("function").enable_all().build().map(|runtime| Self(Some(runtime)))
    }

    #[expect(clippy::expect_used, reason = "taken only when it is dropped")]
    fn handle(&self) -> &tokio::runtime::Handle {
        self.0.as_ref().expect("threads run until they are dropped").handle()
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // The last handle may be dropped by a task, where waiting for threads would panic.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
