//! WASI 0.2 without sockets: clocks, random, standard output into the log, the environment that was configured, and read-only the
//! bundle's folder, the layers, and the folders of sources that were granted.

use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use wasmtime::component::Linker;
use wasmtime_wasi::cli::{WasiCli, WasiCliView};
use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemView};
use wasmtime_wasi::p2::bindings::{cli, filesystem, random};
use wasmtime_wasi::random::{WasiRandom, WasiRandomView};
use wasmtime_wasi::{FsPerms, HostMonotonicClock, HostWallClock, WasiCtx};

use super::chance::Chance;
use super::log::{Channel, Log};
use super::state::HostState;
use crate::clock::Clock;
use crate::function::FunctionSpec;
use crate::runtime::Services;
use crate::trigger::file::mounted_at;

/// Where a function finds its bundle, as in Lambda.
const ROOT: &str = "/var/task";
/// Where it finds its layers.
const LAYERS: &str = "/opt";

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

/// What one instance of `spec` sees of `services`. `files`: whether it asks for files at all, since opening the folder costs a system call.
///
/// # Errors
/// When the bundle's folder or the layers cannot be opened.
pub(crate) fn context(spec: &FunctionSpec, services: &Services, log: &Log, files: bool) -> wasmtime::Result<WasiCtx> {
    let mut builder = WasiCtx::builder();
    let clock = &services.clock;
    builder.stdout(log.stream(Channel::Out)).stderr(log.stream(Channel::Err)).wall_clock(WallClock(clock.clone()));
    if clock.is_held() {
        builder.monotonic_clock(HeldClock(clock.clone()));
    }
    if let Chance::Seeded(numbers) = &services.chance {
        let seed = u128::from(numbers.draw());
        builder.secure_random(numbers.clone()).insecure_random(numbers.clone()).insecure_random_seed(seed);
    }
    for (key, value) in &spec.environment {
        builder.env(key, value);
    }
    if files {
        builder.preopened_dir(&spec.root, ROOT, FsPerms::ReadOnly)?.initial_cwd(ROOT);
        if let Some(layers) = &spec.layers {
            builder.preopened_dir(&layers.path, LAYERS, FsPerms::ReadOnly)?;
        }
        for (name, folder) in &spec.folders {
            // One that is not there now is no reason not to run: see `folder_ids`.
            let _ = builder.preopened_dir(folder, mounted_at(name.as_str()), FsPerms::ReadOnly);
        }
    }
    Ok(builder.build())
}

/// Which folders those of `spec` are now: a mount stays with the one that was there when it was made, also when another one comes in its place.
pub(crate) fn folder_ids(spec: &FunctionSpec) -> Vec<Option<(u64, u64)>> {
    let id = |folder| std::fs::metadata(folder).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    spec.folders.values().map(id).collect()
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

/// Monotonic time where the clock is held.
struct HeldClock(Clock);

impl HostMonotonicClock for HeldClock {
    fn resolution(&self) -> u64 {
        1_000
    }

    fn now(&self) -> u64 {
        self.0.looked_at_ns()
    }
}
