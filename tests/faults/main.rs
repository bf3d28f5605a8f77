//! Everything that goes wrong in the field, done to real processes: the agent and its broker killed with -9 in turn, wires cut, slow,
//! flapping and dead, the disk full, no file handles, no memory. An audit then accounts for every event.
//!
//! `cargo test -p e2e --test faults` is the quick round; `-- --ignored --nocapture` the long one, with 200 kills.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a test may")]

mod kills;
mod resources;
mod sweep;
