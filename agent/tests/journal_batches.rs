//! What a batch may settle and depend on: records that are done with one by one, and key-values that were read.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tempfile::TempDir;
use tidegate::clock::Clock;
use tidegate::config::StreamConfig;
use tidegate::invocation::KeyValueWrite;
use tidegate::journal::{Batch, Journal, JournalConfig, JournalError, KeyValueRead, RecordMeta};
use tidegate::limits::Limits;
use tidegate::name::{FunctionName, Own, StreamName};

fn parked() -> StreamName {
    StreamName::own(Own::Parked, "mean")
}

fn mean() -> FunctionName {
    FunctionName::parse("mean").unwrap()
}

fn open(dir: &Path) -> Journal {
    let config = JournalConfig { streams: BTreeMap::new(), limits: Arc::new(Limits::default()) };
    let journal = Journal::open(dir, config, Clock::system()).unwrap();
    journal.own_stream(parked(), StreamConfig::default());
    journal
}

fn park(text: impl Into<String>) -> Batch {
    Batch { records: vec![(parked(), Bytes::from(text.into()), RecordMeta::default())], ..Batch::default() }
}

fn done(sequences: impl IntoIterator<Item = u64>) -> Batch {
    Batch { done: sequences.into_iter().map(|sequence| (parked(), sequence)).collect(), ..Batch::default() }
}

fn kept(journal: &Journal) -> Vec<u64> {
    let records = journal.read(&parked(), 0, usize::MAX, usize::MAX).unwrap();
    records.iter().map(|record| record.sequence).collect()
}

fn write(key: &str, value: &str) -> Batch {
    let value = Some(Bytes::from(value.to_owned()));
    Batch {
        key_values: vec![(mean(), KeyValueWrite { bucket: "b".into(), key: key.into(), value })],
        ..Batch::default()
    }
}

fn read_of(key: Option<&str>, version: u64) -> KeyValueRead {
    KeyValueRead { function: mean(), bucket: "b".into(), key: key.map(str::to_owned), version }
}

fn get(journal: &Journal, key: &str) -> (u64, Option<String>) {
    let stored = journal.key_value_get(&mean(), "b", key).unwrap();
    (stored.version, stored.value.map(|value| String::from_utf8(value.to_vec()).unwrap()))
}

#[tokio::test]
async fn a_record_that_is_done_with_goes_whatever_comes_before_it() {
    let dir = TempDir::new().unwrap();
    let journal = open(dir.path());
    for n in 1..=10 {
        let committed = journal.commit(park(format!("{n}"))).await.unwrap();
        assert_eq!(committed.sequences, [n]);
    }
    journal.commit(done([3, 5, 4, 9])).await.unwrap();
    let left = [1, 2, 6, 7, 8, 10];
    assert_eq!(kept(&journal), left);
    assert_eq!(journal.read_one(&parked(), 4).unwrap(), None);
    assert_eq!(journal.read_one(&parked(), 6).unwrap().unwrap().data, "6");
    assert_eq!(journal.read(&parked(), 2, 1, usize::MAX).unwrap()[0].sequence, 6);
    journal.close().await.unwrap();
    drop(journal);

    let journal = open(dir.path());
    assert_eq!(kept(&journal), left);
    let status = journal.own_status();
    assert_eq!((status.len(), status[0].records), (1, 6));
    assert!(journal.status().iter().all(|stream| !stream.name.is_own()), "own streams are not the user's");
    journal.commit(done([1, 2])).await.unwrap();
    assert_eq!(journal.floor(&parked()), 5, "up to the first that is needed");
}

#[tokio::test]
async fn a_batch_settles_and_appends_together_or_not_at_all() {
    let dir = TempDir::new().unwrap();
    let journal = open(dir.path());
    journal.commit(park("first attempt")).await.unwrap();
    let mut batch = park("second attempt");
    batch.done.push((parked(), 1));
    batch.records.push((StreamName::parse("missing").unwrap(), Bytes::new(), RecordMeta::default()));
    journal.commit(batch.clone()).await.unwrap_err();
    assert_eq!(kept(&journal), [1]);
    batch.records.pop();
    journal.commit(batch).await.unwrap();
    assert_eq!(kept(&journal), [2]);
    drop(journal);
    assert_eq!(kept(&open(dir.path())), [2]);
}

#[tokio::test]
async fn what_is_done_with_leaves_the_disk_though_old_records_stay() {
    let dir = TempDir::new().unwrap();
    let journal = open(dir.path());
    let mut newest = 0;
    let mut stay = Vec::new();
    for round in 0..200 {
        let mut batch = Batch::default();
        for n in 0..100 {
            batch.records.extend(park(format!("{round} {n} {}", "x".repeat(1000))).records);
        }
        let sequences = journal.commit(batch).await.unwrap().sequences;
        stay.extend(sequences.iter().copied().filter(|sequence| sequence % 97 == 0));
        journal.commit(done(sequences.iter().copied().filter(|sequence| sequence % 97 != 0))).await.unwrap();
        newest = *sequences.last().unwrap();
    }
    let mut segments = 0;
    for _ in 0..200 {
        segments = journal.journal_status().segments;
        if segments <= 3 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert!(segments <= 3, "20 MB went through, 200 KB are needed, {segments} segments are there");
    assert_eq!((kept(&journal), newest), (stay.clone(), 20_000));
    drop(journal);
    let journal = open(dir.path());
    assert_eq!(kept(&journal), stay);
    journal.commit(done(stay)).await.unwrap();
    assert_eq!((kept(&journal), journal.floor(&parked())), (Vec::new(), 20_000));
}

#[tokio::test]
async fn a_batch_whose_reads_have_changed_is_refused() {
    let dir = TempDir::new().unwrap();
    let journal = open(dir.path());
    assert_eq!(get(&journal, "a"), (0, None));
    journal.commit(Batch { reads: vec![read_of(Some("a"), 0)], ..write("a", "1") }).await.unwrap();
    let (first, value) = get(&journal, "a");
    assert_eq!(value.as_deref(), Some("1"));
    journal.commit(Batch { reads: vec![read_of(Some("a"), first)], ..write("a", "2") }).await.unwrap();
    let stale = Batch { reads: vec![read_of(Some("a"), first)], ..write("a", "lost") };
    let error = journal.commit(stale).await.unwrap_err();
    assert!(error.is_conflict() && !error.is_disk() && !error.is_full(), "{error}");
    let now = get(&journal, "a");
    assert_eq!(now.1.as_deref(), Some("2"));
    drop(journal);
    let journal = open(dir.path());
    assert_eq!(get(&journal, "a"), now, "a version outlives a restart");
    journal.commit(write("b", "1")).await.unwrap();
    assert!(get(&journal, "b").0 > now.0, "no version is given twice");
}

#[tokio::test]
async fn a_batch_that_listed_keys_is_refused_when_any_was_written() {
    let dir = TempDir::new().unwrap();
    let journal = open(dir.path());
    let (version, keys) = journal.key_value_keys(&mean(), "b").unwrap();
    assert_eq!(keys, Vec::<String>::new());
    journal.commit(Batch { reads: vec![read_of(None, version)], ..write("a", "1") }).await.unwrap();
    let stale = Batch { reads: vec![read_of(None, version)], ..write("c", "1") };
    assert!(matches!(journal.commit(stale).await, Err(JournalError::Conflict { key: None, .. })));
    let (version, keys) = journal.key_value_keys(&mean(), "b").unwrap();
    assert_eq!(keys, ["a"]);
    journal.commit(Batch { reads: vec![read_of(None, version)], ..Batch::default() }).await.unwrap();
}

#[tokio::test]
async fn reads_see_what_was_begun() {
    let dir = TempDir::new().unwrap();
    let journal = open(dir.path());
    let mut on_their_way = Vec::new();
    for n in 0..100 {
        let (version, value) = get(&journal, "sum");
        let sum: u64 = value.map_or(0, |value| value.parse().unwrap());
        let mut batch = Batch { reads: vec![read_of(Some("sum"), version)], ..write("sum", &(sum + n).to_string()) };
        batch.records.extend(park(format!("{n}")).records);
        on_their_way.push(journal.begin(batch).await.unwrap());
        assert_eq!(journal.key_value_keys(&mean(), "b").unwrap().1, ["sum"]);
    }
    assert!(journal.journal_status().syncs < 90, "nobody waited for the disk");
    for (n, batch) in on_their_way.into_iter().enumerate() {
        assert_eq!(batch.committed().sequences, [n as u64 + 1]);
        batch.durable().await.unwrap();
    }
    drop(journal);
    assert_eq!(get(&open(dir.path()), "sum").1.as_deref(), Some("4950"));
}
