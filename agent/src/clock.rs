//! The only place that reads the time, and where threads wait for it to pass, so that tests and the simulator can hold it
//! still. Tasks wait by tokio's timers, which follow tokio's paused clock.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Time as a simulation makes it, which also says when a thread of the agent may go on.
pub trait Simulated: fmt::Debug + Send + Sync {
    /// Unix time in milliseconds.
    fn now_ms(&self) -> u64;

    /// Monotonic time, on any thread.
    fn instant(&self) -> Instant;

    /// A thread is about to start; it works until it ends or waits.
    fn thread_starts(&self, name: &str);

    /// The thread that calls waits until `ready`, or until the time is `until`; then until it is its turn.
    fn thread_waits(&self, until: Option<Instant>, ready: &mut dyn FnMut() -> bool);

    /// The thread that calls has ended.
    fn thread_ends(&self);
}

/// The wall clock of a machine that runs this cannot be earlier: 2023-01-01.
const EARLIEST_MS: u64 = 1_672_531_200_000;

/// Wall time and monotonic time. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Clock(Source);

#[derive(Debug)]
struct Held {
    unix_ms: AtomicU64,
    passed_ms: AtomicU64,
    looked_at_ns: AtomicU64,
}

#[derive(Clone, Debug, Default)]
enum Source {
    #[default]
    Machine,
    /// Held still by a test.
    Held(Arc<Held>),
    Simulated(Arc<dyn Simulated>),
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that stands at `unix_ms` until it is moved.
    pub fn held_at(unix_ms: u64) -> Self {
        let (passed_ms, looked_at_ns) = Default::default();
        Self(Source::Held(Arc::new(Held { unix_ms: AtomicU64::new(unix_ms), passed_ms, looked_at_ns })))
    }

    /// Whether it stands still until it is moved.
    pub const fn is_held(&self) -> bool {
        matches!(self.0, Source::Held(_))
    }

    /// Nanoseconds that only ever advance, for a function: a held clock's follow its wall time, and each look takes a microsecond,
    /// so that who looks until time has passed comes to an end, and after the same number of looks each time. 0 of others.
    pub fn looked_at_ns(&self) -> u64 {
        let Source::Held(held) = &self.0 else { return 0 };
        let wall = held.unix_ms.load(Ordering::SeqCst).saturating_mul(1_000_000);
        let later = |last: u64| last.saturating_add(1_000).max(wall);
        let update = |last| Some(later(last));
        later(held.looked_at_ns.fetch_update(Ordering::SeqCst, Ordering::SeqCst, update).unwrap_or_else(|last| last))
    }

    /// The clock of a simulation.
    pub fn simulated(by: Arc<dyn Simulated>) -> Self {
        Self(Source::Simulated(by))
    }

    /// Sets a held clock, as a person or the network would; no other is touched.
    pub fn set(&self, unix_ms: u64) {
        if let Source::Held(held) = &self.0 {
            held.unix_ms.store(unix_ms, Ordering::SeqCst);
        }
    }

    /// Lets time pass on a held clock; no other is touched.
    pub fn pass(&self, time: Duration) {
        if let Source::Held(held) = &self.0 {
            let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            held.unix_ms.fetch_add(ms, Ordering::SeqCst);
            held.passed_ms.fetch_add(ms, Ordering::SeqCst);
        }
    }

    /// Unix time in milliseconds.
    #[expect(clippy::disallowed_methods, reason = "the one place that may")]
    pub fn now_ms(&self) -> u64 {
        match &self.0 {
            Source::Machine => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            }
            Source::Held(held) => held.unix_ms.load(Ordering::SeqCst),
            Source::Simulated(by) => by.now_ms(),
        }
    }

    /// Whether something keeps the machine's clock right, by what the kernel was told (`adjtimex`, `STA_UNSYNC`); none: it does not say.
    pub fn is_kept(&self) -> Option<bool> {
        let Source::Machine = self.0 else { return None };
        #[expect(unsafe_code, reason = "an all-zero `timex` is one that asks and sets nothing")]
        // SAFETY: it holds numbers only.
        let mut asked: libc::timex = unsafe { std::mem::zeroed() };
        #[expect(unsafe_code, reason = "the kernel fills in what it is given")]
        // SAFETY: it is ours alone, and as large as the kernel thinks.
        let told = unsafe { libc::adjtimex(&raw mut asked) };
        (told >= 0).then_some(asked.status & libc::STA_UNSYNC == 0)
    }

    /// Whether the wall clock is later than this code: one that was never set is not.
    pub fn is_plausible(&self) -> bool {
        self.now_ms() >= EARLIEST_MS
    }

    /// Milliseconds that only ever advance, from an arbitrary start. A held clock's advance by [`Clock::pass`].
    pub fn steady_ms(&self) -> u64 {
        static START: OnceLock<Instant> = OnceLock::new();
        match &self.0 {
            Source::Held(held) => held.passed_ms.load(Ordering::SeqCst),
            _ => {
                let now = self.instant();
                let start = *START.get_or_init(|| now);
                u64::try_from((now.saturating_duration_since(start)).as_millis()).unwrap_or(u64::MAX)
            }
        }
    }

    /// A point in monotonic time, which follows tokio's paused time in tests.
    #[expect(clippy::disallowed_methods, reason = "the one place that may")]
    pub fn instant(&self) -> Instant {
        match &self.0 {
            Source::Simulated(by) => by.instant(),
            _ => Instant::now(),
        }
    }

    /// Starts a thread that waits by [`Clock::receive`] and by nothing else.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn thread(&self, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<thread::JoinHandle<()>> {
        let builder = thread::Builder::new().name(name.to_owned());
        let Source::Simulated(by) = &self.0 else { return builder.spawn(work) };
        let ends = Ends(Arc::clone(by));
        by.thread_starts(name);
        builder.spawn(move || {
            let _ends = ends;
            work();
        })
    }

    /// The next of `queue`, for a thread: waits for `wait` at most, or as long as anybody may send.
    ///
    /// # Errors
    /// When nothing came in time, or nothing will.
    pub fn receive<T>(&self, queue: &Receiver<T>, wait: Option<Duration>) -> Result<T, RecvTimeoutError> {
        let Source::Simulated(by) = &self.0 else {
            return match wait {
                Some(wait) => queue.recv_timeout(wait),
                None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
        };
        let mut got = Err(TryRecvError::Empty);
        by.thread_waits(wait.map(|wait| by.instant() + wait), &mut || {
            if matches!(got, Err(TryRecvError::Empty)) {
                got = queue.try_recv();
            }
            !matches!(got, Err(TryRecvError::Empty))
        });
        got.map_err(|error| match error {
            TryRecvError::Empty => RecvTimeoutError::Timeout,
            TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
        })
    }
}

/// Does `work`, which blocks, where it holds up no task; on a runtime of one thread, as a simulation's is, as a task among the
/// others, since there everything happens in turn.
pub fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => tokio::spawn(async { work() }),
        _ => tokio::task::spawn_blocking(work),
    }
}

/// Says that a thread has ended, however it did.
struct Ends(Arc<dyn Simulated>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.thread_ends();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_at_a_held_clock_takes_a_microsecond() {
        let clock = Clock::held_at(5);
        assert_eq!([clock.looked_at_ns(), clock.looked_at_ns()], [5_000_000, 5_001_000]);
        clock.set(7);
        assert_eq!(clock.looked_at_ns(), 7_000_000);
        clock.set(1);
        assert_eq!(clock.looked_at_ns(), 7_001_000, "it never goes back");
    }
}
