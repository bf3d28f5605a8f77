//! `window = { count = 50 }` beside what a trigger listens to.

use std::fmt;

use toml::Value;

use crate::config::document::{Document, join};
use crate::config::function::KeyPart;
use crate::config::keys;
use crate::config::read::Read;
use crate::limits::Limits;
use crate::units::Span;

/// `window`: how many of a trigger's events its function gets at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WindowConfig {
    /// So many events; with `time`, whichever comes first.
    pub count: Option<u32>,
    /// The events from the first one on until this has passed.
    pub time: Option<Span>,
    /// How much later than a window the next one begins; without, it begins where the one before has ended.
    pub every: Option<Every>,
    /// What has windows of its own.
    pub per: KeyPart,
}

keys! { WindowConfig: count = optional(), time = optional(), every = optional(), per = or(KeyPart::Topic) }

impl WindowConfig {
    pub(crate) fn check(&self, path: &str, limits: &Limits, document: &mut Document) {
        let at = |key: &str| join(path, key);
        if (self.count, self.time) == (None, None) {
            let hint = "write for example `window = { count = 50 }` or `window = { time = \"10s\" }`";
            document.refuse_key(path, "it has neither `count` nor `time`, so no window would ever be full", hint);
        }
        let count_max = limits.window_events_max;
        if let Some(count) = self.count.filter(|count| !(2..=count_max).contains(count)) {
            let hint = format!("write a number from 2 to {count_max}, or remove `window` to get each event by itself");
            document.refuse(&at("count"), format!("a window cannot have {count} events"), hint);
        }
        if self.time.is_some_and(|time| time.millis() == 0) {
            document.refuse(&at("time"), "a window must be at least 1ms long", "write for example `time = \"10s\"`");
        }
        let told = match (self.every, self.count, self.time) {
            (Some(Every::Events(0)), ..) => Some("the next window must begin at least 1 event later".to_owned()),
            (Some(Every::Time(every)), ..) if every.millis() == 0 => {
                Some("the next window must begin at least 1ms later".to_owned())
            }
            (Some(Every::Events(_)), None, Some(_)) => {
                Some("there is no `count` of which it could be a part".to_owned())
            }
            (Some(Every::Time(_)), Some(_), None) => Some("there is no `time` of which it could be a part".to_owned()),
            (Some(Every::Events(every)), Some(count), _) if every >= count => {
                Some(format!("{every} events are not less than a window of {count}"))
            }
            (Some(Every::Time(every)), _, Some(time)) if every >= time => {
                Some(format!("{every} are not less than a window of {time}"))
            }
            _ => None,
        };
        if let Some(what) = told {
            let hint = "write a part of `count` such as `every = 10`, a part of `time` such as `every = \"10s\"`, or remove it";
            document.refuse(&at("every"), what, hint);
        }
        if self.per == KeyPart::Id {
            let hint = "write for example `per = \"topic\"` or `per = \"/sensor\"`";
            document.refuse(
                &at("per"),
                "each event has an `id` of its own, so each would have a window of its own",
                hint,
            );
        }
    }
}

/// As `status` shows it: `50 events or 10s, every 10 events, per /sensor`.
impl fmt::Display for WindowConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.count, self.time) {
            (Some(count), Some(time)) => write!(f, "{count} events or {time}")?,
            (Some(count), None) => write!(f, "{count} events")?,
            (None, Some(time)) => write!(f, "{time}")?,
            (None, None) => {}
        }
        if let Some(every) = self.every {
            write!(f, ", every {every}")?;
        }
        if self.per != KeyPart::Topic {
            write!(f, ", per {}", self.per)?;
        }
        Ok(())
    }
}

/// `every`: from the start of a window to the start of the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Every {
    /// `10`.
    Events(u32),
    /// `"10s"`.
    Time(Span),
}

impl fmt::Display for Every {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Events(1) => write!(f, "event"),
            Self::Events(events) => write!(f, "{events} events"),
            Self::Time(time) => time.fmt(f),
        }
    }
}

impl Read for Every {
    fn read(value: &Value, path: &str, document: &mut Document) -> Option<Self> {
        if value.is_str() {
            return Span::read(value, path, document).map(Self::Time);
        }
        u32::read(value, path, document).map(Self::Events)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// How `window = …` is shown, or what is wrong with it.
    fn told(said: &str) -> String {
        let read = toml::from_str::<BTreeMap<String, WindowConfig>>(&format!("window = {said}"));
        read.map_or_else(
            |error| error.to_string(),
            |read| {
                let mut document = Document::of_value("gateway.toml");
                read["window"].check("window", &Limits::default(), &mut document);
                document.finish(Some(())).map_or_else(|errors| errors.to_string(), |()| read["window"].to_string())
            },
        )
    }

    #[test]
    fn a_window_is_shown_as_it_was_meant() {
        for (said, shown) in [
            ("{ count = 50 }", "50 events"),
            ("{ count = 50, every = 10 }", "50 events, every 10 events"),
            ("{ count = 2, every = 1 }", "2 events, every event"),
            (r#"{ time = "10s" }"#, "10s"),
            (r#"{ time = "1m", every = "10s", per = "/sensor" }"#, "1m, every 10s, per /sensor"),
            (r#"{ count = 50, time = "10s", per = "source" }"#, "50 events or 10s, per source"),
        ] {
            assert_eq!(told(said), shown, "{said}");
        }
    }

    #[test]
    fn a_window_that_cannot_be_meant_is_refused() {
        for (said, what) in [
            ("{ }", "no window would ever be full"),
            ("{ every = 5 }", "no window would ever be full"),
            ("{ count = 1 }", "a window cannot have 1 events"),
            ("{ count = 5001 }", "write a number from 2 to 5000"),
            ("{ count = -1 }", "-1 is not between"),
            (r#"{ time = "0s" }"#, "at least 1ms long"),
            (r#"{ time = "500us" }"#, "at least 1ms long"),
            ("{ time = 10 }", "10 is not a duration with its unit"),
            ("{ count = 5, every = 0 }", "at least 1 event later"),
            ("{ count = 5, every = 5 }", "5 events are not less than a window of 5"),
            (r#"{ time = "1m", every = "2m" }"#, "2m are not less than a window of 1m"),
            (r#"{ time = "1m", every = "1us" }"#, "at least 1ms later"),
            (r#"{ time = "1m", every = 5 }"#, "there is no `count`"),
            (r#"{ count = 5, every = "1s" }"#, "there is no `time`"),
            (r#"{ count = 5, every = "soon" }"#, "`soon` is not a duration"),
            (r#"{ count = 5, per = "id" }"#, "each would have a window of its own"),
            (r#"{ counts = 5 }"#, "did you mean `count`?"),
        ] {
            assert!(told(said).contains(what), "{said}: {}", told(said));
        }
    }
}
