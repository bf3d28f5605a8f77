//! Cuts the power: behind each sync of a run, right before it, and between; and once more while the journal gets over it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;

use crate::disk::{Disk, History};
use crate::image::Image;
use crate::ledger::Ledger;
use crate::workload::{Workload, open};
use crate::{number, runtime};

/// Cuts of one run.
const CUTS_PER_RUN: u64 = 250;
/// Steps of a run, and of the life after a cut.
const STEPS: usize = 60;
const STEPS_AFTER: usize = 6;

/// What is on the disk after a run, how it came there, and what it must still hold after a cut.
struct Run {
    history: History,
    ledger: Ledger,
}

impl Run {
    fn new(disk: &Disk, seed: u64) -> Result<Self, String> {
        disk.insert(&Image::default());
        let mut workload = Workload::new(disk, seed);
        let journal = open(disk.path()).map_err(|error| error.to_string())?;
        runtime().block_on(async {
            let journal = workload.run(journal, STEPS).await?;
            workload.close(journal).await
        })?;
        Ok(Self { history: disk.history(), ledger: workload.ledger })
    }

    /// Cuts it, has the journal go on, cuts that, and checks after each. `seed` draws where, and what is left.
    fn cut(&self, disk: &Disk, seed: u64) -> Result<(), String> {
        let mut rng = Rng::with_seed(seed);
        let syncs = self.history.syncs();
        let moment = match rng.u8(..3) {
            0 => rng.usize(..=self.history.moments()),
            1 => syncs[rng.usize(..syncs.len())],
            _ => syncs[rng.usize(..syncs.len())] - 1,
        };
        disk.insert(&self.history.cut(moment, rng.u64(..)));
        let journal = open(disk.path()).map_err(|error| format!("it does not open: {error}"))?;
        let found = self.ledger.check(&journal, moment)?;
        let mut after = Workload::after(disk, seed, &self.ledger, moment, &found);
        drop(runtime().block_on(after.run(journal, STEPS_AFTER))?);

        let history = disk.history();
        let moment = rng.usize(..=history.moments());
        disk.insert(&history.cut(moment, rng.u64(..)));
        let journal = open(disk.path()).map_err(|error| format!("it does not open after a second cut: {error}"))?;
        after.ledger.check(&journal, moment).map_err(|why| format!("after a second cut: {why}"))?;
        Ok(())
    }
}

/// `TIDEGATE_POWER_CUTS` says how many; `TIDEGATE_SEED` and `TIDEGATE_CUT` do one again.
#[test]
fn a_power_cut_loses_nothing_that_was_acknowledged() {
    let cuts = number("TIDEGATE_POWER_CUTS").unwrap_or(2_000);
    let first = number("TIDEGATE_SEED").unwrap_or(1);
    let only = number("TIDEGATE_CUT");
    let last = if only.is_some() { first } else { first + cuts.div_ceil(CUTS_PER_RUN) - 1 };
    let (done, next, failures) = (AtomicU64::new(0), AtomicU64::new(first), Mutex::new(Vec::new()));
    let work = || {
        let disk = Disk::mount();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > last {
                return;
            }
            let failed = |why: String| failures.lock().unwrap().push(format!("seed {seed}: {why}"));
            let run = match Run::new(&disk, seed) {
                Ok(run) => run,
                Err(why) => return failed(format!("without a cut: {why}")),
            };
            for cut in only.map_or(0..CUTS_PER_RUN, |only| only..only + 1) {
                if let Err(why) = run.cut(&disk, seed << 32 | cut) {
                    let again = format!(
                        "TIDEGATE_SEED={seed} TIDEGATE_CUT={cut} cargo test -p tidegate -p e2e --test disk power_cut"
                    );
                    failed(format!("cut {cut}: {why}\nrerun: {again}"));
                    break;
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| drop([scope.spawn(work), scope.spawn(work)]));
    let failures = failures.into_inner().unwrap();
    println!("{} power cuts survived", done.into_inner());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
