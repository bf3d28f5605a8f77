//! What came of a replay.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::compare::What;
use crate::event::Event;
use crate::metrics::Histogram;
use crate::name::FunctionName;
use crate::recording::line::{self, CameLine};
use crate::recording::tap::Heard;
use crate::recording::{Came, Recorded};

/// How many events came out the same, and what of the others differs.
#[derive(Debug)]
pub(crate) struct Report {
    /// Whose events ran.
    pub(crate) function: FunctionName,
    /// That ran.
    pub(crate) events: u64,
    pub(crate) same: u64,
    pub(crate) different: u64,
    /// Those of which no outcome is known.
    pub(crate) not_compared: u64,
    /// How many events differ in what; one may differ in several.
    pub(crate) differences: BTreeMap<What, u64>,
    /// How those ended, before and after, that end otherwise now.
    pub(crate) endings: BTreeMap<(String, String), u64>,
    /// Events that did not run.
    pub(crate) of_other_functions: BTreeMap<FunctionName, u64>,
    /// Events that the recorder could not take.
    pub(crate) missed: u64,
    /// Lines that are no event, and the first of them.
    pub(crate) damaged: u64,
    pub(crate) first_damage: Option<(u64, String)>,
    /// Times of the first and the last event.
    pub(crate) first_ms: Option<u64>,
    pub(crate) last_ms: Option<u64>,
    /// Whether `before` is what was recorded, not another version that ran here.
    pub(crate) is_against_recording: bool,
    pub(crate) before: Side,
    pub(crate) after: Side,
    /// SHA-256 of all that came: the same when the same came, on any machine.
    pub(crate) digest: String,
    /// The first differences, whole.
    pub(crate) shown: Vec<Difference>,
}

/// One of the two that are compared.
#[derive(Debug, Default)]
pub(crate) struct Side {
    pub(crate) versions: BTreeSet<String>,
    pub(crate) latency: Latency,
}

/// How long handlers took, in microseconds: upper bounds, an eighth off at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Latency {
    pub(crate) p50_us: Option<u64>,
    pub(crate) p99_us: Option<u64>,
}

/// An event that came out differently.
#[derive(Debug)]
pub(crate) struct Difference {
    /// Among the events that ran, from 1.
    pub(crate) number: u64,
    /// In the file, from 1.
    pub(crate) line: u64,
    pub(crate) event: Arc<Event>,
    pub(crate) differs: Vec<What>,
    pub(crate) before: Came,
    pub(crate) after: Came,
}

impl Latency {
    pub(super) fn of(histogram: &Histogram) -> Self {
        let micros = |q| histogram.quantile(q).map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        Self { p50_us: micros(0.5), p99_us: micros(0.99) }
    }
}

impl Report {
    pub(super) fn of(function: FunctionName) -> Self {
        Self {
            function,
            events: 0,
            same: 0,
            different: 0,
            not_compared: 0,
            differences: BTreeMap::new(),
            endings: BTreeMap::new(),
            of_other_functions: BTreeMap::new(),
            missed: 0,
            damaged: 0,
            first_damage: None,
            first_ms: None,
            last_ms: None,
            is_against_recording: true,
            before: Side::default(),
            after: Side::default(),
            digest: String::new(),
            shown: Vec::new(),
        }
    }

    /// As JSON: all but `latency` is the same each time.
    pub(crate) fn json(&self) -> Value {
        let ending = |((before, after), events): (&(String, String), &u64)| json!({ "before": before, "after": after, "events": events });
        let latency = |Latency { p50_us, p99_us }: Latency| json!({ "p50_us": p50_us, "p99_us": p99_us });
        json!({
            "function": self.function,
            "before": { "recording": self.is_against_recording, "versions": self.before.versions },
            "after": { "versions": self.after.versions },
            "events": self.events,
            "same": self.same,
            "different": self.different,
            "not_compared": self.not_compared,
            "differences": self.differences,
            "endings": self.endings.iter().map(ending).collect::<Vec<_>>(),
            "of_other_functions": self.of_other_functions,
            "missed": self.missed,
            "damaged": self.damaged,
            "first": self.first_ms.map(line::time),
            "last": self.last_ms.map(line::time),
            "digest": self.digest,
            "latency": { "before": latency(self.before.latency), "after": latency(self.after.latency) },
            "shown": self.shown.iter().map(Difference::json).collect::<Vec<_>>(),
        })
    }
}

impl Difference {
    fn json(&self) -> Value {
        let event = Heard::Run(Arc::new(Recorded { event: Arc::clone(&self.event), run: None }));
        let event: Value = line::write(&event).and_then(|line| serde_json::from_str(&line).ok()).unwrap_or_default();
        json!({
            "number": self.number,
            "line": self.line,
            "differs": self.differs,
            "event": event,
            "before": CameLine::of(&self.before),
            "after": CameLine::of(&self.after),
        })
    }
}
