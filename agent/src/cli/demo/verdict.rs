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

/// What the model says of each window when it is run right here, and what the person really did.
#[derive(Debug)]
pub(super) struct Expected {
    windows: BTreeMap<WindowId, (String, String)>,
    windows_per_round: u64,
}

/// Runs the model on every case of the recording, in this process, with the engine that the agent uses.
pub(super) async fn in_process(recording: &Recording, file: PathBuf) -> anyhow::Result<Expected> {
    let models = Arc::new(Models::open(&InferenceConfig::default(), Arc::new(Limits::default()))?);
    let name = ModelName::parse("motion")?;
    models.load(&ModelConfig { name: name.clone(), file, tests: None, concurrency: None }).await?;
    let model = models.get(name.as_str()).context("the model that was just loaded is not there")?;
    let mut windows = BTreeMap::new();
    for ((device, window), case) in recording.cases() {
        let data: Vec<u8> = case.samples.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
        let input = Tensor { dimensions: vec![1, 100, 6], kind: TensorType::F32, data: Bytes::from(data) };
        let outputs = model.run(vec![("window".to_owned(), input)]).await?;
        let scores = outputs.into_iter().find(|(name, _)| name == "probabilities");
        let (_, scores) = scores.context("the model has no output `probabilities`")?;
        windows.insert((device, window), (activity(&scores.data)?.to_owned(), case.activity));
    }
    let per_device = recording.samples_per_device() / WINDOW;
    Ok(Expected { windows, windows_per_round: per_device })
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
    accuracy_in_process: f64,
    problems: Vec<String>,
}

impl Verdict {
    /// Compares the books with what must be in them after `rounds` rounds.
    pub(super) fn of(ledger: &Ledger, expected: &Expected, standing: &Standing, plan: Plan, rounds: u64) -> Self {
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
        let (mut agree, mut right, mut right_in_process, mut windows) = (0, 0, 0, 0);
        for round in 0..rounds {
            for ((device, window), (in_process, label)) in &expected.windows {
                let window = window + round * expected.windows_per_round;
                right_in_process += usize::from(in_process == label);
                match books
                    .activities
                    .get(&(device.clone(), window))
                    .map(|said| said.iter().collect::<Vec<_>>())
                    .as_deref()
                {
                    Some([said]) => {
                        windows += 1;
                        agree += usize::from(*said == in_process);
                        right += usize::from(*said == label);
                    }
                    Some(said) => problems.push(format!("{device} window {window} has several answers: {said:?}")),
                    None => problems.push(format!("{device} window {window} never arrived")),
                }
            }
        }
        let windows_expected = expected.windows.len() * usize::try_from(rounds).unwrap_or(usize::MAX);
        if agree != windows_expected {
            problems.push(format!("{agree} of {windows_expected} windows agree with the model run in-process"));
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
            accuracy_in_process: share(right_in_process),
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
        writeln!(
            f,
            "  accuracy   {:>6.3}  of n = {} windows; {:.3} with the model run in-process, {} answers agree",
            self.accuracy, self.windows, self.accuracy_in_process, self.agree
        )?;
        if self.problems.is_empty() {
            return write!(f, "All accounted for: nothing was lost.");
        }
        for problem in &self.problems {
            writeln!(f, "  problem: {problem}")?;
        }
        write!(f, "Not all is accounted for.")
    }
}
