//! Names that users give: checked once where they enter, safe in topics, paths, metrics and log fields ever after.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest name, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{name}` is not a {what} name: it must be 1 to {NAME_BYTES_MAX} of `a-z`, `0-9`, `-` and `_`, and start with a letter or digit"
)]
pub struct NameError {
    what: &'static str,
    name: String,
}

fn check(what: &'static str, name: &str) -> Result<Arc<str>, NameError> {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    let starts_well = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if starts_well && name.len() <= NAME_BYTES_MAX && name.bytes().all(allowed) {
        Ok(name.into())
    } else {
        Err(NameError { what, name: name.to_owned() })
    }
}

macro_rules! names {
    ($($(#[$doc:meta])* $type:ident = $what:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// Checks `name`.
            ///
            /// # Errors
            /// When a character or the length is not allowed.
            pub fn parse(name: &str) -> Result<Self, NameError> {
                check($what, name).map(Self)
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                Self::parse(&name)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    )*};
}

names! {
    /// A function's name.
    FunctionName = "function";
    /// A durable stream's name.
    StreamName = "stream";
    /// A model's name.
    ModelName = "model";
    /// The name of an MQTT broker in gateway.toml: `local` in `[mqtt.local]`.
    BrokerName = "broker";
    /// The name of what triggers hear of this machine: `radio` in `[source.radio]`.
    SourceName = "source";
    /// This machine's name in the fleet.
    GatewayName = "gateway";
    /// The name of a set of gateways.
    GroupName = "group";
    /// The name of something that is published: a function, a model, a layer, a runtime.
    ArtifactName = "artifact";
    /// A movable name of a version: `live`, `canary`.
    AliasName = "alias";
}

/// What the agent keeps in streams of its own, beside the users'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// Events of one function that wait on disk: for another attempt, for their turn, for room.
    Parked,
    /// Publishes for one broker that were committed and are not confirmed yet.
    Outbox,
    /// Idempotency keys of one function that were dealt with.
    Seen,
    /// Messages that the embedded broker has acknowledged and functions still work on.
    Held,
    /// Events of one function that wait until their window is full.
    Window,
}

impl Own {
    const fn word(self) -> &'static str {
        match self {
            Self::Parked => "parked",
            Self::Outbox => "outbox",
            Self::Seen => "seen",
            Self::Held => "held",
            Self::Window => "window",
        }
    }
}

impl StreamName {
    /// A stream of the agent's own: `~parked.fahrenheit`. No user's name starts with `~`.
    pub fn own(what: Own, of: &str) -> Self {
        Self(format!("~{}.{of}", what.word()).into())
    }

    /// Whose it is, when it is such a stream.
    pub fn own_of(&self, what: Own) -> Option<FunctionName> {
        let (kind, of) = self.0.strip_prefix('~')?.split_once('.')?;
        let of = FunctionName::parse(of).ok()?;
        (kind == what.word()).then_some(of)
    }

    /// Whether it is the agent's own.
    pub fn is_own(&self) -> bool {
        self.0.starts_with('~')
    }

    /// Checks a name that was read from disk: a user's, or the agent's own.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse_stored(name: &str) -> Result<Self, NameError> {
        for what in [Own::Parked, Own::Outbox, Own::Seen, Own::Held, Own::Window] {
            let prefix = Self::own(what, "");
            if let Some(of) = name.strip_prefix(prefix.as_str()) {
                return Self::parse(of).map(|of| Self::own(what, of.as_str()));
            }
        }
        Self::parse(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, valid: bool) {
        assert_eq!(FunctionName::parse(name).is_ok(), valid, "{name:?}");
    }

    #[test]
    fn a_name_is_safe_in_topics_paths_and_labels() {
        check("press-hall-3", true);
        check("a", true);
        check("3d_printer", true);
        check("", false);
        check("-a", false);
        check("a/b", false);
        check("..", false);
        check("Ä", false);
        check("UPPER", false);
        check(&"x".repeat(64), true);
        check(&"x".repeat(65), false);
    }

    #[test]
    fn the_error_says_what_is_allowed() {
        let error = StreamName::parse("a b").unwrap_err().to_string();
        assert!(error.starts_with("`a b` is not a stream name: it must be"), "{error}");
    }
}
