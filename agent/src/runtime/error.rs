//! Why the runtime, or a function in it, could not be made ready.

use std::io;
use std::path::PathBuf;

use crate::name::FunctionName;
use crate::units::{ByteSize, Span};

/// Why there is no runtime.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// wasmtime refuses its configuration, even without a pool.
    #[error("the WebAssembly engine cannot start on this machine")]
    Engine(#[source] wasmtime::Error),
    /// No threads to run functions on.
    #[error("the threads that run functions cannot be started")]
    Threads(#[source] io::Error),
    /// The folder for compiled code.
    #[error("the folder `{dir}` for compiled code cannot be used", dir = dir.display())]
    Cache {
        /// Which.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why a function could not be loaded. What ran before keeps running.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("component `{path}` of function `{function}` cannot be read", path = path.display())]
    Read {
        /// Whose.
        function: FunctionName,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Over `component_bytes_max`.
    #[error("component `{path}` of function `{function}` is {bytes}, more than `component_bytes_max` = {max}", path = path.display())]
    TooLarge {
        /// Whose.
        function: FunctionName,
        /// Which.
        path: PathBuf,
        /// Its size.
        bytes: ByteSize,
        /// The limit.
        max: ByteSize,
    },
    /// The file is not the one that the bundle was read with.
    #[error("component `{path}` of function `{function}` has changed since its bundle was read; hint: run `tidegate reload` again", path = path.display())]
    Changed {
        /// Whose.
        function: FunctionName,
        /// Which.
        path: PathBuf,
    },
    /// A module, not a component.
    #[error("`{path}` of function `{function}` is a core WebAssembly module, not a component; hint: build it with `tidegate build`, or wrap it with `wasm-tools component new`", path = path.display())]
    NotAComponent {
        /// Whose.
        function: FunctionName,
        /// Which.
        path: PathBuf,
    },
    /// It is not valid, or uses what the engine does not know.
    #[error("component `{path}` of function `{function}` does not compile", path = path.display())]
    Compile {
        /// Whose.
        function: FunctionName,
        /// Which.
        path: PathBuf,
        /// Why.
        source: wasmtime::Error,
    },
    /// Nobody compiled it for this machine, and this build cannot.
    #[error(
        "function `{function}` has no native code for {target} by {compatibility}, and this build of tidegate has no compiler; hint: compile it with the version of tidegate that runs here, elsewhere: `tidegate publish --target {target}`"
    )]
    NoCompiler {
        /// Whose.
        function: FunctionName,
        /// What it would have to be compiled for.
        target: String,
        /// By which version and settings.
        compatibility: String,
    },
    /// Compiling it took more memory than there may be.
    #[error(
        "compiling component `{path}` of function `{function}` took more than {max} of memory, and was given up; hint: compile it elsewhere: `tidegate publish --target {target}`", path = path.display()
    )]
    CompileMemory {
        /// Whose.
        function: FunctionName,
        /// Which.
        path: PathBuf,
        /// `compile_bytes_max`, or what this machine has.
        max: ByteSize,
        /// For this machine.
        target: String,
    },
    /// Compiling it took too long.
    #[error(
        "compiling component `{path}` of function `{function}` took longer than {max}, and was given up; hint: compile it elsewhere: `tidegate publish --target {target}`", path = path.display()
    )]
    CompileTime {
        /// Whose.
        function: FunctionName,
        /// Which.
        path: PathBuf,
        /// `compile_max`.
        max: Span,
        /// For this machine.
        target: String,
    },
    /// The process that compiles cannot be run.
    #[error(
        "function `{function}` cannot be compiled in a process of its own; hint: the agent needs /proc, and to start itself"
    )]
    Process {
        /// Whose.
        function: FunctionName,
        /// Why.
        source: io::Error,
    },
    /// It wants something that is never offered.
    #[error("function `{function}` imports `{import}`, which does not exist here: {hint}")]
    Import {
        /// Whose.
        function: FunctionName,
        /// Which.
        import: String,
        /// What there is instead.
        hint: &'static str,
    },
    /// What it imports or exports has another version or type than ours.
    #[error(
        "function `{function}` does not fit the contract `tidegate:function@0.1.0`; hint: build it against the `functions/wit` of this agent"
    )]
    Contract {
        /// Whose.
        function: FunctionName,
        /// Where it differs.
        source: wasmtime::Error,
    },
    /// A trigger calls it with requests, and it takes events.
    #[error(
        "function `{function}` exports no `wasi:http/incoming-handler@0.2`, which its trigger `{trigger}` with `event_shape = \"wasi-http\"` calls; hint: take the `event_shape` out of the trigger, or put the component of a `wasi:http` 0.2 proxy into the bundle"
    )]
    NoIncomingHandler {
        /// Whose.
        function: FunctionName,
        /// Which.
        trigger: String,
    },
    /// It takes requests, and a trigger makes other events.
    #[error(
        "function `{function}` exports `wasi:http/incoming-handler` and takes requests only, which its trigger `{trigger}` does not make of what it hears; hint: write `http = {{ path = \"/{function}\", event_shape = \"wasi-http\" }}`"
    )]
    RequestsOnly {
        /// Whose.
        function: FunctionName,
        /// Which.
        trigger: String,
    },
    /// Its `memory` is more than an instance can have.
    #[error(
        "function `{function}` may use {memory} of memory, more than the {max} that one instance can have on this machine; hint: lower its `memory`"
    )]
    Memory {
        /// Whose.
        function: FunctionName,
        /// What was configured.
        memory: ByteSize,
        /// What is possible.
        max: ByteSize,
    },
    /// The agent is stopping.
    #[error("function `{0}` was not loaded because the agent is stopping")]
    Stopped(FunctionName),
}
