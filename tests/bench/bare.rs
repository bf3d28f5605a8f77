//! The reference: what `fahrenheit` does, as a loop around rumqttc and no more. It runs as a process of its own.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Context as _;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use serde::{Deserialize, Serialize};
use serde_json::Number;

/// Messages under way, as the agent's `mqtt_in_flight_max`.
const IN_FLIGHT: u16 = 1_000;
/// As the load knows it.
pub(crate) const TOPIC: &str = "bare";

#[derive(Deserialize)]
struct Reading {
    device: String,
    seq: u64,
    ts: Number,
    temperature: f64,
}

#[derive(Serialize)]
struct Converted {
    device: String,
    seq: u64,
    ts: Number,
    temperature_f: f64,
    anomaly: bool,
}

/// The topic and the payload of the result.
pub(crate) fn convert(payload: &[u8]) -> anyhow::Result<(String, Vec<u8>)> {
    let Reading { device, seq, ts, temperature } = serde_json::from_slice(payload)?;
    let topic = format!("results/{device}");
    let temperature_f = temperature * 9.0 / 5.0 + 32.0;
    let converted = Converted { device, seq, ts, temperature_f, anomaly: temperature > 30.0 };
    Ok((topic, serde_json::to_vec(&converted)?))
}

/// Serves until it is killed. Like the agent it speaks MQTT 5 in a persistent session, and acknowledges a message of QoS 1 when
/// the broker has acknowledged its result.
pub(crate) async fn run(port: u16) -> anyhow::Result<()> {
    let mut options = MqttOptions::new("bare", "127.0.0.1", port);
    options.set_clean_start(false).set_session_expiry_interval(Some(3_600)).set_manual_acks(true);
    options.set_keep_alive(Duration::from_secs(30)).set_receive_maximum(Some(IN_FLIGHT));
    let mut network = options.network_options();
    network.set_tcp_nodelay(true);
    options.set_network_options(network);
    let (client, mut events) = AsyncClient::new(options, 100_000);
    client.subscribe(format!("{TOPIC}/+/temp"), QoS::AtLeastOnce).await?;
    // Results that rumqttc has not given a packet id yet, and those that have one: each with the message to acknowledge.
    let mut queued = VecDeque::new();
    let mut in_flight: Vec<Option<Publish>> = Vec::new();
    in_flight.resize_with(usize::from(u16::MAX) + 1, || None);
    loop {
        match events.poll().await? {
            Event::Incoming(Packet::Publish(message)) => {
                let (topic, payload) = convert(&message.payload)?;
                client.try_publish(topic, message.qos, false, payload).context("too many results wait")?;
                if message.qos != QoS::AtMostOnce {
                    queued.push_back(message);
                }
            }
            Event::Outgoing(rumqttc::Outgoing::Publish(id)) if id > 0 => {
                in_flight[usize::from(id)] = queued.pop_front();
            }
            Event::Incoming(Packet::PubAck(ack)) => {
                if let Some(message) = in_flight[usize::from(ack.pkid)].take() {
                    client.try_ack(&message).context("too many acknowledgements wait")?;
                }
            }
            _ => {}
        }
    }
}
