//! What a record costs in flash: bytes that reach the block device, each durability on an ext4 of its own.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tidegate::clock::Clock;
use tidegate::config::{Config, Environment};
use tidegate::journal::{Journal, JournalConfig};
use tidegate::limits::Limits;
use tidegate::name::StreamName;

use crate::Options;
use crate::append::{RECORD_BYTES, append_one};
use crate::disk::Disk;
use crate::report::{Figure, Target};

const PER_SECOND: u32 = 10;
/// Two whole periods of the slowest durability, and a little.
const SECONDS: u32 = 62;

pub(crate) async fn measure(options: &Options) -> anyhow::Result<Vec<Figure>> {
    if !Disk::can_be_made("block") {
        return Ok(Vec::new());
    }
    let seconds = if options.quick { 3 } else { SECONDS };
    let most = 3.0 * RECORD_BYTES as f64;
    let parts = [("block-1", "each", None), ("block-2", "1s", None), ("block-3", "30s", Some(Target::AtMost(most)))];
    let runs = parts.map(|(id, durability, target)| async move {
        let bytes =
            written(durability, seconds).await.with_context(|| format!("with durability = \"{durability}\""))?;
        let what =
            format!("bytes at the block device per 200-byte record at {PER_SECOND}/s, durability \"{durability}\"");
        let figure = Figure::alone(id, what, "B", vec![bytes]);
        anyhow::Ok(target.into_iter().fold(figure, Figure::with))
    });
    let [each, one, thirty] = runs;
    let (each, one, thirty) = tokio::try_join!(each, one, thirty)?;
    Ok(vec![each, one, thirty])
}

/// Bytes per record.
async fn written(durability: &str, seconds: u32) -> anyhow::Result<f64> {
    let disk = Disk::make(None)?;
    let text = format!("[gateway]\nname = \"bench\"\n[stream.readings]\ndurability = \"{durability}\"\n");
    let config = Config::parse(&text, &disk.folder().join("gateway.toml"), &Environment::default())?;
    let clock = Clock::system();
    let journal_config = JournalConfig { streams: config.stream, limits: Arc::new(Limits::default()) };
    let journal = Journal::open(&disk.folder().join("journal"), journal_config, clock.clone())?;
    let stream = StreamName::parse("readings")?;
    append_one(&journal, &stream).await?;
    disk.settle()?;
    let before = disk.written_bytes()?;
    let mut due = clock.instant();
    let records = seconds * PER_SECOND;
    for _ in 0..records {
        due += Duration::from_secs(1) / PER_SECOND;
        append_one(&journal, &stream).await?;
        tokio::time::sleep_until(due).await;
    }
    // What is not on disk by its own durability's time would be counted as saved.
    journal.close().await?;
    disk.settle()?;
    Ok((disk.written_bytes()? - before) as f64 / f64::from(records))
}
