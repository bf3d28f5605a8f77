//! The task of one stream that drains to an HTTP server: one batch of records at a time, in one request.
//!
//! A batch that had no answer is sent again with the same records and the same `Idempotency-Key`, until the server has said
//! how far it took them. `docs/reference/uplink-http.md` is the other side's view.

mod client;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use sync_client::{Cloud, Verdict};
use tokio::time::{Instant, sleep_until};

use self::client::{Client, Parcel};
use super::envelope::{self, Envelope};
use super::feed::Feed;
use super::lane::{Lane, Level, Turn, claim};
use super::progress::Which;
use super::rate::Throttle;
use super::status::UplinkState;
use super::{BACK_OFF, BACK_OFF_MAX, LETTERS_MAX, Stream};
use crate::broker::BackOff;
use crate::config::HttpUplink;
use crate::journal::Record;

/// Lines of one batch, before they are compressed; one record more may go beyond.
const LINES_BYTES_MAX: usize = 1 << 20;
/// Batches that must have been taken before a larger one is tried again.
const CALM: u32 = 64;

/// `https://cloud.example:8443` of `https://cloud.example:8443/records/{stream}`: streams with the same one share a link.
pub(super) fn server_of(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    url[start..].find(['/', '?', '#']).map_or(url, |end| &url[..start + end])
}

/// What one stream's task works with.
pub(super) struct HttpSender {
    pub(super) stream: Arc<Stream>,
    pub(super) server: Server,
    pub(super) lane: Arc<Lane>,
}

/// Who takes the records.
pub(super) enum Server {
    /// Any server.
    Http(HttpUplink),
    /// The control plane, by the session that the agent has with it anyway.
    Cloud(Cloud),
}

struct Run {
    sender: HttpSender,
    envelope: Envelope,
    url: Arc<str>,
    client: Option<Client>,
    feed: Feed,
    throttle: Throttle,
    back_off: BackOff,
    rest_until: Option<Instant>,
    /// Taken from the feed and not answered yet, oldest first; with whether each is replayed.
    pending: VecDeque<(Record, bool)>,
    /// Most records of the next batch.
    records_max: usize,
    /// Batches that were taken since the last one that was not.
    calm: u32,
    letters: usize,
    failing: bool,
}

/// Gives a place back, whatever becomes of the request.
struct Place<'a>(&'a Lane, usize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.release(self.1);
    }
}

impl HttpSender {
    /// Runs until it is cancelled.
    pub(super) async fn run(self) {
        let (stream, lane) = (Arc::clone(&self.stream), Arc::clone(&self.lane));
        let mut run = Run {
            envelope: Envelope::new(&stream.gateway, &stream.name),
            url: match &self.server {
                Server::Http(http) => envelope::fill(&http.url, &stream.gateway, &stream.name),
                Server::Cloud(_) => Arc::default(),
            },
            client: None,
            feed: Feed::new(Arc::clone(&stream)),
            throttle: Throttle::new(stream.config.uplink.as_ref().and_then(|uplink| uplink.max_rate)),
            back_off: BackOff::new(BACK_OFF, BACK_OFF_MAX),
            rest_until: None,
            pending: VecDeque::new(),
            records_max: 0,
            calm: 0,
            letters: 0,
            failing: false,
            sender: self,
        };
        run.records_max = run.most();
        run.feed.connected();
        let mut turn = None;
        loop {
            let now = stream.clock.instant();
            run.rest_until = run.rest_until.filter(|at| now < *at);
            if !run.failing {
                run.feed.look();
            }
            run.feed.begin();
            let throttled = run.throttle.wait_until(now);
            let ready = if run.pending.is_empty() { run.feed.ready() } else { Some(Which::Live) };
            let wake = run.rest_until.into_iter().chain(throttled.filter(|_| ready.is_some())).max();
            let sends = ready.filter(|_| wake.is_none());
            let priority = stream.config.priority;
            let wants = sends.or_else(|| run.feed.wants()).filter(|_| wake.is_none());
            let level = wants.map(|which| Level { priority, is_live: which == Which::Live });
            Turn::follow(&mut turn, &lane, level);
            run.note(ready.is_some(), throttled.is_some());
            tokio::select! {
                biased;
                () = stream.cancel.cancelled() => break,
                places = claim(turn.as_ref().filter(|_| sends.is_some()), 1) => {
                    let place = Place(&lane, places);
                    run.gather();
                    tokio::select! {
                        biased;
                        () = stream.cancel.cancelled() => break,
                        () = run.send() => {}
                    }
                    drop(place);
                }
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
                () = run.feed.work() => {}
            }
        }
        drop(turn);
        run.feed.finish().await;
    }
}

impl Run {
    fn most(&self) -> usize {
        let config = &self.sender.stream.config;
        (config.batch.max_records.max(1) as usize).min(self.throttle.records_at_once())
    }

    fn note(&self, ready: bool, throttled: bool) {
        let state = match () {
            () if self.rest_until.is_some() && self.letters > 0 => UplinkState::Refused,
            () if self.failing => UplinkState::Offline,
            () if throttled && ready => UplinkState::Throttled,
            () if ready => UplinkState::Sending,
            () if self.feed.is_gathering() => UplinkState::Gathering,
            () => UplinkState::Idle,
        };
        let in_flight = self.pending.len() as u64;
        self.sender.stream.board.note(|status| {
            status.state = state;
            status.in_flight = in_flight;
        });
    }

    /// Takes a new batch when the last one is dealt with.
    fn gather(&mut self) {
        if !self.pending.is_empty() {
            return;
        }
        let Some(which) = self.feed.ready() else { return };
        let bytes_max = LINES_BYTES_MAX.min(self.throttle.bytes_at_once());
        let mut bytes = 0;
        while self.pending.len() < self.most()
            && bytes < bytes_max
            && let Some((record, replayed)) = self.feed.take(which)
        {
            bytes += record.data.len();
            self.pending.push_back((record, replayed));
        }
    }

    /// Sends the first records of the batch, and does what the answer says.
    async fn send(&mut self) {
        let count = self.records_max.min(self.pending.len());
        let parcel = match self.parcel(count).await {
            Ok(Some(parcel)) => parcel,
            Ok(None) => return,
            Err(why) => return self.later(None, &why),
        };
        let verdict = match &self.sender.server {
            Server::Cloud(cloud) => cloud.records(&parcel.key, parcel.body.clone().into()).await,
            Server::Http(http) => {
                if self.client.is_none() {
                    let (http, url, clock) = (http.clone(), Arc::clone(&self.url), self.sender.stream.clock.clone());
                    // Reads files.
                    let made = tokio::task::spawn_blocking(move || Client::new(&http, &url, clock)).await;
                    match made.map_err(|error| error.to_string()).and_then(|made| made) {
                        Ok(client) => self.client = Some(client),
                        Err(why) => return self.later(None, &why),
                    }
                }
                let Some(client) = &self.client else { return };
                client.send(&parcel).await
            }
        };
        let now = self.sender.stream.clock.instant();
        self.throttle.took(now, count as u64, parcel.body.len() as u64);
        self.sender.stream.board.note(|status| status.sent += count as u64);
        self.obey(verdict, count).await;
    }

    async fn obey(&mut self, verdict: Verdict, count: usize) {
        match verdict {
            Verdict::Taken => self.taken(count),
            Verdict::TakenUpTo(sequence) => match self.count_to(sequence, count) {
                0 => self.later(None, "the server takes none of the records, and does not say why"),
                taken => self.taken(taken),
            },
            Verdict::TooLarge(_) if count > 1 => {
                self.records_max = count / 2;
                self.calm = 0;
            }
            Verdict::TooLarge(why) => self.give_up(&why).await,
            Verdict::Refused { up_to, why } => {
                let taken = up_to.map_or(0, |sequence| self.count_to(sequence, count));
                if taken > 0 {
                    self.taken(taken);
                }
                match count - taken {
                    0 => {}
                    1 => self.give_up(&why).await,
                    // One of them: alone if it is the next, else in ever smaller company.
                    left => self.records_max = if taken > 0 { 1 } else { left / 2 },
                }
            }
            Verdict::Later { after, why } => self.later(after, &why),
        }
    }

    fn count_to(&self, sequence: u64, count: usize) -> usize {
        self.pending.iter().take(count).take_while(|(record, _)| record.sequence <= sequence).count()
    }

    /// The first `count` of the batch have arrived.
    fn taken(&mut self, count: usize) {
        for (record, _) in self.pending.drain(..count) {
            self.feed.progress.arrived(record.sequence);
        }
        let stream = &self.sender.stream;
        stream.board.confirmed(stream.clock.instant(), count as u64);
        self.letters = 0;
        self.back_off.reset();
        if std::mem::take(&mut self.failing) {
            self.feed.connected();
        }
        self.calm += 1;
        if self.calm >= CALM || self.records_max < 2 {
            self.records_max = (self.records_max * 2).min(self.most());
            self.calm = 0;
        }
    }

    /// The first record of the batch can never be taken.
    async fn give_up(&mut self, why: &str) {
        if self.letters >= LETTERS_MAX {
            return self.later(None, why);
        }
        if let Some((record, _)) = self.pending.pop_front() {
            self.letters += 1;
            self.feed.give_up(record.sequence, why).await;
            self.feed.progress.go_back();
            self.records_max = self.most();
        }
    }

    /// Nothing was taken, which may pass.
    fn later(&mut self, after: Option<Duration>, why: &str) {
        let stream = &self.sender.stream;
        let wait = after.unwrap_or_else(|| self.back_off.step());
        self.rest_until = Some(stream.clock.instant() + wait);
        self.failing = true;
        // A token or certificate that was replaced meanwhile is read anew.
        self.client = None;
        self.pending.iter_mut().for_each(|(_, replayed)| *replayed = true);
        stream.board.note(|status| status.refused += 1);
        stream.complain(why);
    }

    /// The first `count` records, as lines.
    async fn parcel(&mut self, count: usize) -> Result<Option<Parcel>, String> {
        let mut lines = Vec::new();
        if let Server::Cloud(cloud) = &self.sender.server {
            // The name that provisioning gave.
            self.envelope = Envelope::new(&cloud.name(), &self.sender.stream.name);
        }
        for (record, replayed) in self.pending.iter().take(count) {
            self.envelope.line(record, *replayed, &mut lines);
        }
        let (Some((first, _)), Some((last, _))) = (self.pending.front(), self.pending.get(count.saturating_sub(1)))
        else {
            return Ok(None);
        };
        let key = format!("{}-{}/{count}", self.envelope.id(first.sequence), last.sequence);
        let parcel = tokio::task::spawn_blocking(move || Parcel::new(key, &lines)).await;
        parcel.map_err(|error| error.to_string())?.map(Some).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::server_of;

    #[test]
    fn streams_of_one_server_share_a_link() {
        assert_eq!(server_of("https://cloud.example:8443/records/{stream}"), "https://cloud.example:8443");
        assert_eq!(server_of("http://127.0.0.1:80?a=/"), "http://127.0.0.1:80");
        assert_eq!(server_of("http://a"), "http://a");
    }
}
