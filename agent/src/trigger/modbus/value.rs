//! What registers mean.

use serde::Serialize;

use super::{ByteOrder, RegisterConfig, ValueType};
use crate::invocation::FieldValue;
use crate::trigger::rounded;

/// The value of a register, or of several.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Value {
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Number(f64),
    Text(String),
}

impl Value {
    /// Whether it is not what was told, by more than `deadband`.
    pub(super) fn differs(&self, told: &Self, deadband: f64) -> bool {
        match (self.number(), told.number()) {
            (Some(now), Some(told)) if deadband > 0.0 => (now - told).abs() > deadband,
            _ => self != told,
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "for comparisons, and by a scale that is a fraction")]
    fn number(&self) -> Option<f64> {
        match self {
            Self::Unsigned(number) => Some(*number as f64),
            Self::Signed(number) => Some(*number as f64),
            Self::Number(number) => Some(*number),
            Self::Bool(_) | Self::Text(_) => None,
        }
    }
}

/// What `words`, which are as many as it takes, mean to `register`; nothing when that is no finite number.
pub(super) fn of_words(register: &RegisterConfig, words: &[u16], orders: (ByteOrder, ByteOrder)) -> Option<Value> {
    let bytes = bytes(words, orders, register.value_type());
    let value = match register.value_type() {
        ValueType::Bool => Value::Bool(words.iter().any(|word| *word != 0)),
        ValueType::U16 => Value::Unsigned(u16::from_be_bytes(bytes.try_into().ok()?).into()),
        ValueType::I16 => Value::Signed(i16::from_be_bytes(bytes.try_into().ok()?).into()),
        ValueType::U32 => Value::Unsigned(u32::from_be_bytes(bytes.try_into().ok()?).into()),
        ValueType::I32 => Value::Signed(i32::from_be_bytes(bytes.try_into().ok()?).into()),
        ValueType::U64 => Value::Unsigned(u64::from_be_bytes(bytes.try_into().ok()?)),
        ValueType::I64 => Value::Signed(i64::from_be_bytes(bytes.try_into().ok()?)),
        // By its shortest decimal: 21.1, not 21.100000381469727.
        ValueType::F32 => Value::Number(f32::from_be_bytes(bytes.try_into().ok()?).to_string().parse().ok()?),
        ValueType::F64 => Value::Number(f64::from_be_bytes(bytes.try_into().ok()?)),
        ValueType::String => Value::Text(String::from_utf8_lossy(&bytes).trim_end_matches(['\0', ' ']).to_owned()),
    };
    let is_scaled = register.scale != 1.0 || register.offset != 0.0;
    match value.number() {
        Some(raw) if is_scaled => {
            Some(rounded((raw + register.offset) * register.scale)).filter(|v| v.is_finite()).map(Value::Number)
        }
        Some(raw) => raw.is_finite().then_some(value),
        None => Some(value),
    }
}

/// The registers that make `value` of `register`: what [`of_words`] gives back, but for what a register cannot tell apart.
///
/// # Errors
/// With why there are none.
pub(super) fn to_words(
    register: &RegisterConfig,
    value: FieldValue,
    orders: (ByteOrder, ByteOrder),
) -> Result<Vec<u16>, String> {
    let unfit = || format!("{value} does not fit its type");
    let halves = |bytes: [u8; 2]| match orders.1 {
        ByteOrder::Big => u16::from_be_bytes(bytes),
        ByteOrder::Little => u16::from_le_bytes(bytes),
    };
    if register.value_type() == ValueType::Bool {
        let FieldValue::Boolean(on) = value else { return Err(format!("{value} is neither true nor false")) };
        return Ok(vec![halves(u16::from(on).to_be_bytes())]);
    }
    let is_scaled = register.scale != 1.0 || register.offset != 0.0;
    let number = match value {
        FieldValue::Boolean(_) => return Err(format!("{value} is no number")),
        #[expect(clippy::cast_precision_loss, reason = "for floating point, and by a scale that is a fraction")]
        FieldValue::Integer(number) => number as f64,
        FieldValue::Number(number) => number,
    };
    let raw = if is_scaled { number / register.scale - register.offset } else { number };
    // Whole numbers are rounded to one anyway.
    let fraction = |raw| if is_scaled { rounded(raw) } else { raw };
    let whole = match value {
        FieldValue::Integer(number) if !is_scaled => i128::from(number),
        // All integers between are whole in binary64.
        #[expect(clippy::cast_possible_truncation, reason = "it is between the bounds of 64 bits")]
        _ if raw.abs() < 1.9e19 => raw.round() as i128,
        _ => i128::MAX,
    };
    let bytes = match register.value_type() {
        ValueType::U16 => u16::try_from(whole).ok().map(|n| n.to_be_bytes().to_vec()),
        ValueType::I16 => i16::try_from(whole).ok().map(|n| n.to_be_bytes().to_vec()),
        ValueType::U32 => u32::try_from(whole).ok().map(|n| n.to_be_bytes().to_vec()),
        ValueType::I32 => i32::try_from(whole).ok().map(|n| n.to_be_bytes().to_vec()),
        ValueType::U64 => u64::try_from(whole).ok().map(|n| n.to_be_bytes().to_vec()),
        ValueType::I64 => i64::try_from(whole).ok().map(|n| n.to_be_bytes().to_vec()),
        #[expect(clippy::cast_possible_truncation, reason = "what becomes infinite is refused, and digits are lost")]
        ValueType::F32 => Some(fraction(raw) as f32).filter(|n| n.is_finite()).map(|n| n.to_be_bytes().to_vec()),
        ValueType::F64 => Some(fraction(raw)).filter(|n| n.is_finite()).map(|n| n.to_be_bytes().to_vec()),
        ValueType::Bool | ValueType::String => return Err("its type cannot be set".to_owned()),
    };
    let bytes = bytes.ok_or_else(unfit)?;
    let mut words: Vec<u16> = bytes.as_chunks().0.iter().map(|bytes| halves(*bytes)).collect();
    if orders.0 == ByteOrder::Little {
        words.reverse();
    }
    Ok(words)
}

/// The bytes of `words`, high ones first. A text has no high ones: its characters come as they are read.
fn bytes(words: &[u16], (word_order, byte_order): (ByteOrder, ByteOrder), value_type: ValueType) -> Vec<u8> {
    let halves = |word: &u16| match byte_order {
        ByteOrder::Big => word.to_be_bytes(),
        ByteOrder::Little => word.to_le_bytes(),
    };
    match word_order {
        ByteOrder::Little if value_type != ValueType::String => words.iter().rev().flat_map(halves).collect(),
        ByteOrder::Big | ByteOrder::Little => words.iter().flat_map(halves).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::ByteOrder::{Big, Little};
    use super::*;

    #[track_caller]
    fn check(keys: &str, words: &[u16], orders: (ByteOrder, ByteOrder), expected: &str) {
        let register: RegisterConfig = toml::from_str(&format!("name = \"x\"\nholding = 0\n{keys}")).unwrap();
        assert_eq!(usize::from(register.width()), words.len(), "{keys}");
        let value = of_words(&register, words, orders);
        assert_eq!(value.map(|value| serde_json::to_string(&value).unwrap()).unwrap_or_default(), expected, "{keys}");
    }

    /// The bytes of each number by hand: 0x12345678 is 305,419,896, and 20.5 in binary32 is 0x41A40000.
    #[test]
    fn registers_are_numbers_in_either_order() {
        check("", &[0xFFFE], (Big, Big), "65534");
        check("type = \"i16\"", &[0xFFFE], (Big, Big), "-2");
        check("type = \"i16\"", &[0xFEFF], (Big, Little), "-2");
        check("type = \"u32\"", &[0x1234, 0x5678], (Big, Big), "305419896");
        check("type = \"u32\"", &[0x5678, 0x1234], (Little, Big), "305419896");
        check("type = \"u32\"", &[0x3412, 0x7856], (Big, Little), "305419896");
        check("type = \"u32\"", &[0x7856, 0x3412], (Little, Little), "305419896");
        check("type = \"i32\"", &[0xFFFF, 0xFFFE], (Big, Big), "-2");
        check("type = \"f32\"", &[0x41A4, 0x0000], (Big, Big), "20.5");
        check("type = \"f32\"", &[0x0000, 0x41A4], (Little, Big), "20.5");
        check("type = \"f32\"", &[0x41A8, 0xCCCD], (Big, Big), "21.1");
        check("type = \"u64\"", &[0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF], (Big, Big), "18446744073709551615");
        check("type = \"i64\"", &[0xFFFE, 0xFFFF, 0xFFFF, 0xFFFF], (Little, Big), "-2");
        check("type = \"f64\"", &[0x4034, 0x8000, 0, 0], (Big, Big), "20.5");
        check("type = \"f64\"", &[0, 0, 0x8000, 0x4034], (Little, Big), "20.5");
        check("type = \"bool\"", &[0x0100], (Big, Big), "true");
        check("type = \"bool\"", &[0], (Big, Big), "false");
    }

    #[test]
    fn values_are_scaled_without_the_dust_of_fractions() {
        check("scale = 0.1", &[3], (Big, Big), "0.3");
        check("scale = 0.1\noffset = -400", &[615], (Big, Big), "21.5");
        check("type = \"f32\"\nscale = 10", &[0x41A8, 0xCCCD], (Big, Big), "211.0");
        // A meter that counts in thousandths loses none of them.
        let counter = [0, 0x0B3A, 0x73CE, 0x2FF2];
        check("type = \"u64\"\nscale = 0.001", &counter, (Big, Big), "12345678901.234");
        check("type = \"f32\"", &[0x7FC0, 0], (Big, Big), "");
        check("type = \"f32\"\nscale = 2", &[0xFF80, 0], (Big, Big), "");
    }

    #[test]
    fn texts_end_where_they_are_filled_up() {
        let text = "type = \"string\"\nlength = 3";
        check(text, &[0x4142, 0x4320, 0x0000], (Big, Big), "\"ABC\"");
        check(text, &[0x4241, 0x2043, 0x2020], (Little, Little), "\"ABC\"");
        check(text, &[0x41FF, 0x4243, 0x4445], (Big, Big), "\"A\u{fffd}BCDE\"");
    }

    #[test]
    fn what_is_set_reads_back_as_it_was_set() {
        use FieldValue::{Boolean, Integer, Number};
        let set = |keys: &str, value, orders| {
            let register: RegisterConfig = toml::from_str(&format!("name = \"x\"\nholding = 0\n{keys}")).unwrap();
            let words = to_words(&register, value, orders)?;
            Ok((words.clone(), serde_json::to_string(&of_words(&register, &words, orders)).unwrap()))
        };
        let good = |keys, value, orders, words: &[u16], back: &str| {
            assert_eq!(set(keys, value, orders), Ok((words.to_vec(), back.to_owned())), "{keys}");
        };
        good("", Integer(65_535), (Big, Big), &[0xFFFF], "65535");
        good("type = \"i16\"", Integer(-2), (Big, Little), &[0xFEFF], "-2");
        good("type = \"u32\"", Integer(305_419_896), (Little, Big), &[0x5678, 0x1234], "305419896");
        good("type = \"i64\"", Integer(i64::MIN + 1), (Big, Big), &[0x8000, 0, 0, 1], "-9223372036854775807");
        good("type = \"f32\"", Number(20.5), (Big, Big), &[0x41A4, 0], "20.5");
        good("type = \"f64\"", Integer(-2), (Big, Big), &[0xC000, 0, 0, 0], "-2.0");
        good("type = \"i16\"\nscale = 0.1", Number(-12.5), (Big, Big), &[0xFF83], "-12.5");
        good("scale = 0.1\noffset = -400", Number(21.5), (Big, Big), &[615], "21.5");
        good("type = \"bool\"", Boolean(true), (Big, Big), &[1], "true");
        good("type = \"bool\"", Boolean(true), (Big, Little), &[0x0100], "true");
        let counter = "type = \"u64\"\nscale = 0.001";
        good(counter, Number(12_345_678_901.234), (Big, Big), &[0, 0x0B3A, 0x73CE, 0x2FF2], "12345678901.234");
        let bad: fn(Result<_, String>) -> String = |set: Result<(Vec<u16>, String), String>| set.unwrap_err();
        assert_eq!(bad(set("", Integer(65_536), (Big, Big))), "65536 does not fit its type");
        assert_eq!(bad(set("", Number(-1.0), (Big, Big))), "-1 does not fit its type");
        assert_eq!(bad(set("", Number(f64::NAN), (Big, Big))), "NaN does not fit its type");
        assert_eq!(bad(set("type = \"f32\"", Number(1e300), (Big, Big))), format!("{} does not fit its type", 1e300));
        assert_eq!(bad(set("", Boolean(true), (Big, Big))), "true is no number");
    }

    #[test]
    fn a_value_differs_by_more_than_its_deadband() {
        let number = Value::Number;
        assert!(number(20.0).differs(&number(20.1), 0.0));
        assert!(!number(20.0).differs(&number(20.5), 0.5));
        assert!(number(20.0).differs(&number(20.6), 0.5));
        assert!(Value::Signed(-1).differs(&Value::Signed(1), 1.0));
        assert!(Value::Bool(true).differs(&Value::Bool(false), 0.0));
        assert!(!Value::Text("a".into()).differs(&Value::Text("a".into()), 0.0));
    }
}
