//! Runs a recording through a version of a function, and finds what comes out differently.
//!
//! # Promises
//! - The same recording and the same version give the same outcomes: time is the recording's, chance is seeded by the event, events run
//!   one after the other, and what the function remembers begins with what it had read when it was recorded.
//! - Nothing leaves: there is no broker, no stream and no other function to be reached.

mod compare;
mod report;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use sha2::{Digest as _, Sha256};

pub(crate) use self::report::{Difference, Latency, Report, Side};
use crate::clock::Clock;
use crate::function::FunctionSpec;
use crate::inference::Models;
use crate::invocation::{Effects, KeyValueWrite};
use crate::journal::JournalError;
use crate::metrics::Histogram;
use crate::name::FunctionName;
use crate::recording::line::CameLine;
use crate::recording::read::Found;
use crate::recording::{Came, Recorded, Run};
use crate::runtime::{Chance, Instance};
use crate::throwaway::Throwaway;

/// Bucket and key.
type Place = (String, String);

fn place(value: &KeyValueWrite) -> Place {
    (value.bucket.clone(), value.key.clone())
}

/// A version of a function, in a world of its own.
#[derive(Debug)]
pub(crate) struct Version {
    function: Throwaway,
    clock: Clock,
    chance: Chance,
    /// The instance that serves one event after the other, as on a gateway.
    warm: Option<Instance>,
    /// What each key held last, as far as the recording says.
    recorded: HashMap<Place, Option<Bytes>>,
    /// Keys that it has written.
    written: HashSet<Place>,
    handler: Histogram,
}

impl Version {
    /// Loads the function.
    pub(crate) async fn load(spec: FunctionSpec, models: Arc<Models>) -> anyhow::Result<Self> {
        let (clock, chance) = (Clock::held_at(0), Chance::seeded());
        let function = Throwaway::within(spec, models, clock.clone(), chance.clone()).await?;
        let (warm, recorded, written, handler) = Default::default();
        Ok(Self { function, clock, chance, warm, recorded, written, handler })
    }

    /// Its function.
    pub(crate) fn name(&self) -> &FunctionName {
        &self.function.spec().name
    }

    async fn serve(&mut self, recorded: &Recorded) -> anyhow::Result<Came> {
        let (event, run) = (&recorded.event, recorded.run.as_ref());
        self.clock.set(run.map_or(event.time_ms, |run| run.started_ms));
        let invocation = run.map_or_else(|| Arc::clone(&event.id), |run| Arc::clone(&run.invocation));
        let (attempt, publish_qos) = run.map_or((1, 1), |run| (run.attempt, run.publish_qos));
        self.chance.seed(&format!("{}\n{}\n{attempt}", event.source, event.id));
        if let Some(run) = run {
            self.recall(run).await?;
        }
        let context = self.function.context(event, invocation, attempt, publish_qos);
        let (outcome, effects) = match self.function.serve(&mut self.warm, event, context).await {
            Ok(invoked) => {
                self.handler.observe(invoked.timings.handler);
                (invoked.outcome, invoked.effects)
            }
            Err(outcome) => (outcome, Effects::default()),
        };
        if let Some(run) = run {
            // What this run left behind on the gateway, as far as it was kept there: the next one that reads it says.
            self.recorded.extend(run.came.effects.key_values.iter().map(|write| (place(write), write.value.clone())));
        }
        self.written.extend(effects.key_values.iter().map(place));
        self.keep(effects.key_values.clone()).await?;
        Ok(Came::of(&outcome, &effects))
    }

    /// What it had read when it was recorded it finds again: unless it has written that itself, and nobody else did meanwhile whose run is
    /// not in the recording.
    async fn recall(&mut self, run: &Run) -> anyhow::Result<()> {
        let mut writes = Vec::new();
        for read in &run.reads {
            let is_news = match self.recorded.insert(place(read), read.value.clone()) {
                Some(held) => held != read.value,
                None => read.value.is_some() && !self.written.contains(&place(read)),
            };
            writes.extend(is_news.then(|| read.clone()));
        }
        self.keep(writes).await
    }

    async fn keep(&self, writes: Vec<KeyValueWrite>) -> anyhow::Result<()> {
        if writes.is_empty() {
            return Ok(());
        }
        match self.function.remember(writes).await {
            // As on a gateway, which keeps nothing of such a run.
            Err(JournalError::KeyValuesFull { .. } | JournalError::KeyValueTooLarge { .. }) => Ok(()),
            kept => kept.context("what the function remembers cannot be kept in the temporary folder"),
        }
    }

    fn side(&self, versions: BTreeSet<String>) -> Side {
        Side { versions, latency: Latency::of(&self.handler) }
    }

    fn version(&self) -> BTreeSet<String> {
        BTreeSet::from([self.function.spec().version.to_string()])
    }
}

/// A replay under way.
#[derive(Debug)]
pub(crate) struct Replay {
    /// Whose events run.
    function: FunctionName,
    new: Version,
    /// None when it is the recording that `new` is compared with.
    old: Option<Version>,
    shown_max: usize,
    recorded: Histogram,
    recorded_versions: BTreeSet<String>,
    digest: Sha256,
    report: Report,
}

impl Replay {
    /// Of the events of `function`, through `new` and, unless it is the recording that counts, `old`. The report has `shown_max`
    /// differences whole.
    pub(crate) fn new(function: FunctionName, new: Version, old: Option<Version>, shown_max: usize) -> Self {
        let report = Report::of(function.clone());
        Self {
            function,
            new,
            old,
            shown_max,
            recorded: Histogram::default(),
            recorded_versions: BTreeSet::new(),
            digest: Sha256::new(),
            report,
        }
    }

    /// Runs one event, which stands in line `line`.
    ///
    /// # Errors
    /// When this machine is in the way; how the function fails is no error.
    pub(crate) async fn run(&mut self, line: u64, recorded: Recorded) -> anyhow::Result<()> {
        if let Some(run) = recorded.run.as_ref().filter(|run| run.function != self.function) {
            *self.report.of_other_functions.entry(run.function.clone()).or_default() += 1;
            return Ok(());
        }
        let report = &mut self.report;
        report.events += 1;
        report.first_ms.get_or_insert(recorded.event.time_ms);
        report.last_ms = Some(recorded.event.time_ms);
        let after = self.new.serve(&recorded).await?;
        self.digest.update(serde_json::to_vec(&CameLine::of(&after))?);
        let before = match (&mut self.old, &recorded.run) {
            (Some(old), _) => Some(old.serve(&recorded).await?),
            (None, Some(run)) => {
                self.recorded.observe(run.handler);
                if !self.recorded_versions.contains(&*run.version) {
                    self.recorded_versions.insert(run.version.to_string());
                }
                Some(run.came.clone())
            }
            (None, None) => None,
        };
        let Some(before) = before else {
            self.report.not_compared += 1;
            return Ok(());
        };
        let differs = compare::differences(&before, &after);
        if differs.is_empty() {
            self.report.same += 1;
            return Ok(());
        }
        self.report.different += 1;
        for what in &differs {
            *self.report.differences.entry(*what).or_default() += 1;
        }
        if before.ended != after.ended {
            let ends = (before.ended.to_string(), after.ended.to_string());
            *self.report.endings.entry(ends).or_default() += 1;
        }
        if self.report.shown.len() < self.shown_max {
            let (number, event) = (self.report.events, recorded.event);
            self.report.shown.push(Difference { number, line, event, differs, before, after });
        }
        Ok(())
    }

    /// What came of it; `found` is what the reader says.
    pub(crate) fn end(self, found: &Found) -> Report {
        let mut report = self.report;
        report.before = match &self.old {
            Some(old) => old.side(old.version()),
            None => Side { versions: self.recorded_versions, latency: Latency::of(&self.recorded) },
        };
        report.is_against_recording = self.old.is_none();
        report.after = self.new.side(self.new.version());
        report.missed = found.missed;
        report.damaged = found.damaged;
        report.first_damage.clone_from(&found.first_damage);
        report.digest = hex::encode(self.digest.finalize());
        report
    }
}
