//! What was measured, as a table for people and JSON for the rest.

use std::io::Write as _;

use serde_json::{Value, json};

/// What a figure must reach.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    /// At least so many times the reference.
    TimesAtLeast(f64),
    /// At most so many times the reference.
    TimesAtMost(f64),
    /// At most so much more than the reference, in the figure's unit.
    MoreAtMost(f64),
    /// At most so much, in the figure's unit.
    AtMost(f64),
    /// At least so much, in the figure's unit.
    AtLeast(f64),
}

/// One figure, beside its reference of the same run.
#[derive(Debug)]
pub(crate) struct Figure {
    /// As `docs/spec/figures.md` numbers it.
    pub(crate) id: &'static str,
    pub(crate) what: String,
    pub(crate) unit: &'static str,
    /// Ours and, where there is one, the reference's, round by round.
    pub(crate) rounds: Vec<(f64, Option<f64>)>,
    pub(crate) reference: &'static str,
    pub(crate) target: Option<Target>,
}

impl Figure {
    /// A figure without a reference.
    pub(crate) fn alone(id: &'static str, what: impl Into<String>, unit: &'static str, rounds: Vec<f64>) -> Self {
        let rounds = rounds.into_iter().map(|ours| (ours, None)).collect();
        Self { id, what: what.into(), unit, rounds, reference: "", target: None }
    }

    /// A figure beside its reference.
    pub(crate) fn beside(
        id: &'static str,
        what: impl Into<String>,
        unit: &'static str,
        rounds: Vec<(f64, f64)>,
        reference: &'static str,
    ) -> Self {
        let rounds = rounds.into_iter().map(|(ours, theirs)| (ours, Some(theirs))).collect();
        Self { id, what: what.into(), unit, rounds, reference, target: None }
    }

    pub(crate) fn with(self, target: Target) -> Self {
        Self { target: Some(target), ..self }
    }

    fn ours(&self) -> f64 {
        median(self.rounds.iter().map(|(ours, _)| *ours).collect())
    }

    /// Of ours with the reference, each pair of one round, so that a machine that gets slower does not matter.
    fn compared(&self, compare: impl Fn(f64, f64) -> f64) -> Option<f64> {
        let pairs: Option<Vec<_>> =
            self.rounds.iter().map(|(ours, theirs)| theirs.map(|theirs| compare(*ours, theirs))).collect();
        pairs.map(median)
    }

    fn theirs(&self) -> Option<f64> {
        self.compared(|_, theirs| theirs)
    }

    fn times(&self) -> Option<f64> {
        self.compared(|ours, theirs| ours / theirs)
    }

    fn more(&self) -> Option<f64> {
        self.compared(|ours, theirs| ours - theirs)
    }

    /// What the target is about, in words with the target, and whether it is met.
    fn verdict(&self) -> Option<(String, bool)> {
        let (times, more) = (self.times().unwrap_or(f64::NAN), self.more().unwrap_or(f64::NAN));
        Some(match self.target? {
            Target::TimesAtLeast(least) => (format!("{times:.2} × (≥ {least})"), times >= least),
            Target::TimesAtMost(most) => (format!("{times:.2} × (≤ {most})"), times <= most),
            Target::MoreAtMost(most) => (format!("{more:+.3} {} (≤ +{most})", self.unit), more <= most),
            Target::AtMost(most) => (format!("(≤ {most} {})", self.unit), self.ours() <= most),
            Target::AtLeast(least) => (format!("(≥ {least} {})", self.unit), self.ours() >= least),
        })
    }

    /// Whether its target, if it has one, is met.
    pub(crate) fn is_met(&self) -> bool {
        self.verdict().is_none_or(|(_, met)| met)
    }

    fn cells(&self) -> [String; 5] {
        let theirs = self.theirs().map(|theirs| format!("{} {}", number(theirs), self.reference));
        let verdict = self.verdict();
        let told = verdict.as_ref().map(|(told, _)| told.clone());
        let told = told.or_else(|| self.times().map(|times| format!("{times:.2} ×")));
        let met = verdict.map_or("", |(_, met)| if met { "met" } else { "MISSED" });
        [
            format!("{} {}", self.id, self.what),
            format!("{} {}", number(self.ours()), self.unit),
            theirs.unwrap_or_default(),
            told.unwrap_or_default(),
            met.to_owned(),
        ]
    }

    fn json(&self) -> Value {
        let rounds: Vec<_> = self.rounds.iter().map(|(ours, theirs)| json!([ours, theirs])).collect();
        json!({
            "id": self.id, "what": self.what, "unit": self.unit, "tidegate": self.ours(), "reference": self.theirs(),
            "reference_is": self.reference, "times": self.times(), "met": self.verdict().map(|(_, met)| met),
            "rounds": rounds,
        })
    }
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Three digits that say something, or all of a large number.
fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        middle if middle >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Prints the figures, as they are or as JSON with what is known of the machine.
pub(crate) fn print(figures: &[Figure], machine: &str, as_json: bool) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if as_json {
        let figures: Vec<_> = figures.iter().map(Figure::json).collect();
        return writeln!(out, "{}", json!({ "machine": machine, "figures": figures }));
    }
    let rows: Vec<_> = figures.iter().map(Figure::cells).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [0, 1, 2, 3].map(width);
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        writeln!(out, "{}  {}", cells.collect::<Vec<_>>().join("  "), row[4])?;
    }
    writeln!(out, "{machine}")
}
