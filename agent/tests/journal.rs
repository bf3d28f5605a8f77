//! The promises of the journal, each a test of that name.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use tidegate::clock::Clock;
use tidegate::config::{Durability, StreamConfig, WhenFull};
use tidegate::invocation::KeyValueWrite;
use tidegate::journal::{Batch, DEAD_LETTERS, Journal, JournalConfig, JournalError, Record, RecordMeta, StreamStatus};
use tidegate::limits::Limits;
use tidegate::name::{FunctionName, StreamName};
use tidegate::units::{ByteSize, Span};

fn readings() -> StreamName {
    StreamName::parse("readings").unwrap()
}

fn mean() -> FunctionName {
    FunctionName::parse("mean").unwrap()
}

fn open_with(dir: &Path, stream: StreamConfig, clock: Clock) -> Result<Journal, JournalError> {
    let streams = BTreeMap::from([(readings(), stream)]);
    let config = JournalConfig { streams, limits: Arc::new(Limits::default()) };
    let open = || Journal::open(dir, config.clone(), clock.clone());
    // A child process that another test is just starting holds all locks for a moment.
    for _ in 0..250 {
        match open() {
            Err(JournalError::Locked(_)) => std::thread::sleep(Duration::from_millis(20)),
            opened => return opened,
        }
    }
    open()
}

fn open(dir: &Path) -> Journal {
    open_with(dir, StreamConfig::default(), Clock::system()).unwrap()
}

fn record(text: impl Into<String>) -> Batch {
    record_at(0, text)
}

fn record_at(time_ms: u64, text: impl Into<String>) -> Batch {
    let meta = RecordMeta { time_ms, trace_parent: None };
    Batch { records: vec![(readings(), Bytes::from(text.into()), meta)], ..Batch::default() }
}

fn key_value(key: &str, value: Option<&str>) -> (FunctionName, KeyValueWrite) {
    let value = value.map(|value| Bytes::from(value.to_owned()));
    (mean(), KeyValueWrite { bucket: "minutes".into(), key: key.into(), value })
}

fn get(journal: &Journal, key: &str) -> Option<String> {
    let stored = journal.key_value_get(&mean(), "minutes", key).unwrap();
    stored.value.map(|value| String::from_utf8(value.to_vec()).unwrap())
}

fn read(journal: &Journal, after: u64) -> Vec<Record> {
    journal.read(&readings(), after, usize::MAX, usize::MAX).unwrap()
}

fn texts(records: &[Record]) -> Vec<String> {
    records.iter().map(|record| String::from_utf8_lossy(&record.data).into_owned()).collect()
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

/// The folders of the journal's segments that are in use.
fn segments(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut segments: Vec<_> = entries.filter(|path| path.is_dir() && path.extension().is_none()).collect();
    segments.sort();
    segments
}

#[tokio::test]
async fn a_record_is_on_disk_when_commit_returns() {
    let dir = TempDir::new().unwrap();
    let journal = open(dir.path());
    for n in 1..=3 {
        let before = journal.journal_status().syncs;
        journal.commit(record(format!("{n}"))).await.unwrap();
        assert!(journal.journal_status().syncs > before, "committed without a sync");
    }
    let newest = *journal.subscribe(&readings()).borrow();
    assert_eq!(newest, 3);
    drop(journal);
    assert_eq!(texts(&read(&open(dir.path()), 0)), ["1", "2", "3"]);
}

#[tokio::test]
async fn commits_that_wait_together_share_a_sync() {
    let dir = TempDir::new().unwrap();
    let journal = Arc::new(open(dir.path()));
    let commits = (0..500).map(|n| {
        let journal = Arc::clone(&journal);
        tokio::spawn(async move { journal.commit(record(format!("{n}"))).await })
    });
    for commit in commits.collect::<Vec<_>>() {
        commit.await.unwrap().unwrap();
    }
    let status = journal.journal_status();
    assert_eq!(status.commits, 500);
    assert!(status.syncs < 250, "{} syncs", status.syncs);
}

/// Not a test: what [`a_killed_agent_loses_nothing_that_was_committed`] starts and kills. It commits from four tasks, and
/// says each number once it is committed.
#[test]
#[ignore = "started by another test"]
fn child_that_commits() {
    let Ok(dir) = std::env::var("JOURNAL_TEST_DIR") else { return };
    let first: u64 = std::env::var("JOURNAL_TEST_FIRST").unwrap().parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let journal = Arc::new(open(Path::new(&dir)));
        let tasks = (0..4).map(|task| {
            let journal = Arc::clone(&journal);
            tokio::spawn(async move {
                for n in (first + task..).step_by(4) {
                    let mut batch = record(format!("{n} {}", "x".repeat(700)));
                    batch.key_values.push(key_value(&format!("task {task}"), Some(&n.to_string())));
                    journal.commit(batch).await.unwrap();
                    let mut out = std::io::stdout().lock();
                    writeln!(out, "committed {n}").unwrap();
                    out.flush().unwrap();
                }
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
    });
}

/// A stop is no power cut: what waits for the next sync is brought to disk, and the next start finds nothing missing.
#[tokio::test]
async fn a_stop_brings_all_to_disk() {
    let dir = TempDir::new().unwrap();
    let now_and_then =
        StreamConfig { durability: Durability::Every(Span(Duration::from_secs(3600))), ..StreamConfig::default() };
    for round in 0..3 {
        let journal = open_with(dir.path(), now_and_then.clone(), Clock::system()).unwrap();
        assert_eq!(journal.journal_status().lost_commits, 0, "round {round}");
        assert_eq!(read(&journal, 0).len(), round);
        journal.commit(record(format!("{round}"))).await.unwrap();
        journal.close().await.unwrap();
        assert!(matches!(journal.commit(record("late")).await, Err(JournalError::Closed)));
        // Nobody has to let go of it.
        std::mem::forget(journal);
        let copied = TempDir::new().unwrap();
        copy(dir.path(), copied.path());
        for _ in 0..3 {
            let idle = open(copied.path());
            assert_eq!((read(&idle, 0).len(), idle.journal_status().lost_commits), (round + 1, 0));
            idle.close().await.unwrap();
        }
        fs::remove_dir_all(dir.path()).unwrap();
        copy(copied.path(), dir.path());
    }
}

#[tokio::test]
async fn a_killed_agent_loses_nothing_that_was_committed() {
    let dir = TempDir::new().unwrap();
    let mut committed: Vec<u64> = Vec::new();
    for round in 0..12_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_commits", "--ignored", "--nocapture"])
            .env("JOURNAL_TEST_DIR", dir.path())
            .env("JOURNAL_TEST_FIRST", (round * 1_000_000).to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let wanted = 20 + fastrand::usize(0..400);
        let said = |line: &String| line.strip_prefix("committed ").map(|n| n.parse::<u64>().unwrap());
        committed.extend(lines.by_ref().map(|line| line.unwrap()).filter_map(|line| said(&line)).take(wanted));
        child.kill().unwrap();
        // What it said before it died, and we had not read yet.
        committed.extend(lines.map_while(Result::ok).filter_map(|line| said(&line)));
        child.wait().unwrap();
        if round % 3 == 2 {
            let journal = open(dir.path());
            assert_eq!(journal.journal_status().lost_commits, 0, "round {round}");
            assert_eq!(journal.journal_status().set_aside, 0, "round {round}");
        }
    }
    let journal = open(dir.path());
    let records = read(&journal, 0);
    let kept: std::collections::BTreeSet<u64> =
        texts(&records).iter().map(|text| text.split(' ').next().unwrap().parse().unwrap()).collect();
    let lost: Vec<_> = committed.iter().filter(|n| !kept.contains(n)).collect();
    assert!(committed.len() > 240, "{}", committed.len());
    assert!(lost.is_empty(), "of {} committed: {lost:?}", committed.len());
    let sequences: Vec<u64> = records.iter().map(|record| record.sequence).collect();
    assert!(sequences.windows(2).all(|pair| pair[0] < pair[1]), "a sequence was used twice");
    for task in 0..4 {
        let last = committed.iter().filter(|n| *n % 4 == task).max().unwrap();
        let value: u64 = get(&journal, &format!("task {task}")).unwrap().parse().unwrap();
        assert!(value >= *last, "task {task}: {value}, committed {last}");
    }
}

#[tokio::test]
async fn a_batch_is_kept_whole_or_not_at_all() {
    let dir = TempDir::new().unwrap();
    let small = StreamConfig { max_bytes: ByteSize(100), when_full: WhenFull::Reject, ..StreamConfig::default() };
    let journal = open_with(dir.path(), small, Clock::system()).unwrap();
    let mut batch = record("x".repeat(60));
    batch.key_values.push(key_value("a", Some("1")));
    journal.commit(batch).await.unwrap();

    let mut batch = record("x".repeat(60));
    batch.key_values.push(key_value("a", Some("2")));
    let error = journal.commit(batch).await.unwrap_err();
    assert!(matches!(error, JournalError::Full { .. }), "{error}");
    assert_eq!((get(&journal, "a").as_deref(), status(&journal).records), (Some("1"), 1));

    let mut batch = record("y");
    let missing = StreamName::parse("missing").unwrap();
    batch.records.push((missing, Bytes::new(), RecordMeta::default()));
    let error = journal.commit(batch).await.unwrap_err();
    assert!(error.to_string().contains("[stream.missing]"), "{error}");
    assert_eq!(status(&journal).records, 1);
}

#[tokio::test]
async fn a_sequence_is_never_used_twice() {
    let dir = TempDir::new().unwrap();
    let mut last = 0;
    for round in 0..4 {
        let journal = open(dir.path());
        for n in 0..5 {
            journal.commit(record(format!("{round} {n}"))).await.unwrap();
        }
        let records = read(&journal, 0);
        assert_eq!((records.len(), records[0].sequence), (5, last + 1));
        last = records[4].sequence;
        journal.ack(&readings(), last).await.unwrap();
        assert_eq!(read(&journal, 0), []);
    }
    assert_eq!(last, 20);
}

#[tokio::test]
async fn what_was_acknowledged_goes_and_the_rest_stays() {
    let dir = TempDir::new().unwrap();
    let journal = open(dir.path());
    for n in 1..=10 {
        journal.commit(record(format!("{n}"))).await.unwrap();
    }
    journal.ack(&readings(), 4).await.unwrap();
    journal.ack(&readings(), 2).await.unwrap();
    drop(journal);
    let journal = open(dir.path());
    assert_eq!(read(&journal, 0)[0].sequence, 5);
    assert_eq!((status(&journal).acked_sequence, status(&journal).records), (4, 6));
    assert_eq!(texts(&journal.read(&readings(), 6, 2, usize::MAX).unwrap()), ["7", "8"]);
    assert_eq!(journal.read(&readings(), 4, usize::MAX, 1).unwrap().len(), 1, "at least one, however small the bound");
}

#[tokio::test]
async fn a_stream_stays_within_its_budget_and_counts_what_that_costs() {
    let dir = TempDir::new().unwrap();
    let small = StreamConfig { max_bytes: ByteSize::mib(1), ..StreamConfig::default() };
    let journal = open_with(dir.path(), small.clone(), Clock::system()).unwrap();
    for n in 0..300 {
        let mut batch = Batch::default();
        for m in 0..50 {
            batch.records.extend(record(format!("{n} {m} {}", "x".repeat(1000))).records);
        }
        journal.commit(batch).await.unwrap();
        assert!(status(&journal).bytes <= 1 << 20, "{} bytes", status(&journal).bytes);
    }
    let now = status(&journal);
    assert_eq!(now.records + now.dropped_by_bytes, 15_000);
    assert!(now.records > 900, "{} records are too few for the budget", now.records);
    assert_eq!(read(&journal, 0).len() as u64, now.records);
    // Dropped records leave the disk too: 15 MB went through it.
    eventually("old segments go", || segments(dir.path()).len() <= 3).await;
    drop(journal);
    let again = status(&open_with(dir.path(), small, Clock::system()).unwrap());
    assert_eq!((again.dropped_by_bytes, again.newest_sequence), (now.dropped_by_bytes, 15_000));
}

#[tokio::test]
async fn a_full_stream_that_rejects_says_so() {
    let dir = TempDir::new().unwrap();
    let small = StreamConfig { max_bytes: ByteSize(100), when_full: WhenFull::Reject, ..StreamConfig::default() };
    let journal = open_with(dir.path(), small, Clock::system()).unwrap();
    journal.commit(record("x".repeat(60))).await.unwrap();
    let error = journal.commit(record("x".repeat(60))).await.unwrap_err().to_string();
    assert!(error.starts_with("stream `readings` is full: `max_bytes` = 100 B"), "{error}");
    journal.ack(&readings(), 1).await.unwrap();
    journal.commit(record("x".repeat(60))).await.unwrap();
    let error = journal.commit(record("x".repeat(101))).await.unwrap_err().to_string();
    assert!(error.contains("101 bytes is too large for stream `readings`"), "{error}");
}

#[tokio::test]
async fn records_past_their_age_go_and_are_counted() {
    let dir = TempDir::new().unwrap();
    let clock = Clock::held_at(1_000_000);
    let hour = StreamConfig { max_age: Some(Span::from_secs(3600)), ..StreamConfig::default() };
    let journal = open_with(dir.path(), hour, clock.clone()).unwrap();
    journal.commit(record_at(1_000_000, "old")).await.unwrap();
    clock.pass(Duration::from_secs(3000));
    journal.commit(record_at(4_000_000, "new")).await.unwrap();
    clock.pass(Duration::from_millis(600_001));
    eventually("the old one goes", || status(&journal).dropped_by_age == 1).await;
    assert_eq!(texts(&read(&journal, 0)), ["new"]);
}

#[tokio::test]
async fn a_key_value_outlives_the_segments() {
    let dir = TempDir::new().unwrap();
    let journal = open(dir.path());
    let mut batch =
        Batch { key_values: vec![key_value("kept", Some("1")), key_value("gone", Some("1"))], ..Batch::default() };
    journal.commit(std::mem::take(&mut batch)).await.unwrap();
    journal.commit(Batch { key_values: vec![key_value("gone", None)], ..Batch::default() }).await.unwrap();
    let first = segments(dir.path());
    for _ in 0..200 {
        let mut batch = Batch::default();
        for _ in 0..60 {
            batch.records.extend(record("x".repeat(1000)).records);
        }
        journal.commit(batch).await.unwrap();
    }
    journal.ack(&readings(), 12_000).await.unwrap();
    eventually("the first segment goes", || !first[0].exists()).await;
    assert_eq!((get(&journal, "kept").as_deref(), get(&journal, "gone")), (Some("1"), None));
    drop(journal);
    let journal = open(dir.path());
    assert_eq!((get(&journal, "kept").as_deref(), get(&journal, "gone")), (Some("1"), None));
    assert_eq!(journal.key_value_keys(&mean(), "minutes").unwrap().1, ["kept"]);
    assert_eq!(status(&journal).newest_sequence, 12_000);
}

#[tokio::test]
async fn key_values_are_private_and_bounded() {
    let dir = TempDir::new().unwrap();
    let limits = Limits { value_bytes_max: ByteSize(100), key_value_bytes_max: ByteSize(250), ..Limits::default() };
    let config = JournalConfig { streams: BTreeMap::new(), limits: Arc::new(limits) };
    let journal = Journal::open(dir.path(), config, Clock::system()).unwrap();
    let put = |key: &str, bytes: usize| Batch {
        key_values: vec![key_value(key, Some(&"x".repeat(bytes)))],
        ..Batch::default()
    };
    journal.commit(put("a", 100)).await.unwrap();
    journal.commit(put("a", 90)).await.unwrap();
    journal.commit(put("b", 100)).await.unwrap();
    let error = journal.commit(put("c", 100)).await.unwrap_err().to_string();
    assert!(error.starts_with("function `mean` would have 314 bytes of key-values, and 250 B is the most"), "{error}");
    let error = journal.commit(put("c", 101)).await.unwrap_err().to_string();
    assert!(error.contains("key `c` would have 101 bytes, and 100 B is the most"), "{error}");
    journal.commit(Batch { key_values: vec![key_value("b", None)], ..Batch::default() }).await.unwrap();
    journal.commit(put("c", 100)).await.unwrap();
    let other = FunctionName::parse("mean2").unwrap();
    assert_eq!(journal.key_value_get(&other, "minutes", "a").unwrap().value, None);
    assert_eq!(journal.key_value_keys(&mean(), "minute").unwrap().1, Vec::<String>::new());
    assert_eq!(journal.key_value_keys(&mean(), "minutes").unwrap().1, ["a", "c"]);
}

#[tokio::test]
async fn one_slow_stream_does_not_keep_the_disk_of_the_others() {
    let dir = TempDir::new().unwrap();
    let journal = open(dir.path());
    let slow = StreamName::parse(DEAD_LETTERS).unwrap();
    for n in 0..400_u64 {
        let mut batch = Batch::default();
        batch.records.push((slow.clone(), Bytes::from(format!("{n}")), RecordMeta::default()));
        for _ in 0..60 {
            batch.records.extend(record("x".repeat(1000)).records);
        }
        journal.commit(batch).await.unwrap();
        journal.ack(&readings(), (n + 1) * 60).await.unwrap();
    }
    eventually("sparse segments go", || segments(dir.path()).len() <= 3).await;
    let kept = journal.read(&slow, 0, usize::MAX, usize::MAX).unwrap();
    let wanted: Vec<String> = (0..400).map(|n| n.to_string()).collect();
    assert_eq!(texts(&kept), wanted);
    drop(journal);
    let journal = open(dir.path());
    assert_eq!(texts(&journal.read(&slow, 0, usize::MAX, usize::MAX).unwrap()), wanted);
    assert_eq!(journal.status().iter().map(|stream| stream.records).sum::<u64>(), 400);
}

#[tokio::test]
async fn records_that_are_copied_forward_keep_their_places_among_new_ones() {
    let dir = TempDir::new().unwrap();
    let journal = open(dir.path());
    let text = |n: u64| format!("{n} {}", "x".repeat(500));
    let (mut acked, mut newest) = (0, 0);
    for round in 0..600 {
        let mut batch = Batch::default();
        for _ in 0..40 {
            newest += 1;
            batch.records.extend(record(text(newest)).records);
        }
        journal.commit(batch).await.unwrap();
        // The acknowledged end is mostly in the middle of a segment, whose rest is then copied.
        if round % 97 == 96 {
            acked = newest - 5_000_u64.min(newest);
            journal.ack(&readings(), acked).await.unwrap();
        }
    }
    eventually("sparse segments go", || !segments(dir.path())[0].ends_with("0000000001")).await;
    let check = |records: Vec<Record>| {
        assert_eq!(records.len() as u64, newest - acked);
        for (record, n) in records.iter().zip(acked + 1..) {
            assert!(record.sequence == n && record.data == text(n).as_bytes(), "record {n}");
        }
    };
    check(read(&journal, 0));
    drop(journal);
    check(read(&open(dir.path()), 0));
}

#[tokio::test]
async fn large_records_come_back_as_they_were() {
    let dir = TempDir::new().unwrap();
    let journal = open(dir.path());
    let mut written = Vec::new();
    for n in 0..12_usize {
        let text = format!("{n}").repeat(n * 40_000);
        journal.commit(record(text.clone())).await.unwrap();
        written.push(text);
    }
    assert_eq!(texts(&read(&journal, 0)), written);
    drop(journal);
    assert!(texts(&read(&open(dir.path()), 0)) == written);
}

#[tokio::test]
async fn two_agents_cannot_share_a_journal() {
    let dir = TempDir::new().unwrap();
    let journal = open(dir.path());
    let error = open_with(dir.path(), StreamConfig::default(), Clock::system()).unwrap_err().to_string();
    assert!(error.contains("is in use by another agent\nhint: "), "{error}");
    drop(journal);
    open(dir.path());
}

#[tokio::test]
async fn a_journal_of_a_newer_agent_is_left_alone() {
    let dir = TempDir::new().unwrap();
    drop(open(dir.path()));
    let name = "tidegate journal 3";
    fs::write(dir.path().join("format"), format!("{name} {:08x}\n", crc32c::crc32c(name.as_bytes()))).unwrap();
    let error = open_with(dir.path(), StreamConfig::default(), Clock::system()).unwrap_err().to_string();
    assert!(error.contains("has format `tidegate journal 3`, and this agent knows up to 2"), "{error}");
}

/// Fills a journal with `records` records and some key-values, and closes it.
async fn filled(dir: &Path, records: u64) {
    let journal = open(dir);
    let mut batch = Batch::default();
    for n in 1..=records {
        batch.records.extend(record(format!("{n} {}", "x".repeat(300))).records);
        batch.key_values.push(key_value("latest", Some(&n.to_string())));
        if n % 50 == 0 {
            journal.commit(std::mem::take(&mut batch)).await.unwrap();
        }
    }
    journal.ack(&readings(), 10).await.unwrap();
}

/// Opens what is left, and checks that the agent can go on: nothing is invented, numbers go on, appends work.
async fn goes_on(dir: &Path, records: u64, what: &str) -> u64 {
    let journal =
        open_with(dir, StreamConfig::default(), Clock::system()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let after = journal.read(&readings(), 0, usize::MAX, usize::MAX);
    if after.is_err() {
        // A reader that met damage has it mended; then it goes on.
        eventually(what, || journal.read(&readings(), 0, usize::MAX, usize::MAX).is_ok()).await;
    }
    let kept = read(&journal, 0);
    for record in &kept {
        let wanted = format!("{} {}", record.sequence, "x".repeat(300));
        assert!(record.data == wanted.as_bytes(), "{what}: record {} is not what was written", record.sequence);
    }
    journal.commit(record("after")).await.unwrap_or_else(|error| panic!("{what}: {error}"));
    let newest = status(&journal).newest_sequence;
    let again = read(&journal, newest - 1);
    assert_eq!(texts(&again), ["after"], "{what}");
    assert!(newest > records, "{what}: sequence {newest} was used before");
    let report = journal.journal_status();
    let lost = records - 10 - kept.iter().filter(|record| record.sequence > 10).count() as u64;
    let reported = report.set_aside + report.damaged_values + report.lost_commits + status(&journal).lost;
    assert!(lost == 0 || reported > 0, "{what}: {lost} lost, and nothing reported");
    drop(journal);
    assert_eq!(texts(&read(&open(dir), newest - 1)), ["after"], "{what}, opened again");
    lost
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn damage_never_stops_the_agent() {
    let whole = TempDir::new().unwrap();
    filled(whole.path(), 1000).await;
    let segment = segments(whole.path()).pop().unwrap();
    let mut files: Vec<PathBuf> = fs::read_dir(&segment).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.is_file());
    files.push(whole.path().join("mark"));
    files.push(whole.path().join("format"));
    let seed = fastrand::u64(..);
    fastrand::seed(seed);
    for round in 0..60 {
        let dir = TempDir::new().unwrap();
        copy(whole.path(), dir.path());
        let file = &files[fastrand::usize(..files.len())];
        let file = dir.path().join(file.strip_prefix(whole.path()).unwrap());
        let mut bytes = fs::read(&file).unwrap();
        let damage = match round % 4 {
            0 => {
                let at = fastrand::usize(..bytes.len());
                bytes[at] ^= 1 << fastrand::u8(..8);
                format!("bit flipped at {at}")
            }
            1 => {
                let at = fastrand::usize(..bytes.len());
                bytes.truncate(at);
                format!("cut at {at}")
            }
            2 => {
                let at = fastrand::usize(..bytes.len());
                let end = bytes.len().min(at + 4096);
                bytes[at..end].fill(0);
                format!("a page zeroed at {at}")
            }
            _ => {
                bytes.fill_with(|| fastrand::u8(..));
                "all of it rubbish".to_owned()
            }
        };
        fs::write(&file, bytes).unwrap();
        let what = format!("seed {seed}, round {round}, {}: {damage}", file.file_name().unwrap().display());
        goes_on(dir.path(), 1000, &what).await;
    }
}

#[tokio::test]
async fn what_can_be_read_of_a_damaged_segment_is_brought_out() {
    let dir = TempDir::new().unwrap();
    filled(dir.path(), 1000).await;
    let segment = segments(dir.path()).pop().unwrap();
    let mut bytes = fs::read(segment.join("log")).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(segment.join("log"), bytes).unwrap();
    let journal = open(dir.path());
    let kept = read(&journal, 0).len();
    assert!((958..=990).contains(&kept), "{kept}: all but the acknowledged ones, and the block with the damage");
    assert_eq!(get(&journal, "latest").as_deref(), Some("1000"));
    assert_eq!(journal.journal_status().set_aside, 1);
    assert!(
        fs::read_dir(dir.path()).unwrap().any(|entry| entry.unwrap().path().to_string_lossy().contains(".broken-"))
    );
}
