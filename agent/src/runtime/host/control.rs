//! `control`: what a handler sets in the field. Whether it may is checked now; it is done when the handler has succeeded.

use wasmtime::component::{HasSelf, Linker};

use super::state::HostState;
use super::world::function::tidegate::function::control;
use crate::invocation::{FieldValue, FieldWrite};
use crate::name::SourceName;

pub(crate) fn add_to_linker(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    control::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)
}

impl control::Host for HostState {
    fn write(&mut self, source: String, point: String, value: control::Value) -> Result<(), String> {
        if let control::Value::Number(number) = value
            && !number.is_finite()
        {
            return Err(self.refuse(format!("`{point}` cannot be set to {number}")));
        }
        let name = SourceName::parse(&source).map_err(|error| self.refuse(error.to_string()))?;
        self.spec.capabilities.may_set(&source).map_err(|capability| self.deny(capability))?;
        self.hold(point.len())?;
        let value = match value {
            control::Value::Boolean(value) => FieldValue::Boolean(value),
            control::Value::Integer(value) => FieldValue::Integer(value),
            control::Value::Number(value) => FieldValue::Number(value),
        };
        self.call.effects.field_writes.push(FieldWrite { source: name, point, value });
        Ok(())
    }
}
