//! Write functions that Tidegate runs at the edge.
//!
//! ```
//! use function_sdk::{Event, Failure, Message, handler};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Deserialize, Serialize)]
//! struct Reading {
//!     celsius: f64,
//! }
//!
//! /// Raises an alarm when the oven is too hot.
//! #[handler]
//! fn handle(event: Event) -> Result<Vec<Message>, Failure> {
//!     let reading: Reading = event.json()?;
//!     if reading.celsius < 240.0 {
//!         return Ok(vec![]);
//!     }
//!     Ok(vec![Message::json("alarm/overheat", &reading)?])
//! }
//! # fn main() {}
//! ```
//!
//! What a handler sends ([`publish`], [`append`], [`kv`], [`control`]) is held back until it succeeds, then committed together, and
//! dropped when it fails. An event may come again, so a handler that remembers ([`kv`]) should recognise what it has
//! counted. A panic ends the instance, with its message in the log. Handlers are tested where they are written, with
//! [`testing`].
//!
//! There are no threads, sockets, `println!` or `std::time` clocks in a function: it logs with [`info!`] and asks
//! [`now_ms`] for the time.

pub mod config;
pub mod control;
mod emit;
mod event;
mod failure;
pub mod fs;
mod host;
pub mod kv;
mod log;
mod model;
mod path;
mod returned;
#[cfg(not(target_family = "wasm"))]
pub mod testing;

pub use emit::{Message, append, append_bytes, publish};
pub use event::{Context, Event};
pub use failure::Failure;
pub use function_sdk_macros::handler;
pub use model::{Element, Model, Outputs, Tensor, TensorKind, model};

/// Unix time in milliseconds, by the gateway's clock.
pub fn now_ms() -> u64 {
    host::now_ms()
}

/// A random number that nobody can guess.
pub fn random() -> u64 {
    host::random()
}

/// What `#[handler]` and the macros expand to. Not for anyone else.
#[doc(hidden)]
pub mod __private {
    pub use crate::log::write;
    pub use crate::returned::{Json, Returned};

    #[cfg(target_family = "wasm")]
    pub use crate::host::bindings::{self, Context, Event, Failure, Guest, export_handler as export};
    #[cfg(target_family = "wasm")]
    pub use crate::host::run;
}
