//! What was given up on, kept whole and with the reason: an event that a function could not handle, a publish that a broker
//! refused, or a record that an uplink cannot send. The stream `dead-letters` holds them as JSON, so that an uplink can send them to whoever reads it.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::event::Event;
use crate::function::FunctionSpec;
use crate::invocation::{Outcome, Publish};
use crate::journal::{Record, RecordMeta};
use crate::name::{BrokerName, FunctionName, StreamName};

/// A dead letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Which function could not handle the event, or had published; none for a record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<FunctionName>,
    /// Its version; none for a publish, whose commit may be long ago.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// How the last attempt ended: the label of an [`Outcome`], or `refused`.
    pub outcome: String,
    /// The same in words.
    pub reason: String,
    /// How many attempts there were.
    pub attempts: u32,
    /// What was given up on.
    #[serde(flatten)]
    pub what: What,
}

/// What a dead letter keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// An event that was not handled.
    Event(KeptEvent),
    /// A publish that was not taken. Its event was handled, and all else that it caused is done.
    Publish(KeptPublish),
    /// A record that the other side of its stream's uplink will never take.
    Record(KeptRecord),
}

/// An event whole, by the attribute names of CloudEvents' JSON format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptEvent {
    specversion: Cow<'static, str>,
    id: Arc<str>,
    source: Arc<str>,
    r#type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject: Option<Arc<str>>,
    time_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    datacontenttype: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    traceparent: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    attributes: Vec<(String, String)>,
    #[serde(rename = "data_base64", with = "in_base64")]
    data: Bytes,
}

/// A publish whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptPublish {
    broker: BrokerName,
    topic: Arc<str>,
    qos: u8,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    retain: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_type: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    properties: Vec<(String, String)>,
    #[serde(rename = "data_base64", with = "in_base64")]
    data: Bytes,
}

/// A record whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptRecord {
    /// Its id, as it would have been sent.
    id: String,
    stream: StreamName,
    time_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    traceparent: Option<Arc<str>>,
    #[serde(rename = "data_base64", with = "in_base64")]
    data: Bytes,
}

mod in_base64 {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use bytes::Bytes;
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(data: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(data))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Bytes::from).map_err(de::Error::custom)
    }
}

impl From<&Event> for KeptEvent {
    fn from(event: &Event) -> Self {
        Self {
            specversion: Cow::Borrowed("1.0"),
            id: Arc::clone(&event.id),
            source: Arc::clone(&event.source),
            r#type: event.kind.clone().into_owned(),
            subject: event.subject.clone(),
            time_ms: event.time_ms,
            datacontenttype: event.content_type.clone(),
            traceparent: event.trace_parent.clone(),
            attributes: event.attributes.clone(),
            data: event.data.clone(),
        }
    }
}

impl KeptEvent {
    /// The event, to be handled anew: nobody has handed it on yet.
    pub(super) fn event(&self) -> Event {
        Event {
            id: Arc::clone(&self.id),
            source: Arc::clone(&self.source),
            kind: Cow::Owned(self.r#type.clone()),
            subject: self.subject.clone(),
            time_ms: self.time_ms,
            content_type: self.datacontenttype.clone(),
            attributes: self.attributes.clone(),
            data: self.data.clone(),
            trace_parent: self.traceparent.clone(),
            hops: 0,
        }
    }
}

impl KeptPublish {
    /// For which broker it was.
    pub fn broker(&self) -> &BrokerName {
        &self.broker
    }

    /// The publish, to be tried anew.
    pub(super) fn publish(&self) -> Publish {
        Publish {
            broker: Some(self.broker.clone()),
            topic: Arc::clone(&self.topic),
            data: self.data.clone(),
            qos: self.qos,
            retain: self.retain,
            content_type: self.content_type.clone(),
            properties: self.properties.iter().map(|(name, value)| (Cow::Owned(name.clone()), value.clone())).collect(),
        }
    }
}

impl KeptRecord {
    /// Of which stream it was.
    pub const fn stream(&self) -> &StreamName {
        &self.stream
    }

    /// The record, to be appended anew.
    pub(super) fn record(&self) -> (StreamName, Bytes, RecordMeta) {
        let meta = RecordMeta { time_ms: self.time_ms, trace_parent: self.traceparent.clone() };
        (self.stream.clone(), self.data.clone(), meta)
    }
}

impl DeadLetter {
    /// An event that `spec` could not handle.
    pub(super) fn of_event(spec: &FunctionSpec, event: &Event, attempts: u32, outcome: &Outcome) -> Self {
        Self {
            function: Some(spec.name.clone()),
            version: Some(spec.version.to_string()),
            outcome: outcome.label().to_owned(),
            reason: outcome.to_string(),
            attempts,
            what: What::Event(KeptEvent::from(event)),
        }
    }

    /// An event that waited for `function` on disk until it was too old, while the function was not there; what was `before` that.
    pub(super) fn of_unclaimed(function: &FunctionName, event: &Event, before: &str, attempts: u32) -> Self {
        Self {
            function: Some(function.clone()),
            version: None,
            outcome: "unclaimed".to_owned(),
            reason: format!("was not in gateway.toml until the event was too old; before: {before}"),
            attempts,
            what: What::Event(KeptEvent::from(event)),
        }
    }

    /// A publish of `function` that `broker` did not take, and why.
    pub(super) fn of_publish(
        function: FunctionName,
        broker: BrokerName,
        publish: Publish,
        why: String,
        attempts: u32,
    ) -> Self {
        let Publish { topic, data, qos, retain, content_type, properties, .. } = publish;
        let properties = properties.into_iter().map(|(name, value)| (name.into_owned(), value)).collect();
        let kept = KeptPublish { broker, topic, qos, retain, content_type, properties, data };
        let what = What::Publish(kept);
        Self { function: Some(function), version: None, outcome: "refused".to_owned(), reason: why, attempts, what }
    }

    /// The record `id` of `stream`, which the other side will never take, and why.
    pub(crate) fn of_record(id: String, stream: StreamName, record: &Record, why: String) -> Self {
        let (traceparent, data) = (record.trace_parent.clone(), record.data.clone());
        let what = What::Record(KeptRecord { id, stream, time_ms: record.time_ms, traceparent, data });
        Self { function: None, version: None, outcome: "refused".to_owned(), reason: why, attempts: 1, what }
    }

    /// As a record of the stream `dead-letters`.
    pub(crate) fn encode(&self) -> Bytes {
        // Texts and numbers always are JSON.
        serde_json::to_vec(self).map(Bytes::from).unwrap_or_default()
    }

    /// What [`Self::encode`] wrote; `None` when it is something else.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// The topic that the event came on, or that was published on.
    pub fn topic(&self) -> Option<&str> {
        match &self.what {
            What::Event(event) => event.subject.as_deref(),
            What::Publish(publish) => Some(&publish.topic),
            What::Record(_) => None,
        }
    }

    /// The stream that a record was of.
    pub const fn stream(&self) -> Option<&StreamName> {
        match &self.what {
            What::Record(record) => Some(&record.stream),
            What::Event(_) | What::Publish(_) => None,
        }
    }

    /// The payload of the event, the publish or the record.
    pub fn data(&self) -> &Bytes {
        match &self.what {
            What::Event(event) => &event.data,
            What::Publish(publish) => &publish.data,
            What::Record(record) => &record.data,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        Event {
            id: "0190".into(),
            source: "mqtt:local".into(),
            kind: "mqtt.message".into(),
            subject: Some("sensors/1".into()),
            time_ms: 1_700_000_000_000,
            content_type: Some("application/json".into()),
            attributes: vec![("site".to_owned(), "3".to_owned())],
            data: Bytes::from_static(b"\x00{}"),
            trace_parent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            hops: 16,
        }
    }

    fn letter(what: What) -> DeadLetter {
        let function = Some(FunctionName::parse("double").unwrap());
        let (outcome, reason) = ("trapped".to_owned(), "trapped: unreachable".to_owned());
        DeadLetter { function, version: Some("1.0.0".to_owned()), outcome, reason, attempts: 3, what }
    }

    #[test]
    fn a_dead_letter_keeps_the_whole_event() {
        let kept = letter(What::Event(KeptEvent::from(&event())));
        let read = DeadLetter::decode(&kept.encode()).unwrap();
        assert_eq!(read, kept);
        let What::Event(again) = &read.what else { panic!("{read:?}") };
        assert_eq!(again.event(), Event { hops: 0, ..event() });
        assert_eq!((read.topic(), &read.data()[..]), (Some("sensors/1"), &b"\x00{}"[..]));
    }

    #[test]
    fn a_dead_letter_keeps_the_whole_publish() {
        let publish = Publish {
            broker: Some(BrokerName::parse("local").unwrap()),
            topic: "results/1".into(),
            data: Bytes::from_static(b"\xff"),
            qos: 2,
            retain: true,
            content_type: Some("application/json".into()),
            properties: vec![("a".into(), "1".to_owned())],
        };
        let function = FunctionName::parse("double").unwrap();
        let broker = BrokerName::parse("local").unwrap();
        let kept = DeadLetter::of_publish(function, broker, publish.clone(), "not authorized".to_owned(), 3);
        let read = DeadLetter::decode(&kept.encode()).unwrap();
        assert_eq!(read, kept);
        let What::Publish(again) = &read.what else { panic!("{read:?}") };
        assert_eq!(again.publish(), publish);
    }

    /// As an agent before this one wrote it.
    #[test]
    fn a_dead_letter_of_an_earlier_agent_is_read() {
        let text = r#"{"function":"fragile","version":"1.0.0","outcome":"rejected","reason":"rejected the event: no","attempts":1,
            "event":{"specversion":"1.0","id":"1","source":"mqtt:local","type":"mqtt.message","subject":"sensors/1","time_ms":1,
            "data_base64":"eA=="}}"#;
        let letter = DeadLetter::decode(text.as_bytes()).unwrap();
        assert_eq!((letter.attempts, letter.topic(), &letter.data()[..]), (1, Some("sensors/1"), &b"x"[..]));
    }
}
