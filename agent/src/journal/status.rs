//! How the journal and its streams are doing.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use super::Journal;
use super::state::{State, Stream};
use crate::name::StreamName;

/// How one stream is doing.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct StreamStatus {
    /// Which.
    pub name: StreamName,
    /// Records that are kept.
    pub records: u64,
    /// What they count against the budget.
    pub bytes: u64,
    /// Unix time in milliseconds of the oldest of them.
    pub oldest_ms: Option<u64>,
    /// Highest sequence that was given out.
    pub newest_sequence: u64,
    /// Highest sequence that the other side confirmed.
    pub acked_sequence: u64,
    /// Records that `max_age` cost, ever.
    pub dropped_by_age: u64,
    /// Records that `max_bytes` cost, ever.
    pub dropped_by_bytes: u64,
    /// Records that the budget of all streams together cost, ever.
    pub dropped_by_buffer: u64,
    /// Records that damage cost, ever, as far as it is known.
    pub lost: u64,
}

impl StreamStatus {
    fn of(name: StreamName, stream: &Stream) -> Self {
        let state = &stream.index.state;
        Self {
            name,
            records: stream.records(),
            bytes: stream.bytes(),
            oldest_ms: stream.index.oldest_ms(),
            newest_sequence: state.newest,
            acked_sequence: state.acked,
            dropped_by_age: state.dropped_by_age,
            dropped_by_bytes: state.dropped_by_bytes,
            dropped_by_buffer: state.dropped_by_buffer,
            lost: state.lost,
        }
    }
}

/// How the journal is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct JournalStatus {
    /// Batches that were committed since the start.
    pub commits: u64,
    /// `fdatasync`s since the start, each for one or more batches.
    pub syncs: u64,
    /// Segments on disk.
    pub segments: u64,
    /// Segments that were set aside since the start.
    pub set_aside: u64,
    /// Records that were brought out of those.
    pub salvaged: u64,
    /// Values whose checksum did not match.
    pub damaged_values: u64,
    /// Commits that are known to be missing.
    pub lost_commits: u64,
}

impl Journal {
    /// How each of the users' streams is doing, those without settings but with records too.
    pub fn status(&self) -> Vec<StreamStatus> {
        self.status_of(false)
    }

    /// How each of the agent's own streams is doing.
    pub fn own_status(&self) -> Vec<StreamStatus> {
        self.status_of(true)
    }

    fn status_of(&self, own: bool) -> Vec<StreamStatus> {
        let state = self.shared.state();
        let State { config, own: own_config, streams, .. } = &*state;
        let names: BTreeSet<&StreamName> = config.keys().chain(own_config.keys()).chain(streams.keys()).collect();
        let none = Stream::default();
        let names = names.into_iter().filter(|name| name.is_own() == own);
        names.map(|name| StreamStatus::of(name.clone(), streams.get(name).unwrap_or(&none))).collect()
    }

    /// How the journal itself is doing.
    pub fn journal_status(&self) -> JournalStatus {
        let state = self.shared.state();
        JournalStatus {
            commits: self.shared.commits.load(Ordering::Relaxed),
            syncs: self.shared.syncs.load(Ordering::Relaxed),
            segments: state.segments.len() as u64,
            set_aside: state.damage.set_aside,
            salvaged: state.damage.salvaged,
            damaged_values: state.damage.values,
            lost_commits: state.damage.commits,
        }
    }
}
