//! What we and a broker tell each other when a connection begins.

use super::packet::Version;

/// What CONNECT says.
#[derive(Clone, Debug)]
pub(super) struct Hello {
    pub(super) client_id: String,
    pub(super) login: Option<(String, String)>,
    pub(super) keep_alive_secs: u16,
    pub(super) session_expiry_secs: u32,
    pub(super) receive_maximum: u16,
}

/// What CONNACK says when the broker lets us in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) session_present: bool,
    /// QoS 1 and 2 publishes that the broker takes at the same time.
    pub(super) receive_maximum: u16,
    /// Largest packet that the broker takes.
    pub(super) packet_bytes_max: u32,
    /// The broker's own idea of the keep-alive.
    pub(super) keep_alive_secs: Option<u16>,
    /// How long the broker keeps the session, when that is not what was asked for.
    pub(super) session_expiry_secs: Option<u32>,
    /// What else it does not have.
    pub(super) caps: Caps,
}

/// What a broker can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caps {
    /// Highest QoS of a publish.
    pub(super) max_qos: u8,
    /// Retained messages.
    pub(super) retain: bool,
    /// `+` and `#` in filters.
    pub(super) wildcards: bool,
    /// `$share/…`.
    pub(super) shares: bool,
    /// Whether it says for which subscription a message comes.
    pub(super) subscription_ids: bool,
}

impl Caps {
    /// All that a version of MQTT has.
    pub(super) fn of(version: Version) -> Self {
        Self { max_qos: 2, retain: true, wildcards: true, shares: true, subscription_ids: version == Version::V5 }
    }
}
