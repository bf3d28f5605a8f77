//! The gateway's side against a server with real TLS, over lines that are cut, slow, and lie.

#![allow(clippy::unwrap_used, reason = "a test may")]
#![allow(clippy::disallowed_methods, reason = "it measures how long things take")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]
#![allow(missing_docs, reason = "nobody else uses it")]

mod attacks;
mod blobs;
mod follower;
mod identity;
mod relay;
mod server;
mod session;
mod site;
