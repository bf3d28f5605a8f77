//! Publishes that were committed together with records and key-values, until their broker has confirmed them.
//!
//! # Promises
//! - A publish is in the outbox when its commit is on disk, or never; it leaves it when the broker has confirmed it, or as a
//!   dead letter. A crash may repeat one, never lose one.
//! - Publishes for one broker leave in the order of their commits. One that the broker refuses loses its place.
//! - A publish that is refused for good becomes a dead letter with the broker's reason. One that is refused for now is tried
//!   five times within 15 s, the others behind it, before it is one.
//! - While the broker is away, publishes wait on disk, memory stays bounded, and nothing is dropped: at
//!   `limits.outbox_bytes_max` the functions that need the outbox wait.
//!
//! # On disk
//! One stream of the agent's own for each broker: `~outbox.local`. It stays when the broker goes from gateway.toml.

mod sender;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::sender::Sender;
use super::outlets::Outlets;
use crate::broker::{Broker, Link};
use crate::config::{StreamConfig, WhenFull};
use crate::invocation::Publish;
use crate::journal::Journal;
use crate::limits::Limits;
use crate::name::{BrokerName, FunctionName, Own, StreamName};

/// Publishes that are kept in memory too, so that the usual case reads nothing back from the disk.
const FRESH_MAX: usize = 1_000;
/// Payload bytes of those.
const FRESH_BYTES_MAX: usize = 1 << 20;
/// How often a full outbox is looked at.
const ROOM_POLL: Duration = Duration::from_secs(1);

/// A publish, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outgoing {
    pub(super) function: FunctionName,
    pub(super) publish: Publish,
}

const FORMAT: u8 = 1;
const RETAIN: u8 = 1 << 2;
const CONTENT_TYPE: u8 = 1 << 3;

impl Outgoing {
    /// As a record: format, flags, texts with their lengths, payload. Integers are little-endian.
    pub(super) fn encode(&self) -> Bytes {
        let Self { function, publish } = self;
        let mut out = Vec::with_capacity(64 + publish.topic.len() + publish.data.len());
        let mut flags = publish.qos;
        flags |= if publish.retain { RETAIN } else { 0 };
        flags |= if publish.content_type.is_some() { CONTENT_TYPE } else { 0 };
        out.put_u8(FORMAT);
        out.put_u8(flags);
        put_text(&mut out, function.as_str());
        put_text(&mut out, &publish.topic);
        if let Some(content_type) = &publish.content_type {
            put_text(&mut out, content_type);
        }
        out.put_u32_le(u32::try_from(publish.properties.len()).unwrap_or(u32::MAX));
        for (name, value) in &publish.properties {
            put_text(&mut out, name);
            put_text(&mut out, value);
        }
        out.put_slice(&publish.data);
        Bytes::from(out)
    }

    /// What [`Self::encode`] wrote; shares the memory of `bytes`. `None` when it is something else.
    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.try_get_u8().ok()? != FORMAT {
            return None;
        }
        let flags = bytes.try_get_u8().ok()?;
        let function = FunctionName::parse(&take_text(&mut bytes)?).ok()?;
        let topic = take_text(&mut bytes)?.into();
        let content_type = if flags & CONTENT_TYPE == 0 { None } else { Some(Arc::from(take_text(&mut bytes)?)) };
        let mut properties = Vec::new();
        for _ in 0..bytes.try_get_u32_le().ok()? {
            properties.push((Cow::Owned(take_text(&mut bytes)?), take_text(&mut bytes)?));
        }
        let (qos, retain) = (flags & 3, flags & RETAIN != 0);
        let publish = Publish { broker: None, topic, data: bytes, qos, retain, content_type, properties };
        (qos <= 2).then_some(Self { function, publish })
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.put_u32_le(u32::try_from(text.len()).unwrap_or(u32::MAX));
    out.put_slice(text.as_bytes());
}

fn take_text(bytes: &mut Bytes) -> Option<String> {
    let len = usize::try_from(bytes.try_get_u32_le().ok()?).ok()?;
    (len <= bytes.len()).then(|| bytes.split_to(len)).and_then(|text| String::from_utf8(text.to_vec()).ok())
}

/// Publishes of late, by sequence, so that they need not be read back.
#[derive(Default)]
struct Fresh {
    publishes: BTreeMap<u64, Outgoing>,
    bytes: usize,
}

impl Fresh {
    /// Keeps one, if there is room.
    fn add(&mut self, sequence: u64, outgoing: Outgoing) {
        let bytes = outgoing.publish.data.len();
        if self.publishes.len() < FRESH_MAX && self.bytes + bytes <= FRESH_BYTES_MAX {
            self.bytes += bytes;
            self.publishes.insert(sequence, outgoing);
        }
    }

    fn remove(&mut self, sequence: u64) -> Option<Outgoing> {
        let outgoing = self.publishes.remove(&sequence)?;
        self.bytes -= outgoing.publish.data.len();
        Some(outgoing)
    }

    /// Takes out those that follow `sent` without a gap, up to `durable`, and lets go of all before.
    fn take(&mut self, sent: u64, durable: u64, count_max: usize) -> Vec<(u64, Outgoing)> {
        while let Some(first) = self.publishes.first_key_value().map(|(first, _)| *first).filter(|first| *first <= sent)
        {
            self.remove(first);
        }
        let in_order = (sent + 1..=durable).take(count_max);
        in_order.map_while(|sequence| Some((sequence, self.remove(sequence)?))).collect()
    }
}

/// How far a lane has come.
#[derive(Clone, Debug, Default)]
struct Progress {
    /// Up to here all were handed to the broker.
    sent: u64,
    /// Handed to the broker and not answered, or refused and waiting for another attempt.
    open: usize,
    /// Why the broker refused the last one that it refused.
    last_error: Option<String>,
}

/// The way to one broker: the broker itself, and the outbox in front of it.
pub(super) struct Lane {
    broker: Broker,
    stream: StreamName,
    journal: Arc<Journal>,
    fresh: Mutex<Fresh>,
    progress: Mutex<Progress>,
    /// Something has left.
    freed: Notify,
    cancel: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
    bytes_max: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The stream of a broker's outbox.
pub(super) fn stream_of(broker: &BrokerName) -> StreamName {
    StreamName::own(Own::Outbox, broker.as_str())
}

/// Settings of an outbox: it never drops.
fn settings(limits: &Limits) -> StreamConfig {
    StreamConfig { max_bytes: limits.outbox_bytes_max, when_full: WhenFull::Reject, ..StreamConfig::default() }
}

impl Lane {
    /// Starts to send what an earlier lane, or an earlier process, has left. `before` is the lane to the same name that this one
    /// replaces: it ends first.
    pub(super) fn start(outlets: &Outlets, broker: Broker, before: Option<JoinHandle<()>>) -> Arc<Self> {
        let stream = stream_of(broker.name());
        outlets.journal().own_stream(stream.clone(), settings(outlets.limits()));
        let lane = Arc::new(Self {
            broker,
            stream,
            journal: Arc::clone(outlets.journal()),
            fresh: Mutex::default(),
            progress: Mutex::default(),
            freed: Notify::new(),
            cancel: CancellationToken::new(),
            task: Mutex::default(),
            bytes_max: outlets.limits().outbox_bytes_max.0,
        });
        let sender = Sender::new(Arc::clone(&lane), outlets);
        let task = tokio::spawn(async move {
            if let Some(before) = before {
                // It ended, or failed; either way it sends no more.
                let _ = before.await;
            }
            sender.run().await;
        });
        *lock(&lane.task) = Some(task);
        lane
    }

    pub(super) fn broker(&self) -> &Broker {
        &self.broker
    }

    pub(super) fn stream(&self) -> &StreamName {
        &self.stream
    }

    /// Keeps a publish at hand that was given `sequence` in the outbox.
    pub(super) fn expect(&self, sequence: u64, outgoing: Outgoing) {
        lock(&self.fresh).add(sequence, outgoing);
    }

    /// The commit of `sequence` has failed.
    pub(super) fn forget(&self, sequence: u64) {
        lock(&self.fresh).remove(sequence);
    }

    /// Waits until the outbox has room again: not for one publish only, or each would have to wait anew.
    pub(super) async fn room(&self) {
        loop {
            let freed = self.freed.notified();
            let outboxes = self.journal.own_status();
            let bytes = outboxes.iter().find(|status| status.name == self.stream).map_or(0, |status| status.bytes);
            if bytes <= self.bytes_max / 8 * 7 {
                return;
            }
            let _ = tokio::time::timeout(ROOM_POLL, freed).await;
        }
    }

    /// Why the broker refused a publish, the last time that it did.
    pub(super) fn last_error(&self) -> Option<String> {
        lock(&self.progress).last_error.clone()
    }

    /// Whether publishes wait that the broker was not even given: one that does not join them overtakes them.
    pub(super) fn has_unsent(&self) -> bool {
        let newest = *self.journal.subscribe(&self.stream).borrow();
        lock(&self.progress).sent < newest
    }

    /// Whether nothing waits that could leave.
    pub(super) fn is_idle(&self) -> bool {
        *self.broker.link().borrow() == Link::Down || (!self.has_unsent() && lock(&self.progress).open == 0)
    }

    /// Sends nothing new from now on. What comes back is the end of it: when what is under way has been confirmed, or has not
    /// for a while.
    pub(super) fn stop(&self) -> Option<JoinHandle<()>> {
        self.cancel.cancel();
        lock(&self.task).take()
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outgoing(topic: &str, data: &'static [u8]) -> Outgoing {
        let publish = Publish {
            broker: None,
            topic: topic.into(),
            data: Bytes::from_static(data),
            qos: 1,
            retain: false,
            content_type: None,
            properties: Vec::new(),
        };
        Outgoing { function: FunctionName::parse("double").unwrap(), publish }
    }

    #[test]
    fn a_publish_reads_back_as_it_was_written() {
        let plain = outgoing("results/1", b"");
        let mut rich = outgoing("results/ü", b"\x00\xff{}");
        rich.publish.qos = 2;
        rich.publish.retain = true;
        rich.publish.content_type = Some("application/json".into());
        rich.publish.properties = vec![("a".into(), "1".to_owned()), ("".into(), "".to_owned())];
        for outgoing in [plain, rich] {
            let bytes = outgoing.encode();
            assert_eq!(Outgoing::decode(bytes.clone()), Some(outgoing));
            for cut in 0..bytes.len().min(20) {
                assert_eq!(Outgoing::decode(bytes.slice(..cut)), None, "cut at {cut}");
            }
        }
    }

    #[test]
    fn a_publish_of_another_format_is_not_taken_for_one() {
        let mut bytes = outgoing("a", b"1").encode().to_vec();
        bytes[0] = 9;
        assert_eq!(Outgoing::decode(bytes.into()), None);
    }

    #[test]
    fn what_is_at_hand_is_taken_in_order_and_without_a_gap() {
        let mut fresh = Fresh::default();
        for sequence in [1, 2, 4, 5, 7] {
            fresh.add(sequence, outgoing("a", b"12"));
        }
        let mut take = |sent, durable, max| -> Vec<u64> {
            fresh.take(sent, durable, max).into_iter().map(|(sequence, _)| sequence).collect()
        };
        assert_eq!(take(1, 9, 10), [2], "3 is only on disk");
        assert_eq!(take(2, 9, 10), [0; 0]);
        assert_eq!(take(3, 4, 10), [4], "5 is not on disk yet");
        assert_eq!(take(4, 9, 10), [5]);
        assert_eq!(take(6, 9, 0), [0; 0]);
        assert_eq!(take(9, 9, 10), [0; 0]);
        assert_eq!((fresh.publishes.len(), fresh.bytes), (0, 0));
    }

    #[test]
    fn what_is_at_hand_has_a_bound() {
        let mut fresh = Fresh::default();
        for sequence in 0..2 * FRESH_MAX as u64 {
            fresh.add(sequence, outgoing("a", b"1"));
        }
        assert_eq!((fresh.publishes.len(), fresh.bytes), (FRESH_MAX, FRESH_MAX));
        fresh.remove(0);
        fresh.add(5_000, outgoing("a", vec![0; FRESH_BYTES_MAX].leak()));
        assert_eq!(fresh.publishes.len(), FRESH_MAX - 1);
    }
}
