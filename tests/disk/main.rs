//! The journal on a disk that loses its power, and on one that fails.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::cast_possible_truncation, reason = "a test may")]

mod agent;
mod disk;
mod failures;
mod image;
mod ledger;
mod live;
mod managed;
mod power;
mod server;
mod workload;

/// A number that the environment sets, to run more or to run one again.
fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}
