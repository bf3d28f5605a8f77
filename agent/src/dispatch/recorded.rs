//! What those who record are told of a run.

use std::sync::Arc;

use super::Inner;
use super::item::Item;
use crate::function::FunctionSpec;
use crate::invocation::{Effects, KeyRead, KeyValueWrite, Outcome, Timings};
use crate::name::FunctionName;
use crate::recording::{Came, Recorded, Run};

/// How a run began.
pub(super) struct Began {
    pub(super) invocation: Arc<str>,
    /// QoS of publishes that name none.
    pub(super) publish_qos: u8,
    /// Unix time in milliseconds.
    pub(super) at_ms: u64,
}

impl Inner {
    /// A run of `spec` as it is recorded; none while nobody wants it.
    pub(super) fn recorded(
        &self,
        spec: &FunctionSpec,
        item: &Item,
        began: &Began,
        (outcome, effects, timings): (&Outcome, &Effects, &Timings),
    ) -> Option<Arc<Recorded>> {
        if !self.tap.wants(&spec.name, &item.event.kind) {
            return None;
        }
        let run = Run {
            function: spec.name.clone(),
            version: Arc::clone(&spec.version),
            invocation: Arc::clone(&began.invocation),
            attempt: item.attempt,
            started_ms: began.at_ms,
            handler: timings.handler,
            publish_qos: began.publish_qos,
            reads: self.held_by(&spec.name, effects),
            came: Came::of(outcome, effects),
        };
        Some(Arc::new(Recorded { event: Arc::clone(&item.event), run: Some(run) }))
    }

    /// What the keys hold that the run read. One that has changed since is left out: then the run does not count.
    fn held_by(&self, function: &FunctionName, effects: &Effects) -> Vec<KeyValueWrite> {
        let mut held = Vec::new();
        for (KeyRead { bucket, key }, version) in &effects.reads {
            let Some(key) = key else { continue };
            match self.outlets.journal().key_value_get(function, bucket, key) {
                Ok(found) if found.version == *version => {
                    held.push(KeyValueWrite { bucket: bucket.clone(), key: key.clone(), value: found.value });
                }
                _ => {}
            }
        }
        held.sort_by(|a, b| (&a.bucket, &a.key).cmp(&(&b.bucket, &b.key)));
        held
    }
}
