//! The delta of a shadow: what people want and the gateway does not say of itself.

use serde_json::{Map, Value};

/// `desired` without what `reported` says already; `None`: nothing is left. What only the gateway says does not count.
pub fn delta(desired: &Value, reported: &Value) -> Option<Value> {
    let (Value::Object(desired), Value::Object(reported)) = (desired, reported) else {
        return (desired != reported).then(|| desired.clone());
    };
    let differs = |(key, value): (&String, &Value)| {
        let left = match reported.get(key) {
            Some(said) => delta(value, said),
            None => Some(value.clone()),
        };
        left.map(|left| (key.clone(), left))
    };
    let left: Map<String, Value> = desired.iter().filter_map(differs).collect();
    (!left.is_empty()).then_some(Value::Object(left))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(desired: Value, reported: Value, left: Option<Value>) {
        assert_eq!(delta(&desired, &reported), left, "{desired} on {reported}");
    }

    #[test]
    fn the_delta_is_what_is_wanted_and_not_so() {
        check(json!({}), json!({"a": 1}), None);
        check(json!({"a": 1}), json!({"a": 1, "b": 2}), None);
        check(json!({"a": 1}), json!({"a": 2}), Some(json!({"a": 1})));
        check(json!({"a": 1}), Value::Null, Some(json!({"a": 1})));
        check(
            json!({"fan": {"on": true, "speed": 2}}),
            json!({"fan": {"on": true}}),
            Some(json!({"fan": {"speed": 2}})),
        );
        check(json!({"list": [1, 2]}), json!({"list": [1]}), Some(json!({"list": [1, 2]})));
        check(json!({"a": {}}), json!({"a": {"b": 1}}), None);
    }
}
