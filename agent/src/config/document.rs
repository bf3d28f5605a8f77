//! A TOML file with the place of each of its keys, and the list of all that is wrong with it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use toml::Value;
use toml::de::{DeTable, DeValue};

/// What a path starts with that names a credential of the service.
const CREDENTIAL: &str = "credential:";

/// A position in a file that a person wrote; 1-based, columns in characters.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Place {
    /// As the file was named on the command line or in gateway.toml.
    pub file: PathBuf,
    /// 0 when the whole file is meant.
    pub line: usize,
    /// 0 when the whole line is meant.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        Ok(())
    }
}

/// One thing that is wrong, or doubtful.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// Which key: `function[fahrenheit].timeout`; empty when the whole file is meant.
    pub key: String,
    /// What is wrong with it, and why.
    pub what: String,
    /// What to do about it.
    pub hint: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)
    }
}

/// All that is wrong with a config or a bundle, in the order of the file. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<Problem>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem} (hint: {})", problem.hint)?;
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
struct Positions {
    key: usize,
    value: usize,
}

/// A parsed file, and the problems that its readers find in it.
#[derive(Debug)]
pub(crate) struct Document {
    file: PathBuf,
    /// Absolute folder of the file, which relative paths start from.
    base: PathBuf,
    /// Folder of what `credential:NAME` stands for; without one that is a path as any other.
    credentials: Option<PathBuf>,
    text: String,
    pub(crate) root: Value,
    positions: BTreeMap<String, Positions>,
    problems: Vec<Problem>,
}

impl Document {
    /// Reads `file`.
    pub(crate) fn open(file: &Path, hint_when_missing: &str) -> Result<Self, ConfigErrors> {
        match std::fs::read_to_string(file) {
            Ok(text) => Ok(Self::parse(file, text)),
            Err(error) => {
                let (what, hint) = match error.kind() {
                    std::io::ErrorKind::NotFound => ("there is no such file".to_owned(), hint_when_missing.to_owned()),
                    std::io::ErrorKind::InvalidData => {
                        ("it is not text in UTF-8".to_owned(), "save the file as UTF-8".to_owned())
                    }
                    _ => (format!("it cannot be read: {error}"), "check the path and its permissions".to_owned()),
                };
                let place = Place { file: file.to_owned(), ..Place::default() };
                Err(ConfigErrors(vec![Problem { place, key: String::new(), what, hint }]))
            }
        }
    }

    /// Parses `text`; malformed TOML is among the problems, and what could be read beside it is there.
    pub(crate) fn parse(file: &Path, text: String) -> Self {
        let base = std::path::absolute(file).ok().and_then(|f| f.parent().map(Path::to_owned)).unwrap_or_default();
        let mut positions = BTreeMap::new();
        let (root, errors) = DeTable::parse_recoverable(&text);
        let root = Value::Table(convert_table(root.get_ref(), "", &mut positions));
        let errors: Vec<_> =
            errors.iter().map(|e| (e.span().map_or(0, |span| span.start), e.message().to_owned())).collect();
        let mut document =
            Self { file: file.to_owned(), base, credentials: None, text, root, positions, problems: Vec::new() };
        for (offset, message) in errors {
            let place = document.place_of(offset);
            let hint =
                "this is not TOML: strings are in quotes, a table starts with [NAME], one of a list with [[NAME]]";
            document.problems.push(Problem {
                place,
                key: String::new(),
                what: message.replace('\n', ", "),
                hint: hint.to_owned(),
            });
        }
        document
    }

    /// For a value that stands in no file, but has a name.
    pub(crate) fn of_value(name: &str) -> Self {
        let root = Value::Boolean(false);
        let (base, text, positions, problems) = (PathBuf::new(), String::new(), BTreeMap::new(), Vec::new());
        Self { file: name.into(), base, credentials: None, text, root, positions, problems }
    }

    /// Whether anything is wrong so far.
    pub(crate) const fn has_problems(&self) -> bool {
        !self.problems.is_empty()
    }

    /// The file, as it was named.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// Has `credential:NAME` stand for a file in `folder`.
    pub(crate) fn set_credentials(&mut self, folder: PathBuf) {
        self.credentials = Some(folder);
    }

    /// A path as the file means it.
    pub(crate) fn resolve(&self, path: &str) -> PathBuf {
        match (&self.credentials, path.strip_prefix(CREDENTIAL)) {
            (Some(folder), Some(name)) => folder.join(name),
            _ => self.base.join(path),
        }
    }

    /// The name of the credential that `file` stands for.
    pub(crate) fn credential<'a>(&self, file: &'a Path) -> Option<&'a str> {
        file.strip_prefix(self.credentials.as_ref()?).ok()?.to_str()
    }

    fn place_of(&self, offset: usize) -> Place {
        if self.text.is_empty() {
            return Place { file: self.file.clone(), ..Place::default() };
        }
        let before = self.text.get(..offset).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        Place {
            file: self.file.clone(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    /// The positions of `path`, or of the nearest of its parents that was written down.
    fn positions(&self, path: &str) -> Positions {
        let mut path = path;
        loop {
            if let Some(found) = self.positions.get(path) {
                return *found;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return Positions { key: 0, value: 0 },
            }
        }
    }

    /// Where `path` is written.
    pub(crate) fn place(&self, path: &str) -> Place {
        self.place_of(self.positions(path).key)
    }

    /// Reports that the value at `path` is wrong.
    pub(crate) fn refuse(&mut self, path: &str, what: impl Into<String>, hint: impl Into<String>) {
        let place = self.place_of(self.positions(path).value);
        self.problems.push(Problem { place, key: path.to_owned(), what: what.into(), hint: hint.into() });
    }

    /// Reports that the key at `path` should not be there, or lacks something.
    pub(crate) fn refuse_key(&mut self, path: &str, what: impl Into<String>, hint: impl Into<String>) {
        let place = self.place(path);
        self.problems.push(Problem { place, key: path.to_owned(), what: what.into(), hint: hint.into() });
    }

    /// `value` when nothing was wrong.
    pub(crate) fn finish<T>(mut self, value: Option<T>) -> Result<T, ConfigErrors> {
        self.problems.sort_by_key(|p| (p.place.line, p.place.column));
        self.problems.dedup();
        match value {
            Some(value) if self.problems.is_empty() => Ok(value),
            _ => Err(ConfigErrors(self.problems)),
        }
    }
}

/// `parent.key`, where the root has no name.
pub(crate) fn join(parent: &str, key: &str) -> String {
    if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") }
}

/// How an element of a list is called in messages: by its `name` when it has one, else by its index.
pub(crate) fn element<'a>(list: &str, index: usize, names: impl Iterator<Item = Option<&'a str>> + Clone) -> String {
    let name = names.clone().nth(index).flatten();
    match name {
        Some(name) if names.take(index).all(|other| other != Some(name)) => format!("{list}[{name}]"),
        _ => format!("{list}[{index}]"),
    }
}

fn convert_table(table: &DeTable<'_>, path: &str, positions: &mut BTreeMap<String, Positions>) -> toml::Table {
    let mut converted = toml::Table::new();
    for (key, value) in table {
        let path = join(path, key.get_ref());
        positions.insert(path.clone(), Positions { key: key.span().start, value: value.span().start });
        converted.insert(key.get_ref().to_string(), convert(value.get_ref(), &path, positions));
    }
    converted
}

fn convert(value: &DeValue<'_>, path: &str, positions: &mut BTreeMap<String, Positions>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        // A number that fits nowhere is shown as it was written, and refused by whoever reads it.
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| Value::String(number.as_str().to_owned()), Value::Integer),
        DeValue::Float(number) => {
            number.as_str().parse().map_or_else(|_| Value::String(number.as_str().to_owned()), Value::Float)
        }
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Datetime(value) => Value::Datetime(*value),
        DeValue::Array(values) => {
            let names = values.iter().map(|v| v.get_ref().get("name").and_then(|name| name.get_ref().as_str()));
            let elements = values.iter().enumerate().map(|(i, value)| {
                let path = element(path, i, names.clone());
                let start = value.span().start;
                positions.insert(path.clone(), Positions { key: start, value: start });
                convert(value.get_ref(), &path, positions)
            });
            Value::Array(elements.collect())
        }
        DeValue::Table(table) => Value::Table(convert_table(table, path, positions)),
    }
}
