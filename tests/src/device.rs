//! A device beside the gateway: a plain MQTT 5 client that shares no code with the agent's.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PublishProperties};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use tokio::sync::Notify;

/// What a device received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Topic.
    pub topic: String,
    /// Payload.
    pub payload: Vec<u8>,
    /// MQTT 5 user properties.
    pub properties: Vec<(String, String)>,
}

impl Message {
    /// The payload as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }
}

#[derive(Debug, Default)]
struct Inbox {
    messages: Mutex<VecDeque<Message>>,
    acknowledged: Mutex<u64>,
    came: Notify,
}

/// A connected device. Ends with this value.
#[derive(Debug)]
pub struct Device {
    client: AsyncClient,
    inbox: Arc<Inbox>,
    task: tokio::task::JoinHandle<()>,
}

/// 0, 1 or 2 as rumqttc has it.
///
/// # Errors
/// When it is another number.
fn qos(level: u8) -> anyhow::Result<QoS> {
    rumqttc::v5::mqttbytes::qos(level).with_context(|| format!("QoS {level}"))
}

impl Device {
    /// Connects to a broker on this machine.
    ///
    /// # Errors
    /// When it is not let in.
    pub async fn connect(port: u16) -> anyhow::Result<Self> {
        static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut options = MqttOptions::new(format!("device-{}-{number}", std::process::id()), "127.0.0.1", port);
        options.set_keep_alive(Duration::from_secs(30)).set_clean_start(true);
        Self::with(options).await
    }

    /// One that comes back after each loss of its connection, with its session: what it sends and hears is at least once.
    ///
    /// # Errors
    /// When it is not let in.
    pub async fn faithful(port: u16, id: &str) -> anyhow::Result<Self> {
        let mut options = MqttOptions::new(id, "127.0.0.1", port);
        options.set_keep_alive(Duration::from_secs(30)).set_clean_start(false).set_session_expiry_interval(Some(3600));
        Self::start(options, true).await
    }

    /// Connects with other options.
    ///
    /// # Errors
    /// When it is not let in.
    pub async fn with(options: MqttOptions) -> anyhow::Result<Self> {
        Self::start(options, false).await
    }

    async fn start(mut options: MqttOptions, comes_back: bool) -> anyhow::Result<Self> {
        let mut network = options.network_options();
        network.set_tcp_nodelay(true);
        options.set_network_options(network);
        // rumqttc's own bound is 10 KiB.
        options.set_max_packet_size(Some(4 << 20));
        let (client, mut events) = AsyncClient::new(options, 10_000);
        let inbox = Arc::<Inbox>::default();
        loop {
            if let Event::Incoming(Packet::ConnAck(_)) = events.poll().await.context("the device was not let in")? {
                break;
            }
        }
        let theirs = Arc::clone(&inbox);
        let task = tokio::spawn(async move {
            loop {
                match events.poll().await {
                    Ok(event) => theirs.note(event),
                    Err(_) if comes_back => tokio::time::sleep(Duration::from_millis(50)).await,
                    Err(_) => return,
                }
            }
        });
        Ok(Self { client, inbox, task })
    }

    /// Subscribes, and waits a moment until the broker has it.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn subscribe(&self, filter: &str, level: u8) -> anyhow::Result<()> {
        self.client.subscribe(filter, qos(level)?).await?;
        // The PUBACK of a message to itself comes behind the SUBACK on the same connection.
        let before = self.acknowledged();
        self.publish("device/ready", "", 1).await?;
        crate::until("the subscription", async || self.acknowledged() > before).await
    }

    /// Publishes; returns when the message is under way.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn publish(&self, topic: &str, payload: impl Into<Vec<u8>>, level: u8) -> anyhow::Result<()> {
        Ok(self.client.publish(topic, qos(level)?, false, payload.into()).await?)
    }

    /// Publishes with user properties.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn publish_with(&self, topic: &str, payload: &str, properties: &[(&str, &str)]) -> anyhow::Result<()> {
        let user_properties = properties.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let properties = PublishProperties { user_properties, ..PublishProperties::default() };
        let payload = payload.to_owned().into_bytes();
        Ok(self.client.publish_with_properties(topic, QoS::AtLeastOnce, false, payload, properties).await?)
    }

    /// Messages of this device that the broker has acknowledged (QoS 1 and 2).
    pub fn acknowledged(&self) -> u64 {
        *self.inbox.acknowledged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the broker has acknowledged `n` messages of this device.
    ///
    /// # Errors
    /// When it does not.
    pub async fn delivered(&self, n: u64) -> anyhow::Result<()> {
        let wait = async {
            while self.acknowledged() < n {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(crate::PATIENCE, wait).await;
        waited.with_context(|| format!("the broker acknowledged {} of {n}", self.acknowledged()))
    }

    /// The next message.
    ///
    /// # Errors
    /// When none comes.
    pub async fn next(&self) -> anyhow::Result<Message> {
        let wait = async {
            loop {
                let came = self.inbox.came.notified();
                if let Some(message) = self.inbox.messages.lock().unwrap_or_else(PoisonError::into_inner).pop_front() {
                    return message;
                }
                came.await;
            }
        };
        tokio::time::timeout(crate::PATIENCE, wait).await.context("no message came")
    }

    /// The next `n` messages.
    ///
    /// # Errors
    /// When fewer come.
    pub async fn take(&self, n: usize) -> anyhow::Result<Vec<Message>> {
        let mut messages = Vec::with_capacity(n);
        for i in 0..n {
            messages.push(self.next().await.with_context(|| format!("message {} of {n}", i + 1))?);
        }
        Ok(messages)
    }

    /// What has come and was not taken.
    pub fn rest(&self) -> Vec<Message> {
        self.inbox.messages.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect()
    }
}

impl Inbox {
    fn note(&self, event: Event) {
        match event {
            Event::Incoming(Packet::Publish(publish)) => {
                let properties = publish.properties.map(|properties| properties.user_properties).unwrap_or_default();
                let topic = String::from_utf8_lossy(&publish.topic).into_owned();
                let message = Message { topic, payload: publish.payload.to_vec(), properties };
                self.messages.lock().unwrap_or_else(PoisonError::into_inner).push_back(message);
                self.came.notify_one();
            }
            Event::Incoming(Packet::PubAck(_) | Packet::PubComp(_)) => {
                *self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            }
            _ => {}
        }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.task.abort();
    }
}
