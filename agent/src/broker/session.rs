//! The task that keeps one broker's session: connects, serves the connection, and connects again.

use std::collections::{HashSet, VecDeque};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::connection::Wire;
use super::echo::Echoes;
use super::greeting::{Caps, Greeting, Hello};
use super::packet::{Codec, Received, Reply, Version};
use super::subscriptions::{Change, Subscriptions};
use super::transport::{BackOff, Transport};
use super::window::{Due, Stage, Window};
use super::{Incoming, Link, OnMessage, Shared};
use crate::config::MqttConfig;
use crate::invocation::Publish;
use crate::limits::Limits;
use crate::receipt::{NotKept, Receipt};
use crate::trigger::mqtt::HOPS_PROPERTY;

/// Room for topic and properties beside the payload.
const PACKET_OVERHEAD_BYTES: u32 = 128 << 10;
/// A connection that lasted this long was a good one: the next try comes soon.
const GOOD_CONNECTION: Duration = Duration::from_secs(5);
/// QoS 2 publishes under way to a broker of 3.1.1, which cannot name its own limit. mosquitto 2.0 confirms what comes beyond
/// its 20, and then delivers none of it.
const QOS_2_AT_ONCE: usize = 20;
/// "Never", for a timer.
const FAR: Duration = Duration::from_secs(365 * 86_400);

/// Everything that outlives a connection.
pub(super) struct Session {
    shared: Arc<Shared>,
    transport: Transport,
    version: Version,
    hello: Hello,
    packet_bytes_max: u32,
    /// What gateway.toml says of the broker, which one of 3.1.1 cannot say itself.
    max_qos: u8,
    max_in_flight: u16,
    outgoing_bytes_max: u32,
    caps: Caps,
    event_bytes_max: u64,
    subscriptions: Subscriptions,
    to: Option<Arc<dyn OnMessage>>,
    /// Came before anyone wanted to hear.
    early: Vec<(Incoming, Receipt)>,
    /// Capabilities and session expiry that the log has been told of.
    told_limits: Option<(Caps, u32)>,
    queue: VecDeque<(Publish, Receipt)>,
    window: Window,
    echoes: Echoes,
    /// QoS 2 messages that we have taken over (PUBREC) and the broker has not released (PUBREL): not to be heard twice.
    taken_over: HashSet<u16>,
    paused: bool,
    first: bool,
    publish_ids: u16,
    last_control_id: u16,
    failures: BackOff,
    retry_at: Option<Instant>,
    /// Publishes that are done since room was last given back.
    done: usize,
}

impl Session {
    pub(super) fn new(
        shared: Arc<Shared>,
        transport: Transport,
        version: Version,
        hello: Hello,
        subscriptions: Subscriptions,
        config: &MqttConfig,
        limits: &Limits,
    ) -> Self {
        let event_bytes_max = limits.event_bytes_max.0;
        Self {
            shared,
            transport,
            version,
            hello,
            packet_bytes_max: u32::try_from(event_bytes_max).unwrap_or(u32::MAX).saturating_add(PACKET_OVERHEAD_BYTES),
            max_qos: config.max_qos,
            max_in_flight: config.max_in_flight.map_or(u16::MAX, |max| u16::try_from(max).unwrap_or(u16::MAX)),
            outgoing_bytes_max: config.max_packet.map_or(u32::MAX, |max| u32::try_from(max.0).unwrap_or(u32::MAX)),
            caps: Caps::of(version),
            event_bytes_max,
            subscriptions,
            to: None,
            early: Vec::new(),
            told_limits: None,
            queue: VecDeque::new(),
            window: Window::new(limits.mqtt_unconfirmed_max),
            echoes: Echoes::default(),
            taken_over: HashSet::new(),
            paused: false,
            first: true,
            publish_ids: limits.mqtt_unconfirmed_max,
            last_control_id: u16::MAX,
            failures: BackOff::new(Duration::from_secs(1), Duration::from_secs(60)),
            retry_at: None,
            done: 0,
        }
    }

    /// Runs until `cancel`.
    pub(super) async fn run(mut self, cancel: CancellationToken) {
        let mut back_off = BackOff::new(Duration::from_millis(250), Duration::from_secs(30));
        loop {
            let opened =
                Wire::open(&self.transport, self.version, &self.hello, self.packet_bytes_max, self.outgoing_bytes_max);
            let opened = tokio::select! {
                biased;
                opened = opened => opened,
                () = cancel.cancelled() => break,
            };
            let why = match opened {
                Err(why) => why,
                Ok((wire, greeting)) => {
                    let since = self.shared.clock.instant();
                    let ended = self.serve(wire, &greeting, &cancel).await;
                    self.ended();
                    if self.shared.clock.instant() - since > GOOD_CONNECTION {
                        back_off.reset();
                    }
                    match ended {
                        Ok(()) => break,
                        Err(why) => why,
                    }
                }
            };
            self.down(why);
            tokio::select! {
                biased;
                () = tokio::time::sleep(back_off.step()) => {}
                () = cancel.cancelled() => break,
            }
        }
        self.shared.set_link(Link::Down);
        self.shared.room.close();
        // What was never taken holds on to those who ordered it, and they to this broker.
        let left = std::mem::take(&mut *self.shared.orders());
        drop(left);
        self.shared.ended.cancel();
    }

    /// Serves one connection until it ends: `Ok` when we ended it.
    async fn serve(&mut self, mut wire: Wire, greeting: &Greeting, cancel: &CancellationToken) -> Result<(), String> {
        let keep_alive =
            match Duration::from_secs(greeting.keep_alive_secs.unwrap_or(self.hello.keep_alive_secs).into()) {
                Duration::ZERO => FAR,
                keep_alive => keep_alive,
            };
        self.up(&mut wire, greeting)?;
        let signal = Arc::clone(&self.shared.signal);
        let mut cancelled = pin!(cancel.cancelled());
        let mut ping_at = self.shared.clock.instant() + keep_alive;
        let mut unanswered = false;
        let mut timer: std::pin::Pin<&mut Sleep> = pin!(tokio::time::sleep_until(ping_at));
        loop {
            self.take_orders(&mut wire)?;
            // Before the first wait too: what comes right behind CONNACK has been read with it.
            while let Some(packet) = wire.next()? {
                if matches!(packet, Received::PingResp) {
                    unanswered = false;
                } else {
                    self.take(packet, &mut wire)?;
                }
            }
            self.send(&mut wire);
            self.give_back_room();

            let deadline = self.retry_at.map_or(ping_at, |at| at.min(ping_at));
            if timer.deadline() != deadline {
                timer.as_mut().reset(deadline);
            }
            let mut ticked = false;
            let ended = std::future::poll_fn(|cx| {
                if cancelled.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(Ok(true));
                }
                let io = wire.poll(cx);
                if let Poll::Ready(Err(why)) = io {
                    return Poll::Ready(Err(why));
                }
                let signalled = signal.poll(cx).is_ready();
                ticked = timer.as_mut().poll(cx).is_ready();
                if io.is_ready() || signalled || ticked { Poll::Ready(Ok(false)) } else { Poll::Pending }
            })
            .await?;
            if ended {
                return self.say_good_bye(wire).await;
            }

            if ticked {
                let now = self.shared.clock.instant();
                if now >= ping_at {
                    if unanswered {
                        return Err(format!("no answer to PINGREQ within {} s", keep_alive.as_secs()));
                    }
                    Codec::ping(&mut wire.outgoing);
                    unanswered = true;
                    ping_at = now + keep_alive;
                }
                if self.retry_at.is_some_and(|at| now >= at) {
                    self.retry_at = None;
                    let shared = Arc::clone(&self.shared);
                    shared.inbox.hand_out_failed(|message, receipt| self.hand_out(message, Some(receipt)));
                }
            }
        }
    }

    fn up(&mut self, wire: &mut Wire, greeting: &Greeting) -> Result<(), String> {
        let present = greeting.session_present;
        tracing::info!(broker = %self.shared.name, session_present = present, "connected to the broker");
        self.caps = Caps { max_qos: greeting.caps.max_qos.min(self.max_qos), ..greeting.caps };
        self.tell_limits(greeting);
        let at_once = greeting.receive_maximum.min(self.max_in_flight);
        self.window.connected(present, self.first, at_once, self.caps.max_qos);
        self.shared.counters.at_once.store(at_once.into(), Ordering::Relaxed);
        if !present {
            self.taken_over.clear();
        }
        if !std::mem::take(&mut self.first) {
            self.shared.counters.reconnects.fetch_add(1, Ordering::Relaxed);
        }
        {
            let mut standing = self.shared.standing();
            standing.last_error = None;
            standing.refused.clear();
        }
        self.shared.set_link(Link::Up);
        // 3.1.1 cannot ask for a subscription without its retained messages, so it is not renewed when the broker has it.
        let changes = self.subscriptions.connected(present, self.version == Version::V5);
        self.ask(changes, wire)
    }

    /// What the broker has less of than was asked for, when it is not what it said the last time.
    fn tell_limits(&mut self, greeting: &Greeting) {
        let asked = self.hello.session_expiry_secs;
        let granted = greeting.session_expiry_secs.unwrap_or(asked);
        let limits = (self.caps, granted);
        if self.told_limits.replace(limits) == Some(limits) {
            return;
        }
        let broker = &self.shared.name;
        if self.caps.max_qos < 2 {
            tracing::info!(%broker, max_qos = self.caps.max_qos, "what is published at a higher QoS goes at the broker's highest");
        }
        if !self.caps.retain {
            tracing::info!(%broker, "the broker retains nothing: `retain` of what is published does not count");
        }
        if granted < asked {
            tracing::warn!(%broker, asked_secs = asked, granted_secs = granted, "the broker keeps the session for a shorter time than `session_expiry`");
        }
    }

    fn down(&self, why: String) {
        self.shared.set_link(Link::Down);
        let mut standing = self.shared.standing();
        // Once per reason, not per try.
        if standing.last_error.as_ref() != Some(&why) {
            tracing::warn!(broker = %self.shared.name, reason = why, "no connection to the broker, trying again");
            standing.last_error = Some(why);
        }
    }

    /// What a connection leaves behind when it ends.
    fn ended(&mut self) {
        // Before anything is given back: who hears of it may ask how the link is.
        self.shared.set_link(Link::Down);
        self.retry_at = None;
        self.early.clear();
        self.shared.inbox.forget();
        if let Some((publish, receipt)) = self.window.disconnected() {
            self.done += 1;
            let Publish { topic, qos, data, .. } = publish;
            let bytes = data.len();
            tracing::error!(broker = %self.shared.name, %topic, qos, bytes, "given up: each connection ends upon this publish");
            let why = format!("broker `{}` closes the connection upon a publish on `{topic}`", self.shared.name);
            receipt.fail(NotKept::ForGood(why));
        }
        self.give_back_room();
    }

    fn take_orders(&mut self, wire: &mut Wire) -> Result<(), String> {
        let subscribe = {
            let mut orders = self.shared.orders();
            self.paused |= orders.pause;
            if self.queue.is_empty() {
                std::mem::swap(&mut self.queue, &mut orders.publishes);
            } else {
                self.queue.append(&mut orders.publishes);
            }
            orders.subscribe.take()
        };
        if let Some((subscriptions, to)) = subscribe {
            self.to = Some(to);
            for (message, receipt) in std::mem::take(&mut self.early) {
                self.hand_out(message, Some(receipt));
            }
            self.shared.standing().refused.clear();
            self.subscriptions.want(&subscriptions);
            let changes = self.subscriptions.changes(false);
            self.ask(changes, wire)?;
        }
        Ok(())
    }

    fn ask(&mut self, changes: Vec<Change>, wire: &mut Wire) -> Result<(), String> {
        for mut change in changes {
            self.leave_out_what_the_broker_lacks(&mut change);
            // Packet ids above those of publishes.
            self.last_control_id = self.last_control_id.checked_add(1).unwrap_or(self.publish_ids.saturating_add(1));
            let id = self.last_control_id;
            match &change {
                Change::Subscribe { filters, .. } if filters.is_empty() => continue,
                Change::Subscribe { filters, number } => {
                    let number = number.filter(|_| self.caps.subscription_ids);
                    wire.codec.subscribe(id, filters, number, &mut wire.outgoing)?;
                }
                Change::Unsubscribe(filters) => wire.codec.unsubscribe(id, filters, &mut wire.outgoing)?,
            }
            self.subscriptions.asked(id, change);
        }
        self.set_ready();
        Ok(())
    }

    /// To ask for it would end the connection.
    fn leave_out_what_the_broker_lacks(&mut self, change: &mut Change) {
        let Change::Subscribe { filters, .. } = change else { return };
        let caps = self.caps;
        filters.iter_mut().for_each(|(_, qos)| *qos = (*qos).min(caps.max_qos));
        let lacks = |filter: &str| match () {
            () if !caps.shares && filter.starts_with("$share/") => Some("the broker has no shared subscriptions"),
            () if !caps.wildcards && filter.contains(['+', '#']) => Some("the broker has no wildcards"),
            () => None,
        };
        let mut refused = Vec::new();
        filters.retain(|(filter, _)| match lacks(filter) {
            Some(why) => {
                refused.push((filter.clone(), why.to_owned()));
                false
            }
            None => true,
        });
        for (filter, _) in &refused {
            self.subscriptions.refuse(filter);
        }
        self.tell_refused(refused);
    }

    fn tell_refused(&self, refused: Vec<(String, String)>) {
        for (filter, why) in &refused {
            tracing::error!(broker = %self.shared.name, filter, reason = why, "the broker refuses the subscription");
        }
        self.shared.standing().refused.extend(refused);
    }

    fn set_ready(&self) {
        let orders = self.shared.orders();
        let is_ready = self.subscriptions.is_settled() && orders.subscribe.is_none();
        self.shared.set_link(if is_ready { Link::Ready } else { Link::Up });
    }

    /// Puts acknowledgements and publishes into the write buffer, as far as broker and buffer take them.
    fn send(&mut self, wire: &mut Wire) {
        let mut settled = false;
        self.shared.inbox.take_settled(|id, qos| {
            settled = true;
            if qos == 2 {
                self.taken_over.insert(id);
                Codec::ack(Reply::Rec, id, &mut wire.outgoing);
            } else {
                Codec::ack(Reply::Ack, id, &mut wire.outgoing);
            }
        });
        if settled {
            self.failures.reset();
        }
        self.plan_retry();
        while !wire.is_congested()
            && let Some(due) = self.window.next_again()
        {
            self.write(due, wire);
        }
        while !wire.is_congested() && !self.window.sends_again() {
            let Some((mut publish, receipt)) = self.queue.pop_front() else { break };
            publish.qos = publish.qos.min(self.caps.max_qos);
            publish.retain &= self.caps.retain;
            if publish.qos == 2 && self.version == Version::V3 && self.window.len() >= QOS_2_AT_ONCE {
                self.queue.push_front((publish, receipt));
                break;
            }
            if self.version == Version::V3
                && let Some(hops) = publish.properties.iter().find(|(name, _)| name == HOPS_PROPERTY)
            {
                self.echoes.remember(&publish.topic, &publish.data, hops.1.parse().unwrap_or(0));
            }
            if publish.qos == 0 {
                self.done += 1;
                match wire.codec.publish(&publish, 0, false, &mut wire.outgoing) {
                    Ok(()) => {
                        self.shared.counters.published.fetch_add(1, Ordering::Relaxed);
                        receipt.keep();
                    }
                    Err(why) => receipt.fail(NotKept::ForGood(why)),
                }
                continue;
            }
            match self.window.add(publish, receipt) {
                Ok(due) => self.write(due, wire),
                Err(back) => {
                    self.queue.push_front(back);
                    break;
                }
            }
        }
    }

    fn write(&mut self, due: Due, wire: &mut Wire) {
        match due {
            Due::Release { id } => Codec::ack(Reply::Rel, id, &mut wire.outgoing),
            Due::Publish { id, duplicate, release_first } => {
                if release_first {
                    Codec::ack(Reply::Rel, id, &mut wire.outgoing);
                }
                let Some(publish) = self.window.publish(id) else { return };
                if let Err(why) = wire.codec.publish(publish, id, duplicate, &mut wire.outgoing) {
                    let refused = self.window.refuse(id);
                    self.finish(refused, Some(NotKept::ForGood(why)));
                }
            }
        }
    }

    /// What has come, other than PINGRESP.
    fn take(&mut self, packet: Received, wire: &mut Wire) -> Result<(), String> {
        match packet {
            Received::Publish { id, message, subscriptions } => {
                let repeat = self.subscriptions.is_repeat(&message.topic, &subscriptions, message.retain);
                self.take_message(id, message, repeat, wire);
            }
            Received::TooLarge { id, qos, topic, bytes } => {
                let max = self.event_bytes_max;
                tracing::error!(broker = %self.shared.name, topic, bytes, max, "dropped a message over `limits.event_bytes_max`");
                self.shared.counters.dropped.fetch_add(1, Ordering::Relaxed);
                if qos > 0 {
                    self.settle_unheard(id, qos);
                }
            }
            Received::PubAck { id, refused: None } => {
                let confirmed = self.window.confirm(id, Stage::Publish);
                self.finish(confirmed, None);
            }
            Received::PubComp(id) => {
                let confirmed = self.window.confirm(id, Stage::Release);
                self.finish(confirmed, None);
            }
            Received::PubAck { id, refused: Some(why) } | Received::PubRec { id, refused: Some(why) } => {
                let refused = self.window.refuse(id);
                let broker = &self.shared.name;
                let told = why.told(|why| format!("broker `{broker}` refuses the publish: {why}"));
                self.finish(refused, Some(told));
            }
            Received::PubRec { id, refused: None } => {
                // Also for what we do not know: an earlier process's, which the broker is to forget.
                self.window.received(id);
                Codec::ack(Reply::Rel, id, &mut wire.outgoing);
            }
            Received::PubRel(id) => {
                // Also for what we do not know, for the same reason.
                self.taken_over.remove(&id);
                Codec::ack(Reply::Comp, id, &mut wire.outgoing);
            }
            Received::SubAck { id, results } => {
                let refused = self.subscriptions.subscribed(id, results);
                self.tell_refused(refused);
                self.set_ready();
            }
            Received::UnsubAck(id) => {
                self.subscriptions.unsubscribed(id);
                self.set_ready();
            }
            Received::Disconnect(why) => return Err(format!("the broker says good-bye: {why}")),
            Received::ConnAck(_) => return Err("the broker greets twice".to_owned()),
            Received::PingResp => {}
        }
        Ok(())
    }

    /// Acknowledges, in its turn, what nobody is to hear.
    fn settle_unheard(&self, id: u16, qos: u8) {
        self.shared.inbox.admit_unheard(id, qos);
    }

    fn take_message(&mut self, id: u16, mut message: Incoming, repeat: bool, wire: &mut Wire) {
        if self.paused {
            return;
        }
        if self.version == Version::V3
            && let Some(hops) = self.echoes.hops(&message.topic, &message.payload)
        {
            message.properties.push((HOPS_PROPERTY.to_owned(), hops.to_string()));
        }
        self.shared.counters.received.fetch_add(1, Ordering::Relaxed);
        if message.qos == 0 {
            if !repeat {
                self.hand_out(message, None);
            }
            return;
        }
        if message.qos == 2 && self.taken_over.contains(&id) {
            return Codec::ack(Reply::Rec, id, &mut wire.outgoing);
        }
        if message.duplicate && self.shared.inbox.holds(id) {
            return;
        }
        if repeat {
            return self.settle_unheard(id, message.qos);
        }
        if let Some(receipt) = self.shared.inbox.admit(id, message.clone()) {
            self.hand_out(message, Some(receipt));
        }
    }

    fn hand_out(&mut self, message: Incoming, receipt: Option<Receipt>) {
        match (&self.to, receipt) {
            (Some(to), receipt) => to.on_message(message, receipt),
            (None, Some(receipt)) => self.early.push((message, receipt)),
            (None, None) => {}
        }
    }

    fn finish(&mut self, done: Option<(Publish, Receipt)>, refused: Option<NotKept>) {
        let Some((publish, receipt)) = done else { return };
        self.done += 1;
        match refused {
            None => {
                self.shared.counters.published.fetch_add(1, Ordering::Relaxed);
                receipt.keep();
            }
            Some(why) => {
                tracing::warn!(broker = %self.shared.name, topic = %publish.topic, reason = %why, "a publish was refused");
                receipt.fail(why);
            }
        }
    }

    fn plan_retry(&mut self) {
        if self.retry_at.is_some() {
            return;
        }
        let (failed, why) = self.shared.inbox.failed();
        if failed > 0 {
            let wait = self.failures.step();
            let retry_in_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            let reason = why.unwrap_or_default();
            tracing::warn!(broker = %self.shared.name, failed, reason, retry_in_ms, "messages could not be handled, and are kept");
            self.retry_at = Some(self.shared.clock.instant() + wait);
        }
    }

    fn give_back_room(&mut self) {
        if self.done > 0 {
            self.shared.room.add_permits(std::mem::take(&mut self.done));
        }
    }

    /// Writes what has settled and DISCONNECT, if the broker still listens.
    async fn say_good_bye(&mut self, mut wire: Wire) -> Result<(), String> {
        self.send(&mut wire);
        Codec::disconnect(&mut wire.outgoing);
        let flushed = std::future::poll_fn(|cx| wire.poll_flush(cx));
        let _ = tokio::time::timeout(Duration::from_secs(1), flushed).await;
        Ok(())
    }
}
