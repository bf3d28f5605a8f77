//! `schedule` triggers: events that the clock makes.
//!
//! # Promises
//! - `every` goes by monotonic time: setting the clock neither delays a tick nor makes one more.
//! - `cron` goes by wall time: a clock that is set forward past ticks makes one for all of them, within [`LOOK`]; one that is
//!   set back repeats no tick, unless by more than [`LOOK`], when times that come again count again.
//! - Ticks never pile up: what fell into a time when the agent could not run is skipped, or with `missed = "once"` made up
//!   for by one tick.
//! - With `missed = "once"` a tick may be repeated after a power cut, never lost; and a gateway that starts before its clock is
//!   set makes up for nothing that was done.
//!
//! # On disk
//! For `missed = "once"` only: `schedules/FUNCTION.HASH` in the state folder holds the Unix time in milliseconds of the last
//! tick that was settled, and a line break, by which it is known to be whole. A new file is on disk before it takes the place of
//! the old one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use croner::Cron;
use croner::parser::{CronParser, Seconds};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use serde_json::json;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::warn;

use super::last_tick::{LastTick, file_name, write};
use super::{Delivery, Submit};
use crate::clock::Clock;
use crate::config::ScheduleTrigger;
use crate::config::function::Missed;
use crate::event::{Event, new_id};
use crate::name::FunctionName;
use crate::receipt::Receipt;

/// How often a `cron` schedule looks at the clock, so that one that was set is noticed.
pub const LOOK: Duration = Duration::from_secs(30);
/// Shorter than this is a busy loop, not a schedule.
const EVERY_MIN: Duration = Duration::from_millis(10);

/// Why a schedule was refused.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// Both or none.
    #[error("a schedule has either `every` or `cron`")]
    Kind,
    /// `every` is too short.
    #[error("`every = \"{0}\"` is too short: a schedule ticks every 10ms at most")]
    TooShort(crate::units::Span),
    /// A zone without wall time.
    #[error("`time_zone` goes with `cron`: `every` does not depend on the time of day")]
    ZoneWithEvery,
    /// The expression is malformed.
    #[error(
        "`cron = \"{cron}\"` is not a schedule: {why}\n\nhint: it has six fields, second minute hour day month weekday: `0 */5 * * * *` is every five minutes"
    )]
    Cron {
        /// As it was written.
        cron: String,
        /// What is wrong with it.
        why: String,
    },
    /// No such zone.
    #[error(
        "`time_zone = \"{zone}\"` is not known: {source}\n\nhint: write an IANA name such as `Europe/Berlin`; the machine must have them (Debian's package `tzdata`)"
    )]
    Zone {
        /// As it was written.
        zone: String,
        /// Why not.
        source: jiff::Error,
    },
}

/// A schedule that was checked.
#[derive(Clone, Debug)]
pub struct Schedule {
    plan: Plan,
    missed: Missed,
}

#[derive(Clone, Debug)]
enum Plan {
    Every(Duration),
    Cron(Box<Cron>, TimeZone),
}

impl Schedule {
    /// Checks what the config says.
    ///
    /// # Errors
    /// When it says too little, too much, or what cannot be.
    pub fn parse(config: &ScheduleTrigger) -> Result<Self, ScheduleError> {
        let plan = match (&config.every, &config.cron) {
            (Some(_), None) if config.time_zone.is_some() => return Err(ScheduleError::ZoneWithEvery),
            (Some(every), None) if every.0 < EVERY_MIN => return Err(ScheduleError::TooShort(*every)),
            (Some(every), None) => Plan::Every(every.0),
            (None, Some(text)) => {
                let malformed = |why: String| ScheduleError::Cron { cron: text.clone(), why };
                let parser = CronParser::builder().seconds(Seconds::Required).build();
                let cron = parser.parse(text).map_err(|error| malformed(error.to_string()))?;
                let zone = match &config.time_zone {
                    Some(name) => {
                        TimeZone::get(name).map_err(|source| ScheduleError::Zone { zone: name.clone(), source })?
                    }
                    None => TimeZone::system(),
                };
                let plan = Plan::Cron(Box::new(cron), zone);
                // Such as the 30th of February.
                if plan.next_after(Timestamp::UNIX_EPOCH.as_millisecond().unsigned_abs()).is_none() {
                    return Err(malformed("there is no such day".to_owned()));
                }
                plan
            }
            _ => return Err(ScheduleError::Kind),
        };
        Ok(Self { plan, missed: config.missed })
    }
}

impl Plan {
    /// The first tick after `ms`.
    fn next_after(&self, ms: u64) -> Option<u64> {
        match self {
            Self::Every(every) => ms.checked_add(millis(*every)),
            Self::Cron(cron, zone) => unix_ms(&cron.find_next_occurrence(&zoned(ms, zone)?, false).ok()?),
        }
    }

    /// The tick that a start at `now_ms` has to make up for, when the last one was at `last_ms`.
    fn missed(&self, last_ms: u64, now_ms: u64) -> Option<u64> {
        let first = self.next_after(last_ms).filter(|first| *first <= now_ms)?;
        match self {
            Self::Every(every) => Some(first + (now_ms - first) / millis(*every) * millis(*every)),
            Self::Cron(cron, zone) => unix_ms(&cron.find_previous_occurrence(&zoned(now_ms, zone)?, true).ok()?),
        }
    }
}

fn zoned(ms: u64, zone: &TimeZone) -> Option<Zoned> {
    Some(Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok()?.to_zoned(zone.clone()))
}

fn unix_ms(time: &Zoned) -> Option<u64> {
    u64::try_from(time.timestamp().as_millisecond()).ok()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The schedules of all functions.
pub struct Schedules {
    submit: Arc<dyn Submit>,
    folder: PathBuf,
    clock: Clock,
    running: HashMap<(FunctionName, ScheduleTrigger), JoinHandle<()>>,
}

impl std::fmt::Debug for Schedules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.running.keys()).finish()
    }
}

impl Schedules {
    /// None yet. What `missed = "once"` needs to know is kept in `state_dir`.
    pub fn new(submit: Arc<dyn Submit>, state_dir: &Path, clock: Clock) -> Self {
        Self { submit, folder: state_dir.join("schedules"), clock, running: HashMap::new() }
    }

    /// Has exactly these run from now on; those that ran already go on undisturbed.
    ///
    /// # Errors
    /// When one of them is wrong; then nothing was changed.
    pub fn apply(
        &mut self,
        triggers: impl IntoIterator<Item = (FunctionName, ScheduleTrigger)>,
    ) -> Result<(), ScheduleError> {
        let wanted: Vec<_> = triggers.into_iter().collect();
        let checked = wanted.iter().map(|(_, trigger)| Schedule::parse(trigger)).collect::<Result<Vec<_>, _>>()?;
        self.running.retain(|key, task| {
            let keep = wanted.contains(key);
            if !keep {
                task.abort();
            }
            keep
        });
        for (key, schedule) in wanted.iter().zip(checked) {
            if !self.running.contains_key(key) {
                let file = (schedule.missed == Missed::Once).then(|| self.folder.join(file_name(key)));
                let (function, submit) = (key.0.clone(), Arc::clone(&self.submit));
                let ticker = Ticker { function, plan: schedule.plan, submit, file, clock: self.clock.clone() };
                self.running.insert(key.clone(), tokio::spawn(ticker.run()));
            }
        }
        self.forget_others(&wanted);
        Ok(())
    }

    /// Makes no more ticks.
    pub fn stop(self) {
        self.running.into_values().for_each(|task| task.abort());
    }

    fn forget_others(&self, wanted: &[(FunctionName, ScheduleTrigger)]) {
        let names: Vec<_> =
            wanted.iter().filter(|(_, trigger)| trigger.missed == Missed::Once).map(file_name).collect();
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if !names.iter().any(|name| entry.file_name() == name.as_str()) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

struct Ticker {
    function: FunctionName,
    plan: Plan,
    submit: Arc<dyn Submit>,
    /// Where the last tick is kept, for `missed = "once"`.
    file: Option<PathBuf>,
    clock: Clock,
}

impl Ticker {
    async fn run(self) {
        let start_ms = self.clock.now_ms();
        let mut last_ms = start_ms;
        let mut ahead_ms = None;
        if let Some(file) = &self.file {
            match LastTick::read(file).await {
                LastTick::At(kept_ms) if kept_ms <= start_ms => last_ms = kept_ms,
                // The clock was ahead then, or is not set yet now: that shows when it comes to that time.
                LastTick::At(kept_ms) => ahead_ms = Some(kept_ms),
                LastTick::None => write(file, start_ms).await,
                LastTick::Damaged => {
                    warn!(file = %file.display(), "the time of the last tick is not readable: one is made up for");
                    self.tick(start_ms);
                }
            }
            if let Some(due_ms) = self.plan.missed(last_ms, start_ms) {
                self.tick(due_ms);
                last_ms = start_ms;
            }
        }
        match &self.plan {
            Plan::Every(every) => {
                let wait = every.saturating_sub(Duration::from_millis(start_ms.saturating_sub(last_ms)));
                self.run_every(*every, wait).await;
            }
            Plan::Cron(..) => self.run_cron(start_ms, ahead_ms).await,
        }
    }

    async fn run_every(&self, every: Duration, first: Duration) {
        let mut ticks = tokio::time::interval_at(self.clock.instant() + first, every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            self.tick(self.clock.now_ms());
        }
    }

    /// Makes the ticks after `start_ms`; the one at `ahead_ms` was made before.
    async fn run_cron(&self, start_ms: u64, mut ahead_ms: Option<u64>) {
        let (mut seen_ms, mut after_ms) = (start_ms, start_ms);
        while let Some(due_ms) = self.plan.next_after(after_ms) {
            loop {
                let now_ms = self.clock.now_ms();
                if now_ms + millis(LOOK) < seen_ms {
                    after_ms = now_ms;
                    seen_ms = now_ms;
                    break;
                }
                seen_ms = now_ms;
                if let Some(done_ms) = ahead_ms.take_if(|ahead_ms| now_ms >= *ahead_ms) {
                    after_ms = after_ms.max(done_ms);
                    break;
                }
                if now_ms >= due_ms {
                    self.tick(due_ms);
                    after_ms = now_ms;
                    break;
                }
                tokio::time::sleep(Duration::from_millis(due_ms - now_ms).min(LOOK)).await;
            }
        }
    }

    /// Makes the event. Once it is settled, a restart need not make up for it.
    fn tick(&self, scheduled_ms: u64) {
        let event = Event {
            id: new_id(),
            source: format!("schedule:{}", self.function).into(),
            kind: "schedule.tick".into(),
            time_ms: self.clock.now_ms(),
            content_type: Some("application/json".into()),
            data: json!({ "scheduled_ms": scheduled_ms, "function": self.function }).to_string().into(),
            ..Event::default()
        };
        let (settled, done) = oneshot::channel();
        let receipt = Receipt::new(move |result| {
            let _ = settled.send(result);
        });
        if let Err(refused) = self.submit.submit(&self.function, Arc::new(event), Delivery::AtLeastOnce, receipt) {
            warn!(function = %self.function, %refused, "a tick was dropped");
        } else if let Some(file) = self.file.clone() {
            tokio::spawn(async move {
                if let Ok(Ok(())) = done.await {
                    write(&file, scheduled_ms).await;
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::super::Refused;
    use super::*;
    use crate::units::Span;

    /// 2026-03-29 00:00:00 UTC; in Berlin summer time begins at 01:00 UTC.
    const MIDNIGHT_MS: u64 = 1_774_742_400_000;
    const HOUR_MS: u64 = 3_600_000;

    struct Inbox(mpsc::UnboundedSender<(Arc<Event>, Receipt)>);

    impl Submit for Inbox {
        fn submit(&self, _: &FunctionName, event: Arc<Event>, _: Delivery, receipt: Receipt) -> Result<(), Refused> {
            self.0.send((event, receipt)).map_err(|_| Refused::Stopping)
        }
    }

    struct Site {
        schedules: Schedules,
        events: mpsc::UnboundedReceiver<(Arc<Event>, Receipt)>,
        clock: Clock,
    }

    fn site(folder: &Path, now_ms: u64) -> Site {
        let (sender, events) = mpsc::unbounded_channel();
        let clock = Clock::held_at(now_ms);
        Site { schedules: Schedules::new(Arc::new(Inbox(sender)), folder, clock.clone()), events, clock }
    }

    impl Site {
        fn run(&mut self, trigger: &ScheduleTrigger) {
            self.schedules.apply([(FunctionName::parse("mean").unwrap(), trigger.clone())]).unwrap();
        }

        async fn tick(&mut self) -> (Arc<Event>, u64) {
            let (event, receipt) =
                tokio::time::timeout(Duration::from_secs(20), self.events.recv()).await.unwrap().unwrap();
            receipt.keep();
            let payload: serde_json::Value = serde_json::from_slice(&event.data).unwrap();
            assert_eq!(payload["function"], "mean");
            (event, payload["scheduled_ms"].as_u64().unwrap())
        }

        async fn quiet(&mut self) {
            assert!(tokio::time::timeout(Duration::from_millis(100), self.events.recv()).await.is_err());
        }

        /// Once that tick is kept.
        async fn stop(self, folder: &Path, trigger: &ScheduleTrigger, ms: u64) {
            let file = last_tick(folder, trigger);
            while !matches!(LastTick::read(&file).await, LastTick::At(kept_ms) if kept_ms == ms) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            self.schedules.stop();
        }
    }

    fn every(text: &str) -> ScheduleTrigger {
        ScheduleTrigger { every: Some(Span::parse(text).unwrap()), cron: None, time_zone: None, missed: Missed::Skip }
    }

    fn cron(text: &str, zone: &str) -> ScheduleTrigger {
        ScheduleTrigger { every: None, cron: Some(text.into()), time_zone: Some(zone.into()), missed: Missed::Skip }
    }

    fn next(trigger: &ScheduleTrigger, after_ms: u64) -> u64 {
        Schedule::parse(trigger).unwrap().plan.next_after(after_ms).unwrap()
    }

    #[tokio::test]
    async fn every_ticks_on_while_the_clock_stands_still() {
        let folder = tempfile::tempdir().unwrap();
        let mut site = site(folder.path(), MIDNIGHT_MS);
        site.run(&every("20ms"));
        for _ in 0..3 {
            let (event, _) = site.tick().await;
            assert_eq!((&*event.source, &*event.kind), ("schedule:mean", "schedule.tick"));
        }
        site.schedules.stop();
        assert!(!folder.path().join("schedules").exists());
    }

    #[tokio::test]
    async fn a_schedule_that_did_not_change_goes_on_undisturbed() {
        let folder = tempfile::tempdir().unwrap();
        let mut site = site(folder.path(), MIDNIGHT_MS);
        site.run(&every("150ms"));
        for _ in 0..30 {
            site.run(&every("150ms"));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(site.events.try_recv().is_ok());
        site.schedules.apply([]).unwrap();
        while site.events.try_recv().is_ok() {}
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(site.events.try_recv().is_err());
    }

    #[tokio::test]
    async fn cron_follows_the_clock_when_it_is_set() {
        let folder = tempfile::tempdir().unwrap();
        let mut site = site(folder.path(), MIDNIGHT_MS - 20);
        site.run(&cron("0 0 * * * *", "UTC"));
        site.quiet().await;
        site.clock.set(MIDNIGHT_MS + 5);
        assert_eq!(site.tick().await.1, MIDNIGHT_MS);
        site.quiet().await;
    }

    #[test]
    fn cron_goes_by_the_zone_and_its_summer_time() {
        let daily = cron("0 30 6 * * *", "Europe/Berlin");
        assert_eq!(next(&daily, MIDNIGHT_MS - 24 * HOUR_MS), MIDNIGHT_MS - 24 * HOUR_MS + 5 * HOUR_MS + HOUR_MS / 2);
        assert_eq!(next(&daily, MIDNIGHT_MS), MIDNIGHT_MS + 4 * HOUR_MS + HOUR_MS / 2);
        assert_eq!(next(&cron("*/10 * * * * *", "UTC"), MIDNIGHT_MS), MIDNIGHT_MS + 10_000);
    }

    #[tokio::test]
    async fn missed_ticks_are_made_up_for_by_one_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let once = ScheduleTrigger { missed: Missed::Once, ..cron("0 0 * * * *", "UTC") };
        let mut before = site(folder.path(), MIDNIGHT_MS + 1);
        before.run(&once);
        before.stop(folder.path(), &once, MIDNIGHT_MS + 1).await;
        let mut after = site(folder.path(), MIDNIGHT_MS + 5 * HOUR_MS + 7);
        after.run(&once);
        assert_eq!(after.tick().await.1, MIDNIGHT_MS + 5 * HOUR_MS);
        after.stop(folder.path(), &once, MIDNIGHT_MS + 5 * HOUR_MS).await;

        let mut again = site(folder.path(), MIDNIGHT_MS + 5 * HOUR_MS + 9);
        again.run(&once);
        again.quiet().await;
        again.schedules.apply([]).unwrap();
        assert_eq!(std::fs::read_dir(folder.path().join("schedules")).unwrap().count(), 0);

        let mut skipping = site(folder.path(), MIDNIGHT_MS + 9 * HOUR_MS + 9);
        skipping.run(&cron("0 0 * * * *", "UTC"));
        skipping.quiet().await;
    }

    #[tokio::test]
    async fn a_tick_that_was_not_settled_is_made_up_for() {
        let folder = tempfile::tempdir().unwrap();
        let once = ScheduleTrigger { missed: Missed::Once, ..every("1h") };
        let mut first = site(folder.path(), MIDNIGHT_MS);
        first.run(&once);
        first.stop(folder.path(), &once, MIDNIGHT_MS).await;
        for _ in 0..2 {
            let mut crashes = site(folder.path(), MIDNIGHT_MS + 2 * HOUR_MS);
            crashes.run(&once);
            crashes.events.recv().await.unwrap().1.fail("killed");
            crashes.quiet().await;
        }
    }

    fn last_tick(folder: &Path, trigger: &ScheduleTrigger) -> PathBuf {
        folder.join("schedules").join(file_name(&(FunctionName::parse("mean").unwrap(), trigger.clone())))
    }

    /// Waits longer than a schedule looks away from its clock. Time is paused, so it takes none.
    async fn look(site: &mut Site) -> Option<u64> {
        let (event, receipt) = tokio::time::timeout(LOOK * 3, site.events.recv()).await.ok()??;
        receipt.keep();
        serde_json::from_slice::<serde_json::Value>(&event.data).unwrap()["scheduled_ms"].as_u64()
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_jumps_makes_neither_a_storm_nor_a_silence() {
        let folder = tempfile::tempdir().unwrap();
        let once = ScheduleTrigger { missed: Missed::Once, ..cron("0 0 * * * *", "UTC") };
        let mut site = site(folder.path(), MIDNIGHT_MS + 1);
        site.run(&once);
        assert_eq!(look(&mut site).await, None);
        // A year forward, with 8,760 ticks in it.
        let later_ms = MIDNIGHT_MS + 365 * 24 * HOUR_MS;
        site.clock.set(later_ms + 7);
        assert!(look(&mut site).await.is_some());
        assert_eq!(look(&mut site).await, None);
        // And back: the next hour counts, not the one a year from now.
        site.clock.set(MIDNIGHT_MS + HOUR_MS / 2);
        assert_eq!(look(&mut site).await, None);
        site.clock.set(MIDNIGHT_MS + HOUR_MS + 3);
        assert_eq!(look(&mut site).await, Some(MIDNIGHT_MS + HOUR_MS));
        assert_eq!(look(&mut site).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_restart_under_a_clock_that_was_set_back_is_not_silent() {
        let folder = tempfile::tempdir().unwrap();
        let once = ScheduleTrigger { missed: Missed::Once, ..cron("0 0 * * * *", "UTC") };
        std::fs::create_dir(folder.path().join("schedules")).unwrap();
        let ahead_ms = MIDNIGHT_MS + 365 * 24 * HOUR_MS;
        std::fs::write(last_tick(folder.path(), &once), format!("{ahead_ms}\n")).unwrap();
        let mut site = site(folder.path(), MIDNIGHT_MS + 1);
        site.run(&once);
        assert_eq!(look(&mut site).await, None);
        site.clock.set(MIDNIGHT_MS + HOUR_MS);
        assert_eq!(look(&mut site).await, Some(MIDNIGHT_MS + HOUR_MS));
    }

    /// A board without a battery begins in 1970, and learns the time after a while.
    #[tokio::test(start_paused = true)]
    async fn a_gateway_that_starts_before_its_clock_is_set_repeats_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let once = ScheduleTrigger { missed: Missed::Once, ..cron("0 0 * * * *", "UTC") };
        let mut before = site(folder.path(), MIDNIGHT_MS - 1);
        before.run(&once);
        assert_eq!(look(&mut before).await, None);
        before.clock.set(MIDNIGHT_MS + 1);
        assert_eq!(look(&mut before).await, Some(MIDNIGHT_MS));
        assert_eq!(look(&mut before).await, None);
        before.schedules.stop();

        let mut quick = site(folder.path(), 1_000);
        quick.run(&once);
        assert_eq!(look(&mut quick).await, None);
        quick.clock.set(MIDNIGHT_MS + 60_000);
        assert_eq!(look(&mut quick).await, None, "nothing was missed");
        quick.schedules.stop();

        let mut slow = site(folder.path(), 1_000);
        slow.run(&once);
        assert_eq!(look(&mut slow).await, None);
        slow.clock.set(MIDNIGHT_MS + 3 * HOUR_MS + 60_000);
        assert!(look(&mut slow).await.is_some());
        assert_eq!(look(&mut slow).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_power_cut_that_costs_the_file_costs_no_tick() {
        let folder = tempfile::tempdir().unwrap();
        let once = ScheduleTrigger { missed: Missed::Once, ..cron("0 0 * * * *", "UTC") };
        let mut first = site(folder.path(), MIDNIGHT_MS + 1);
        first.run(&once);
        assert_eq!(look(&mut first).await, None);
        first.schedules.stop();
        for torn in ["", "17747", "\0\0\0\0"] {
            std::fs::write(last_tick(folder.path(), &once), torn).unwrap();
            let mut again = site(folder.path(), MIDNIGHT_MS + 5 * HOUR_MS);
            again.run(&once);
            assert!(look(&mut again).await.is_some(), "{torn:?}");
            assert_eq!(look(&mut again).await, None);
            again.schedules.stop();
        }
        // It was written anew, whole.
        let mut last = site(folder.path(), MIDNIGHT_MS + 5 * HOUR_MS + 1);
        last.run(&once);
        assert_eq!(look(&mut last).await, None);
    }

    #[test]
    fn every_missed_tick_counts_from_the_last() {
        let plan = Plan::Every(Duration::from_secs(10));
        assert_eq!(plan.missed(1_000, 10_999), None);
        assert_eq!(plan.missed(1_000, 11_000), Some(11_000));
        assert_eq!(plan.missed(1_000, 45_000), Some(41_000));
    }

    #[test]
    fn what_cannot_be_is_refused_with_a_hint() {
        let both = ScheduleTrigger { every: Some(Span::from_secs(1)), ..cron("0 0 * * * *", "UTC") };
        let zone = ScheduleTrigger { time_zone: Some("UTC".into()), ..every("1s") };
        for (wrong, expected) in [
            (both, "either `every` or `cron`"),
            (zone, "`time_zone` goes with `cron`"),
            (every("1ms"), "too short"),
            (cron("*/5 * * * *", "UTC"), "it has six fields"),
            (cron("0 0 0 30 2 *", "UTC"), "hint: "),
            (cron("0 0 25 * * *", "UTC"), "hint: "),
            (cron("0 0 * * * *", "Europe/Atlantis"), "IANA name"),
        ] {
            let error = Schedule::parse(&wrong).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
