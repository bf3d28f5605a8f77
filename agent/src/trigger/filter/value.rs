//! What is remembered of a value, and when two of them differ.

use std::hash::{BuildHasher, Hash, Hasher};

use serde_json::Value;

use super::config::Deadband;

/// A value as it is remembered, in a few bytes however long it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Seen {
    /// A number, when there is a deadband.
    Number(Number),
    /// Anything, by a hash that nobody outside can foresee.
    Hash(u64),
}

impl Seen {
    /// A value of JSON. Equal ones are equal, whatever the order of their keys and however their numbers are written.
    pub(super) fn of_json(value: &Value, build: &impl BuildHasher) -> Self {
        let mut hasher = build.build_hasher();
        hash(value, &mut hasher);
        Self::Hash(hasher.finish())
    }

    /// Bytes as they are.
    pub(super) fn of_bytes(bytes: &[u8], build: &impl BuildHasher) -> Self {
        Self::Hash(build.hash_one(bytes))
    }

    /// Whether it differs from `last`, by more than `deadband` when both are numbers.
    pub(super) fn differs(self, last: Self, deadband: Option<Deadband>) -> bool {
        match (self, last, deadband) {
            (Self::Number(this), Self::Number(last), Some(Deadband::Absolute(by))) => this.distance(last) > by,
            (Self::Number(this), Self::Number(last), Some(Deadband::Percent(by))) => {
                this.distance(last) > last.float().abs() * by / 100.0
            }
            _ => self != last,
        }
    }
}

/// A number of JSON: whole ones are exact as far as they fit 64 bits, all others are floating point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Whole(i128),
    Float(f64),
}

impl Number {
    /// `None` for what is no number, text that looks like one included.
    pub(super) fn of(value: &Value) -> Option<Self> {
        /// All whole numbers below this are exact in an `f64`, and fit.
        const WHOLE_MAX: f64 = 1e30;
        let number = value.as_number()?;
        if let Some(whole) = number.as_i128() {
            return Some(Self::Whole(whole));
        }
        let float = number.as_f64()?;
        #[expect(clippy::cast_possible_truncation, reason = "it has no fraction, and fits")]
        let number = match float.fract() == 0.0 && float.abs() < WHOLE_MAX {
            true => Self::Whole(float as i128),
            false => Self::Float(float),
        };
        Some(number)
    }

    const fn float(self) -> f64 {
        match self {
            Self::Whole(whole) => whole as f64,
            Self::Float(float) => float,
        }
    }

    /// Between whole numbers exact as long as it is small, however large they are.
    fn distance(self, other: Self) -> f64 {
        match (self, other) {
            (Self::Whole(this), Self::Whole(other)) => this.abs_diff(other) as f64,
            _ => (self.float() - other.float()).abs(),
        }
    }
}

/// Each kind has a mark, so that `1` and `[1]` are not the same.
fn hash(value: &Value, hasher: &mut impl Hasher) {
    match value {
        Value::Null => 0_u8.hash(hasher),
        Value::Bool(value) => (1_u8, value).hash(hasher),
        Value::Number(_) => match Number::of(value) {
            Some(Number::Whole(whole)) => (2_u8, whole).hash(hasher),
            other => (3_u8, other.map(|number| number.float().to_bits())).hash(hasher),
        },
        Value::String(text) => (4_u8, text).hash(hasher),
        Value::Array(values) => {
            (5_u8, values.len()).hash(hasher);
            values.iter().for_each(|value| hash(value, hasher));
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            (6_u8, members.len()).hash(hasher);
            for (name, value) in members {
                name.hash(hasher);
                hash(value, hasher);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::hash::RandomState;

    use super::*;

    #[track_caller]
    fn check(this: &str, last: &str, differ: bool) {
        let build = RandomState::new();
        let [a, b] = [this, last].map(|text| Seen::of_json(&serde_json::from_str(text).unwrap(), &build));
        assert_eq!(a.differs(b, None), differ, "{this} after {last}");
        assert_eq!(b.differs(a, None), differ, "{last} after {this}");
    }

    #[test]
    fn values_are_equal_as_json_has_it() {
        check("1", "1.0", false);
        check("100", "1e2", false);
        check("0", "-0", false);
        check("0.1", "0.10", false);
        check("0.1", "0.1000000000000001", true);
        check("9007199254740993", "9007199254740992", true);
        check("18446744073709551615", "18446744073709551614", true);
        check("-9223372036854775808", "-9223372036854775807", true);
        check("1", "\"1\"", true);
        check("1", "true", true);
        check("1", "[1]", true);
        check("[]", "{}", true);
        check("null", "false", true);
        check("[[1],2]", "[[1,2]]", true);
        check(r#"{"a":1,"b":[2,null]}"#, r#"{ "b": [2.0, null], "a": 1 }"#, false);
        check(r#"{"a":1,"b":2}"#, r#"{"a":2,"b":1}"#, true);
        check(r#"{"a":null}"#, "{}", true);
        check(r#""ab""#, r#""a\u0062""#, false);
    }

    #[track_caller]
    fn check_deadband(this: &str, last: &str, deadband: Deadband, differ: bool) {
        let [a, b] = [this, last].map(|text| Seen::Number(Number::of(&serde_json::from_str(text).unwrap()).unwrap()));
        assert_eq!(a.differs(b, Some(deadband)), differ, "{this} after {last}, {deadband}");
    }

    #[test]
    fn numbers_differ_by_more_than_the_deadband() {
        use Deadband::{Absolute, Percent};
        check_deadband("21.5", "21", Absolute(0.5), false);
        check_deadband("21.51", "21", Absolute(0.5), true);
        check_deadband("20.49", "21", Absolute(0.5), true);
        check_deadband("-0", "0", Absolute(0.1), false);
        check_deadband("9007199254740993", "9007199254740992", Absolute(0.5), true);
        check_deadband("9223372036854775807", "-9223372036854775808", Absolute(1e19), true);
        check_deadband("1e308", "-1e308", Absolute(1e308), true);
        check_deadband("1e300", "1e300", Absolute(1e-3), false);
        check_deadband("102", "100", Percent(2.0), false);
        check_deadband("102.1", "100", Percent(2.0), true);
        check_deadband("-97.9", "-100", Percent(2.0), true);
        check_deadband("0.001", "0", Percent(50.0), true);
        check_deadband("0", "0", Percent(50.0), false);
        check_deadband("0", "10", Percent(100.0), false);
    }

    #[test]
    fn what_is_no_number_is_none() {
        for text in ["null", "true", "\"21.5\"", "[1]", "{}"] {
            assert_eq!(Number::of(&serde_json::from_str(text).unwrap()), None, "{text}");
        }
    }
}
