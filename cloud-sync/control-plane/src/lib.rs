//! The control plane: what was published, what each gateway should run, what gateways say of themselves, and the API that serves it.
//!
//! # Promises
//! - What was answered with 2xx survives a kill at any time: every change is one transaction that is on disk before the answer.
//! - It holds no key that could make a version, widen a right or go below an operator's floor; gateways check that themselves. What it refuses, it
//!   refuses early and says why, so that a mistake is seen on a laptop and not on a gateway.
//! - A blob is visible whole, or not at all.
//!
//! [`ControlPlane`] is the composition root; `store/` keeps rows, `blobs/` keeps bytes, `api/` is all that is reachable from outside.

pub mod addresses;
pub mod api;
pub mod audit;
pub mod auth;
pub mod backup;
pub mod blobs;
pub mod ca;
pub mod claim;
pub mod clock;
pub mod clones;
mod control_plane;
pub mod desired;
pub mod error;
pub mod folder;
pub mod gate;
mod init;
pub mod limits;
pub mod metrics;
pub mod online;
pub mod peer;
pub mod preview;
pub mod records;
pub mod secret;
pub mod serve;
mod service;
pub mod shadow;
pub mod store;
pub mod tls;
pub mod token;
pub mod trust;
pub mod upkeep;
pub mod wakes;

pub use self::control_plane::{ControlPlane, OpenError};
pub use self::init::{InitError, InitOptions, Initialized, init};
pub use self::service::{ServeError, ServeOptions, serve};
