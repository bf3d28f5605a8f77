//! What turns occurrences into events and hands them to functions. One file per kind; all of them see only [`Submit`].

pub mod actuators;
pub mod event;
pub mod file;
pub mod filter;
pub mod gpio;
pub mod http;
mod kept;
mod last_tick;
mod lines;
pub(crate) mod listener;
pub mod modbus;
pub mod mqtt;
mod pattern;
pub mod port;
pub mod process;
pub mod schedule;
pub mod serial;
mod shape;
pub mod source;
pub mod sysfs;
pub mod tail;
pub mod window;

use std::sync::Arc;

use crate::event::Event;
use crate::name::FunctionName;
use crate::receipt::Receipt;

/// Digits of a measured value behind its first: one more would show the dust, and one less cost digits of a counter.
const DIGITS: usize = 14;

/// What its source expects of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Dropped, and counted, when there is no room (MQTT QoS 0).
    AtMostOnce,
    /// Kept by its source until the receipt is settled (MQTT QoS 1 and 2).
    AtLeastOnce,
}

/// Why an event was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// No such function runs here.
    #[error("function `{0}` does not run on this gateway")]
    Unknown(FunctionName),
    /// The queue is at its bound.
    #[error("the function's queue is full: {events} events with {bytes} bytes wait")]
    Full {
        /// Events that wait.
        events: usize,
        /// Their payloads.
        bytes: usize,
    },
    /// The agent or the function is being stopped.
    #[error("the function is being stopped")]
    Stopping,
}

/// Where triggers put events. Never waits.
pub trait Submit: Send + Sync {
    /// Queues `event` for `function`. On an error the receipt has been dropped, so that its source hears of it.
    ///
    /// # Errors
    /// When the function is unknown, stopping, or has no room.
    fn submit(
        &self,
        function: &FunctionName,
        event: Arc<Event>,
        delivery: Delivery,
        receipt: Receipt,
    ) -> Result<(), Refused>;
}

/// Without the dust of binary fractions: 48.123, not 48.123000000000005.
fn rounded(value: f64) -> f64 {
    format!("{value:.DIGITS$e}").parse().unwrap_or(value)
}
