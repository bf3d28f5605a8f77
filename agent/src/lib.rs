//! The agent: runs functions on a gateway when events arrive, and keeps what they produced until it has left.
//!
//! In reading order: an [`event`] comes from a [`trigger`], [`dispatch`] queues it for a [`function`], the [`runtime`]
//! makes an [`invocation`] of it, whose effects go to a [`broker`] or the [`journal`], from which the [`uplink`]
//! drains. [`agent`] builds all of that and is the only place where the parts meet.

pub mod agent;
pub mod api;
pub mod boot;
pub mod broker;
pub mod buffer;
pub mod cli;
pub mod clock;
pub mod componentize;
pub mod config;
pub mod deployment;
pub mod dispatch;
pub mod doctor;
pub mod event;
pub mod function;
pub mod hint;
pub mod inference;
pub mod invocation;
pub mod journal;
pub mod limits;
pub mod metrics;
pub mod net;
#[doc(hidden)]
pub mod parsers;
mod readable;
pub mod receipt;
pub mod recording;
mod replay;
pub mod runtime;
pub mod store;
pub mod telemetry;
pub mod templates;
mod throwaway;
pub mod tls;
pub mod trigger;
pub mod units;
pub mod uplink;

// The words that the agent shares with the control plane.
pub use sync_protocol::{capability, name, topic};
