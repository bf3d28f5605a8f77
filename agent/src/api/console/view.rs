//! What pages show, in the words and shapes that their templates need. No I/O.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::rates::{Key, Rates};
use crate::api::status::{FunctionStatus, Latency, Status, StreamStatus};
use crate::readable::{duration, micros, size, time, time_of_day};
use crate::telemetry::{LogRecord, RecentLatency, RecentRun};

/// What a cell says when there is nothing to say.
const NOTHING: &str = "–";

/// The box that a sparkline is drawn in.
const SPARK: (f64, f64) = (120.0, 24.0);

/// All counters of which the console shows a rate.
pub(super) fn counts(status: &Status) -> BTreeMap<Key, u64> {
    let mut counts = BTreeMap::new();
    let mut count = |kind: &'static str, name: String, n: u64| counts.insert((kind, name), n);
    for function in &status.functions {
        count("functions", function.name.to_string(), function.numbers.received);
    }
    count("all", String::new(), status.functions.iter().map(|function| function.numbers.received).sum());
    for broker in &status.brokers {
        count("received", broker.name.to_string(), broker.received);
        count("published", broker.name.to_string(), broker.published);
    }
    for source in &status.sources {
        count("sources", source.name.to_string(), source.events);
    }
    for stream in &status.streams {
        count("streams", stream.name.to_string(), stream.newest_sequence);
    }
    for model in &status.models {
        count("models", model.name.to_string(), model.run.count);
    }
    counts
}

/// `12/s`.
pub(super) fn rate(rate: Option<f64>) -> String {
    match rate {
        None => NOTHING.to_owned(),
        Some(rate) if rate < 0.05 => "0/s".to_owned(),
        Some(rate) if rate < 10.0 => format!("{rate:.1}/s"),
        Some(rate) => format!("{rate:.0}/s"),
    }
}

/// A line through `points`, highest at the top, as the path of an SVG; empty when there is none to draw.
pub(super) fn spark(points: &[f64]) -> String {
    let most = points.iter().copied().fold(0.0, f64::max);
    if points.len() < 2 || most <= 0.0 {
        return String::new();
    }
    #[expect(clippy::cast_precision_loss, reason = "a minute of looks")]
    let step = SPARK.0 / (points.len() - 1) as f64;
    let (mut path, mut x) = (String::new(), 0.0);
    for point in points {
        let y = 1.0 + (SPARK.1 - 2.0) * (1.0 - point / most);
        let _ = write!(path, "{}{x:.1} {y:.1}", if path.is_empty() { 'M' } else { 'L' });
        x += step;
    }
    path
}

/// A number that stands out.
#[derive(Debug)]
pub(super) struct Figure {
    pub(super) name: &'static str,
    pub(super) value: String,
    pub(super) note: String,
    pub(super) spark: String,
    pub(super) is_bad: bool,
}

/// A number with where it came from.
fn figure(name: &'static str, value: String, note: String) -> Figure {
    Figure { name, value, note, spark: String::new(), is_bad: false }
}

/// What is worth a look first.
pub(super) fn figures(status: &Status, rates: &Rates) -> Vec<Figure> {
    let sum = |of: fn(&FunctionStatus) -> u64| status.functions.iter().map(of).sum::<u64>();
    let all = ("all", String::new());
    let events = figure("Events", rate(rates.rate(&all)), format!("{} since the start", sum(|f| f.numbers.received)));
    let (busy, warm) = (sum(|f| f.busy.into()), sum(|f| f.idle.into()));
    let (queued, parked) = (sum(|f| f.queued as u64), sum(|f| f.parked as u64));
    let letters = letters(status);
    let backlog: u64 = status.streams.iter().filter(|stream| !is_letters(stream)).map(|stream| stream.records).sum();
    vec![
        Figure { spark: spark(&rates.history(&all)), ..events },
        figure("Instances", format!("{busy} busy"), format!("{warm} warm")),
        figure("Waiting", (queued + parked).to_string(), format!("{parked} of them on disk")),
        figure("In streams", backlog.to_string(), "records on disk".to_owned()),
        Figure { is_bad: letters > 0, ..figure("Dead letters", letters.to_string(), "given up on".to_owned()) },
    ]
}

fn is_letters(stream: &StreamStatus) -> bool {
    stream.name.as_str() == crate::journal::DEAD_LETTERS
}

/// How many dead letters there are.
fn letters(status: &Status) -> u64 {
    status.streams.iter().filter(|stream| is_letters(stream)).map(|stream| stream.records).sum()
}

/// One function in the list.
#[derive(Debug)]
pub(super) struct FunctionRow {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) busy: u32,
    pub(super) warm: u32,
    pub(super) rate: String,
    pub(super) spark: String,
    pub(super) p50: String,
    pub(super) p99: String,
    pub(super) waiting: usize,
    pub(super) failed: u64,
    pub(super) dropped: u64,
    pub(super) triggers: Vec<String>,
}

impl FunctionRow {
    pub(super) fn of(function: &FunctionStatus, recent: &RecentLatency, rates: &Rates) -> Self {
        let key = ("functions", function.name.to_string());
        let (p50, p99) = latency(&Latency::from(&recent.handler));
        Self {
            version: function.version.clone(),
            busy: function.busy,
            warm: function.idle,
            rate: rate(rates.rate(&key)),
            spark: spark(&rates.history(&key)),
            p50,
            p99,
            waiting: function.queued + function.parked,
            failed: failed(function),
            dropped: function.numbers.dropped,
            triggers: function.triggers.clone(),
            name: key.1,
        }
    }
}

/// Runs that did not succeed.
fn failed(function: &FunctionStatus) -> u64 {
    function.numbers.invocations.iter().filter(|(outcome, _)| *outcome != "succeeded").map(|(_, n)| n).sum()
}

/// The median, and what all but one in a hundred stay below.
pub(super) fn latency(latency: &Latency) -> (String, String) {
    let text = |us: Option<u64>| us.filter(|_| latency.count > 0).map_or_else(|| NOTHING.to_owned(), micros);
    (text(latency.p50_us), text(latency.p99_us))
}

/// What events come by beside function URLs and calls: a broker or a source.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) name: String,
    pub(super) what: String,
    pub(super) coming: String,
    pub(super) going: String,
    pub(super) state: String,
    pub(super) is_bad: bool,
}

/// Brokers, then sources.
pub(super) fn origins(status: &Status, rates: &Rates) -> Vec<Origin> {
    let brokers = status.brokers.iter().map(|broker| {
        let name = broker.name.to_string();
        let state = match (broker.connected, &broker.last_error) {
            (true, _) => "connected".to_owned(),
            (false, Some(error)) => format!("away: {error}"),
            (false, None) => "connecting".to_owned(),
        };
        Origin {
            what: broker.url.clone(),
            coming: rate(rates.rate(&("received", name.clone()))),
            going: rate(rates.rate(&("published", name.clone()))),
            state,
            is_bad: !broker.connected,
            name,
        }
    });
    let sources = status.sources.iter().map(|source| {
        let name = source.name.to_string();
        Origin {
            what: source.kind.clone(),
            coming: rate(rates.rate(&("sources", name.clone()))),
            going: NOTHING.to_owned(),
            state: source.trouble.clone().unwrap_or_else(|| "well".to_owned()),
            is_bad: source.trouble.is_some(),
            name,
        }
    });
    brokers.chain(sources).collect()
}

/// One stream in the list.
#[derive(Debug)]
pub(super) struct StreamRow {
    pub(super) name: String,
    pub(super) records: u64,
    pub(super) bytes: String,
    pub(super) budget: String,
    /// Of its budget.
    pub(super) percent: u64,
    pub(super) age: String,
    pub(super) rate: String,
    pub(super) lost: u64,
    /// Where it drains to, and how that goes.
    pub(super) uplink: Option<String>,
    pub(super) is_bad: bool,
}

impl StreamRow {
    pub(super) fn of(stream: &StreamStatus, rates: &Rates) -> Self {
        let name = stream.name.to_string();
        let age = stream.age_ms.map(Duration::from_millis);
        let draining = stream.draining.as_ref();
        Self {
            records: stream.records,
            bytes: size(stream.bytes),
            budget: size(stream.bytes_max),
            percent: (stream.bytes.saturating_mul(100)).checked_div(stream.bytes_max).unwrap_or(0).min(100),
            age: age.map_or_else(|| NOTHING.to_owned(), duration),
            rate: rate(rates.rate(&("streams", name.clone()))),
            lost: stream.dropped_by_age + stream.dropped_by_bytes + stream.dropped_by_buffer + stream.lost,
            uplink: stream.uplink.as_ref().map(|uplink| match draining {
                Some(draining) => format!("{uplink} · {draining}"),
                None => uplink.clone(),
            }),
            is_bad: draining.is_some_and(|uplink| uplink.last_error.is_some()),
            name,
        }
    }
}

/// One model in the list.
#[derive(Debug)]
pub(super) struct ModelRow {
    pub(super) name: String,
    pub(super) engine: String,
    pub(super) rate: String,
    pub(super) runs: u64,
    pub(super) p50: String,
    pub(super) p99: String,
}

/// The models.
pub(super) fn models(status: &Status, rates: &Rates) -> Vec<ModelRow> {
    let rows = status.models.iter().map(|model| {
        let (p50, p99) = latency(&model.run);
        let name = model.name.to_string();
        let rate = rate(rates.rate(&("models", name.clone())));
        ModelRow { engine: model.engine.clone(), rate, runs: model.run.count, p50, p99, name }
    });
    rows.collect()
}

/// How long a part of an event's way takes.
#[derive(Debug)]
pub(super) struct Phase {
    pub(super) name: &'static str,
    pub(super) p50: String,
    pub(super) p99: String,
}

/// The phases of a function's runs.
pub(super) fn phases(recent: &RecentLatency) -> [Phase; 3] {
    [("queue", &recent.queue), ("handler", &recent.handler), ("commit", &recent.commit)].map(|(name, of)| {
        let (p50, p99) = latency(&Latency::from(of));
        Phase { name, p50, p99 }
    })
}

/// One run in a list.
#[derive(Debug)]
pub(super) struct RunRow {
    pub(super) function: String,
    pub(super) invocation: String,
    pub(super) time: String,
    pub(super) what: String,
    pub(super) took: String,
    pub(super) outcome: String,
    pub(super) reason: String,
    pub(super) is_bad: bool,
}

impl RunRow {
    pub(super) fn of(function: &str, run: &RecentRun) -> Self {
        Self {
            function: function.to_owned(),
            invocation: run.invocation.clone(),
            time: time_of_day(run.started_ms),
            what: run.event_subject.clone().unwrap_or_else(|| run.event_source.clone()),
            took: micros(run.total_us()),
            outcome: run.outcome.clone(),
            reason: run.reason.clone().unwrap_or_default(),
            is_bad: run.reason.is_some(),
        }
    }
}

/// A part of a bar, in hundredths of its width.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bar {
    pub(super) name: &'static str,
    pub(super) from: String,
    pub(super) width: String,
    pub(super) took: String,
}

/// One run as the rows of a waterfall.
#[derive(Debug)]
pub(super) struct Waterfall {
    pub(super) function: String,
    pub(super) version: String,
    pub(super) attempt: u32,
    /// How much later than the first it was queued; none when at once.
    pub(super) after: Option<String>,
    pub(super) took: String,
    pub(super) outcome: String,
    pub(super) reason: String,
    pub(super) is_bad: bool,
    pub(super) bars: Vec<Bar>,
}

impl Waterfall {
    /// `began_ms` is when the first run of the event was queued.
    pub(super) fn of(function: &str, run: &RecentRun, began_ms: u64) -> Self {
        Self {
            function: function.to_owned(),
            version: run.version.clone(),
            attempt: run.attempt,
            after: Some(later_ms(run, began_ms)).filter(|ms| *ms > 0).map(|ms| micros(ms * 1_000)),
            took: micros(run.total_us()),
            outcome: run.outcome.clone(),
            reason: run.reason.clone().unwrap_or_default(),
            is_bad: run.reason.is_some(),
            bars: bars(run),
        }
    }
}

/// How much later than `began_ms` a run was queued. Times of day are known to the millisecond: one between two runs is none.
pub(super) fn later_ms(run: &RecentRun, began_ms: u64) -> u64 {
    let later = run.started_ms.saturating_sub(began_ms);
    if later > 1 { later } else { 0 }
}

/// Where the time of a run went, part by part. Of inference only the sum is measured: it is drawn from the handler's start.
fn bars(run: &RecentRun) -> Vec<Bar> {
    let cold = run.cold_start_us.unwrap_or(0);
    let handler = run.queue_us + cold;
    let parts = [
        ("queue", 0, Some(run.queue_us)),
        ("cold start", run.queue_us, run.cold_start_us),
        ("handler", handler, Some(run.handler_us)),
        ("inference", handler, Some(run.inference_us).filter(|us| *us > 0)),
        ("commit", handler + run.handler_us, run.commit_us),
    ];
    #[expect(clippy::cast_precision_loss, reason = "drawn in a few hundred pixels")]
    let share = |us: u64| us as f64 * 100.0 / run.total_us().max(1) as f64;
    let bar = |(name, from, took): (_, u64, Option<u64>)| {
        let took = took?;
        let width = format!("{:.2}", share(took).max(0.3));
        Some(Bar { name, from: format!("{:.2}", share(from).min(99.7)), width, took: micros(took) })
    };
    parts.into_iter().filter_map(bar).collect()
}

/// One dead letter in the list.
#[derive(Debug)]
pub(super) struct LetterRow {
    pub(super) id: u64,
    pub(super) time: String,
    pub(super) of: String,
    pub(super) topic: String,
    pub(super) attempts: u32,
    pub(super) outcome: String,
    pub(super) reason: String,
    pub(super) bytes: String,
}

impl From<crate::api::dead_letters::Summary> for LetterRow {
    fn from(letter: crate::api::dead_letters::Summary) -> Self {
        let of_stream = |stream: &crate::name::StreamName| format!("stream {stream}");
        let function = letter.function.as_ref().map(ToString::to_string);
        Self {
            id: letter.id,
            time: time(letter.time_ms),
            of: function.or_else(|| letter.stream.as_ref().map(of_stream)).unwrap_or_else(|| NOTHING.to_owned()),
            topic: letter.topic.unwrap_or_default(),
            attempts: letter.attempts,
            outcome: letter.outcome,
            reason: letter.reason,
            bytes: size(letter.payload_bytes),
        }
    }
}

/// One line of the log.
#[derive(Debug)]
pub(super) struct LogRow {
    pub(super) time: String,
    pub(super) full_time: String,
    pub(super) level: String,
    pub(super) who: String,
    pub(super) message: String,
    pub(super) fields: String,
}

impl From<&LogRecord> for LogRow {
    fn from(record: &LogRecord) -> Self {
        let mut fields = String::new();
        for (name, value) in record.fields.iter().filter(|(name, _)| *name != "function") {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let _ = write!(fields, "{}{name}={value}", if fields.is_empty() { "" } else { " " });
        }
        let parsed = record.time.parse::<jiff::Timestamp>();
        let unix_ms = parsed.ok().and_then(|at| u64::try_from(at.as_millisecond()).ok());
        Self {
            time: unix_ms.map_or_else(|| record.time.clone(), time_of_day),
            full_time: record.time.clone(),
            level: record.level.clone(),
            who: record.function().unwrap_or("agent").to_owned(),
            message: record.message.clone(),
            fields,
        }
    }
}

/// A payload as people read it: text as it is, and of other bytes only their number.
pub(super) fn payload(data: &[u8]) -> String {
    let text = std::str::from_utf8(data).map(str::to_owned);
    text.unwrap_or_else(|_| format!("{} that are not text", size(data.len() as u64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_run_follow_each_other_in_its_waterfall() {
        let run = RecentRun {
            queue_us: 100,
            cold_start_us: Some(200),
            handler_us: 600,
            inference_us: 300,
            commit_us: Some(100),
            ..RecentRun::default()
        };
        let drawn = bars(&run);
        let drawn: Vec<_> = drawn.iter().map(|bar| (bar.name, &*bar.from, &*bar.width, &*bar.took)).collect();
        let expected = [
            ("queue", "0.00", "10.00", "100µs"),
            ("cold start", "10.00", "20.00", "200µs"),
            ("handler", "30.00", "60.00", "600µs"),
            ("inference", "30.00", "30.00", "300µs"),
            ("commit", "90.00", "10.00", "100µs"),
        ];
        assert_eq!(drawn, expected);
    }

    #[test]
    fn a_run_that_never_began_can_be_drawn() {
        let drawn = bars(&RecentRun::default());
        assert_eq!(drawn.iter().map(|bar| bar.name).collect::<Vec<_>>(), ["queue", "handler"]);
    }

    #[test]
    fn a_line_goes_from_edge_to_edge_with_the_most_at_the_top() {
        assert_eq!(spark(&[0.0, 5.0, 10.0]), "M0.0 23.0L60.0 12.0L120.0 1.0");
        assert_eq!([spark(&[]), spark(&[1.0]), spark(&[0.0, 0.0])], ["", "", ""]);
    }

    #[test]
    fn rates_are_rounded_for_people() {
        assert_eq!([None, Some(0.0), Some(0.25), Some(1999.6)].map(rate), [NOTHING, "0/s", "0.2/s", "2000/s"]);
    }

    #[test]
    fn a_payload_is_shown_as_what_it_is() {
        assert_eq!([payload(b"on"), payload(b"\xff\x00")], ["on", "2 B that are not text"]);
    }
}
