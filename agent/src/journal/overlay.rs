//! Key-values that were begun and are not on disk yet. Reads see them, so that the next event of a key need not wait for an
//! fsync; when one fails on its way to disk, whatever was decided by it fails too.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bytes::Bytes;

use super::batch::KeyValue;

/// Buckets whose last write is remembered; beyond, all count as written, and who read one runs again.
const BUCKETS_MAX: usize = 10_000;

/// One write on its way to disk.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) version: u64,
    pub(super) value: Option<Bytes>,
    /// What the key counts against its function's limit with it.
    pub(super) bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct Overlay {
    /// Writes by their key in the segment, the latest last.
    keys: BTreeMap<Vec<u8>, Vec<Pending>>,
    /// Version of the last write to each bucket since the start.
    buckets: HashMap<Vec<u8>, u64>,
    /// Version of all other buckets.
    others: u64,
    /// The highest version that was given out.
    newest: u64,
    /// Versions that never got to disk, while anything that may have read them is on its way.
    failed: BTreeSet<u64>,
}

impl Overlay {
    /// All versions up to `version` are on disk, or were.
    pub(super) fn start_after(&mut self, version: u64) {
        self.newest = self.newest.max(version);
        self.others = self.others.max(version);
    }

    /// Makes a write of `key` in `bucket`, each as in the segment, visible. Returns its version.
    pub(super) fn write(&mut self, bucket: Vec<u8>, key: Vec<u8>, value: Option<Bytes>, bytes: u64) -> u64 {
        self.newest += 1;
        let version = self.newest;
        if self.buckets.len() >= BUCKETS_MAX {
            self.buckets.clear();
            self.others = version;
        }
        self.buckets.insert(bucket, version);
        self.keys.entry(key).or_default().push(Pending { version, value, bytes });
        version
    }

    /// The latest write of `key`, if it is not on disk yet.
    pub(super) fn latest(&self, key: &[u8]) -> Option<&Pending> {
        self.keys.get(key)?.last()
    }

    /// All keys of `bucket` that are on their way, with their latest writes.
    pub(super) fn in_bucket(&self, bucket: &[u8]) -> impl Iterator<Item = (&[u8], &Pending)> {
        let keys = self.keys.range(bucket.to_vec()..).take_while(move |(key, _)| key.starts_with(bucket));
        keys.filter_map(|(key, writes)| Some((key.as_slice(), writes.last()?)))
    }

    /// All keys that are on their way, with their latest writes.
    pub(super) fn keys(&self) -> impl Iterator<Item = (&[u8], &Pending)> {
        self.in_bucket(&[])
    }

    /// Version of `bucket` as a whole.
    pub(super) fn bucket_version(&self, bucket: &[u8]) -> u64 {
        self.buckets.get(bucket).copied().unwrap_or(self.others)
    }

    /// These writes are on disk.
    pub(super) fn landed<'a>(&mut self, writes: impl IntoIterator<Item = (&'a [u8], u64)>) {
        for (key, version) in writes {
            self.remove(key, version);
        }
    }

    /// These writes will never be on disk.
    pub(super) fn dropped<'a>(&mut self, writes: impl IntoIterator<Item = (&'a [u8], u64)>) {
        for (key, version) in writes {
            self.remove(key, version);
            self.failed.insert(version);
        }
        // Whoever listed a bucket saw keys that are gone now.
        self.buckets.clear();
        self.newest += 1;
        self.others = self.newest;
    }

    /// Whether any of `versions` never got to disk.
    pub(super) fn any_failed(&self, versions: &[u64]) -> bool {
        !self.failed.is_empty() && versions.iter().any(|version| self.failed.contains(version))
    }

    /// Nothing is on its way that may have read what failed.
    pub(super) fn forget_failed(&mut self) {
        self.failed.clear();
    }

    fn remove(&mut self, key: &[u8], version: u64) {
        if let Some(writes) = self.keys.get_mut(key) {
            writes.retain(|write| write.version != version);
            if writes.is_empty() {
                self.keys.remove(key);
            }
        }
    }
}

impl From<&Pending> for KeyValue {
    fn from(pending: &Pending) -> Self {
        Self { version: pending.version, value: pending.value.clone() }
    }
}
