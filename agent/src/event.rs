//! One occurrence that a trigger observed, with the attributes of CloudEvents 1.0.2.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use crate::clock::Clock;

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

    #[test]
    fn ids_are_unique_and_sort_by_time() {
        let ids: std::collections::HashSet<_> = (0..10_000).map(|_| new_id()).collect();
        assert_eq!(ids.len(), 10_000);
        let (earlier, ()) = (new_id(), std::thread::sleep(std::time::Duration::from_millis(2)));
        assert!(earlier < new_id());
    }
}
