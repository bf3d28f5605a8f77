//! The simulator: the whole agent, in a world that is made up from a seed.
//!
//! ```text
//! cargo test -p e2e --test sim -- --seeds 200          # the first 200, and those that have found something before
//! cargo test -p e2e --test sim -- --seeds 20000 --from 1000
//! cargo test -p e2e --test sim -- --seed 4711          # one, with everything that happened
//! ```
//!
//! # What is real
//! The agent as `tidegate run` starts it: its composition root, configuration, functions (WebAssembly, run by wasmtime), journal,
//! MQTT sessions, uplinks. It runs on one thread, in tokio's paused time; see `world.rs` for the journal's own threads.
//!
//! # What is made up
//! Time, wall and monotonic; the network; two brokers (a strict one beside the devices, one in the cloud); how long the disk takes.
//! The files are real ones, in memory. A kill is a copy of the folder at that moment: what the process had not written is gone.
//!
//! # What repeats
//! A seed fixes the plan: what devices publish, what breaks when, how late each byte and each turn of the disk is. With the same
//! binary the order of everything that happens on the agent's one thread then repeats too, but for what tokio and the standard
//! library draw at random: branches of `select!` without `biased`, the order of a `HashMap`. A handler that computes for ever is not interrupted here, so timeouts are those of handlers that wait. Event ids and trace ids differ.
//!
//! # What must hold
//! `check.rs`, and along the way `broker.rs` for whatever MQTT asks of a client, and `ledger.rs` for records.
#![allow(missing_docs, unreachable_pub, reason = "a test is read by its own pages")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::print_stdout, reason = "a test may")]
#![allow(clippy::cast_possible_truncation, reason = "bytes are cut on purpose")]

mod broker;
mod check;
mod command;
mod guest;
mod ledger;
mod packet;
mod pipe;
mod plan;
mod run;
mod site;
mod world;

use std::process::ExitCode;

fn main() -> ExitCode {
    command::main()
}
