//! What a function may do, granted by name in gateway.toml or by an operator's signature.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::name::{ModelName, NameError, SourceName, StreamName};
use crate::topic::{TopicError, TopicFilter};

/// One thing that a function may do.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Capability {
    /// `mqtt:publish:results/#`: publish on the topics that the filter matches.
    MqttPublish(TopicFilter),
    /// `stream:readings`: append to the stream.
    Stream(StreamName),
    /// `model:motion`: load and run the model.
    Model(ModelName),
    /// `keyvalue`: buckets of its own, kept on the gateway.
    KeyValue,
    /// `source:inbox:read`: read the folder of the source.
    SourceRead(SourceName),
    /// `source:press:write`: set what the source says can be set.
    SourceWrite(SourceName),
}

/// Why a capability was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CapabilityError {
    /// Not one of the kinds.
    #[error(
        "unknown capability `{0}`: it must be `mqtt:publish:FILTER`, `stream:NAME`, `model:NAME`, `source:NAME:read`, `source:NAME:write` or `keyvalue`"
    )]
    Unknown(String),
    /// The filter is malformed.
    #[error("capability `{0}` has a malformed topic filter")]
    Topic(String, #[source] TopicError),
    /// The name is malformed.
    #[error("capability `{0}` has a malformed name")]
    Name(String, #[source] NameError),
}

impl FromStr for Capability {
    type Err = CapabilityError;

    fn from_str(text: &str) -> Result<Self, CapabilityError> {
        let name_error = |source| CapabilityError::Name(text.to_owned(), source);
        match text.split_once(':') {
            Some(("mqtt", rest)) => match rest.strip_prefix("publish:") {
                Some(filter) => TopicFilter::parse(filter)
                    .map(Self::MqttPublish)
                    .map_err(|source| CapabilityError::Topic(text.to_owned(), source)),
                None => Err(CapabilityError::Unknown(text.to_owned())),
            },
            Some(("stream", name)) => StreamName::parse(name).map(Self::Stream).map_err(name_error),
            Some(("model", name)) => ModelName::parse(name).map(Self::Model).map_err(name_error),
            Some(("source", rest)) => match rest.rsplit_once(':') {
                Some((name, "read")) => SourceName::parse(name).map(Self::SourceRead).map_err(name_error),
                Some((name, "write")) => SourceName::parse(name).map(Self::SourceWrite).map_err(name_error),
                _ => Err(CapabilityError::Unknown(text.to_owned())),
            },
            None if text == "keyvalue" => Ok(Self::KeyValue),
            _ => Err(CapabilityError::Unknown(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Capability {
    type Error = CapabilityError;
    fn try_from(text: String) -> Result<Self, CapabilityError> {
        text.parse()
    }
}

impl From<Capability> for String {
    fn from(capability: Capability) -> Self {
        capability.to_string()
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MqttPublish(filter) => write!(f, "mqtt:publish:{filter}"),
            Self::Stream(name) => write!(f, "stream:{name}"),
            Self::Model(name) => write!(f, "model:{name}"),
            Self::KeyValue => f.write_str("keyvalue"),
            Self::SourceRead(name) => write!(f, "source:{name}:read"),
            Self::SourceWrite(name) => write!(f, "source:{name}:write"),
        }
    }
}

impl Capability {
    /// Whether who has this may do all that `other` allows.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::MqttPublish(mine), Self::MqttPublish(other)) => mine.covers(other),
            (mine, other) => mine == other,
        }
    }
}

/// All that one function may do. The error of each question is the capability that would allow it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Capabilities(pub Vec<Capability>);

impl Capabilities {
    /// Whether `other` is within one of these.
    pub fn cover(&self, other: &Capability) -> bool {
        self.0.iter().any(|mine| mine.covers(other))
    }

    fn grants(&self, test: impl Fn(&Capability) -> bool, needed: String) -> Result<(), String> {
        if self.0.iter().any(test) { Ok(()) } else { Err(needed) }
    }

    /// Whether it may publish on `topic`.
    ///
    /// # Errors
    /// With the capability that is missing.
    pub fn may_publish(&self, topic: &str) -> Result<(), String> {
        self.grants(|c| matches!(c, Capability::MqttPublish(f) if f.matches(topic)), format!("mqtt:publish:{topic}"))
    }

    /// Whether it may append to `stream`.
    ///
    /// # Errors
    /// With the capability that is missing.
    pub fn may_append(&self, stream: &str) -> Result<(), String> {
        self.grants(|c| matches!(c, Capability::Stream(s) if s.as_str() == stream), format!("stream:{stream}"))
    }

    /// Whether it may use `model`.
    ///
    /// # Errors
    /// With the capability that is missing.
    pub fn may_infer(&self, model: &str) -> Result<(), String> {
        self.grants(|c| matches!(c, Capability::Model(m) if m.as_str() == model), format!("model:{model}"))
    }

    /// Whether it may set what `source` says can be set.
    ///
    /// # Errors
    /// With the capability that is missing.
    pub fn may_set(&self, source: &str) -> Result<(), String> {
        self.grants(
            |c| matches!(c, Capability::SourceWrite(s) if s.as_str() == source),
            format!("source:{source}:write"),
        )
    }

    /// Whether it may keep key-values.
    ///
    /// # Errors
    /// With the capability that is missing.
    pub fn may_keep_values(&self) -> Result<(), String> {
        self.grants(|c| matches!(c, Capability::KeyValue), "keyvalue".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_reads_back_as_it_was_written() {
        for text in [
            "mqtt:publish:results/#",
            "stream:readings",
            "model:motion",
            "keyvalue",
            "source:inbox:read",
            "source:press:write",
        ] {
            assert_eq!(text.parse::<Capability>().unwrap().to_string(), text);
        }
        for wrong in [
            "",
            "mqtt:subscribe:a",
            "mqtt:publish:a#",
            "stream:A B",
            "keyvalue:x",
            "source:inbox",
            "source::read",
            "source::write",
            "source:a:b:write",
            "root",
        ] {
            assert!(wrong.parse::<Capability>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let granted = Capabilities(vec!["mqtt:publish:results/+".parse().unwrap()]);
        assert_eq!(granted.may_publish("results/1"), Ok(()));
        assert_eq!(granted.may_publish("alarm/1"), Err("mqtt:publish:alarm/1".to_owned()));
        assert_eq!(granted.may_append("readings"), Err("stream:readings".to_owned()));
    }
}
