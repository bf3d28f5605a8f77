//! Counts time for wasm code: at each tick, code that runs gives way to others. Rests while nothing runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use wasmtime::Engine;

/// How long a function may compute before the next one gets its turn.
const TICK: Duration = Duration::from_millis(5);
/// Ticks without work before it rests: fewer wake-ups than one for each event, when events come often.
const QUIET_TICKS: u32 = 4;

#[derive(Debug, Default)]
struct State {
    running: AtomicU32,
    /// Whether anything ran since the last tick, however briefly.
    ran: AtomicBool,
    resting: AtomicBool,
    stopped: AtomicBool,
}

/// The thread that ticks, unless it stands still.
#[derive(Debug)]
pub(crate) struct Ticker {
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
    handle: Thread,
}

/// Wasm code runs while this is held.
#[derive(Debug)]
pub(crate) struct Running<'a>(&'a State);

impl Ticker {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn start(engine: Engine) -> std::io::Result<Self> {
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let thread = thread::Builder::new()
            .name("ticker".to_owned())
            .stack_size(64 << 10)
            .spawn(move || shared.tick(&engine))?;
        let handle = thread.thread().clone();
        Ok(Self { state, thread: Some(thread), handle })
    }

    /// One that never ticks: nothing that runs is interrupted.
    pub(crate) fn standing() -> Self {
        Self { state: Arc::default(), thread: None, handle: thread::current() }
    }

    /// Says that wasm code is about to run.
    pub(crate) fn enter(&self) -> Running<'_> {
        self.state.running.fetch_add(1, Ordering::SeqCst);
        if self.state.resting.load(Ordering::SeqCst) && self.state.resting.swap(false, Ordering::SeqCst) {
            self.handle.unpark();
        }
        Running(&self.state)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.ran.store(true, Ordering::Relaxed);
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

impl State {
    fn tick(&self, engine: &Engine) {
        let mut quiet = 0;
        while !self.stopped.load(Ordering::SeqCst) {
            thread::sleep(TICK);
            engine.increment_epoch();
            let ran = self.ran.swap(false, Ordering::Relaxed);
            if ran || self.running.load(Ordering::SeqCst) > 0 {
                quiet = 0;
                continue;
            }
            quiet += 1;
            if quiet >= QUIET_TICKS {
                quiet = 0;
                self.rest();
            }
        }
    }

    /// Sleeps until something runs. Whoever enters sees `resting`, or is seen here: one of the two comes first.
    fn rest(&self) {
        self.resting.store(true, Ordering::SeqCst);
        while self.running.load(Ordering::SeqCst) == 0
            && self.resting.load(Ordering::SeqCst)
            && !self.stopped.load(Ordering::SeqCst)
        {
            thread::park();
        }
        self.resting.store(false, Ordering::SeqCst);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        self.handle.unpark();
        if let Some(thread) = self.thread.take() {
            // It ends within a tick; a panic of it has already been reported.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rests_while_nothing_runs_and_wakes_when_something_does() {
        let ticker = Ticker::start(Engine::default()).unwrap();
        let rests = |expected: bool| {
            for _ in 0..400 {
                if ticker.state.resting.load(Ordering::SeqCst) == expected {
                    return true;
                }
                thread::sleep(TICK);
            }
            false
        };
        assert!(rests(true));
        let running = ticker.enter();
        assert!(!ticker.state.resting.load(Ordering::SeqCst));
        thread::sleep(TICK * 20);
        assert!(!ticker.state.resting.load(Ordering::SeqCst));
        drop(running);
        assert!(rests(true));
    }
}
