//! What waits in memory before it is written, and how old a record is on machines whose clock is wrong or set late.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tidegate::clock::Clock;
use tidegate::config::{Durability, StreamConfig};
use tidegate::journal::{Batch, Journal, JournalConfig, Record, RecordMeta, StreamStatus};
use tidegate::limits::Limits;
use tidegate::name::{FunctionName, StreamName};
use tidegate::units::{ByteSize, Span};

const NOW: u64 = 1_795_000_000_000;
const HOUR: Duration = Duration::from_secs(3600);

fn readings() -> StreamName {
    StreamName::parse("readings").unwrap()
}

fn alarms() -> StreamName {
    StreamName::parse("alarms").unwrap()
}

fn open(dir: &Path, readings_config: StreamConfig, clock: Clock) -> Journal {
    let streams = BTreeMap::from([(readings(), readings_config), (alarms(), StreamConfig::default())]);
    Journal::open(dir, JournalConfig { streams, limits: Arc::new(Limits::default()) }, clock).unwrap()
}

fn waits(span: Duration) -> StreamConfig {
    StreamConfig { durability: Durability::Every(Span(span)), ..StreamConfig::default() }
}

fn kept_for(age: Duration) -> StreamConfig {
    StreamConfig { max_age: Some(Span(age)), ..StreamConfig::default() }
}

fn to(stream: StreamName, time_ms: u64, text: impl Into<String>) -> Batch {
    let meta = RecordMeta { time_ms, trace_parent: None };
    Batch { records: vec![(stream, Bytes::from(text.into()), meta)], ..Batch::default() }
}

fn read(journal: &Journal, stream: &StreamName) -> Vec<Record> {
    journal.read(stream, 0, usize::MAX, usize::MAX).unwrap()
}

fn status(journal: &Journal) -> StreamStatus {
    journal.status().into_iter().find(|status| status.name == readings()).unwrap()
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..200 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what} did not happen within 10 s");
}

#[tokio::test]
async fn a_stream_with_durability_1s_is_on_disk_within_that_time() {
    let dir = TempDir::new().unwrap();
    let journal = open(dir.path(), waits(Duration::from_secs(1)), Clock::system());
    let mut newest = journal.subscribe(&readings());
    for n in 0..100 {
        journal.commit(to(readings(), 0, format!("{n}"))).await.unwrap();
    }
    assert_eq!((status(&journal).records, read(&journal, &readings()).len()), (100, 0), "they wait in memory");
    tokio::time::timeout(Duration::from_secs(5), newest.wait_for(|newest| *newest == 100)).await.unwrap().unwrap();
    assert_eq!(journal.journal_status().syncs, 1, "written together");
    assert_eq!(read(&journal, &readings()).len(), 100);
}

#[tokio::test]
async fn what_waits_keeps_its_place_before_what_does_not() {
    let dir = TempDir::new().unwrap();
    let journal = open(dir.path(), waits(HOUR), Clock::system());
    journal.commit(to(readings(), 0, "1")).await.unwrap();
    journal.commit(to(alarms(), 0, "alone")).await.unwrap();
    assert_eq!(read(&journal, &readings()), [], "another stream's commit does not hurry it");
    let mut both = to(readings(), 0, "2");
    both.records.extend(to(alarms(), 0, "with it").records);
    journal.commit(both).await.unwrap();
    let kept: Vec<_> =
        read(&journal, &readings()).iter().map(|record| (record.sequence, record.data.clone())).collect();
    assert_eq!(kept, [(1, Bytes::from("1")), (2, Bytes::from("2"))], "a batch is kept whole, and its stream in order");
    journal.commit(to(readings(), 0, "3")).await.unwrap();
    journal.close().await.unwrap();
    drop(journal);
    let journal = open(dir.path(), waits(HOUR), Clock::system());
    assert_eq!(read(&journal, &readings()).len(), 3, "a stop brings all to disk");
}

#[tokio::test]
async fn what_waits_in_memory_is_bounded() {
    let dir = TempDir::new().unwrap();
    let journal = open(dir.path(), waits(HOUR), Clock::system());
    for n in 0..300_u64 {
        journal.commit(to(readings(), 0, "x".repeat(10_000))).await.unwrap();
        let waiting = (n + 1 - *journal.subscribe(&readings()).borrow()) * 10_000;
        assert!(waiting <= Limits::default().held_bytes_max.0 + 20_000, "{waiting} bytes wait");
    }
}

#[tokio::test]
async fn a_clock_that_is_set_expires_nothing_and_keeps_nothing_for_ever() {
    let dir = TempDir::new().unwrap();
    let clock = Clock::held_at(1000);
    let journal = open(dir.path(), kept_for(2 * HOUR), clock.clone());
    journal.commit(to(readings(), 1000, "before")).await.unwrap();
    clock.pass(HOUR);
    clock.set(NOW);
    journal.commit(to(readings(), NOW, "after")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(status(&journal).dropped_by_age, 0, "it is an hour old, not 56 years");
    clock.set(0);
    clock.pass(HOUR + Duration::from_secs(60));
    eventually("the first goes after two hours", || status(&journal).dropped_by_age == 1).await;
    assert_eq!(read(&journal, &readings())[0].data, "after");
}

#[tokio::test]
async fn time_that_passed_while_the_agent_was_off_counts() {
    let dir = TempDir::new().unwrap();
    let clock = Clock::held_at(NOW);
    let journal = open(dir.path(), kept_for(2 * HOUR), clock);
    journal.commit(to(readings(), NOW, "old")).await.unwrap();
    drop(journal);
    // A start without a clock, which is then set: three hours have passed, not a minute and not 56 years.
    let clock = Clock::held_at(5000);
    let journal = open(dir.path(), kept_for(2 * HOUR), clock.clone());
    journal.commit(to(readings(), 5000, "new")).await.unwrap();
    clock.pass(Duration::from_secs(60));
    assert_eq!(status(&journal).dropped_by_age, 0);
    clock.set(NOW + 3 * 3_600_000);
    eventually("the old one goes", || status(&journal).dropped_by_age > 0).await;
}

#[tokio::test]
async fn a_record_from_before_the_clock_was_set_gets_its_time_when_it_is() {
    let dir = TempDir::new().unwrap();
    let clock = Clock::held_at(1000);
    let journal = open(dir.path(), StreamConfig::default(), clock.clone());
    clock.pass(Duration::from_secs(10));
    journal.commit(to(readings(), 11_000, "early")).await.unwrap();
    assert!(read(&journal, &readings())[0].time_unknown);
    clock.pass(Duration::from_secs(20));
    clock.set(NOW);
    journal.commit(to(readings(), NOW, "late")).await.unwrap();
    let check = |journal: &Journal| {
        let times: Vec<_> =
            read(journal, &readings()).iter().map(|record| (record.time_ms, record.time_unknown)).collect();
        assert_eq!(times, [(NOW - 20_000, false), (NOW, false)]);
    };
    check(&journal);
    drop(journal);
    check(&open(dir.path(), StreamConfig::default(), Clock::held_at(NOW + 60_000)));

    let never = TempDir::new().unwrap();
    let journal = open(never.path(), StreamConfig::default(), Clock::held_at(1000));
    journal.commit(to(readings(), 1000, "early")).await.unwrap();
    drop(journal);
    let journal = open(never.path(), StreamConfig::default(), Clock::held_at(NOW));
    assert!(read(&journal, &readings())[0].time_unknown, "nobody knows when that was");
}

/// The fixture was written by the code of commit d5f424b.
#[tokio::test]
async fn a_journal_of_version_1_goes_on() {
    let packed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/journal-1.tar.zst");
    let dir = TempDir::new().unwrap();
    let bytes = zstd::decode_all(std::fs::File::open(packed).unwrap()).unwrap();
    tar::Archive::new(bytes.as_slice()).unpack(dir.path()).unwrap();
    let clock = Clock::held_at(1_700_000_100_000);
    let week = || StreamConfig { max_bytes: ByteSize::mib(64), ..kept_for(7 * 24 * HOUR) };
    for (more, round) in (0..3).enumerate() {
        let journal = open(dir.path(), week(), clock.clone());
        let records = read(&journal, &readings());
        assert_eq!(records.len(), 4497 + more, "three were acknowledged");
        for (record, sequence) in records.iter().take(4497).zip(4..) {
            let text = format!("{sequence} {}", "x".repeat(950));
            assert!(record.sequence == sequence && record.data == text.as_bytes(), "record {sequence}");
            assert_eq!((record.time_ms, record.time_unknown), (1_700_000_000_000 + sequence, false));
            assert_eq!(record.trace_parent.is_some(), sequence % 1000 == 0);
        }
        let mean = FunctionName::parse("mean").unwrap();
        let latest = journal.key_value_get(&mean, "minutes", "latest").unwrap();
        assert_eq!((latest.value.as_deref(), latest.version > 0), (Some(&b"89"[..]), true));
        assert_eq!(journal.key_value_get(&mean, "minutes", "gone").unwrap().value, None);
        let dead = StreamName::parse(tidegate::journal::DEAD_LETTERS).unwrap();
        assert_eq!(read(&journal, &dead)[0].data, "given up");
        let report = journal.journal_status();
        assert_eq!((report.lost_commits, report.set_aside, report.damaged_values), (0, 0, 0));
        assert_eq!((status(&journal).lost, status(&journal).dropped_by_age), (0, 0));
        let committed = journal.commit(to(readings(), 1_700_000_100_000, format!("{round}"))).await.unwrap();
        assert_eq!(committed.sequences, [4501 + more as u64]);
    }
    let format = std::fs::read_to_string(dir.path().join("format")).unwrap();
    assert!(format.starts_with("tidegate journal 2 "), "{format}");
    // Ages go on from the times of the old records.
    let journal = open(dir.path(), week(), clock.clone());
    clock.pass(8 * 24 * HOUR);
    eventually("all go after a week", || status(&journal).records == 0).await;
}
