//! Who has had what: every sample that was sent and every record that arrived, so that a loss can be named.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;

/// A sample: device and sequence number.
pub(super) type SampleId = (String, u64);
/// A window: device and number.
pub(super) type WindowId = (String, u64);

/// A record as the uplink sends it.
#[derive(Debug, Deserialize)]
struct Envelope {
    id: String,
    replayed: bool,
    data: Activity,
}

/// What the function appends when it has handled every sample of a window.
#[derive(Clone, Debug, Deserialize)]
struct Activity {
    device: String,
    window: u64,
    activity: String,
    seq_first: u64,
    seq_last: u64,
}

/// Shared by all who report. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    books: Arc<Mutex<Books>>,
}

/// See [`Ledger`].
#[derive(Debug, Default)]
pub(super) struct Books {
    /// Acknowledged by the local broker.
    pub(super) sent: BTreeSet<SampleId>,
    /// Samples in the windows that have arrived: a window is only complete once each of them was handled.
    pub(super) handled: BTreeSet<SampleId>,
    /// Records at the cloud, by record id; more than one is a repeat.
    pub(super) arrived: BTreeMap<String, u32>,
    /// The activity that each window's record says.
    pub(super) activities: BTreeMap<WindowId, BTreeSet<String>>,
    /// The windows, as their records arrived first.
    pub(super) order: Vec<WindowId>,
    /// Records that had waited for the link.
    pub(super) replayed: u64,
    /// Messages that are not what was expected; each is a failure.
    pub(super) malformed: Vec<String>,
}

impl Ledger {
    /// The books, while nobody writes.
    pub(super) fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The local broker has a sample.
    pub(super) fn sent(&self, sample: SampleId) {
        self.books().sent.insert(sample);
    }

    /// A record is at the cloud.
    pub(super) fn arrived(&self, payload: &[u8]) {
        let mut books = self.books();
        match serde_json::from_slice::<Envelope>(payload) {
            Ok(Envelope { id, replayed, data }) => {
                *books.arrived.entry(id).or_default() += 1;
                books.replayed += u64::from(replayed);
                books.handled.extend((data.seq_first..=data.seq_last).map(|seq| (data.device.clone(), seq)));
                let window = (data.device, data.window);
                if !books.activities.contains_key(&window) {
                    books.order.push(window.clone());
                }
                books.activities.entry(window).or_default().insert(data.activity);
            }
            Err(error) => books.malformed.push(format!("record: {error}")),
        }
    }
}

impl Books {
    /// Samples that were sent and never handled.
    pub(super) fn unhandled(&self) -> Vec<&SampleId> {
        self.sent.iter().filter(|sample| !self.handled.contains(*sample)).collect()
    }

    /// Arrivals beyond the first of each record.
    pub(super) fn repeated_records(&self) -> u64 {
        self.arrived.values().map(|times| u64::from(times - 1)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_that_is_in_no_window_is_named() {
        let ledger = Ledger::default();
        ledger.sent(("watch-1".to_owned(), 0));
        ledger.sent(("watch-1".to_owned(), 2));
        let record = r#"{"id":"demo/activities/1","replayed":false,"data":{"device":"watch-1","window":0,
            "activity":"Walking","seq_first":0,"seq_last":1}}"#;
        ledger.arrived(record.as_bytes());
        ledger.arrived(record.as_bytes());
        let books = ledger.books();
        assert_eq!(books.unhandled(), [&("watch-1".to_owned(), 2)]);
        assert_eq!(books.repeated_records(), 1);
    }

    #[test]
    fn a_record_that_cannot_be_read_is_not_passed_over() {
        let ledger = Ledger::default();
        ledger.arrived(b"{}");
        assert_eq!(ledger.books().malformed.len(), 1);
    }
}
