//! `order = "topic"`: the events of one topic run one after the other, in the order in which they came. Decides only.
//!
//! Each topic has a lane. Its events wait in memory while the one before them runs. When that one has to wait for another
//! attempt it goes to disk, and those behind it follow it there, so that they can be acknowledged; from then on, until nothing
//! of the lane is on disk any more, its events come from there. So what is on disk is always older than what is not.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use super::Running;
use super::item::Item;
use crate::event::Event;
use crate::trigger::Delivery;

/// By what a lane is known. Two topics with the same hash share a lane, which is slower and not wrong. 0: no topic.
pub(super) fn topic_of(event: &Event) -> u64 {
    let Some(topic) = &event.subject else { return 0 };
    let mut hasher = DefaultHasher::new();
    topic.hash(&mut hasher);
    hasher.finish().max(1)
}

/// The right of one event to run; the next of its topic may when this is gone.
pub(super) struct Turn {
    running: Arc<Running>,
    topic: u64,
}

impl Turn {
    pub(super) fn new(running: &Arc<Running>, topic: u64) -> Self {
        Self { running: Arc::clone(running), topic }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.running.turn_over(self.topic);
    }
}

#[derive(Default)]
struct Lane {
    /// One of its events has the turn.
    busy: bool,
    /// Waits in memory; nothing of the lane is on disk then.
    before: VecDeque<Item>,
    /// What waits in memory is to go to disk when the turn is over.
    spills: bool,
    /// Events on their way to disk.
    writing: usize,
    /// Places of those on disk.
    parked: BTreeSet<u64>,
    /// Waits in memory behind what is on disk: what may not, or cannot, go there.
    after: VecDeque<Item>,
}

impl Lane {
    fn is_on_disk(&self) -> bool {
        self.writing > 0 || !self.parked.is_empty()
    }

    /// Everything that may go to disk; the rest then waits behind it.
    fn take_followers(&mut self) -> Vec<Item> {
        let (follow, stay): (Vec<_>, Vec<_>) =
            self.before.drain(..).partition(|item| item.delivery == Delivery::AtLeastOnce);
        self.after.extend(stay);
        self.writing += follow.len();
        self.spills = false;
        follow
    }
}

/// Where an event goes that has just come.
pub(super) enum Admitted {
    /// It has the turn.
    Runs(Item),
    /// It is to go to disk.
    Parks(Item),
    /// It waits for its turn.
    Waits,
}

/// What a lane does next.
pub(super) enum Next {
    /// Nothing for now.
    Nothing,
    /// This event has the turn.
    Run(Item),
    /// The one at this place may start.
    Start(u64),
    /// These go to disk, in this order.
    Park(Vec<Item>),
}

/// The lanes of one function.
#[derive(Default)]
pub(super) struct Lanes(HashMap<u64, Lane>);

impl Lanes {
    /// Takes in an event that has just come. `crowded`: memory is short, so that it should go to disk; `may_park`: it can.
    pub(super) fn admit(&mut self, item: Item, crowded: bool, may_park: bool) -> Admitted {
        let lane = self.0.entry(item.topic).or_default();
        let parks = may_park && item.delivery == Delivery::AtLeastOnce;
        if !lane.after.is_empty() || (lane.is_on_disk() && !parks) {
            lane.after.push_back(item);
            return Admitted::Waits;
        }
        if lane.is_on_disk() || (parks && crowded && !lane.busy) {
            lane.writing += 1;
            return Admitted::Parks(item);
        }
        if lane.busy {
            lane.spills |= crowded && parks;
            lane.before.push_back(item);
            return Admitted::Waits;
        }
        lane.busy = true;
        Admitted::Runs(item)
    }

    /// The event that has the turn goes to disk: the ones that follow it there.
    pub(super) fn parks(&mut self, topic: u64) -> Vec<Item> {
        let lane = self.0.entry(topic).or_default();
        lane.writing += 1;
        lane.take_followers()
    }

    /// An event of the lane is on disk.
    pub(super) fn parked(&mut self, topic: u64, place: u64) {
        let lane = self.0.entry(topic).or_default();
        lane.writing = lane.writing.saturating_sub(1);
        lane.parked.insert(place);
    }

    /// An event of the lane did not get to disk.
    pub(super) fn not_parked(&mut self, topic: u64) {
        let lane = self.0.entry(topic).or_default();
        lane.writing = lane.writing.saturating_sub(1);
    }

    /// Has `item`, which did not get to disk, wait behind what did.
    pub(super) fn push_after(&mut self, item: Item) {
        self.0.entry(item.topic).or_default().after.push_back(item);
    }

    /// The parked event at `place` is dealt with.
    pub(super) fn ended(&mut self, topic: u64, place: u64) {
        if let Some(lane) = self.0.get_mut(&topic) {
            lane.parked.remove(&place);
        }
    }

    /// A parked event has the turn.
    pub(super) fn takes(&mut self, topic: u64) {
        self.0.entry(topic).or_default().busy = true;
    }

    /// The turn is over.
    pub(super) fn turn_over(&mut self, topic: u64) -> Next {
        if let Some(lane) = self.0.get_mut(&topic) {
            lane.busy = false;
        }
        self.next(topic)
    }

    /// What may start now, if anything.
    pub(super) fn next(&mut self, topic: u64) -> Next {
        let Some(lane) = self.0.get_mut(&topic) else { return Next::Nothing };
        if lane.busy {
            return Next::Nothing;
        }
        if lane.spills && !lane.before.is_empty() {
            return Next::Park(lane.take_followers());
        }
        if lane.before.is_empty() && !lane.is_on_disk() {
            std::mem::swap(&mut lane.before, &mut lane.after);
        }
        if let Some(item) = lane.before.pop_front() {
            lane.busy = true;
            return Next::Run(item);
        }
        match lane.parked.first() {
            Some(place) => Next::Start(*place),
            None if lane.writing > 0 => Next::Nothing,
            None => {
                self.0.remove(&topic);
                Next::Nothing
            }
        }
    }

    /// Whether events wait in memory that do not wait for the disk.
    pub(super) fn is_waiting(&self) -> bool {
        self.0.values().any(|lane| !lane.before.is_empty())
    }

    /// An event of the lane has been on disk since before.
    pub(super) fn restore(&mut self, topic: u64, place: u64) {
        self.0.entry(topic).or_default().parked.insert(place);
    }

    /// The places of those that nothing of their lane is before.
    pub(super) fn heads(&self) -> Vec<u64> {
        self.0.values().filter(|lane| !lane.busy).filter_map(|lane| lane.parked.first().copied()).collect()
    }

    /// Ends all lanes, and gives back what waited in memory.
    pub(super) fn clear(&mut self) -> Vec<Item> {
        self.0.drain().flat_map(|(_, lane)| lane.before.into_iter().chain(lane.after)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use crate::dispatch::item::Reply;
    use crate::receipt::Receipt;

    fn item(topic: &str, n: u8, delivery: Delivery) -> Item {
        let event = Event { subject: Some(topic.into()), data: vec![n].into(), ..Event::default() };
        let reply = Reply::Receipt(Receipt::new(drop));
        Item::new(Arc::new(event), delivery, reply, Clock::system().instant())
    }

    fn sure(topic: &str, n: u8) -> Item {
        item(topic, n, Delivery::AtLeastOnce)
    }

    fn n(item: &Item) -> u8 {
        item.event.data[0]
    }

    fn ns(items: &[Item]) -> Vec<u8> {
        items.iter().map(n).collect()
    }

    fn topic(text: &str) -> u64 {
        topic_of(&Event { subject: Some(text.into()), ..Event::default() })
    }

    fn run(next: Next) -> Option<u8> {
        match next {
            Next::Run(item) => Some(n(&item)),
            _ => None,
        }
    }

    #[test]
    fn events_of_one_topic_wait_for_each_other_and_others_do_not() {
        let mut lanes = Lanes::default();
        assert!(matches!(lanes.admit(sure("a", 1), false, true), Admitted::Runs(_)));
        assert!(matches!(lanes.admit(sure("a", 2), false, true), Admitted::Waits));
        assert!(matches!(lanes.admit(sure("b", 3), false, true), Admitted::Runs(_)));
        assert_eq!(run(lanes.turn_over(topic("b"))), None);
        assert_eq!(run(lanes.turn_over(topic("a"))), Some(2));
        assert!(matches!(lanes.admit(sure("b", 4), false, true), Admitted::Runs(_)));
    }

    #[test]
    fn followers_of_a_waiting_retry_go_to_disk_behind_it() {
        let (mut lanes, a) = (Lanes::default(), topic("a"));
        assert!(matches!(lanes.admit(sure("a", 1), false, true), Admitted::Runs(_)));
        assert!(matches!(lanes.admit(sure("a", 2), false, true), Admitted::Waits));
        assert!(matches!(lanes.admit(item("a", 3, Delivery::AtMostOnce), false, true), Admitted::Waits));
        assert_eq!(ns(&lanes.parks(a)), [2]);
        lanes.parked(a, 10);
        // The turn is over once it is on disk; the one behind it is on its way.
        assert!(matches!(lanes.turn_over(a), Next::Start(10)));
        lanes.parked(a, 11);
        lanes.takes(a);
        assert!(matches!(lanes.next(a), Next::Nothing));
        // Tried again, and dealt with: the one behind it is next, and what may not go to disk comes last.
        lanes.ended(a, 10);
        assert!(matches!(lanes.turn_over(a), Next::Start(11)));
        lanes.takes(a);
        lanes.ended(a, 11);
        assert_eq!(run(lanes.turn_over(a)), Some(3));
        assert!(matches!(lanes.turn_over(a), Next::Nothing));
        assert!(lanes.0.is_empty());
    }

    #[test]
    fn what_comes_while_the_lane_is_on_disk_goes_there_too() {
        let (mut lanes, a) = (Lanes::default(), topic("a"));
        assert!(matches!(lanes.admit(sure("a", 1), false, true), Admitted::Runs(_)));
        assert!(lanes.parks(a).is_empty());
        assert!(matches!(lanes.admit(sure("a", 2), false, true), Admitted::Parks(_)));
        // The disk does not take it: it waits, and nothing that comes later overtakes it.
        lanes.not_parked(a);
        lanes.push_after(sure("a", 2));
        assert!(matches!(lanes.admit(sure("a", 3), false, true), Admitted::Waits));
        lanes.parked(a, 10);
        assert!(matches!(lanes.turn_over(a), Next::Start(10)));
        lanes.takes(a);
        lanes.ended(a, 10);
        assert_eq!(run(lanes.turn_over(a)), Some(2));
        assert_eq!(run(lanes.turn_over(a)), Some(3));
    }

    #[test]
    fn a_crowded_lane_goes_to_disk_whole_when_its_turn_is_over() {
        let (mut lanes, a) = (Lanes::default(), topic("a"));
        assert!(matches!(lanes.admit(sure("a", 1), false, true), Admitted::Runs(_)));
        assert!(matches!(lanes.admit(sure("a", 2), true, true), Admitted::Waits));
        assert!(matches!(lanes.admit(sure("a", 3), true, true), Admitted::Waits));
        let Next::Park(items) = lanes.turn_over(a) else { panic!("it stays in memory") };
        assert_eq!(ns(&items), [2, 3]);
        assert!(matches!(lanes.admit(sure("a", 4), false, true), Admitted::Parks(_)));
        assert!(matches!(lanes.next(a), Next::Nothing));
        lanes.parked(a, 10);
        assert!(matches!(lanes.next(a), Next::Start(10)));
    }
}
