//! The recording that is replayed: the TEST part of BasicMotions, sample by sample as four watches sent it.
//!
//! The data set holds its cases by activity. They are replayed in another order, so that those who wear the watches go on to something else
//! after each window, and any part of the replay has some of each.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};

const CSV: &[u8] = include_bytes!("../../../../functions/examples/motion/data/basic-motions-test.csv.zst");

/// Samples of one window, and of one case of the data set.
pub(super) const WINDOW: u64 = 100;

/// One sample of one watch.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) device: String,
    pub(super) seq: u64,
    /// What the person really did; never sent.
    pub(super) activity: String,
    /// `ax ay az gx gy gz`.
    pub(super) axes: [f32; 6],
}

/// All samples, in the order in which the watches sent them.
#[derive(Debug)]
pub(super) struct Recording {
    pub(super) samples: Vec<Sample>,
}

/// One window of one watch: its label and its samples, as the model wants them.
#[derive(Debug, Default)]
pub(super) struct Case {
    pub(super) activity: String,
    pub(super) samples: Vec<[f32; 6]>,
}

impl Recording {
    /// Reads what is built in.
    pub(super) fn load() -> anyhow::Result<Self> {
        let csv = String::from_utf8(zstd::decode_all(CSV)?)?;
        let mut samples = csv.lines().skip(1).map(sample).collect::<anyhow::Result<Vec<_>>>()?;
        ensure!(!samples.is_empty(), "the recording is empty");
        let windows = samples.iter().map(|sample| sample.seq / WINDOW + 1).max().unwrap_or(1);
        // Window n of the replay is window 7 n of the recording; 3 undoes 7, modulo its ten windows.
        for sample in &mut samples {
            sample.seq = sample.seq / WINDOW * 3 % windows * WINDOW + sample.seq % WINDOW;
        }
        samples.sort_by_key(|sample| sample.seq);
        Ok(Self { samples })
    }

    /// The samples by device and window.
    pub(super) fn cases(&self) -> BTreeMap<(String, u64), Case> {
        let mut cases: BTreeMap<_, Case> = BTreeMap::new();
        for sample in &self.samples {
            let case = cases.entry((sample.device.clone(), sample.seq / WINDOW)).or_default();
            case.activity.clone_from(&sample.activity);
            case.samples.push(sample.axes);
        }
        cases
    }

    /// How many watches there are.
    pub(super) fn devices(&self) -> u32 {
        let devices: std::collections::BTreeSet<_> = self.samples.iter().map(|sample| &sample.device).collect();
        u32::try_from(devices.len()).unwrap_or(u32::MAX)
    }

    /// How many samples each watch sends in one round.
    pub(super) fn samples_per_device(&self) -> u64 {
        self.samples.iter().map(|sample| sample.seq + 1).max().unwrap_or(0)
    }
}

fn sample(line: &str) -> anyhow::Result<Sample> {
    let mut fields = line.split(',');
    let mut next = || fields.next().with_context(|| format!("too few fields in `{line}`"));
    let (device, seq, activity) = (next()?.to_owned(), next()?.parse()?, next()?.to_owned());
    let mut axes = [0.0; 6];
    for axis in &mut axes {
        *axis = next()?.parse()?;
    }
    Ok(Sample { device, seq, activity, axes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recording_is_forty_cases_of_a_hundred_samples() {
        let cases = Recording::load().unwrap().cases();
        assert_eq!(cases.len(), 40);
        assert!(cases.values().all(|case| case.samples.len() == 100));
        let activities: std::collections::BTreeSet<_> = cases.values().map(|case| &case.activity).collect();
        assert_eq!(activities.len(), 4);
    }

    #[test]
    fn each_watch_is_worn_by_somebody_who_does_something_else_soon() {
        let cases = Recording::load().unwrap().cases();
        let of = |window: u64| &cases[&("watch-1".to_owned(), window)].activity;
        let changes = (1..10).filter(|window| of(*window) != of(window - 1)).count();
        assert!(changes >= 7, "{changes}");
    }
}
