//! The only place that reads the time, so that tests and the simulator can hold it still.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Wall time and monotonic time. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    /// Unix time in milliseconds when held still by a test; the machine's clock otherwise.
    held: Option<Arc<AtomicU64>>,
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that stands at `unix_ms` until it is moved.
    pub fn held_at(unix_ms: u64) -> Self {
        Self { held: Some(Arc::new(AtomicU64::new(unix_ms))) }
    }

    /// Moves a held clock; the machine's is never touched.
    pub fn set(&self, unix_ms: u64) {
        if let Some(held) = &self.held {
            held.store(unix_ms, Ordering::SeqCst);
        }
    }

    /// Unix time in milliseconds.
    #[expect(clippy::disallowed_methods, reason = "the one place that may")]
    pub fn now_ms(&self) -> u64 {
        match &self.held {
            Some(held) => held.load(Ordering::SeqCst),
            None => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            }
        }
    }

    /// A point in monotonic time, which follows tokio's paused time in tests.
    #[expect(clippy::disallowed_methods, reason = "the one place that may")]
    pub fn instant(&self) -> tokio::time::Instant {
        tokio::time::Instant::now()
    }
}
