//! Sources: what of this machine functions may hear, `[source.NAME]` in gateway.toml. A trigger names one; whoever installs the gateway
//! says what stands behind the name, so that a function that is deployed from afar reaches nothing else.
//!
//! One task per source, and only while a trigger names it, or a function may write to it. Each kind is a file beside this one, with its part of the config and a
//! function that runs it; what all of them need is an [`Outlet`].
//!
//! # Promises
//! - A source that several functions name runs once, and each of them gets each event that its trigger is for, once.
//! - What a source has not yet got rid of is bounded: it waits, and so does what it reads from.
//! - Troubles are counted, shown, and logged once a minute; the source comes back by itself.
//! - A reload leaves those alone that are as they were, and what a changed one has open can be taken over.

#[cfg(test)]
pub(super) mod tests;

use std::any::Any;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::actuators::{Actuators, Order};
use super::filter::{self, Filter};
use super::listener::{self, Listener};
use super::window::{self, Window};
use super::{Delivery, Refused, Submit};
use crate::clock::Clock;
use crate::config::{SourceConfig, TriggerKind};
use crate::event::{Event, Opened, new_id};
use crate::limits::Limits;
use crate::name::{FunctionName, SourceName};
use crate::receipt::{NotKept, Receipt};

/// How often the log tells of troubles.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// How soon a function that has no room is asked again.
const NO_ROOM: Duration = Duration::from_millis(20);
/// How long a source may take to end.
const STOP_PATIENCE: Duration = Duration::from_secs(3);
/// What became of an event of which nobody says so.
const ABANDONED: &str = "it was abandoned";
/// What each event under way counts beside its payload.
const EVENT_BYTES: usize = 1 << 10;

/// Who hears a source, arranged.
type Routes = Vec<Listener>;

/// What a source has open when it ends, for the one of its name that comes after it.
pub(crate) type Left = Box<dyn Any + Send>;

/// How a source stands. Counts are since it was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Its name in gateway.toml.
    pub name: SourceName,
    /// `process`, `tail`, …
    pub kind: String,
    /// Events that were taken from it.
    pub events: u64,
    /// How often something went wrong.
    pub troubles: u64,
    /// What is wrong now.
    pub trouble: Option<String>,
}

/// All that run.
pub(crate) struct Sources {
    submit: Arc<dyn Submit>,
    actuators: Actuators,
    state_dir: PathBuf,
    bytes_max: usize,
    line_bytes_max: usize,
    files_max: usize,
    writes_max: usize,
    clock: Clock,
    running: Mutex<BTreeMap<SourceName, Running>>,
}

struct Running {
    config: SourceConfig,
    board: Arc<Board>,
    stop: CancellationToken,
    task: JoinHandle<Option<Left>>,
}

#[derive(Default)]
struct Board {
    routes: RwLock<Routes>,
    events: AtomicU64,
    troubles: AtomicU64,
    trouble: Mutex<Trouble>,
}

impl Board {
    /// Whether any trigger names the source.
    fn is_heard(&self) -> bool {
        !self.routes.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

#[derive(Default)]
struct Trouble {
    now: Option<String>,
    told_at: Option<Instant>,
    /// Whether the log has one that it does not know to be over.
    is_told: bool,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.running().keys()).finish()
    }
}

impl Sources {
    /// None yet. What they must know after a restart is kept in `state_dir`.
    pub(crate) fn new(
        submit: Arc<dyn Submit>,
        actuators: Actuators,
        state_dir: &Path,
        limits: &Limits,
        clock: Clock,
    ) -> Self {
        let bytes_max = usize::try_from(limits.source_bytes_max.0).unwrap_or(usize::MAX);
        let line_bytes_max = usize::try_from(limits.source_line_bytes_max.0).unwrap_or(usize::MAX);
        let state_dir = state_dir.join("sources");
        let (files_max, writes_max) = (limits.source_files_max, limits.source_writes_max);
        let running = Mutex::default();
        Self { submit, actuators, state_dir, bytes_max, line_bytes_max, files_max, writes_max, clock, running }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, BTreeMap<SourceName, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has those of `configs` run that `listeners` name, or that functions may write to, and no others.
    pub(crate) fn apply(
        &self,
        configs: &BTreeMap<SourceName, SourceConfig>,
        listeners: &[Listener],
        written: BTreeSet<SourceName>,
    ) {
        let mut routes: BTreeMap<SourceName, Routes> = written.into_iter().map(|name| (name, Routes::new())).collect();
        for listener in listeners {
            if let Some((_, source)) = listener.trigger.kind.source() {
                routes.entry(source.clone()).or_default().push(listener.clone());
            }
        }
        routes.values_mut().for_each(|routes| listener::arrange(routes));
        let mut running = self.running();
        let goes = |name: &SourceName, source: &mut Running| {
            let is_heard = routes.get(name).map(|routes| !routes.is_empty());
            configs.get(name) != Some(&source.config) || is_heard != Some(source.board.is_heard())
        };
        let mut before: BTreeMap<_, _> = running.extract_if(.., goes).collect();
        for (name, source) in &before {
            self.actuators.remove(name);
            source.stop.cancel();
        }
        for (name, routes) in routes {
            let Some(config) = configs.get(&name) else { continue };
            match running.get(&name) {
                Some(source) => *source.board.routes.write().unwrap_or_else(PoisonError::into_inner) = routes,
                None => {
                    let before = before.remove(&name).map(|source| source.task);
                    let started = self.start(&name, config.clone(), routes, before);
                    running.insert(name, started);
                }
            }
        }
    }

    /// `before`: the source that has this name until now.
    fn start(
        &self,
        name: &SourceName,
        config: SourceConfig,
        routes: Routes,
        before: Option<JoinHandle<Option<Left>>>,
    ) -> Running {
        let board = Arc::new(Board { routes: RwLock::new(routes), ..Board::default() });
        let stop = CancellationToken::new();
        let orders = config.takes_orders().then(|| self.actuators.add(name.clone(), self.writes_max));
        let outlet = Outlet {
            orders,
            before,
            source: format!("{}:{name}", config.kind()).into(),
            board: Arc::clone(&board),
            submit: Arc::clone(&self.submit),
            room: Arc::new(Semaphore::new(self.bytes_max)),
            bytes_max: self.bytes_max,
            line_bytes_max: self.line_bytes_max,
            files_max: self.files_max,
            state: self.state_dir.join(name.as_str()),
            clock: self.clock.clone(),
            stop: stop.clone(),
        };
        let task = tokio::spawn(config.clone().run(outlet));
        Running { config, board, stop, task }
    }

    /// Makes no more events. What functions set until [`Sources::stop`] is set.
    pub(crate) async fn hush(&self) {
        let ended = {
            let mut running = self.running();
            let ended: Vec<_> = running.extract_if(.., |_, source| !source.config.takes_orders()).collect();
            for source in running.values() {
                source.board.routes.write().unwrap_or_else(PoisonError::into_inner).clear();
            }
            ended
        };
        self.end(ended).await;
    }

    /// Lets go of ports, files and programs.
    pub(crate) async fn stop(&self) {
        let running = std::mem::take(&mut *self.running());
        self.end(running.into_iter().collect()).await;
    }

    async fn end(&self, sources: Vec<(SourceName, Running)>) {
        for (name, source) in &sources {
            self.actuators.remove(name);
            source.stop.cancel();
        }
        let all = futures_util::future::join_all(sources.into_iter().map(|(_, source)| source.task));
        // What is not done then ends with the process.
        let _ = timeout(STOP_PATIENCE, all).await;
    }

    /// How they stand, by name.
    pub(crate) fn status(&self) -> Vec<SourceStatus> {
        let running = self.running();
        let status = running.iter().map(|(name, source)| SourceStatus {
            name: name.clone(),
            kind: source.config.kind().to_owned(),
            events: source.board.events.load(Ordering::Relaxed),
            troubles: source.board.troubles.load(Ordering::Relaxed),
            trouble: source.board.trouble.lock().unwrap_or_else(PoisonError::into_inner).now.clone(),
        });
        status.collect()
    }
}

/// What a source has observed.
#[derive(Clone, Debug, Default)]
pub(super) struct Observed {
    /// CloudEvents `type`.
    pub(super) kind: &'static str,
    /// CloudEvents `subject`.
    pub(super) subject: Option<Arc<str>>,
    pub(super) content_type: Option<Arc<str>>,
    pub(super) attributes: Vec<(String, String)>,
    pub(super) data: Bytes,
}

/// A function that wants what was observed.
struct Wanted {
    function: FunctionName,
    /// One of which has to let it pass, when there are any.
    filters: Vec<Arc<Filter>>,
    /// Where it waits for more.
    window: Option<Arc<Window>>,
}

/// What was handed on, and is not known to be safe yet.
#[derive(Debug, Default)]
pub(super) struct Handed(VecDeque<oneshot::Receiver<Result<(), NotKept>>>);

impl Handed {
    /// Why something of it is not kept, as far as is known now. Forgets all that is known.
    #[cfg_attr(not(feature = "modbus"), expect(dead_code, reason = "no other kind asks"))]
    pub(super) fn failure(&mut self) -> Option<NotKept> {
        let mut failure = None;
        self.0.retain_mut(|waiting| match waiting.try_recv() {
            Err(oneshot::error::TryRecvError::Empty) => true,
            result => {
                failure = result.unwrap_or_else(|_| Err(NotKept::from(ABANDONED))).err().or(failure.take());
                false
            }
        });
        failure
    }

    /// Adds what was handed on with it.
    pub(super) fn add(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// How it went, once every function has committed or parked it.
    pub(super) async fn settled(&mut self) -> Result<(), NotKept> {
        while let Some(waiting) = self.0.front_mut() {
            let result = waiting.await;
            self.0.pop_front();
            result.unwrap_or_else(|_| Err(NotKept::from(ABANDONED)))?;
        }
        Ok(())
    }
}

/// Where a source's events go, and where it says how it stands.
pub(crate) struct Outlet {
    /// What functions want set, for a source that can.
    #[cfg_attr(
        not(any(feature = "modbus", feature = "gpio")),
        expect(dead_code, reason = "no other kind takes orders")
    )]
    pub(super) orders: Option<mpsc::Receiver<Order>>,
    /// The source that had this name until now, and is about to end.
    #[cfg_attr(not(feature = "gpio"), expect(dead_code, reason = "no other kind takes anything over"))]
    before: Option<JoinHandle<Option<Left>>>,
    source: Arc<str>,
    board: Arc<Board>,
    submit: Arc<dyn Submit>,
    /// Bytes of what is under way.
    room: Arc<Semaphore>,
    bytes_max: usize,
    /// Longest line of a source that has lines.
    pub(super) line_bytes_max: usize,
    /// Most files of a source that has files.
    pub(super) files_max: usize,
    /// The file of this source for what it must know after a restart.
    pub(super) state: PathBuf,
    pub(super) clock: Clock,
    stop: CancellationToken,
}

impl std::fmt::Debug for Outlet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Outlet").field(&self.source).finish()
    }
}

impl Outlet {
    /// Comes when the source is to end.
    pub(super) async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// What the source left that had this name until now, once it has ended.
    #[cfg(feature = "gpio")]
    pub(super) async fn left(&mut self) -> Option<Left> {
        self.before.take()?.await.ok().flatten()
    }

    /// The name of the source.
    pub(super) fn name(&self) -> &str {
        self.source.split_once(':').map_or(&self.source, |(_, name)| name)
    }

    /// Whether any trigger `is_for` something.
    pub(super) fn is_heard(&self, is_for: impl Fn(&TriggerKind) -> bool) -> bool {
        let routes = self.board.routes.read().unwrap_or_else(PoisonError::into_inner);
        routes.iter().any(|listener| is_for(&listener.trigger.kind))
    }

    /// Hands `observed` to each function, and waits until all have room for it. For sources that cannot hand it on once more, though they may
    /// have something newer to tell when it is not kept.
    pub(super) async fn tell(&self, observed: Observed) -> Handed {
        self.hand(observed, false, |_| true).await
    }

    /// Hands `observed` to each function with a trigger that it is for, and waits until all have room for it.
    pub(super) async fn hand_on(&self, observed: Observed, is_for: impl Fn(&TriggerKind) -> bool) -> Handed {
        self.hand(observed, true, is_for).await
    }

    /// `again`: whether what is not kept is handed on once more, so that what a filter leaves out must not be settled before that is known.
    async fn hand(&self, observed: Observed, again: bool, is_for: impl Fn(&TriggerKind) -> bool) -> Handed {
        self.board.events.fetch_add(1, Ordering::Relaxed);
        let bytes = (EVENT_BYTES + observed.data.len()).min(self.bytes_max);
        let functions = self.wanted(is_for);
        let event = Arc::new(Event {
            id: new_id(),
            source: Arc::clone(&self.source),
            kind: Cow::Borrowed(observed.kind),
            subject: observed.subject,
            time_ms: self.clock.now_ms(),
            content_type: observed.content_type,
            attributes: observed.attributes,
            data: observed.data,
            ..Event::default()
        });
        let opened = Opened::new(&event);
        let mut handed = VecDeque::with_capacity(functions.len());
        for Wanted { function, filters, window } in functions {
            let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
            // The semaphore is never closed.
            let Ok(room) = Arc::clone(&self.room).acquire_many_owned(permits).await else { break };
            let room = Arc::new(room);
            loop {
                let (settled, waiting) = oneshot::channel();
                let held = Arc::clone(&room);
                let receipt = Receipt::new(move |result| {
                    // Whoever waited may have ended.
                    let _ = settled.send(result);
                    drop(held);
                });
                let Some(receipt) = filter::admit(&filters, &opened, again, receipt) else {
                    handed.push_back(waiting);
                    break;
                };
                let to = (&function, window.as_deref());
                match window::hand_on(&*self.submit, to, (&event, &opened), Delivery::AtLeastOnce, receipt) {
                    Ok(()) => {
                        handed.push_back(waiting);
                        break;
                    }
                    Err(Refused::Full { .. }) => sleep(NO_ROOM).await,
                    // It goes, and its triggers with it.
                    Err(Refused::Unknown(_) | Refused::Stopping) => break,
                }
            }
        }
        Handed(handed)
    }

    /// Each function once that has a trigger which `is_for` something, and each of its windows, with the filters of these.
    fn wanted(&self, is_for: impl Fn(&TriggerKind) -> bool) -> Vec<Wanted> {
        let routes = self.board.routes.read().unwrap_or_else(PoisonError::into_inner);
        let wanted = listener::together(&routes).filter_map(|triggers| {
            let mut heard = triggers.iter().filter(|listener| is_for(&listener.trigger.kind)).peekable();
            heard.peek()?;
            let filters = filter::needed(heard.map(|listener| listener.filter.as_ref()));
            let Listener { function, window, .. } = &triggers[0];
            Some(Wanted { function: function.clone(), filters, window: window.clone() })
        });
        wanted.collect()
    }

    /// All is well.
    pub(super) fn well(&self) {
        let mut trouble = self.board.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if trouble.now.take().is_some() && std::mem::take(&mut trouble.is_told) {
            tracing::info!(source = %self.source, "the source is back");
        }
    }

    /// Something is wrong, until [`Outlet::well`].
    pub(super) fn trouble(&self, why: impl Into<String>) {
        let why = why.into();
        let is_told = self.note(&why);
        let mut trouble = self.board.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.is_told |= is_told;
        trouble.now = Some(why);
    }

    /// Something went wrong, and is over.
    pub(super) fn count(&self, why: &str) {
        self.note(why);
    }

    /// Counts, and logs unless it just did; gives whether it logged.
    fn note(&self, why: &str) -> bool {
        self.board.troubles.fetch_add(1, Ordering::Relaxed);
        let now = self.clock.instant();
        let mut trouble = self.board.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let tells = trouble.told_at.is_none_or(|told_at| now - told_at >= TELL_EVERY);
        if tells {
            trouble.told_at = Some(now);
            let times = self.board.troubles.load(Ordering::Relaxed);
            tracing::warn!(source = %self.source, times, "{why}");
        }
        tells
    }
}
