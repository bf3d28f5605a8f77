//! One round: samples at their pace, and what happens meanwhile.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::acts::{Act, Stagehand};
use super::ledger::Ledger;
use super::mishap::{self, Mishap, Plan};
use super::recording::{Recording, Sample};
use super::site::Site;
use super::verdict::{Expected, Reign};
use super::view::{Standing, View};
use super::{DEAD_FOR, DRAW_EVERY, DemoArgs, REST_PATIENCE};
use crate::broker::Broker;
use crate::clock::Clock;
use crate::invocation::Publish;
use crate::receipt::Receipt;

/// Samples per second while people do something: what is to be judged needs events, however slow the machine is.
const PER_SECOND_DURING_ACTS: f64 = 60.0;

/// What one round of the demo needs.
pub(super) struct Stage<'a> {
    pub(super) args: &'a DemoArgs,
    pub(super) plan: Plan,
    pub(super) recording: &'a Recording,
    pub(super) expected: &'a Expected,
    pub(super) ledger: &'a Ledger,
    pub(super) sensors: &'a Broker,
    pub(super) clock: &'a Clock,
    /// Does what people do, when there is a control plane.
    pub(super) hand: Option<&'a mut Stagehand>,
    /// Runs of the function in the agent's lives that are over.
    pub(super) earlier_runs: u64,
    /// When the agent that was killed is started again.
    pub(super) revival: Option<Instant>,
    /// Which model was asked.
    pub(super) reign: Reign,
}

impl Stage<'_> {
    /// Sends the recording at its pace, while what is planned happens.
    pub(super) async fn play(&mut self, site: &mut Site, view: &mut View, round: u64) -> anyhow::Result<()> {
        let samples = &self.recording.samples;
        let per_second = f64::from(self.args.rate) * f64::from(self.recording.devices());
        let mut due = self.clock.instant();
        let mut next_draw = due;
        let mut planned = self.plan.iter().peekable();
        for (n, sample) in samples.iter().enumerate() {
            self.attend(n, view).await?;
            let pace = if self.is_busy() { per_second.min(PER_SECOND_DURING_ACTS) } else { per_second };
            due += Duration::from_secs_f64(1.0 / pace);
            tokio::time::sleep_until(due).await;
            while let Some((_, mishap)) = planned.next_if(|(at, _)| n >= samples.len() * at / 100) {
                self.finish_act(site, view, n, round).await?;
                self.happens(*mishap, n, site, view, round).await?;
                due = self.clock.instant();
            }
            let now = self.clock.instant();
            if self.revival.is_some_and(|at| now >= at) {
                self.revive(site, view).await?;
            }
            self.send(sample, round).await;
            if now >= next_draw {
                next_draw = now + DRAW_EVERY;
                self.draw(site, view, round).await;
            }
        }
        if self.revival.is_some() {
            self.revive(site, view).await?;
        }
        self.finish_act(site, view, samples.len(), round).await
    }

    fn is_busy(&self) -> bool {
        self.hand.as_ref().is_some_and(|hand| hand.is_busy())
    }

    /// Says what people say, and notes what they have done, after `n` samples.
    async fn attend(&mut self, n: usize, view: &mut View) -> anyhow::Result<()> {
        let Some(hand) = self.hand.as_deref_mut() else { return Ok(()) };
        let ended = hand.ended().await;
        for line in hand.heard() {
            self.say(view, &line);
        }
        if ended? == Some(Act::BetterModel) {
            self.reign.better_since = Some(n);
        }
        Ok(())
    }

    /// Lets an act that is under way come to its end.
    async fn finish_act(&mut self, site: &Site, view: &mut View, n: usize, round: u64) -> anyhow::Result<()> {
        while self.is_busy() {
            self.attend(n, view).await?;
            self.draw(site, view, round).await;
            tokio::time::sleep(DRAW_EVERY).await;
        }
        self.attend(n, view).await
    }

    async fn happens(
        &mut self,
        mishap: Mishap,
        n: usize,
        site: &mut Site,
        view: &mut View,
        round: u64,
    ) -> anyhow::Result<()> {
        // Whatever befalls an agent befalls one that runs.
        if self.revival.is_some() {
            self.revive(site, view).await?;
        }
        self.say(view, &mishap.to_string());
        match mishap {
            Mishap::CutUplink => site.cut_uplink(),
            Mishap::RestoreUplink => site.restore_uplink(),
            Mishap::CutBroker => site.wire.cut(),
            Mishap::RestoreBroker => site.wire.restore(),
            Mishap::FillDisk => site.fill_disk()?,
            Mishap::FreeDisk => site.free_disk()?,
            Mishap::Kill => {
                self.earlier_runs = self.standing(site, round).await.runs;
                site.kill_agent().await?;
                self.revival = Some(self.clock.instant() + DEAD_FOR);
            }
            Mishap::People(act) => {
                if let Some(hand) = self.hand.as_deref_mut() {
                    hand.begin(act);
                }
                if act == Act::BetterModel {
                    self.reign.better_from = Some(n);
                }
            }
        }
        Ok(())
    }

    async fn revive(&mut self, site: &mut Site, view: &mut View) -> anyhow::Result<()> {
        self.revival = None;
        site.start_agent().await?;
        self.say(view, "the agent runs again");
        Ok(())
    }

    async fn send(&self, sample: &Sample, round: u64) {
        let seq = sample.seq + round * self.recording.samples_per_device();
        let [ax, ay, az, gx, gy, gz] = sample.axes;
        let ts = self.clock.now_ms();
        let device = &sample.device;
        let payload = json!({
            "device": device, "seq": seq, "ts": ts,
            "ax": ax, "ay": ay, "az": az, "gx": gx, "gy": gy, "gz": gz,
        });
        let (ledger, id) = (self.ledger.clone(), (device.clone(), seq));
        let acknowledged = Receipt::new(move |result| match result {
            Ok(()) => ledger.sent(id),
            Err(why) => ledger.books().malformed.push(format!("sample {id:?} was not taken: {why}")),
        });
        let publish = Publish {
            broker: None,
            topic: format!("wrist/{device}/imu").into(),
            data: payload.to_string().into(),
            qos: 1,
            retain: false,
            content_type: None,
            properties: Vec::new(),
        };
        self.sensors.publish(publish, acknowledged).await;
    }

    /// Waits until everything has been handled, committed and has arrived; says how things stand then, or when patience is over.
    pub(super) async fn rest(&self, site: &Site, view: &mut View, round: u64) -> Standing {
        let patience = self.clock.instant() + REST_PATIENCE;
        loop {
            let standing = self.draw(site, view, round).await;
            let rested = {
                let books = self.ledger.books();
                let all = |n: usize| n == standing.samples;
                all(books.sent.len())
                    && all(books.handled.len())
                    && standing.waiting == Some(0)
                    && (mishap::fails_commits(self.plan) || standing.committed == Some(books.arrived.len() as u64))
            };
            if rested || self.clock.instant() > patience {
                return standing;
            }
            tokio::time::sleep(DRAW_EVERY).await;
        }
    }

    async fn standing(&self, site: &Site, round: u64) -> Standing {
        let status = site.status().await;
        let stream = status.as_ref().and_then(|s| s.streams.iter().find(|stream| stream.name.as_str() == "activities"));
        let runs = status
            .as_ref()
            .and_then(|s| s.functions.first())
            .map(|function| function.numbers.invocations.values().sum());
        Standing {
            samples: self.recording.samples.len() * usize::try_from(round + 1).unwrap_or(usize::MAX),
            runs: self.earlier_runs + runs.unwrap_or(0_u64),
            committed: stream.map(|stream| stream.newest_sequence),
            waiting: stream.map(|stream| stream.records),
            accuracy: self.expected.accuracy_of_late(self.ledger),
            link_up: site.link.is_up(),
            disk_full: site.disk_is_full(),
            agent_up: status.is_some(),
        }
    }

    async fn draw(&self, site: &Site, view: &mut View, round: u64) -> Standing {
        let standing = self.standing(site, round).await;
        if !self.args.json {
            view.show(self.clock.instant(), standing, self.ledger);
        }
        standing
    }

    fn say(&self, view: &mut View, text: &str) {
        if !self.args.json {
            view.say(self.clock.instant(), text);
        }
    }
}
