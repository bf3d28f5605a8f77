//! The other side of every call: the agent when compiled to WebAssembly, otherwise the double in [`crate::testing`].

#[cfg(target_family = "wasm")]
mod wasm;
#[cfg(target_family = "wasm")]
pub(crate) use wasm::{Bucket, append, config_all, config_get, infer, log, now_ms, publish, random, read_file, write};
#[cfg(target_family = "wasm")]
pub use wasm::{bindings, run};

#[cfg(not(target_family = "wasm"))]
mod double;
#[cfg(not(target_family = "wasm"))]
pub(crate) use double::{
    Bucket, append, config_all, config_get, infer, log, now_ms, publish, random, read_file, write,
};
#[cfg(not(target_family = "wasm"))]
pub(crate) use double::{State, Stored, with_state};
