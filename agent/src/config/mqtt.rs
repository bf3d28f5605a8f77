//! Brokers: the ones that the agent connects to, and the one that it can be itself.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::read::keys;
use crate::topic::TopicFilter;
use crate::units::{ByteSize, Span};

/// `[mqtt.NAME]`: one broker.
#[derive(Clone, Debug, PartialEq)]
pub struct MqttConfig {
    /// `mqtt://HOST:PORT` or `mqtts://HOST:PORT`.
    pub url: String,
    /// MQTT version: 5 or 3 (3.1.1).
    pub version: u8,
    /// Client id; `tidegate-GATEWAY-BROKER` unless said. The persistent session belongs to it.
    pub client_id: Option<String>,
    /// User name.
    pub username: Option<String>,
    /// File with the password.
    pub password_file: Option<PathBuf>,
    /// PEM file of the authorities that may sign the broker's certificate; the public ones unless said.
    pub ca: Option<PathBuf>,
    /// PEM file of this client's certificate chain.
    pub cert: Option<PathBuf>,
    /// PEM file of the key of `cert`.
    pub key: Option<PathBuf>,
    /// Interval of PINGREQ.
    pub keep_alive: Span,
    /// How long the broker keeps the session while the agent is away (MQTT 5; 3.1.1 has no end).
    pub session_expiry: Span,
    /// Highest QoS that the broker has: a broker of MQTT 5 says it itself.
    pub max_qos: u8,
    /// Largest packet that the broker takes: a broker of MQTT 5 says it itself.
    pub max_packet: Option<ByteSize>,
    /// Publishes of QoS 1 and 2 that the broker lets be under way: a broker of MQTT 5 says it itself.
    pub max_in_flight: Option<u32>,
}

keys! { MqttConfig:
    url = required("\"mqtt://127.0.0.1:1883\""),
    version = or(5),
    client_id = optional(),
    username = optional(),
    password_file = optional(),
    ca = optional(),
    cert = optional(),
    key = optional(),
    keep_alive = or(Span::from_secs(30)),
    session_expiry = or(Span::from_secs(7 * 86_400)),
    max_qos = or(2),
    max_packet = optional(),
    max_in_flight = optional(),
}

impl MqttConfig {
    /// A broker that needs nothing but its address.
    pub fn to(url: String) -> Self {
        Self {
            url,
            version: 5,
            client_id: None,
            username: None,
            password_file: None,
            ca: None,
            cert: None,
            key: None,
            keep_alive: Span::from_secs(30),
            session_expiry: Span::from_secs(7 * 86_400),
            max_qos: 2,
            max_packet: None,
            max_in_flight: None,
        }
    }
}

/// `[embedded_broker]`.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddedBrokerConfig {
    /// Where it listens; loopback unless said.
    pub listen: SocketAddr,
    /// `user = { password_file, publish = [filters], subscribe = [filters] }`; without users, anyone who can connect may do
    /// anything, which is allowed on loopback only.
    pub users: BTreeMap<String, BrokerUser>,
    /// PEM file of the server's certificate chain; with it the listener speaks TLS.
    pub cert: Option<PathBuf>,
    /// PEM file of the key of `cert`.
    pub key: Option<PathBuf>,
}

keys! { EmbeddedBrokerConfig:
    listen = or(([127, 0, 0, 1], 1883).into()),
    users = or(BTreeMap::new()),
    cert = optional(),
    key = optional(),
}

/// One user of the embedded broker.
#[derive(Clone, Debug, PartialEq)]
pub struct BrokerUser {
    /// File with the password.
    pub password_file: PathBuf,
    /// What it may publish on.
    pub publish: Vec<TopicFilter>,
    /// What it may subscribe to.
    pub subscribe: Vec<TopicFilter>,
}

keys! { BrokerUser:
    password_file = required("\"/etc/tidegate/NAME.password\""),
    publish = or(Vec::new()),
    subscribe = or(Vec::new()),
}
