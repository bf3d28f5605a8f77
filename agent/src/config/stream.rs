//! Durable streams: how much they keep, and where they drain to.

use std::str::FromStr;

use toml::Value;

use super::document::Document;
use super::read::{Read, keys, text, words};
use super::uplink::UplinkConfig;
use crate::units::{ByteSize, Span};

/// `[stream.NAME]`.
#[derive(Clone, Debug, PartialEq)]
pub struct StreamConfig {
    /// Budget of its records; the database around them takes up to twice as much again.
    pub max_bytes: ByteSize,
    /// Records older than this are dropped, and counted.
    pub max_age: Option<Span>,
    /// Higher leaves first, among the streams that share a link.
    pub priority: u8,
    /// In which order it leaves after an outage.
    pub drain: Drain,
    /// What happens at the budget.
    pub when_full: WhenFull,
    /// When `append` returns.
    pub durability: Durability,
    /// Where it drains to; a stream without an uplink is kept until its limits.
    pub uplink: Option<UplinkConfig>,
    /// How many leave together.
    pub batch: BatchConfig,
}

impl Default for StreamConfig {
    fn default() -> Self {
        Self {
            max_bytes: ByteSize::mib(64),
            max_age: None,
            priority: 0,
            drain: Drain::default(),
            when_full: WhenFull::default(),
            durability: Durability::default(),
            uplink: None,
            batch: BatchConfig::default(),
        }
    }
}

keys! { StreamConfig:
    max_bytes = or(Self::default().max_bytes),
    max_age = optional(),
    priority = or(0),
    drain = or(Drain::InOrder),
    when_full = or(WhenFull::DropOldest),
    durability = or(Durability::Each),
    uplink = optional(),
    batch = or(BatchConfig::default()),
}

/// In which order a stream leaves after an outage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drain {
    /// As it was appended.
    #[default]
    InOrder,
    /// What comes on the new connection at once, what had to wait beside it; each of the two in order.
    LiveFirst,
}

words! { Drain: "in-order" = Self::InOrder, "live-first" = Self::LiveFirst }

/// What happens at a stream's budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// The oldest records go, and are counted.
    #[default]
    DropOldest,
    /// `append` fails, so that the event is tried again.
    Reject,
}

words! { WhenFull: "drop-oldest" = Self::DropOldest, "reject" = Self::Reject }

/// When `append` returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// When the record is on disk.
    #[default]
    Each,
    /// At once; a power cut may cost what came within this time.
    Every(Span),
}

/// Why `durability` was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither `each` nor a duration such as `1s`")]
pub struct DurabilityError(String);

impl FromStr for Durability {
    type Err = DurabilityError;
    fn from_str(text: &str) -> Result<Self, DurabilityError> {
        match text {
            "each" => Ok(Self::Each),
            text => Span::parse(text).map(Self::Every).map_err(|_| DurabilityError(text.to_owned())),
        }
    }
}

impl Read for Durability {
    fn read(value: &Value, path: &str, document: &mut Document) -> Option<Self> {
        text(value, path, document, ("`each` or a duration, in quotes", "\"each\""), str::parse)
    }
}

/// `batch = { max_records = 500, max_wait = "60s" }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchConfig {
    /// A batch leaves when it has this many.
    pub max_records: u32,
    /// Or when its first has waited this long.
    pub max_wait: Span,
}

keys! { BatchConfig: max_records = or(500), max_wait = or(Self::default().max_wait) }

impl Default for BatchConfig {
    fn default() -> Self {
        Self { max_records: 500, max_wait: Span::from_secs(1) }
    }
}
