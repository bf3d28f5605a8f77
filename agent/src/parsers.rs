//! Every parser that sees bytes from outside or from disk, each as one function from bytes, for `tests/fuzz` and for the test
//! that mutates its seeds. A parser may refuse what it likes; it panics, and so is found, when it breaks the rule beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{BufMut, Bytes};

use crate::api::cloudevents;
use crate::broker;
use crate::buffer::record;
use crate::capability::Capability;
use crate::clock::Clock;
use crate::config::function::{Missed, ScheduleTrigger};
use crate::config::{Config, Document, Environment, read_manifest};
use crate::deployment;
use crate::dispatch;
use crate::event::Event;
use crate::inference;
use crate::journal::{self, Journal, JournalConfig, JournalError};
use crate::limits::Limits;
use crate::name::{FunctionName, StreamName};
use crate::recording::Recorded;
use crate::recording::line::{self, Line};
use crate::recording::tap::Heard;
use crate::store::Bundle;
use crate::telemetry::TraceParent;
use crate::topic::{TopicFilter, check_topic};
use crate::trigger::filter::AtMost;
use crate::trigger::http::{self, EventShape, PathTemplate};
use crate::trigger::schedule::Schedule;
use crate::trigger::window;
use crate::units::{ByteSize, Span};

/// A parser, under the name of its fuzz target and of the folder of its seeds.
#[derive(Clone, Copy, Debug)]
pub struct Parser {
    /// Its name.
    pub name: &'static str,
    /// Parses, and checks what must hold whatever the bytes are.
    pub run: fn(&[u8]),
}

/// All of them.
pub const PARSERS: &[Parser] = &[
    Parser { name: "mqtt-3", run: |bytes| broker::packet::check(3, bytes) },
    Parser { name: "mqtt-5", run: |bytes| broker::packet::check(5, bytes) },
    Parser { name: "mqtt-session", run: broker::subscriptions::check },
    Parser { name: "journal-log", run: journal::check_log },
    Parser { name: "journal-frame", run: journal_frame },
    Parser { name: "journal-scan", run: journal_scan },
    Parser { name: "journal-folder", run: journal_folder },
    Parser { name: "event", run: event },
    Parser { name: "stored", run: stored },
    Parser { name: "gateway-toml", run: gateway_toml },
    Parser { name: "function-toml", run: function_toml },
    Parser { name: "bundle", run: bundle },
    Parser { name: "bundle-tar", run: bundle_tar },
    Parser { name: "cloudevent", run: cloudevent },
    Parser { name: "cloudevent-request", run: cloudevent_request },
    Parser { name: "recording", run: recording },
    Parser { name: "url-path", run: url_path },
    Parser { name: "url-answer", run: url_answer },
    Parser { name: "onnx", run: inference::check_model },
    Parser { name: "model-tests", run: inference::check_tests },
    Parser { name: "topic", run: topic },
    Parser { name: "words", run: words },
    Parser { name: "cron", run: cron },
    Parser { name: "deployment-tar", run: deployment_tar },
    Parser { name: "envelope", run: sync_protocol::parsers::envelope },
    Parser { name: "desired-answer", run: sync_protocol::parsers::desired_answer },
    Parser { name: "sync-words", run: sync_protocol::parsers::words },
];

/// The parser of this name.
pub fn named(name: &str) -> Option<&'static Parser> {
    PARSERS.iter().find(|parser| parser.name == name)
}

/// What the agent keeps for itself: each kind of record.
fn stored(bytes: &[u8]) {
    dispatch::check_stored(bytes);
    window::check_stored(bytes);
}

/// What reads back is written the same again, and nothing is read beyond the end. The bytes are taken as a whole value, and
/// as the body of one, since chance does not find checksums.
fn journal_frame(bytes: &[u8]) {
    let whole = Bytes::copy_from_slice(bytes);
    let mut sealed = record::encode(record::Stamp::default(), &record::Frame::Head)[..4].to_vec();
    sealed.put_u32_le(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    sealed.put_u32_le(crc32c::crc32c_append(crc32c::crc32c(&[record::VERSION]), bytes));
    sealed.put_slice(bytes);
    for value in [whole, sealed.into()] {
        if let Ok((revision, frame, taken)) = record::decode(&value) {
            assert!(taken <= value.len(), "{taken} of {} bytes", value.len());
            let again = Bytes::from(record::encode(revision, &frame));
            assert_eq!(record::decode(&again), Ok((revision, frame, again.len())));
        }
    }
}

/// A line that is the path of a function URL reads back as it was written, and no request for the next line makes a parameter of nothing.
fn url_path(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (template, path) = text.split_once('\n').unwrap_or((&text, ""));
    let Ok(template) = PathTemplate::parse(template) else { return };
    assert_eq!(PathTemplate::parse(&template.to_string()), Ok(template.clone()));
    let parameters = template.parameters(path).unwrap_or_default();
    assert!(parameters.iter().all(|(_, value)| !value.is_empty()), "{template}: {parameters:?}");
}

/// What a function returns is an answer with a status that may be sent, or refused.
fn url_answer(bytes: &[u8]) {
    for shape in [EventShape::Native, EventShape::ApigwV1, EventShape::ApigwV2, EventShape::WasiHttp] {
        if let Ok(answer) = http::answer(shape, Bytes::copy_from_slice(bytes)) {
            assert!((200..600).contains(&answer.status), "{answer:?}");
        }
    }
}

/// What is found lies in the bytes, one value behind the other.
fn journal_scan(bytes: &[u8]) {
    let found = record::scan(&Bytes::copy_from_slice(bytes));
    // Those of an earlier version are longer when they are written again.
    let least = found.len() * record::HEADER_BYTES;
    assert!(least <= bytes.len(), "{} values in {} bytes", found.len(), bytes.len());
}

/// A journal opens whatever one of its files holds, unless that says that a newer agent made it. The first byte says which.
fn journal_folder(bytes: &[u8]) {
    let (Some((which, content)), Ok(folder)) = (bytes.split_first(), scratch()) else { return };
    let open = || {
        let (streams, limits) = (BTreeMap::default(), Arc::default());
        Journal::open(folder.path(), JournalConfig { streams, limits }, Clock::system())
    };
    if let Err(error) = open() {
        panic!("a new journal: {error}");
    }
    let file = match which % 3 {
        0 => "mark",
        1 => "format",
        _ => "0000000001/log",
    };
    if fs::write(folder.path().join(file), content).is_ok() {
        match open() {
            Ok(_) | Err(JournalError::Format { .. }) => {}
            Err(error) => panic!("with another `{file}`: {error}"),
        }
    }
}

/// A folder in memory where that is possible: what is written is synced.
fn scratch() -> std::io::Result<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }
}

/// An event that reads back is written the same again.
fn event(bytes: &[u8]) {
    if let Some(event) = Event::decode(Bytes::copy_from_slice(bytes)) {
        assert_eq!(event.encode(), bytes);
    }
}

fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

fn gateway_toml(bytes: &[u8]) {
    let read = Config::parse(&text(bytes), Path::new("gateway.toml"), &Environment::default());
    if let Err(errors) = read {
        assert!(!errors.to_string().is_empty(), "refused without a reason");
    }
}

fn function_toml(bytes: &[u8]) {
    let mut document = Document::parse(Path::new("function.toml"), text(bytes).into_owned());
    let manifest = read_manifest(&mut document);
    if let Err(errors) = document.finish(manifest) {
        assert!(!errors.to_string().is_empty(), "refused without a reason");
    }
}

/// Small enough that an archive over a limit is quickly written, so that it is tried.
fn small() -> Limits {
    Limits { bundle_bytes_max: ByteSize(64 << 10), bundle_entries_max: 32, ..Limits::default() }
}

/// Nothing is written outside of the folder of bundles, a refused bundle leaves nothing there, and none is over its limit.
fn bundle(bytes: &[u8]) {
    let Ok(folder) = scratch() else { return };
    let (archive, state_dir) = (folder.path().join("fuzzed.tar.zst"), folder.path().join("state"));
    if fs::write(&archive, bytes).is_err() {
        return;
    }
    let opened = Bundle::open(&archive, &state_dir, &small());
    let top: BTreeSet<PathBuf> = entries(folder.path()).collect();
    assert!(top.is_subset(&[archive, state_dir.clone()].into()), "written outside: {top:?}");
    let top: Vec<PathBuf> = entries(&state_dir).collect();
    assert!(top.iter().all(|path| *path == state_dir.join("bundles")), "written outside: {top:?}");
    let bundles: Vec<PathBuf> = entries(&state_dir.join("bundles")).collect();
    assert!(bundles.iter().all(|path| path.file_name().is_some_and(|name| name.len() == 64)), "left: {bundles:?}");
    let size: u64 = bundles.iter().map(|path| size_of(path)).sum();
    assert!(size <= small().bundle_bytes_max.0, "{size} bytes unpacked");
    drop(opened);
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn size_of(path: &Path) -> u64 {
    match path.symlink_metadata() {
        Ok(found) if found.is_dir() => entries(path).map(|path| size_of(&path)).sum(),
        Ok(found) => {
            assert!(found.is_file(), "{} is neither a file nor a folder", path.display());
            found.len()
        }
        Err(_) => 0,
    }
}

/// The same, behind the compression that chance does not get through.
fn bundle_tar(bytes: &[u8]) {
    if let Ok(archive) = zstd::encode_all(bytes, 1) {
        bundle(&archive);
    }
}

/// As it comes on a stick.
fn deployment_tar(bytes: &[u8]) {
    if let Ok(folder) = scratch() {
        deployment::check_file(bytes, folder.path());
    }
}

/// One event: what is taken has all that an event must have.
fn cloudevent(bytes: &[u8]) {
    if let Ok(event) = cloudevents::parse(bytes, 0) {
        check_event(&event);
    }
}

/// A line that reads is read the same again when it is written.
fn recording(bytes: &[u8]) {
    let Ok(read) = line::parse(bytes) else { return };
    let heard = match &read {
        Line::Event(recorded) => Heard::Run(Arc::new(Recorded::clone(recorded))),
        Line::Missed(missed) => Heard::Missed(*missed),
    };
    let written = line::write(&heard).unwrap_or_default();
    assert_eq!(line::parse(written.as_bytes()), Ok(read), "{written}");
}

/// Lines are headers; what follows an empty one is the body: an event or a batch of them.
fn cloudevent_request(bytes: &[u8]) {
    const EVENTS_MAX: usize = 100;
    let text = text(bytes);
    let (head, body) = text.split_once("\n\n").unwrap_or((&text, ""));
    let headers = head.lines().filter_map(|line| line.split_once(": "));
    let events = cloudevents::read_lines(headers, body, EVENTS_MAX).unwrap_or_default();
    assert!(events.len() <= EVENTS_MAX, "{} events", events.len());
    events.iter().for_each(check_event);
}

fn check_event(event: &Event) {
    assert!(!event.id.is_empty() && !event.source.is_empty() && !event.kind.is_empty(), "{event:?}");
    if let Some(parent) = event.trace_parent.as_deref().and_then(TraceParent::parse) {
        assert_eq!(TraceParent::parse(&parent.to_string()), Some(parent));
    }
}

/// Two filters and topics, a line each: a filter that covers another matches all that the other does.
fn topic(bytes: &[u8]) {
    let text = text(bytes);
    let mut lines = text.split('\n');
    let filters: Vec<TopicFilter> = lines.by_ref().take(2).filter_map(|line| TopicFilter::parse(line).ok()).collect();
    for filter in &filters {
        assert_eq!(TopicFilter::parse(filter.as_str()).as_ref(), Ok(filter));
        assert!(filter.covers(filter), "{filter} does not cover itself");
    }
    for topic in lines.filter(|topic| check_topic(topic).is_ok()) {
        for (one, other) in [(0, 1), (1, 0)] {
            if let (Some(one), Some(other)) = (filters.get(one), filters.get(other)) {
                let holds = !one.covers(other) || !other.matches(topic) || one.matches(topic);
                assert!(holds, "{one} covers {other}, which matches {topic}, and does not match it itself");
            }
        }
    }
}

/// Names, capabilities, durations and sizes: what is shown can be pasted back.
fn words(bytes: &[u8]) {
    let text = text(bytes);
    if let Ok(span) = Span::parse(&text) {
        assert_eq!(Span::parse(&span.to_string()), Ok(span));
    }
    if let Ok(size) = ByteSize::parse(&text) {
        assert_eq!(ByteSize::parse(&size.to_string()), Ok(size));
    }
    if let Ok(at_most) = text.parse::<AtMost>() {
        assert_eq!(at_most.to_string().parse(), Ok(at_most));
    }
    if let Ok(capability) = text.parse::<Capability>() {
        assert_eq!(capability.to_string().parse::<Capability>().as_ref(), Ok(&capability));
    }
    if let Ok(name) = FunctionName::parse(&text) {
        assert!(StreamName::parse(name.as_str()).is_ok() && !name.as_str().contains(['/', '.']), "{name}");
    }
    if let Ok(stored) = StreamName::parse_stored(&text) {
        assert_eq!(stored.as_str(), text);
    }
    if let Some(parent) = TraceParent::parse(&text) {
        assert_eq!(TraceParent::parse(&parent.to_string()), Some(parent));
    }
}

fn cron(bytes: &[u8]) {
    let text = text(bytes);
    let (cron, zone) = text.split_once('\n').map_or((&*text, None), |(cron, zone)| (cron, Some(zone.to_owned())));
    let trigger = ScheduleTrigger { every: None, cron: Some(cron.to_owned()), time_zone: zone, missed: Missed::Once };
    drop(Schedule::parse(&trigger));
}
