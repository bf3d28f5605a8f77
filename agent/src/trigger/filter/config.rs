//! `only = { changed = "/temperature", deadband = 0.5 }` beside what a trigger listens to.

use std::fmt;
use std::str::FromStr;

use toml::Value;

use crate::config::document::{Document, join};
use crate::config::function::KeyPart;
use crate::config::keys;
use crate::config::read::{Read, text};
use crate::units::Span;

/// `only`: which of a trigger's events the function sees. All that it says must hold.
#[derive(Clone, Debug, PartialEq)]
pub struct FilterConfig {
    /// Those in which this differs from the last one that passed.
    pub changed: Option<Field>,
    /// By more than this.
    pub deadband: Option<Deadband>,
    /// No more than so many.
    pub at_most: Option<AtMost>,
    /// What has a last one of its own.
    pub per: KeyPart,
}

keys! { FilterConfig: changed = optional(), deadband = optional(), at_most = optional(), per = or(KeyPart::Topic) }

impl FilterConfig {
    pub(crate) fn check(&self, path: &str, document: &mut Document) {
        if (&self.changed, self.deadband, self.at_most) == (&None, None, None) {
            let hint = "write for example `only = { changed = \"/temperature\" }` or `only = { at_most = \"1/s\" }`";
            document.refuse_key(path, "it has neither `changed` nor `at_most`, so it would leave nothing out", hint);
        }
        if let Some(deadband) = self.deadband {
            let path = join(path, "deadband");
            if self.changed.is_none() {
                let hint = "add `changed` with the field, such as `changed = \"/temperature\"`";
                document.refuse_key(&path, "without `changed` there is nothing that it could be about", hint);
            }
            let (Deadband::Absolute(by) | Deadband::Percent(by)) = deadband;
            if !(by.is_finite() && by > 0.0) {
                let hint = "write a number above 0, such as `deadband = 0.5` or `deadband = \"2%\"`";
                document.refuse(&path, format!("{deadband} is not a distance"), hint);
            }
        }
        if self.per == KeyPart::Id {
            let hint = "write for example `per = \"topic\"` or `per = \"/sensor\"`";
            let what = "each event has an `id` of its own, so there would be nothing to compare with";
            document.refuse(&join(path, "per"), what, hint);
        }
    }
}

/// As `status` shows it: `changed /temperature by more than 0.5, at most 1/s, per /sensor`.
impl fmt::Display for FilterConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut between = "";
        if let Some(field) = &self.changed {
            write!(f, "changed {field}")?;
            if let Some(deadband) = self.deadband {
                write!(f, " by more than {deadband}")?;
            }
            between = ", ";
        }
        if let Some(at_most) = self.at_most {
            write!(f, "{between}at most {at_most}")?;
            between = ", ";
        }
        if self.per != KeyPart::Topic {
            write!(f, "{between}per {}", self.per)?;
        }
        Ok(())
    }
}

/// What is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// All of the payload: byte for byte, or as a number when there is a deadband.
    Payload,
    /// A value in it, by JSON pointer.
    Pointer(String),
}

/// Why something is no field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no field: it must be a JSON pointer, or `payload` for all of it")]
pub struct FieldError(String);

impl FromStr for Field {
    type Err = FieldError;
    fn from_str(text: &str) -> Result<Self, FieldError> {
        match KeyPart::parse(text) {
            Ok(KeyPart::Pointer(pointer)) => Ok(Self::Pointer(pointer)),
            _ if text == "payload" => Ok(Self::Payload),
            _ => Err(FieldError(text.to_owned())),
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Payload => "payload",
            Self::Pointer(pointer) => pointer,
        })
    }
}

impl Read for Field {
    fn read(value: &Value, path: &str, document: &mut Document) -> Option<Self> {
        text(value, path, document, ("a field in quotes", "\"/temperature\""), str::parse)
    }
}

/// By how much a number must differ.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Deadband {
    /// `0.5`: in its own unit.
    Absolute(f64),
    /// `"2%"`: of the number that passed last.
    Percent(f64),
}

/// Why something is no deadband.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither a number nor a percentage in quotes")]
struct DeadbandError(String);

impl fmt::Display for Deadband {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absolute(by) => write!(f, "{by}"),
            Self::Percent(by) => write!(f, "{by}%"),
        }
    }
}

impl Read for Deadband {
    fn read(value: &Value, path: &str, document: &mut Document) -> Option<Self> {
        if !value.is_str() {
            return f64::read(value, path, document).map(Self::Absolute);
        }
        text(value, path, document, ("a number, or a percentage in quotes", "\"2%\""), |text| {
            let percent = text.strip_suffix('%').and_then(|number| number.trim().parse().ok());
            percent.map(Self::Percent).ok_or_else(|| DeadbandError(text.to_owned()))
        })
    }
}

/// `"10/m"`: so many events from the first one on, until the time has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtMost {
    /// How many.
    pub events: u32,
    /// In which time.
    pub within: Span,
}

/// Why something is no rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a number of events in a time, such as `1/s`, `10/m` or `1/15m`")]
pub struct AtMostError(String);

impl FromStr for AtMost {
    type Err = AtMostError;
    fn from_str(text: &str) -> Result<Self, AtMostError> {
        let parse = || {
            let (events, within) = text.split_once('/')?;
            let events = events.trim().parse().ok().filter(|events| *events > 0)?;
            let within = within.trim();
            let one = within.starts_with(|c: char| c.is_ascii_alphabetic()).then(|| format!("1{within}"));
            let within = Span::parse(one.as_deref().unwrap_or(within)).ok().filter(|within| !within.0.is_zero())?;
            Some(Self { events, within })
        };
        parse().ok_or_else(|| AtMostError(text.to_owned()))
    }
}

impl fmt::Display for AtMost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let within = self.within.to_string();
        let unit = within.strip_prefix('1').filter(|unit| unit.chars().all(|c| c.is_ascii_alphabetic()));
        write!(f, "{}/{}", self.events, unit.unwrap_or(&within))
    }
}

impl Read for AtMost {
    fn read(value: &Value, path: &str, document: &mut Document) -> Option<Self> {
        text(value, path, document, ("a number of events in a time, in quotes", "\"1/s\""), str::parse)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// How `only = …` is shown, or what is wrong with it.
    fn told(said: &str) -> String {
        let read = toml::from_str::<BTreeMap<String, FilterConfig>>(&format!("only = {said}"));
        read.map_or_else(
            |error| error.to_string(),
            |read| {
                let mut document = Document::of_value("gateway.toml");
                read["only"].check("only", &mut document);
                document.finish(Some(())).map_or_else(|errors| errors.to_string(), |()| read["only"].to_string())
            },
        )
    }

    #[test]
    fn a_filter_is_shown_as_it_was_meant() {
        for (said, shown) in [
            (r#"{ changed = "/a~1b" }"#, "changed /a~1b"),
            (r#"{ changed = "payload", deadband = 2 }"#, "changed payload by more than 2"),
            (r#"{ changed = "/t", deadband = "2.5 %", per = "/sensor" }"#, "changed /t by more than 2.5%, per /sensor"),
            (r#"{ at_most = "1/s" }"#, "at most 1/s"),
            (r#"{ at_most = " 10 / 1m ", per = "source" }"#, "at most 10/m, per source"),
            (r#"{ changed = "/t", at_most = "2/1h30m" }"#, "changed /t, at most 2/90m"),
        ] {
            assert_eq!(told(said), shown, "{said}");
        }
    }

    #[test]
    fn a_filter_that_cannot_be_meant_is_refused() {
        for (said, what) in [
            ("{ }", "it would leave nothing out"),
            (r#"{ changed = "temperature" }"#, "`temperature` is no field"),
            (r#"{ changed = "/a~2" }"#, "`/a~2` is no field"),
            ("{ deadband = 1 }", "without `changed`"),
            (r#"{ changed = "/t", deadband = 0 }"#, "0 is not a distance"),
            (r#"{ changed = "/t", deadband = -0.5 }"#, "-0.5 is not a distance"),
            (r#"{ changed = "/t", deadband = nan }"#, "NaN is no number to reckon with"),
            (r#"{ changed = "/t", deadband = "inf%" }"#, "inf% is not a distance"),
            (r#"{ changed = "/t", deadband = "2" }"#, "`2` is neither a number nor a percentage"),
            (r#"{ changed = "/t", deadband = true }"#, "true is not a number"),
            (r#"{ at_most = "0/s" }"#, "`0/s` is not a number of events in a time"),
            (r#"{ at_most = "1/0s" }"#, "`1/0s` is not a number of events in a time"),
            (r#"{ at_most = "1" }"#, "`1` is not a number of events in a time"),
            (r#"{ at_most = "1/fortnight" }"#, "`1/fortnight` is not a number of events in a time"),
            (r#"{ at_most = "1/s", per = "id" }"#, "there would be nothing to compare with"),
            (r#"{ changes = "/t" }"#, "did you mean `changed`?"),
        ] {
            assert!(told(said).contains(what), "{said}: {}", told(said));
        }
    }
}
