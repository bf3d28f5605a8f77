//! How values are read from TOML: every problem is noted, none ends the reading.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::PathBuf;

use toml::Value;

use super::document::{ConfigErrors, Document, Place, element, join};
use crate::capability::Capability;
use crate::name::{ArtifactName, BrokerName, FunctionName, GatewayName, GroupName, ModelName, SourceName, StreamName};
use crate::topic::TopicFilter;
use crate::trigger::http::PathTemplate;
use crate::units::{ByteSize, Span};

/// What can stand in a config file.
pub(crate) trait Read: Sized {
    /// The value at `path`, or `None` after a problem was noted.
    fn read(value: &Value, path: &str, document: &mut Document) -> Option<Self>;
}

/// What stands in a config file as a table with known keys.
pub(crate) trait ReadTable: Sized {
    /// All keys of its own.
    const KEYS: &'static [&'static str];
    /// Takes its keys from `table`.
    fn take(table: &mut Table<'_>) -> Option<Self>;
}

/// A table that is being read.
pub(crate) struct Table<'a> {
    values: &'a toml::Table,
    path: &'a str,
    document: &'a mut Document,
    known: Vec<&'static str>,
    later: Vec<&'static str>,
}

impl Table<'_> {
    /// `None` after a problem, `Some(None)` when it is not there.
    pub(crate) fn optional<T: Read>(&mut self, key: &'static str) -> Option<Option<T>> {
        self.known.push(key);
        match self.values.get(key) {
            Some(value) => T::read(value, &join(self.path, key), self.document).map(Some),
            None => Some(None),
        }
    }

    /// The value, or `default` when it is not there.
    pub(crate) fn or<T: Read>(&mut self, key: &'static str, default: T) -> Option<T> {
        self.optional(key).map(|value| value.unwrap_or(default))
    }

    /// As [`Table::optional`], but a wrong value counts as not there, so that what is beside it can be checked further.
    pub(crate) fn setting<T: Read>(&mut self, key: &'static str) -> Option<Option<T>> {
        Some(self.optional(key).flatten())
    }

    /// As [`Table::setting`], with a default.
    pub(crate) fn section<T: Read>(&mut self, key: &'static str, default: T) -> Option<T> {
        Some(self.optional(key).flatten().unwrap_or(default))
    }

    /// The value, which must be there.
    pub(crate) fn required<T: Read>(&mut self, key: &'static str, example: &str) -> Option<T> {
        let value = self.optional(key)?;
        // Who asks for what is not there yet would not be helped by what this version needs instead.
        if value.is_none() && !self.later.iter().any(|later| self.values.contains_key(*later)) {
            let hint = format!("add `{key} = {example}`");
            self.document.refuse_key(self.path, format!("`{key}` is missing"), hint);
        }
        value
    }

    /// `[[KEY]]`: those that are wrong are left out, so that the others can be checked further.
    pub(crate) fn each<T: Read>(&mut self, key: &'static str) -> Option<Vec<T>> {
        self.known.push(key);
        match self.values.get(key) {
            Some(Value::Array(values)) => {
                let path = join(self.path, key);
                Some(elements(values, &path, self.document).into_iter().flatten().collect())
            }
            Some(_) => {
                let path = join(self.path, key);
                self.document.refuse_key(&path, format!("`{key}` must be a list"), format!("write `[[{path}]]`"));
                None
            }
            None => Some(Vec::new()),
        }
    }

    /// The one of `known` that the table must have.
    pub(crate) fn one_of(&mut self, known: &[&'static str], later: &[&'static str]) -> Option<&'static str> {
        self.known.extend(known);
        self.later.extend(later);
        let found: Vec<_> = known.iter().copied().filter(|key| self.values.contains_key(*key)).collect();
        if let [key] = found[..] {
            return Some(key);
        }
        let unknown = |key: &String| !self.known.contains(&key.as_str());
        // One that is not known is told of by itself, and may be the one that is missed.
        if !found.is_empty() || !self.values.keys().any(unknown) {
            let what = match found.len() {
                0 => format!("it has none of {}", list(known)),
                _ => format!("it has {}, but must have exactly one", list(&found).replace(" or ", " and ")),
            };
            self.document.refuse_key(self.path, what, format!("write one of {}", list(known)));
        }
        None
    }

    /// Reports what is wrong with the table as a whole, unless it asks for what is not there yet.
    pub(crate) fn refuse(&mut self, what: &str, hint: &str) {
        if !self.later.iter().any(|later| self.values.contains_key(*later)) {
            self.document.refuse_key(self.path, what, hint);
        }
    }

    /// The file that the table is in.
    pub(crate) fn file(&self) -> PathBuf {
        self.document.file().to_owned()
    }

    /// Where the table is written.
    pub(crate) fn place(&self) -> Place {
        self.document.place(self.path)
    }

    /// A key that is designed, but not available in this version.
    pub(crate) fn later(&mut self, key: &'static str) {
        self.later.push(key);
    }

    /// Reports the keys that nobody asked for.
    fn close(self) {
        for key in self.values.keys() {
            let path = join(self.path, key);
            if self.known.contains(&key.as_str()) {
                continue;
            }
            if self.later.contains(&key.as_str()) {
                let what = format!("`{key}` is not available in this version");
                self.document.refuse_key(&path, what, format!("remove it; this version knows {}", list(&self.known)));
                continue;
            }
            let hint = match nearest(key, &self.known) {
                Some(nearest) => format!("did you mean `{nearest}`?"),
                None => format!("known here: {}", list(&self.known)),
            };
            self.document.refuse_key(&path, format!("unknown key `{key}`"), hint);
        }
    }
}

/// Reads a whole table.
pub(crate) fn table<T: ReadTable>(value: &Value, path: &str, document: &mut Document) -> Option<T> {
    let Value::Table(values) = value else {
        wrong_type(value, path, document, "a table", "{ … }");
        return None;
    };
    let mut table = Table { values, path, document, known: Vec::new(), later: Vec::new() };
    let taken = T::take(&mut table);
    table.close();
    taken
}

/// Reads a table that stands in no file, without places.
pub(crate) fn alone<T: ReadTable>(value: &Value) -> Result<T, ConfigErrors> {
    let mut document = Document::of_value("");
    let taken = table(value, "", &mut document);
    document.finish(taken)
}

/// The known name that is near enough to be what was meant.
pub(crate) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(name, candidate), *candidate))
        .filter(|(similarity, _)| *similarity > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// `a`, `b` and `c`, in quotes.
pub(crate) fn list<T: Display>(names: &[T]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => "nothing".to_owned(),
    }
}

fn wrong_type(value: &Value, path: &str, document: &mut Document, what: &str, example: &str) {
    let found = match value {
        Value::String(text) => format!("the text `{text}`"),
        Value::Integer(number) => format!("the number {number}"),
        Value::Float(number) => format!("the number {number}"),
        Value::Boolean(value) => format!("{value}"),
        Value::Datetime(value) => format!("the date {value}"),
        Value::Array(_) => "a list".to_owned(),
        Value::Table(_) => "a table".to_owned(),
    };
    let key = path.rsplit('.').next().unwrap_or(path).split('[').next().unwrap_or(path);
    document.refuse(path, format!("{found} is not {what}"), format!("write `{key} = {example}`"));
}

/// Reads text with `parse`, whose error says what is allowed.
pub(crate) fn text<T, E: std::error::Error>(
    value: &Value,
    path: &str,
    document: &mut Document,
    (what, example): (&str, &str),
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Option<T> {
    let Value::String(text) = value else {
        wrong_type(value, path, document, what, example);
        return None;
    };
    match parse(text) {
        Ok(value) => Some(value),
        Err(error) => {
            let mut what = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                what = format!("{what}: {error}");
                cause = error.source();
            }
            document.refuse(path, what, format!("write for example `{example}`"));
            None
        }
    }
}

macro_rules! texts {
    ($($type:ty: $what:literal, $example:literal;)*) => {$(
        impl Read for $type {
            fn read(value: &Value, path: &str, document: &mut Document) -> Option<Self> {
                text(value, path, document, ($what, $example), <$type>::parse)
            }
        }
    )*};
}

texts! {
    FunctionName: "a function's name in quotes", "\"fahrenheit\"";
    StreamName: "a stream's name in quotes", "\"readings\"";
    ModelName: "a model's name in quotes", "\"motion\"";
    BrokerName: "a broker's name in quotes", "\"local\"";
    SourceName: "a source's name in quotes", "\"radio\"";
    GatewayName: "a gateway's name in quotes", "\"press-hall-3\"";
    GroupName: "a group's name in quotes", "\"presses\"";
    ArtifactName: "an artifact's name in quotes", "\"motion\"";
    TopicFilter: "a topic filter in quotes", "\"sensors/+/temp\"";
    PathTemplate: "the path of a function URL in quotes", "\"/orders/{id}\"";
    Span: "a duration with its unit, in quotes", "\"3s\"";
    ByteSize: "a size with its unit, in quotes", "\"64 MiB\"";
}

impl Read for semver::Version {
    fn read(value: &Value, path: &str, document: &mut Document) -> Option<Self> {
        #[derive(Debug, thiserror::Error)]
        #[error("`{0}` is not a version of three numbers")]
        struct NotVersion(String);
        text(value, path, document, ("a version in quotes", "\"1.0.0\""), |text| {
            Self::parse(text).map_err(|_| NotVersion(text.to_owned()))
        })
    }
}

impl Read for Capability {
    fn read(value: &Value, path: &str, document: &mut Document) -> Option<Self> {
        text(value, path, document, ("a capability in quotes", "\"mqtt:publish:results/#\""), str::parse)
    }
}

impl Read for SocketAddr {
    fn read(value: &Value, path: &str, document: &mut Document) -> Option<Self> {
        #[derive(Debug, thiserror::Error)]
        #[error("`{0}` is not ADDRESS:PORT")]
        struct NotAddress(String);
        text(value, path, document, ("ADDRESS:PORT in quotes", "\"127.0.0.1:1883\""), |text| {
            text.parse().map_err(|_| NotAddress(text.to_owned()))
        })
    }
}

impl Read for String {
    fn read(value: &Value, path: &str, document: &mut Document) -> Option<Self> {
        text(value, path, document, ("text in quotes", "\"…\""), |text| Ok::<_, std::fmt::Error>(text.to_owned()))
    }
}

impl Read for PathBuf {
    fn read(value: &Value, path: &str, document: &mut Document) -> Option<Self> {
        let text = String::read(value, path, document)?;
        if text.is_empty() {
            document.refuse(path, "the path is empty", "write the path of a file or a folder, or remove the key");
            return None;
        }
        Some(document.resolve(&text))
    }
}

impl Read for bool {
    fn read(value: &Value, path: &str, document: &mut Document) -> Option<Self> {
        if let Value::Boolean(value) = value {
            return Some(*value);
        }
        wrong_type(value, path, document, "true or false", "true");
        None
    }
}

impl Read for f64 {
    fn read(value: &Value, path: &str, document: &mut Document) -> Option<Self> {
        match value {
            Value::Float(number) if number.is_finite() => Some(*number),
            // TOML has them; no scale, threshold or share is one.
            Value::Float(number) => {
                document.refuse(path, format!("{number} is no number to reckon with"), "write a finite one");
                None
            }
            #[expect(clippy::cast_precision_loss, reason = "shares are small numbers")]
            Value::Integer(number) => Some(*number as Self),
            _ => {
                wrong_type(value, path, document, "a number", "0.1");
                None
            }
        }
    }
}

macro_rules! integers {
    ($($type:ty)*) => {$(
        impl Read for $type {
            fn read(value: &Value, path: &str, document: &mut Document) -> Option<Self> {
                let Value::Integer(number) = value else {
                    wrong_type(value, path, document, "a whole number", "1");
                    return None;
                };
                let converted = Self::try_from(*number).ok();
                if converted.is_none() {
                    let what = format!("{number} is not between {} and {}", Self::MIN, Self::MAX);
                    document.refuse(path, what, "write a number in that range");
                }
                converted
            }
        }
    )*};
}

integers! { u8 u16 u32 }

fn elements<T: Read>(values: &[Value], path: &str, document: &mut Document) -> Vec<Option<T>> {
    let names = values.iter().map(|v| v.get("name").and_then(Value::as_str));
    let read = |(i, value)| T::read(value, &element(path, i, names.clone()), document);
    values.iter().enumerate().map(read).collect()
}

impl<T: Read> Read for Vec<T> {
    fn read(value: &Value, path: &str, document: &mut Document) -> Option<Self> {
        let Value::Array(values) = value else {
            wrong_type(value, path, document, "a list", "[ … ]");
            return None;
        };
        let read: Vec<Option<T>> = elements(values, path, document);
        read.into_iter().collect()
    }
}

impl<K: Read + Ord, V: Read> Read for BTreeMap<K, V> {
    fn read(value: &Value, path: &str, document: &mut Document) -> Option<Self> {
        let Value::Table(values) = value else {
            wrong_type(value, path, document, "a table", "{ … }");
            return None;
        };
        let mut read = Self::new();
        for (key, value) in values {
            let path = join(path, key);
            let key = K::read(&Value::String(key.clone()), &path, document);
            if let (Some(value), Some(key)) = (V::read(value, &path, document), key) {
                read.insert(key, value);
            }
        }
        Some(read)
    }
}

/// What a key is called in the file: as its field, unless it has a name of its own.
macro_rules! key {
    ($key:ident) => {
        stringify!($key)
    };
    ($key:ident $name:literal) => {
        $name
    };
}
pub(crate) use key;

/// Says which keys a table has, and how each is read: `key = method(arguments)` calls that method of [`Table`].
macro_rules! keys {
    ($type:ty: $($key:ident $($name:literal)? = $method:ident($($argument:expr)?)),* $(,)?
        $(; flatten $flat:ident: $flat_type:ty)? $(; with $field:ident = |$table:ident| $value:expr)? $(; later $($later:ident),*)?) => {
        impl $crate::config::read::ReadTable for $type {
            const KEYS: &'static [&'static str] = &[$($crate::config::read::key!($key $($name)?)),*];
            fn take(table: &mut $crate::config::read::Table<'_>) -> Option<Self> {
                $($(table.later(stringify!($later));)*)?
                $(let $key = table.$method($crate::config::read::key!($key $($name)?) $(, $argument)?);)*
                $(let $flat = <$flat_type as $crate::config::read::ReadTable>::take(table);)?
                $(let $field = { let $table = &*table; $value };)?
                Some(Self { $($key: $key?,)* $($flat: $flat?,)? $($field,)? })
            }
        }

        impl $crate::config::read::Read for $type {
            fn read(
                value: &toml::Value,
                path: &str,
                document: &mut $crate::config::document::Document,
            ) -> Option<Self> {
                $crate::config::read::table(value, path, document)
            }
        }

        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let value = toml::Value::deserialize(deserializer)?;
                $crate::config::read::alone(&value).map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use keys;

/// Says which words stand for which values.
macro_rules! words {
    ($type:ty: $($word:literal = $value:expr),* $(,)? $(; later $($later:literal),*)?) => {
        impl $crate::config::read::Read for $type {
            fn read(
                value: &toml::Value,
                path: &str,
                document: &mut $crate::config::document::Document,
            ) -> Option<Self> {
                $crate::config::read::word(value, path, document, &[$(($word, $value)),*], &[$($($later),*)?])
            }
        }
    };
}
pub(crate) use words;

/// The value that a word stands for.
pub(crate) fn word<T: Copy>(
    value: &Value,
    path: &str,
    document: &mut Document,
    known: &[(&str, T)],
    later: &[&str],
) -> Option<T> {
    let word = String::read(value, path, document)?;
    let found = known.iter().find(|(known, _)| *known == word).map(|(_, value)| *value);
    if found.is_none() {
        let known: Vec<String> = known.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        let why = if later.contains(&word.as_str()) { "is not available in this version" } else { "is not known here" };
        document.refuse(path, format!("`{word}` {why}"), format!("write {}", list(&known)));
    }
    found
}

/// Says which one key a table has, by kind: `{ mqtt = … }` or `{ stream = … }`; `beside` others, which a `flatten` of it knows.
macro_rules! kinds {
    (beside $type:ty: $($key:literal = $variant:path),* $(,)? $(; later $($later:literal),*)?) => {
        impl $crate::config::read::ReadTable for $type {
            const KEYS: &'static [&'static str] = &[$($key),*];
            fn take(table: &mut $crate::config::read::Table<'_>) -> Option<Self> {
                match table.one_of(Self::KEYS, &[$($($later),*)?])? {
                    $($key => table.required($key, "{ … }").map($variant),)*
                    _ => None,
                }
            }
        }
    };
    ($type:ty: $($key:literal = $variant:path),* $(,)? $(; later $($later:literal),*)?) => {
        impl $crate::config::read::Read for $type {
            fn read(
                value: &toml::Value,
                path: &str,
                document: &mut $crate::config::document::Document,
            ) -> Option<Self> {
                match $crate::config::read::only_key(value, path, document, &[$($key),*], &[$($($later),*)?])? {
                    $(($key, value, path) => $crate::config::read::Read::read(value, &path, document).map($variant),)*
                    _ => None,
                }
            }
        }
    };
}
pub(crate) use kinds;

/// The only key of a table that must have exactly one, out of `known`.
pub(crate) fn only_key<'a>(
    value: &'a Value,
    path: &str,
    document: &mut Document,
    known: &[&'static str],
    later: &[&str],
) -> Option<(&'static str, &'a Value, String)> {
    let example = format!("{{ {} = … }}", known.first().unwrap_or(&""));
    let Value::Table(values) = value else {
        wrong_type(value, path, document, "a table", &example);
        return None;
    };
    let mut entries = values.iter();
    let (Some((key, value)), None) = (entries.next(), entries.next()) else {
        let what = format!("it has {} keys, but must have exactly one", values.len());
        document.refuse_key(path, what, format!("write one of {}", list(known)));
        return None;
    };
    let path = join(path, key);
    match known.iter().find(|known| *known == key) {
        Some(known) => Some((known, value, path)),
        None if later.contains(&key.as_str()) => {
            document.refuse_key(
                &path,
                format!("`{key}` is not available in this version"),
                format!("write {}", list(known)),
            );
            None
        }
        None => {
            let hint = match nearest(key, known) {
                Some(nearest) => format!("did you mean `{nearest}`?"),
                None => format!("known here: {}", list(known)),
            };
            document.refuse_key(&path, format!("unknown key `{key}`"), hint);
            None
        }
    }
}
