//! Makes machine code of components: in this process, or in one of its own.
//!
//! Cranelift takes hundreds of megabytes for a language's runtime. In a process of its own that is bounded, goes back to the machine
//! as soon as it is done, and, when it is more than there is, ends that process and not the gateway.
//!
//! # Promises
//! - A process that compiles has the lowest priority, and a bound on its memory and its time.
//! - It writes no file: its code comes back in memory, and is kept when it has ended well. Killed at any moment, it leaves nothing.
//! - It does not outlive the agent.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::Ordering;

use anyhow::{Context as _, anyhow, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, getppid, set_parent_process_death_signal, setpriority_process, setrlimit,
};
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use wasmparser::Parser;
use wasmtime::component::Component;

use super::error::LoadError;
use super::load::hex;
use super::pool::Machine;
use super::{Compiler, Shared, engine, target};
use crate::function::FunctionSpec;
use crate::store;
use crate::units::ByteSize;

/// Whatever else wants the processor comes first: `nice(2)`, by which the kernel also orders access to disks.
const NICENESS: i32 = 19;
/// When the machine has no memory left, the kernel ends this first: `proc_pid_oom_score_adj(5)`.
const FIRST_TO_GO: &str = "1000";
/// What is told of what a process said at its end.
const LAST_WORDS_BYTES: usize = 2 << 10;

/// What a process of its own is told to do.
#[derive(Clone, Debug)]
pub struct CompileTask {
    /// SHA-256 of the component, lower-case hexadecimal.
    pub digest: String,
    /// Process that wants it; with it this one ends.
    pub parent: i32,
    /// Most memory, in bytes.
    pub memory_bytes: u64,
    /// Address space that the engine reserves for each memory, in bytes.
    pub reservation: Option<u64>,
}

/// In the process of its own: makes machine code of the component that `input` is.
///
/// # Errors
/// When the process cannot be bounded, or the component does not compile.
pub fn compile_apart(task: &CompileTask, input: impl Read, mut output: impl Write) -> anyhow::Result<()> {
    // 1. Before there is anything to bound. Whoever wanted this may have ended before the kernel was told to watch it.
    set_parent_process_death_signal(Some(Signal::KILL)).context("the kernel does not watch the agent")?;
    ensure!(
        getppid().map(Pid::as_raw_nonzero).map(std::num::NonZeroI32::get) == Some(task.parent),
        "the agent has ended"
    );
    // Where these are not allowed, compiling is not as quiet.
    let _ = setpriority_process(None, NICENESS);
    let _ = fs::write("/proc/self/oom_score_adj", FIRST_TO_GO);
    let bound = |bytes| Rlimit { current: Some(bytes), maximum: Some(bytes) };
    setrlimit(Resource::Core, bound(0)).context("core dumps cannot be turned off")?;
    setrlimit(Resource::Data, bound(task.memory_bytes)).context("memory cannot be bounded")?;
    // 2. Code.
    let told = |error: wasmtime::Error| anyhow!("{error:#}");
    let engine = engine::compiler(None, task.reservation).map_err(told)?;
    let component = read(input, &task.digest)?;
    let code = engine.precompile_component(&component).map_err(told)?;
    output.write_all(&code).and_then(|()| output.flush()).context("the code cannot be handed over")
}

/// The component that comes to `digest`.
fn read(mut input: impl Read, digest: &str) -> io::Result<Vec<u8>> {
    let mut component = Vec::new();
    input.read_to_end(&mut component)?;
    match hex(&Sha256::digest(&component)) == digest {
        true => Ok(component),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "it changed while it was read")),
    }
}

/// Why a process of its own gave no code.
enum Ended {
    /// It could not be started or watched.
    Io(io::Error),
    /// It took more memory than it may, or than there is.
    Memory,
    /// It took longer than it may.
    Time,
    /// It said why.
    Refused(String),
}

/// An error that a command printed, on one line.
fn words(heard: &[u8]) -> String {
    let heard = String::from_utf8_lossy(heard);
    heard.trim().trim_start_matches("error: ").replace("\n  caused by: ", ": ")
}

impl Shared {
    /// Compiles the component of `spec`, and keeps the code.
    ///
    /// # Errors
    /// When its file or its code are not possible here.
    pub(super) fn compile(&self, spec: &FunctionSpec) -> Result<Component, LoadError> {
        let (function, path) = (spec.name.clone(), spec.component.clone());
        let unreadable = |source| LoadError::Read { function: function.clone(), path: path.clone(), source };
        let mut file = File::open(&path).map_err(unreadable)?;
        let (bytes, max) = (file.metadata().map_err(unreadable)?.len(), self.services.limits.component_bytes_max);
        if bytes > max.0 {
            return Err(LoadError::TooLarge { function, path, bytes: ByteSize(bytes), max });
        }
        if store::digest_file(&path).map_err(unreadable)? != *spec.digest {
            return Err(LoadError::Changed { function, path });
        }
        let mut head = Vec::new();
        Read::by_ref(&mut file).take(8).read_to_end(&mut head).and_then(|_| file.rewind()).map_err(unreadable)?;
        if Parser::is_core_wasm(&head) {
            return Err(LoadError::NotAComponent { function, path });
        }
        self.compiled.fetch_add(1, Ordering::Relaxed);
        let began = self.services.clock.instant();
        let told = |took_ms| tracing::info!(function = %function, version = %spec.version, took_ms, "compiled");
        let took_ms = || (self.services.clock.instant() - began).as_millis();
        let failed = |source| LoadError::Compile { function: function.clone(), path: path.clone(), source };
        let Compiler::Apart(program) = &self.compiler else {
            let component = read(file, &spec.digest).map_err(unreadable)?;
            let code = self.engine.precompile_component(&component).map_err(failed)?;
            drop(component);
            told(took_ms());
            return self.keep(spec, io::Cursor::new(code)).map_err(failed);
        };
        let code = self.compile_in(program, file, &spec.digest).map_err(|ended| match ended {
            Ended::Io(source) => LoadError::Process { function: function.clone(), source },
            Ended::Memory => {
                let max = ByteSize(self.memory_bytes_max());
                LoadError::CompileMemory { function: function.clone(), path: path.clone(), max, target: target() }
            }
            Ended::Time => {
                let max = self.services.limits.compile_max;
                LoadError::CompileTime { function: function.clone(), path: path.clone(), max, target: target() }
            }
            Ended::Refused(why) => failed(wasmtime::Error::msg(why)),
        })?;
        told(took_ms());
        self.keep(spec, code).map_err(failed)
    }

    /// Keeps `code`, and maps what was kept.
    fn keep(&self, spec: &FunctionSpec, mut code: impl Read + Seek) -> wasmtime::Result<Component> {
        if let Some(cache) = &self.cache {
            match cache.store(&spec.digest, &mut code) {
                Ok(()) => {
                    if let Some(component) = cache.load(&self.engine, &spec.digest) {
                        return Ok(component);
                    }
                }
                Err(error) => {
                    let function = &spec.name;
                    tracing::warn!(%function, %error, "compiled code cannot be kept: the next start compiles again");
                }
            }
        }
        code.rewind()?;
        let mut bytes = Vec::new();
        code.read_to_end(&mut bytes)?;
        #[expect(
            unsafe_code,
            reason = "native code, but compiled by this engine or this program just now, and never out of our hands"
        )]
        unsafe {
            Component::deserialize(&self.engine, &bytes)
        }
    }

    /// Most memory of a process that compiles: the larger part of it is for others.
    fn memory_bytes_max(&self) -> u64 {
        self.services.limits.compile_bytes_max.0.min(Machine::this().memory_bytes / 2)
    }

    /// Has `program` compile, and hands its code over once it has ended well.
    fn compile_in(&self, program: &Path, component: File, digest: &str) -> Result<File, Ended> {
        let mut code = File::from(memfd_create("code", MemfdFlags::CLOEXEC).map_err(|error| Ended::Io(error.into()))?);
        let mut command = Command::new(program);
        command.args(["compile-component", "--digest", digest, "--parent", &std::process::id().to_string()]);
        command.args(["--memory-bytes", &self.memory_bytes_max().to_string()]);
        if let Some(bytes) = self.plan.reservation() {
            command.args(["--reservation-bytes", &bytes.to_string()]);
        }
        // An allocation that fails while one that failed is traced would wait for itself.
        command.env("RUST_BACKTRACE", "0").current_dir("/");
        let stdout = code.try_clone().map_err(Ended::Io)?;
        command.stdin(component).stdout(stdout).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(Ended::Io)?;
        let until = self.services.clock.instant() + self.services.limits.compile_max.0;
        let (last_words, status) = self.wait(&mut child, until)?;
        if status.success() {
            code.rewind().map_err(Ended::Io)?;
            return Ok(code);
        }
        // The kernel kills; the allocator and what maps memory by itself say what they did not get.
        let is_killed = status.signal() == Some(Signal::KILL.as_raw());
        let is_refused_memory = ["memory allocation of", "os error 12"].iter().any(|said| last_words.contains(said));
        Err(match last_words {
            _ if is_killed || is_refused_memory => Ended::Memory,
            words if words.is_empty() => Ended::Refused(format!("the process that compiles ended by {status}")),
            words => Ended::Refused(words),
        })
    }

    /// Waits until `child` has ended, and says its last words.
    fn wait(&self, child: &mut Child, until: Instant) -> Result<(String, ExitStatus), Ended> {
        let heard = child.stderr.take().map(|stderr| self.hear(stderr, until)).transpose();
        if !matches!(heard, Ok(Some(_))) {
            // It may have ended meanwhile.
            let _ = child.kill();
        }
        let status = child.wait().map_err(Ended::Io)?;
        Ok((heard?.unwrap_or_default(), status))
    }

    /// All that is said until nobody can say more, of which the end is kept.
    fn hear(&self, mut stderr: ChildStderr, until: Instant) -> Result<String, Ended> {
        let (mut heard, mut chunk) = (Vec::new(), [0; 1 << 10]);
        loop {
            let left = until.saturating_duration_since(self.services.clock.instant());
            let left = Timespec::try_from(left).map_err(|_| Ended::Io(io::ErrorKind::InvalidInput.into()))?;
            match poll(&mut [PollFd::new(&stderr, PollFlags::IN)], Some(&left)) {
                Ok(0) => return Err(Ended::Time),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(Ended::Io(error.into())),
            }
            match stderr.read(&mut chunk).map_err(Ended::Io)? {
                0 => return Ok(words(&heard)),
                bytes => heard.extend_from_slice(&chunk[..bytes]),
            }
            heard.drain(..heard.len().saturating_sub(LAST_WORDS_BYTES));
        }
    }
}
