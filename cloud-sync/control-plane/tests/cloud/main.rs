//! What users of the control plane may rely on: docs/spec/control-plane.md.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod api;
mod blobs;
mod deployments;
mod faults;
mod registry;
mod support;
mod sync;
