//! What the world outside has seen, to hold the agent's promises against at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};

use serde_json::Value;

use crate::packet::Message;

#[derive(Default)]
pub struct Ledger(Mutex<Facts>);

#[derive(Default)]
pub struct Facts {
    /// Promises that were broken on the way.
    pub violations: Vec<String>,
    /// Messages that a broker took over for the agent, by event.
    pub taken: BTreeMap<String, Taken>,
    /// What came out of the agent as results: function and event, with how often at each QoS.
    pub results: BTreeMap<(String, String), [u64; 3]>,
    /// Records that arrived, in the order of their first arrival: stream, sequence, what it says.
    pub records: Vec<(String, u64, Vec<u8>)>,
    known: BTreeMap<(String, u64), Vec<u8>>,
    /// Records that arrived again.
    pub repeats: u64,
    /// So far the clock was set ahead when no agent could note that it was: it may count as time that has passed.
    pub clock_unsure_ms: u64,
}

#[derive(Default)]
pub struct Taken {
    pub qos: u8,
    pub confirmed: u64,
    /// The broker forgot it before the agent had confirmed it.
    pub lost: bool,
    /// The first of all was 0.
    pub place: usize,
    /// [`Facts::clock_unsure_ms`] by then.
    pub clock_unsure_ms: u64,
}

/// The id of the event that `payload` is, or tells of.
pub fn event_of(payload: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(payload);
    let (_, rest) = text.split_once("\"id\":\"")?;
    rest.split_once('"').map(|(id, _)| id.to_owned())
}

impl Ledger {
    pub fn facts(&self) -> MutexGuard<'_, Facts> {
        self.0.lock().unwrap()
    }

    pub fn violation(&self, what: String) {
        tracing::error!(target: "sim", "{what}");
        let mut facts = self.facts();
        if !facts.violations.contains(&what) {
            facts.violations.push(what);
        }
    }

    pub fn taken(&self, broker: &str, message: &Message) {
        if broker == "local"
            && message.topic.starts_with("d/")
            && let Some(event) = event_of(&message.payload)
        {
            let mut facts = self.facts();
            let (place, clock_unsure_ms) = (facts.taken.len(), facts.clock_unsure_ms);
            let taken = facts.taken.entry(event);
            let taken = taken.or_insert_with(|| Taken { place, clock_unsure_ms, ..Taken::default() });
            // Said again, it was lost only if it was lost each time.
            (taken.qos, taken.lost) = (message.qos, false);
        }
    }

    pub fn clock_is_unsure(&self, ahead_ms: u64) {
        self.facts().clock_unsure_ms += ahead_ms;
    }

    pub fn confirmed(&self, broker: &str, message: &Message) {
        if let Some(event) = event_of(&message.payload) {
            tracing::debug!(target: "broker", broker, event, "is confirmed");
            if let Some(taken) = self.facts().taken.get_mut(&event) {
                taken.confirmed += 1;
            }
        }
    }

    pub fn lost_by_broker(&self, broker: &str, message: &Message) {
        if let Some(event) = event_of(&message.payload)
            && message.topic.starts_with("d/")
        {
            tracing::debug!(target: "broker", broker, event, "is lost with the broker's session");
            if let Some(taken) = self.facts().taken.get_mut(&event)
                && taken.confirmed == 0
            {
                taken.lost = true;
            }
        }
    }

    /// A broker took over what the agent published.
    pub fn arrived(&self, broker: &str, message: &Message, duplicate: bool) {
        tracing::debug!(target: "broker", broker, topic = message.topic, qos = message.qos, duplicate, "takes a publish");
        if let Some(function) = message.topic.strip_prefix("out/") {
            match event_of(&message.payload) {
                Some(event) => {
                    self.facts().results.entry((function.to_owned(), event)).or_default()[usize::from(message.qos)] += 1
                }
                None => self.violation(format!("a result of `{function}` is not what it published")),
            }
        } else if message.topic.starts_with("up/") {
            self.record(&message.payload);
        }
    }

    fn record(&self, envelope: &[u8]) {
        let Ok(record) = serde_json::from_slice::<Value>(envelope) else {
            return self.violation(format!("a record is not JSON: {}", String::from_utf8_lossy(envelope)));
        };
        let stream = record["stream"].as_str().unwrap_or_default().to_owned();
        let sequence = record["sequence"].as_u64().unwrap_or_default();
        let data = match record["data_base64"].as_str() {
            Some(text) => crate::check::decode(text),
            None => record["data"].to_string().into_bytes(),
        };
        let event = event_of(&data).unwrap_or_default();
        tracing::debug!(target: "broker", stream, sequence, event, "a record arrives");
        let mut facts = self.facts();
        match facts.known.get(&(stream.clone(), sequence)) {
            Some(known) if *known == data => facts.repeats += 1,
            Some(known) => {
                let texts = [known, &data].map(|data| String::from_utf8_lossy(data).into_owned());
                drop(facts);
                self.violation(format!("record {stream}/{sequence} arrived with two contents: {texts:?}"));
            }
            None => {
                facts.known.insert((stream.clone(), sequence), data.clone());
                facts.records.push((stream, sequence, data));
            }
        }
    }
}

impl Facts {
    /// Sequences of each stream, in the order in which they first arrived.
    pub fn sequences(&self) -> BTreeMap<&str, Vec<u64>> {
        let mut all: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
        for (stream, sequence, _) in &self.records {
            all.entry(stream).or_default().push(*sequence);
        }
        all
    }

    /// Of all that was seen, in its order.
    pub fn digest(&self, elapsed: std::time::Duration) -> u64 {
        use std::hash::{DefaultHasher, Hash as _, Hasher as _};
        let mut hasher = DefaultHasher::new();
        (&self.records, &self.results, self.repeats, elapsed).hash(&mut hasher);
        hasher.finish()
    }

    /// Events whose message the agent must not lose: taken over at QoS 1 or 2, and not lost by the broker.
    pub fn owed(&self) -> BTreeSet<&str> {
        self.taken.iter().filter(|(_, taken)| taken.qos > 0 && !taken.lost).map(|(event, _)| event.as_str()).collect()
    }
}
