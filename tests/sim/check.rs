//! What must hold, whatever happened: the promises of docs/spec/delivery.md and streams.md, as far as they can be seen from
//! outside and on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;
use tidegate::api::status::Status;
use tidegate::clock::Clock;
use tidegate::journal::{DEAD_LETTERS, Journal, JournalConfig};
use tidegate::limits::Limits;
use tidegate::name::StreamName;

use crate::ledger::{Facts, Ledger, event_of};
use crate::pipe::Link;
use crate::plan::{ATTEMPTS, Event, FUNCTIONS, Function, Plan};
use crate::site::Site;

/// Of idempotency, in [`crate::plan::FUNCTIONS`].
const WINDOW_MS: u64 = 7 * 24 * 3_600_000;
/// How old an event may be that is tried again: the default.
const MAX_AGE_MS: u64 = 3_600_000;

/// What is still under way, in words.
pub fn open_ends(status: &Status, links: &[Arc<Link>]) -> Vec<String> {
    let mut open = Vec::new();
    let mut note = |what: String, count: u64| {
        if count > 0 {
            open.push(format!("{what}: {count}"));
        }
    };
    for function in &status.functions {
        note(format!("events that wait for `{}`", function.name), function.queued as u64);
        note(format!("instances of `{}` at work", function.name), function.busy.into());
    }
    for broker in &status.brokers {
        note(format!("messages of `{}` not acknowledged", broker.name), broker.in_flight);
        note(format!("publishes to `{}` not confirmed", broker.name), broker.unconfirmed);
        note(format!("no connection to `{}`", broker.name), u64::from(!broker.ready));
    }
    for stream in status.streams.iter().filter(|stream| stream.uplink.is_some()) {
        note(format!("records of `{}` to send", stream.name), stream.records);
    }
    for link in links {
        note(format!("messages at broker `{}`", link.broker.name), link.broker.backlog() as u64);
    }
    open
}

/// Dead letters, by function and event: why, and after how many attempts.
type Letters = BTreeMap<(String, String), (String, u64)>;

pub fn at_the_end(plan: &Plan, ledger: &Ledger, status: Option<&Status>, site: &Site<'_>) {
    let letters = match letters(site) {
        Ok(letters) => letters,
        Err(error) => return ledger.violation(format!("the journal cannot be read at the end: {error:#}")),
    };
    let mut broken = Vec::new();
    let Some(status) = status else { return };
    {
        let facts = ledger.facts();
        streams(&facts, status, &mut broken);
        counts(&facts, &mut broken);
        order(plan, &facts, &mut broken);
        let records = records(&facts);
        for event in plan.events.values() {
            for function in FUNCTIONS.iter().filter(|function| event.topic.starts_with(function.topics)) {
                if let Err(why) = handled(&facts, &records, &letters, function, event) {
                    broken.push(format!("event {} ({}) in `{}`: {why}", event.id, event.program, function.name));
                }
            }
        }
    }
    broken.into_iter().for_each(|what| ledger.violation(what));
}

/// How often the records of each stream tell of each event.
fn records(facts: &Facts) -> BTreeMap<(String, String), u64> {
    let mut found = BTreeMap::new();
    for (stream, _, data) in &facts.records {
        *found.entry((stream.clone(), event_of(data).unwrap_or_default())).or_default() += 1;
    }
    found
}

/// What came of one event in one function.
fn handled(
    facts: &Facts,
    records: &BTreeMap<(String, String), u64>,
    letters: &Letters,
    function: &Function,
    event: &Event,
) -> Result<(), String> {
    let ensure = |holds: bool, what: String| if holds { Ok(()) } else { Err(what) };
    let in_stream = |stream: &str| records.get(&(stream.to_owned(), event.id.clone())).copied().unwrap_or(0);
    let key = (function.name.to_owned(), event.id.clone());
    let (own, letter) = (in_stream(&format!("from-{}", function.name)), letters.get(&key));
    let results = facts.results.get(&key).copied().unwrap_or_default();
    let is_owed = facts.owed().contains(event.id.as_str()) && function.qos > 0;

    // All or nothing: each run has all of its records and publishes, or none.
    let per_run = event.does('a') + event.does('c');
    if event.is_hopeless() {
        ensure(
            own == 0 && results == [0; 3],
            format!("it never succeeds, and has {own} records, {results:?} results"),
        )?;
    }
    let mut runs = None;
    if per_run > 0 {
        ensure(own % per_run == 0, format!("{own} records, and each run makes {per_run}"))?;
        runs = Some(own / per_run);
    }
    // A window of time is over when the clock was set past it and nobody could tell.
    if function.name == "once" && facts.clock_unsure_ms < WINDOW_MS {
        ensure(own <= per_run, format!("it is idempotent, and has {own} records; each run makes {per_run}"))?;
    }
    for qos in [1, 2] {
        let (made, arrived) = (event.does(char::from(b'0' + qos)), results[usize::from(qos)]);
        if let Some(runs) = runs {
            ensure(arrived >= made * runs, format!("{runs} runs, and {arrived} results of QoS {qos}"))?;
            ensure(runs > 0 || arrived == 0, format!("no records, but {arrived} results of QoS {qos}"))?;
        }
    }
    if function.name == "chain" {
        let tail = in_stream("from-tail");
        ensure(!event.is_hopeless() || tail == 0, format!("it never succeeds, and was handed on {tail} times"))?;
        if let Some(runs) = runs {
            ensure(runs == 0 || tail > 0 || !is_owed, format!("{runs} runs, and nothing was handed on"))?;
        }
    }

    // Nothing is lost.
    if !is_owed {
        return Ok(());
    }
    if event.is_hopeless() {
        return ensure(letter.is_some(), "it is lost: no dead letter".to_owned());
    }
    let shown =
        [per_run > 0 && own > 0, results[1] + results[2] > 0, function.name == "chain" && in_stream("from-tail") > 0];
    let shows = [per_run > 0, event.does('1') + event.does('2') > 0, function.name == "chain"];
    if let Some((why, attempts)) = letter {
        // An event is too old for another attempt when the clock was set that far while it waited, and nobody could tell.
        let aged_ms = facts.clock_unsure_ms - facts.taken[&event.id].clock_unsure_ms;
        let is_old = aged_ms >= MAX_AGE_MS && *attempts < u64::from(ATTEMPTS);
        return ensure(is_old, format!("it can succeed, and is a dead letter after {attempts} attempts: {why}"));
    }
    ensure(
        shows.iter().zip(shown).all(|(shows, shown)| !shows || shown),
        "it is lost: no effect, no dead letter".to_owned(),
    )
}

/// Streams as their readers see them.
fn streams(facts: &Facts, status: &Status, broken: &mut Vec<String>) {
    for (stream, sequences) in facts.sequences() {
        if let Some(pair) = sequences.windows(2).find(|pair| pair[1] < pair[0]) {
            broken.push(format!("stream `{stream}`: record {} arrived after {}", pair[1], pair[0]));
        }
        let known: BTreeSet<u64> = sequences.iter().copied().collect();
        let Some(status) = status.streams.iter().find(|status| status.name.as_str() == stream) else { continue };
        let newest = known.last().copied().unwrap_or(0);
        if status.newest_sequence != newest {
            broken.push(format!(
                "stream `{stream}`: {} records were made, {newest} is the last that arrived",
                status.newest_sequence
            ));
        }
        if status.dropped_by_age + status.dropped_by_bytes + status.dropped_by_buffer > 0 {
            broken.push(format!("stream `{stream}`: records were dropped, and no limit was near"));
        }
    }
}

/// A count goes up by one with each run that is kept, and its record with it.
fn counts(facts: &Facts, broken: &mut Vec<String>) {
    let mut counted: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for (stream, _, data) in &facts.records {
        let count = serde_json::from_slice::<Value>(data)
            .ok()
            .and_then(|record| u64::from_str_radix(record["count"].as_str()?, 16).ok());
        if let Some(count) = count {
            counted.entry(stream).or_default().push(count);
        }
    }
    for (stream, mut counts) in counted {
        counts.sort_unstable();
        let expected: Vec<u64> = (1..=counts.len() as u64).collect();
        if counts != expected {
            broken.push(format!("stream `{stream}`: its function counted {counts:?}"));
        }
    }
}

/// Events of one topic have their effects in the order in which the broker took them.
fn order(plan: &Plan, facts: &Facts, broken: &mut Vec<String>) {
    let owed = facts.owed();
    let mut seen = BTreeSet::new();
    let mut last: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
    for (stream, _, data) in &facts.records {
        let Some(event) = event_of(data).and_then(|id| plan.events.get(&id)).filter(|_| stream == "from-order") else {
            continue;
        };
        if !owed.contains(event.id.as_str()) || !seen.insert(&event.id) {
            continue;
        }
        let place = facts.taken[&event.id].place;
        let (before, earlier) = last.get(event.topic.as_str()).copied().unwrap_or_default();
        if place < before {
            broken.push(format!(
                "topic {}: {} was handled before {}, which came earlier",
                event.topic, earlier, event.id
            ));
        }
        last.insert(&event.topic, (place, &event.id));
    }
}

/// The dead letters on disk.
fn letters(site: &Site<'_>) -> anyhow::Result<Letters> {
    let config = JournalConfig { streams: site.config()?.stream, limits: Arc::new(Limits::default()) };
    let journal = Journal::open(&site.state().join("journal"), config, Clock::system())?;
    let (stream, mut after, mut letters) = (StreamName::parse(DEAD_LETTERS)?, 0, Letters::new());
    loop {
        let records = journal.read(&stream, after, 1_000, 16 << 20)?;
        let Some(last) = records.last() else { return Ok(letters) };
        after = last.sequence;
        for record in &records {
            let letter: Value = serde_json::from_slice(&record.data)?;
            let data = decode(letter["event"]["data_base64"].as_str().unwrap_or_default());
            let text = |key: &str| letter[key].as_str().unwrap_or_default().to_owned();
            let attempts = letter["attempts"].as_u64().unwrap_or_default();
            letters.insert((text("function"), event_of(&data).unwrap_or_default()), (text("reason"), attempts));
        }
    }
}

/// Base64, of the alphabet that dead letters use.
pub fn decode(text: &str) -> Vec<u8> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for digit in text.bytes().filter_map(|byte| ALPHABET.iter().position(|letter| *letter == byte)) {
        bits = bits << 6 | u32::try_from(digit).unwrap();
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    bytes
}
