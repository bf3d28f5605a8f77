//! What stands in for the agent when a handler runs natively, in its author's tests.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::control::Value;
use crate::emit::Message;
use crate::failure::Failure;
use crate::model::Tensor;

/// A model's double: named inputs to named outputs, or what is wrong with the inputs.
pub(crate) type ModelDouble = Rc<dyn Fn(&[(&str, Tensor)]) -> Result<Vec<(String, Tensor)>, String>>;

/// What a handler leaves behind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stored {
    pub(crate) published: Vec<Message>,
    pub(crate) appended: Vec<(String, Vec<u8>)>,
    pub(crate) written: Vec<(String, String, Value)>,
    pub(crate) key_values: BTreeMap<(String, String), Vec<u8>>,
}

#[derive(Clone, Default)]
pub(crate) struct State {
    pub(crate) stored: Stored,
    pub(crate) config: BTreeMap<String, String>,
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    pub(crate) models: BTreeMap<String, ModelDouble>,
    pub(crate) log: Vec<String>,
    pub(crate) time_ms: Option<u64>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State").field("stored", &self.stored).field("log", &self.log).finish_non_exhaustive()
    }
}

thread_local! {
    static STATE: RefCell<Option<State>> = const { RefCell::new(None) };
}

/// Runs `body` with `state` as the agent of this thread, and gives it back.
pub(crate) fn with_state<T>(state: State, body: impl FnOnce() -> T) -> (State, T) {
    STATE.set(Some(state));
    let result = body();
    (STATE.take().unwrap_or_default(), result)
}

#[track_caller]
fn with<T>(act: impl FnOnce(&mut State) -> T) -> T {
    STATE.with_borrow_mut(|state| match state {
        Some(state) => act(state),
        None => panic!("outside WebAssembly a handler runs inside `function_sdk::testing::Host::run`"),
    })
}

#[expect(clippy::unnecessary_wraps, reason = "the agent may refuse")]
pub(crate) fn publish(message: Message) -> Result<(), String> {
    with(|state| state.stored.published.push(message));
    Ok(())
}

#[expect(clippy::unnecessary_wraps, reason = "the agent may refuse")]
pub(crate) fn append(stream: &str, data: &[u8]) -> Result<(), String> {
    with(|state| state.stored.appended.push((stream.to_owned(), data.to_owned())));
    Ok(())
}

#[expect(clippy::unnecessary_wraps, reason = "the agent may refuse")]
pub(crate) fn write(source: &str, point: &str, value: Value) -> Result<(), String> {
    with(|state| state.stored.written.push((source.to_owned(), point.to_owned(), value)));
    Ok(())
}

pub(crate) fn log(lines: &str) {
    with(|state| state.log.extend(lines.lines().map(str::to_owned)));
}

#[allow(clippy::disallowed_methods, reason = "a double of the agent's clock, on the author's machine")]
pub(crate) fn now_ms() -> u64 {
    with(|state| state.time_ms).unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

pub(crate) fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0)
}

#[expect(clippy::unnecessary_wraps, reason = "the agent may fail")]
pub(crate) fn config_get(name: &str) -> Result<Option<String>, Failure> {
    Ok(with(|state| state.config.get(name).cloned()))
}

#[expect(clippy::unnecessary_wraps, reason = "the agent may fail")]
pub(crate) fn config_all() -> Result<Vec<(String, String)>, Failure> {
    Ok(with(|state| state.config.clone()).into_iter().collect())
}

pub(crate) fn read_file(path: &str) -> Result<Vec<u8>, Failure> {
    with(|state| state.files.get(path).cloned()).ok_or_else(|| Failure::reject("there is no such file"))
}

pub(crate) fn infer(model: &str, inputs: Vec<(&str, Tensor)>) -> Result<Vec<(String, Tensor)>, Failure> {
    // Taken out first: a double may itself log or read.
    let Some(double) = with(|state| state.models.get(model).cloned()) else {
        return Err(Failure::reject("there is no such model: give the test's host one with `with_model`"));
    };
    double(&inputs).map_err(Failure::Reject)
}

#[derive(Debug)]
pub(crate) struct Bucket(String);

#[expect(clippy::unnecessary_wraps, reason = "the agent's store may fail")]
impl Bucket {
    pub(crate) fn open(name: &str) -> Result<Self, Failure> {
        Ok(Self(name.to_owned()))
    }

    fn entry(&self, key: &str) -> (String, String) {
        (self.0.clone(), key.to_owned())
    }

    pub(crate) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Failure> {
        Ok(with(|state| state.stored.key_values.get(&self.entry(key)).cloned()))
    }

    pub(crate) fn get_many(&self, keys: &[String]) -> Result<Vec<Option<Vec<u8>>>, Failure> {
        keys.iter().map(|key| self.get(key)).collect()
    }

    pub(crate) fn exists(&self, key: &str) -> Result<bool, Failure> {
        Ok(self.get(key)?.is_some())
    }

    pub(crate) fn keys(&self) -> Result<Vec<String>, Failure> {
        Ok(with(|state| {
            let of_bucket = state.stored.key_values.keys().filter(|(bucket, _)| *bucket == self.0);
            of_bucket.map(|(_, key)| key.clone()).collect()
        }))
    }

    pub(crate) fn set(&self, key: &str, value: &[u8]) -> Result<(), Failure> {
        with(|state| state.stored.key_values.insert(self.entry(key), value.to_owned()));
        Ok(())
    }

    pub(crate) fn delete(&self, key: &str) -> Result<(), Failure> {
        with(|state| state.stored.key_values.remove(&self.entry(key)));
        Ok(())
    }

    pub(crate) fn delete_many(&self, keys: &[String]) -> Result<(), Failure> {
        keys.iter().try_for_each(|key| self.delete(key))
    }

    pub(crate) fn increment(&self, key: &str, delta: u64) -> Result<u64, Failure> {
        let not_a_number = || Failure::retry(format_args!("the value of key `{key}` is not a number"));
        let old: u64 = match self.get(key)? {
            Some(text) => str::from_utf8(&text).ok().and_then(|text| text.parse().ok()).ok_or_else(not_a_number)?,
            None => 0,
        };
        let sum = delta.checked_add(old).ok_or_else(|| Failure::retry(format_args!("key `{key}` would overflow")))?;
        self.set(key, sum.to_string().as_bytes())?;
        Ok(sum)
    }
}
