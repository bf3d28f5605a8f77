//! What of a device is read: where it is, and what it means.

use super::ByteOrder;
use crate::config::{Document, join, keys, kinds, words};

/// `{ name = "pressure", input = 0, type = "i16", scale = 0.01, unit = "bar" }`.
#[derive(Clone, Debug, PartialEq)]
pub struct RegisterConfig {
    /// What it is called in events.
    pub name: String,
    /// Where it is.
    pub place: Place,
    /// What it holds: `u16` in registers unless said, `bool` elsewhere.
    pub value_type: Option<ValueType>,
    /// Of a text: how many registers.
    pub length: Option<u16>,
    /// What one step of the device means.
    pub scale: f64,
    /// What is added before that.
    pub offset: f64,
    /// In which unit that is.
    pub unit: Option<String>,
    /// How far it must change to be told.
    pub deadband: f64,
    /// Which device, where it is not the one of the source.
    pub unit_id: Option<u8>,
    /// The same of the order of its registers.
    pub word_order: Option<ByteOrder>,
    /// And of their halves.
    pub byte_order: Option<ByteOrder>,
}

keys! { RegisterConfig:
    name = required("\"pressure\""),
    value_type "type" = optional(),
    length = optional(),
    scale = or(1.0),
    offset = or(0.0),
    unit = optional(),
    deadband = or(0.0),
    unit_id = optional(),
    word_order = optional(),
    byte_order = optional();
    flatten place: Place
}

/// Exactly one of the keys, with the address that the protocol has, which begins at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// `holding = 100`: a register that can be written.
    Holding(u16),
    /// `input = 0`: one that can be read only.
    Input(u16),
    /// `coil = 3`: a bit that can be written.
    Coil(u16),
    /// `discrete = 7`: one that can be read only.
    Discrete(u16),
}

kinds! { beside Place: "holding" = Self::Holding, "input" = Self::Input, "coil" = Self::Coil, "discrete" = Self::Discrete }

impl Place {
    /// The address within its kind.
    pub(super) const fn address(self) -> u16 {
        match self {
            Self::Holding(address) | Self::Input(address) | Self::Coil(address) | Self::Discrete(address) => address,
        }
    }

    /// Whether it is one bit.
    pub(super) const fn is_bit(self) -> bool {
        matches!(self, Self::Coil(_) | Self::Discrete(_))
    }

    /// The key.
    pub(super) const fn kind(self) -> &'static str {
        match self {
            Self::Holding(_) => "holding",
            Self::Input(_) => "input",
            Self::Coil(_) => "coil",
            Self::Discrete(_) => "discrete",
        }
    }
}

/// `type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum ValueType {
    Bool,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F32,
    F64,
    String,
}

words! { ValueType:
    "bool" = Self::Bool,
    "u16" = Self::U16,
    "i16" = Self::I16,
    "u32" = Self::U32,
    "i32" = Self::I32,
    "u64" = Self::U64,
    "i64" = Self::I64,
    "f32" = Self::F32,
    "f64" = Self::F64,
    "string" = Self::String,
}

impl RegisterConfig {
    /// What it holds.
    pub(super) fn value_type(&self) -> ValueType {
        self.value_type.unwrap_or(if self.place.is_bit() { ValueType::Bool } else { ValueType::U16 })
    }

    /// How many registers, or bits, it takes.
    pub(super) fn width(&self) -> u16 {
        match self.value_type() {
            ValueType::Bool | ValueType::U16 | ValueType::I16 => 1,
            ValueType::U32 | ValueType::I32 | ValueType::F32 => 2,
            ValueType::U64 | ValueType::I64 | ValueType::F64 => 4,
            ValueType::String => self.length.unwrap_or(1),
        }
    }

    pub(super) fn check(&self, path: &str, at_once: u16, document: &mut Document) {
        let (value_type, kind) = (self.value_type(), self.place.kind());
        if self.place.is_bit() && value_type != ValueType::Bool {
            let what = format!("a `{kind}` is one bit, which has no other type than `bool`");
            document.refuse(&join(path, "type"), what, "remove it, or name a `holding` or `input` register");
        }
        match (value_type, self.length) {
            (ValueType::String, None | Some(0)) => {
                let hint = "write for example `length = 8`: registers of two characters each";
                document.refuse_key(path, "nothing says how long the text is", hint);
            }
            (ValueType::String, Some(_)) => {}
            (_, Some(_)) => {
                let hint = "remove it: only a `string` has a length of its own";
                document.refuse(&join(path, "length"), "its type says how long it is", hint);
            }
            (_, None) => {}
        }
        let is_number = !matches!(value_type, ValueType::Bool | ValueType::String);
        if !is_number && (self.scale != 1.0 || self.offset != 0.0 || self.unit.is_some() || self.deadband != 0.0) {
            let hint = "remove `scale`, `offset`, `unit` and `deadband`";
            document.refuse_key(path, "it is no number", hint);
        }
        if self.scale == 0.0 {
            document.refuse(&join(path, "scale"), "all values would be 0", "write for example `scale = 0.1`");
        }
        if self.deadband < 0.0 {
            let hint = "write for example `deadband = 0.5`";
            document.refuse(&join(path, "deadband"), "it is less than nothing", hint);
        }
        let (address, width) = (self.place.address(), self.width());
        if width > at_once {
            let what = format!("it takes {width} registers, and one request reads {at_once}");
            document.refuse_key(path, what, "read it in parts");
        }
        if address.checked_add(width.saturating_sub(1)).is_none() {
            let what = format!("there are no {width} registers from {address} on");
            document.refuse(&join(path, kind), what, "write the address that the protocol has, from 0 to 65535");
        }
    }
}
