//! Durations and sizes as users write them: always with a unit.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a duration or a size was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {what}: write a number and a unit, such as {example}")]
pub struct UnitError {
    text: String,
    what: &'static str,
    example: &'static str,
}

/// `7d`, `1h30m`, `60s`, `250ms`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub Duration);

/// `64 MiB`, `8MiB`, `1 GB`, `512 B`; powers of 1024 with an `i`, of 1000 without.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

const DURATION_UNITS: &[(&str, u64)] = &[
    ("us", 1),
    ("ms", 1_000),
    ("s", 1_000_000),
    ("m", 60_000_000),
    ("h", 3_600_000_000),
    ("d", 86_400_000_000),
    ("w", 604_800_000_000),
];

const SIZE_UNITS: &[(&str, u64)] = &[
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
];

/// One or more of number and unit, summed. `None` when anything else is in `text`.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let mut rest = text.trim();
    let mut total = 0_u64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let after = after.trim_start();
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at(letters);
        let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
        total = total.checked_add(number.parse::<u64>().ok()?.checked_mul(*factor)?)?;
        rest = after.trim_start();
    }
    Some(total)
}

impl Span {
    /// Reads `1h30m`.
    ///
    /// # Errors
    /// When the number or the unit is missing or unknown.
    pub fn parse(text: &str) -> Result<Self, UnitError> {
        parse(text, DURATION_UNITS).map(|micros| Self(Duration::from_micros(micros))).ok_or_else(|| UnitError {
            text: text.to_owned(),
            what: "duration",
            example: "`3s`, `250ms`, `1h` or `7d`",
        })
    }

    /// As whole milliseconds.
    pub fn millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }

    /// Whole seconds.
    pub const fn from_secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }
}

impl ByteSize {
    /// Reads `64 MiB`.
    ///
    /// # Errors
    /// When the number or the unit is missing or unknown.
    pub fn parse(text: &str) -> Result<Self, UnitError> {
        parse(text, SIZE_UNITS).map(Self).ok_or_else(|| UnitError {
            text: text.to_owned(),
            what: "size",
            example: "`64 MiB`, `512 KiB` or `1 GB`",
        })
    }

    /// `n` times 1024².
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }
}

/// The largest unit that leaves no remainder, so that what is shown can be pasted back.
fn show(f: &mut fmt::Formatter<'_>, value: u64, units: &[(&str, u64)], space: &str) -> fmt::Result {
    let fits = |(_, factor): &&(&str, u64)| value >= *factor && value.is_multiple_of(*factor);
    match units.iter().filter(fits).max_by_key(|(_, factor)| *factor) {
        Some((unit, factor)) => write!(f, "{}{space}{unit}", value / factor),
        None => write!(f, "0{space}{}", if space.is_empty() { "s" } else { "B" }),
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, u64::try_from(self.0.as_micros()).unwrap_or(u64::MAX), DURATION_UNITS, "")
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, self.0, SIZE_UNITS, " ")
    }
}

macro_rules! as_text {
    ($($type:ident),*) => {$(
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                Self::parse(&text).map_err(serde::de::Error::custom)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}

as_text!(Span, ByteSize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_needs_a_unit() {
        assert_eq!(Span::parse("3s").unwrap().0, Duration::from_secs(3));
        assert_eq!(Span::parse("1h30m").unwrap().0, Duration::from_secs(5400));
        assert_eq!(Span::parse("7d").unwrap().0, Duration::from_secs(604_800));
        for wrong in ["", "3", "3 parsecs", "s", "-1s", "99999999999999999999s"] {
            assert!(Span::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_size_needs_a_unit() {
        assert_eq!(ByteSize::parse("64 MiB").unwrap(), ByteSize::mib(64));
        assert_eq!(ByteSize::parse("1 kB").unwrap(), ByteSize(1000));
        for wrong in ["64", "64 mb", "MiB", "1.5 MiB"] {
            assert!(ByteSize::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_shown_can_be_pasted_back() {
        for text in ["7w", "90m", "250ms", "3s"] {
            assert_eq!(Span::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(ByteSize::mib(64).to_string(), "64 MiB");
        assert_eq!(ByteSize(1500).to_string(), "1500 B");
    }
}
