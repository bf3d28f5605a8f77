//! Messages that devices were told arrived because they are on disk, while functions still work on them.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::Incoming;
use super::packet::{Codec, Received, Version};
use crate::config::{StreamConfig, WhenFull};
use crate::invocation::Publish;
use crate::journal::{Batch, Journal, JournalError, Record, RecordMeta};
use crate::limits::Limits;
use crate::name::{Own, StreamName};

/// Records that are read at once after a start.
const PAGE_RECORDS: usize = 64;
const PAGE_BYTES: usize = 4 << 20;

/// The stream `~held.local`. A record is the message as MQTT 5 frames it.
pub(super) struct Held {
    journal: Arc<Journal>,
    stream: StreamName,
    room: Semaphore,
}

impl Held {
    pub(super) fn new(journal: Arc<Journal>, limits: &Limits) -> Self {
        let stream = StreamName::own(Own::Held, "local");
        let config = StreamConfig {
            max_bytes: limits.broker_held_bytes_max,
            when_full: WhenFull::Reject,
            ..StreamConfig::default()
        };
        journal.own_stream(stream.clone(), config);
        Self { journal, stream, room: Semaphore::new(limits.broker_held_messages_max) }
    }

    /// Waits for one of the places for messages that are on disk and worked on.
    pub(super) async fn room(&self) -> Option<SemaphorePermit<'_>> {
        self.room.acquire().await.ok()
    }

    /// Gives back `places` that were kept with [`SemaphorePermit::forget`].
    pub(super) fn leave(&self, places: usize) {
        self.room.add_permits(places);
    }

    /// Brings `message` to disk, and gives back under which number.
    pub(super) async fn keep(&self, message: &Incoming, time_ms: u64) -> Result<u64, String> {
        let meta = RecordMeta { time_ms, ..RecordMeta::default() };
        let records = vec![(self.stream.clone(), encode(message)?.freeze(), meta)];
        let committed = self.journal.commit(Batch { records, ..Batch::default() }).await;
        let committed = committed.map_err(|error| error.to_string())?;
        committed.sequences.first().copied().ok_or_else(|| "the journal gave it no number".to_owned())
    }

    /// It has been taken care of.
    pub(super) async fn done(&self, sequence: u64) -> Result<(), JournalError> {
        let done = vec![(self.stream.clone(), sequence)];
        self.journal.commit(Batch { done, ..Batch::default() }).await.map(drop)
    }

    /// The newest number that was given out.
    pub(super) fn newest(&self) -> u64 {
        *self.journal.subscribe(&self.stream).borrow()
    }

    /// Some of what is on disk behind number `after`, oldest first; what cannot be understood is `None`.
    pub(super) async fn read(&self, after: u64) -> Result<Vec<(u64, Option<Incoming>)>, String> {
        let (journal, stream) = (Arc::clone(&self.journal), self.stream.clone());
        let read = tokio::task::spawn_blocking(move || journal.read(&stream, after, PAGE_RECORDS, PAGE_BYTES));
        let records = read.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        Ok(records.into_iter().map(|Record { sequence, data, .. }| (sequence, decode(&data))).collect())
    }
}

fn encode(message: &Incoming) -> Result<BytesMut, String> {
    let publish = Publish {
        broker: None,
        topic: Arc::clone(&message.topic),
        data: message.payload.clone(),
        qos: message.qos,
        retain: message.retain,
        content_type: message.content_type.as_deref().map(|text| text.to_owned().into()),
        properties: message.properties.iter().map(|(name, value)| (name.clone().into(), value.clone())).collect(),
    };
    let mut bytes = BytesMut::new();
    // MQTT frames no message of QoS 1 or 2 without a packet id.
    Codec::new(Version::V5, u32::MAX).publish(&publish, 1, false, &mut bytes)?;
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Option<Incoming> {
    match Codec::new(Version::V5, u32::MAX).read(&mut BytesMut::from(bytes)) {
        Ok(Some(Received::Publish { message, .. })) => Some(Incoming { duplicate: true, ..message }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_from_disk_as_it_was() {
        let message = Incoming {
            topic: "a/b".into(),
            payload: vec![b'x'; 1 << 20].into(),
            qos: 2,
            retain: false,
            duplicate: true,
            own: false,
            content_type: Some("text/plain".into()),
            properties: vec![("tidegate-hops".to_owned(), "3".to_owned())],
        };
        assert_eq!(decode(&encode(&message).unwrap()), Some(message));
        assert_eq!(decode(b"\x30"), None);
    }
}
