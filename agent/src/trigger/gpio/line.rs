//! One line of a chip, as gateway.toml has it.

use std::fmt;
use std::time::Duration;

use toml::Value;

use crate::config::read::{Read, text};
use crate::config::{Document, join, keys, words};
use crate::units::Span;

/// What a name can have: as much as the kernel's interface.
const NAME_BYTES_MAX: usize = 31;

/// `{ name = "door", line = 17, bias = "pull-up", active_low = true, debounce = "20ms" }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineConfig {
    /// What it is called in events, and by functions that set it.
    pub name: String,
    /// Which line.
    pub line: LineId,
    /// Whether it is heard or set.
    pub direction: Direction,
    /// Whether it is active when its voltage is low.
    pub active_low: bool,
    /// What pulls it when nothing else does; as the chip has it unless said.
    pub bias: Option<Bias>,
    /// Of an input: which edges are events; both unless said.
    pub edge: Option<Edge>,
    /// Of an input: how long a level must last.
    pub debounce: Option<Span>,
    /// Of an output: what it is when it is opened; inactive unless said.
    pub initial: Option<Initial>,
    /// Of an output: what drives it; both levels unless said.
    pub drive: Option<Drive>,
}

keys! { LineConfig:
    name = required("\"door\""),
    line = required("17"),
    direction = or(Direction::In),
    active_low = or(false),
    bias = optional(),
    edge = optional(),
    debounce = optional(),
    initial = optional(),
    drive = optional(),
}

/// `line`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LineId {
    /// Its number at the chip.
    Offset(u32),
    /// Its name there: `"GPIO17"`.
    Name(String),
}

impl fmt::Display for LineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Offset(offset) => write!(f, "line {offset}"),
            Self::Name(name) => write!(f, "line `{name}`"),
        }
    }
}

impl Read for LineId {
    fn read(value: &Value, path: &str, document: &mut Document) -> Option<Self> {
        #[derive(Debug, thiserror::Error)]
        #[error("`{0}` is the name of no line: they have 1 to {NAME_BYTES_MAX} bytes")]
        struct NotName(String);
        if value.is_integer() {
            return u32::read(value, path, document).map(Self::Offset);
        }
        text(value, path, document, ("the number of a line, or its name in quotes", "17"), |name| {
            let fits = (1..=NAME_BYTES_MAX).contains(&name.len());
            if fits { Ok(Self::Name(name.to_owned())) } else { Err(NotName(name.to_owned())) }
        })
    }
}

/// `direction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It is heard.
    In,
    /// It is set.
    Out,
}

words! { Direction: "in" = Self::In, "out" = Self::Out }

/// `bias`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bias {
    /// To high.
    PullUp,
    /// To low.
    PullDown,
    /// Nothing does.
    Disabled,
}

words! { Bias: "pull-up" = Self::PullUp, "pull-down" = Self::PullDown, "disabled" = Self::Disabled }

/// `edge`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Edge {
    /// To active and back.
    #[default]
    Both,
    /// To active.
    Rising,
    /// To inactive.
    Falling,
}

words! { Edge: "both" = Self::Both, "rising" = Self::Rising, "falling" = Self::Falling }

/// `initial`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Initial {
    /// This.
    Active(bool),
    /// As it was.
    Keep,
}

impl Read for Initial {
    fn read(value: &Value, path: &str, document: &mut Document) -> Option<Self> {
        #[derive(Debug, thiserror::Error)]
        #[error("`{0}` is not true, false or \"keep\"")]
        struct NotInitial(String);
        if let Value::Boolean(active) = value {
            return Some(Self::Active(*active));
        }
        text(value, path, document, ("true, false or \"keep\"", "false"), |word| match word {
            "keep" => Ok(Self::Keep),
            _ => Err(NotInitial(word.to_owned())),
        })
    }
}

/// `drive`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drive {
    /// High and low.
    #[default]
    PushPull,
    /// Low only: others may do so too.
    OpenDrain,
    /// High only.
    OpenSource,
}

words! { Drive: "push-pull" = Self::PushPull, "open-drain" = Self::OpenDrain, "open-source" = Self::OpenSource }

impl LineConfig {
    pub(super) fn check(&self, path: &str, document: &mut Document) {
        let (others, direction, other) = match self.direction {
            Direction::In => {
                ([("initial", self.initial.is_some()), ("drive", self.drive.is_some())], "an input", "out")
            }
            Direction::Out => {
                ([("edge", self.edge.is_some()), ("debounce", self.debounce.is_some())], "an output", "in")
            }
        };
        for (key, _) in others.into_iter().filter(|(_, is_there)| *is_there) {
            let hint = format!("remove it, or write `direction = \"{other}\"`");
            document.refuse_key(&join(path, key), format!("{direction} has no `{key}`"), hint);
        }
        if let Some(debounce) = self.debounce
            && (debounce.0 < Duration::from_micros(1) || u32::try_from(debounce.0.as_micros()).is_err())
        {
            let what = format!("no contact bounces for {debounce}");
            document.refuse(&join(path, "debounce"), what, "write for example `debounce = \"20ms\"`");
        }
    }
}
