//! The task of one stream: reads batches, keeps a window of records under way, acknowledges what arrived.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{DRAIN, Publisher, UplinkStatus, WINDOW_BYTES, WINDOW_RECORDS, envelope};
use crate::clock::Clock;
use crate::config::{BatchConfig, UplinkConfig};
use crate::journal::{Journal, Record};
use crate::name::{GatewayName, StreamName};
use crate::receipt::Receipt;

/// First and longest wait after a refusal.
const BACK_OFF: Duration = Duration::from_secs(1);
const BACK_OFF_MAX: Duration = Duration::from_secs(60);

type Confirmation = (u64, Result<(), String>);

/// What one stream's task works with.
pub(super) struct Sender {
    pub(super) journal: Arc<Journal>,
    pub(super) publisher: Arc<dyn Publisher>,
    pub(super) gateway: GatewayName,
    pub(super) stream: StreamName,
    pub(super) uplink: UplinkConfig,
    pub(super) batch: BatchConfig,
    pub(super) clock: Clock,
    pub(super) status: Arc<Mutex<UplinkStatus>>,
    pub(super) cancel: CancellationToken,
}

/// Records that wait for their PUBACK, in the order in which they were sent.
#[derive(Default)]
struct Window {
    sent: VecDeque<(u64, usize)>,
    bytes: usize,
    /// Confirmed ahead of one that is not yet.
    confirmed: BTreeSet<u64>,
    refused: Option<String>,
    /// Answers that have not come.
    open: usize,
    /// Up to here all has arrived.
    arrived: u64,
}

impl Window {
    fn is_full(&self) -> bool {
        self.open >= WINDOW_RECORDS || self.bytes >= WINDOW_BYTES
    }

    fn settle(&mut self, (sequence, result): Confirmation) {
        self.open -= 1;
        match result {
            // The second answer to a record that was sent again tells nothing new.
            Ok(()) if sequence <= self.arrived => {}
            Ok(()) => drop(self.confirmed.insert(sequence)),
            Err(why) => drop(self.refused.get_or_insert(why)),
        }
    }

    /// The sequence up to which all has arrived, when that moved.
    fn advance(&mut self) -> Option<u64> {
        let mut up_to = None;
        while let Some((sequence, bytes)) = self.sent.front().copied()
            && self.confirmed.remove(&sequence)
        {
            self.sent.pop_front();
            self.bytes -= bytes;
            self.arrived = sequence;
            up_to = Some(sequence);
        }
        up_to
    }
}

impl Sender {
    /// Runs until it is cancelled.
    pub(super) async fn run(self) {
        let mut newest = self.journal.subscribe(&self.stream);
        let topic = envelope::topic(&self.uplink.topic, &self.gateway, &self.stream);
        let (answers, mut answered) = mpsc::unbounded_channel();
        let mut window = Window::default();
        // Up to here everything was handed to the broker, and up to there it may have been before, or had to wait.
        let mut sent = self.journal.floor(&self.stream);
        let mut replayed_to = *newest.borrow_and_update();
        let mut link = self.publisher.link();
        let mut back_off = BACK_OFF;
        // When the records that are not sent yet have waited long enough.
        let mut due = None;

        while !self.cancel.is_cancelled() {
            if let Some(why) = window.refused.take() {
                self.drain(&mut window, &mut answered).await;
                // All but the unconfirmed ones are acknowledged or remembered, so this repeats no more than it must.
                replayed_to = replayed_to.max(sent);
                sent = window.sent.front().map_or(sent, |(sequence, _)| sequence - 1);
                window.sent.clear();
                window.bytes = 0;
                window.refused = None;
                tracing::warn!(stream = %self.stream, broker = %self.uplink.mqtt, why, retry_in = ?back_off, "a record was refused");
                self.rest(&mut back_off, why).await;
                continue;
            }
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => break,
                Some(answer) = answered.recv() => {
                    if self.settle(&mut window, answer, &mut answered).await {
                        back_off = BACK_OFF;
                    }
                    continue;
                }
                () = self.batch_is_due(&mut newest, sent, &mut due), if !window.is_full() => {}
            }
            let known = *newest.borrow();
            let records = match self.read(sent, &window).await {
                Ok(records) => records,
                Err(why) => {
                    tracing::warn!(stream = %self.stream, why, retry_in = ?back_off, "records could not be read");
                    self.rest(&mut back_off, why).await;
                    continue;
                }
            };
            // Dropped or lost meanwhile: nothing to send up to there.
            if records.is_empty() {
                sent = sent.max(known);
            }
            for record in records {
                let now = self.publisher.link();
                if now != link || !now.connected {
                    link = now;
                    // What was made on the new connection did not wait for it.
                    if !now.connected || record.time_ms < now.since_ms {
                        replayed_to = replayed_to.max(*newest.borrow());
                    }
                }
                let sequence = record.sequence;
                sent = sequence;
                window.sent.push_back((sequence, record.data.len()));
                window.bytes += record.data.len();
                if window.confirmed.contains(&sequence) {
                    continue;
                }
                window.open += 1;
                let message = envelope::message(
                    &self.uplink,
                    &topic,
                    &self.gateway,
                    &self.stream,
                    &record,
                    sequence <= replayed_to,
                );
                let answers = answers.clone();
                let receipt = Receipt::new(move |result| drop(answers.send((sequence, result))));
                self.note(|status| {
                    status.sent += 1;
                    status.in_flight += 1;
                });
                let mut publish = self.publisher.publish(message, receipt);
                loop {
                    tokio::select! {
                        biased;
                        () = self.cancel.cancelled() => break,
                        () = &mut publish => break,
                        Some(answer) = answered.recv() => drop(self.settle(&mut window, answer, &mut answered).await),
                    }
                }
                if window.refused.is_some() || self.cancel.is_cancelled() {
                    break;
                }
            }
            self.acknowledge(&mut window).await;
            if sent >= known {
                due = None;
            }
        }
        self.drain(&mut window, &mut answered).await;
    }

    /// Returns when there are enough records for a batch, or it is `due` because the first of them has waited long enough.
    async fn batch_is_due(&self, newest: &mut watch::Receiver<u64>, sent: u64, due: &mut Option<Instant>) {
        // The journal outlives the uplink; if it should not, there is nothing more to send.
        if newest.wait_for(|newest| *newest > sent).await.is_err() {
            std::future::pending::<()>().await;
        }
        let full = sent.saturating_add(u64::from(self.batch.max_records.max(1)));
        let due = *due.get_or_insert_with(|| self.clock.instant() + self.batch.max_wait.0);
        tokio::select! {
            _ = newest.wait_for(|newest| *newest >= full) => {}
            () = sleep_until(due) => {}
        }
    }

    async fn read(&self, after: u64, window: &Window) -> Result<Vec<Record>, String> {
        let (journal, stream) = (Arc::clone(&self.journal), self.stream.clone());
        let records_max = (self.batch.max_records.max(1) as usize).min(WINDOW_RECORDS - window.open);
        let bytes_max = WINDOW_BYTES - window.bytes;
        let read = tokio::task::spawn_blocking(move || journal.read(&stream, after, records_max, bytes_max));
        read.await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    /// Takes `answer` and all others that are there, then acknowledges once. Whether anything new had arrived.
    async fn settle(
        &self,
        window: &mut Window,
        answer: Confirmation,
        answered: &mut mpsc::UnboundedReceiver<Confirmation>,
    ) -> bool {
        let (mut confirmed, mut refused) = (0, 0);
        let mut next = Some(answer);
        while let Some(answer) = next {
            if answer.1.is_ok() {
                confirmed += 1
            } else {
                refused += 1
            }
            window.settle(answer);
            next = answered.try_recv().ok();
        }
        self.note(|status| {
            status.confirmed += confirmed;
            status.refused += refused;
            status.in_flight = window.open as u64;
            if confirmed > 0 && refused == 0 {
                status.last_error = None;
            }
        });
        self.acknowledge(window).await;
        confirmed > 0
    }

    async fn acknowledge(&self, window: &mut Window) {
        if let Some(up_to) = window.advance()
            && let Err(error) = self.journal.ack(&self.stream, up_to).await
        {
            // They stay, and may be sent again after a restart.
            tracing::warn!(stream = %self.stream, %error, "arrived records could not be acknowledged");
        }
    }

    /// Waits a moment for answers that are under way.
    async fn drain(&self, window: &mut Window, answered: &mut mpsc::UnboundedReceiver<Confirmation>) {
        let all = async {
            while window.open > 0
                && let Some(answer) = answered.recv().await
            {
                self.settle(window, answer, answered).await;
            }
        };
        // Those that do not come in time are sent again.
        let _ = timeout(DRAIN, all).await;
    }

    async fn rest(&self, back_off: &mut Duration, why: String) {
        self.note(|status| status.last_error = Some(why));
        let jitter = 0.5 + fastrand::f64() / 2.0;
        tokio::select! {
            () = self.cancel.cancelled() => {}
            () = sleep(back_off.mul_f64(jitter)) => {}
        }
        *back_off = (*back_off * 2).min(BACK_OFF_MAX);
    }

    fn note(&self, change: impl FnOnce(&mut UplinkStatus)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
