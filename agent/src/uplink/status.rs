//! How one stream's uplink is doing.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::rate::Meter;

/// What an uplink is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UplinkState {
    /// There is nothing to send.
    #[default]
    Idle,
    /// Records wait until their batch is full or has waited.
    Gathering,
    /// Records leave.
    Sending,
    /// Records wait for `max_rate`.
    Throttled,
    /// The other side refused a record; it is asked again after a while.
    Refused,
    /// There is no connection.
    Offline,
}

/// How one stream's uplink is doing. Counts are since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UplinkStatus {
    /// What it is about.
    pub state: UplinkState,
    /// Records that were sent, repeats included.
    pub sent: u64,
    /// Records that arrived.
    pub confirmed: u64,
    /// Refusals; what was refused is sent again.
    pub refused: u64,
    /// Records that the other side will never take, now dead letters.
    pub dead_letters: u64,
    /// Records that wait for their confirmation.
    pub in_flight: u64,
    /// Records that arrive in a second, over the last ten.
    pub per_second: u64,
    /// Why it waits before it tries again.
    pub last_error: Option<String>,
}

impl fmt::Display for UplinkStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.state {
            UplinkState::Idle => f.write_str("idle")?,
            UplinkState::Gathering => f.write_str("gathering a batch")?,
            UplinkState::Sending => write!(f, "sending, {}/s", self.per_second)?,
            UplinkState::Throttled => write!(f, "at its rate, {}/s", self.per_second)?,
            UplinkState::Refused => f.write_str("refused")?,
            UplinkState::Offline => f.write_str("away")?,
        }
        self.last_error.as_ref().map_or(Ok(()), |error| write!(f, ": {error}"))
    }
}

/// The status as it changes.
#[derive(Debug, Default)]
pub(super) struct Board(Mutex<(UplinkStatus, Meter)>);

impl Board {
    pub(super) fn note(&self, change: impl FnOnce(&mut UplinkStatus)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).0);
    }

    /// Notes records that have arrived.
    pub(super) fn confirmed(&self, now: Instant, records: u64) {
        let (status, meter) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        status.confirmed += records;
        status.last_error = None;
        meter.count(now, records);
    }

    /// Notes why it waits. Whether that is news.
    pub(super) fn failed(&self, why: &str) -> bool {
        let status = &mut self.0.lock().unwrap_or_else(PoisonError::into_inner).0;
        let is_news = status.last_error.as_deref() != Some(why);
        if is_news {
            status.last_error = Some(why.to_owned());
        }
        is_news
    }

    pub(super) fn status(&self, now: Instant) -> UplinkStatus {
        let (status, meter) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner);
        UplinkStatus { per_second: meter.per_second(now), ..status.clone() }
    }
}
