//! What holds of windows whatever comes, tried on random sequences of events. The seed is in the message of what fails.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use fastrand::Rng;

use super::config::{Every, WindowConfig};
use super::gather::{Gather, Key, Member, Window};
use crate::config::function::KeyPart;
use crate::limits::Limits;
use crate::units::{ByteSize, Span};

const SEEDS: u64 = 2_000;
const EVENTS: u64 = 120;

fn config(random: &mut Rng) -> WindowConfig {
    let span = |ms| Span(std::time::Duration::from_millis(ms));
    let (count, time) = (random.u32(2..20), random.u64(2..500));
    let (has_count, has_time) = *random.choice(&[(true, false), (false, true), (true, true)]).unwrap();
    let by_count = Some(Every::Events(random.u32(1..count)));
    let by_time = Some(Every::Time(span(random.u64(1..time))));
    let every = match (random.u8(..3), has_count, has_time) {
        (1, true, _) => by_count,
        (2, _, true) => by_time,
        _ => None,
    };
    let (count, time) = (has_count.then_some(count), has_time.then_some(span(time)));
    WindowConfig { count, time, every, per: KeyPart::Topic }
}

fn events(random: &mut Rng) -> Vec<(Key, Member)> {
    let (keys, mut age_ms) = (random.u8(1..6), 0);
    let event = |sequence| {
        age_ms += if random.bool() { random.u64(..100) } else { 0 };
        let key = random.u8(..keys);
        let item = Bytes::from(vec![b'1'; random.usize(1..20)]);
        ((key > 0).then(|| Bytes::from(vec![key])), Member { sequence, age_ms, hops: 0, item })
    };
    (1..=EVENTS).map(event).collect()
}

/// A window with its events.
struct Made {
    window: Window,
    members: Vec<Member>,
}

impl Made {
    fn sequences(&self) -> Vec<u64> {
        self.members.iter().map(|member| member.sequence).collect()
    }
}

/// What makes windows, and those that it has made, with their events as they were then.
struct Maker {
    gather: Gather,
    made: Vec<Made>,
}

impl Maker {
    fn new(config: &WindowConfig, limits: &Limits) -> Self {
        Self { gather: Gather::new(config, limits), made: Vec::new() }
    }

    fn take(&mut self, windows: impl IntoIterator<Item = Window>) {
        for window in windows {
            let members = self.gather.members(&window).cloned().collect();
            self.made.push(Made { window, members });
        }
    }

    fn add(&mut self, (key, member): &(Key, Member)) {
        let ended = self.gather.add(key.clone(), member.clone());
        self.take(ended);
    }

    fn due(&mut self, age_ms: u64) {
        let ended = self.gather.due(age_ms);
        self.take(ended);
    }

    fn end_all(&mut self) {
        while let Some(window) = self.gather.end_oldest() {
            self.take([window]);
        }
    }
}

fn check(seed: u64) {
    let mut random = Rng::with_seed(seed);
    let (config, events) = (config(&mut random), events(&mut random));
    let small = random.u8(..4) == 0;
    let mut limits = Limits::default();
    if small {
        (limits.window_keys_max, limits.event_bytes_max) = (2, ByteSize(100));
    }
    let told = format!("seed {seed}: {config}, small: {small}");

    // As they come, with the clock looked at in between.
    let mut maker = Maker::new(&config, &limits);
    for (n, event) in events.iter().enumerate() {
        maker.add(event);
        let next = events.get(n + 1).map_or(u64::MAX - 1, |(_, next)| next.age_ms);
        if random.bool() {
            maker.due(random.u64(event.1.age_ms..=next));
        }
    }
    let by_itself = maker.made.len();
    maker.end_all();
    let Maker { mut gather, made } = maker;

    // Each event is in a window, in exactly one unless they overlap; they are in order, and none is over its bounds.
    let mut seen: BTreeMap<u64, usize> = BTreeMap::new();
    let mut last: BTreeMap<Key, u64> = BTreeMap::new();
    for Made { window, members } in &made {
        let told = format!("{told}: {window:?} {members:?}");
        assert!(!members.is_empty() && members.is_sorted_by(|a, b| a.sequence < b.sequence), "{told}");
        assert!(members.len() <= config.count.unwrap_or(u32::MAX) as usize, "{told}");
        let took = members[members.len() - 1].age_ms - members[0].age_ms;
        assert!(config.time.is_none_or(|time| took < time.millis()), "{told}");
        let bytes: u64 = members.iter().map(|member| member.item.len() as u64 + 1).sum();
        assert!(bytes <= limits.event_bytes_max.0, "{told}");
        assert!(last.insert(window.key.clone(), window.first) < Some(window.first), "{told}");
        members.iter().for_each(|member| *seen.entry(member.sequence).or_default() += 1);
    }
    assert_eq!(seen.len() as u64, EVENTS, "{told}");
    assert!(config.every.is_some() || seen.values().all(|times| *times == 1), "{told}");
    assert_eq!((gather.events(), gather.cost()), (0, 0), "{told}");

    // Some are taken care of, then there is a restart: what is left makes the others again, and all events were in one.
    let settled = random.usize(..=by_itself);
    let released = made[..settled].iter().flat_map(|made| gather.release(&made.window));
    let done: BTreeSet<u64> = released.map(|member| member.sequence).collect();
    let mut maker = Maker::new(&config, &limits);
    events.iter().filter(|(_, member)| !done.contains(&member.sequence)).for_each(|event| maker.add(event));
    maker.due(u64::MAX - 1);
    maker.end_all();
    let all: BTreeSet<u64> = made[..settled].iter().chain(&maker.made).flat_map(Made::sequences).collect();
    assert_eq!(all.len() as u64, EVENTS, "{told}");
    let again: BTreeSet<_> = maker.made.iter().map(|made| (made.window.key.clone(), made.sequences())).collect();
    // What a bound has cut, and in windows that slide also where, depends on what else was open.
    for lost in made[settled..by_itself].iter().filter(|_| !small) {
        assert!(again.contains(&(lost.window.key.clone(), lost.sequences())), "{told}: not again: {:?}", lost.window);
    }

    // Nothing is left of windows that were taken care of.
    made[settled..].iter().for_each(|made| drop(gather.release(&made.window)));
    assert!(gather.is_empty(), "{told}");
}

#[test]
fn whatever_comes_each_event_is_in_a_window_and_a_restart_makes_the_same_ones() {
    (0..SEEDS).for_each(check);
}
