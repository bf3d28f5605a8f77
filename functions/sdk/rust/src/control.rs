//! What a handler sets in the field: coils, registers and outputs of the sources that it may write to.
//!
//! ```
//! use function_sdk::control::{self, Value};
//! use function_sdk::testing::Host;
//!
//! let mut host = Host::new();
//! host.run(|| control::write("press", "setpoint", 21.5)).unwrap();
//! assert_eq!(host.written("press", "setpoint"), [Value::Number(21.5)]);
//! ```

use crate::failure::Failure;
use crate::host;

/// What a point is set to, in the unit that events of its source have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// On or off.
    Boolean(bool),
    /// A whole number.
    Integer(i64),
    /// Any other.
    Number(f64),
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Boolean(value)
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl From<i32> for Value {
    fn from(value: i32) -> Self {
        Self::Integer(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Number(value)
    }
}

/// Sets `point` of `source` when the handler has succeeded, in the order of the calls, before anything else of it is committed. When that
/// fails the event comes again, so a point may be set twice.
///
/// # Errors
/// [`Failure::Reject`] when the function may not write to that source.
pub fn write(source: &str, point: &str, value: impl Into<Value>) -> Result<(), Failure> {
    host::write(source, point, value.into()).map_err(Failure::Reject)
}
