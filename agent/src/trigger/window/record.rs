//! An event that waits for its window: as JSON, which the window is made of, and as a record on disk.
//!
//! ```text
//! format u8 | window u32 | hops u32 | came u64 | has key u8 | key: length u32, text | JSON
//! ```
//! Integers are little-endian; `came` is by the journal's own clock, in milliseconds.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde_json::Value;

use super::gather::{Key, cost};
use crate::api::cloudevents;
use crate::event::{Event, Opened};
use crate::recording::line::{Head, readable};

const FORMAT: u8 = 1;
/// What a payload is that is text and does not say so.
const TEXT: &str = "text/plain";
/// How deep JSON may be nested that goes into a window: readers that take 128 levels, as ours do, read it there too, and where the
/// window is kept.
const DEPTH_MAX: usize = 100;

/// An event as the items of a CloudEvents batch are.
#[derive(Serialize)]
struct Item<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
}

/// `event` as JSON. A payload that is JSON stays as it came, byte by byte; other text is a string, anything else is in base64. What
/// cannot be read makes no window unreadable.
pub(super) fn item(event: &Opened<'_>) -> serde_json::Result<Bytes> {
    let Event { content_type, data, .. } = event.event();
    let said = content_type.as_deref();
    let may_be_json = said.is_none_or(cloudevents::json_type);
    let is_json = may_be_json && event.json().is_ok_and(|json| is_within(json, DEPTH_MAX));
    let may_be_text = said.is_none_or(|said| !cloudevents::json_type(said));
    let text = readable(data).filter(|_| may_be_text && !is_json);
    let mut head = Head::of(event.event());
    head.datacontenttype = said.or(text.map(|_| TEXT));
    let item = Item { head, data: text, data_base64: (!is_json && text.is_none()).then(|| STANDARD.encode(data)) };
    let mut out = serde_json::to_vec(&item)?;
    if is_json {
        out.pop();
        out.extend_from_slice(b",\"data\":");
        out.extend_from_slice(data);
        out.push(b'}');
    }
    // Many wait for long: none takes more than it needs.
    Ok(out.into_boxed_slice().into())
}

/// Whether `json` is nested no deeper than `levels`.
fn is_within(json: &Value, levels: usize) -> bool {
    let within = |part| levels > 0 && is_within(part, levels - 1);
    match json {
        Value::Array(parts) => levels > 0 && parts.iter().all(within),
        Value::Object(parts) => levels > 0 && parts.values().all(within),
        _ => true,
    }
}

/// The items as a JSON array.
pub(super) fn array<'a>(items: impl Iterator<Item = &'a Bytes> + Clone) -> Bytes {
    let bytes: usize = items.clone().map(|item| item.len() + 1).sum();
    let mut out = BytesMut::with_capacity(bytes + 1);
    for (n, item) in items.enumerate() {
        out.put_u8(if n == 0 { b'[' } else { b',' });
        out.put_slice(item);
    }
    out.put_u8(b']');
    out.freeze()
}

/// An event on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    /// Of which trigger.
    pub(super) window: u32,
    pub(super) key: Key,
    pub(super) hops: u32,
    pub(super) item: Bytes,
}

impl Waiting {
    /// What it counts against what may wait.
    pub(super) fn cost(&self) -> usize {
        cost(&self.key, &self.item)
    }

    pub(super) fn encode(&self, age_ms: u64) -> Bytes {
        let mut out = BytesMut::with_capacity(self.cost());
        out.put_u8(FORMAT);
        out.put_u32_le(self.window);
        out.put_u32_le(self.hops);
        out.put_u64_le(age_ms);
        out.put_u8(self.key.is_some().into());
        let key = self.key.as_deref().unwrap_or_default();
        out.put_u32_le(u32::try_from(key.len()).unwrap_or(u32::MAX));
        out.put_slice(key);
        out.put_slice(&self.item);
        out.freeze()
    }

    /// What [`Waiting::encode`] wrote, and when the event came; `None` when it is something else. It keeps nothing of `bytes`, which may
    /// be a part of much more.
    pub(super) fn decode(mut bytes: &[u8]) -> Option<(Self, u64)> {
        if bytes.try_get_u8().ok()? != FORMAT {
            return None;
        }
        let (window, hops) = (bytes.try_get_u32_le().ok()?, bytes.try_get_u32_le().ok()?);
        let age_ms = bytes.try_get_u64_le().ok()?;
        let has_key = bytes.try_get_u8().ok()?;
        let length = usize::try_from(bytes.try_get_u32_le().ok()?).ok()?;
        let (key, item) = bytes.split_at_checked(length)?;
        let key = match has_key {
            0 => key.is_empty().then_some(None)?,
            1 => Some(Bytes::copy_from_slice(key)),
            _ => return None,
        };
        Some((Self { window, key, hops, item: Bytes::copy_from_slice(item) }, age_ms))
    }
}

/// Reads `bytes` as an event that waits: one that is taken reads back as it was.
///
/// # Panics
/// When it does not.
pub(crate) fn check(bytes: &[u8]) {
    if let Some((waiting, age_ms)) = Waiting::decode(bytes) {
        assert_eq!(waiting.encode(age_ms), bytes);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn event(data: &'static [u8], content_type: Option<&str>) -> Event {
        Event {
            id: "7".into(),
            source: "mqtt:local".into(),
            kind: "mqtt.message".into(),
            subject: Some("hall/1".into()),
            time_ms: 1_774_742_400_000,
            content_type: content_type.map(Into::into),
            data: Bytes::from_static(data),
            ..Event::default()
        }
    }

    #[track_caller]
    fn check(data: &'static [u8], content_type: Option<&str>, key: &str, value: Value) {
        let event = event(data, content_type);
        let made: Value = serde_json::from_slice(&item(&Opened::new(&event)).unwrap()).unwrap();
        assert_eq!(made[key], value, "{made}");
        assert_eq!(made["subject"], "hall/1");
        assert_eq!(made["time"], "2026-03-29T00:00:00Z");
        // Whoever reads it as a CloudEvent finds the payload.
        let read = cloudevents::parse(made.to_string().as_bytes(), 0).unwrap();
        let same = |a: &[u8], b: &[u8]| match (serde_json::from_slice::<Value>(a), serde_json::from_slice::<Value>(b)) {
            (Ok(a), Ok(b)) => a == b,
            _ => a == b,
        };
        assert!(same(&read.data, &event.data), "{made}");
    }

    #[test]
    fn an_item_has_the_payload_as_its_type_says() {
        check(br#"{"g": [1, 2.50]}"#, None, "data", json!({"g": [1, 2.5]}));
        check(b"20", Some("application/json"), "data", json!(20));
        check(b"20", Some("text/csv"), "data", json!("20"));
        check(b"on \"1\"\n", None, "data", json!("on \"1\"\n"));
        check(b"on", None, "datacontenttype", json!("text/plain"));
        check(b"", None, "data", json!(""));
        check(b"\xff\x00", None, "data_base64", json!("/wA="));
        check(b"{", Some("application/json"), "data_base64", json!("ew=="));
    }

    #[test]
    fn no_payload_makes_a_window_unreadable() {
        let nested = |levels: usize| ["[".repeat(levels), "]".repeat(levels)].concat();
        let (deep, deeper, deepest) = (nested(DEPTH_MAX), nested(DEPTH_MAX + 1), nested(200));
        let payloads: [(&[u8], &str); 8] = [
            (b"\xb0", "data_base64"),
            (b"\"\xb0\"", "data_base64"),
            (br#""\ud800""#, "data"),
            (b"1e999", "data"),
            (deep.as_bytes(), "data"),
            (deeper.as_bytes(), "data"),
            (deepest.as_bytes(), "data"),
            (b"\0\x1b\0", "data_base64"),
        ];
        let event = |(data, _): &(&[u8], &str)| Event { data: Bytes::copy_from_slice(data), ..event(b"", None) };
        let items: Vec<_> = payloads.iter().map(|payload| item(&Opened::new(&event(payload))).unwrap()).collect();
        // As it is in a recording of the window.
        let window = format!("{{\"data\":{}}}", std::str::from_utf8(&array(items.iter())).unwrap());
        let window: Value = serde_json::from_str(&window).unwrap();
        for (n, (data, field)) in payloads.iter().enumerate() {
            let item = &window["data"][n];
            assert!(item.get(field).is_some(), "{item}");
            let read = cloudevents::parse(item.to_string().as_bytes(), 0).unwrap();
            assert_eq!(&read.data[..], *data, "{item}");
        }
    }

    #[test]
    fn a_payload_takes_little_more_as_an_item() {
        for byte in [0, 0x1b, b'\n', b'"', b'\\', 0x7f, 0xff] {
            for content_type in [None, Some("text/plain"), Some("application/json")] {
                let data = Bytes::from(vec![byte; 10_000]);
                let event = Event { data, ..event(b"", content_type) };
                let bytes = item(&Opened::new(&event)).unwrap().len();
                assert!(bytes < 21_000, "{bytes} of {byte} as {content_type:?}");
            }
        }
    }

    #[test]
    fn a_payload_of_json_stays_as_it_came() {
        let data = b" {\"n\": 12345678901234567890123, \"t\": 2.50}\n";
        let item = item(&Opened::new(&event(data, None))).unwrap();
        assert!(item.windows(data.len()).any(|part| part == data), "{item:?}");
    }

    #[test]
    fn an_event_that_waits_comes_back_from_disk_as_it_was() {
        for key in [None, Some(Bytes::new()), Some("hall/ü".into())] {
            let waiting = Waiting { window: 0xf00d, key, hops: 3, item: Bytes::from_static(b"{}") };
            let bytes = waiting.encode(77);
            assert_eq!(Waiting::decode(&bytes), Some((waiting, 77)));
            for cut in 0..22 {
                assert_eq!(Waiting::decode(&bytes[..cut]), None, "cut at {cut}");
            }
            super::check(&bytes);
        }
        assert_eq!(Waiting::decode(b"\x09"), None);
    }
}
