//! Bounds and waits of the gateway's side, beside those that both sides know (`sync_protocol::limits`).

use std::time::Duration;

use sync_protocol::limits::WAIT_SECS_MAX;

/// How long things may take, and how they are tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Until there is a connection, TLS included: a satellite's round trip, several times.
    pub connect: Duration,
    /// Until an answer that is not held.
    pub answer: Duration,
    /// How long the control plane may hold a question for the desired deployment: with nothing to do, one request in this time.
    pub wait: Duration,
    /// The hold is halved down to this when something on the way cuts it: proxies give up after 30 to 60 s.
    pub wait_min: Duration,
    /// First wait after a failure; doubled up to `back_off_max`, each shortened by up to half at random.
    pub back_off: Duration,
    /// Longest wait after failures, and longest that `Retry-After` is obeyed.
    pub back_off_max: Duration,
    /// A download must bring `pace_bytes` in each of these, or its connection is given up (slow retrieval).
    pub pace: Duration,
    /// Fewest bytes in `pace`: 64 B/s of a GSM modem at its edge, a minute long.
    pub pace_bytes: u64,
    /// Free bytes of the disk that a download leaves alone.
    pub disk_spare_bytes: u64,
    /// Least time between two reports, and between two questions: what changes meanwhile goes in one.
    pub gap: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(20),
            answer: Duration::from_secs(60),
            wait: Duration::from_secs(WAIT_SECS_MAX),
            wait_min: Duration::from_secs(25),
            back_off: Duration::from_secs(1),
            back_off_max: Duration::from_secs(300),
            pace: Duration::from_secs(60),
            pace_bytes: 64 * 60,
            disk_spare_bytes: 16 << 20,
            gap: Duration::from_millis(250),
        }
    }
}

/// What is read of an answer that is a few words of JSON.
pub(crate) const WORDS_BYTES_MAX: usize = 64 << 10;
/// What is read of an answer with certificates and roots.
pub(crate) const PROVISIONED_BYTES_MAX: usize = 4 << 20;
/// Bytes of a download that are gathered before they are written.
pub(crate) const WRITE_BYTES: usize = 64 << 10;
/// Times that a blob is fetched anew because its bytes were wrong, before that is said.
pub(crate) const WRONG_MAX: u32 = 3;
/// Log lines that wait for the next report; the oldest go first.
pub(crate) const LOG_LINES_MAX: usize = 1_000;
/// Bytes of log lines in one report, which has room for as much again.
pub(crate) const LOG_BYTES_MAX: usize = sync_protocol::limits::REPORT_BYTES_MAX / 2;
