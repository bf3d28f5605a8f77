//! What we want to hear from a broker, and what its session holds for us.
//!
//! # Promises
//! - A filter that is no longer wanted leaves the persistent session too, also when the agent was restarted in between: what
//!   the session may hold is remembered on disk before it is asked for.
//! - A message that several of our filters match is heard once: a filter that another one covers is not sent, and those that
//!   overlap without covering each other have numbers, by which the broker's copies are told apart (MQTT 5).

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Subscription;
use crate::topic::TopicFilter;

/// Filters in one packet: AWS IoT Core takes no more.
const FILTERS_PER_PACKET: usize = 8;

/// Filter and QoS.
type Filters = BTreeMap<String, u8>;

/// The file that outlives the agent.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Remembered {
    url: String,
    client_id: String,
    filters: Filters,
    /// By filter.
    #[serde(default)]
    numbers: BTreeMap<String, u32>,
    #[serde(default)]
    last_number: u32,
}

/// A packet to send.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// `number` comes back with each message.
    Subscribe {
        filters: Vec<(String, u8)>,
        number: Option<u32>,
    },
    Unsubscribe(Vec<String>),
}

/// A filter with a wildcard, which may overlap others.
#[derive(Debug)]
struct Numbered {
    number: u32,
    qos: u8,
    filter: TopicFilter,
    /// The session does not have it yet, so that retained messages come for it.
    is_new: bool,
}

/// Wanted against held.
#[derive(Debug)]
pub(super) struct Subscriptions {
    file: PathBuf,
    url: String,
    client_id: String,
    /// `None` until someone has said; until then nothing is touched.
    wanted: Option<Filters>,
    held: Filters,
    asked: HashMap<u16, Change>,
    /// Never given twice: of two filters, the lower number was subscribed to first.
    numbers: BTreeMap<String, u32>,
    last_number: u32,
    numbered: Vec<Numbered>,
}

impl Subscriptions {
    /// Reads what the session may hold.
    pub(super) fn open(file: PathBuf, url: &str, client_id: &str) -> Self {
        let remembered = read(&file);
        let (mut held, mut numbers) = (Filters::new(), BTreeMap::new());
        if remembered.url == url && remembered.client_id == client_id {
            (held, numbers) = (remembered.filters, remembered.numbers);
        } else if !remembered.filters.is_empty() {
            tracing::warn!(
                former_url = remembered.url,
                former_client_id = remembered.client_id,
                client_id,
                "the session under the former name stays at its broker, with what waits in it, until it expires there"
            );
        }
        let (url, client_id) = (url.to_owned(), client_id.to_owned());
        Self {
            file,
            url,
            client_id,
            wanted: None,
            held,
            asked: HashMap::new(),
            numbers,
            last_number: remembered.last_number,
            numbered: Vec::new(),
        }
    }

    /// Replaces what is wanted.
    pub(super) fn want(&mut self, subscriptions: &[Subscription]) {
        self.wanted = Some(reduce(subscriptions));
    }

    /// A broker has let us in: what must be said to it. With `renew`, also what the session already holds.
    pub(super) fn connected(&mut self, session_present: bool, renew: bool) -> Vec<Change> {
        self.asked.clear();
        if !session_present {
            self.held.clear();
        }
        self.changes(renew)
    }

    /// What must be said to reach what is wanted. New filters come first, so that no message falls in between.
    pub(super) fn changes(&mut self, renew: bool) -> Vec<Change> {
        let Some(wanted) = &self.wanted else { return Vec::new() };
        let is_new = |(filter, qos): &(&String, &u8)| renew || self.held.get(*filter) != Some(*qos);
        let subscribe: Vec<_> = wanted.iter().filter(is_new).map(|(filter, qos)| (filter.clone(), *qos)).collect();
        let gone: Vec<_> = self.held.keys().filter(|filter| !wanted.contains_key(*filter)).cloned().collect();
        self.numbers.retain(|filter, _| wanted.get(filter) == self.held.get(filter));
        self.numbered.clear();
        for (filter, qos) in wanted.iter().filter(|(filter, _)| filter.contains(['+', '#'])) {
            let Ok(filter) = TopicFilter::parse(filter) else { continue };
            if filter.is_shared() {
                continue;
            }
            let number = *self.numbers.entry(filter.as_str().to_owned()).or_insert_with(|| {
                self.last_number += 1;
                self.last_number
            });
            let is_new = !self.held.contains_key(filter.as_str());
            self.numbered.push(Numbered { number, qos: *qos, filter, is_new });
        }
        self.held.extend(wanted.iter().map(|(filter, qos)| (filter.clone(), *qos)));
        self.remember();
        let (numbered, plain): (Vec<_>, Vec<_>) =
            subscribe.into_iter().partition(|(filter, _)| self.numbers.contains_key(filter));
        let alone = numbered
            .into_iter()
            .map(|one| Change::Subscribe { number: self.numbers.get(&one.0).copied(), filters: vec![one] });
        let together =
            plain.chunks(FILTERS_PER_PACKET).map(|part| Change::Subscribe { filters: part.to_vec(), number: None });
        let gone = gone.chunks(FILTERS_PER_PACKET).map(|part| Change::Unsubscribe(part.to_vec()));
        alone.chain(together).chain(gone).collect()
    }

    /// Whether a message for the filters with these `numbers` is a copy of one that comes for another filter of ours. The one
    /// that counts is the oldest, which the broker knew whenever it knew the others; at QoS 0 only when all have that. A
    /// retained one comes for filters that are new, whoever has heard it before.
    pub(super) fn is_repeat(&self, topic: &str, numbers: &[u32], retained: bool) -> bool {
        if numbers.is_empty() || self.numbered.len() < 2 {
            return false;
        }
        let matching = self.numbered.iter().filter(|one| one.filter.matches(topic) && (one.is_new || !retained));
        let Some(counts) = matching.min_by_key(|one| (one.qos == 0, one.number)) else { return false };
        // A number that is no longer ours comes from before a change, when it may have been the only one.
        let are_ours = numbers.iter().all(|number| self.numbered.iter().any(|one| one.number == *number));
        are_ours && !numbers.contains(&counts.number)
    }

    /// `change` was sent under packet id `id`.
    pub(super) fn asked(&mut self, id: u16, change: Change) {
        self.asked.insert(id, change);
    }

    /// SUBACK. Gives back what was refused, with the reason.
    pub(super) fn subscribed(&mut self, id: u16, results: Vec<Result<u8, String>>) -> Vec<(String, String)> {
        let Some(Change::Subscribe { filters, .. }) = self.asked.remove(&id) else { return Vec::new() };
        let mut refused = Vec::new();
        for ((filter, qos), result) in filters.into_iter().zip(results) {
            match result {
                Ok(granted) if granted < qos => {
                    tracing::warn!(filter, asked = qos, granted, "the broker grants a lower QoS than was asked for");
                    if let Some(one) = self.numbered.iter_mut().find(|one| one.filter.as_str() == filter) {
                        one.qos = granted;
                    }
                }
                Ok(_) => {}
                Err(why) => {
                    self.refuse(&filter);
                    refused.push((filter, why));
                }
            }
        }
        refused
    }

    /// The broker does not have `filter`.
    pub(super) fn refuse(&mut self, filter: &str) {
        self.held.remove(filter);
        self.numbers.remove(filter);
        self.numbered.retain(|one| one.filter.as_str() != filter);
    }

    /// UNSUBACK.
    pub(super) fn unsubscribed(&mut self, id: u16) {
        let Some(Change::Unsubscribe(filters)) = self.asked.remove(&id) else { return };
        for filter in filters {
            if self.wanted.as_ref().is_none_or(|wanted| !wanted.contains_key(&filter)) {
                self.held.remove(&filter);
            }
        }
        self.remember();
    }

    /// Whether the broker has answered all that was asked, and there was something to ask for.
    pub(super) fn is_settled(&self) -> bool {
        self.wanted.is_some() && self.asked.is_empty()
    }

    /// Whole or not at all, so that a crash leaves the former list, which holds at least as much as the session.
    fn remember(&self) {
        if let Err(error) = self.write() {
            let file = self.file.display();
            tracing::error!(%file, %error, "cannot remember the subscriptions; one that is removed may go on after a restart");
        }
    }

    fn write(&self) -> io::Result<()> {
        let remembered = Remembered {
            url: self.url.clone(),
            client_id: self.client_id.clone(),
            filters: self.held.clone(),
            numbers: self.numbers.clone(),
            last_number: self.last_number,
        };
        if read(&self.file) == remembered {
            return Ok(());
        }
        if let Some(folder) = self.file.parent() {
            fs::create_dir_all(folder)?;
        }
        let draft = self.file.with_extension("json.new");
        let file = fs::File::create(&draft)?;
        serde_json::to_writer(&file, &remembered)?;
        file.sync_all()?;
        fs::rename(&draft, &self.file)
    }
}

/// A file that is missing or unreadable means that nothing is known, and costs one repeated SUBSCRIBE.
fn read(file: &Path) -> Remembered {
    fs::read(file).ok().and_then(|text| parse(&text)).unwrap_or_default()
}

fn parse(text: &[u8]) -> Option<Remembered> {
    serde_json::from_slice(text).ok()
}

/// Reads `text` as the file of a session: what is taken for one reads back as it was.
///
/// # Panics
/// When it does not.
pub(crate) fn check(text: &[u8]) {
    if let Some(remembered) = parse(text) {
        let again = serde_json::to_vec(&remembered).ok().and_then(|text| parse(&text));
        assert_eq!(again, Some(remembered));
    }
}

/// Each filter once, at the highest QoS that anyone wants below it, without those that another one covers.
fn reduce(subscriptions: &[Subscription]) -> Filters {
    let mut highest: BTreeMap<&TopicFilter, u8> = BTreeMap::new();
    for Subscription { filter, qos } in subscriptions {
        let entry = highest.entry(filter).or_default();
        *entry = (*entry).max(*qos);
    }
    // Only wildcards cover others, and there are few of them beside thousands of plain topics.
    let wide: Vec<&TopicFilter> =
        highest.keys().copied().filter(|f| f.as_str().contains(['+', '#']) && !f.is_shared()).collect();
    let widest = wide.iter().copied().filter(|f| !wide.iter().any(|w| w != f && w.covers(f)));
    let widest: Vec<&TopicFilter> = widest.collect();
    let mut filters = Filters::new();
    for (filter, qos) in &highest {
        let cover = widest.iter().find(|w| !filter.is_shared() && w.covers(filter)).unwrap_or(filter);
        let entry = filters.entry(cover.as_str().to_owned()).or_default();
        *entry = (*entry).max(*qos);
    }
    filters
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscription(text: &str, qos: u8) -> Subscription {
        Subscription { filter: TopicFilter::parse(text).unwrap(), qos }
    }

    #[track_caller]
    fn check(wanted: &[(&str, u8)], sent: &[(&str, u8)]) {
        let wanted: Vec<_> = wanted.iter().map(|(text, qos)| subscription(text, *qos)).collect();
        let sent: Filters = sent.iter().map(|(text, qos)| ((*text).to_owned(), *qos)).collect();
        assert_eq!(reduce(&wanted), sent);
    }

    #[test]
    fn a_filter_that_another_covers_is_not_sent() {
        check(&[("a/b", 0), ("a/b", 1)], &[("a/b", 1)]);
        check(&[("a/#", 0), ("a/+", 1), ("a/b", 2)], &[("a/#", 2)]);
        check(&[("a/+/c", 1), ("a/b/+", 1)], &[("a/+/c", 1), ("a/b/+", 1)]);
        check(&[("#", 0), ("$share/g/a", 1), ("a", 0)], &[("#", 0), ("$share/g/a", 1)]);
    }

    #[test]
    fn what_is_gone_is_unsubscribed_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mqtt").join("local.json");
        let mut before = Subscriptions::open(file.clone(), "mqtt://a", "me");
        before.want(&[subscription("old", 1), subscription("kept", 1)]);
        assert_eq!(before.connected(false, false).len(), 1);

        let mut after = Subscriptions::open(file.clone(), "mqtt://a", "me");
        assert!(after.connected(true, true).is_empty(), "nothing is touched before something is wanted");
        after.want(&[subscription("kept", 1)]);
        let changes = after.changes(false);
        assert_eq!(changes, [Change::Unsubscribe(vec!["old".to_owned()])]);
        after.asked(1, Change::Unsubscribe(vec!["old".to_owned()]));
        after.unsubscribed(1);
        assert_eq!(read(&file).filters.keys().collect::<Vec<_>>(), ["kept"]);

        let other = Subscriptions::open(file, "mqtt://b", "me");
        assert!(other.held.is_empty(), "another broker holds nothing of it");
    }

    #[test]
    fn a_lost_session_is_asked_for_everything() {
        let folder = tempfile::tempdir().unwrap();
        let mut subscriptions = Subscriptions::open(folder.path().join("b.json"), "mqtt://a", "me");
        subscriptions.want(&[subscription("a", 1)]);
        subscriptions.connected(false, false);
        assert!(subscriptions.connected(true, false).is_empty());
        let all = Change::Subscribe { filters: vec![("a".to_owned(), 1)], number: None };
        assert_eq!(subscriptions.connected(false, false), [all]);
    }

    #[test]
    fn of_the_copies_for_filters_that_overlap_one_counts() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("b.json");
        let mut subscriptions = Subscriptions::open(file.clone(), "mqtt://a", "me");
        subscriptions.want(&[subscription("a/#", 1), subscription("plain", 1)]);
        let changes = subscriptions.connected(false, true);
        assert_eq!(changes[0], Change::Subscribe { filters: vec![("a/#".to_owned(), 1)], number: Some(1) });
        subscriptions.want(&[subscription("a/#", 1), subscription("+/b", 1), subscription("+/+/c", 0)]);
        subscriptions.changes(false);
        // `+/+/c` has number 2, `+/b` has 3.
        for (topic, numbers, repeat) in [
            ("a/b", vec![1], false),
            ("a/b", vec![3], true),
            ("a/b", vec![1, 3], false),
            ("x/b", vec![3], false),
            ("a/x/c", vec![2], true),
            ("a/b", vec![], false),
            ("a/b", vec![9], false),
        ] {
            assert_eq!(subscriptions.is_repeat(topic, &numbers, false), repeat, "{topic} {numbers:?}");
        }

        // What was queued for a filter that is gone may be the only copy. Another QoS is another subscription.
        let mut after = Subscriptions::open(file, "mqtt://a", "me");
        after.want(&[subscription("a/+", 1), subscription("+/b", 2), subscription("+/+/c", 0)]);
        after.connected(true, true);
        assert!(!after.is_repeat("a/b", &[1], false));
        assert!(!after.is_repeat("a/b", &[3], false));
        assert_eq!(after.numbers.values().copied().collect::<Vec<_>>(), [2, 4, 5]);
    }

    #[test]
    fn a_filter_that_was_refused_is_no_reason_to_leave_out_a_copy() {
        let folder = tempfile::tempdir().unwrap();
        let mut subscriptions = Subscriptions::open(folder.path().join("b.json"), "mqtt://a", "me");
        subscriptions.want(&[subscription("+/b", 1), subscription("a/+", 1)]);
        subscriptions.connected(false, true);
        assert!(subscriptions.is_repeat("a/b", &[2], false));
        subscriptions.refuse("+/b");
        assert!(!subscriptions.is_repeat("a/b", &[2], false));
    }
}
