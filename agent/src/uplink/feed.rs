//! What one stream has to send: reads ahead, says when a batch is due, and tells the journal what has arrived. Whoever sends
//! (to a broker, to a server) takes records from here and gives back how it went.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::Stream;
use super::envelope::Envelope;
use super::progress::{News, Progress, Which};
use crate::config::Drain;
use crate::dispatch::dead_letter::DeadLetter;
use crate::journal::{Batch, Journal, JournalError, Record, RecordMeta};
use crate::name::StreamName;

/// Records that are read ahead of each cursor, and what is read at once.
const AHEAD_RECORDS: usize = 1_000;
const READ_RECORDS: usize = 500;
const READ_BYTES: usize = 1 << 20;
/// The journal is told at most this often: each telling is a write.
const TELL_EVERY: Duration = Duration::from_millis(20);
/// How soon a journal that could not be read or told is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Which cursor read behind which sequence, how far the stream went then, and what came of it.
type Read = (Which, u64, u64, Result<Vec<Record>, JournalError>);
type Reading = JoinHandle<Read>;
type Telling = JoinHandle<(News, Result<(), JournalError>)>;

/// One stream's records on their way.
pub(super) struct Feed {
    stream: Arc<Stream>,
    pub(super) progress: Progress,
    newest: watch::Receiver<u64>,
    /// The newest record that is known.
    known: u64,
    /// Up to here records may leave: their batch was due.
    open_to: u64,
    /// When the batch that is being gathered is due.
    due: Option<Instant>,
    reading: Option<Reading>,
    read_at: Option<Instant>,
    telling: Option<Telling>,
    tell_at: Instant,
}

impl Feed {
    pub(super) fn new(stream: Arc<Stream>) -> Self {
        let mut newest = stream.journal.subscribe(&stream.name);
        let known = *newest.borrow_and_update();
        let floor = stream.journal.floor(&stream.name);
        Self {
            progress: Progress::new(stream.config.drain == Drain::LiveFirst, floor),
            newest,
            known,
            open_to: floor,
            due: None,
            reading: None,
            read_at: None,
            telling: None,
            tell_at: stream.clock.instant(),
            stream,
        }
    }

    /// A connection was made: what is known by now had to wait for it, and has waited enough.
    pub(super) fn connected(&mut self) {
        // Meanwhile limits may have dropped some of what was read ahead, and counted it as lost.
        self.progress.forget(self.stream.journal.floor(&self.stream.name));
        self.progress.connected(self.known);
        self.open_to = self.open_to.max(self.known);
    }

    /// Whether there are records whose batch is not due yet.
    pub(super) const fn is_gathering(&self) -> bool {
        self.known > self.open_to
    }

    /// Which cursor has a record that may leave, the more urgent one first.
    pub(super) fn ready(&self) -> Option<Which> {
        let may_leave =
            |which: &Which| self.progress.peek(*which).is_some_and(|record| record.sequence <= self.open_to);
        self.progress.cursors().find(may_leave)
    }

    /// Which cursor has records that may leave, though they may have to be read first.
    pub(super) fn wants(&self) -> Option<Which> {
        self.ready().or_else(|| self.progress.unsent(self.open_to).filter(|_| self.read_at.is_none()))
    }

    /// The next record that may leave, and whether it is replayed.
    pub(super) fn take(&mut self, which: Which) -> Option<(Record, bool)> {
        self.progress.peek(which).filter(|record| record.sequence <= self.open_to)?;
        self.progress.take(which)
    }

    /// Looks for new records. Only while the connection stands: what came before it had to wait.
    pub(super) fn look(&mut self) {
        if self.newest.has_changed().is_ok_and(|changed| changed) {
            self.known = *self.newest.borrow_and_update();
        }
        self.gather();
    }

    /// Begins what can be done beside the sending: reads ahead, and tells the journal. Whether records were read meanwhile.
    pub(super) fn begin(&mut self) -> bool {
        let news = self.take_what_was_read();
        self.read_ahead();
        self.tell();
        news
    }

    /// Waits for something to change: records that were read, a batch that is due, an answer of the journal. May be dropped
    /// and called again at any time.
    pub(super) async fn work(&mut self) {
        // The caller has not seen them: it looked before they were there.
        if self.begin() {
            return;
        }
        let wake = [
            self.due,
            self.read_at.filter(|_| self.reading.is_none()),
            (self.telling.is_none() && self.progress.has_news()).then_some(self.tell_at),
        ];
        let wake = wake.into_iter().flatten().min();
        tokio::select! {
            biased;
            read = join(&mut self.reading) => {
                self.reading = None;
                self.add(read);
            }
            (news, result) = join(&mut self.telling) => {
                self.telling = None;
                self.hear(&news, result);
            }
            changed = self.newest.changed() => {
                // The journal outlives the uplink; if it should not, there is nothing more to send.
                if changed.is_err() {
                    std::future::pending::<()>().await;
                }
                self.known = *self.newest.borrow_and_update();
                self.gather();
            }
            () = sleep_until(wake.unwrap_or_else(|| self.stream.clock.instant())), if wake.is_some() => self.gather(),
        }
    }

    fn take_what_was_read(&mut self) -> bool {
        let finished = self.reading.as_ref().is_some_and(JoinHandle::is_finished);
        if finished
            && let Some(read) = self.reading.take().and_then(|reading| reading.now_or_never())
            && let Ok(read) = read
        {
            self.add(read);
        }
        finished
    }

    fn add(&mut self, (which, after, known, result): Read) {
        match result {
            Ok(records) => self.progress.read(which, after, known, records),
            Err(error) => {
                self.read_at = Some(self.stream.clock.instant() + ASK_AGAIN);
                self.stream.complain(&format!("records could not be read: {error}"));
            }
        }
    }

    /// Opens the batch when it is full or has waited.
    fn gather(&mut self) {
        if self.known <= self.open_to {
            self.due = None;
            return;
        }
        let now = self.stream.clock.instant();
        let due = *self.due.get_or_insert(now + self.stream.config.batch.max_wait.0);
        if now >= due || self.known - self.open_to >= u64::from(self.stream.config.batch.max_records.max(1)) {
            self.open_to = self.known;
            self.due = None;
        }
    }

    fn read_ahead(&mut self) {
        let now = self.stream.clock.instant();
        if self.reading.is_some() || self.read_at.is_some_and(|at| now < at) {
            return;
        }
        self.read_at = None;
        let known = self.known;
        let Some((which, after)) = self.progress.reads(known, AHEAD_RECORDS - READ_RECORDS) else { return };
        self.progress.reading();
        let (journal, name) = (Arc::clone(&self.stream.journal), self.stream.name.clone());
        self.reading = Some(crate::clock::aside(move || {
            (which, after, known, journal.read(&name, after, READ_RECORDS, READ_BYTES))
        }));
    }

    fn tell(&mut self) {
        let now = self.stream.clock.instant();
        if self.telling.is_some() || now < self.tell_at {
            return;
        }
        let Some(news) = self.progress.tell() else { return };
        self.tell_at = now + TELL_EVERY;
        let stream = Arc::clone(&self.stream);
        self.telling = Some(tokio::spawn(async move {
            let result = tell(&stream.journal, &stream.name, &news).await;
            (news, result)
        }));
    }

    fn hear(&mut self, news: &News, result: Result<(), JournalError>) {
        match result {
            Ok(()) => self.progress.told(news),
            Err(error) => {
                // They stay, and may be sent again after a restart.
                self.progress.not_told();
                self.tell_at = self.stream.clock.instant() + ASK_AGAIN;
                self.stream.complain(&format!("what has arrived could not be acknowledged: {error}"));
            }
        }
    }

    /// Gives up a record that the other side will never take: it becomes a dead letter, in one transaction.
    pub(super) async fn give_up(&mut self, sequence: u64, why: &str) {
        let stream = Arc::clone(&self.stream);
        if stream.name == stream.dead_letters {
            stream.complain(&format!("dead letter {sequence} cannot be sent and stays here: {why}"));
            return self.progress.leave(sequence);
        }
        match bury(&stream, sequence, why).await {
            Ok(()) => {
                tracing::warn!(stream = %stream.name, sequence, why, "a record cannot be sent; it is now a dead letter");
                stream.board.note(|status| status.dead_letters += 1);
                self.progress.moved(sequence);
            }
            Err(error) => {
                let what =
                    format!("record {sequence} cannot be sent ({why}), and could not become a dead letter: {error}");
                stream.complain(&what);
                self.progress.refused(sequence);
            }
        }
    }

    /// Tells the journal all that is still to be told.
    pub(super) async fn finish(mut self) {
        if self.telling.is_some() {
            let (news, result) = join(&mut self.telling).await;
            self.hear(&news, result);
        }
        if let Some(news) = self.progress.tell()
            && let Err(error) = tell(&self.stream.journal, &self.stream.name, &news).await
        {
            self.stream.complain(&format!("what has arrived could not be acknowledged: {error}"));
        }
    }
}

async fn tell(journal: &Journal, stream: &StreamName, news: &News) -> Result<(), JournalError> {
    if let Some(up_to) = news.up_to {
        journal.ack(stream, up_to).await?;
    }
    if !news.done.is_empty() {
        let done = news.done.iter().map(|sequence| (stream.clone(), *sequence)).collect();
        journal.commit(Batch { done, ..Batch::default() }).await?;
    }
    Ok(())
}

async fn bury(stream: &Arc<Stream>, sequence: u64, why: &str) -> Result<(), JournalError> {
    let reader = Arc::clone(stream);
    let read = crate::clock::aside(move || reader.journal.read(&reader.name, sequence - 1, 1, 1));
    let read = read.await.map_err(|_| JournalError::Closed)??;
    // Over a limit meanwhile: nothing is left to keep.
    let Some(record) = read.first().filter(|record| record.sequence == sequence) else { return Ok(()) };
    let meta = RecordMeta { time_ms: stream.clock.now_ms(), trace_parent: record.trace_parent.clone() };
    let id = Envelope::new(&stream.gateway, &stream.name).id(sequence);
    let letter = DeadLetter::of_record(id, stream.name.clone(), record, why.to_owned()).encode();
    let records = vec![(stream.dead_letters.clone(), letter, meta)];
    let done = vec![(stream.name.clone(), sequence)];
    stream.journal.commit(Batch { records, done, ..Batch::default() }).await.map(drop)
}

/// Waits for a task that may not be there, and then for ever. The task is kept: it ends only once it has answered.
async fn join<T>(task: &mut Option<JoinHandle<T>>) -> T {
    struct Answer<'a, T>(&'a mut Option<JoinHandle<T>>);
    impl<T> Future for Answer<'_, T> {
        type Output = T;
        fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
            let Some(task) = self.get_mut().0 else { return Poll::Pending };
            match Pin::new(task).poll(cx) {
                Poll::Ready(Ok(answer)) => Poll::Ready(answer),
                // Only when the runtime shuts down, or the task panicked, which is reported as such.
                Poll::Ready(Err(_)) | Poll::Pending => Poll::Pending,
            }
        }
    }
    Answer(task).await
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tokio_util::sync::CancellationToken;

    use super::super::status::Board;
    use super::*;
    use crate::clock::Clock;
    use crate::config::StreamConfig;
    use crate::journal::JournalConfig;
    use crate::limits::Limits;
    use crate::name::GatewayName;

    /// Else it would be sent only when something else happens.
    #[tokio::test]
    async fn what_was_read_behind_the_callers_back_is_told_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let (clock, name) = (Clock::system(), StreamName::parse("readings").unwrap());
        let streams = BTreeMap::from([(name.clone(), StreamConfig::default())]);
        let config = JournalConfig { streams, limits: Arc::new(Limits::default()) };
        let journal = Arc::new(Journal::open(dir.path(), config, clock.clone()).unwrap());
        let meta = RecordMeta { time_ms: 1, trace_parent: None };
        let records = vec![(name.clone(), bytes::Bytes::from_static(b"1"), meta)];
        journal.commit(Batch { records, ..Batch::default() }).await.unwrap();
        let mut feed = Feed::new(Arc::new(Stream {
            journal,
            gateway: GatewayName::parse("hall-3").unwrap(),
            name,
            dead_letters: StreamName::parse("dead-letters").unwrap(),
            config: StreamConfig::default(),
            board: Board::default(),
            clock,
            cancel: CancellationToken::new(),
        }));
        feed.connected();
        feed.begin();
        assert_eq!(feed.ready(), None);
        while !feed.reading.as_ref().is_some_and(JoinHandle::is_finished) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::timeout(Duration::from_secs(10), feed.work()).await.expect("it says nothing");
        assert!(feed.ready().is_some());
    }
}
