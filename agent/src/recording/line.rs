//! One line of a recording, to and from JSON.
//!
//! ```text
//! {"specversion":"1.0", "id", "source", "type", "subject"?, "time", "datacontenttype"?, "traceparent"?,
//!  "attributes": [[name, value], …]?, "data_text" | "data_base64",
//!  "outcome": {"function", "version", "invocation", "attempt", "started", "handler_us", "publish_qos", "reads": […]?,
//!              "ended", "why"?, "result_text" | "result_base64", "field_writes": […]?, "publishes": […]?, "records": […]?,
//!              "key_values": […]?}}
//! ```
//! Payloads are texts when they are readable, else in base64; either way byte by byte. CloudEvents' own `data` would be written
//! anew by whoever reads it, and its extensions may not have the names that MQTT's user properties have.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::tap::Heard;
use super::{Came, Recorded, Run};
use crate::api::cloudevents;
use crate::event::Event;
use crate::invocation::{Effects, FieldWrite, KeyValueWrite, Publish};
use crate::name::{BrokerName, FunctionName, StreamName};

/// What a line says.
#[derive(Clone, Debug, PartialEq)]
pub enum Line {
    /// An event.
    Event(Box<Recorded>),
    /// So many are missing about here.
    Missed(u64),
}

/// One of the two; none for what is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Data<'a>(Option<Cow<'a, str>>, Option<String>);

/// `data` as text that JSON says with little more than its own bytes: a control character would take six.
pub(crate) fn readable(data: &[u8]) -> Option<&str> {
    let is_readable = |text: &&str| !text.chars().any(|c| c.is_control() && !matches!(c, '\t' | '\n' | '\r'));
    std::str::from_utf8(data).ok().filter(is_readable)
}

impl<'a> Data<'a> {
    fn of(data: &'a [u8]) -> Self {
        match readable(data) {
            Some(text) => Self(Some(Cow::Borrowed(text)), None),
            None => Self(None, Some(STANDARD.encode(data))),
        }
    }

    fn read(self) -> Result<Option<Bytes>, String> {
        match self {
            Self(Some(_), Some(_)) => Err("a payload is there as text and in base64".to_owned()),
            Self(Some(text), None) => Ok(Some(Bytes::from(text.into_owned()))),
            Self(None, Some(text)) => STANDARD
                .decode(text)
                .map(|data| Some(data.into()))
                .map_err(|error| format!("malformed base64: {error}")),
            Self(None, None) => Ok(None),
        }
    }
}

/// An event in JSON but for its payload: the attributes of CloudEvents, and beside them those that may have any name.
#[derive(Serialize)]
pub(crate) struct Head<'a> {
    specversion: &'static str,
    id: &'a str,
    source: &'a str,
    r#type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) datacontenttype: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    traceparent: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    attributes: &'a [(String, String)],
}

impl<'a> Head<'a> {
    pub(crate) fn of(event: &'a Event) -> Self {
        Self {
            specversion: "1.0",
            id: &event.id,
            source: &event.source,
            r#type: &event.kind,
            subject: event.subject.as_deref(),
            time: time(event.time_ms),
            datacontenttype: event.content_type.as_deref(),
            traceparent: event.trace_parent.as_deref(),
            attributes: &event.attributes,
        }
    }
}

#[derive(Serialize)]
struct EventLine<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_text: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<RunLine<'a>>,
}

#[derive(Serialize, Deserialize)]
struct RunLine<'a> {
    function: FunctionName,
    version: Arc<str>,
    invocation: Arc<str>,
    attempt: u32,
    started: String,
    handler_us: u64,
    publish_qos: u8,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    reads: Vec<ValueLine<'a>>,
    #[serde(flatten)]
    came: CameLine<'a>,
}

/// What a handler gave, as JSON; `tidegate replay --json` shows it so too.
#[derive(Debug, Serialize, Deserialize)]
pub struct CameLine<'a> {
    ended: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    why: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result_text: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result_base64: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    field_writes: Vec<FieldWrite>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    publishes: Vec<PublishLine<'a>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    records: Vec<RecordLine<'a>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    key_values: Vec<ValueLine<'a>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct PublishLine<'a> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    broker: Option<BrokerName>,
    topic: Arc<str>,
    qos: u8,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    retain: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_type: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data_text: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct RecordLine<'a> {
    stream: StreamName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data_text: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
}

/// A key without data is one that holds nothing, or was deleted.
#[derive(Debug, Serialize, Deserialize)]
struct ValueLine<'a> {
    bucket: Cow<'a, str>,
    key: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data_text: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MissedLine {
    missed: u64,
}

/// A line without its line break; none for what cannot be written.
pub fn write(heard: &Heard) -> Option<String> {
    match heard {
        Heard::Run(recorded) => serde_json::to_string(&EventLine::of(recorded)),
        Heard::Missed(missed) => serde_json::to_string(&MissedLine { missed: *missed }),
    }
    .ok()
}

/// How many events a line says are missing; none for an event.
pub fn missed(line: &[u8]) -> Option<u64> {
    let line = line.starts_with(b"{\"missed\"").then_some(line)?;
    serde_json::from_slice(line).ok().map(|MissedLine { missed }| missed)
}

/// Reads a line.
///
/// # Errors
/// What is wrong with it.
pub fn parse(line: &[u8]) -> Result<Line, String> {
    if let Some(missed) = missed(line) {
        return Ok(Line::Missed(missed));
    }
    let (event, outcome) = cloudevents::parse_recorded(line)?;
    let run = outcome.map(read_run).transpose().map_err(|why| format!("member `outcome`: {why}"))?;
    Ok(Line::Event(Box::new(Recorded { event: Arc::new(event), run })))
}

fn read_run(outcome: Value) -> Result<Run, String> {
    let line: RunLine<'_> = serde_json::from_value(outcome).map_err(|error| error.to_string())?;
    Ok(Run {
        function: line.function,
        version: line.version,
        invocation: line.invocation,
        attempt: line.attempt,
        started_ms: cloudevents::time_ms(&line.started).map_err(|why| format!("`started` is {why}"))?,
        handler: Duration::from_micros(line.handler_us),
        publish_qos: line.publish_qos,
        reads: line.reads.into_iter().map(ValueLine::read).collect::<Result<_, _>>()?,
        came: line.came.read()?,
    })
}

/// Unix milliseconds as RFC 3339.
pub(crate) fn time(unix_ms: u64) -> String {
    let ms = i64::try_from(unix_ms).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms).unwrap_or(jiff::Timestamp::MAX).to_string()
}

impl<'a> EventLine<'a> {
    fn of(recorded: &'a Recorded) -> Self {
        let Data(data_text, data_base64) = Data::of(&recorded.event.data);
        Self {
            head: Head::of(&recorded.event),
            data_text,
            data_base64,
            outcome: recorded.run.as_ref().map(RunLine::of),
        }
    }
}

impl<'a> RunLine<'a> {
    fn of(run: &'a Run) -> Self {
        Self {
            function: run.function.clone(),
            version: Arc::clone(&run.version),
            invocation: Arc::clone(&run.invocation),
            attempt: run.attempt,
            started: time(run.started_ms),
            handler_us: u64::try_from(run.handler.as_micros()).unwrap_or(u64::MAX),
            publish_qos: run.publish_qos,
            reads: run.reads.iter().map(ValueLine::of).collect(),
            came: CameLine::of(&run.came),
        }
    }
}

impl<'a> CameLine<'a> {
    /// Of what came.
    pub fn of(came: &'a Came) -> Self {
        let has_result = came.succeeded() || !came.result.is_empty();
        let Data(result_text, result_base64) = if has_result { Data::of(&came.result) } else { Data::default() };
        let publish = |publish: &'a Publish| {
            let Data(data_text, data_base64) = Data::of(&publish.data);
            let Publish { broker, topic, qos, retain, content_type, .. } = publish;
            let (broker, topic, content_type) = (broker.clone(), Arc::clone(topic), content_type.clone());
            PublishLine { broker, topic, qos: *qos, retain: *retain, content_type, data_text, data_base64 }
        };
        let record = |(stream, data): &'a (StreamName, Bytes)| {
            let Data(data_text, data_base64) = Data::of(data);
            RecordLine { stream: stream.clone(), data_text, data_base64 }
        };
        Self {
            ended: Cow::Borrowed(&came.ended),
            why: came.why.as_deref().map(Cow::Borrowed),
            result_text,
            result_base64,
            field_writes: came.effects.field_writes.clone(),
            publishes: came.effects.publishes.iter().map(publish).collect(),
            records: came.effects.records.iter().map(record).collect(),
            key_values: came.effects.key_values.iter().map(ValueLine::of).collect(),
        }
    }

    fn read(self) -> Result<Came, String> {
        let publish = |line: PublishLine<'_>| {
            let PublishLine { broker, topic, qos, retain, content_type, data_text, data_base64 } = line;
            let data = Data(data_text, data_base64).read()?.unwrap_or_default();
            Ok(Publish { broker, topic, data, qos, retain, content_type, properties: Vec::new() })
        };
        let record = |line: RecordLine<'_>| {
            Ok((line.stream, Data(line.data_text, line.data_base64).read()?.unwrap_or_default()))
        };
        let effects = Effects {
            field_writes: self.field_writes,
            publishes: self.publishes.into_iter().map(publish).collect::<Result<_, String>>()?,
            records: self.records.into_iter().map(record).collect::<Result<_, String>>()?,
            key_values: self.key_values.into_iter().map(ValueLine::read).collect::<Result<_, String>>()?,
            ..Effects::default()
        };
        Ok(Came {
            ended: Cow::Owned(self.ended.into_owned()),
            why: self.why.map(Cow::into_owned),
            result: Data(self.result_text, self.result_base64).read()?.unwrap_or_default(),
            effects,
        })
    }
}

impl<'a> ValueLine<'a> {
    fn of(write: &'a KeyValueWrite) -> Self {
        let Data(data_text, data_base64) = write.value.as_deref().map(Data::of).unwrap_or_default();
        Self { bucket: Cow::Borrowed(&write.bucket), key: Cow::Borrowed(&write.key), data_text, data_base64 }
    }

    fn read(self) -> Result<KeyValueWrite, String> {
        let value = Data(self.data_text, self.data_base64).read()?;
        Ok(KeyValueWrite { bucket: self.bucket.into_owned(), key: self.key.into_owned(), value })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::invocation::{FieldValue, Outcome};
    use crate::name::SourceName;

    /// A run of `function` with one of everything.
    pub(crate) fn recorded(function: &str) -> Recorded {
        let publish = Publish {
            broker: None,
            topic: "results/ä".into(),
            data: Bytes::from_static(b"\x00\xff"),
            qos: 0,
            retain: true,
            content_type: Some("image/x".into()),
            properties: Vec::new(),
        };
        let value = |key: &str, value: Option<&'static str>| KeyValueWrite {
            bucket: "b".to_owned(),
            key: key.to_owned(),
            value: value.map(|value| Bytes::from_static(value.as_bytes())),
        };
        let set = |point: &str, value| FieldWrite {
            source: SourceName::parse("oven").unwrap(),
            point: point.to_owned(),
            value,
        };
        let effects = Effects {
            field_writes: vec![
                set("fan", FieldValue::Boolean(true)),
                set("steps", FieldValue::Integer(-3)),
                set("celsius", FieldValue::Number(180.0)),
            ],
            publishes: vec![publish],
            records: vec![(StreamName::parse("readings").unwrap(), Bytes::from_static(b"{ \"a\": 1.50 }"))],
            key_values: vec![value("kept", Some("1")), value("empty", Some("")), value("gone", None)],
            ..Effects::default()
        };
        let event = Event {
            id: "7".into(),
            source: "mqtt:local".into(),
            kind: Cow::Borrowed("mqtt.message"),
            subject: Some("sensors/1".into()),
            time_ms: 1_790_000_000_123,
            content_type: None,
            attributes: vec![("Content-Kind".to_owned(), "x".to_owned()), ("id".to_owned(), "twice".to_owned())],
            data: Bytes::from_static(b"{ \"v\": 1.0,\n\"a\":\"\\u00e4\" }"),
            trace_parent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            hops: 0,
        };
        let run = Run {
            function: FunctionName::parse(function).unwrap(),
            version: "1.2.3".into(),
            invocation: "i-1".into(),
            attempt: 2,
            started_ms: 1_790_000_000_456,
            handler: Duration::from_micros(41),
            publish_qos: 0,
            reads: vec![value("kept", None)],
            came: Came::of(&Outcome::Succeeded(Bytes::from_static(b"done\n")), &effects),
        };
        Recorded { event: Arc::new(event), run: Some(run) }
    }

    #[track_caller]
    fn comes_back(recorded: Recorded) {
        let line = write(&Heard::Run(Arc::new(recorded.clone()))).unwrap();
        assert!(!line.contains('\n'), "{line}");
        assert_eq!(parse(line.as_bytes()).unwrap(), Line::Event(Box::new(recorded)), "{line}");
    }

    #[test]
    fn an_event_comes_back_whole_with_what_came_of_it() {
        comes_back(recorded("scale"));
        comes_back(Recorded { run: None, ..recorded("scale") });
        for data in [&b""[..], b"\xff\x00", b"\x01 control", "\u{2028}".as_bytes(), b"\"\\"] {
            let event = Event {
                data: Bytes::from_static(data),
                content_type: Some("text/plain".into()),
                ..Event::clone(&recorded("s").event)
            };
            comes_back(Recorded { event: Arc::new(event), ..recorded("scale") });
        }
        for outcome in [Outcome::Rejected("no".to_owned()), Outcome::TimedOut { after_ms: 3 }] {
            let mut failed = recorded("scale");
            failed.run.as_mut().unwrap().came = Came::of(&outcome, &Effects::default());
            comes_back(failed);
        }
    }

    /// So a line of a recording is the `event` of a `[[test]]`, and what `tidegate invoke --cloudevent` takes.
    #[test]
    fn a_line_is_an_event_as_tests_read_it() {
        let recorded = recorded("scale");
        let line = write(&Heard::Run(Arc::new(recorded.clone()))).unwrap();
        assert_eq!(cloudevents::parse(line.as_bytes(), 0).unwrap(), *recorded.event);
    }

    #[test]
    fn what_is_missing_is_told_where_it_is() {
        assert_eq!(write(&Heard::Missed(3)).unwrap(), r#"{"missed":3}"#);
        assert_eq!(parse(br#"{"missed":3}"#).unwrap(), Line::Missed(3));
    }

    #[test]
    fn a_line_that_is_damaged_says_how() {
        let line = write(&Heard::Run(Arc::new(recorded("scale")))).unwrap();
        for cut in 0..line.len() {
            assert!(parse(&line.as_bytes()[..cut]).is_err(), "cut at {cut}");
        }
        let check = |from: &str, to: &str, expected: &str| {
            let error = parse(line.replace(from, to).as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check("\"ended\"", "\"end\"", "missing field `ended`");
        check("2026-09-21T14:13:20.456Z", "noon", "`started` is `noon`");
        check("\"data_base64\":\"AP8=\"", "\"data_base64\":\"%\"", "malformed base64");
    }
}
