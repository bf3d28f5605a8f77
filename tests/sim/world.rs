//! Time, and turns. Everything that the agent does happens on one thread, in tokio's paused time; its own threads (the
//! journal's) work only when it is their turn, while that one thread stands still. So one seed gives one order.
//!
//! When all tasks wait, each thread is asked whether it has something to do. What it has is then held back for as long as
//! the disk takes, which the plan decides; then the thread does it, and time moves on.

use std::collections::BTreeMap;
use std::fmt;
use std::panic;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread;
use std::time::Duration;

use tidegate::clock::Simulated;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

/// A turn that takes this long, of the machine's time, is one that never ends.
const STUCK: Duration = Duration::from_secs(30);

/// Wall time and what the disk is like: outlives the agent's lives.
#[derive(Debug)]
pub struct Weather {
    /// Since the beginning of the simulation.
    pub elapsed: Duration,
    /// Unix time in milliseconds of the beginning, moved when the clock is set.
    pub wall_ms: i64,
    /// How long the disk takes, in microseconds: between these.
    pub disk_us: (u64, u64),
    pub rng: fastrand::Rng,
    /// Turns of the journal that are left until the agent is killed: before the turn, or after it.
    pub kill: Option<(u64, Moment)>,
}

/// When a kill strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    BeforeTurn,
    AfterTurn,
}

/// One life of the agent.
pub struct Life {
    pub weather: Arc<Mutex<Weather>>,
    handle: OnceLock<Handle>,
    started: OnceLock<(Instant, Duration)>,
    seats: Mutex<Seats>,
    changed: Condvar,
    /// A thread has something to do.
    due: Notify,
    /// The agent is to be killed at once.
    pub killed: Notify,
}

#[derive(Default)]
struct Seats {
    by_name: BTreeMap<String, Seat>,
    /// The life is over: threads end as they like, nobody looks.
    free: bool,
}

struct Seat {
    state: Turn,
    until: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Works,
    Waits,
    Asked,
    HasWork,
    Ended,
}

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Life").finish_non_exhaustive()
    }
}

impl Life {
    /// A life, and the runtime that everything in it runs on.
    pub fn begin(weather: &Arc<Mutex<Weather>>) -> (Arc<Self>, Runtime) {
        let life = Arc::new(Self {
            weather: Arc::clone(weather),
            handle: OnceLock::new(),
            started: OnceLock::new(),
            seats: Mutex::default(),
            changed: Condvar::new(),
            due: Notify::new(),
            killed: Notify::new(),
        });
        let asks = Arc::downgrade(&life);
        let runtime = Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .max_blocking_threads(1)
            .on_thread_park(move || {
                if let Some(life) = asks.upgrade() {
                    life.ask();
                }
            })
            .build()
            .unwrap();
        life.handle.set(runtime.handle().clone()).unwrap();
        let elapsed = weather.lock().unwrap().elapsed;
        let _guard = runtime.enter();
        life.started.set((Instant::now(), elapsed)).unwrap();
        runtime.spawn(Arc::clone(&life).give_turns());
        drop(_guard);
        (life, runtime)
    }

    fn seats(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap()
    }

    /// Since the beginning of the simulation.
    pub fn elapsed(&self) -> Duration {
        let (start, before) = *self.started.get().unwrap();
        before + (self.instant() - start)
    }

    /// The life is over. Its threads run on without anyone who looks: what they do must not matter any more.
    pub fn end(&self) {
        self.weather.lock().unwrap().elapsed = self.elapsed();
        self.seats().free = true;
        self.changed.notify_all();
    }

    pub fn is_over(&self) -> bool {
        self.seats().free
    }

    /// Waits until `done`, on the thread that everything waits for.
    fn settle(&self, mut done: impl FnMut(&Seats) -> bool) {
        let (seats, waited) = self.changed.wait_timeout_while(self.seats(), STUCK, |seats| !done(seats)).unwrap();
        if waited.timed_out() {
            let states: Vec<_> = seats.by_name.iter().map(|(name, seat)| (name.clone(), seat.state)).collect();
            drop(seats);
            panic!("a thread of the agent does not end its turn: {states:?}");
        }
    }

    /// Asks each thread that waits whether it has something to do.
    fn ask(&self) {
        self.settle(|seats| seats.by_name.values().all(|seat| seat.state != Turn::Works));
        let mut any = false;
        let mut seats = self.seats();
        for seat in seats.by_name.values_mut() {
            if seat.state == Turn::Waits {
                seat.state = Turn::Asked;
                any = true;
            }
        }
        drop(seats);
        if any {
            self.changed.notify_all();
            self.settle(|seats| seats.by_name.values().all(|seat| seat.state != Turn::Asked));
        }
        if self.seats().by_name.values().any(|seat| seat.state == Turn::HasWork) {
            self.due.notify_one();
        }
    }

    /// Lets threads do what they have to do, one at a time, each when the disk has taken its time.
    async fn give_turns(self: Arc<Self>) {
        loop {
            let (next, until) = {
                let seats = self.seats();
                let next = seats.by_name.iter().find(|(_, seat)| seat.state == Turn::HasWork);
                let waits = seats.by_name.values().filter(|seat| seat.state == Turn::Waits);
                (next.map(|(name, _)| name.clone()), waits.filter_map(|seat| seat.until).min())
            };
            let Some(name) = next else {
                let now = Instant::now();
                if until.is_some_and(|until| until <= now) {
                    self.ask();
                    continue;
                }
                tokio::select! {
                    biased;
                    () = self.due.notified() => {}
                    () = async { match until { Some(until) => sleep_until(until).await, None => std::future::pending().await } } => {}
                }
                continue;
            };
            let wait = {
                let mut weather = self.weather.lock().unwrap();
                let (least, most) = weather.disk_us;
                Duration::from_micros(weather.rng.u64(least..=most))
            };
            sleep(wait).await;
            if self.strikes(Moment::BeforeTurn) {
                std::future::pending::<()>().await;
            }
            if let Some(seat) = self.seats().by_name.get_mut(&name) {
                seat.state = Turn::Works;
            }
            self.changed.notify_all();
            self.settle(|seats| seats.by_name.values().all(|seat| seat.state != Turn::Works));
            if self.strikes(Moment::AfterTurn) {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Whether the agent is killed now.
    fn strikes(&self, at: Moment) -> bool {
        let mut weather = self.weather.lock().unwrap();
        let Some((left, moment)) = &mut weather.kill else { return false };
        if *moment != at {
            return false;
        }
        *left = left.saturating_sub(1);
        if *left > 0 {
            return false;
        }
        weather.kill = None;
        drop(weather);
        self.killed.notify_one();
        true
    }
}

fn me() -> String {
    thread::current().name().unwrap_or_default().to_owned()
}

impl Simulated for Life {
    fn now_ms(&self) -> u64 {
        let elapsed = i64::try_from(self.elapsed().as_millis()).unwrap();
        u64::try_from(self.weather.lock().unwrap().wall_ms + elapsed).unwrap_or(0)
    }

    fn instant(&self) -> Instant {
        let _guard = self.handle.get().unwrap().enter();
        Instant::now()
    }

    fn thread_starts(&self, name: &str) {
        self.seats().by_name.insert(name.to_owned(), Seat { state: Turn::Works, until: None });
    }

    fn thread_waits(&self, until: Option<Instant>, ready: &mut dyn FnMut() -> bool) {
        let name = me();
        let mut seats = self.seats();
        seats.by_name.insert(name.clone(), Seat { state: Turn::Waits, until });
        self.changed.notify_all();
        loop {
            if seats.free {
                drop(seats);
                // Who was killed may leave a thread that waits for ever.
                let mut pause = Duration::from_micros(200);
                while !ready() {
                    thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_secs(1));
                }
                return;
            }
            match seats.by_name[&name].state {
                Turn::Works => return,
                Turn::Asked => {
                    drop(seats);
                    let has_work = ready() || until.is_some_and(|until| until <= self.instant());
                    seats = self.seats();
                    let state = if has_work { Turn::HasWork } else { Turn::Waits };
                    seats.by_name.insert(name.clone(), Seat { state, until });
                    self.changed.notify_all();
                }
                Turn::Waits | Turn::HasWork | Turn::Ended => seats = self.changed.wait(seats).unwrap(),
            }
        }
    }

    fn thread_ends(&self) {
        if let Some(seat) = self.seats().by_name.get_mut(&me()) {
            seat.state = Turn::Ended;
        }
        self.changed.notify_all();
    }
}

/// Panics of any thread since the last call, as text.
pub fn panics() -> Vec<String> {
    std::mem::take(&mut *PANICS.lock().unwrap())
}

static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Keeps panics for [`panics`]; tokio would hide those of tasks.
pub fn keep_panics() {
    panic::set_hook(Box::new(|info| {
        PANICS.lock().unwrap().push(format!("panic: {info}"));
    }));
}
