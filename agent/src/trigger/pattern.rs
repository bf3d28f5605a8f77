//! Patterns of file names, as a shell has them: `*` stands for any characters of one name, `?` for one, and `**` in the place of a name for any
//! folders, or none.

use std::fmt;

use toml::Value;

use crate::config::Document;
use crate::config::read::{Read, text};

/// `*.csv`, `2026/*`, `**/raw/*.bin`. One without a `/` is for a name, in whichever folder; another one for a whole path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

/// Why something is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a pattern that is empty is for no file")]
pub struct PatternError;

impl Pattern {
    /// Reads `*.csv`.
    ///
    /// # Errors
    /// When it is empty.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() { Err(PatternError) } else { Ok(Self(text.to_owned())) }
    }

    /// Names that begin with a dot.
    pub(super) fn hidden() -> Self {
        Self(".*".to_owned())
    }

    /// Whether `path`, with `/` between its names, is one of those.
    pub fn matches(&self, path: &str) -> bool {
        if self.0.contains('/') {
            let (pattern, path): (Vec<&str>, Vec<&str>) = (self.0.split('/').collect(), path.split('/').collect());
            is_path(&pattern, &path)
        } else {
            is_name(&self.0, path.rsplit('/').next().unwrap_or(path))
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Read for Pattern {
    fn read(value: &Value, path: &str, document: &mut Document) -> Option<Self> {
        text(value, path, document, ("a pattern of names in quotes", "\"*.csv\""), Self::parse)
    }
}

fn is_path(pattern: &[&str], path: &[&str]) -> bool {
    match pattern.split_first() {
        None => path.is_empty(),
        Some((&"**", rest)) => (0..=path.len()).any(|names| is_path(rest, &path[names..])),
        Some((first, rest)) => {
            path.split_first().is_some_and(|(name, more)| is_name(first, name) && is_path(rest, more))
        }
    }
}

/// Whether `name` is one of those that `pattern`, which has no folders, stands for.
pub(super) fn is_name(pattern: &str, name: &str) -> bool {
    let (mut wanted, mut given) = (pattern.chars(), name.chars());
    // What follows the last `*`, and the rest of the name that it may begin with.
    let mut star = None;
    loop {
        let (mut next_wanted, mut next_given) = (wanted.clone(), given.clone());
        match (next_wanted.next(), next_given.next()) {
            (None, None) => return true,
            (Some('*'), _) => {
                star = Some((next_wanted.clone(), given.clone()));
                wanted = next_wanted;
            }
            (Some(w), Some(g)) if w == '?' || w == g => (wanted, given) = (next_wanted, next_given),
            // The `*` takes one character more.
            _ => {
                let Some((after, rest)) = &mut star else { return false };
                if rest.next().is_none() {
                    return false;
                }
                (wanted, given) = (after.clone(), rest.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pattern: &str, path: &str, expected: bool) {
        assert_eq!(Pattern::parse(pattern).unwrap().matches(path), expected, "{pattern} for {path}");
    }

    #[test]
    fn a_pattern_without_a_folder_is_for_names() {
        check("*.csv", "a.csv", true);
        check("*.csv", "2026/11/a.csv", true);
        check("*.csv", "a.csv.part", false);
        check("*a*b*", "xaxxbx", true);
        check("*a*b", "ab.b.a", false);
        check("?.bin", "ä.bin", true);
        check("?.bin", "12.bin", false);
        check(".*", ".hidden", true);
        check(".*", "a.b", false);
        check("*", "", true);
    }

    #[test]
    fn a_pattern_with_a_folder_is_for_paths() {
        check("2026/*", "2026/a", true);
        check("2026/*", "2026/11/a", false);
        check("2026/**", "2026/11/a", true);
        check("**/raw/*.bin", "raw/a.bin", true);
        check("**/raw/*.bin", "x/y/raw/a.bin", true);
        check("**/raw/*.bin", "x/raw/y/a.bin", false);
    }
}
