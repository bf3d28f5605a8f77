//! What a durable stream is made of, without any I/O: how a record looks on disk, and which records are still needed.
//! The [`journal`](crate::journal) does the writing.

pub mod age;
pub mod ranges;
pub mod record;
pub mod retention;
