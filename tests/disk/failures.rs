//! Has each call of a run fail once, and sees the journal get over it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use tidegate::journal::{Batch, RecordMeta};

use crate::disk::Disk;
use crate::image::Image;
use crate::ledger::stream;
use crate::live::{Call, Failure};
use crate::workload::{Workload, open};
use crate::{number, runtime};

const STEPS: usize = 24;
/// A run takes a second or two when the journal has to be opened anew twice.
const PATIENCE: Duration = Duration::from_secs(30);
/// Runs at the same time: they mostly wait.
const AT_ONCE: usize = 8;
/// Failures that are tried when not all are.
const CASES: usize = 300;

/// A day of which one call fails. Nothing that was acknowledged may be missing in the end, and the journal works again.
fn run(disk: &Disk, seed: u64) -> Result<Vec<Call>, String> {
    let runtime = runtime();
    let mut workload = Workload::lenient(disk, seed);
    let journal = workload.reopen()?;
    let journal = runtime.block_on(workload.run(journal, STEPS))?;
    disk.heal();
    runtime.block_on(workload.works_again(&journal))?;
    workload.ledger.check(&journal, usize::MAX)?;
    runtime.block_on(workload.close(journal))?;
    let journal = workload.reopen()?;
    workload.ledger.check(&journal, usize::MAX).map_err(|why| format!("opened again: {why}"))?;
    drop(journal);
    // What only looked written is not there after a cut.
    let (history, calls) = (disk.history(), disk.calls());
    disk.insert(&history.cut(history.moments(), seed));
    let journal = open(disk.path()).map_err(|error| format!("it does not open after a cut: {error}"))?;
    workload.ledger.check(&journal, history.moments()).map_err(|why| format!("after a cut: {why}"))?;
    Ok(calls)
}

/// [`run`] on an empty disk, given up when it takes too long. What failed, and what came of it.
fn watched(disk: &Arc<Disk>, seed: u64, fail: Option<(usize, Failure)>) -> (Vec<String>, Result<Vec<Call>, String>) {
    let (done, result) = mpsc::channel();
    disk.insert(&Image::default());
    if let Some((nth, failure)) = fail {
        disk.fail(nth, failure);
    }
    let on = Arc::clone(disk);
    std::thread::spawn(move || {
        // Whoever waited may have given up.
        let _ = done.send(run(&on, seed));
    });
    let result = result.recv_timeout(PATIENCE).unwrap_or_else(|error| match error {
        mpsc::RecvTimeoutError::Timeout => Err("it is stuck".to_owned()),
        mpsc::RecvTimeoutError::Disconnected => Err("it panicked".to_owned()),
    });
    (disk.failed(), result)
}

/// Panics of the journal's threads, which nobody joins while they are needed.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name().is_some_and(|name| name.starts_with("journal")) {
            PANICS.fetch_add(1, Ordering::Relaxed);
        }
        tell(panic);
    }));
}

/// `TIDEGATE_FAILURES=all` has every call fail instead of a part of them; `TIDEGATE_SEED` and `TIDEGATE_CALL` do one again.
#[test]
fn any_call_may_fail_once_and_nothing_is_lost_or_stuck() {
    count_panics();
    let seed = number("TIDEGATE_SEED").unwrap_or(1);
    let all = std::env::var("TIDEGATE_FAILURES").is_ok_and(|which| which == "all");
    let calls = watched(&Arc::new(Disk::mount()), seed, None).1.expect("a run without a failure");
    let kinds = [Failure::Io, Failure::NoSpace, Failure::Short, Failure::NoHandle];
    let mut cases: Vec<(usize, Failure)> = (1..)
        .zip(&calls)
        .flat_map(|(nth, call)| kinds.into_iter().filter(|kind| kind.fits(*call)).map(move |kind| (nth, kind)))
        .collect();
    let whole = cases.len();
    if let Some(call) = number("TIDEGATE_CALL") {
        cases.retain(|(nth, _)| *nth as u64 == call);
    } else if !all {
        Rng::with_seed(seed).shuffle(&mut cases);
        cases.truncate(CASES);
    }
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        let mut disk = Arc::new(Disk::mount());
        while let Some((nth, failure)) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (failed, result) = watched(&disk, seed, Some((*nth, *failure)));
            if let Err(why) = result {
                let again = format!(
                    "TIDEGATE_SEED={seed} TIDEGATE_CALL={nth} cargo test -p tidegate -p e2e --test disk any_call"
                );
                failures.lock().unwrap().push(format!("call {nth}, {}: {why}\nrerun: {again}", failed.join(", ")));
                // Somebody may still be at work on the old one.
                disk = Arc::new(Disk::mount());
            }
        }
    };
    std::thread::scope(|scope| (0..AT_ONCE).for_each(|_| drop(scope.spawn(work))));
    let failures = failures.into_inner().unwrap();
    println!("{} of {whole} failures of {} calls survived", cases.len() - failures.len(), calls.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_eq!(PANICS.load(Ordering::Relaxed), 0, "threads of the journal panicked");
}

/// Whoever is to bring an event back from disk would otherwise take it for lost, while the batch that ended it has failed.
#[test]
fn what_a_failed_batch_was_done_with_is_never_taken_for_gone() {
    let disk = Disk::mount();
    disk.insert(&Image::default());
    let journal = open(disk.path()).unwrap();
    let name = stream(0);
    let append = || (name.clone(), Bytes::from_static(b"1"), RecordMeta::default());
    runtime().block_on(async {
        let kept = journal.commit(Batch { records: vec![append()], ..Batch::default() }).await.unwrap().sequences[0];
        disk.set_read_only();
        let batch = Batch { records: vec![append()], done: vec![(name.clone(), kept)], ..Batch::default() };
        journal.commit(batch).await.unwrap_err();
        for _ in 0..60 {
            assert!(!matches!(journal.read_one(&name, kept), Ok(None)), "it is gone");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        disk.heal();
        let there = async {
            while journal.read_one(&name, kept).is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            journal.read_one(&name, kept).unwrap()
        };
        assert!(tokio::time::timeout(PATIENCE, there).await.unwrap().is_some());
    });
}

/// What is wrong with a disk for a while.
fn check(what: &str, ail: impl FnOnce(&Disk), expected: Option<&str>) {
    let disk = Disk::mount();
    disk.insert(&Image::default());
    let mut workload = Workload::lenient(&disk, 1);
    let journal = runtime().block_on(workload.run(open(disk.path()).unwrap(), 10)).unwrap();
    ail(&disk);
    let refused = runtime().block_on(workload.try_commit(&journal)).err().map(|error| error.to_string());
    match (refused, expected) {
        (None, None) => {}
        (Some(refused), Some(expected)) if refused.contains(expected) => {}
        (refused, _) => panic!("{what}: {refused:?}"),
    }
    disk.heal();
    runtime().block_on(workload.works_again(&journal)).unwrap_or_else(|why| panic!("{what}: {why}"));
    workload.ledger.check(&journal, usize::MAX).unwrap_or_else(|why| panic!("{what}: {why}"));
}

#[test]
fn a_disk_that_takes_nothing_for_a_while_is_said_and_got_over() {
    check("full", Disk::fill_up, Some("No space left on device"));
    check("read-only", Disk::set_read_only, Some("Read-only file system"));
    check("slow", |disk| disk.set_delay(Duration::from_millis(700)), None);
}
