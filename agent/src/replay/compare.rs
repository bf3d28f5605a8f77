//! What differs between two runs on the same event.

use serde::Serialize;

use crate::invocation::{Effects, FieldValue, FieldWrite, KeyValueWrite, Publish};
use crate::recording::Came;
use crate::throwaway::is_same;

/// In what two runs differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum What {
    /// One failed, or failed in another way.
    Outcome,
    /// The value that was returned.
    Result,
    /// What is set in the field.
    FieldWrites,
    /// What is published.
    Publishes,
    /// What is appended to streams.
    Records,
    /// What is remembered.
    KeyValues,
}

impl What {
    /// As people say it.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Outcome => "how it ends",
            Self::Result => "the result",
            Self::FieldWrites => "what it sets",
            Self::Publishes => "what it publishes",
            Self::Records => "what it appends",
            Self::KeyValues => "what it remembers",
        }
    }
}

/// In what `after` differs from `before`. Payloads are the same when they mean the same as JSON. Runs of which one failed
/// differ in how they end; all else follows from that.
pub(crate) fn differences(before: &Came, after: &Came) -> Vec<What> {
    if before.ended != after.ended {
        return vec![What::Outcome];
    }
    if !before.succeeded() {
        // The words of a trap name places in the code, which are others in each version.
        let says_same = before.why == after.why || before.ended == "trapped";
        return if says_same { Vec::new() } else { vec![What::Outcome] };
    }
    // By name, so that no kind of effect is forgotten here.
    let Effects { field_writes, publishes, records, key_values, reads: _ } = &after.effects;
    let old = &before.effects;
    let differs = [
        (What::Result, !is_same(&after.result, &before.result)),
        (What::FieldWrites, !are_same(&old.field_writes, field_writes, same_field_write)),
        (What::Publishes, !are_same(&old.publishes, publishes, same_publish)),
        (What::Records, !are_same(&old.records, records, |a, b| a.0 == b.0 && is_same(&b.1, &a.1))),
        (What::KeyValues, !are_same(&old.key_values, key_values, same_value)),
    ];
    differs.into_iter().filter(|(_, differs)| *differs).map(|(what, _)| what).collect()
}

fn are_same<T>(before: &[T], after: &[T], is_same: impl Fn(&T, &T) -> bool) -> bool {
    before.len() == after.len() && before.iter().zip(after).all(|(before, after)| is_same(before, after))
}

/// A number that was read back from JSON may be off by its last bit.
fn same_field_write(before: &FieldWrite, after: &FieldWrite) -> bool {
    let is_same_value = match (before.value, after.value) {
        (FieldValue::Number(before), FieldValue::Number(after)) => {
            (before - after).abs() <= 2.0 * f64::EPSILON * before.abs().max(after.abs())
        }
        (before, after) => before == after,
    };
    before.source == after.source && before.point == after.point && is_same_value
}

fn same_publish(before: &Publish, after: &Publish) -> bool {
    let how = |publish: &Publish| (publish.broker.clone(), publish.qos, publish.retain, publish.content_type.clone());
    before.topic == after.topic && how(before) == how(after) && is_same(&after.data, &before.data)
}

fn same_value(before: &KeyValueWrite, after: &KeyValueWrite) -> bool {
    let is_same_value = match (&before.value, &after.value) {
        (Some(before), Some(after)) => is_same(after, before),
        (before, after) => before == after,
    };
    before.bucket == after.bucket && before.key == after.key && is_same_value
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::invocation::Outcome;
    use crate::recording::line::tests::recorded;

    #[track_caller]
    fn check(change: impl FnOnce(&mut Came), expected: &[What]) {
        let before = recorded("scale").run.unwrap().came;
        let mut after = before.clone();
        change(&mut after);
        assert_eq!(differences(&before, &after), expected, "{before:?}\n{after:?}");
    }

    fn failed(outcome: &Outcome) -> Came {
        Came::of(outcome, &Effects::default())
    }

    #[test]
    fn each_kind_of_difference_is_told_by_itself() {
        check(|_| {}, &[]);
        check(|came| came.result = Bytes::from_static(b"other"), &[What::Result]);
        check(|came| came.effects.field_writes.clear(), &[What::FieldWrites]);
        check(|came| came.effects.publishes[0].qos = 1, &[What::Publishes]);
        check(|came| came.effects.publishes[0].data = Bytes::from_static(b"x"), &[What::Publishes]);
        check(|came| came.effects.publishes.clear(), &[What::Publishes]);
        check(|came| came.effects.records[0].1 = Bytes::from_static(b"{}"), &[What::Records]);
        check(|came| came.effects.records[0].1 = Bytes::from_static(b"{\"a\":1.5}"), &[]);
        check(|came| came.effects.key_values[2].value = Some(Bytes::new()), &[What::KeyValues]);
        check(|came| *came = failed(&Outcome::Rejected("no".to_owned())), &[What::Outcome]);
    }

    #[test]
    fn failures_are_the_same_when_they_say_the_same() {
        let same = |before: Outcome, after: Outcome| differences(&failed(&before), &failed(&after)).is_empty();
        let rejected = |why: &str| Outcome::Rejected(why.to_owned());
        assert!(same(rejected("a"), rejected("a")));
        assert!(!same(rejected("a"), rejected("b")));
        assert!(!same(rejected("a"), Outcome::Retry("a".to_owned())));
        assert!(same(Outcome::Trapped("at 1".to_owned()), Outcome::Trapped("at 2".to_owned())));
    }
}
