//! A broker in memory: MQTT 5 and 3.1.1, persistent sessions, every QoS both ways. It keeps the standard strictly, and tells
//! the ledger of what it took over, was told and lost, and of each client that does not keep it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use crate::ledger::Ledger;
use crate::packet::{self, Connect, Message, Packet, Wanted};

/// What one broker allows, and what a restart leaves of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether sessions outlive a restart.
    pub persistent: bool,
    /// QoS 1 and 2 publishes that it takes at the same time from one client.
    pub receive_maximum: u16,
    /// Largest packet, in bytes, told to clients of MQTT 5.
    pub bytes_max: Option<u32>,
    /// Highest QoS that it takes.
    pub qos_max: u8,
}

pub struct Broker {
    pub name: &'static str,
    pub options: Options,
    ledger: Arc<Ledger>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    is_down: bool,
    sessions: BTreeMap<String, Session>,
    retained: BTreeMap<String, Message>,
    connections: u64,
}

#[derive(Default)]
struct Session {
    filters: Vec<Wanted>,
    /// To be sent for the first time.
    waiting: VecDeque<Message>,
    /// Sent and not confirmed, in the order of the first time.
    sent: VecDeque<Sent>,
    /// Ids of QoS 2 publishes that are not released.
    received: BTreeSet<u16>,
    last_id: u16,
    connection: Option<Connection>,
}

struct Connection {
    number: u64,
    version: u8,
    wake: Arc<Notify>,
    receive_maximum: usize,
    /// Ids of QoS 2 publishes of this connection that are not released: they alone count against its receive maximum.
    open: BTreeSet<u16>,
    replies: BytesMut,
    ends: bool,
}

struct Sent {
    id: u16,
    message: Message,
    /// PUBREC has come.
    received: bool,
    on_wire: bool,
    again: bool,
}

impl Broker {
    pub fn new(name: &'static str, options: Options, ledger: Arc<Ledger>) -> Self {
        Self { name, options, ledger, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn is_up(&self) -> bool {
        !self.state().is_down
    }

    /// Ends it. What it does not keep is gone.
    pub fn stop(&self) {
        let mut state = self.state();
        state.is_down = true;
        for session in state.sessions.values_mut() {
            session.disconnected();
        }
        if !self.options.persistent {
            let sessions = std::mem::take(&mut state.sessions);
            state.retained.clear();
            for session in sessions.into_values() {
                let sent = session.sent.into_iter().filter(|sent| !sent.received).map(|sent| sent.message);
                for message in sent.chain(session.waiting) {
                    self.ledger.lost_by_broker(self.name, &message);
                }
            }
        }
    }

    pub fn start(&self) {
        self.state().is_down = false;
    }

    /// The agent's process is gone, and its connections with it.
    pub fn lose_connections(&self) {
        self.state().sessions.values_mut().for_each(Session::disconnected);
    }

    /// Takes a message of a device, which hears of it unless the broker is down.
    pub fn take(&self, message: &Message) -> bool {
        let mut state = self.state();
        if state.is_down {
            return false;
        }
        self.spread(&mut state, message);
        true
    }

    /// Whether some session wants to hear `topic`.
    pub fn is_heard(&self, topic: &str) -> bool {
        let state = self.state();
        state.sessions.values().any(|session| session.filters.iter().any(|wanted| matches(&wanted.filter, topic)))
    }

    /// Messages that clients have not confirmed.
    pub fn backlog(&self) -> usize {
        self.state().sessions.values().map(|session| session.waiting.len() + session.sent.len()).sum()
    }

    /// Serves one connection until it ends.
    pub async fn serve(self: Arc<Self>, mut stream: crate::pipe::Socket) {
        let (mut incoming, mut outgoing) = (BytesMut::new(), BytesMut::new());
        let (wake, mut me) = (Arc::new(Notify::new()), None::<(String, u64)>);
        loop {
            let version = me.as_ref().map_or(5, |(client, number)| self.version(client, *number).unwrap_or(5));
            loop {
                match packet::read(&mut incoming, version) {
                    Ok(None) => break,
                    Ok(Some(packet)) => match (packet, &me) {
                        (Packet::Connect(connect), None) => {
                            me = Some(self.welcome(connect, &wake, &mut outgoing));
                            break;
                        }
                        (Packet::Disconnect, Some((client, number))) => return self.end(client, *number),
                        (packet, Some((client, number))) => {
                            if let Err(why) = self.hear(client, *number, packet) {
                                self.ledger.violation(format!("{} says of {client}: {why}", self.name));
                                return self.end(client, *number);
                            }
                        }
                        (packet, None) => {
                            return self.ledger.violation(format!("{}: {packet:?} before CONNECT", self.name));
                        }
                    },
                    Err(why) => return self.ledger.violation(format!("{}: a malformed packet: {why}", self.name)),
                }
            }
            if let Some((client, number)) = &me
                && !self.say(client, *number, &mut outgoing)
            {
                return;
            }
            if !outgoing.is_empty() {
                if stream.write_all(&outgoing.split()).await.is_err() {
                    break;
                }
                continue;
            }
            tokio::select! {
                biased;
                () = wake.notified() => {}
                read = stream.read_buf(&mut incoming) => if !matches!(read, Ok(1..)) { break },
            }
        }
        if let Some((client, number)) = me {
            self.end(&client, number);
        }
    }

    fn version(&self, client: &str, number: u64) -> Option<u8> {
        let state = self.state();
        let connection = state.sessions.get(client)?.connection.as_ref()?;
        (connection.number == number).then_some(connection.version)
    }

    fn welcome(&self, connect: Connect, wake: &Arc<Notify>, out: &mut BytesMut) -> (String, u64) {
        let mut state = self.state();
        state.connections += 1;
        let number = state.connections;
        let Connect { version, client, clean, receive_maximum, .. } = connect;
        if clean {
            state.sessions.remove(&client);
        }
        let present = state.sessions.contains_key(&client);
        let session = state.sessions.entry(client.clone()).or_default();
        session.disconnected();
        session.connection = Some(Connection {
            number,
            version,
            wake: Arc::clone(wake),
            receive_maximum: receive_maximum.into(),
            open: BTreeSet::new(),
            replies: BytesMut::new(),
            ends: false,
        });
        tracing::debug!(target: "broker", broker = self.name, client, present, "lets the agent in");
        let Options { receive_maximum, bytes_max, qos_max, .. } = self.options;
        packet::welcome(version, present, receive_maximum, bytes_max, qos_max, out);
        (client, number)
    }

    fn end(&self, client: &str, number: u64) {
        let mut state = self.state();
        if let Some(session) = state.sessions.get_mut(client)
            && session.connection.as_ref().is_some_and(|connection| connection.number == number)
        {
            session.disconnected();
        }
    }

    /// Takes what a client said.
    fn hear(&self, client: &str, number: u64, packet: Packet) -> Result<(), String> {
        let mut state = self.state();
        let Some(session) = state.sessions.get_mut(client) else { return Ok(()) };
        let Some(connection) = session.connection.as_mut().filter(|c| c.number == number) else { return Ok(()) };
        let version = connection.version;
        match packet {
            Packet::Publish { id, message, duplicate } => {
                let size = message.topic.len() + message.payload.len() + message.properties.len();
                if message.qos > self.options.qos_max {
                    return Err(format!("a publish of QoS {} on `{}`", message.qos, message.topic));
                }
                if self.options.bytes_max.is_some_and(|max| size > max as usize) {
                    return Err(format!("a publish of {size} bytes on `{}`", message.topic));
                }
                let is_new = message.qos < 2 || session.received.insert(id);
                if message.qos == 2 {
                    connection.open.insert(id);
                }
                if connection.open.len() > usize::from(self.options.receive_maximum) && version == 5 {
                    return Err("more QoS 2 publishes than it may have under way".to_owned());
                }
                match message.qos {
                    0 => {}
                    1 => packet::reply(0x40, id, 0, &mut connection.replies),
                    _ => packet::reply(0x50, id, 0, &mut connection.replies),
                }
                connection.wake.notify_one();
                if is_new {
                    self.ledger.arrived(self.name, &message, duplicate);
                    self.spread(&mut state, &message);
                }
            }
            Packet::PubAck(id) => session.confirm(id, 1, |message| self.ledger.confirmed(self.name, message))?,
            Packet::PubRec(id) => {
                session.confirm(id, 2, |message| self.ledger.confirmed(self.name, message))?;
                if let Some(connection) = &mut session.connection {
                    packet::reply(0x62, id, 0, &mut connection.replies);
                    connection.wake.notify_one();
                }
            }
            Packet::PubRel(id) => {
                session.received.remove(&id);
                connection.open.remove(&id);
                packet::reply(0x70, id, 0, &mut connection.replies);
                connection.wake.notify_one();
            }
            Packet::PubComp(id) => {
                session.sent.retain(|sent| !(sent.id == id && sent.received));
                session.wake();
            }
            Packet::Subscribe { id, filters } => {
                let mut retained = Vec::new();
                let codes: Vec<u8> = filters.iter().map(|wanted| wanted.qos).collect();
                packet::answer(0x90, id, &codes, version, &mut connection.replies);
                for wanted in filters {
                    let known = session.filters.iter().any(|other| other.filter == wanted.filter);
                    session.filters.retain(|other| other.filter != wanted.filter);
                    if wanted.retain_handling == 0 || wanted.retain_handling == 1 && !known {
                        retained.push(wanted.clone());
                    }
                    session.filters.push(wanted);
                }
                session.wake();
                for wanted in retained {
                    let kept = state.retained.iter().filter(|(topic, _)| matches(&wanted.filter, topic));
                    let kept: Vec<Message> = kept.map(|(_, message)| message.clone()).collect();
                    for message in kept {
                        let qos = message.qos.min(wanted.qos);
                        self.queue(&mut state, client, Message { qos, retain: true, ..message });
                    }
                }
            }
            Packet::Unsubscribe { id, filters } => {
                let codes = vec![0; filters.len()];
                session.filters.retain(|wanted| !filters.contains(&wanted.filter));
                packet::answer(0xb0, id, &codes, version, &mut connection.replies);
                connection.wake.notify_one();
            }
            Packet::PingReq => {
                packet::pong(&mut connection.replies);
                connection.wake.notify_one();
            }
            Packet::Connect(_) => return Err("a second CONNECT".to_owned()),
            Packet::Disconnect => {}
        }
        Ok(())
    }

    /// Puts what is due for a client into `out`. False when the connection is not its any more.
    fn say(&self, client: &str, number: u64, out: &mut BytesMut) -> bool {
        let mut state = self.state();
        let Some(session) = state.sessions.get_mut(client) else { return false };
        let Some(connection) = session.connection.as_mut().filter(|c| c.number == number) else { return false };
        out.unsplit(connection.replies.split());
        let version = connection.version;
        for sent in session.sent.iter_mut().filter(|sent| !sent.on_wire) {
            sent.on_wire = true;
            if sent.received {
                packet::reply(0x62, sent.id, 0, out);
            } else {
                packet::publish_to(&sent.message, sent.id, sent.again, version, out);
            }
            sent.again = true;
        }
        while let Some(message) = session.waiting.front() {
            if message.qos > 0 && session.sent.len() >= connection.receive_maximum {
                break;
            }
            let Some(message) = session.waiting.pop_front() else { break };
            if message.qos == 0 {
                packet::publish_to(&message, 0, false, version, out);
                continue;
            }
            loop {
                session.last_id = session.last_id % u16::MAX + 1;
                if session.sent.iter().all(|sent| sent.id != session.last_id) {
                    break;
                }
            }
            packet::publish_to(&message, session.last_id, false, version, out);
            session.sent.push_back(Sent { id: session.last_id, message, received: false, on_wire: true, again: true });
        }
        !connection.ends
    }

    /// Gives a message to all who want it.
    fn spread(&self, state: &mut State, message: &Message) {
        if message.retain {
            if message.payload.is_empty() {
                state.retained.remove(&message.topic);
            } else {
                state.retained.insert(message.topic.clone(), message.clone());
            }
        }
        let wants = |session: &Session| {
            let filters = session.filters.iter().filter(|wanted| matches(&wanted.filter, &message.topic));
            filters.map(|wanted| (wanted.qos, wanted.retain_as_published)).max()
        };
        let to: Vec<_> = state.sessions.iter().filter_map(|(name, s)| Some((name.clone(), wants(s)?))).collect();
        for (client, (qos, as_published)) in to {
            let retain = message.retain && as_published;
            self.queue(state, &client, Message { qos: qos.min(message.qos), retain, ..message.clone() });
        }
    }

    fn queue(&self, state: &mut State, client: &str, message: Message) {
        let Some(session) = state.sessions.get_mut(client) else { return };
        // QoS 0 does not wait for who is away.
        if message.qos > 0 || session.connection.is_some() {
            self.ledger.taken(self.name, &message);
            session.waiting.push_back(message);
            session.wake();
        }
    }
}

impl Session {
    fn wake(&self) {
        if let Some(connection) = &self.connection {
            connection.wake.notify_one();
        }
    }

    fn disconnected(&mut self) {
        if let Some(mut connection) = self.connection.take() {
            connection.ends = true;
            connection.wake.notify_one();
        }
        self.waiting.retain(|message| message.qos > 0);
        self.sent.iter_mut().for_each(|sent| sent.on_wire = false);
    }

    /// PUBACK or PUBREC, which come in the order in which the messages were sent.
    fn confirm(&mut self, id: u16, qos: u8, confirmed: impl FnOnce(&Message)) -> Result<(), String> {
        let at = self.sent.iter().position(|sent| sent.id == id && sent.on_wire);
        let Some(at) = at else { return Err(format!("it confirms {id}, which was not sent on this connection")) };
        let sent = &self.sent[at];
        if sent.message.qos != qos {
            return Err(format!("it confirms {id} of QoS {} as one of QoS {qos}", sent.message.qos));
        }
        if !sent.received {
            // In order among those of the same QoS: one of QoS 2 that was taken over before may be confirmed again at once.
            if self.sent.iter().take(at).any(|earlier| !earlier.received && earlier.message.qos == qos) {
                return Err(format!("it confirms {id} before one that was sent earlier"));
            }
            confirmed(&sent.message);
        }
        if qos == 1 {
            self.sent.remove(at);
        } else {
            self.sent[at].received = true;
        }
        self.wake();
        Ok(())
    }
}

/// Whether `topic` is one that `filter` means.
pub fn matches(filter: &str, topic: &str) -> bool {
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(wanted), Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
}
