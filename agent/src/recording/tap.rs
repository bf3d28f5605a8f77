//! Where those listen who record. The dispatcher tells what ran, and never waits for them.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc;

use super::Recorded;
use crate::limits::Limits;
use crate::name::FunctionName;

/// Which runs a listener wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Of these functions; of all when there is none.
    pub functions: Vec<FunctionName>,
    /// On events of these types, whole or up to a dot: `mqtt` is for `mqtt.message`. On all when there is none.
    pub kinds: Vec<String>,
}

impl Selection {
    fn matches(&self, function: &FunctionName, kind: &str) -> bool {
        let is_kind = |wanted: &String| {
            kind.strip_prefix(wanted.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        (self.functions.is_empty() || self.functions.contains(function))
            && (self.kinds.is_empty() || self.kinds.iter().any(is_kind))
    }
}

/// More listen than may.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} recordings are under way, as many as there may be at the same time")]
pub struct TooManyRecordings(usize);

/// Tells listeners what ran. Clones tell the same ones.
#[derive(Clone, Debug)]
pub struct Tap {
    hub: Arc<Hub>,
    limits: Arc<Limits>,
}

#[derive(Debug, Default)]
struct Hub {
    listeners: Mutex<Vec<Arc<Listener>>>,
    /// How many there are, for those who only want to know that there is none.
    count: AtomicUsize,
}

#[derive(Debug)]
struct Listener {
    wanted: Selection,
    sender: mpsc::Sender<Arc<Recorded>>,
    waiting_bytes: AtomicUsize,
    missed: AtomicU64,
}

impl Hub {
    fn listeners(&self) -> MutexGuard<'_, Vec<Arc<Listener>>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tap {
    /// One that nobody listens to yet.
    pub fn new(limits: Arc<Limits>) -> Self {
        Self { hub: Arc::default(), limits }
    }

    /// Whether anybody wants the runs of `function` on events of type `kind`.
    pub fn wants(&self, function: &FunctionName, kind: &str) -> bool {
        self.hub.count.load(Ordering::Relaxed) > 0
            && self.hub.listeners().iter().any(|listener| listener.wanted.matches(function, kind))
    }

    /// Tells who wants it, as far as they have room.
    pub fn tell(&self, recorded: &Arc<Recorded>) {
        let Some(run) = &recorded.run else { return };
        let bytes_max = usize::try_from(self.limits.recording_bytes_max.0).unwrap_or(usize::MAX);
        let listeners = self.hub.listeners();
        for listener in listeners.iter().filter(|l| l.wanted.matches(&run.function, &recorded.event.kind)) {
            listener.take(recorded, bytes_max);
        }
    }

    /// Listens from now on.
    ///
    /// # Errors
    /// When too many do.
    pub fn listen(&self, wanted: Selection) -> Result<Recording, TooManyRecordings> {
        let mut listeners = self.hub.listeners();
        if listeners.len() >= self.limits.recordings_max {
            return Err(TooManyRecordings(listeners.len()));
        }
        let (sender, receiver) = mpsc::channel(self.limits.recording_events_max);
        let (waiting_bytes, missed) = Default::default();
        let listener = Arc::new(Listener { wanted, sender, waiting_bytes, missed });
        listeners.push(Arc::clone(&listener));
        self.hub.count.store(listeners.len(), Ordering::Relaxed);
        Ok(Recording { hub: Arc::clone(&self.hub), listener, receiver })
    }
}

impl Listener {
    fn take(&self, recorded: &Arc<Recorded>, bytes_max: usize) {
        let bytes = recorded.bytes();
        let waiting = self.waiting_bytes.fetch_add(bytes, Ordering::AcqRel);
        // One by itself is taken however large it is: events have a limit of their own.
        let has_room = waiting == 0 || waiting + bytes <= bytes_max;
        if !has_room || self.sender.try_send(Arc::clone(recorded)).is_err() {
            self.waiting_bytes.fetch_sub(bytes, Ordering::AcqRel);
            self.missed.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// Hears of runs until it is dropped.
#[derive(Debug)]
pub struct Recording {
    hub: Arc<Hub>,
    listener: Arc<Listener>,
    receiver: mpsc::Receiver<Arc<Recorded>>,
}

/// What a listener hears.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// A run.
    Run(Arc<Recorded>),
    /// So many were left out about here, because those before had not been taken yet.
    Missed(u64),
}

impl Recording {
    /// The next; waits for it. `None` never comes: whoever listens has to stop.
    pub async fn next(&mut self) -> Option<Heard> {
        if let Some(heard) = self.ready() {
            return Some(heard);
        }
        let recorded = self.receiver.recv().await?;
        Some(self.took(recorded))
    }

    /// The next, when it is there.
    pub fn ready(&mut self) -> Option<Heard> {
        // First, though what waits came before: in a flood something always waits.
        match self.listener.missed.swap(0, Ordering::AcqRel) {
            0 => self.receiver.try_recv().ok().map(|recorded| self.took(recorded)),
            missed => Some(Heard::Missed(missed)),
        }
    }

    fn took(&self, recorded: Arc<Recorded>) -> Heard {
        self.listener.waiting_bytes.fetch_sub(recorded.bytes(), Ordering::AcqRel);
        Heard::Run(recorded)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let mut listeners = self.hub.listeners();
        listeners.retain(|listener| !Arc::ptr_eq(listener, &self.listener));
        self.hub.count.store(listeners.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recording::line::tests::recorded;
    use crate::units::ByteSize;

    fn name(name: &str) -> FunctionName {
        FunctionName::parse(name).unwrap()
    }

    #[test]
    fn only_what_was_asked_for_is_recorded() {
        let tap = Tap::new(Arc::default());
        assert!(!tap.wants(&name("scale"), "mqtt.message"), "nobody listens");
        let wanted = Selection {
            functions: vec![name("scale")],
            kinds: vec!["mqtt".to_owned(), "com.example.started".to_owned()],
        };
        let mut recording = tap.listen(wanted).unwrap();
        for (function, kind, expected) in [
            ("scale", "mqtt.message", true),
            ("scale", "mqttx.message", false),
            ("scale", "com.example.started", true),
            ("scale", "com.example", false),
            ("other", "mqtt.message", false),
        ] {
            assert_eq!(tap.wants(&name(function), kind), expected, "{function} on {kind}");
        }
        tap.tell(&Arc::new(recorded("other")));
        tap.tell(&Arc::new(recorded("scale")));
        assert!(
            matches!(recording.ready(), Some(Heard::Run(run)) if run.run.as_ref().unwrap().function == name("scale"))
        );
        assert_eq!(recording.ready(), None);
        drop(recording);
        assert!(!tap.wants(&name("scale"), "mqtt.message"), "it has gone");
    }

    #[test]
    fn what_a_listener_cannot_take_is_counted() {
        let limits = Limits { recording_events_max: 2, recordings_max: 1, ..Limits::default() };
        let tap = Tap::new(Arc::new(limits));
        let mut recording = tap.listen(Selection::default()).unwrap();
        assert_eq!(tap.listen(Selection::default()).unwrap_err(), TooManyRecordings(1));
        let run = Arc::new(recorded("scale"));
        (0..5).for_each(|_| tap.tell(&run));
        let heard: Vec<_> = std::iter::from_fn(|| recording.ready()).collect();
        assert_eq!(heard, [Heard::Missed(3), Heard::Run(Arc::clone(&run)), Heard::Run(Arc::clone(&run))]);
        tap.tell(&run);
        assert_eq!(recording.ready(), Some(Heard::Run(run)), "there is room again");
    }

    #[test]
    fn what_waits_is_bounded_in_bytes() {
        let run = Arc::new(recorded("scale"));
        for (bytes_max, taken) in [(1, 1), (2 * run.bytes(), 2)] {
            let limits = Limits { recording_bytes_max: ByteSize(bytes_max as u64), ..Limits::default() };
            let tap = Tap::new(Arc::new(limits));
            let mut recording = tap.listen(Selection::default()).unwrap();
            (0..3).for_each(|_| tap.tell(&run));
            let heard = std::iter::from_fn(|| recording.ready()).filter(|heard| matches!(heard, Heard::Run(_)));
            assert_eq!(heard.count(), taken);
        }
    }
}
