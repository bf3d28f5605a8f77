//! `window`: several events delivered as one, the same for every kind of trigger that has it.
//!
//! # Promises
//! - An event that waits for its window is on disk before its source hears that it is taken care of, and leaves the disk when every
//!   window that it is in was taken care of: a crash may deliver a window again, never lose an event.
//! - Each event is in one window at least, in the order in which they came; in exactly one when windows do not overlap.
//! - The same events make the same windows before and after a restart, with the same ids.
//! - Setting the clock neither ends a window nor keeps it open.
//! - What waits is bounded. At half of the bound the window that is open for longest ends early, and is counted.
//!
//! # On disk
//! One stream of the agent's own for each function: `~window.NAME`. What waits there is in memory too. It is read at the start, and
//! stays when the function goes from gateway.toml, until it is too old and a dead letter.

mod config;
mod gather;
mod inlet;
mod keeper;
#[cfg(test)]
mod random;
mod record;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use self::config::{Every, WindowConfig};
use self::gather::{Gather, Member};
use self::inlet::Inlet;
use self::keeper::{ADRIFT, Keeper};
use self::record::Waiting;
pub(crate) use self::record::check as check_stored;
use super::{Delivery, Refused, Submit};
use crate::clock::Clock;
use crate::config::TriggerConfig;
use crate::config::function::KeyPart;
use crate::event::{Event, Opened};
use crate::function::FunctionSpec;
use crate::journal::{Journal, Record};
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::name::{FunctionName, Own, StreamName};
use crate::receipt::Receipt;

/// CloudEvents `type` of a window.
pub const KIND: &str = "window.events";
/// Attribute of a window that tells what ended it: `count`, `time` or `early`.
pub const END_ATTRIBUTE: &str = "windowend";

/// How long an agent that stops may take to bring events to disk, and to let go of what was taken care of.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the events of one trigger wait for each other.
#[derive(Clone, Debug)]
pub struct Window {
    /// Tells it from those of the function's other triggers, over restarts too.
    id: u32,
    per: KeyPart,
    inlet: Arc<Inlet>,
}

impl Window {
    /// Brings an event to disk, where it waits for its window. `receipt` is kept then. Never waits.
    ///
    /// # Errors
    /// As [`Submit::submit`].
    pub fn put(&self, event: &Opened<'_>, receipt: Receipt) -> Result<(), Refused> {
        let hops = event.event().hops;
        match record::item(event) {
            Ok(item) => self.inlet.put(Waiting { window: self.id, key: self.key(event), hops, item }, receipt),
            // There is no event that JSON cannot hold.
            Err(error) => {
                receipt.fail(error.to_string());
                Ok(())
            }
        }
    }

    fn key(&self, event: &Opened<'_>) -> gather::Key {
        if let KeyPart::Pointer(pointer) = &self.per
            && let Some(text) = event.json().ok()?.pointer(pointer)?.as_str()
        {
            return Some(Bytes::copy_from_slice(text.as_bytes()));
        }
        Some(Bytes::copy_from_slice(&event.part(&self.per).ok()??))
    }
}

/// Hands `event` to `function`, or has it wait for its window.
///
/// # Errors
/// As [`Submit::submit`].
pub(crate) fn hand_on(
    to: &dyn Submit,
    (function, window): (&FunctionName, Option<&Window>),
    (event, opened): (&Arc<Event>, &Opened<'_>),
    delivery: Delivery,
    receipt: Receipt,
) -> Result<(), Refused> {
    match window {
        Some(window) => window.put(opened, receipt),
        None => to.submit(function, Arc::clone(event), delivery, receipt),
    }
}

/// The numbers of a function's triggers that have a window, and what these are. One that is changed, but for how long its windows are,
/// is another.
fn windows_of(triggers: &[TriggerConfig]) -> Vec<(usize, u32, &WindowConfig)> {
    let mut taken = BTreeSet::new();
    let with_window =
        triggers.iter().enumerate().filter_map(|(n, trigger)| Some((n, trigger, trigger.window.as_ref()?)));
    let all = with_window.map(|(n, trigger, window)| {
        let text = format!("{:?} {:?}", trigger.kind, window.per);
        let mut id = crc32c::crc32c(text.as_bytes());
        while !taken.insert(id) {
            id = id.wrapping_add(1);
        }
        (n, id, window)
    });
    all.collect()
}

/// The windows of all functions.
pub(crate) struct Windows {
    submit: Arc<dyn Submit>,
    journal: Arc<Journal>,
    metrics: Metrics,
    limits: Arc<Limits>,
    time: Time,
    functions: Mutex<Functions>,
}

/// Time as windows count it: from this start on as it passes, whatever the journal's own clock learns later of the time in which the
/// agent was off.
#[derive(Clone, Debug)]
struct Time {
    clock: Clock,
    /// What the journal's clock said at the start, and what the one that only ever advances did.
    age_ms: u64,
    steady_ms: u64,
}

impl Time {
    fn start(journal: &Journal, clock: Clock) -> Self {
        Self { age_ms: journal.age_ms(), steady_ms: clock.steady_ms(), clock }
    }

    fn age_ms(&self) -> u64 {
        self.age_ms + self.clock.steady_ms().saturating_sub(self.steady_ms)
    }
}

#[derive(Default)]
struct Functions {
    running: BTreeMap<FunctionName, Running>,
    /// Tasks of functions that were removed.
    ending: BTreeMap<FunctionName, JoinHandle<()>>,
}

/// Those of one function.
struct Running {
    inlet: Arc<Inlet>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl fmt::Debug for Windows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.lock().running.keys()).finish()
    }
}

impl Windows {
    /// None yet.
    pub(crate) fn new(
        submit: Arc<dyn Submit>,
        journal: Arc<Journal>,
        metrics: Metrics,
        limits: Arc<Limits>,
        clock: Clock,
    ) -> Self {
        let time = Time::start(&journal, clock);
        Self { submit, journal, metrics, limits, time, functions: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Functions> {
        self.functions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those of `specs`, and no others. What waits for a window that is no longer there is delivered as it is, and what waits for a
    /// function that is gone stays on disk until it is back.
    pub(crate) fn apply(&self, specs: &[Arc<FunctionSpec>]) {
        let left = self.on_disk();
        let mut functions = self.lock();
        let Functions { running, ending } = &mut *functions;
        ending.retain(|_, task| !task.is_finished());
        // One that has failed begins anew.
        let is_over = |name: &FunctionName, function: &mut Running| {
            function.task.is_finished() || !specs.iter().any(|spec| spec.name == *name)
        };
        for (name, function) in running.extract_if(.., is_over) {
            function.inlet.close();
            function.stop.cancel();
            ending.insert(name, function.task);
        }
        for spec in specs {
            let windows: BTreeMap<u32, WindowConfig> =
                windows_of(&spec.triggers).into_iter().map(|(_, id, window)| (id, window.clone())).collect();
            match running.get(&spec.name) {
                Some(function) => function.inlet.set_windows(windows),
                None if windows.is_empty() && !left.iter().any(|(name, _)| *name == spec.name) => {}
                None => {
                    let function = self.start(&spec.name, windows, ending.remove(&spec.name));
                    running.insert(spec.name.clone(), function);
                }
            }
        }
    }

    fn start(
        &self,
        name: &FunctionName,
        windows: BTreeMap<u32, WindowConfig>,
        before: Option<JoinHandle<()>>,
    ) -> Running {
        let metrics = self.metrics.function(name);
        let inlet = Arc::new(Inlet::new(&self.limits, Arc::clone(&metrics)));
        inlet.set_windows(windows);
        let stop = CancellationToken::new();
        let keeper = Keeper::new(
            name.clone(),
            Arc::clone(&inlet),
            (Arc::clone(&self.submit), Arc::clone(&self.journal)),
            metrics,
            (Arc::clone(&self.limits), self.time.clone()),
        );
        let task = tokio::spawn(keeper.run(before, stop.clone()));
        Running { inlet, stop, task }
    }

    /// Where the events of each trigger of `spec` wait, when it has a window.
    pub(crate) fn of(&self, spec: &FunctionSpec) -> Vec<Option<Arc<Window>>> {
        let mut all = vec![None; spec.triggers.len()];
        if let Some(function) = self.lock().running.get(&spec.name) {
            for (n, id, window) in windows_of(&spec.triggers) {
                let inlet = Arc::clone(&function.inlet);
                all[n] = Some(Arc::new(Window { id, per: window.per.clone(), inlet }));
            }
        }
        all
    }

    /// What has events on disk, and how many.
    fn on_disk(&self) -> Vec<(FunctionName, u64)> {
        let waiting = self.journal.own_status().into_iter().filter(|status| status.records > 0);
        waiting.filter_map(|status| Some((status.name.own_of(Own::Window)?, status.records))).collect()
    }

    /// Functions that are gone, and how many events of each wait on disk until they are back.
    pub(crate) fn unclaimed(&self) -> Vec<(FunctionName, u64)> {
        let on_disk = self.on_disk();
        let functions = self.lock();
        on_disk.into_iter().filter(|(name, _)| !functions.running.contains_key(name)).collect()
    }

    /// Takes no more events, and delivers no more windows. What has come is on disk, or its source keeps it.
    pub(crate) async fn hush(&self) {
        let inlets: Vec<_> = self.lock().running.values().map(|function| Arc::clone(&function.inlet)).collect();
        inlets.iter().for_each(|inlet| inlet.close());
        // What is not on disk then is given back at the end.
        let _ = timeout(PATIENCE, futures_util::future::join_all(inlets.iter().map(|inlet| inlet.until_empty()))).await;
    }

    /// Ends them, when the functions have ended: what these were handed is let go of, the rest waits on disk.
    pub(crate) async fn stop(&self) {
        let Functions { running, ending } = std::mem::take(&mut *self.lock());
        running.values().for_each(|function| function.stop.cancel());
        let tasks = running.into_values().map(|function| function.task).chain(ending.into_values());
        // What is not done then is delivered again after the next start.
        let _ = timeout(PATIENCE, futures_util::future::join_all(tasks)).await;
    }
}

/// Those of `records`, of a function that is gone, that came before `age_ms`: as windows that end early, each with the records that it
/// is made of.
pub(crate) fn overdue(
    function: &FunctionName,
    records: Vec<Record>,
    age_ms: u64,
    (limits, time_ms): (&Limits, u64),
) -> Vec<(Event, Vec<u64>)> {
    let (mut gathers, mut ended) = (BTreeMap::new(), Vec::new());
    for Record { sequence, data, .. } in records {
        let Some((waiting, came_ms)) = Waiting::decode(&data).filter(|(_, came_ms)| *came_ms < age_ms) else {
            continue;
        };
        let Waiting { window: id, key, hops, item } = waiting;
        let gather = gathers.entry(id).or_insert_with(|| Gather::new(&ADRIFT, limits));
        let windows = gather.add(key, Member { sequence, age_ms: came_ms, hops, item });
        ended.extend(windows.into_iter().map(|window| (id, window)));
    }
    for (id, gather) in &mut gathers {
        ended.extend(std::iter::from_fn(|| gather.end_oldest()).map(|window| (*id, window)));
    }
    let event = |(id, window): (u32, gather::Window)| {
        let members = gathers.get(&id)?.members(&window);
        let sequences = members.clone().map(|member| member.sequence).collect();
        Some((keeper::event(function, (id, &window), members, time_ms), sequences))
    };
    ended.into_iter().filter_map(event).collect()
}

/// The stream of a function's windows.
fn stream_of(function: &FunctionName) -> StreamName {
    StreamName::own(Own::Window, function.as_str())
}
