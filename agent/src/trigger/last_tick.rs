//! The file that tells when the last tick of a schedule was; see [`schedule`](super::schedule).

use std::path::Path;

use tokio::io::AsyncWriteExt as _;
use tracing::warn;

use crate::config::ScheduleTrigger;
use crate::name::FunctionName;

/// The file of a schedule: another for another time.
pub(super) fn file_name((function, trigger): &(FunctionName, ScheduleTrigger)) -> String {
    let ScheduleTrigger { every, cron, time_zone, .. } = trigger;
    let text = format!("{every:?} {cron:?} {time_zone:?}");
    format!("{function}.{:08x}", crc32c::crc32c(text.as_bytes()))
}

/// What is known of the last tick.
pub(super) enum Kept {
    /// When it was, in Unix milliseconds.
    At(u64),
    /// There was none.
    Nothing,
    /// There was one, and its file does not tell when.
    Damaged,
}

pub(super) async fn read(file: &Path) -> Kept {
    match tokio::fs::read_to_string(file).await {
        Ok(text) => text.strip_suffix('\n').and_then(|ms| ms.parse().ok()).map_or(Kept::Damaged, Kept::At),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Kept::Nothing,
        Err(_) => Kept::Damaged,
    }
}

/// Has `file` tell of a tick at `ms`, over a power cut too.
pub(super) async fn write(file: &Path, ms: u64) {
    let write = async {
        let folder = file.parent().unwrap_or(Path::new("."));
        tokio::fs::create_dir_all(folder).await?;
        let mut new = file.to_owned();
        new.as_mut_os_string().push(".new");
        let mut out = tokio::fs::File::create(&new).await?;
        out.write_all(format!("{ms}\n").as_bytes()).await?;
        out.sync_all().await?;
        tokio::fs::rename(&new, file).await?;
        tokio::fs::File::open(folder).await?.sync_all().await
    };
    if let Err(error) = write.await {
        warn!(file = %file.display(), %error, "the time of the last tick cannot be kept: a restart may repeat it");
    }
}
