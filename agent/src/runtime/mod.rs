//! Runs functions: WebAssembly components on wasmtime, each instance within its memory, its time and its capabilities.
//!
//! A [`Runtime`] compiles a [`FunctionSpec`] into a [`Function`], which makes any number of [`Instance`]s; each serves one event
//! at a time. How many there are and how long they live is the dispatcher's to decide.

mod cache;
#[cfg(feature = "compiler")]
mod compile;
mod engine;
mod error;
mod failure;
mod fitting;
mod guard;
mod host;
mod instance;
mod load;
mod pool;
mod precompile;
#[cfg(test)]
pub(crate) mod tests;
mod ticker;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use wasmtime::Engine;
use wasmtime::component::Linker;

#[cfg(feature = "compiler")]
pub use self::compile::{CompileTask, compile_apart};
pub use self::error::{LoadError, RuntimeError};
pub use self::fitting::{CodeCounts, Fitting, target};
pub use self::host::chance::Chance;
pub use self::instance::{Instance, Invoked};
pub use self::load::Function;
pub use self::precompile::{PrecompileError, Precompiled, precompile};

use self::cache::Cache;
use self::host::HostState;
use self::pool::{Machine, Plan};
use self::ticker::Ticker;
use crate::clock::Clock;
#[cfg(doc)]
use crate::function::FunctionSpec;
use crate::inference::{Loaded, Models};
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
    /// What functions draw from.
    pub chance: Chance,
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
    /// Where functions run.
    pub threads: Threads,
    /// Who compiles.
    pub compiler: Compiler,
}

/// Whether this build can compile functions; without it, it runs what others compiled.
pub const HAS_COMPILER: bool = cfg!(feature = "compiler");

/// Who compiles. A build without the feature `compiler` has nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Compiler {
    /// This process: for tests, and for commands that end soon.
    #[default]
    Here,
    /// A process of its own, bounded and of low priority, by the program `tidegate` that lies there.
    Apart(PathBuf),
}

impl Compiler {
    /// A process of its own, by the program that runs.
    pub fn apart() -> Self {
        Self::Apart(PathBuf::from("/proc/self/exe"))
    }
}

/// Where functions run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Threads {
    /// On threads of their own, one per core.
    #[default]
    PerCore,
    /// On so many threads of their own.
    Own(usize),
    /// On the tokio runtime that the agent is started in, and uninterrupted: for a simulation, where one thread does everything
    /// in an order that repeats. A handler that waits is stopped at its timeout; one that computes for ever is not.
    OfTheCaller,
}

/// What all functions share.
struct Shared {
    engine: Engine,
    plan: Plan,
    linker: Linker<HostState>,
    cache: Option<Arc<Cache>>,
    services: Arc<Services>,
    ticker: Arc<Ticker>,
    #[cfg(feature = "compiler")]
    compiler: Compiler,
    /// One compilation at a time: each uses all cores, and much memory.
    compiling: Arc<Semaphore>,
    /// Components that were compiled.
    compiled: Arc<AtomicU64>,
    /// Components whose code came from their publishers.
    adopted: Arc<AtomicU64>,
}

/// Compiles and runs functions. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    shared: Arc<Shared>,
    workers: Arc<Workers>,
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
        let fitting = Fitting::new(&target(), plan.reservation());
        let open = |dir: PathBuf| {
            Cache::open(&dir, fitting.compatibility).map_err(|source| RuntimeError::Cache { dir, source })
        };
        let cache = config.cache_dir.map(open).transpose()?.map(Arc::new);
        let ticker = match config.threads {
            Threads::OfTheCaller => Ticker::standing(),
            _ => Ticker::start(engine.clone()).map_err(RuntimeError::Threads)?,
        };
        let workers = Workers::start(config.threads).map_err(RuntimeError::Threads)?;
        let (services, ticker, compiling) = (Arc::new(services), Arc::new(ticker), Arc::new(Semaphore::new(1)));
        let (compiled, adopted) = Default::default();
        let shared = Shared {
            engine,
            plan,
            linker,
            cache,
            services,
            ticker,
            #[cfg(feature = "compiler")]
            compiler: config.compiler,
            compiling,
            compiled,
            adopted,
        };
        Ok(Self { shared: Arc::new(shared), workers: Arc::new(workers) })
    }

    /// The same engine, compiled code and threads for functions that see other `services`.
    #[must_use]
    pub fn with_services(&self, services: Services) -> Self {
        let Shared { engine, plan, linker, cache, ticker, compiling, compiled, adopted, .. } = &*self.shared;
        let shared = Shared {
            engine: engine.clone(),
            plan: *plan,
            linker: linker.clone(),
            cache: cache.clone(),
            services: Arc::new(services),
            ticker: Arc::clone(ticker),
            #[cfg(feature = "compiler")]
            compiler: self.shared.compiler.clone(),
            compiling: Arc::clone(compiling),
            compiled: Arc::clone(compiled),
            adopted: Arc::clone(adopted),
        };
        Self { shared: Arc::new(shared), workers: Arc::clone(&self.workers) }
    }

    /// The models as they are now.
    pub fn models(&self) -> Arc<Loaded> {
        self.shared.services.models.current()
    }

    /// Runs `future` on the threads of functions, away from those of the network.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.workers.handle().spawn(future)
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

/// How long a thread for what blocks stays: for ever. Without memory no new one can be made, and a task that asked for the
/// first one would panic; with one at hand it waits.
pub const BLOCKING_KEEP_ALIVE: Duration = Duration::from_secs(365 * 86_400);

/// The threads that functions run on.
#[derive(Debug)]
enum Workers {
    /// Taken only when they end.
    Own(Option<tokio::runtime::Runtime>),
    OfTheCaller(Handle),
}

impl Workers {
    fn start(threads: Threads) -> std::io::Result<Self> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        match threads {
            Threads::OfTheCaller => {
                return Handle::try_current().map(Self::OfTheCaller).map_err(std::io::Error::other);
            }
            Threads::Own(count) => drop(builder.worker_threads(count)),
            Threads::PerCore => {}
        }
        // A function that computes gives way every few milliseconds, always with itself next in line. By tokio's defaults, made
        // for tasks of microseconds, new work and timers would then wait for a third of a second.
        builder.global_queue_interval(2).event_interval(8);
        builder.thread_name("function").thread_keep_alive(BLOCKING_KEEP_ALIVE).enable_all();
        let runtime = builder.build()?;
        drop(runtime.spawn_blocking(|| {}));
        Ok(Self::Own(Some(runtime)))
    }

    #[expect(clippy::expect_used, reason = "taken only when it is dropped")]
    fn handle(&self) -> &Handle {
        match self {
            Self::Own(runtime) => runtime.as_ref().expect("threads run until they are dropped").handle(),
            Self::OfTheCaller(handle) => handle,
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        // The last handle may be dropped by a task, where waiting for threads would panic.
        if let Self::Own(runtime) = self
            && let Some(runtime) = runtime.take()
        {
            runtime.shutdown_background();
        }
    }
}
