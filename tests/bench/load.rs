//! The load: a device that publishes temperatures, and whoever waits for the results. Two MQTT 3.1.1 connections without a
//! library, since they share the cores with what is measured.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::Context as _;
use tidegate::clock::Clock;
use tokio::time::Instant;

/// Results that are not there after this long do not come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Connected to the broker, and subscribed to all results.
#[derive(Debug)]
pub(crate) struct Load {
    device: TcpStream,
    /// Not the device's connection: there mosquitto, whose sockets wait by default (Nagle), would hold back a result until its
    /// PUBACK is acknowledged by TCP.
    results: TcpStream,
    clock: Clock,
    start: Instant,
    incoming: Vec<u8>,
    packet_id: u16,
    sequence: u64,
}

/// How a closed run went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate {
    pub(crate) per_second: f64,
}

impl Load {
    pub(crate) fn connect(port: u16) -> anyhow::Result<Self> {
        let (device, mut results) = (connect(port)?, connect(port)?);
        // SUBSCRIBE with QoS 0.
        results.write_all(b"\x82\x0e\x00\x01\x00\x09results/#\x00")?;
        let mut answer = [0; 5];
        results.read_exact(&mut answer)?;
        anyhow::ensure!(answer == *b"\x90\x03\x00\x01\x00", "the broker answers {answer:?} to SUBSCRIBE");
        let clock = Clock::system();
        Ok(Self { device, results, start: clock.instant(), clock, incoming: Vec::new(), packet_id: 0, sequence: 0 })
    }

    /// One more message on `TOPIC/…/temp`, with its number and the time in µs.
    fn encode(&mut self, topic: &str, qos: u8, out: &mut Vec<u8>) {
        self.sequence += 1;
        let (device, seq, ts) = (self.sequence % 10, self.sequence, (self.clock.instant() - self.start).as_micros());
        let topic = format!("{topic}/press-{device}/temp");
        let payload = format!(
            r#"{{"device":"press-{device}","ts":{ts},"seq":{seq},"temperature":{}.{device}}}"#,
            20 + self.sequence % 15
        );
        let id: &[u8] = if qos == 0 {
            &[]
        } else {
            self.packet_id = self.packet_id % 60_000 + 1;
            &self.packet_id.to_be_bytes()
        };
        let [low, high] = length(2 + topic.len() + id.len() + payload.len());
        out.push(0x30 | qos << 1);
        out.push(low);
        if high > 0 {
            out.push(high);
        }
        out.extend_from_slice(&[0, low_byte(topic.len())]);
        out.extend_from_slice(topic.as_bytes());
        out.extend_from_slice(id);
        out.extend_from_slice(payload.as_bytes());
    }

    /// Publishes `events`, never more than `window` ahead of the results, and waits for the last.
    pub(crate) fn run(&mut self, topic: &str, qos: u8, events: u64, window: u64) -> anyhow::Result<Rate> {
        let started = self.clock.instant();
        let (mut sent, mut came) = (0, 0);
        let mut out = Vec::new();
        while came < events {
            // A quarter of the window at a time: packets of a message each would measure the sockets.
            let room = (window - (sent - came)).min(events - sent);
            if room >= window / 4 || sent + room == events {
                (0..room).for_each(|_| self.encode(topic, qos, &mut out));
                self.send(&out)?;
                out.clear();
                sent += room;
            }
            self.receive(|_| came += 1).with_context(|| format!("after {came} of {events} results"))?;
        }
        anyhow::ensure!(came == events, "{came} results of {events} events");
        Ok(Rate { per_second: events as f64 / (self.clock.instant() - started).as_secs_f64() })
    }

    /// Publishes `events` at `per_second`, whatever comes back, and gives the times to their results in ms.
    pub(crate) fn latencies_ms(
        &mut self,
        topic: &str,
        qos: u8,
        events: u64,
        per_second: u32,
    ) -> anyhow::Result<Vec<f64>> {
        let period = Duration::from_secs(1) / per_second;
        let mut latencies = Vec::new();
        let mut due = self.clock.instant();
        for _ in 0..events {
            due += period;
            let mut out = Vec::new();
            self.encode(topic, qos, &mut out);
            self.send(&out)?;
            // The result of one event comes long before the next is due, or counts as late as the next.
            self.one_result(&mut latencies)?;
            std::thread::sleep(due.saturating_duration_since(self.clock.instant()));
        }
        Ok(latencies)
    }

    /// Publishes `per_second` at QoS 0 for a while, a few at a time, whatever comes back. Says how many results came.
    pub(crate) fn steady(&mut self, topic: &str, per_second: u32, time: Duration) -> anyhow::Result<u64> {
        let (started, mut sent, mut came) = (self.clock.instant(), 0.0, 0);
        self.results.set_read_timeout(Some(Duration::from_millis(1)))?;
        while self.clock.instant() - started < time {
            std::thread::sleep(Duration::from_millis(5));
            let due = f64::from(per_second) * (self.clock.instant() - started).min(time).as_secs_f64();
            let mut out = Vec::new();
            while sent < due {
                self.encode(topic, 0, &mut out);
                sent += 1.0;
            }
            self.send(&out)?;
            while self.receive(|_| came += 1).is_ok() {}
        }
        Ok(came + self.let_pass()?)
    }

    fn one_result(&mut self, latencies: &mut Vec<f64>) -> anyhow::Result<()> {
        let before = latencies.len();
        let (clock, start) = (self.clock.clone(), self.start);
        while latencies.len() == before {
            self.receive(|payload| {
                let now = (clock.instant() - start).as_secs_f64() * 1e3;
                if let Some(sent) = sent_us(payload) {
                    latencies.push(now - sent / 1e3);
                }
            })?;
        }
        Ok(())
    }

    /// Lets results pass that nobody waits for, until none comes for a while; says how many.
    pub(crate) fn let_pass(&mut self) -> anyhow::Result<u64> {
        self.results.set_read_timeout(Some(Duration::from_millis(200)))?;
        let mut came = 0;
        while self.receive(|_| came += 1).is_ok() {}
        self.results.set_read_timeout(Some(PATIENCE))?;
        Ok(came)
    }

    /// Publishes now and then until a result comes.
    pub(crate) fn until_there(&mut self, topic: &str) -> anyhow::Result<()> {
        let patience = self.clock.instant() + PATIENCE;
        while self.clock.instant() < patience {
            self.publish(topic, 0)?;
            if self.let_pass()? > 0 {
                return Ok(());
            }
        }
        anyhow::bail!("nobody answers on `{topic}`")
    }

    /// Publishes one event, which may be for somebody who is not there yet.
    pub(crate) fn publish(&mut self, topic: &str, qos: u8) -> anyhow::Result<()> {
        let mut out = Vec::new();
        self.encode(topic, qos, &mut out);
        self.send(&out)
    }

    /// Waits for one result.
    pub(crate) fn result(&mut self) -> anyhow::Result<()> {
        let mut came = 0;
        while came == 0 {
            self.receive(|_| came += 1)?;
        }
        anyhow::ensure!(came == 1, "{came} results of one event");
        Ok(())
    }

    fn send(&mut self, packets: &[u8]) -> anyhow::Result<()> {
        self.device.write_all(packets)?;
        // PUBACKs tell nothing that the results do not.
        self.device.set_nonblocking(true)?;
        let mut buffer = [0; 16 << 10];
        while self.device.read(&mut buffer).is_ok_and(|read| read > 0) {}
        Ok(self.device.set_nonblocking(false)?)
    }

    /// Reads once, and hands out the payloads of the results that are whole.
    fn receive(&mut self, mut on_result: impl FnMut(&[u8])) -> anyhow::Result<()> {
        let mut buffer = [0; 64 << 10];
        let read = self.results.read(&mut buffer).context("no results come")?;
        anyhow::ensure!(read > 0, "the broker closed the connection");
        self.incoming.extend_from_slice(&buffer[..read]);
        let mut at = 0;
        while let Some((packet, body)) = packet(&self.incoming[at..]) {
            at += packet;
            let topic_bytes = usize::from(u16::from_be_bytes([body[0], body[1]]));
            on_result(&body[2 + topic_bytes..]);
        }
        self.incoming.drain(..at);
        Ok(())
    }
}

fn low_byte(number: usize) -> u8 {
    number.to_le_bytes()[0]
}

/// A packet's length as MQTT writes it: seven bits at a time. Ours never need more than two bytes.
fn length(bytes: usize) -> [u8; 2] {
    if bytes < 0x80 { [low_byte(bytes), 0] } else { [low_byte(bytes % 0x80) | 0x80, low_byte(bytes / 0x80)] }
}

/// A clean session without keep-alive, with an id that the broker makes.
fn connect(port: u16) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00")?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer)?;
    anyhow::ensure!(answer == *b"\x20\x02\x00\x00", "the broker answers {answer:?} to CONNECT");
    Ok(stream)
}

/// Length of the first whole packet, and what follows its header.
fn packet(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let (mut length, mut header) = (0, 1);
    loop {
        let byte = *bytes.get(header)?;
        length |= usize::from(byte & 0x7f) << (7 * (header - 1));
        header += 1;
        if byte & 0x80 == 0 {
            break;
        }
    }
    Some((header + length, bytes.get(header..header + length)?))
}

/// `"ts":…` of a result, in µs.
fn sent_us(payload: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(payload).ok()?;
    let (_, rest) = text.split_once("\"ts\":")?;
    rest.split([',', '}']).next()?.parse().ok()
}
