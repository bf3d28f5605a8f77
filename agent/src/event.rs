//! One occurrence that a trigger observed, with the attributes of CloudEvents 1.0.2.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde_json::Value;

use crate::clock::Clock;
use crate::config::function::KeyPart;

/// Source of the events that people send by hand, on the console.
pub const BY_HAND: &str = "console";

/// What a handler is called with. Shared by all the functions that it matches, so it is immutable once made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Unique per delivery; `source` + `id` identifies the event (CloudEvents `id`).
    pub id: Arc<str>,
    /// Where it comes from: `mqtt:local`, `schedule:FUNCTION`, or what the caller said (CloudEvents `source`).
    pub source: Arc<str>,
    /// `mqtt.message`, `schedule.tick`, … (CloudEvents `type`).
    pub kind: Cow<'static, str>,
    /// The topic of an MQTT message (CloudEvents `subject`).
    pub subject: Option<Arc<str>>,
    /// Unix time in milliseconds at which it was observed (CloudEvents `time`).
    pub time_ms: u64,
    /// Media type of `data` (CloudEvents `datacontenttype`).
    pub content_type: Option<Arc<str>>,
    /// Further attributes: user properties of MQTT 5, extensions of CloudEvents.
    pub attributes: Vec<(String, String)>,
    /// The payload, as it came.
    pub data: Bytes,
    /// W3C `traceparent` of whoever caused it.
    pub trace_parent: Option<Arc<str>>,
    /// How many functions have handed it on, so that a loop ends.
    pub hops: u32,
}

/// Layout of [`Event::encode`].
const FORMAT: u8 = 1;
/// The length that stands for no text at all.
const NONE: u32 = u32::MAX;

impl Event {
    /// The event whole, for the journal: a small header, then the payload as it is.
    ///
    /// ```text
    /// format u8 | hops u32 | time u64 | id, source, kind, subject, content type, trace parent | attributes u32, each two | data
    /// ```
    /// Integers are little-endian; a text, and the data, is its length as u32 and its bytes.
    pub fn encode(&self) -> Bytes {
        let attributes: usize = self.attributes.iter().map(|(name, value)| name.len() + value.len() + 8).sum();
        let texts = self.id.len() + self.source.len() + self.kind.len();
        let optional = [&self.subject, &self.content_type, &self.trace_parent];
        let more: usize = optional.iter().filter_map(|text| text.as_ref()).map(|text| text.len()).sum();
        let mut out = BytesMut::with_capacity(64 + texts + more + attributes + self.data.len());
        out.put_u8(FORMAT);
        out.put_u32_le(self.hops);
        out.put_u64_le(self.time_ms);
        for text in [&self.id[..], &self.source, &self.kind] {
            put(&mut out, text.as_bytes());
        }
        for text in optional {
            match text {
                Some(text) => put(&mut out, text.as_bytes()),
                None => out.put_u32_le(NONE),
            }
        }
        out.put_u32_le(length(self.attributes.len()));
        for (name, value) in &self.attributes {
            put(&mut out, name.as_bytes());
            put(&mut out, value.as_bytes());
        }
        put(&mut out, &self.data);
        out.freeze()
    }

    /// What [`Event::encode`] wrote; `None` when it is not that. The payload is not copied.
    pub fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.try_get_u8().ok()? != FORMAT {
            return None;
        }
        let (hops, time_ms) = (bytes.try_get_u32_le().ok()?, bytes.try_get_u64_le().ok()?);
        let (id, source, kind) = (text(&mut bytes)??, text(&mut bytes)??, text(&mut bytes)??);
        let (subject, content_type, trace_parent) = (text(&mut bytes)?, text(&mut bytes)?, text(&mut bytes)?);
        let count = bytes.try_get_u32_le().ok()?;
        let mut attributes = Vec::new();
        for _ in 0..count {
            attributes.push((text(&mut bytes)??, text(&mut bytes)??));
        }
        let data = take(&mut bytes)??;
        bytes.is_empty().then(|| Self {
            id: id.into(),
            source: source.into(),
            kind: Cow::Owned(kind),
            subject: subject.map(Into::into),
            time_ms,
            content_type: content_type.map(Into::into),
            attributes,
            data,
            trace_parent: trace_parent.map(Into::into),
            hops,
        })
    }
}

/// An event that is looked into: its payload is parsed once, and only when somebody asks.
#[derive(Debug)]
pub struct Opened<'a> {
    event: &'a Event,
    json: OnceLock<serde_json::Result<Value>>,
}

impl<'a> Opened<'a> {
    /// Nothing is parsed yet.
    pub const fn new(event: &'a Event) -> Self {
        Self { event, json: OnceLock::new() }
    }

    /// The event itself.
    pub const fn event(&self) -> &'a Event {
        self.event
    }

    /// The payload.
    ///
    /// # Errors
    /// When it is no JSON.
    pub fn json(&self) -> Result<&Value, &serde_json::Error> {
        self.json.get_or_init(|| serde_json::from_slice(&self.event.data)).as_ref()
    }

    /// What tells it from others; `None` when it lacks that.
    ///
    /// # Errors
    /// When that is in the payload, and this is no JSON.
    pub fn part(&self, part: &KeyPart) -> Result<Option<Cow<'a, [u8]>>, &serde_json::Error> {
        let event = self.event;
        let text = match part {
            KeyPart::Topic => event.subject.as_deref(),
            KeyPart::Id => Some(&*event.id),
            KeyPart::Source => Some(&*event.source),
            KeyPart::Attribute(name) => {
                event.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
            }
            KeyPart::Pointer(pointer) => {
                let value = self.json()?.pointer(pointer);
                return Ok(value.map(|value| Cow::Owned(value.to_string().into_bytes())));
            }
        };
        Ok(text.map(|text| Cow::Borrowed(text.as_bytes())))
    }
}

/// Limits bound what makes an event far below 4 GiB.
fn length(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(NONE - 1)
}

fn put(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32_le(length(bytes.len()));
    out.put_slice(bytes);
}

/// The next bytes, or that there are none; `None` when what follows is not that.
fn take(bytes: &mut Bytes) -> Option<Option<Bytes>> {
    match bytes.try_get_u32_le().ok()? {
        NONE => Some(None),
        length => {
            let length = usize::try_from(length).ok().filter(|length| *length <= bytes.len())?;
            Some(Some(bytes.split_to(length)))
        }
    }
}

fn text(bytes: &mut Bytes) -> Option<Option<String>> {
    match take(bytes)? {
        None => Some(None),
        Some(bytes) => std::str::from_utf8(&bytes).ok().map(|text| Some(text.to_owned())),
    }
}

/// A new event id: UUID version 7, so that ids sort by time.
pub fn new_id() -> Arc<str> {
    // Ids are no secrets: two for each event would ask the kernel for randomness more often than for anything else.
    let mut random = [0; 10];
    fastrand::fill(&mut random);
    let id = uuid::Builder::from_unix_timestamp_millis(Clock::system().now_ms(), &random);
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    Arc::from(&*id.into_uuid().hyphenated().encode_lower(&mut text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        Event {
            id: new_id(),
            source: "mqtt:local".into(),
            kind: Cow::Borrowed("mqtt.message"),
            subject: Some("sensors/ä".into()),
            time_ms: 1_774_742_400_000,
            content_type: None,
            attributes: vec![("site".to_owned(), "3".to_owned()), (String::new(), String::new())],
            data: Bytes::from_static(b"\xff\x00{}"),
            trace_parent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
            hops: 3,
        }
    }

    #[test]
    fn an_event_comes_back_whole_from_its_bytes() {
        for event in [event(), Event::default(), Event { subject: None, content_type: Some("a/b".into()), ..event() }] {
            assert_eq!(Event::decode(event.encode()), Some(event));
        }
    }

    #[test]
    fn damaged_bytes_are_no_event_or_a_whole_one() {
        let whole = event().encode();
        for cut in 0..whole.len() {
            assert_eq!(Event::decode(whole.slice(..cut)), None, "cut at {cut}");
        }
        assert_eq!(Event::decode([&whole[..], b"x"].concat().into()), None);
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut flipped = whole.to_vec();
                flipped[at] ^= 1 << bit;
                let flipped = Bytes::from(flipped);
                if let Some(event) = Event::decode(flipped.clone()) {
                    assert_eq!(event.encode(), flipped, "byte {at}, bit {bit}");
                }
            }
        }
    }

    #[test]
    fn ids_are_unique_and_sort_by_time() {
        let ids: std::collections::HashSet<_> = (0..10_000).map(|_| new_id()).collect();
        assert_eq!(ids.len(), 10_000);
        let (earlier, ()) = (new_id(), std::thread::sleep(std::time::Duration::from_millis(2)));
        assert!(earlier < new_id());
    }
}
