//! Key-values that outlive the handler: what a function remembers from one event to the next.
//!
//! Reads see the handler's own writes. Writes are committed with everything else that the handler sends. Needs the
//! capability `keyvalue`; every function has buckets of its own.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::emit::json;
use crate::failure::Failure;
use crate::host;

/// A named set of keys and their values.
#[derive(Debug)]
pub struct Bucket(host::Bucket);

/// Opens a bucket, which exists as soon as something is in it.
///
/// # Errors
/// [`Failure::Reject`] when the function may not keep key-values.
pub fn open(name: &str) -> Result<Bucket, Failure> {
    host::Bucket::open(name).map(Bucket)
}

/// All methods fail with [`Failure::Retry`] when the gateway's store does.
impl Bucket {
    /// The value of `key`, if there is one.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Failure> {
        self.0.get(key)
    }

    /// The value of `key`, read as JSON.
    ///
    /// # Errors
    /// Also [`Failure::Reject`] when the value is not what `T` expects.
    pub fn get_json<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, Failure> {
        let Some(value) = self.get(key)? else { return Ok(None) };
        let value = serde_json::from_slice(&value)
            .map_err(|error| Failure::reject(format_args!("the value of key `{key}` cannot be read: {error}")))?;
        Ok(Some(value))
    }

    /// The values of `keys`, in their order.
    pub fn get_many(&self, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>, Failure> {
        self.0.get_many(keys)
    }

    /// Whether there is a value for `key`.
    pub fn exists(&self, key: &str) -> Result<bool, Failure> {
        self.0.exists(key)
    }

    /// All keys, in no particular order. Slow when there are many.
    pub fn keys(&self) -> Result<Vec<String>, Failure> {
        self.0.keys()
    }

    /// Writes the value of `key`.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<(), Failure> {
        self.0.set(key, value)
    }

    /// Writes the JSON of `value`.
    ///
    /// # Errors
    /// Also [`Failure::Reject`] when `value` has no JSON.
    pub fn set_json(&self, key: &str, value: &impl Serialize) -> Result<(), Failure> {
        self.set(key, &json(value)?)
    }

    /// Removes `key`, if it is there.
    pub fn delete(&self, key: &str) -> Result<(), Failure> {
        self.0.delete(key)
    }

    /// Removes those of `keys` that are there.
    pub fn delete_many(&self, keys: &[String]) -> Result<(), Failure> {
        self.0.delete_many(keys)
    }

    /// Adds `delta` to the number at `key`, which is 0 when there is none, and returns the sum.
    pub fn increment(&self, key: &str, delta: u64) -> Result<u64, Failure> {
        self.0.increment(key, delta)
    }
}
