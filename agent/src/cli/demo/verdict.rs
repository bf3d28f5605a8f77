//! What the round comes to: every sample and record accounted for, and the model's answers beside what it says in-process.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use serde::Serialize;

use super::ledger::{Ledger, WindowId};
use super::mishap::{Plan, fails_commits};
use super::recording::{Recording, WINDOW};
use super::view::Standing;
use crate::config::{InferenceConfig, ModelConfig};
use crate::inference::{Models, Tensor, TensorType};
use crate::limits::Limits;
use crate::name::ModelName;

/// The model's classes, in the order of its outputs.
const ACTIVITIES: [&str; 4] = ["Standing", "Running", "Walking", "Badminton"];

/// What the models say of each window when they are run right here, and what the person really did.
#[derive(Debug)]
pub(super) struct Expected {
    windows: BTreeMap<WindowId, Case>,
    windows_per_round: u64,
}

#[derive(Debug)]
struct Case {
    /// By each model, in their order.
    said: Vec<String>,
    label: String,
    /// How many samples are sent in a round before the last one of the window.
    last_sample: usize,
}

/// Which model is asked: the first one, until a better one is there.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reign {
    /// Samples that were sent before people began to deploy the better one.
    pub(super) better_from: Option<usize>,
    /// Samples that were sent before it was there for sure.
    pub(super) better_since: Option<usize>,
}

/// How many windows the accuracy in the live view is of.
const LATE: usize = 12;

impl Expected {
    /// Runs the models on every case of the recording, in this process, with the engine that the agent uses.
    pub(super) async fn of(recording: &Recording, files: &[PathBuf]) -> anyhow::Result<Self> {
        let ends = recording.samples.iter().enumerate();
        let ends: BTreeMap<WindowId, usize> =
            ends.map(|(n, sample)| ((sample.device.clone(), sample.seq / WINDOW), n)).collect();
        let mut windows: BTreeMap<WindowId, Case> = BTreeMap::new();
        for file in files {
            let models = Arc::new(Models::open(&InferenceConfig::default(), Arc::new(Limits::default()))?);
            let name = ModelName::parse("motion")?;
            models
                .load(&ModelConfig { name: name.clone(), file: file.clone(), tests: None, concurrency: None })
                .await?;
            let model = models.get(name.as_str()).context("the model that was just loaded is not there")?;
            for (id, case) in recording.cases() {
                let data: Vec<u8> = case.samples.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
                let input = Tensor { dimensions: vec![1, 100, 6], kind: TensorType::F32, data: Bytes::from(data) };
                let outputs = model.run(vec![("window".to_owned(), input)]).await?;
                let scores = outputs.into_iter().find(|(name, _)| name == "probabilities");
                let (_, scores) = scores.context("the model has no output `probabilities`")?;
                let last_sample = ends.get(&id).copied().unwrap_or_default();
                let known = || Case { said: Vec::new(), label: case.activity.clone(), last_sample };
                windows.entry(id).or_insert_with(known).said.push(activity(&scores.data)?.to_owned());
            }
        }
        Ok(Self { windows, windows_per_round: recording.samples_per_device() / WINDOW })
    }

    /// Of the windows that arrived last: the share that was recognised, and how many they are.
    pub(super) fn accuracy_of_late(&self, ledger: &Ledger) -> Option<(f64, usize)> {
        let books = ledger.books();
        let late: Vec<&WindowId> = books.order.iter().rev().take(LATE).collect();
        let right = |id: &WindowId| {
            let case = self.windows.get(&(id.0.clone(), id.1 % self.windows_per_round));
            case.is_some_and(|case| books.activities.get(id).is_some_and(|said| said.contains(&case.label)))
        };
        let count = late.iter().filter(|id| right(id)).count();
        (!late.is_empty()).then(|| (count as f64 / late.len() as f64, late.len()))
    }

    /// The models that may have been asked about a window of round `round`, by their places.
    fn asked(&self, case: &Case, round: u64, reign: Reign) -> std::ops::RangeInclusive<usize> {
        let last = case.said.len().saturating_sub(1);
        let sent = |before: Option<usize>| before.is_some_and(|before| round > 0 || case.last_sample >= before);
        if sent(reign.better_since) {
            last..=last
        } else if reign.better_from.is_some() {
            // What was sent shortly before may have been handled after.
            0..=last
        } else {
            0..=0
        }
    }
}

fn activity(scores: &[u8]) -> anyhow::Result<&'static str> {
    let scores = scores.chunks_exact(4).map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    let best = scores.enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b)).map(|(class, _)| class);
    best.and_then(|class| ACTIVITIES.get(class).copied()).context("the model's output is not one score per activity")
}

/// See the module.
#[derive(Debug, Serialize)]
pub(super) struct Verdict {
    sent: usize,
    handled: usize,
    runs: u64,
    /// Records that were committed, by the agent's own account.
    committed: Option<u64>,
    /// Those of commits that failed: no record ever has them.
    unused: u64,
    arrived: usize,
    arrived_again: u64,
    replayed: u64,
    windows: usize,
    windows_expected: usize,
    /// Windows whose record says what the model says in-process.
    agree: usize,
    accuracy: f64,
    /// By model, the first one first.
    models: Vec<OfModel>,
    problems: Vec<String>,
}

/// How well a model did.
#[derive(Clone, Debug, Default, Serialize)]
struct OfModel {
    /// Windows that it was asked about; those that could be either's are the first one's.
    windows: usize,
    accuracy: f64,
    /// Of the same windows, with the model run in-process.
    accuracy_in_process: f64,
}

impl Verdict {
    /// Compares the books with what must be in them after `rounds` rounds.
    pub(super) fn of(
        ledger: &Ledger,
        expected: &Expected,
        reign: Reign,
        standing: &Standing,
        plan: Plan,
        rounds: u64,
    ) -> Self {
        let books = ledger.books();
        let mut problems = books.malformed.clone();
        let lost = books.unhandled();
        if let Some((device, seq)) = lost.first() {
            problems.push(format!("{} samples were never handled, the first is {device} {seq}", lost.len()));
        }
        let Standing { committed, waiting, runs, .. } = *standing;
        let numbers = committed.unwrap_or_default();
        let unused = numbers.saturating_sub(books.arrived.len() as u64);
        let explained = unused == 0 || fails_commits(plan);
        if waiting != Some(0) || numbers < books.arrived.len() as u64 || !explained {
            let number = |n: Option<u64>| n.map_or_else(|| "unknown".to_owned(), |n| n.to_string());
            let (committed, waiting) = (number(committed), number(waiting));
            problems
                .push(format!("records committed: {committed}, arrived: {}, waiting: {waiting}", books.arrived.len()));
        }
        let (mut agree, mut right, mut windows) = (0, 0, 0);
        let mut models: Vec<OfModel> = Vec::new();
        for round in 0..rounds {
            for ((device, window), case) in &expected.windows {
                let asked = expected.asked(case, round, reign);
                let window = window + round * expected.windows_per_round;
                models.resize(case.said.len(), OfModel::default());
                let said = books.activities.get(&(device.clone(), window));
                match said.map(|said| said.iter().collect::<Vec<_>>()).as_deref() {
                    Some([said]) => {
                        windows += 1;
                        agree += usize::from(case.said[asked.clone()].contains(said));
                        right += usize::from(**said == case.label);
                        let model = &mut models[*asked.start()];
                        model.windows += 1;
                        model.accuracy += f64::from(u8::from(**said == case.label));
                        model.accuracy_in_process += f64::from(u8::from(case.said[*asked.start()] == case.label));
                    }
                    Some(said) => problems.push(format!("{device} window {window} has several answers: {said:?}")),
                    None => problems.push(format!("{device} window {window} never arrived")),
                }
            }
        }
        for model in &mut models {
            let windows = model.windows.max(1) as f64;
            model.accuracy /= windows;
            model.accuracy_in_process /= windows;
        }
        let windows_expected = expected.windows.len() * usize::try_from(rounds).unwrap_or(usize::MAX);
        if agree != windows_expected {
            problems.push(format!("{agree} of {windows_expected} windows agree with their model run in-process"));
        }
        let share = |n: usize| n as f64 / windows_expected.max(1) as f64;
        Self {
            sent: books.sent.len(),
            handled: books.handled.len(),
            runs,
            committed: committed.map(|numbers| numbers - unused),
            unused,
            arrived: books.arrived.len(),
            arrived_again: books.repeated_records(),
            replayed: books.replayed,
            windows,
            windows_expected,
            agree,
            accuracy: share(right),
            models,
            problems,
        }
    }

    /// Nothing lost, nothing unexplained, and the model gave the same answers.
    pub(super) fn all_accounted_for(&self) -> bool {
        self.problems.is_empty()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let committed = self.committed.map_or_else(|| "unknown".to_owned(), |records| records.to_string());
        writeln!(f, "  sent       {:>6}  samples, acknowledged by the local broker", self.sent)?;
        writeln!(
            f,
            "  handled    {:>6}  samples, in {} runs of the function: a kill repeats some",
            self.handled, self.runs
        )?;
        let unused = match self.unused {
            0 => String::new(),
            unused => format!("; {unused} further numbers went to commits that the full disk refused"),
        };
        writeln!(f, "  committed  {committed:>6}  records on the gateway's disk{unused}")?;
        writeln!(
            f,
            "  arrived    {:>6}  records at the cloud, {} of them more than once, {} after an outage",
            self.arrived, self.arrived_again, self.replayed
        )?;
        for (n, model) in self.models.iter().enumerate() {
            let which = match (self.models.len(), n) {
                (1, _) => "",
                (_, 0) => " with the first model",
                _ => " since the better one is there",
            };
            writeln!(
                f,
                "  accuracy   {:>6.3}  of n = {} windows{which}; {:.3} with the model run in-process",
                model.accuracy, model.windows, model.accuracy_in_process
            )?;
        }
        if self.problems.is_empty() {
            return write!(f, "All accounted for: nothing was lost.");
        }
        for problem in &self.problems {
            writeln!(f, "  problem: {problem}")?;
        }
        write!(f, "Not all is accounted for.")
    }
}
