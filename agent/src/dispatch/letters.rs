//! What can be done about dead letters: look at them, try again, drop them.
//!
//! # Promises
//! - A replay ends the letter and starts its event anew in one commit: a crash, or a second replay, neither loses nor doubles it.
//! - A letter whose function or broker is not here stays.

use std::sync::Arc;

use super::dead_letter::{DeadLetter, What};
use super::outbox::Outgoing;
use super::{Dispatcher, outlets::Outlets};
use crate::journal::{Batch, JournalError, Record, RecordMeta};
use crate::name::{BrokerName, FunctionName, StreamName};

/// Letters that are read at a time.
const READ_RECORDS: usize = 256;
/// Their bytes.
const READ_BYTES: usize = 4 << 20;
/// Letters that one page looks at, whether they are wanted or not.
const SEEN_MAX: usize = 4_096;

/// A dead letter on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredLetter {
    /// Its sequence in the stream `dead-letters`.
    pub id: u64,
    /// Unix time in milliseconds at which it was given up on.
    pub time_ms: u64,
    /// What was given up on, and why.
    pub letter: DeadLetter,
}

/// Some of the letters, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LetterPage {
    /// The letters.
    pub letters: Vec<StoredLetter>,
    /// Where the next page starts behind; none at the end.
    pub next: Option<u64>,
}

/// Why nothing can be done about a letter.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LetterError {
    /// It was replayed, dropped, sent by the uplink or never there.
    #[error("there is no dead letter {0}")]
    Unknown(u64),
    /// Its function is gone.
    #[error("dead letter {id} is of function `{function}`, which does not run on this gateway")]
    NoFunction {
        /// Which letter.
        id: u64,
        /// Whose.
        function: FunctionName,
    },
    /// Its broker is gone.
    #[error("dead letter {id} is a publish for broker `{broker}`, which is not in gateway.toml")]
    NoBroker {
        /// Which letter.
        id: u64,
        /// For whom.
        broker: BrokerName,
    },
    /// Not what an agent writes.
    #[error("dead letter {0} cannot be read: it is not what this agent writes")]
    Unreadable(u64),
    /// The disk, or a limit.
    #[error("{0}")]
    Journal(#[from] JournalError),
}

impl Outlets {
    async fn read_letters(&self, after: u64) -> Result<Vec<Record>, LetterError> {
        let (journal, stream) = (Arc::clone(self.journal()), self.dead_letters());
        let read = crate::clock::aside(move || journal.read(&stream, after, READ_RECORDS, READ_BYTES)).await;
        Ok(read.map_err(|_| JournalError::Closed)??)
    }

    async fn read_letter(&self, id: u64) -> Result<StoredLetter, LetterError> {
        let (journal, stream) = (Arc::clone(self.journal()), self.dead_letters());
        let read = crate::clock::aside(move || journal.read_one(&stream, id)).await;
        let record = read.map_err(|_| JournalError::Closed)??.ok_or(LetterError::Unknown(id))?;
        let letter = DeadLetter::decode(&record.data).ok_or(LetterError::Unreadable(id))?;
        Ok(StoredLetter { id, time_ms: record.time_ms, letter })
    }

    fn end_of(&self, id: u64) -> (StreamName, u64) {
        (self.dead_letters(), id)
    }
}

impl Dispatcher {
    /// Up to `count_max` letters after `after`: those of one function, or all.
    ///
    /// # Errors
    /// When the disk is in the way.
    pub async fn letters(
        &self,
        function: Option<&FunctionName>,
        after: u64,
        count_max: usize,
    ) -> Result<LetterPage, LetterError> {
        let (mut page, mut after, mut seen) = (LetterPage::default(), after, 0);
        loop {
            let records = self.inner.outlets.read_letters(after).await?;
            if records.is_empty() {
                return Ok(page);
            }
            for record in records {
                (after, seen) = (record.sequence, seen + 1);
                // One that cannot be read is in nobody's way, and can be dropped by its id.
                if let Some(letter) = DeadLetter::decode(&record.data)
                    && function.is_none_or(|function| letter.function.as_ref() == Some(function))
                {
                    page.letters.push(StoredLetter { id: record.sequence, time_ms: record.time_ms, letter });
                }
                if page.letters.len() >= count_max || seen >= SEEN_MAX {
                    page.next = Some(after);
                    return Ok(page);
                }
            }
        }
    }

    /// One letter.
    ///
    /// # Errors
    /// When it is not there, or the disk is in the way.
    pub async fn letter(&self, id: u64) -> Result<StoredLetter, LetterError> {
        self.inner.outlets.read_letter(id).await
    }

    /// Tries again: the function gets the event as if it had just come, the broker the publish, or the stream the record. The letter is gone when this
    /// returns.
    ///
    /// # Errors
    /// When it is not there, its function or broker is not, there is no room, or the disk is in the way. Then it stays.
    pub async fn replay(&self, id: u64) -> Result<StoredLetter, LetterError> {
        let outlets = &self.inner.outlets;
        // Of two replays at the same time the second must find the letter gone.
        let _one_at_a_time = outlets.letters_lock().lock().await;
        let stored = outlets.read_letter(id).await?;
        let batch = Batch { done: vec![outlets.end_of(id)], ..Batch::default() };
        let function = stored.letter.function.as_ref();
        match &stored.letter.what {
            What::Event(kept) => {
                let (function, event) = (function.ok_or(LetterError::Unreadable(id))?, kept.event());
                let running = self.inner.running(function);
                let running = running.ok_or_else(|| LetterError::NoFunction { id, function: function.clone() })?;
                self.inner.park_anew(&running, &event, batch).await?;
            }
            What::Publish(kept) => {
                let broker = kept.broker();
                let lane = outlets.lane(Some(broker));
                let lane = lane.map_err(|_| LetterError::NoBroker { id, broker: broker.clone() })?;
                let function = function.ok_or(LetterError::Unreadable(id))?.clone();
                let outgoing = Outgoing { function, publish: kept.publish() };
                let meta = RecordMeta { time_ms: outlets.clock().now_ms(), ..RecordMeta::default() };
                let records = vec![(lane.stream().clone(), outgoing.encode(), meta)];
                outlets.journal().commit(Batch { records, ..batch }).await?;
            }
            What::Record(kept) => {
                outlets.journal().commit(Batch { records: vec![kept.record()], ..batch }).await?;
            }
        }
        tracing::info!(id, function = function.map(tracing::field::display), "a dead letter is tried again");
        Ok(stored)
    }

    /// Drops a letter for good.
    ///
    /// # Errors
    /// When it is not there, or the disk is in the way.
    pub async fn drop_letter(&self, id: u64) -> Result<(), LetterError> {
        let outlets = &self.inner.outlets;
        let _one_at_a_time = outlets.letters_lock().lock().await;
        let (journal, stream) = (Arc::clone(outlets.journal()), outlets.dead_letters());
        let read = crate::clock::aside(move || journal.read_one(&stream, id)).await;
        read.map_err(|_| JournalError::Closed)??.ok_or(LetterError::Unknown(id))?;
        outlets.journal().commit(Batch { done: vec![outlets.end_of(id)], ..Batch::default() }).await?;
        tracing::info!(id, "a dead letter was dropped");
        Ok(())
    }
}
