//! Publishes that the broker has not confirmed yet.
//!
//! # Promises
//! - A publish of QoS 1 or 2 stays here until its PUBACK or PUBCOMP, over any number of connections.
//! - After each CONNACK all of them are sent again, in the order in which they were published.
//! - One that the broker refuses, or closes the connection upon again and again, is given back with the reason.

use std::collections::VecDeque;

use crate::invocation::Publish;
use crate::receipt::Receipt;

/// Connections that may end upon the same publish before it is given up. A broker of 3.1.1 has no other way to refuse, and
/// one more try would only end one more connection, with everything else on it.
const STRIKES_MAX: u8 = 5;

/// How far a publish has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// PUBLISH is to be confirmed.
    Publish,
    /// QoS 2: PUBREC has come, PUBREL is to be confirmed.
    Release,
}

/// A publish that is under way.
#[derive(Debug)]
struct Sent {
    publish: Publish,
    receipt: Receipt,
    stage: Stage,
    sequence: u64,
    strikes: u8,
    /// Whether it has been sent before, so that DUP is due when the broker knows the session.
    again: bool,
    /// Whether it was sent on this connection.
    on_wire: bool,
}

/// The publishes under way, by packet id.
#[derive(Debug)]
pub(super) struct Window {
    slots: Vec<Option<Sent>>,
    free: VecDeque<u16>,
    resend: VecDeque<u16>,
    next_sequence: u64,
    /// How many more the broker takes on this connection.
    quota: u16,
    confirmed: u64,
    /// Ids under which a QoS 2 publish may be half done at the broker: an earlier process's, or one that was given up. It would
    /// take the next one for the same again, until it has answered a PUBREL.
    stale: Vec<bool>,
}

/// What is to be sent for a packet id.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// PUBLISH, and whether with DUP; `release_first` asks for a PUBREL in front.
    Publish { id: u16, duplicate: bool, release_first: bool },
    /// PUBREL.
    Release { id: u16 },
}

impl Window {
    /// A window of `size` packet ids: 1 to `size`.
    pub(super) fn new(size: u16) -> Self {
        Self {
            slots: (0..size).map(|_| None).collect(),
            free: (1..=size).collect(),
            resend: VecDeque::new(),
            next_sequence: 0,
            quota: 0,
            confirmed: 0,
            stale: vec![false; usize::from(size)],
        }
    }

    /// How many wait for their confirmation.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// A broker has let us in: everything is due again. `first` says that this process has not been there before.
    pub(super) fn connected(&mut self, session_present: bool, first: bool, receive_maximum: u16, max_qos: u8) {
        self.quota = receive_maximum.max(1);
        self.confirmed = 0;
        if first || !session_present {
            self.stale.fill(session_present);
        }
        let mut due: Vec<(u64, u16)> = Vec::with_capacity(self.len());
        for (id, slot) in (1..).zip(&mut self.slots) {
            if let Some(sent) = slot {
                sent.on_wire = false;
                if !session_present {
                    // The broker has forgotten the first half of the handshake, and with it perhaps the message.
                    sent.stage = Stage::Publish;
                    sent.again = false;
                }
                if sent.stage == Stage::Publish {
                    // QoS 0 has no place here.
                    sent.publish.qos = sent.publish.qos.min(max_qos.max(1));
                }
                due.push((sent.sequence, id));
            }
        }
        due.sort_unstable();
        self.resend = due.into_iter().map(|(_, id)| id).collect();
    }

    /// The connection has ended. Gives back the publish that it has ended upon too often.
    pub(super) fn disconnected(&mut self) -> Option<(Publish, Receipt)> {
        self.quota = 0;
        if self.confirmed > 0 {
            return None;
        }
        let front = self.slots.iter_mut().flatten().filter(|sent| sent.on_wire).min_by_key(|sent| sent.sequence)?;
        front.strikes += 1;
        if front.strikes < STRIKES_MAX {
            return None;
        }
        let sequence = front.sequence;
        let id = (1..).zip(&self.slots).find(|(_, slot)| slot.as_ref().is_some_and(|s| s.sequence == sequence))?.0;
        let given_up = self.take(id)?;
        self.stale[usize::from(id) - 1] |= given_up.publish.qos == 2;
        Some((given_up.publish, given_up.receipt))
    }

    /// Takes a new publish in, or gives it back when there is no room.
    #[expect(clippy::result_large_err, reason = "it goes straight back to the queue that it came from")]
    pub(super) fn add(&mut self, publish: Publish, receipt: Receipt) -> Result<Due, (Publish, Receipt)> {
        if self.quota == 0 {
            return Err((publish, receipt));
        }
        let Some(id) = self.free.pop_front() else { return Err((publish, receipt)) };
        self.quota -= 1;
        let release_first = publish.qos == 2 && self.stale[usize::from(id) - 1];
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let sent = Sent { publish, receipt, stage: Stage::Publish, sequence, strikes: 0, again: true, on_wire: true };
        self.slots[usize::from(id) - 1] = Some(sent);
        Ok(Due::Publish { id, duplicate: false, release_first })
    }

    /// The next one that was sent on an earlier connection and is due again.
    pub(super) fn next_again(&mut self) -> Option<Due> {
        if self.quota == 0 {
            return None;
        }
        let id = self.resend.pop_front()?;
        let sent = self.slots.get_mut(usize::from(id) - 1)?.as_mut()?;
        self.quota -= 1;
        sent.on_wire = true;
        let duplicate = std::mem::replace(&mut sent.again, true);
        let release_first = sent.publish.qos == 2 && self.stale[usize::from(id) - 1];
        Some(match sent.stage {
            Stage::Publish => Due::Publish { id, duplicate, release_first },
            Stage::Release => Due::Release { id },
        })
    }

    /// Whether some are still to be sent again, which comes before anything new.
    pub(super) fn sends_again(&self) -> bool {
        !self.resend.is_empty()
    }

    /// What is under way with `id`.
    pub(super) fn publish(&self, id: u16) -> Option<&Publish> {
        self.slots.get(usize::from(id).checked_sub(1)?)?.as_ref().map(|sent| &sent.publish)
    }

    /// PUBACK, or PUBCOMP when `stage` is `Release`: done.
    pub(super) fn confirm(&mut self, id: u16, stage: Stage) -> Option<(Publish, Receipt)> {
        let sent = self.on_wire(id)?;
        let (qos, is_due) = (sent.publish.qos, sent.stage == stage);
        if stage == Stage::Release && qos == 2 {
            self.stale[usize::from(id) - 1] = false;
        }
        let confirms = if stage == Stage::Release { 2 } else { 1 };
        if is_due && qos == confirms { self.finish(id) } else { None }
    }

    /// PUBACK or PUBREC with a reason why not: done, too.
    pub(super) fn refuse(&mut self, id: u16) -> Option<(Publish, Receipt)> {
        self.on_wire(id)?;
        self.finish(id)
    }

    /// PUBREC: whether a PUBREL is to follow.
    pub(super) fn received(&mut self, id: u16) -> bool {
        match self.on_wire(id) {
            Some(sent) if sent.publish.qos == 2 => {
                sent.stage = Stage::Release;
                self.stale[usize::from(id) - 1] = false;
                true
            }
            _ => false,
        }
    }

    fn take(&mut self, id: u16) -> Option<Sent> {
        let sent = self.slots.get_mut(usize::from(id).checked_sub(1)?)?.take()?;
        self.free.push_back(id);
        Some(sent)
    }

    fn finish(&mut self, id: u16) -> Option<(Publish, Receipt)> {
        self.confirmed += 1;
        self.quota = self.quota.saturating_add(1);
        self.take(id).map(|sent| (sent.publish, sent.receipt))
    }

    /// Acknowledgements of what was not sent on this connection mean nothing.
    fn on_wire(&mut self, id: u16) -> Option<&mut Sent> {
        self.slots.get_mut(usize::from(id).checked_sub(1)?)?.as_mut().filter(|sent| sent.on_wire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publish(qos: u8) -> (Publish, Receipt) {
        let publish = Publish {
            broker: None,
            topic: "a".into(),
            data: bytes::Bytes::new(),
            qos,
            retain: false,
            content_type: None,
            properties: Vec::new(),
        };
        (publish, Receipt::new(|_| ()))
    }

    fn add(window: &mut Window, qos: u8) -> Due {
        let (publish, receipt) = publish(qos);
        window.add(publish, receipt).unwrap()
    }

    fn keep(done: Option<(Publish, Receipt)>) {
        done.unwrap().1.keep();
    }

    #[test]
    fn everything_unconfirmed_is_sent_again_in_order() {
        let mut window = Window::new(10);
        window.connected(false, true, 10, 2);
        for _ in 0..3 {
            add(&mut window, 1);
        }
        keep(window.confirm(2, Stage::Publish));
        add(&mut window, 1);
        assert!(window.disconnected().is_none());
        window.connected(true, false, 10, 2);
        let again: Vec<_> = std::iter::from_fn(|| window.next_again()).collect();
        let due = |id| Due::Publish { id, duplicate: true, release_first: false };
        assert_eq!(again, [due(1), due(3), due(4)]);
        assert_eq!(window.len(), 3);
    }

    #[test]
    fn a_lost_session_gets_whole_messages_without_dup() {
        let mut window = Window::new(10);
        window.connected(true, false, 10, 2);
        add(&mut window, 2);
        assert!(window.received(1));
        window.disconnected();
        window.connected(true, false, 10, 2);
        assert_eq!(window.next_again(), Some(Due::Release { id: 1 }));
        window.disconnected();
        window.connected(false, false, 10, 2);
        assert_eq!(window.next_again(), Some(Due::Publish { id: 1, duplicate: false, release_first: false }));
    }

    #[test]
    fn the_brokers_quota_is_kept_and_comes_back() {
        let mut window = Window::new(10);
        window.connected(false, true, 2, 2);
        add(&mut window, 1);
        add(&mut window, 1);
        let (p, r) = publish(1);
        window.add(p, r).unwrap_err().1.keep();
        keep(window.confirm(1, Stage::Publish));
        add(&mut window, 1);
        window.disconnected();
        window.connected(false, false, 1, 2);
        assert!(window.next_again().is_some());
        assert!(window.next_again().is_none());
        assert!(window.sends_again());
    }

    #[test]
    fn acknowledgements_of_an_earlier_connection_mean_nothing() {
        let mut window = Window::new(10);
        window.connected(false, true, 10, 2);
        add(&mut window, 1);
        window.disconnected();
        window.connected(true, false, 10, 2);
        assert!(window.confirm(1, Stage::Publish).is_none());
        assert!(window.confirm(0, Stage::Publish).is_none());
        assert!(window.confirm(99, Stage::Publish).is_none());
        window.next_again();
        keep(window.confirm(1, Stage::Publish));
        assert_eq!(window.len(), 0);
    }

    #[test]
    fn a_publish_that_ends_every_connection_is_given_up() {
        let mut window = Window::new(10);
        window.connected(false, true, 10, 2);
        add(&mut window, 1);
        for _ in 1..STRIKES_MAX {
            assert!(window.disconnected().is_none());
            window.connected(true, false, 10, 2);
            window.next_again();
        }
        keep(window.disconnected());
        assert_eq!(window.len(), 0);
    }

    #[test]
    fn what_an_earlier_process_left_half_done_does_not_swallow_a_new_message() {
        let mut window = Window::new(2);
        window.connected(true, true, 10, 2);
        assert_eq!(add(&mut window, 2), Due::Publish { id: 1, duplicate: false, release_first: true });
        // The PUBCOMP of that release comes first and is not ours.
        assert!(window.confirm(1, Stage::Release).is_none());
        assert!(window.received(1));
        keep(window.confirm(1, Stage::Release));
    }

    #[test]
    fn an_id_stays_suspect_until_the_broker_has_answered_its_release() {
        let mut window = Window::new(1);
        window.connected(true, true, 10, 2);
        // One of QoS 1 says nothing about it.
        assert_eq!(add(&mut window, 1), Due::Publish { id: 1, duplicate: false, release_first: false });
        keep(window.confirm(1, Stage::Publish));
        let first = Due::Publish { id: 1, duplicate: false, release_first: true };
        assert_eq!(add(&mut window, 2), first);
        // Neither the release nor the publish may have arrived.
        window.disconnected();
        window.connected(true, false, 10, 2);
        assert_eq!(window.next_again(), Some(Due::Publish { id: 1, duplicate: true, release_first: true }));
        assert!(window.confirm(1, Stage::Release).is_none());
        window.disconnected();
        window.connected(true, false, 10, 2);
        assert_eq!(window.next_again(), Some(Due::Publish { id: 1, duplicate: true, release_first: false }));
        assert!(window.received(1));
        keep(window.confirm(1, Stage::Release));
        assert_eq!(add(&mut window, 2), Due::Publish { id: 1, duplicate: false, release_first: false });
    }

    #[test]
    fn a_broker_without_qos_2_gets_it_at_qos_1() {
        let mut window = Window::new(10);
        window.connected(false, true, 10, 2);
        add(&mut window, 2);
        window.disconnected();
        window.connected(false, false, 10, 1);
        assert_eq!(window.next_again(), Some(Due::Publish { id: 1, duplicate: false, release_first: false }));
        assert_eq!(window.publish(1).unwrap().qos, 1);
        keep(window.confirm(1, Stage::Publish));
    }
}
