//! Who gets in and who does not, and what gateways deliver: by real sockets, TLS and certificates against a control plane as it is served.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

mod access;
mod certificates;
mod client;
mod connections;
mod provisioning;
mod records;
mod signed;
mod support;
