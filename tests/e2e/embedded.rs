//! The embedded broker acknowledges a device when its message is taken care of, whatever becomes of the agent.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use e2e::site::{guest, reading};
use e2e::{Agent, Device, Guest, Mosquitto};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A sensor as small as they come: MQTT 3.1.1 by hand, one message at a time, and it sends again what was not acknowledged.
struct Sensor {
    port: u16,
    name: String,
    connection: Option<TcpStream>,
}

impl Sensor {
    /// Publishes at QoS 1 until it is acknowledged, over as many connections as that takes, or `over`.
    async fn publish(&mut self, payload: &str, over: &AtomicBool) -> bool {
        while !over.load(Ordering::Relaxed) {
            let patience = Duration::from_secs(15);
            match tokio::time::timeout(patience, self.try_publish(payload)).await {
                Ok(Ok(())) => return true,
                Ok(Err(_)) | Err(_) => self.connection = None,
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        false
    }

    async fn try_publish(&mut self, payload: &str) -> anyhow::Result<()> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(Self::connect(self.port, &self.name).await?),
        };
        let topic = format!("sensors/{}", self.name);
        let mut body = u16::try_from(topic.len())?.to_be_bytes().to_vec();
        body.extend(topic.as_bytes());
        body.extend([0, 1]);
        body.extend(payload.as_bytes());
        let len = body.len();
        let mut packet = vec![0x32];
        packet.extend(if len < 128 {
            vec![u8::try_from(len)?]
        } else {
            vec![u8::try_from(len % 128)? | 0x80, u8::try_from(len / 128)?]
        });
        packet.extend(body);
        connection.write_all(&packet).await?;
        let mut puback = [0; 4];
        connection.read_exact(&mut puback).await?;
        anyhow::ensure!(puback == [0x40, 2, 0, 1], "not a PUBACK: {puback:?}");
        Ok(())
    }

    async fn connect(port: u16, name: &str) -> anyhow::Result<TcpStream> {
        let mut connection = TcpStream::connect(("127.0.0.1", port)).await?;
        connection.set_nodelay(true)?;
        let mut packet = vec![0x10, u8::try_from(12 + name.len())?];
        packet.extend([0, 4]);
        packet.extend(b"MQTT");
        // 3.1.1, a clean session, a keep-alive of a minute.
        packet.extend([4, 2, 0, 60]);
        packet.extend(u16::try_from(name.len())?.to_be_bytes());
        packet.extend(name.as_bytes());
        connection.write_all(&packet).await?;
        let mut connack = [0; 4];
        connection.read_exact(&mut connack).await?;
        anyhow::ensure!(connack[3] == 0, "not let in: {connack:?}");
        Ok(connection)
    }
}

/// SIGKILL again and again while devices publish to the embedded broker: each message that a device holds a PUBACK for was
/// handled, and its record reaches the cloud.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_embedded_broker_acknowledged_was_handled_over_kills() -> anyhow::Result<()> {
    const SENSORS: u64 = 4;
    const KILLS: u32 = 8;
    let cloud = Mosquitto::start().await?;
    let console = Device::faithful(cloud.port(), "console").await?;
    console.subscribe("site/#", 1).await?;
    let port = e2e::free_port()?;
    let config = format!(
        r#"
[embedded_broker]
listen = "127.0.0.1:{port}"
[mqtt.cloud]
url = "{cloud}"
[stream.readings]
uplink = {{ mqtt = "cloud", topic = "site/{{gateway}}/{{stream}}" }}
batch = {{ max_records = 50, max_wait = "100ms" }}
{function}"#,
        cloud = cloud.url(),
        function = guest("keep", "sensors/#", "capabilities = [\"stream:readings\"]"),
    );
    let mut agent = Agent::prepare(&config)?;
    Guest::append("readings").write(&agent.folder().join("keep"), "1.0.0")?;
    agent.resume().await?;
    agent.hears("local").await?;

    let over = Arc::new(AtomicBool::new(false));
    let sensors: Vec<_> = (0..SENSORS)
        .map(|sensor| {
            let over = Arc::clone(&over);
            tokio::spawn(async move {
                let mut device = Sensor { port, name: format!("press-{sensor}"), connection: None };
                let mut acknowledged = Vec::new();
                // Each has numbers of its own.
                for seq in (sensor..).step_by(usize::try_from(SENSORS).unwrap()) {
                    if !device.publish(&reading(&device.name.clone(), seq), &over).await {
                        return acknowledged;
                    }
                    acknowledged.push(seq);
                }
                acknowledged
            })
        })
        .collect();
    for _ in 0..KILLS {
        tokio::time::sleep(Duration::from_millis(700)).await;
        agent.kill()?;
        agent.resume().await?;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    over.store(true, Ordering::Relaxed);
    let mut missing = BTreeSet::new();
    for sensor in sensors {
        missing.extend(sensor.await?);
    }
    let acknowledged = missing.len();
    assert!(acknowledged > 200, "only {acknowledged} messages in all that time");
    while !missing.is_empty() {
        let message = console.next().await.with_context(|| format!("acknowledged and not handled: {missing:?}"))?;
        missing.remove(&super::seq(&message.payload)?);
    }
    println!("{acknowledged} messages acknowledged over {KILLS} kills: 0 lost");
    Ok(())
}

/// A function that publishes on what another one listens to, and does not wait for itself: each of a hundred events passes
/// through both within a moment.
#[tokio::test]
async fn functions_behind_the_embedded_broker_can_hand_on_to_each_other() -> anyhow::Result<()> {
    let port = e2e::free_port()?;
    let config = format!(
        "[embedded_broker]\nlisten = \"127.0.0.1:{port}\"\n{}{}",
        guest("first", "in/#", "capabilities = [\"mqtt:publish:middle\"]\nconcurrency = 1"),
        guest("second", "middle", "capabilities = [\"mqtt:publish:out\"]\nconcurrency = 1"),
    );
    let mut agent = Agent::prepare(&config)?;
    Guest::forward("middle").write(&agent.folder().join("first"), "1.0.0")?;
    Guest::forward("out").write(&agent.folder().join("second"), "1.0.0")?;
    agent.resume().await?;
    agent.hears("local").await?;
    let device = Device::connect(port).await?;
    device.subscribe("out", 1).await?;
    let before = device.acknowledged();
    for i in 0..100 {
        device.publish("in/1", i.to_string(), 1).await?;
    }
    // One that waited for itself would take the broker's patience for each.
    tokio::time::timeout(Duration::from_secs(20), device.delivered(before + 100)).await??;
    let mut heard: Vec<_> = device.take(100).await?.iter().map(e2e::Message::text).collect();
    heard.sort_by_key(|text| text.parse::<u32>().ok());
    assert_eq!(heard, (0..100).map(|i| i.to_string()).collect::<Vec<_>>());
    Ok(())
}
