//! A double of the agent, for the tests of a function's author.
//!
//! ```
//! use function_sdk::testing::{self, Host};
//! use function_sdk::{Failure, Message, publish};
//!
//! let mut host = Host::new().with_config("LIMIT", "30");
//! let result = host.run(|| publish(Message::new("alarm", "hot")));
//! assert_eq!(result, Ok(()));
//! assert_eq!(host.published(), [Message::new("alarm", "hot")]);
//!
//! let event = testing::message("sensors/1/temp", r#"{"celsius":21}"#);
//! assert_eq!(event.topic(), Ok("sensors/1/temp"));
//! ```

use crate::control::Value;
use crate::emit::Message;
use crate::event::Event;
use crate::failure::Failure;
use crate::host::{State, Stored, with_state};
use crate::model::Tensor;

/// Plays the agent: grants everything, keeps what handlers send, in memory.
#[derive(Debug, Default)]
pub struct Host {
    state: State,
}

impl Host {
    /// A host with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// With a setting in the function's `environment`.
    #[must_use]
    pub fn with_config(mut self, name: &str, value: &str) -> Self {
        self.state.config.insert(name.to_owned(), value.to_owned());
        self
    }

    /// With a file that the function may read.
    #[must_use]
    pub fn with_file(mut self, path: &str, content: impl Into<Vec<u8>>) -> Self {
        self.state.files.insert(path.to_owned(), content.into());
        self
    }

    /// With a model. An `Err` of `run` rejects its inputs.
    #[must_use]
    pub fn with_model(
        mut self,
        name: &str,
        run: impl Fn(&[(&str, Tensor)]) -> Result<Vec<(String, Tensor)>, String> + 'static,
    ) -> Self {
        self.state.models.insert(name.to_owned(), std::rc::Rc::new(run));
        self
    }

    /// With a clock that stands still, in milliseconds of Unix time.
    #[must_use]
    pub fn with_time_ms(mut self, time_ms: u64) -> Self {
        self.state.time_ms = Some(time_ms);
        self
    }

    /// One invocation: what the handler sent is kept if it succeeds, and dropped if it fails.
    ///
    /// # Errors
    /// With the handler's failure.
    pub fn run<T>(&mut self, handler: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        let before = self.state.stored.clone();
        let (state, result) = with_state(self.state.clone(), handler);
        self.state = state;
        if result.is_err() {
            self.state.stored = before;
        }
        result
    }

    /// All messages so far.
    pub fn published(&self) -> &[Message] {
        &self.stored().published
    }

    /// All records of a stream so far.
    pub fn appended(&self, stream: &str) -> Vec<&[u8]> {
        let of_stream = self.stored().appended.iter().filter(|(name, _)| name == stream);
        of_stream.map(|(_, data)| data.as_slice()).collect()
    }

    /// What a point of a source was set to so far.
    pub fn written(&self, source: &str, point: &str) -> Vec<Value> {
        let of_point = self.stored().written.iter().filter(|(of, name, _)| of == source && name == point);
        of_point.map(|(.., value)| *value).collect()
    }

    /// The value of a key.
    pub fn value(&self, bucket: &str, key: &str) -> Option<&[u8]> {
        self.stored().key_values.get(&(bucket.to_owned(), key.to_owned())).map(Vec::as_slice)
    }

    /// How many keys all buckets hold together.
    pub fn key_count(&self) -> usize {
        self.stored().key_values.len()
    }

    /// All lines that were logged so far, those of failed handlers too.
    pub fn log(&self) -> &[String] {
        &self.state.log
    }

    fn stored(&self) -> &Stored {
        &self.state.stored
    }
}

/// An event as the MQTT trigger makes it.
pub fn message(topic: &str, data: impl Into<Vec<u8>>) -> Event {
    Event {
        id: "0198f0c0-0000-7000-8000-000000000000".into(),
        source: "mqtt:local".into(),
        kind: "mqtt.message".into(),
        subject: Some(topic.into()),
        data: data.into(),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{append, config, info, kv};

    #[test]
    fn what_a_failed_handler_sent_is_dropped_and_its_log_kept() {
        let mut host = Host::new();
        let result = host.run(|| {
            append("readings", &1)?;
            kv::open("counts")?.increment("a", 1)?;
            info!("count is {}", 1);
            Err::<(), _>(Failure::retry("later"))
        });
        assert_eq!(result, Err(Failure::retry("later")));
        assert!(host.appended("readings").is_empty());
        assert_eq!(host.value("counts", "a"), None);
        assert_eq!(host.log(), ["info: count is 1"]);
    }

    #[test]
    fn key_values_are_remembered_and_read_back_by_their_writer() {
        let mut host = Host::new();
        for expected in 1..=3 {
            let count = host.run(|| {
                let counts = kv::open("counts")?;
                counts.increment("a", 1)?;
                counts.get_json::<u64>("a")
            });
            assert_eq!(count, Ok(Some(expected)));
        }
        assert_eq!(host.run(|| kv::open("counts")?.keys()), Ok(vec!["a".to_owned()]));
    }

    #[test]
    fn a_missing_setting_is_named() {
        let mut host = Host::new().with_config("LIMIT", "30");
        assert_eq!(host.run(|| config::require("LIMIT")), Ok("30".to_owned()));
        let failure = host.run(|| config::require("TOKEN")).unwrap_err();
        assert_eq!(failure, Failure::reject("setting `TOKEN` is missing: set it in `environment`"));
    }
}
