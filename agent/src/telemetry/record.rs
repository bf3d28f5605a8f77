//! One log line, before it is text or JSON.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata};

use crate::readable::printable;

/// Target of what functions say.
pub(super) const FUNCTION_TARGET: &str = "function";

/// What was logged, by the agent or by a function. As JSON it is one object per line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogRecord {
    /// RFC 3339, UTC, milliseconds.
    pub time: String,
    /// `error`, `warn`, `info`, `debug` or `trace`.
    pub level: String,
    /// The module, or `function`.
    pub target: String,
    /// The sentence.
    #[serde(default)]
    pub message: String,
    /// What the sentence is about: `function`, `invocation`, `broker`, …
    #[serde(flatten)]
    pub fields: Map<String, Value>,
}

impl LogRecord {
    pub(super) fn new(time_ms: u64, event: &Event<'_>, line_bytes_max: usize) -> Self {
        let metadata: &Metadata<'_> = event.metadata();
        let mut fields = Fields { message: String::new(), fields: Map::new(), bytes_left: line_bytes_max };
        event.record(&mut fields);
        // Libraries that log by the crate `log` come with their place in fields.
        let place = fields.fields.remove("log.target");
        let target = place.as_ref().and_then(Value::as_str).unwrap_or(metadata.target()).to_owned();
        fields.fields.retain(|name, _| !name.starts_with("log."));
        Self {
            time: rfc3339(time_ms),
            level: level(metadata.level()).to_owned(),
            target,
            message: fields.message,
            fields: fields.fields,
        }
    }

    /// What a reader is told who was too slow for `missed` records.
    pub(crate) fn missed(time_ms: u64, missed: u64) -> Self {
        Self {
            time: rfc3339(time_ms),
            level: "warn".to_owned(),
            target: module_path!().to_owned(),
            message: format!("{missed} log lines were left out here: they came faster than they were read"),
            fields: Map::new(),
        }
    }

    /// The function that said it or that it is about.
    pub fn function(&self) -> Option<&str> {
        self.fields.get("function").and_then(Value::as_str)
    }

    /// How much room it takes in a ring, roughly.
    pub(super) fn bytes(&self) -> usize {
        let fields = self.fields.iter().map(|(name, value)| name.len() + value.as_str().map_or(8, str::len) + 64);
        self.message.len() + self.target.len() + 96 + fields.sum::<usize>()
    }

    /// As one line of JSON, without the line's end.
    pub fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// As one line for people, in local time, without the line's end.
    pub fn text(&self, colour: bool) -> String {
        // Functions and gateways may say anything, also in names and times; a terminal must not obey it.
        let shown = |text: &str| printable(text, &['\t']);
        let paint = |code: &str, text: &str| {
            let text = shown(text);
            if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text }
        };
        let (code, level) = match self.level.as_str() {
            "error" => ("31", "ERROR"),
            "warn" => ("33", " WARN"),
            "info" => ("32", " INFO"),
            "debug" => ("34", "DEBUG"),
            _ => ("35", "TRACE"),
        };
        let mut line = format!("{} {}", paint("2", &self.local_time()), paint(code, level));
        let said_by_function = self.target == FUNCTION_TARGET;
        if let (true, Some(function)) = (said_by_function, self.function()) {
            let _ = write!(line, " {}", paint("36", function));
        }
        let _ = write!(line, " {}", shown(&self.message));
        for (name, value) in &self.fields {
            if said_by_function && (name == "function" || name == "invocation") {
                continue;
            }
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let _ = write!(line, " {}{}", paint("2", &format!("{name}=")), shown(&value));
        }
        line
    }

    fn local_time(&self) -> String {
        let time = self.time.parse::<jiff::Timestamp>().map(|time| time.to_zoned(jiff::tz::TimeZone::system()));
        time.map_or_else(|_| self.time.clone(), |time| time.strftime("%H:%M:%S%.3f").to_string())
    }
}

pub(super) fn rfc3339(time_ms: u64) -> String {
    let time =
        i64::try_from(time_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()).unwrap_or_default();
    format!("{time:.3}")
}

const fn level(level: &Level) -> &'static str {
    match *level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

struct Fields {
    message: String,
    fields: Map<String, Value>,
    bytes_left: usize,
}

impl Fields {
    fn text(&mut self, field: &Field, mut text: String) {
        if text.len() > self.bytes_left {
            text.truncate(text.floor_char_boundary(self.bytes_left));
            text.push_str(" … (cut)");
        }
        self.bytes_left = self.bytes_left.saturating_sub(text.len());
        if field.name() == "message" {
            self.message = text;
        } else {
            self.insert(field, Value::String(text));
        }
    }

    fn insert(&mut self, field: &Field, value: Value) {
        // Names of the record itself win: what reads the JSON relies on them.
        if !matches!(field.name(), "time" | "level" | "target" | "message") {
            self.fields.insert(field.name().trim_start_matches("r#").to_owned(), value);
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.text(field, format!("{value:?}"));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value.to_owned());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value.into());
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value.into());
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, value.into());
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            let _ = write!(text, ": {error}");
            cause = error.source();
        }
        self.text(field, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> LogRecord {
        let fields = serde_json::json!({"function": "fahrenheit", "invocation": "7", "n": 3});
        LogRecord {
            time: rfc3339(1_700_000_000_123),
            level: "warn".to_owned(),
            target: FUNCTION_TARGET.to_owned(),
            message: "hot\x1b[2Jand\nbad".to_owned(),
            fields: fields.as_object().unwrap().clone(),
        }
    }

    #[test]
    fn a_record_is_one_object_and_reads_back() {
        let json = record().json();
        assert!(
            json.starts_with(r#"{"time":"2023-11-14T22:13:20.123Z","level":"warn","target":"function","message":"#),
            "{json}"
        );
        assert!(!json.contains('\n'));
        assert_eq!(serde_json::from_str::<LogRecord>(&json).unwrap(), record());
    }

    #[test]
    fn what_a_function_says_cannot_command_the_terminal() {
        let text = record().text(false);
        assert!(text.ends_with(r" WARN fahrenheit hot\u{1b}[2Jand\nbad n=3"), "{text}");
    }

    /// A gateway that was broken into sends such to the control plane, and `fleet logs` shows it.
    #[test]
    fn no_part_of_a_record_can_command_the_terminal() {
        let clear = "\x1b[2J\u{9b}2J";
        let fields = serde_json::json!({ "function": clear, clear: clear, "list": [clear], "map": { clear: null } });
        let fields = fields.as_object().unwrap().clone();
        let texts = [clear; 4].map(str::to_owned);
        for said_by in [FUNCTION_TARGET, clear] {
            let [time, level, target, message] = texts.clone();
            let target = if said_by == clear { target } else { said_by.to_owned() };
            let text = LogRecord { time, level, target, message, fields: fields.clone() }.text(false);
            assert!(!text.chars().any(char::is_control), "{text:?}");
        }
    }
}
