//! `wasi:keyvalue`: what a function remembers from one event to the next. Writes are held back with the other effects; reads see
//! the invocation's own writes, then the journal. What was read there is remembered with its version: the commit refuses when it
//! has changed since, and the handler runs again. So nothing is locked, and `increment` is exact over all instances.

use std::collections::BTreeSet;

use bytes::Bytes;
use wasmtime::component::{HasSelf, Linker, Resource};

use super::state::HostState;
use super::world::key_values::wasi::keyvalue::{atomics, batch, store};
use crate::invocation::{KeyRead, KeyValueWrite};
use crate::units::ByteSize;

/// Most keys in one answer of `list-keys`; the rest follows by its cursor.
const KEYS_PER_PAGE: usize = 1_000;

type Answer<T> = wasmtime::Result<Result<T, store::Error>>;

/// An open bucket: its name.
#[derive(Debug)]
#[expect(unreachable_pub, reason = "the generated bindings hand it on as public")]
pub struct Bucket(String);

pub(crate) fn add_to_linker(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    store::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)?;
    atomics::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)?;
    batch::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)
}

impl HostState {
    fn bucket(&self, bucket: &Resource<Bucket>) -> wasmtime::Result<String> {
        Ok(self.table.get(bucket)?.0.clone())
    }

    fn value(&mut self, bucket: &str, key: &str) -> Result<Option<Bytes>, store::Error> {
        let written =
            self.call.effects.key_values.iter().rev().find(|write| write.bucket == bucket && write.key == key);
        if let Some(write) = written {
            return Ok(write.value.clone());
        }
        let found = self.journal().key_value_get(&self.spec.name, bucket, key).map_err(|error| failed(&error))?;
        self.remember(bucket, Some(key), found.version)?;
        Ok(found.value)
    }

    /// Notes what was read. The first read counts: when a later one sees another version, the handler has worked with two
    /// states that never were at the same time.
    fn remember(&mut self, bucket: &str, key: Option<&str>, version: u64) -> Result<(), store::Error> {
        let max = self.limits().key_value_reads_max;
        let read = KeyRead { bucket: bucket.to_owned(), key: key.map(str::to_owned) };
        let reads = &mut self.call.effects.reads;
        if reads.len() >= max && !reads.contains_key(&read) {
            let why = format!("one invocation may read `key_value_reads_max` = {max} keys");
            return Err(store::Error::Other(self.refuse(why)));
        }
        reads.entry(read).or_insert(version);
        Ok(())
    }

    fn write(&mut self, bucket: &str, key: String, value: Option<Bytes>) -> Result<(), store::Error> {
        let bytes = value.as_ref().map_or(0, Bytes::len);
        let (key_max, value_max) = (self.limits().key_bytes_max, self.limits().value_bytes_max);
        let too_long = if key.len() as u64 > key_max.0 {
            Some(format!("a key of {} is more than `key_bytes_max` = {key_max}", ByteSize(key.len() as u64)))
        } else if bytes as u64 > value_max.0 {
            let size = ByteSize(bytes as u64);
            Some(format!("the value of {size} for key `{key}` is more than `value_bytes_max` = {value_max}"))
        } else {
            None
        };
        if let Some(why) = too_long {
            return Err(store::Error::Other(self.refuse(why)));
        }
        self.hold(key.len() + bytes).map_err(store::Error::Other)?;
        self.call.effects.key_values.push(KeyValueWrite { bucket: bucket.to_owned(), key, value });
        Ok(())
    }

    fn keys(&mut self, bucket: &str, cursor: Option<u64>) -> Result<store::KeyResponse, store::Error> {
        let found = self.journal().key_value_keys(&self.spec.name, bucket).map_err(|error| failed(&error))?;
        let (version, committed) = found;
        self.remember(bucket, None, version)?;
        let mut keys: BTreeSet<String> = committed.into_iter().collect();
        for write in self.call.effects.key_values.iter().filter(|write| write.bucket == bucket) {
            if write.value.is_some() {
                keys.insert(write.key.clone());
            } else {
                keys.remove(&write.key);
            }
        }
        let start = usize::try_from(cursor.unwrap_or(0)).unwrap_or(usize::MAX);
        let next = start.saturating_add(KEYS_PER_PAGE);
        let cursor = (next < keys.len()).then_some(next as u64);
        Ok(store::KeyResponse { keys: keys.into_iter().skip(start).take(KEYS_PER_PAGE).collect(), cursor })
    }

    fn add(&mut self, bucket: &str, key: String, delta: u64) -> Result<u64, store::Error> {
        let sum = match self.value(bucket, &key)? {
            None => Some(delta),
            Some(value) => {
                let number = std::str::from_utf8(&value).ok().and_then(|text| text.parse::<u64>().ok());
                let number =
                    number.ok_or_else(|| store::Error::Other(format!("the value of key `{key}` is not a number")))?;
                number.checked_add(delta)
            }
        };
        let sum = sum.ok_or_else(|| store::Error::Other(format!("the value of key `{key}` would pass 2^64")))?;
        self.write(bucket, key, Some(Bytes::from(sum.to_string())))?;
        Ok(sum)
    }
}

/// The guest may try again: it is the journal's trouble, not the event's.
fn failed(error: &crate::journal::JournalError) -> store::Error {
    store::Error::Other(error.to_string())
}

impl store::Host for HostState {
    fn open(&mut self, identifier: String) -> Answer<Resource<Bucket>> {
        if let Err(capability) = self.spec.capabilities.may_keep_values() {
            self.deny(capability);
            return Ok(Err(store::Error::AccessDenied));
        }
        let max = self.limits().key_bytes_max;
        if identifier.len() as u64 > max.0 {
            let why = self.refuse(format!("a bucket's name may have `key_bytes_max` = {max}"));
            return Ok(Err(store::Error::Other(why)));
        }
        Ok(Ok(self.table.push(Bucket(identifier))?))
    }
}

impl store::HostBucket for HostState {
    fn get(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<Option<Vec<u8>>> {
        let bucket = self.bucket(&bucket)?;
        Ok(self.value(&bucket, &key).map(|value| value.map(Vec::from)))
    }

    fn set(&mut self, bucket: Resource<Bucket>, key: String, value: Vec<u8>) -> Answer<()> {
        let bucket = self.bucket(&bucket)?;
        Ok(self.write(&bucket, key, Some(Bytes::from(value))))
    }

    fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<()> {
        let bucket = self.bucket(&bucket)?;
        Ok(self.write(&bucket, key, None))
    }

    fn exists(&mut self, bucket: Resource<Bucket>, key: String) -> Answer<bool> {
        let bucket = self.bucket(&bucket)?;
        Ok(self.value(&bucket, &key).map(|value| value.is_some()))
    }

    fn list_keys(&mut self, bucket: Resource<Bucket>, cursor: Option<u64>) -> Answer<store::KeyResponse> {
        let bucket = self.bucket(&bucket)?;
        Ok(self.keys(&bucket, cursor))
    }

    fn drop(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }
}

impl atomics::Host for HostState {
    fn increment(&mut self, bucket: Resource<Bucket>, key: String, delta: u64) -> Answer<u64> {
        let bucket = self.bucket(&bucket)?;
        Ok(self.add(&bucket, key, delta))
    }
}

impl batch::Host for HostState {
    fn get_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Answer<Vec<Option<(String, Vec<u8>)>>> {
        let bucket = self.bucket(&bucket)?;
        let read = |key: String| Ok(self.value(&bucket, &key)?.map(|value| (key, Vec::from(value))));
        Ok(keys.into_iter().map(read).collect())
    }

    fn set_many(&mut self, bucket: Resource<Bucket>, key_values: Vec<(String, Vec<u8>)>) -> Answer<()> {
        let bucket = self.bucket(&bucket)?;
        Ok(key_values.into_iter().try_for_each(|(key, value)| self.write(&bucket, key, Some(Bytes::from(value)))))
    }

    fn delete_many(&mut self, bucket: Resource<Bucket>, keys: Vec<String>) -> Answer<()> {
        let bucket = self.bucket(&bucket)?;
        Ok(keys.into_iter().try_for_each(|key| self.write(&bucket, key, None)))
    }
}
