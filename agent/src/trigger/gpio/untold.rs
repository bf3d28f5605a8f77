//! What is heard and not told yet, in its order. It outlives the source that a reload has changed, as lines do.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::spawn;
use tokio::task::JoinHandle;

use crate::trigger::source::{Observed, Outlet};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Untold {
    waiting: VecDeque<Observed>,
    /// What is being told. By a task: if it ended half-way, the functions that it had reached would hear the same twice.
    telling: Option<JoinHandle<()>>,
}

impl Untold {
    /// These too.
    pub(super) fn add(&mut self, more: impl IntoIterator<Item = Observed>) {
        self.waiting.extend(more);
    }

    /// How many wait.
    pub(super) fn count(&self) -> usize {
        self.waiting.len()
    }

    /// Tells all, one after the other. When it is stopped, the next call goes on.
    pub(super) async fn tell(&mut self, outlet: &Arc<Outlet>) {
        loop {
            over(&mut self.telling).await;
            let Some(next) = self.waiting.pop_front() else { return };
            let outlet = Arc::clone(outlet);
            self.telling = Some(spawn(async move { drop(outlet.tell(next).await) }));
        }
    }
}

/// Waits until `task` has ended. When it is stopped, the task goes on.
pub(super) async fn over(task: &mut Option<JoinHandle<()>>) {
    if let Some(running) = task {
        // One that panicked is over too.
        let _ = running.await;
        *task = None;
    }
}
