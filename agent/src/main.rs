//! Parses the command line, does what it says, and reports how it ended.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tidegate::agent::bound_heap;
use tidegate::cli::{self, Args};
use tidegate::runtime::BLOCKING_KEEP_ALIVE;

/// Tasks go from thread to thread, and one frees what another allocated: of glibc's allocator the lock is then in the way.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How long threads may take to end what nobody waits for any more.
const THREADS_PATIENCE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => cli::print_error(&error),
    }
}

fn run(args: Args) -> anyhow::Result<()> {
    bound_heap();
    let mut network = tokio::runtime::Builder::new_multi_thread();
    // Half of the cores: functions run on threads of their own, and compute more than the network does.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    network.worker_threads(cores.div_ceil(2)).thread_keep_alive(BLOCKING_KEEP_ALIVE);
    let network = network.enable_all().build()?;
    let done = network.block_on(async {
        tokio::task::spawn_blocking(|| {}).await?;
        cli::run(args).await
    });
    // A thread that waits for a file system which never answers would wait for ever.
    network.shutdown_timeout(THREADS_PATIENCE);
    done
}
