//! Where a stream drains to: a broker, an HTTP server, or the control plane.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};
use toml::Value;

use super::document::Document;
use super::read::{Read, ReadTable, Table, alone, table, text, words};
use crate::name::BrokerName;
use crate::units::ByteSize;

/// `uplink = { mqtt = "cloud", topic = "site/{gateway}/{stream}" }`, `{ http = "https://cloud.example/records" }` or `{ cloud = true }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkConfig {
    /// Where records go.
    pub to: UplinkTo,
    /// Most that leaves, so that a backlog leaves room on a thin link.
    pub max_rate: Option<Rate>,
}

/// Where records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UplinkTo {
    /// To a broker, one message each.
    Mqtt(MqttUplink),
    /// To a server, many in one request.
    Http(HttpUplink),
    /// To the control plane of `[cloud]`, which keeps each once.
    Cloud,
}

/// Records as messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MqttUplink {
    /// Which broker.
    pub broker: BrokerName,
    /// Topic; `{gateway}` and `{stream}` are filled in.
    pub topic: String,
    /// A JSON envelope, or the bare bytes with the id in MQTT 5 user properties.
    pub payload: UplinkPayload,
}

/// Records as lines of a request's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpUplink {
    /// `https://HOST:PORT/PATH`; `{gateway}` and `{stream}` are filled in.
    pub url: String,
    /// File with the token that is sent as `Authorization: Bearer …`; read anew when the server refuses it.
    pub token_file: Option<PathBuf>,
    /// PEM file of the authorities that may sign the server's certificate; the public ones unless said.
    pub ca: Option<PathBuf>,
    /// PEM file of this client's certificate chain.
    pub cert: Option<PathBuf>,
    /// PEM file of the key of `cert`.
    pub key: Option<PathBuf>,
}

impl UplinkConfig {
    /// To `topic` of `broker`, in envelopes, as fast as it goes.
    pub fn mqtt(broker: BrokerName, topic: &str) -> Self {
        let (topic, payload) = (topic.to_owned(), UplinkPayload::Envelope);
        Self { to: UplinkTo::Mqtt(MqttUplink { broker, topic, payload }), max_rate: None }
    }

    /// To the server at `url`, as fast as it goes.
    pub fn http(url: &str) -> Self {
        let http = HttpUplink { url: url.to_owned(), token_file: None, ca: None, cert: None, key: None };
        Self { to: UplinkTo::Http(http), max_rate: None }
    }

    /// The broker that records go to, when they go to one.
    pub fn broker(&self) -> Option<&BrokerName> {
        match &self.to {
            UplinkTo::Mqtt(mqtt) => Some(&mqtt.broker),
            UplinkTo::Http(_) | UplinkTo::Cloud => None,
        }
    }
}

impl fmt::Display for UplinkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.to {
            UplinkTo::Mqtt(mqtt) => write!(f, "mqtt {} {}", mqtt.broker, mqtt.topic),
            UplinkTo::Http(http) => write!(f, "http {}", http.url),
            UplinkTo::Cloud => f.write_str("cloud"),
        }
    }
}

impl ReadTable for UplinkConfig {
    const KEYS: &'static [&'static str] =
        &["mqtt", "topic", "payload", "http", "token_file", "ca", "cert", "key", "cloud", "max_rate"];

    fn take(table: &mut Table<'_>) -> Option<Self> {
        let mqtt: Option<Option<BrokerName>> = table.optional("mqtt");
        let http: Option<Option<String>> = table.optional("http");
        let cloud: Option<Option<bool>> = table.optional("cloud");
        let max_rate = table.optional("max_rate");
        // The keys of the other kinds stay unknown.
        let to = match (mqtt?, http?, cloud?.filter(|cloud| *cloud)) {
            (Some(broker), None, None) => {
                let topic = table.required("topic", "\"site/{gateway}/{stream}\"");
                let payload = table.or("payload", UplinkPayload::Envelope);
                UplinkTo::Mqtt(MqttUplink { broker, topic: topic?, payload: payload? })
            }
            (None, Some(url), None) => {
                let [token_file, ca, cert, key] = ["token_file", "ca", "cert", "key"].map(|key| table.optional(key));
                UplinkTo::Http(HttpUplink { url, token_file: token_file?, ca: ca?, cert: cert?, key: key? })
            }
            (None, None, Some(_)) => UplinkTo::Cloud,
            (None, None, None) => {
                let hint = "add `mqtt = \"cloud\"` with its `topic`, `http = \"https://…\"`, or `cloud = true`";
                table.refuse("it names neither `mqtt` nor `http` nor `cloud`", hint);
                return None;
            }
            _ => {
                let hint = "a stream has one uplink: keep one of them";
                table.refuse("it names more than one of `mqtt`, `http` and `cloud`", hint);
                return None;
            }
        };
        Some(Self { to, max_rate: max_rate? })
    }
}

impl Read for UplinkConfig {
    fn read(value: &Value, path: &str, document: &mut Document) -> Option<Self> {
        table(value, path, document)
    }
}

impl<'de> Deserialize<'de> for UplinkConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        alone(&value).map_err(serde::de::Error::custom)
    }
}

/// How much may leave in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// `"64 KiB/s"`: bytes of messages or of request bodies.
    Bytes(u64),
    /// `"100/s"`: records.
    Records(u64),
}

/// Why `max_rate` was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither a size nor a number of records per second, such as `64 KiB/s` or `100/s`")]
pub struct RateError(String);

impl FromStr for Rate {
    type Err = RateError;
    fn from_str(text: &str) -> Result<Self, RateError> {
        let wrong = || RateError(text.to_owned());
        let amount = text.trim().strip_suffix("/s").ok_or_else(wrong)?.trim();
        match amount.parse::<u64>() {
            Ok(records) => Ok(Self::Records(records)),
            Err(_) => ByteSize::parse(amount).map(|size| Self::Bytes(size.0)).map_err(|_| wrong()),
        }
    }
}

impl Read for Rate {
    fn read(value: &Value, path: &str, document: &mut Document) -> Option<Self> {
        text(value, path, document, ("a rate in quotes", "\"64 KiB/s\""), str::parse)
    }
}

/// What a record looks like in MQTT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UplinkPayload {
    /// `{"id","gateway","stream","sequence","time_ms","replayed","data"}`; `data_base64` when it is not JSON.
    #[default]
    Envelope,
    /// The record's bytes.
    Bare,
}

words! { UplinkPayload: "envelope" = Self::Envelope, "bare" = Self::Bare }
