//! What the journal does about a disk that is full, and about budgets: what is really on the disk.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tempfile::TempDir;
use tidegate::clock::Clock;
use tidegate::config::StreamConfig;
use tidegate::journal::{Batch, Journal, JournalConfig, RecordMeta, StreamStatus};
use tidegate::limits::Limits;
use tidegate::name::StreamName;
use tidegate::units::ByteSize;

fn name(name: &str) -> StreamName {
    StreamName::parse(name).unwrap()
}

fn open(dir: &Path, streams: &[(&str, u8, u64)], all: u64) -> Journal {
    let config = |priority, mib| StreamConfig { priority, max_bytes: ByteSize::mib(mib), ..StreamConfig::default() };
    let streams: BTreeMap<_, _> =
        streams.iter().map(|(stream, priority, mib)| (name(stream), config(*priority, *mib))).collect();
    let limits = Arc::new(Limits { buffer_bytes_max: ByteSize(all), ..Limits::default() });
    Journal::open(dir, JournalConfig { streams, limits }, Clock::system()).unwrap()
}

fn records(stream: &str, count: usize, bytes: usize) -> Batch {
    let record = (name(stream), Bytes::from("x".repeat(bytes)), RecordMeta::default());
    Batch { records: vec![record; count], ..Batch::default() }
}

fn status(journal: &Journal, stream: &str) -> StreamStatus {
    journal.status().into_iter().find(|status| status.name.as_str() == stream).unwrap()
}

/// Bytes of all files in `dir`, as the disk counts them.
fn on_disk(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(of) if of.is_dir() => on_disk(&entry.path()),
        Ok(of) => of.blocks() * 512,
        Err(_) => 0,
    });
    sizes.sum()
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..400 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what} did not happen within 20 s");
}

#[tokio::test]
async fn all_streams_together_stay_within_their_budget_and_the_least_important_pays() {
    let dir = TempDir::new().unwrap();
    let journal = open(dir.path(), &[("low", 0, 64), ("high", 5, 64)], 8 << 20);
    for _ in 0..60 {
        journal.commit(records("high", 50, 1000)).await.unwrap();
        journal.commit(records("low", 100, 1000)).await.unwrap();
        let used: u64 = journal.status().iter().map(|stream| stream.bytes).sum();
        assert!(used <= 8 << 20, "{used} bytes");
    }
    let (low, high) = (status(&journal, "low"), status(&journal, "high"));
    assert_eq!((high.records, high.dropped_by_buffer), (3000, 0));
    assert!(low.dropped_by_buffer > 0 && low.dropped_by_bytes == 0, "{low:?}");
    assert_eq!(low.records + low.dropped_by_buffer, 6000);
    journal.commit(records("high", 6000, 1000)).await.unwrap();
    assert!(status(&journal, "low").records == 0 && status(&journal, "high").dropped_by_buffer > 0);
    let (streams, bytes) = (BTreeMap::from([(name("high"), StreamConfig::default())]), ByteSize::mib(1));
    journal.configure(streams, bytes);
    eventually("a smaller budget holds at once", || status(&journal, "high").bytes <= bytes.0).await;
}

#[tokio::test]
async fn the_disk_holds_at_most_three_times_the_budgets_and_16_mib() {
    let dir = TempDir::new().unwrap();
    let journal = open(dir.path(), &[("readings", 0, 8), ("alarms", 0, 1)], 64 << 20);
    let mut most = 0;
    for round in 0..400 {
        journal.commit(records("readings", 100, 900)).await.unwrap();
        journal.commit(records("alarms", 5, 200)).await.unwrap();
        if round % 10 == 9 {
            most = most.max(on_disk(dir.path()));
        }
    }
    assert!(most <= 3 * (9 << 20) + (16 << 20), "{most} bytes on disk");
    assert!(status(&journal, "readings").dropped_by_bytes > 0, "36 MB went through");
    journal.ack(&name("readings"), u64::MAX).await.unwrap();
    journal.ack(&name("alarms"), u64::MAX).await.unwrap();
    eventually("the space comes back", || on_disk(dir.path()) < 12 << 20).await;
}

#[tokio::test]
async fn a_large_backlog_is_open_at_once() {
    let dir = TempDir::new().unwrap();
    let streams = [("readings", 0, 1024)];
    let journal = open(dir.path(), &streams, 2 << 30);
    let started = Instant::now();
    for _ in 0..100 {
        journal.commit(records("readings", 1000, 900)).await.unwrap();
    }
    journal.close().await.unwrap();
    drop(journal);
    let writing = started.elapsed();
    let started = Instant::now();
    let journal = open(dir.path(), &streams, 2 << 30);
    journal.commit(records("readings", 1, 10)).await.unwrap();
    let took = started.elapsed();
    assert!(took < writing / 4, "{took:?} for 90 MB that were written in {writing:?}");
    assert_eq!(status(&journal, "readings").records, 100_001);
}

/// Not a test: what [`a_full_disk_loses_nothing_and_the_journal_goes_on_when_there_is_room`] starts on a disk of its own.
#[tokio::test]
#[ignore = "started by another test"]
async fn child_on_a_small_disk() {
    let Ok(disk) = std::env::var("JOURNAL_TEST_DISK") else { return };
    let (dir, ballast) = (Path::new(&disk).join("journal"), Path::new(&disk).join("ballast"));
    let streams = [("readings", 0, 64)];
    let journal = open(&dir, &streams, 1 << 30);
    journal.commit(records("readings", 100, 500)).await.unwrap();
    eventually("the reserve is taken", || dir.join("reserve").exists()).await;
    let mut kept = 100;
    let error = loop {
        match journal.commit(records("readings", 50, 2000)).await {
            Ok(committed) => kept += committed.sequences.len(),
            Err(error) if error.to_string().contains("free") => break error,
            Err(error) => assert!(error.is_disk(), "{error}"),
        }
        assert!(kept < 100_000, "the disk never got full");
    };
    assert!(error.is_disk() && error.to_string().contains("hint: free space"), "{error}");
    assert!(!dir.join("reserve").exists(), "the reserve was given away");
    eventually("what was committed can be read", || journal.read(&name("readings"), 0, usize::MAX, usize::MAX).is_ok())
        .await;
    let there = journal.read(&name("readings"), 0, usize::MAX, usize::MAX).unwrap().len();
    assert!(there >= kept, "{there} of {kept}");

    // Acknowledgements are written still, and give the space back; then it goes on by itself.
    assert!(!ballast.exists());
    journal.ack(&name("readings"), u64::MAX).await.unwrap();
    let mut went_on = false;
    for _ in 0..200 {
        if journal.commit(records("readings", 1, 500)).await.is_ok() {
            went_on = true;
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(went_on, "the journal goes on when there is room");
    eventually("the reserve is taken again", || dir.join("reserve").exists()).await;
    drop(journal);
    let journal = open(&dir, &streams, 1 << 30);
    assert_eq!(journal.journal_status().lost_commits, 0);
    assert!(status(&journal, "readings").records >= 1);
}

#[test]
fn a_full_disk_loses_nothing_and_the_journal_goes_on_when_there_is_room() {
    let disk = TempDir::new().unwrap();
    let script = "mount -t tmpfs -o size=16m none \"$JOURNAL_TEST_DISK\" || exit 77; exec \"$0\" --exact child_on_a_small_disk --ignored --nocapture";
    let run = Command::new("unshare")
        .args(["-rm", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .env("JOURNAL_TEST_DISK", disk.path())
        .output();
    match run {
        Ok(run) if run.status.success() => {}
        Ok(run) if run.status.code() == Some(77) || String::from_utf8_lossy(&run.stderr).starts_with("unshare:") => {
            eprintln!("left out: no file system can be mounted here");
        }
        Ok(run) => panic!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr)),
        Err(error) => eprintln!("left out: no unshare here: {error}"),
    }
}
