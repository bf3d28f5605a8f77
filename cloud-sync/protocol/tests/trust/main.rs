//! What a gateway lets itself be told, and what not: the promises of docs/spec/trust.md.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod agents;
mod attacks;
mod clock;
mod composing;
mod documents;
mod mutations;
mod rotation;
mod support;
mod taken_over;
