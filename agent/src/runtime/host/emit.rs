//! `emit`: what a handler publishes and appends. Checked now, so that the handler learns of it, and held back until it succeeds.

use std::sync::Arc;

use bytes::Bytes;
use wasmtime::component::{HasSelf, Linker};

use super::state::HostState;
use super::world::function::tidegate::function::{emit, types};
use crate::invocation::Publish;
use crate::journal::DEAD_LETTERS;
use crate::name::StreamName;
use crate::topic::check_topic;
use crate::units::ByteSize;

pub(crate) fn add_to_linker(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    types::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)?;
    emit::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)
}

impl types::Host for HostState {}

impl emit::Host for HostState {
    fn publish(&mut self, topic: String, data: Vec<u8>, options: Option<emit::PublishOptions>) -> Result<(), String> {
        check_topic(&topic).map_err(|error| self.refuse(error.to_string()))?;
        self.spec.capabilities.may_publish(&topic).map_err(|capability| self.deny(capability))?;
        let options =
            options.unwrap_or(emit::PublishOptions { qos: self.call.publish_qos, retain: false, content_type: None });
        if options.qos > 2 {
            return Err(self.refuse(format!("QoS {} of a publish on `{topic}` is not 0, 1 or 2", options.qos)));
        }
        self.hold(data.len())?;
        self.call.effects.publishes.push(Publish {
            broker: None,
            topic: Arc::from(topic),
            data: Bytes::from(data),
            qos: options.qos,
            retain: options.retain,
            content_type: options.content_type.map(Arc::from),
            properties: Vec::new(),
        });
        Ok(())
    }

    fn append(&mut self, stream: String, data: Vec<u8>) -> Result<(), String> {
        let name = StreamName::parse(&stream).map_err(|error| self.refuse(error.to_string()))?;
        self.spec.capabilities.may_append(&stream).map_err(|capability| self.deny(capability))?;
        if name.as_str() == DEAD_LETTERS || !self.journal().has_stream(&stream) {
            return Err(
                self.refuse(format!("there is no stream `{name}`; hint: add `[stream.{name}]` to gateway.toml"))
            );
        }
        let max = self.limits().record_bytes_max;
        if data.len() as u64 > max.0 {
            let size = ByteSize(data.len() as u64);
            return Err(
                self.refuse(format!("a record of {size} for stream `{name}` is more than `record_bytes_max` = {max}"))
            );
        }
        self.hold(data.len())?;
        self.call.effects.records.push((name, Bytes::from(data)));
        Ok(())
    }
}

impl HostState {
    /// Makes room for one more effect of `bytes`.
    ///
    /// # Errors
    /// When that would be too many, or too much, for one invocation.
    pub(super) fn hold(&mut self, bytes: usize) -> Result<(), String> {
        let (count_max, bytes_max) = (self.limits().effects_max, self.limits().effects_bytes_max);
        let effects = &self.call.effects;
        let count =
            effects.publishes.len() + effects.records.len() + effects.key_values.len() + effects.field_writes.len();
        if count >= count_max {
            return Err(self.refuse(format!("one invocation may send and write `effects_max` = {count_max} times")));
        }
        let total = self.call.effects_bytes.saturating_add(bytes as u64);
        if total > bytes_max.0 {
            return Err(self.refuse(format!("one invocation may send and write `effects_bytes_max` = {bytes_max}")));
        }
        self.call.effects_bytes = total;
        Ok(())
    }
}
