//! What a handler is called with.

use std::time::Duration;

use serde::Deserialize;

use crate::failure::Failure;
use crate::path::path;

/// One occurrence that a trigger observed, with the attributes of CloudEvents 1.0.2.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// New for each delivery: a repeated MQTT message comes with another one.
    pub id: String,
    /// Where it comes from, for example `mqtt:local`.
    pub source: String,
    /// `mqtt.message`, `schedule.tick`, or the type of a CloudEvent.
    pub kind: String,
    /// The topic of an MQTT message; the subject of a CloudEvent.
    pub subject: Option<String>,
    /// Unix time in milliseconds at which it was observed.
    pub time_ms: u64,
    /// Media type of `data`, when the sender said.
    pub content_type: Option<String>,
    /// MQTT 5 user properties; extensions of a CloudEvent.
    pub attributes: Vec<(String, String)>,
    /// The payload, as it came.
    pub data: Vec<u8>,
}

impl Event {
    /// The payload, read as JSON. `T` may borrow from the event.
    ///
    /// # Errors
    /// [`Failure::Reject`], which names the field that is missing or wrong.
    pub fn json<'a, T: Deserialize<'a>>(&'a self) -> Result<T, Failure> {
        serde_json::from_slice(&self.data).map_err(|error| self.not_json(&error))
    }

    // Apart and cold: the message is made by walking the text again.
    #[cold]
    fn not_json(&self, error: &serde_json::Error) -> Failure {
        match path(&self.data, error.line(), error.column()).as_str() {
            _ if !error.is_data() => Failure::reject(format_args!("the payload is not JSON: {error}")),
            "" => Failure::reject(format_args!("the payload: {error}")),
            field => Failure::reject(format_args!("field `{field}` of the payload: {error}")),
        }
    }

    /// The payload, read as UTF-8.
    ///
    /// # Errors
    /// [`Failure::Reject`] when it is not.
    pub fn text(&self) -> Result<&str, Failure> {
        str::from_utf8(&self.data).map_err(|error| Failure::reject(format_args!("the payload is not text: {error}")))
    }

    /// The topic that the message came on.
    ///
    /// # Errors
    /// [`Failure::Reject`] when the event has no subject, so did not come by MQTT.
    pub fn topic(&self) -> Result<&str, Failure> {
        self.subject.as_deref().ok_or_else(|| {
            Failure::reject(format_args!("the event has no topic: it is a `{}` from `{}`", self.kind, self.source))
        })
    }

    /// The first attribute of that name.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// The run that a call of the handler is part of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// The function's name on this gateway.
    pub function: String,
    /// Its version.
    pub version: String,
    /// Unique id of this run.
    pub invocation: String,
    /// 1 for the first try of this event.
    pub attempt: u32,
    /// Unix time in milliseconds at which the run is stopped.
    pub deadline_ms: u64,
    /// Most memory that the instance may use, in bytes.
    pub memory_bytes: u64,
    /// W3C `traceparent` of the run.
    pub trace_parent: Option<String>,
}

impl Context {
    /// How long the handler may still run; zero when its time is over.
    pub fn remaining(&self) -> Duration {
        Duration::from_millis(self.deadline_ms.saturating_sub(crate::now_ms()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only read to see it fail")]
    struct Reading {
        device: String,
        values: Vec<f64>,
    }

    #[track_caller]
    fn check(payload: &str, message: &str) {
        let event = Event { data: payload.into(), ..Event::default() };
        assert_eq!(event.json::<Reading>().unwrap_err(), Failure::reject(message), "{payload}");
    }

    #[test]
    fn a_wrong_payload_is_rejected_with_the_name_of_the_field() {
        check(r#"{"device":"a"}"#, "the payload: missing field `values` at line 1 column 14");
        check(
            r#"{"device":7,"values":[]}"#,
            "field `device` of the payload: invalid type: integer `7`, expected a string at line 1 column 11",
        );
        check(
            "{\"device\":\"a\",\n \"values\":[1, 2, \"x\"]}",
            "field `values[2]` of the payload: invalid type: string \"x\", expected f64 at line 2 column 20",
        );
        check("hot", "the payload is not JSON: expected value at line 1 column 1");
    }

    #[test]
    fn an_event_without_a_topic_says_what_it_is() {
        let event = Event { kind: "schedule.tick".into(), source: "schedule:report".into(), ..Event::default() };
        let expected = Failure::reject("the event has no topic: it is a `schedule.tick` from `schedule:report`");
        assert_eq!(event.topic(), Err(expected));
    }
}
