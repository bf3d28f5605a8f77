//! The last log records, kept in memory for `tidegate logs`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;

use super::LogRecord;
use crate::limits::Limits;

/// How far a follower may fall behind before it misses records: about a second of a function that logs each event.
const FOLLOWER_RECORDS_MAX: usize = 1024;

/// Bounded in records and in bytes; the oldest go first. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LogRing {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    kept: Mutex<Kept>,
    records_max: usize,
    bytes_max: usize,
    live: broadcast::Sender<Arc<LogRecord>>,
}

#[derive(Debug, Default)]
struct Kept {
    records: VecDeque<Arc<LogRecord>>,
    bytes: usize,
}

impl LogRing {
    /// An empty ring with the bounds of `limits`.
    pub fn new(limits: &Limits) -> Self {
        let (live, _) = broadcast::channel(FOLLOWER_RECORDS_MAX);
        let bytes_max = usize::try_from(limits.log_ring_bytes_max.0).unwrap_or(usize::MAX);
        Self {
            inner: Arc::new(Inner {
                kept: Mutex::default(),
                records_max: limits.log_ring_records_max,
                bytes_max,
                live,
            }),
        }
    }

    pub(super) fn push(&self, record: LogRecord) {
        let record = Arc::new(record);
        let mut kept = self.inner.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.bytes += record.bytes();
        kept.records.push_back(Arc::clone(&record));
        while kept.records.len() > self.inner.records_max || kept.bytes > self.inner.bytes_max {
            let Some(oldest) = kept.records.pop_front() else { break };
            kept.bytes -= oldest.bytes();
        }
        // Within the lock, so that a follower gets each record once: with what was kept, or live.
        let _ = self.inner.live.send(record);
    }

    /// The last `records_max` records, oldest first, and whatever comes after them.
    pub fn follow(&self, records_max: usize) -> (Vec<Arc<LogRecord>>, Follower) {
        let kept = self.inner.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let skipped = kept.records.len().saturating_sub(records_max);
        (kept.records.iter().skip(skipped).cloned().collect(), Follower(self.inner.live.subscribe()))
    }
}

/// Receives what is logged from now on.
#[derive(Debug)]
pub struct Follower(broadcast::Receiver<Arc<LogRecord>>);

impl Follower {
    /// The next record, or how many were missed because the follower was too slow. `None` when the agent ends.
    pub async fn next(&mut self) -> Option<Result<Arc<LogRecord>, u64>> {
        match self.0.recv().await {
            Ok(record) => Some(Ok(record)),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Err(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::ByteSize;

    fn record(message: &str) -> LogRecord {
        let fields = serde_json::Map::new();
        LogRecord { time: String::new(), level: "info".into(), target: "t".into(), message: message.into(), fields }
    }

    fn messages(records: &[Arc<LogRecord>]) -> Vec<&str> {
        records.iter().map(|record| record.message.as_str()).collect()
    }

    #[tokio::test]
    async fn a_follower_gets_what_was_kept_and_then_what_comes() {
        let ring = LogRing::new(&Limits::default());
        ring.push(record("before"));
        let (kept, mut follower) = ring.follow(10);
        ring.push(record("after"));
        assert_eq!(messages(&kept), ["before"]);
        assert_eq!(follower.next().await.unwrap().unwrap().message, "after");
    }

    #[test]
    fn the_oldest_go_at_either_bound() {
        let ring = LogRing::new(&Limits { log_ring_records_max: 2, ..Limits::default() });
        ["a", "b", "c"].iter().for_each(|message| ring.push(record(message)));
        assert_eq!(messages(&ring.follow(10).0), ["b", "c"]);
        assert_eq!(messages(&ring.follow(1).0), ["c"]);

        let ring = LogRing::new(&Limits { log_ring_bytes_max: ByteSize(2_000), ..Limits::default() });
        (0..100).for_each(|n| ring.push(record(&"x".repeat(n))));
        let kept = ring.follow(100).0;
        assert!(kept.iter().map(|record| record.bytes()).sum::<usize>() <= 2_000);
        assert_eq!(kept.last().unwrap().message.len(), 99);
    }

    #[tokio::test]
    async fn a_slow_follower_is_told_what_it_missed() {
        let ring = LogRing::new(&Limits::default());
        let (_, mut follower) = ring.follow(0);
        (0..FOLLOWER_RECORDS_MAX + 5).for_each(|_| ring.push(record("x")));
        assert_eq!(follower.next().await, Some(Err(5)));
    }
}
