//! JSON with one form only, so that both sides of a signature read the same.
//!
//! - Read: no member twice (parsers differ in which one they keep), whole numbers that every parser has exactly (up to 2^53 - 1), nested no deeper
//!   than [`JSON_DEPTH_MAX`], of no more values than [`JSON_VALUES_MAX`].
//! - Written: RFC 8785. Members are sorted here: serde_json leaves that to a feature that any crate of the build may turn on.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::limits::{JSON_DEPTH_MAX, JSON_VALUES_MAX};

/// Largest whole number that a parser which keeps all numbers in doubles has exactly.
const WHOLE_MAX: u64 = (1 << 53) - 1;

/// For `#[serde(deserialize_with)]`: a value in its only form.
pub(crate) fn strict<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
    Strict { depth: JSON_DEPTH_MAX, values: &Cell::new(JSON_VALUES_MAX) }.deserialize(deserializer)
}

/// For `#[serde(deserialize_with)]`: a list of which no more than `MAX` are read.
pub(crate) fn at_most<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_seq(AtMost::<T, MAX>(PhantomData))
}

struct AtMost<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for AtMost<T, MAX> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX}")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            if list.len() == MAX {
                return Err(A::Error::custom(format!("a list of more than {MAX}")));
            }
            list.push(item);
        }
        Ok(list)
    }
}

#[derive(Clone, Copy)]
struct Strict<'a> {
    depth: usize,
    /// How many more values there may be.
    values: &'a Cell<usize>,
}

impl Strict<'_> {
    fn deeper<E: Error>(self) -> Result<Self, E> {
        let depth = self.depth.checked_sub(1);
        depth
            .map(|depth| Self { depth, ..self })
            .ok_or_else(|| E::custom(format!("nested deeper than {JSON_DEPTH_MAX}")))
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let left = self.values.get().checked_sub(1);
        self.values.set(left.ok_or_else(|| D::Error::custom(format!("more than {JSON_VALUES_MAX} values")))?);
        deserializer.deserialize_any(self)
    }
}

fn whole<E: Error>(number: Number) -> Result<Value, E> {
    if is_whole(&number) { Ok(Value::Number(number)) } else { Err(E::custom(format!("{number} {NOT_WHOLE}"))) }
}

const NOT_WHOLE: &str = "is no whole number below 2^53";

fn is_whole(number: &Number) -> bool {
    number.as_u64().or_else(|| number.as_i64().map(i64::unsigned_abs)).is_some_and(|size| size <= WHOLE_MAX)
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        whole(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        whole(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Err(E::custom(format!("{value} {NOT_WHOLE}")))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut values = Vec::new();
        while let Some(value) = items.next_element_seed(inner)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = self.deeper()?;
        let mut members = BTreeMap::new();
        while let Some(name) = items.next_key::<String>()? {
            let value = items.next_value_seed(inner)?;
            match members.entry(name) {
                Entry::Vacant(free) => drop(free.insert(value)),
                Entry::Occupied(taken) => {
                    return Err(A::Error::custom(format!("member `{}` is there twice", taken.key())));
                }
            }
        }
        Ok(Value::Object(members.into_iter().collect::<Map<String, Value>>()))
    }
}

/// The canonical form; what it cannot express is the error.
pub(crate) fn canonical(value: &Value) -> Result<Vec<u8>, String> {
    let mut text = Vec::new();
    write(value, JSON_DEPTH_MAX, &mut text)?;
    Ok(text)
}

fn write(value: &Value, depth: usize, text: &mut Vec<u8>) -> Result<(), String> {
    let deeper = || depth.checked_sub(1).ok_or_else(|| format!("nested deeper than {JSON_DEPTH_MAX}"));
    match value {
        Value::Number(number) if !is_whole(number) => return Err(format!("{number} {NOT_WHOLE}")),
        Value::Null | Value::Bool(_) | Value::Number(_) => text.extend_from_slice(value.to_string().as_bytes()),
        Value::String(string) => write_string(string, text),
        Value::Array(values) => {
            let depth = deeper()?;
            text.push(b'[');
            for (n, value) in values.iter().enumerate() {
                separate(n, text);
                write(value, depth, text)?;
            }
            text.push(b']');
        }
        Value::Object(members) => {
            let depth = deeper()?;
            let mut members: Vec<(&String, &Value)> = members.iter().collect();
            members.sort_by(|(one, _), (other, _)| one.encode_utf16().cmp(other.encode_utf16()));
            text.push(b'{');
            for (n, (name, value)) in members.into_iter().enumerate() {
                separate(n, text);
                write_string(name, text);
                text.push(b':');
                write(value, depth, text)?;
            }
            text.push(b'}');
        }
    }
    Ok(())
}

fn separate(n: usize, text: &mut Vec<u8>) {
    if n > 0 {
        text.push(b',');
    }
}

/// RFC 8785, section 3.2.2.2: short escapes where JSON has them, other control characters as `\u00xx`, all else as it is.
fn write_string(string: &str, text: &mut Vec<u8>) {
    text.push(b'"');
    for byte in string.bytes() {
        match byte {
            b'"' | b'\\' => text.extend_from_slice(&[b'\\', byte]),
            0x08 => text.extend_from_slice(b"\\b"),
            0x09 => text.extend_from_slice(b"\\t"),
            0x0a => text.extend_from_slice(b"\\n"),
            0x0c => text.extend_from_slice(b"\\f"),
            0x0d => text.extend_from_slice(b"\\r"),
            0x00..=0x1f => text.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => text.push(byte),
        }
    }
    text.push(b'"');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Value, String> {
        strict(&mut serde_json::Deserializer::from_str(json)).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn check(json: &str, expected: &str) {
        assert_eq!(String::from_utf8(canonical(&read(json).unwrap()).unwrap()).unwrap(), expected);
    }

    #[track_caller]
    fn refused(json: &str, why: &str) {
        let error = read(json).unwrap_err();
        assert!(error.contains(why), "{json}: {error}");
    }

    #[test]
    fn a_document_has_one_form_however_it_was_written() {
        check(r#" { "b" : [ 1 , -2 ] , "a" : { "d":null, "c":true } } "#, r#"{"a":{"c":true,"d":null},"b":[1,-2]}"#);
        check(r#"{"\u0061":"\u0041\/"}"#, r#"{"a":"A/"}"#);
    }

    /// The example of RFC 8785, section 3.2.3: by UTF-16, where characters past U+FFFF stand before U+FB33.
    #[test]
    fn members_are_sorted_as_rfc_8785_says() {
        check(
            r#"{"\u20ac":1,"\r":2,"\ufb33":3,"1":4,"\ud83d\ude00":5,"\u0080":6,"\u00f6":7}"#,
            "{\"\\r\":2,\"1\":4,\"\u{80}\":6,\"ö\":7,\"€\":1,\"😀\":5,\"\u{fb33}\":3}",
        );
    }

    /// The strings of RFC 8785, section 3.2.2.
    #[test]
    fn texts_are_escaped_as_rfc_8785_says() {
        check(r#""\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/""#, "\"€$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"");
        check(r#""\b\f\t\r\u007f\u001f""#, "\"\\b\\f\\t\\r\u{7f}\\u001f\"");
    }

    #[test]
    fn what_parsers_read_differently_is_refused() {
        refused(r#"{"a":1,"b":{"x":1,"x":2}}"#, "`x` is there twice");
        refused(r#"{"a":1,"\u0061":2}"#, "`a` is there twice");
        for number in ["1.0", "0.5", "1e3", "-0", "9007199254740992", "-9007199254740992", "18446744073709551616"] {
            refused(number, "no whole number");
        }
        check("[9007199254740991,-9007199254740991,0]", "[9007199254740991,-9007199254740991,0]");
        refused(r#""\ud800""#, "escape");
    }

    #[test]
    fn a_bomb_is_not_unpacked() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        check(&nested(JSON_DEPTH_MAX), &nested(JSON_DEPTH_MAX));
        refused(&nested(JSON_DEPTH_MAX + 1), "nested deeper");
        refused(&"[".repeat(1 << 20), "nested deeper");
        refused(&format!("[{}0]", "0,".repeat(JSON_VALUES_MAX)), "more than 65536 values");
    }

    #[test]
    fn what_has_no_canonical_form_cannot_be_signed() {
        assert!(canonical(&serde_json::json!({ "a": 0.5 })).unwrap_err().contains("no whole number"));
        assert!(canonical(&serde_json::json!([u64::MAX])).unwrap_err().contains("no whole number"));
    }
}
