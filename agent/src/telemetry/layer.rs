//! From tracing's events to log records: to the terminal or the journal of the system, and into the ring.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use super::record::FUNCTION_TARGET;
use super::{LogRecord, LogRing};
use crate::clock::Clock;
use crate::limits::Limits;

/// Within which the same warning is written [`Limits::log_repeats_max`] times at most.
const REPEAT_WINDOW_MS: u64 = 60_000;

/// Where a record is written, beside the ring.
type Write = Arc<dyn Fn(&LogRecord) + Send + Sync>;

/// A layer for the subscriber of the process.
pub struct LogLayer {
    ring: LogRing,
    write: Write,
    clock: Clock,
    line_bytes_max: usize,
    repeats_max: u32,
    repeats: Mutex<HashMap<Identifier, Repeats>>,
}

#[derive(Clone, Copy)]
struct Repeats {
    since_ms: u64,
    written: u32,
    left_out: u64,
}

impl fmt::Debug for LogLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogLayer")
    }
}

impl LogLayer {
    /// Hands each record to `write`, then to `ring`.
    pub fn new(ring: LogRing, write: Arc<dyn Fn(&LogRecord) + Send + Sync>, limits: &Limits, clock: Clock) -> Self {
        let line_bytes_max = usize::try_from(limits.log_line_bytes_max.0).unwrap_or(usize::MAX);
        Self { ring, write, clock, line_bytes_max, repeats_max: limits.log_repeats_max, repeats: Mutex::default() }
    }

    /// `None` when this line was written often enough for now; else how many like it were left out since the last.
    fn admit(&self, event: &Event<'_>) -> Option<u64> {
        let metadata = event.metadata();
        // Functions have a budget of their own per invocation, and all of them share one line of our code.
        if *metadata.level() > Level::WARN || metadata.target() == FUNCTION_TARGET {
            return Some(0);
        }
        let now_ms = self.clock.now_ms();
        let mut repeats = self.repeats.lock().unwrap_or_else(PoisonError::into_inner);
        let repeats =
            repeats.entry(metadata.callsite()).or_insert(Repeats { since_ms: now_ms, written: 0, left_out: 0 });
        // A clock that was set back ends the window too.
        if now_ms.abs_diff(repeats.since_ms) >= REPEAT_WINDOW_MS {
            *repeats = Repeats { since_ms: now_ms, written: 0, ..*repeats };
        }
        if repeats.written >= self.repeats_max {
            repeats.left_out += 1;
            return None;
        }
        repeats.written += 1;
        Some(std::mem::take(&mut repeats.left_out))
    }
}

impl<S: Subscriber> Layer<S> for LogLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let Some(left_out) = self.admit(event) else { return };
        let mut record = LogRecord::new(self.clock.now_ms(), event, self.line_bytes_max);
        if left_out > 0 {
            record.fields.insert("left_out".to_owned(), left_out.into());
        }
        (self.write)(&record);
        self.ring.push(record);
    }
}

#[cfg(test)]
mod tests {
    use tracing::{info, warn};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::units::ByteSize;

    fn logged(limits: &Limits, log: impl FnOnce()) -> Vec<Arc<LogRecord>> {
        let ring = LogRing::new(limits);
        let layer = LogLayer::new(ring.clone(), Arc::new(|_| {}), limits, Clock::held_at(0));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        ring.follow(usize::MAX).0
    }

    #[test]
    fn fields_keep_their_types_and_a_cause_is_told() {
        let cause = std::io::Error::other("no route");
        let records = logged(&Limits::default(), || {
            info!(target: "function", function = "double", n = 3, error = &cause as &dyn std::error::Error, "computed {}", 7);
        });
        assert_eq!(
            records[0].json(),
            r#"{"time":"1970-01-01T00:00:00.000Z","level":"info","target":"function","message":"computed 7","error":"no route","function":"double","n":3}"#
        );
        assert_eq!(records[0].function(), Some("double"));
    }

    #[test]
    fn a_long_line_is_cut() {
        let limits = Limits { log_line_bytes_max: ByteSize(5), ..Limits::default() };
        let records = logged(&limits, || info!("ééé"));
        assert_eq!(records[0].message, "éé … (cut)");
    }

    #[test]
    fn a_warning_that_repeats_is_counted_instead() {
        let limits = Limits { log_repeats_max: 2, ..Limits::default() };
        let (ring, clock) = (LogRing::new(&limits), Clock::held_at(0));
        let layer = LogLayer::new(ring.clone(), Arc::new(|_| {}), &limits, clock.clone());
        let _logs = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer));
        let repeat = || warn!("broker unreachable");
        (0..5).for_each(|_| repeat());
        (0..5).for_each(|_| info!(target: "function", "said"));
        assert_eq!(ring.follow(100).0.len(), 2 + 5);
        clock.set(REPEAT_WINDOW_MS);
        repeat();
        assert_eq!(ring.follow(1).0[0].fields["left_out"], 3);
    }
}
