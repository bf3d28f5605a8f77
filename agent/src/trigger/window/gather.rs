//! Which events make a window. No I/O and no clock: the same records in the same order make the same windows, before a restart and
//! after it.
//!
//! A window begins with an event, and ends when it has enough of them or its time since the first one has passed. The next one
//! begins with the first event that came `every` later, and no later than the one before it ended: so each event is in one window at
//! least. Events stay here, once however many windows they are in, until they are released.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;

use super::config::{Every, WindowConfig};
use crate::limits::Limits;
use crate::metrics::WindowEnd;
use crate::units::Span;

/// What has windows of its own: the text that `per` says, none for events that lack it.
pub(super) type Key = Option<Bytes>;

/// An event that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    /// Its place in the stream.
    pub(super) sequence: u64,
    /// When it came, by the journal's own clock.
    pub(super) age_ms: u64,
    /// How many functions have handed it on.
    pub(super) hops: u32,
    /// The event as JSON.
    pub(super) item: Bytes,
}

/// What an event takes beside its key and its JSON, on disk and in memory.
const OVERHEAD: usize = 64;

/// What an event counts against what may wait.
pub(super) fn cost(key: &Key, item: &Bytes) -> usize {
    OVERHEAD + key.as_ref().map_or(0, Bytes::len) + item.len()
}

impl Member {
    /// What it takes of a window: itself, and what is between it and the next.
    fn bytes(&self) -> usize {
        self.item.len() + 1
    }
}

/// A window that has ended: the events of `key` from the `first` to the `last`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) key: Key,
    pub(super) end: WindowEnd,
    pub(super) first: u64,
    pub(super) last: u64,
    /// No later window needs what comes before this one.
    pub(super) needed_from: u64,
}

/// What makes a window end.
#[derive(Clone, Debug)]
struct Shape {
    count: usize,
    time_ms: u64,
    every: Option<Every>,
    bytes_max: usize,
    keys_max: usize,
}

impl Shape {
    fn new(config: &WindowConfig, limits: &Limits) -> Self {
        Self {
            count: config.count.unwrap_or(limits.window_events_max).min(limits.window_events_max) as usize,
            time_ms: config.time.map_or(u64::MAX, Span::millis),
            every: config.every,
            bytes_max: usize::try_from(limits.event_bytes_max.0).unwrap_or(usize::MAX),
            keys_max: limits.window_keys_max,
        }
    }
}

/// The windows of one trigger.
#[derive(Debug)]
pub(super) struct Gather {
    shape: Shape,
    lines: HashMap<Key, Line>,
    /// The open windows by their first event: when it came, and where it is.
    starts: BTreeMap<(u64, u64), Key>,
    /// Events in open windows, and what they cost.
    events: usize,
    cost: usize,
}

/// The events of one key.
#[derive(Debug, Default)]
struct Line {
    /// Those of windows that have ended, as far as they are needed, then those of the open one.
    members: VecDeque<Member>,
    /// Where the open one begins.
    open_from: usize,
    /// Bytes of the open one.
    bytes: usize,
}

impl Line {
    fn open(&self) -> impl ExactSizeIterator<Item = &Member> {
        self.members.range(self.open_from..)
    }
}

impl Gather {
    /// No events yet.
    pub(super) fn new(config: &WindowConfig, limits: &Limits) -> Self {
        let shape = Shape::new(config, limits);
        Self { shape, lines: HashMap::new(), starts: BTreeMap::new(), events: 0, cost: 0 }
    }

    /// Events in open windows.
    pub(super) const fn events(&self) -> usize {
        self.events
    }

    /// What they cost.
    pub(super) const fn cost(&self) -> usize {
        self.cost
    }

    /// Whether there are no events at all.
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The next event of `key`. Gives the windows that it ends: those that were over when it came, and the one that it fills.
    pub(super) fn add(&mut self, key: Key, member: Member) -> Vec<Window> {
        let mut ended = Vec::new();
        while let Some(began) = self.began(&key)
            && self.ends_at(began) <= member.age_ms
        {
            ended.extend(self.end(&key, WindowEnd::Time));
        }
        let (bytes, cost) = (member.bytes(), cost(&key, &member.item));
        match self.lines.get(&key).filter(|line| line.open().len() > 0) {
            Some(line) if line.bytes + bytes > self.shape.bytes_max => ended.extend(self.end(&key, WindowEnd::Early)),
            None if self.starts.len() >= self.shape.keys_max => ended.extend(self.end_oldest()),
            _ => {}
        }
        let line = self.lines.entry(key.clone()).or_default();
        if line.open().len() == 0 {
            self.starts.insert((member.age_ms, member.sequence), key.clone());
        }
        line.members.push_back(member);
        line.bytes += bytes;
        let is_full = line.open().len() >= self.shape.count;
        (self.events, self.cost) = (self.events + 1, self.cost + cost);
        if is_full {
            ended.extend(self.end(&key, WindowEnd::Count));
        }
        ended
    }

    /// The windows whose time has passed at `age_ms`, the first to begin first.
    pub(super) fn due(&mut self, age_ms: u64) -> Vec<Window> {
        let mut ended = Vec::new();
        while let Some(((began, _), key)) = self.starts.first_key_value()
            && self.ends_at(*began) <= age_ms
        {
            let key = key.clone();
            ended.extend(self.end(&key, WindowEnd::Time));
        }
        ended
    }

    /// When the next window ends if no event ends it before; none when none does.
    pub(super) fn next_due(&self) -> Option<u64> {
        let ((began, _), _) = self.starts.first_key_value()?;
        Some(self.ends_at(*began)).filter(|at| *at < u64::MAX)
    }

    /// Ends the window that is open for longest.
    pub(super) fn end_oldest(&mut self) -> Option<Window> {
        let key = self.starts.first_key_value()?.1.clone();
        self.end(&key, WindowEnd::Early)
    }

    /// Has windows be as `config` says from now on: what is in open ones begins anew.
    pub(super) fn reshape(&mut self, config: &WindowConfig, limits: &Limits) -> Vec<Window> {
        self.shape = Shape::new(config, limits);
        self.starts.clear();
        (self.events, self.cost) = (0, 0);
        let mut open = Vec::new();
        for (key, line) in &mut self.lines {
            open.extend(line.members.drain(line.open_from..).map(|member| (key.clone(), member)));
            line.bytes = 0;
        }
        open.sort_by_key(|(_, member)| member.sequence);
        open.into_iter().flat_map(|(key, member)| self.add(key, member)).collect()
    }

    /// The events of a window that was not released.
    pub(super) fn members(&self, window: &Window) -> impl Iterator<Item = &Member> + Clone {
        let line = self.lines.get(&window.key);
        let from = line.map_or(0, |line| line.members.partition_point(|member| member.sequence < window.first));
        let last = window.last;
        let members = line.into_iter().flat_map(move |line| line.members.range(from..));
        members.take_while(move |member| member.sequence <= last)
    }

    /// A window, and all of its key that ended before it, were taken care of. Gives the events that nobody needs any more.
    pub(super) fn release(&mut self, window: &Window) -> Vec<Member> {
        let Some(line) = self.lines.get_mut(&window.key) else { return Vec::new() };
        let count = line.members.partition_point(|member| member.sequence < window.needed_from).min(line.open_from);
        let released = line.members.drain(..count).collect();
        line.open_from -= count;
        if line.members.is_empty() {
            self.lines.remove(&window.key);
        }
        released
    }

    fn began(&self, key: &Key) -> Option<u64> {
        self.lines.get(key)?.open().next().map(|first| first.age_ms)
    }

    fn ends_at(&self, began: u64) -> u64 {
        began.saturating_add(self.shape.time_ms)
    }

    fn end(&mut self, key: &Key, end: WindowEnd) -> Option<Window> {
        let line = self.lines.get_mut(key)?;
        let all = line.open().len();
        let (first, last) = (line.open().next()?, line.members.back()?);
        let (began, sequence, last) = (first.age_ms, first.sequence, last.sequence);
        self.starts.remove(&(began, sequence));
        let passed = match self.shape.every {
            // What is in a window that is cut must go: the next one begins anew.
            _ if end == WindowEnd::Early => all,
            None => all,
            Some(Every::Events(events)) => (events as usize).min(all),
            Some(Every::Time(every)) => {
                let next = began.saturating_add(every.millis());
                line.open().position(|member| member.age_ms >= next).unwrap_or(all)
            }
        };
        let bytes: usize = line.open().take(passed).map(Member::bytes).sum();
        let cost: usize = line.open().take(passed).map(|member| cost(key, &member.item)).sum();
        line.open_from += passed;
        line.bytes -= bytes;
        (self.events, self.cost) = (self.events - passed, self.cost - cost);
        let next = line.open().next().map(|first| (first.age_ms, first.sequence));
        if let Some(next) = next {
            self.starts.insert(next, key.clone());
        }
        let needed_from = next.map_or(last + 1, |(_, sequence)| sequence);
        Some(Window { key: key.clone(), end, first: sequence, last, needed_from })
    }
}
