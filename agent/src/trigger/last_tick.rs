//! The file that tells when the last tick of a schedule was; see [`schedule`](super::schedule).

use std::path::Path;

use tracing::warn;

use super::kept;
use crate::config::ScheduleTrigger;
use crate::name::FunctionName;

/// The file of a schedule: another for another time.
pub(super) fn file_name((function, trigger): &(FunctionName, ScheduleTrigger)) -> String {
    let ScheduleTrigger { every, cron, time_zone, .. } = trigger;
    let text = format!("{every:?} {cron:?} {time_zone:?}");
    format!("{function}.{:08x}", crc32c::crc32c(text.as_bytes()))
}

/// What is known of the last tick.
pub(super) enum LastTick {
    /// When it was, in Unix milliseconds.
    At(u64),
    /// There was none.
    None,
    /// There was one, and its file does not tell when.
    Damaged,
}

impl LastTick {
    pub(super) async fn read(file: &Path) -> Self {
        match kept::read(file).await {
            Ok(Some(line)) => line.parse().map_or(Self::Damaged, Self::At),
            Ok(None) => Self::None,
            Err(_) => Self::Damaged,
        }
    }
}

/// Has `file` tell of a tick at `ms`.
pub(super) async fn write(file: &Path, ms: u64) {
    if let Err(error) = kept::write(file, &ms.to_string()).await {
        warn!(file = %file.display(), %error, "the time of the last tick cannot be kept: a restart may repeat it");
    }
}
