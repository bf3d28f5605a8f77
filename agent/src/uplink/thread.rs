//! The thread by which streams drain: a long backlog takes the processor from nothing that is handled meanwhile.

use std::io;

use rustix::process::setpriority_process;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::runtime::{BLOCKING_KEEP_ALIVE, Threads};

/// Where functions want all of a processor, about a tenth of it is left for draining: `nice(2)`.
const NICENESS: i32 = 10;

/// Runs uplinks, and the connections that nobody else needs.
#[derive(Debug)]
pub(crate) struct UplinkThread(Option<Runtime>);

impl UplinkThread {
    /// A thread of its own, unless functions have none either.
    pub(crate) fn start(threads: Threads) -> io::Result<Self> {
        if threads == Threads::OfTheCaller {
            return Ok(Self(None));
        }
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(1).thread_name("uplink").thread_keep_alive(BLOCKING_KEEP_ALIVE).enable_all();
        builder.on_thread_start(|| {
            // Of this thread only. Where it is not allowed, draining is not as quiet.
            let _ = setpriority_process(None, NICENESS);
        });
        Ok(Self(Some(builder.build()?)))
    }

    pub(crate) fn handle(&self) -> Handle {
        self.0.as_ref().map_or_else(Handle::current, |runtime| runtime.handle().clone())
    }
}

impl Drop for UplinkThread {
    fn drop(&mut self) {
        // The last handle may be dropped by a task, where waiting for threads would panic.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
