//! What the tests of brokers share: real mosquitto processes, a link that can be cut, and someone who listens.
#![allow(dead_code, unreachable_pub, reason = "each test crate uses a part of it")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may")]

pub mod certificates;
pub mod link;
pub mod mosquitto;
pub mod strict;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tidegate::broker::{Broker, Incoming, Link, OnMessage, Subscription};
use tidegate::clock::Clock;
use tidegate::config::{BrokerUser, EmbeddedBrokerConfig, MqttConfig};
use tidegate::invocation::Publish;
use tidegate::limits::Limits;
use tidegate::name::{BrokerName, GatewayName};
use tidegate::net::Net;
use tidegate::receipt::{NotKept, Receipt};
use tidegate::topic::TopicFilter;
use tokio::sync::{Notify, oneshot};

/// Longer than anything here takes, on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// `[mqtt.…]` with everything at its default.
pub fn config(url: &str, version: u8) -> MqttConfig {
    MqttConfig { version, ..MqttConfig::to(url.to_owned()) }
}

/// `[embedded_broker]`, unchecked: what its own checks say of it is what is tested.
pub fn embedded(text: &str) -> EmbeddedBrokerConfig {
    let table: toml::Table = text.parse().unwrap();
    let path = |table: &toml::Table, key: &str| table.get(key).map(|value| PathBuf::from(value.as_str().unwrap()));
    let filters = |user: &toml::Table, key: &str| {
        let filters = user.get(key).and_then(toml::Value::as_array).into_iter().flatten();
        filters.map(|filter| TopicFilter::parse(filter.as_str().unwrap()).unwrap()).collect()
    };
    let user = |(name, user): (&String, &toml::Value)| {
        let user = user.as_table().unwrap();
        let password_file = path(user, "password_file").unwrap();
        let (publish, subscribe) = (filters(user, "publish"), filters(user, "subscribe"));
        (name.clone(), BrokerUser { password_file, publish, subscribe })
    };
    EmbeddedBrokerConfig {
        listen: table["listen"].as_str().unwrap().parse().unwrap(),
        users: table.get("users").and_then(toml::Value::as_table).into_iter().flatten().map(user).collect(),
        cert: path(&table, "cert"),
        key: path(&table, "key"),
    }
}

/// One end of a connection; its client id is `tidegate-test-NAME-VERSION`.
pub struct Peer {
    pub broker: Broker,
    pub state: Arc<tempfile::TempDir>,
}

impl Peer {
    pub fn connect(name: &str, config: &MqttConfig) -> Self {
        Self::with_limits(name, config, &Limits::default())
    }

    pub fn with_limits(name: &str, config: &MqttConfig, limits: &Limits) -> Self {
        Self::in_state(name, config, limits, Arc::new(tempfile::tempdir().unwrap()))
    }

    /// The same state folder as an earlier run's: what a restart sees.
    pub fn in_state(name: &str, config: &MqttConfig, limits: &Limits, state: Arc<tempfile::TempDir>) -> Self {
        let broker = connect(name, config, limits, state.path()).unwrap();
        Self { broker, state }
    }

    /// Subscribes, and waits until the broker has answered.
    pub async fn hear(&self, filters: &[(&str, u8)], keep: bool) -> Arc<Heard> {
        let heard = Arc::new(Heard { keep, ..Heard::default() });
        self.subscribe(filters, Arc::clone(&heard) as Arc<dyn OnMessage>).await;
        heard
    }

    pub async fn subscribe(&self, filters: &[(&str, u8)], to: Arc<dyn OnMessage>) {
        let subscription =
            |(filter, qos): &(&str, u8)| Subscription { filter: TopicFilter::parse(filter).unwrap(), qos: *qos };
        self.broker.subscribe(filters.iter().map(subscription).collect(), to);
        self.reaches(Link::Ready).await;
    }

    pub async fn reaches(&self, link: Link) {
        let mut now = self.broker.link();
        let reached = tokio::time::timeout(PATIENCE, now.wait_for(|now| *now == link)).await;
        assert!(reached.is_ok_and(|r| r.is_ok()), "never {link:?}: {:?}", self.broker.status());
    }

    /// Publishes; what comes back resolves when the receipt does.
    pub async fn publish(&self, topic: &str, qos: u8, data: impl Into<Bytes>) -> Published {
        let (sender, settled) = oneshot::channel();
        let receipt = Receipt::new(move |result| drop(sender.send(result)));
        self.broker.publish(message(topic, qos, data), receipt).await;
        Published(settled)
    }

    /// Ends without a word, as a crash does.
    pub async fn crash(self) -> Arc<tempfile::TempDir> {
        let Self { broker, state } = self;
        drop(broker);
        tokio::time::sleep(Duration::from_millis(50)).await;
        state
    }
}

pub fn connect(
    name: &str,
    config: &MqttConfig,
    limits: &Limits,
    state: &Path,
) -> Result<Broker, tidegate::broker::BrokerError> {
    let name = BrokerName::parse(&format!("{name}-{}", config.version)).unwrap();
    let gateway = GatewayName::parse("test").unwrap();
    Broker::connect(name, config, &gateway, state, limits, Clock::system(), Net::real())
}

pub fn message(topic: &str, qos: u8, data: impl Into<Bytes>) -> Publish {
    Publish {
        broker: None,
        topic: topic.into(),
        data: data.into(),
        qos,
        retain: false,
        content_type: None,
        properties: Vec::new(),
    }
}

/// The receipt of a publish.
pub struct Published(oneshot::Receiver<Result<(), NotKept>>);

impl Published {
    pub async fn settled(self) -> Result<(), NotKept> {
        tokio::time::timeout(PATIENCE, self.0).await.expect("the receipt never settled").unwrap()
    }

    pub fn is_open(&mut self) -> bool {
        matches!(self.0.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }
}

/// Someone who listens, and keeps or holds the receipts.
#[derive(Default)]
pub struct Heard {
    keep: bool,
    state: Mutex<Vec<(Incoming, Option<Receipt>)>>,
    changed: Notify,
}

impl OnMessage for Heard {
    fn on_message(&self, message: Incoming, receipt: Option<Receipt>) {
        let receipt = match receipt {
            Some(receipt) if self.keep => {
                receipt.keep();
                None
            }
            other => other,
        };
        self.state.lock().unwrap().push((message, receipt));
        self.changed.notify_one();
    }
}

impl Heard {
    pub fn count(&self) -> usize {
        self.state.lock().unwrap().len()
    }

    /// The payloads, once there are `n`.
    pub async fn payloads(&self, n: usize) -> Vec<String> {
        let waited = tokio::time::timeout(PATIENCE, async {
            while self.count() < n {
                self.changed.notified().await;
            }
        });
        assert!(waited.await.is_ok(), "heard only {} of {n}", self.count());
        let state = self.state.lock().unwrap();
        state.iter().map(|(message, _)| String::from_utf8_lossy(&message.payload).into_owned()).collect()
    }

    pub fn messages(&self) -> Vec<Incoming> {
        self.state.lock().unwrap().iter().map(|(message, _)| message.clone()).collect()
    }

    /// Takes out the receipt of the `i`th.
    pub fn receipt(&self, i: usize) -> Receipt {
        self.state.lock().unwrap()[i].1.take().unwrap()
    }
}

/// Waits until `condition` holds.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    });
    assert!(waited.await.is_ok(), "never: {what}");
}

/// A while in which something would have happened if it could.
pub async fn a_while() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}
