//! The task of one stream that drains to a broker: one message a record, a window of them under way.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use super::envelope::{self, Envelope};
use super::feed::Feed;
use super::lane::{Lane, Level, Turn, claim};
use super::progress::Which;
use super::rate::Throttle;
use super::status::UplinkState;
use super::{BACK_OFF, BACK_OFF_MAX, DRAIN, LETTERS_MAX, Publisher, Stream, WINDOW_BYTES, WINDOW_RECORDS};
use crate::broker::{BackOff, Link};
use crate::config::MqttUplink;
use crate::receipt::{NotKept, Receipt};

/// Records that are sent at a turn, before others of the link get theirs.
const AT_ONCE: usize = 50;
/// After this many records that had to wait there is a pause, so that some 30,000 leave in a second: on a link without a delay
/// of its own they would take the processor from the events that are handled meanwhile.
const PAUSE_AFTER: usize = 64;
const PAUSE: Duration = Duration::from_millis(1);
/// How often a broker may end its connections upon a record before that is the record's fault: a bad link does so, too.
const ENDINGS_MAX: u8 = 3;

type Answer = (u64, Result<(), NotKept>);

/// What one stream's task works with.
pub(super) struct MqttSender {
    pub(super) stream: Arc<Stream>,
    pub(super) mqtt: MqttUplink,
    pub(super) publisher: Arc<dyn Publisher>,
    pub(super) lane: Arc<Lane>,
}

/// Places of the lane that are taken, until each has its answer.
struct Places {
    lane: Arc<Lane>,
    taken: usize,
}

impl Places {
    fn give_back(&mut self, places: usize) {
        self.taken -= places;
        self.lane.release(places);
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        self.lane.release(self.taken);
    }
}

struct Run {
    sender: MqttSender,
    envelope: Envelope,
    topic: Arc<str>,
    feed: Feed,
    throttle: Throttle,
    /// Records that had to wait and were sent since the last pause.
    unpaused: usize,
    paused_until: Option<Instant>,
    places: Places,
    answers: mpsc::UnboundedSender<Answer>,
    back_off: BackOff,
    /// When it asks again after a refusal.
    rest_until: Option<Instant>,
    /// Records in a row that became dead letters.
    letters: usize,
    /// The record upon which the broker has ended its connections, and how often.
    ended_upon: (u64, u8),
    reconnects: Option<u64>,
    connected: bool,
}

impl MqttSender {
    /// Runs until it is cancelled.
    pub(super) async fn run(self) {
        let (answers, mut answered) = mpsc::unbounded_channel();
        let mut link = self.publisher.changes();
        let mut run = Run {
            envelope: Envelope::new(&self.stream.gateway, &self.stream.name),
            topic: envelope::fill(&self.mqtt.topic, &self.stream.gateway, &self.stream.name),
            feed: Feed::new(Arc::clone(&self.stream)),
            throttle: Throttle::new(self.stream.config.uplink.as_ref().and_then(|uplink| uplink.max_rate)),
            unpaused: 0,
            paused_until: None,
            places: Places { lane: Arc::clone(&self.lane), taken: 0 },
            answers,
            back_off: BackOff::new(BACK_OFF, BACK_OFF_MAX),
            rest_until: None,
            letters: 0,
            ended_upon: (0, 0),
            reconnects: None,
            connected: false,
            sender: self,
        };
        let stream = Arc::clone(&run.sender.stream);
        let lane = Arc::clone(&run.sender.lane);
        run.look_at_link(*link.borrow_and_update());
        let mut turn = None;
        loop {
            let now = stream.clock.instant();
            if run.rest_until.is_some_and(|at| now >= at) {
                run.rest_until = None;
                run.feed.progress.go_back();
            }
            if run.connected {
                run.feed.look();
            }
            run.feed.begin();
            let may_send = run.connected && run.rest_until.is_none();
            let ready = run.feed.ready().filter(|_| may_send);
            let throttled = run.throttle.wait_until(now);
            let has_room = throttled.is_none() && run.feed.progress.bytes() < WINDOW_BYTES;
            run.note(ready, throttled.is_some());
            let paused = run.paused_until.filter(|at| *at > now);
            let sends = ready.filter(|_| has_room && paused.is_none());
            let priority = stream.config.priority;
            // Lower priorities wait, too, while this one's next records are being read.
            let wants = run.feed.wants().filter(|_| may_send && has_room);
            let level = wants.map(|which| Level { priority, is_live: which == Which::Live });
            Turn::follow(&mut turn, &lane, level);
            let wake = run.rest_until.into_iter().chain(throttled.max(paused).filter(|_| ready.is_some())).min();
            tokio::select! {
                biased;
                () = stream.cancel.cancelled() => break,
                changed = link.changed() => {
                    let now = *link.borrow_and_update();
                    run.look_at_link(if changed.is_ok() { now } else { Link::Down });
                    if changed.is_err() {
                        break;
                    }
                }
                Some(answer) = answered.recv() => run.settle(answer, &mut answered).await,
                places = claim(turn.as_ref().filter(|_| sends.is_some()), AT_ONCE.min(PAUSE_AFTER - run.unpaused)) => {
                    run.places.taken += places;
                    if let Some(which) = sends {
                        run.send(which, places).await;
                    }
                }
                () = sleep_until(wake.unwrap_or(now)), if wake.is_some() => {}
                () = run.feed.work() => {}
            }
        }
        drop(turn);
        // Those whose answer does not come in time are sent again.
        let all = async {
            while run.feed.progress.under_way() > 0
                && let Some(answer) = answered.recv().await
            {
                run.settle(answer, &mut answered).await;
            }
        };
        let _ = timeout(DRAIN, all).await;
        run.feed.finish().await;
    }
}

impl Run {
    fn look_at_link(&mut self, link: Link) {
        let now = self.sender.publisher.link();
        let is_up = link != Link::Down && now.connected;
        if is_up && self.reconnects != Some(now.reconnects) {
            self.reconnects = Some(now.reconnects);
            self.sender.lane.resize(now.at_once.saturating_mul(2).clamp(1, WINDOW_RECORDS));
            self.feed.connected();
        }
        self.connected = is_up;
    }

    fn note(&self, ready: Option<Which>, throttled: bool) {
        let in_flight = self.feed.progress.under_way() as u64;
        let state = match () {
            () if !self.connected => UplinkState::Offline,
            () if self.rest_until.is_some() => UplinkState::Refused,
            () if throttled && ready.is_some() => UplinkState::Throttled,
            () if ready.is_some() || in_flight > 0 => UplinkState::Sending,
            () if self.feed.is_gathering() => UplinkState::Gathering,
            () => UplinkState::Idle,
        };
        self.sender.stream.board.note(|status| {
            status.state = state;
            status.in_flight = in_flight;
        });
    }

    /// Sends up to `places` records of one cursor.
    async fn send(&mut self, which: Which, places: usize) {
        let stream = Arc::clone(&self.sender.stream);
        let (mut used, mut waited) = (0, 0);
        while used < places
            && self.feed.ready() == Some(which)
            && self.feed.progress.bytes() < WINDOW_BYTES
            && self.throttle.wait_until(stream.clock.instant()).is_none()
            && let Some((record, replayed)) = self.feed.take(which)
        {
            used += 1;
            waited += usize::from(replayed);
            let message = self.envelope.message(&self.sender.mqtt, &self.topic, &record, replayed);
            let (answers, sequence) = (self.answers.clone(), record.sequence);
            let receipt = Receipt::new(move |result| drop(answers.send((sequence, result))));
            self.throttle.took(stream.clock.instant(), 1, message.data.len() as u64);
            tokio::select! {
                biased;
                () = stream.cancel.cancelled() => break,
                () = self.sender.publisher.publish(message, receipt) => {}
            }
        }
        stream.board.note(|status| status.sent += used as u64);
        self.places.give_back(places - used);
        self.unpaused += waited;
        if self.unpaused >= PAUSE_AFTER {
            self.unpaused = 0;
            self.paused_until = Some(stream.clock.instant() + PAUSE);
        }
        // Events that are handled meanwhile do not wait for a backlog.
        tokio::task::yield_now().await;
    }

    /// Takes `answer` and all others that are there.
    async fn settle(&mut self, answer: Answer, answered: &mut mpsc::UnboundedReceiver<Answer>) {
        let stream = Arc::clone(&self.sender.stream);
        let (mut places, mut confirmed) = (0, 0);
        let mut next = Some(answer);
        while let Some((sequence, result)) = next {
            places += 1;
            match result {
                Ok(()) => confirmed += u64::from(self.feed.progress.arrived(sequence)),
                Err(NotKept::ForGood(why)) if self.letters < LETTERS_MAX && !self.may_be_the_link(sequence) => {
                    self.letters += 1;
                    self.feed.give_up(sequence, &why).await;
                }
                Err(why) => {
                    self.feed.progress.refused(sequence);
                    self.rest(&why.to_string());
                }
            }
            next = answered.try_recv().ok();
        }
        self.places.give_back(places);
        if confirmed > 0 {
            self.letters = 0;
            self.back_off.reset();
            stream.board.confirmed(stream.clock.instant(), confirmed);
        }
    }

    /// Whether it was given up because connections ended upon it, and not often enough to tell why.
    fn may_be_the_link(&mut self, sequence: u64) -> bool {
        if self.sender.publisher.link().connected {
            return false;
        }
        let (record, endings) = self.ended_upon;
        self.ended_upon = (sequence, if record == sequence { endings + 1 } else { 1 });
        self.ended_upon.1 < ENDINGS_MAX
    }

    /// Sends nothing for a while, so that nothing overtakes what was refused.
    fn rest(&mut self, why: &str) {
        let stream = &self.sender.stream;
        stream.board.note(|status| status.refused += 1);
        if self.rest_until.is_none() {
            self.rest_until = Some(stream.clock.instant() + self.back_off.step());
        }
        stream.complain(&format!("a record was refused: {why}"));
    }
}
