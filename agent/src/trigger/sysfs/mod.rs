//! `sysfs` sources: what the sensors of this machine say, at a rate.
//!
//! # Promises
//! - Each sensor is read once in each interval, and nothing happens in between. When functions do not keep up, intervals are left out.
//! - One that cannot be read, or says what is no number, is counted, and the others go on. Those that go and come back are noticed at the
//!   next interval.
//! - With `above` or `below` an event comes when a value crosses it, and when it is back by `hysteresis`: at least once, over restarts and
//!   while the sensor is away. Which values are beyond is in `sources/NAME` of the state folder: before an event is told that it is told, so that
//!   a restart tells it again, and once it is safe what it said.

mod sensor;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval};

use self::sensor::Reading;
use super::kept;
use super::source::{Handed, Observed, Outlet};
use crate::config::{Document, join, keys, words};
use crate::units::Span;

/// CloudEvents `type` of a value, where there are no thresholds.
pub const KIND: &str = "sysfs.value";
/// Files of one source; more would be a mistake in a pattern.
const SENSORS_MAX: usize = 1_000;
/// The shortest interval.
const EVERY_MIN: Duration = Duration::from_millis(10);

/// `sysfs = { preset = "thermal", every = "10s" }` or `{ files = ["/sys/…/temp"], scale = 0.001, unit = "°C" }`.
#[derive(Clone, Debug, PartialEq)]
pub struct SysfsSource {
    /// Sensors whose names and units are known.
    pub preset: Option<Preset>,
    /// Files of others, with `*` and `?` in their names.
    pub files: Vec<PathBuf>,
    /// Where `/sys` is, for presets.
    pub root: PathBuf,
    /// How often they are read.
    pub every: Span,
    /// What one unit of a file means.
    pub scale: f64,
    /// What is added before that.
    pub offset: f64,
    /// In which unit that is.
    pub unit: Option<String>,
    /// Events come when a value is above this.
    pub above: Option<f64>,
    /// Or below this.
    pub below: Option<f64>,
    /// How far it must be back.
    pub hysteresis: f64,
}

keys! { SysfsSource:
    preset = optional(),
    files = or(Vec::new()),
    root = or(PathBuf::from("/sys")),
    every = or(Span::from_secs(10)),
    scale = or(1.0),
    offset = or(0.0),
    unit = optional(),
    above = optional(),
    below = optional(),
    hysteresis = or(0.0),
}

/// `preset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// `/sys/class/thermal`: temperatures of processor and board.
    Thermal,
    /// `/sys/class/hwmon`: temperatures, voltages, currents, fans, … of chips.
    Hwmon,
    /// `/sys/bus/iio`: sensors at I2C, SPI and analogue inputs.
    Iio,
}

words! { Preset: "thermal" = Self::Thermal, "hwmon" = Self::Hwmon, "iio" = Self::Iio }

/// Where a value is between the thresholds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    #[default]
    Normal,
    Above,
    Below,
    /// An event is told, and not known to be safe: differs from each other level.
    Unsure,
}

impl Level {
    const fn kind(self) -> &'static str {
        match self {
            Self::Normal | Self::Unsure => "sysfs.normal",
            Self::Above => "sysfs.above",
            Self::Below => "sysfs.below",
        }
    }
}

/// What is known of the sensors.
#[derive(Debug, Default)]
struct Known {
    /// Those that were there when they were read last.
    present: BTreeSet<PathBuf>,
    /// Those that are not normal.
    beyond: BTreeMap<PathBuf, Level>,
    /// What the file says.
    kept: BTreeMap<PathBuf, Level>,
    under_way: Handed,
}

impl Known {
    /// What the last run knew; nothing when its file is damaged, so that what is beyond is told once more.
    async fn read(outlet: &Outlet) -> Self {
        let line = kept::read(&outlet.state).await.ok().flatten().unwrap_or_default();
        let kept: BTreeMap<_, _> = serde_json::from_str(&line).unwrap_or_default();
        Self { beyond: kept.clone(), kept, ..Self::default() }
    }

    fn level(&self, file: &Path) -> Level {
        self.beyond.get(file).copied().unwrap_or_default()
    }

    /// Events of `files` are about to be told.
    async fn tells(&mut self, files: impl Iterator<Item = &PathBuf>, outlet: &Outlet) {
        let mut unsure = self.kept.clone();
        unsure.extend(files.map(|file| (file.clone(), Level::Unsure)));
        if unsure != self.kept {
            self.write(unsure, outlet).await;
        }
    }

    async fn write(&mut self, levels: BTreeMap<PathBuf, Level>, outlet: &Outlet) {
        // Paths of sensors are text.
        let written = match serde_json::to_string(&levels) {
            Ok(line) => kept::write(&outlet.state, &line).await,
            Err(error) => Err(error.into()),
        };
        match written {
            Ok(()) => self.kept = levels,
            Err(error) => outlet.count(&format!("a restart may repeat, or forget, what is beyond: {error}")),
        }
    }

    /// `handed` told that the value of `file` is at `level`.
    fn told(&mut self, file: PathBuf, level: Level, handed: Handed) {
        self.under_way.add(handed);
        match level {
            Level::Normal => drop(self.beyond.remove(&file)),
            level => drop(self.beyond.insert(file, level)),
        }
        if self.beyond.len() > SENSORS_MAX {
            self.beyond.retain(|file, _| self.present.contains(file));
        }
    }

    /// Has the file say what events have said that are safe by now. One that was not taken is told again.
    async fn keep(&mut self, outlet: &Outlet) {
        match self.under_way.settled().now_or_never() {
            Some(Ok(())) if self.beyond != self.kept => self.write(self.beyond.clone(), outlet).await,
            Some(Ok(())) | None => {}
            Some(Err(why)) => {
                outlet.count(&format!("what is beyond is told again: {why}"));
                self.under_way = Handed::default();
                self.beyond.clone_from(&self.kept);
            }
        }
    }
}

impl SysfsSource {
    pub(crate) fn check(&self, path: &str, document: &mut Document) {
        match (self.preset, self.files.is_empty()) {
            (Some(_), true) | (None, false) => {}
            (Some(_), false) => document.refuse_key(path, "it has both `preset` and `files`", "keep one of the two"),
            (None, true) => {
                let hint = "write for example `preset = \"thermal\"`, or `files = [\"/sys/class/thermal/*/temp\"]`";
                document.refuse_key(path, "it has neither `preset` nor `files`", hint);
            }
        }
        if self.preset.is_some() && (self.scale != 1.0 || self.offset != 0.0 || self.unit.is_some()) {
            let hint = "remove `scale`, `offset` and `unit`, or name the `files`";
            document.refuse_key(path, "a preset has units of its own", hint);
        }
        if self.every.0 < EVERY_MIN {
            let what = format!("{} is shorter than {}", self.every, Span(EVERY_MIN));
            document.refuse(&join(path, "every"), what, "write for example `every = \"10s\"`");
        }
        if self.hysteresis < 0.0 {
            document.refuse(
                &join(path, "hysteresis"),
                "it is less than nothing",
                "write for example `hysteresis = 2.0`",
            );
        }
        if let (Some(above), Some(below)) = (self.above, self.below)
            && below >= above
        {
            let what = format!("{below} is not less than `above`, {above}: no value could be normal");
            document.refuse(&join(path, "below"), what, "write a smaller one");
        }
    }

    /// Reads sensors until the source is stopped.
    pub(crate) async fn run(self, outlet: Outlet) {
        let mut ticks = interval(self.every.0);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let (source, mut known) = (Arc::new(self), Known::read(&outlet).await);
        let read = async {
            loop {
                ticks.tick().await;
                known.keep(&outlet).await;
                source.round(&outlet, &mut known).await;
            }
        };
        tokio::select! {
            () = outlet.stopped() => {}
            () = read => {}
        }
    }

    /// Reads each sensor once.
    async fn round(self: &Arc<Self>, outlet: &Outlet, known: &mut Known) {
        let source = Arc::clone(self);
        // A chip behind a slow bus takes its time.
        let read = tokio::task::spawn_blocking(move || {
            let files = sensor::find(&source, SENSORS_MAX);
            files.into_iter().map(|file| (sensor::read(&source, &file), file)).collect::<Vec<_>>()
        });
        let Ok(read) = read.await else { return };
        let mut trouble = read.is_empty().then(|| "there is no such sensor".to_owned());
        let present: BTreeSet<_> = read.iter().map(|(_, file)| file.clone()).collect();
        if let Some(gone) = known.present.difference(&present).next() {
            trouble.get_or_insert(format!("`{}` is gone", gone.display()));
        }
        known.present = present;
        let has_thresholds = self.above.is_some() || self.below.is_some();
        let mut crossings = Vec::new();
        for (reading, file) in read {
            match reading {
                Ok(reading) if has_thresholds => {
                    let before = known.level(&file);
                    let now = self.level(before, reading.value);
                    crossings.extend((now != before).then_some((file, now, reading)));
                }
                Ok(reading) => drop(outlet.tell(observed(KIND, &reading)).await),
                Err(why) if trouble.is_none() => trouble = Some(why),
                Err(why) => outlet.count(&why),
            }
        }
        known.tells(crossings.iter().map(|(file, ..)| file), outlet).await;
        for (file, now, reading) in crossings {
            let handed = outlet.hand_on(observed(now.kind(), &reading), |_| true).await;
            known.told(file, now, handed);
        }
        match trouble {
            Some(why) => outlet.trouble(why),
            None => outlet.well(),
        }
    }

    /// Where `value` is, after `before`: it stays beyond a threshold until it is back by the hysteresis.
    fn level(&self, before: Level, value: f64) -> Level {
        let slack = |level| if before == level { self.hysteresis } else { 0.0 };
        if self.above.is_some_and(|above| value > above - slack(Level::Above)) {
            Level::Above
        } else if self.below.is_some_and(|below| value < below + slack(Level::Below)) {
            Level::Below
        } else {
            Level::Normal
        }
    }
}

fn observed(kind: &'static str, reading: &Reading) -> Observed {
    #[derive(Serialize)]
    struct Payload<'a> {
        name: &'a str,
        value: f64,
        #[serde(skip_serializing_if = "Option::is_none")]
        unit: Option<&'a str>,
        file: Cow<'a, str>,
    }
    let Reading { file, name, unit, value } = reading;
    let payload = Payload { name, value: *value, unit: unit.as_deref(), file: file.to_string_lossy() };
    Observed {
        kind,
        subject: Some(name.as_str().into()),
        content_type: Some("application/json".into()),
        attributes: Vec::new(),
        // Texts and numbers always have a form in JSON.
        data: serde_json::to_vec(&payload).unwrap_or_default().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_back_when_it_is_so_by_the_hysteresis() {
        let source: SysfsSource =
            toml::from_str("preset = \"thermal\"\nabove = 80\nbelow = 5\nhysteresis = 3").unwrap();
        let mut level = Level::default();
        let values = [20.0, 80.0, 80.5, 79.0, 77.5, 77.0, 79.0, 4.0, 7.9, 8.0, 90.0, 1.0];
        let kinds: Vec<_> = values
            .iter()
            .map(|value| {
                level = source.level(level, *value);
                level
            })
            .collect();
        use Level::{Above as A, Below as B, Normal as N};
        assert_eq!(kinds, [N, N, A, A, A, N, N, B, B, N, A, B]);
    }
}
