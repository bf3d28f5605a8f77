//! WASI 0.2 without sockets: clocks, random, standard output into the log, the environment that was configured, and the bundle's
//! folder, read-only.

use std::time::Duration;

use wasmtime::component::Linker;
use wasmtime_wasi::cli::{WasiCli, WasiCliView};
use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemView};
use wasmtime_wasi::p2::bindings::{cli, filesystem, random};
use wasmtime_wasi::random::{WasiRandom, WasiRandomView};
use wasmtime_wasi::{FsPerms, HostWallClock, WasiCtx};

use super::log::{Channel, Log};
use super::state::HostState;
use crate::clock::Clock;
use crate::function::FunctionSpec;

/// Where a function finds its bundle, as in Lambda.
const ROOT: &str = "/var/task";

pub(crate) fn add_to_linker(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    // Streams, polls, clocks, random, standard input, output and error.
    wasmtime_wasi::p2::add_to_linker_proxy_interfaces_async(linker)?;
    random::insecure::add_to_linker::<_, WasiRandom>(linker, HostState::random)?;
    random::insecure_seed::add_to_linker::<_, WasiRandom>(linker, HostState::random)?;
    cli::exit::add_to_linker::<_, WasiCli>(linker, HostState::cli)?;
    cli::environment::add_to_linker::<_, WasiCli>(linker, HostState::cli)?;
    cli::terminal_input::add_to_linker::<_, WasiCli>(linker, HostState::cli)?;
    cli::terminal_output::add_to_linker::<_, WasiCli>(linker, HostState::cli)?;
    cli::terminal_stdin::add_to_linker::<_, WasiCli>(linker, HostState::cli)?;
    cli::terminal_stdout::add_to_linker::<_, WasiCli>(linker, HostState::cli)?;
    cli::terminal_stderr::add_to_linker::<_, WasiCli>(linker, HostState::cli)?;
    filesystem::types::add_to_linker::<_, WasiFilesystem>(linker, HostState::filesystem)?;
    filesystem::preopens::add_to_linker::<_, WasiFilesystem>(linker, HostState::filesystem)
}

/// What one instance of `spec` sees. `files`: whether it asks for files at all, since opening the folder costs a system call.
///
/// # Errors
/// When the bundle's folder cannot be opened.
pub(crate) fn context(spec: &FunctionSpec, clock: &Clock, log: &Log, files: bool) -> wasmtime::Result<WasiCtx> {
    let mut builder = WasiCtx::builder();
    builder.stdout(log.stream(Channel::Out)).stderr(log.stream(Channel::Err)).wall_clock(WallClock(clock.clone()));
    for (key, value) in &spec.environment {
        builder.env(key, value);
    }
    if files {
        builder.preopened_dir(&spec.root, ROOT, FsPerms::ReadOnly)?.initial_cwd(ROOT);
    }
    Ok(builder.build())
}

/// The agent's clock, so that a test that holds it still holds it for functions too.
struct WallClock(Clock);

impl HostWallClock for WallClock {
    fn resolution(&self) -> Duration {
        Duration::from_millis(1)
    }

    fn now(&self) -> Duration {
        Duration::from_millis(self.0.now_ms())
    }
}
