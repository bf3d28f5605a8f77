//! Brings out what can be read of a segment that is damaged: whole commits only.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use super::segment;
use crate::buffer::record::{self, Frame, Stamp};

/// What is left in the folder of a segment. Of a commit after `synced` and after all that its values know to be on disk, of
/// which a part is missing, nothing is brought out: it was never acknowledged.
///
/// # Errors
/// When its file is there and cannot be read.
pub(super) fn whole_commits(dir: &Path, id: u64, synced: u64) -> io::Result<Vec<(Stamp, Frame)>> {
    Ok(only_whole(segment::salvage(dir, id)?, synced))
}

fn only_whole(found: Vec<(Stamp, Frame)>, synced: u64) -> Vec<(Stamp, Frame)> {
    let synced = found.iter().map(|(stamp, _)| stamp.synced).max().unwrap_or(0).max(synced);
    let mut names: BTreeMap<u64, BTreeSet<Vec<u8>>> = BTreeMap::new();
    for (stamp, frame) in found.iter().filter(|(stamp, _)| stamp.revision > synced) {
        names.entry(stamp.revision).or_default().insert(record::key(frame));
    }
    let is_whole = |stamp: &Stamp| {
        let there = names.get(&stamp.revision).map_or(0, BTreeSet::len);
        stamp.revision <= synced || there as u64 >= u64::from(stamp.values)
    };
    found.into_iter().filter(|(stamp, _)| is_whole(stamp)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::record::StreamState;
    use crate::name::StreamName;

    fn value(revision: u64, values: u32, synced: u64, name: &str) -> (Stamp, Frame) {
        let state = StreamState { newest: revision, ..StreamState::default() };
        (Stamp { revision, values, synced }, Frame::Stream(StreamName::parse(name).unwrap(), state))
    }

    #[test]
    fn half_a_commit_is_never_brought_out() {
        let found = vec![
            value(1, 2, 0, "a"),
            value(3, 2, 1, "a"),
            value(3, 2, 1, "b"),
            value(4, 2, 2, "a"),
            value(4, 2, 2, "a"),
            value(5, 0, 0, "a"),
        ];
        let revisions = |synced: u64| -> Vec<u64> {
            only_whole(found.clone(), synced).iter().map(|(stamp, _)| stamp.revision).collect()
        };
        assert_eq!(revisions(0), [1, 3, 3, 5], "1 was on disk when 4 was written, and 4 is torn");
        assert_eq!(
            revisions(4),
            [1, 3, 3, 4, 4, 5],
            "4 was on disk: what is missing of it was replaced or damaged later"
        );
    }
}
