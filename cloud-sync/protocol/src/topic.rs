//! MQTT topic names and filters (MQTT 5.0, section 4.7): what may be published on, and what a filter matches.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest topic or filter, in bytes (MQTT 5.0, section 1.5.4).
pub const TOPIC_BYTES_MAX: usize = 65_535;

/// Why a topic or a filter was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// Nothing there.
    #[error("a topic must have at least one character")]
    Empty,
    /// Over [`TOPIC_BYTES_MAX`].
    #[error("the topic is {0} bytes long, more than MQTT's {TOPIC_BYTES_MAX}")]
    TooLong(usize),
    /// `\0` cannot be sent.
    #[error("topic `{0}` contains a null character")]
    Null(String),
    /// A wildcard in a topic to publish on.
    #[error("topic `{0}` contains a wildcard (`+` or `#`), which only a filter may")]
    Wildcard(String),
    /// A wildcard beside other characters, or `#` before the end.
    #[error("filter `{0}` is malformed: `+` must be a whole level, `#` must be the whole last level")]
    Filter(String),
    /// `$share/…` without a group or a filter.
    #[error("shared subscription `{0}` is malformed: write `$share/GROUP/FILTER`")]
    Share(String),
}

fn check_text(topic: &str) -> Result<(), TopicError> {
    match topic {
        "" => Err(TopicError::Empty),
        _ if topic.len() > TOPIC_BYTES_MAX => Err(TopicError::TooLong(topic.len())),
        _ if topic.contains('\0') => Err(TopicError::Null(topic.replace('\0', "\\0"))),
        _ => Ok(()),
    }
}

/// Checks a topic that something is to be published on.
///
/// # Errors
/// When it is empty, too long, or has a wildcard or a null character.
pub fn check_topic(topic: &str) -> Result<(), TopicError> {
    check_text(topic)?;
    if topic.contains(['+', '#']) {
        return Err(TopicError::Wildcard(topic.to_owned()));
    }
    Ok(())
}

/// What to subscribe to: levels, `+`, `#`, and `$share/GROUP/` in front for a shared subscription.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TopicFilter {
    text: Arc<str>,
    /// Where the filter itself starts: behind `$share/GROUP/`.
    start: usize,
}

impl TopicFilter {
    /// Checks `text`.
    ///
    /// # Errors
    /// When it is not a filter by MQTT 5.0, section 4.7.1 or 4.8.2.
    pub fn parse(text: &str) -> Result<Self, TopicError> {
        check_text(text)?;
        let start = match text.strip_prefix("$share/") {
            None => 0,
            Some(rest) => match rest.split_once('/') {
                Some((group, filter)) if !group.is_empty() && !group.contains(['+', '#']) && !filter.is_empty() => {
                    text.len() - filter.len()
                }
                _ => return Err(TopicError::Share(text.to_owned())),
            },
        };
        let levels: Vec<&str> = text[start..].split('/').collect();
        let malformed = levels.iter().enumerate().any(|(i, level)| {
            (level.len() > 1 && level.contains(['+', '#'])) || (*level == "#" && i + 1 < levels.len())
        });
        if malformed {
            return Err(TopicError::Filter(text.to_owned()));
        }
        Ok(Self { text: text.into(), start })
    }

    /// The filter as it is sent in SUBSCRIBE, `$share/…` included.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether it is `$share/GROUP/FILTER`.
    pub fn is_shared(&self) -> bool {
        self.start > 0
    }

    /// Whether a message on `topic` is meant. Topics that start with `$` are only matched by filters that do.
    pub fn matches(&self, topic: &str) -> bool {
        let filter = &self.text[self.start..];
        if topic.starts_with('$') && filter.starts_with(['+', '#']) {
            return false;
        }
        let mut names = topic.split('/');
        for level in filter.split('/') {
            match (level, names.next()) {
                // `a/#` matches `a` itself too.
                ("#", _) => return true,
                ("+", Some(_)) => {}
                (level, Some(name)) if level == name => {}
                _ => return false,
            }
        }
        names.next().is_none()
    }

    /// Whether every topic that `other` can match is matched by `self`.
    pub fn covers(&self, other: &Self) -> bool {
        let (mine, theirs) = (&self.text[self.start..], &other.text[other.start..]);
        if theirs.starts_with('$') && mine.starts_with(['+', '#']) {
            return false;
        }
        let mut theirs = theirs.split('/');
        for level in mine.split('/') {
            match (level, theirs.next()) {
                ("#", _) => return true,
                ("+", Some(name)) if name != "#" => {}
                (level, Some(name)) if level == name => {}
                _ => return false,
            }
        }
        theirs.next().is_none()
    }
}

impl TryFrom<String> for TopicFilter {
    type Error = TopicError;
    fn try_from(text: String) -> Result<Self, TopicError> {
        Self::parse(&text)
    }
}

impl From<TopicFilter> for String {
    fn from(filter: TopicFilter) -> Self {
        filter.text.as_ref().to_owned()
    }
}

impl fmt::Display for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for TopicFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(filter: &str, topic: &str, matches: bool) {
        assert_eq!(TopicFilter::parse(filter).unwrap().matches(topic), matches, "{filter} on {topic}");
    }

    #[test]
    fn plus_stands_for_exactly_one_level() {
        check("oven/+/celsius", "oven/1/celsius", true);
        check("oven/+/celsius", "oven/1/zone/celsius", false);
        check("+", "/oven", false);
        check("+/+", "/oven", true);
    }

    #[test]
    fn hash_stands_for_the_rest_and_its_parent() {
        check("oven/#", "oven", true);
        check("oven/#", "oven/1/celsius", true);
        check("#", "oven/1", true);
        check("oven/#", "ovens", false);
    }

    #[test]
    fn wildcards_leave_the_brokers_own_topics_alone() {
        check("#", "$SYS/uptime", false);
        check("+/uptime", "$SYS/uptime", false);
        check("$SYS/#", "$SYS/uptime", true);
    }

    #[test]
    fn a_shared_subscription_matches_like_its_filter() {
        check("$share/group/oven/+", "oven/1", true);
        for wrong in ["$share/", "$share/g", "$share//f", "$share/+/f", "$share/g/"] {
            assert!(TopicFilter::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn malformed_filters_are_refused() {
        for wrong in ["", "a+", "a/#/b", "a#", "a/b+/c", "a\0b"] {
            assert!(TopicFilter::parse(wrong).is_err(), "{wrong}");
        }
        assert!(check_topic("a/+").is_err());
        assert!(check_topic("a/b").is_ok());
    }

    #[test]
    fn a_filter_covers_what_it_can_only_match() {
        let covers = |a: &str, b: &str| TopicFilter::parse(a).unwrap().covers(&TopicFilter::parse(b).unwrap());
        assert!(covers("results/#", "results/+"));
        assert!(covers("results/+", "results/1"));
        assert!(!covers("results/+", "results/#"));
        assert!(!covers("results/1", "results/+"));
        assert!(!covers("#", "$SYS/x"));
    }
}
