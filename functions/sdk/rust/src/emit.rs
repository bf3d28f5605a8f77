//! What a handler sends: messages and records.

use serde::Serialize;

use crate::failure::Failure;
use crate::host;

/// A message to publish over MQTT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Without wildcards.
    pub topic: String,
    /// The payload.
    pub data: Vec<u8>,
    /// 0, 1 or 2; the agent's choice unless said.
    pub qos: Option<u8>,
    /// Whether the broker keeps it for later subscribers.
    pub retain: bool,
    /// Media type of `data`, for MQTT 5.
    pub content_type: Option<String>,
}

impl Message {
    /// A message with these bytes.
    pub fn new(topic: impl Into<String>, data: impl Into<Vec<u8>>) -> Self {
        Self { topic: topic.into(), data: data.into(), qos: None, retain: false, content_type: None }
    }

    /// A message with the JSON of `value`.
    ///
    /// # Errors
    /// [`Failure::Reject`] when `value` has no JSON, for example a map whose keys are not text.
    pub fn json(topic: impl Into<String>, value: &impl Serialize) -> Result<Self, Failure> {
        Ok(Self::new(topic, json(value)?))
    }

    /// With another quality of service: 0, 1 or 2.
    #[must_use]
    pub fn qos(self, qos: u8) -> Self {
        Self { qos: Some(qos), ..self }
    }

    /// Kept by the broker for later subscribers.
    #[must_use]
    pub fn retained(self) -> Self {
        Self { retain: true, ..self }
    }

    /// With a media type, which MQTT 5 carries.
    #[must_use]
    pub fn content_type(self, media_type: impl Into<String>) -> Self {
        Self { content_type: Some(media_type.into()), ..self }
    }
}

/// Publishes a message when the handler succeeds.
///
/// # Errors
/// [`Failure::Reject`] when the function may not publish on that topic, or the topic is malformed.
pub fn publish(message: Message) -> Result<(), Failure> {
    host::publish(message).map_err(Failure::Reject)
}

/// Appends the JSON of `value` to a stream when the handler succeeds.
///
/// # Errors
/// [`Failure::Reject`] when the function may not append to that stream, or `value` has no JSON.
pub fn append(stream: &str, value: &impl Serialize) -> Result<(), Failure> {
    append_bytes(stream, &json(value)?)
}

/// Appends a record as it is to a stream when the handler succeeds.
///
/// # Errors
/// [`Failure::Reject`] when the function may not append to that stream.
pub fn append_bytes(stream: &str, data: &[u8]) -> Result<(), Failure> {
    host::append(stream, data).map_err(Failure::Reject)
}

pub(crate) fn json(value: &impl Serialize) -> Result<Vec<u8>, Failure> {
    serde_json::to_vec(value).map_err(|error| Failure::reject(format_args!("no JSON for a value: {error}")))
}
