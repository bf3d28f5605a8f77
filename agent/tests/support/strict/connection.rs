//! One connection to the strict broker.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rumqttc::mqttbytes::v4 as v3;
use rumqttc::v5::mqttbytes::v5;
use tidegate::topic::TopicFilter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{State, Strictness, Taken};

/// A packet from a client, whichever version it speaks.
enum Packet {
    Publish(u16, Taken),
    PubAck(u16),
    Subscribe(u16, Vec<(String, u8)>),
    Unsubscribe(u16, Vec<String>),
    Ping,
    Other(String),
}

struct Connection {
    socket: TcpStream,
    incoming: BytesMut,
    five: bool,
    strictness: Strictness,
}

/// Why a connection ends: said to MQTT 5 clients.
type Violation = (v5::DisconnectReasonCode, String);

pub(super) async fn serve(
    socket: TcpStream,
    state: Arc<Mutex<State>>,
    strictness: Strictness,
    token: CancellationToken,
) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut connection = Connection { socket, incoming: BytesMut::new(), five: true, strictness };
    let Some((client_id, keep_alive_secs, wake)) = connection.greet(&state, &token).await? else { return Ok(()) };
    let patience = match keep_alive_secs {
        0 => Duration::from_secs(86_400),
        secs => Duration::from_millis(1500 * u64::from(secs)),
    };
    let mut acks: VecDeque<(Instant, u16)> = VecDeque::new();
    let mut recent: VecDeque<Instant> = VecDeque::new();
    let mut heard = Instant::now();
    loop {
        connection.deliver(&state, &client_id).await?;
        let ack_at = acks.front().map_or(heard + patience, |(at, _)| *at);
        tokio::select! {
            () = tokio::time::sleep_until(ack_at), if !acks.is_empty() => {
                let now = Instant::now();
                while let Some((_, id)) = acks.pop_front_if(|(at, _)| *at <= now) {
                    connection.write(&[0x40, 2, id.to_be_bytes()[0], id.to_be_bytes()[1]]).await?;
                }
            }
            () = tokio::time::sleep_until(heard + patience) => {
                state.lock().unwrap().violations.push(format!("silent for {patience:?}"));
                return Ok(());
            }
            () = wake.notified() => {}
            read = connection.socket.read_buf(&mut connection.incoming) => {
                if read? == 0 {
                    return Ok(());
                }
                heard = Instant::now();
                loop {
                    let packet = match connection.packet() {
                        Ok(None) => break,
                        Ok(Some(packet)) => packet,
                        Err(violation) => return connection.end(&state, violation).await,
                    };
                    let Packet::Publish(id, message) = packet else {
                        if let Err(violation) = connection.answer(&state, &client_id, packet).await? {
                            return connection.end(&state, violation).await;
                        }
                        continue;
                    };
                    recent.push_back(heard);
                    while recent.pop_front_if(|at| *at + Duration::from_secs(1) <= heard).is_some() {}
                    if let Err(violation) = connection.check(&message, acks.len(), recent.len()) {
                        return connection.end(&state, violation).await;
                    }
                    let cut = {
                        let mut state = state.lock().unwrap();
                        state.route(&message);
                        if message.retain {
                            state.retained.insert(message.topic.clone(), message.clone());
                        }
                        state.taken.push(message.clone());
                        if let Some((n, _)) = &mut state.cut_in {
                            *n -= 1;
                        }
                        state.cut_in.take_if(|(n, _)| *n == 0)
                    };
                    if message.qos == 1 {
                        acks.push_back((heard + connection.strictness.ack_after, id));
                    }
                    if let Some((_, acknowledged)) = cut {
                        for (_, id) in acks.drain(..).take_while(|_| acknowledged) {
                            connection.write(&[0x40, 2, id.to_be_bytes()[0], id.to_be_bytes()[1]]).await?;
                        }
                        // Closing at once could take the answers back from the client's unread bytes.
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        return Ok(());
                    }
                }
            }
        }
    }
}

impl Connection {
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes).await
    }

    /// CONNECT and CONNACK; `None` when it was neither.
    async fn greet(
        &mut self,
        state: &Mutex<State>,
        token: &CancellationToken,
    ) -> io::Result<Option<(String, u16, Arc<Notify>)>> {
        let level = loop {
            if self.socket.read_buf(&mut self.incoming).await? == 0 {
                return Ok(None);
            }
            // `MQTT` follows the fixed header, whose length is one byte for as short a packet as CONNECT, two otherwise.
            let at = self.incoming.windows(4).position(|window| window == b"MQTT");
            if let Some(level) = at.and_then(|at| self.incoming.get(at + 4)) {
                break *level;
            }
        };
        self.five = level == 5;
        let Strictness { packet_bytes_max, .. } = self.strictness;
        let mut out = BytesMut::new();
        loop {
            let found = if self.five {
                match v5::Packet::read(&mut self.incoming, Some(packet_bytes_max)) {
                    Ok(v5::Packet::Connect(connect, _, _)) => {
                        let wanted = connect.properties.and_then(|p| p.session_expiry_interval).unwrap_or(0);
                        Some((connect.client_id, connect.keep_alive, wanted, connect.clean_start))
                    }
                    _ => None,
                }
            } else {
                match v3::Packet::read(&mut self.incoming, packet_bytes_max as usize) {
                    Ok(v3::Packet::Connect(connect)) => {
                        Some((connect.client_id, connect.keep_alive, u32::MAX, connect.clean_session))
                    }
                    _ => None,
                }
            };
            let Some((client_id, keep_alive_secs, wanted, clean)) = found else {
                if self.socket.read_buf(&mut self.incoming).await? == 0 {
                    return Ok(None);
                }
                continue;
            };
            let strictness = &self.strictness;
            let expiry_secs = wanted.min(strictness.session_expiry_secs_max);
            let (session_present, wake) = {
                let mut state = state.lock().unwrap();
                state.connected += 1;
                if clean {
                    state.sessions.remove(&client_id);
                }
                let session_present = state.sessions.contains_key(&client_id);
                let session = state.sessions.entry(client_id.clone()).or_default();
                std::mem::replace(&mut session.connection, token.clone()).cancel();
                session.expiry_secs = expiry_secs;
                let again = std::mem::take(&mut session.unacknowledged);
                let again = again.into_values().map(|message| Taken { duplicate: true, ..message });
                let rest = std::mem::take(&mut session.queue);
                session.queue = again.chain(rest).collect();
                (session_present, Arc::clone(&session.wake))
            };
            let code = v5::ConnectReturnCode::Success;
            let told = v5::ConnAckProperties {
                session_expiry_interval: (expiry_secs != wanted).then_some(expiry_secs),
                receive_max: Some(strictness.in_flight_max),
                max_qos: (strictness.qos_max < 2).then_some(strictness.qos_max),
                max_packet_size: Some(packet_bytes_max),
                server_keep_alive: strictness.keep_alive_secs,
                retain_available: Some(1),
                assigned_client_identifier: None,
                topic_alias_max: None,
                reason_string: None,
                user_properties: Vec::new(),
                wildcard_subscription_available: None,
                subscription_identifiers_available: None,
                shared_subscription_available: None,
                response_information: None,
                server_reference: None,
                authentication_method: None,
                authentication_data: None,
            };
            if self.five {
                let answer = v5::ConnAck { session_present, code, properties: Some(told) };
                v5::Packet::ConnAck(answer).write(&mut out, None).unwrap();
            } else {
                let answer = v3::ConnAck { session_present, code: v3::ConnectReturnCode::Success };
                answer.write(&mut out).unwrap();
            }
            self.write(&out).await?;
            let server_keep_alive_secs = self.strictness.keep_alive_secs.filter(|_| self.five);
            return Ok(Some((client_id, server_keep_alive_secs.unwrap_or(keep_alive_secs), wake)));
        }
    }

    /// The next packet that is whole.
    fn packet(&mut self) -> Result<Option<Packet>, Violation> {
        let Some((header_len, remaining)) = fixed_header(&self.incoming) else { return Ok(None) };
        let bytes = header_len + remaining;
        if bytes > self.strictness.packet_bytes_max as usize {
            let what = format!("a packet of {bytes} bytes");
            return Err((v5::DisconnectReasonCode::PacketTooLarge, what));
        }
        if self.incoming.len() < bytes {
            return Ok(None);
        }
        if self.incoming[0] >> 4 == 14 {
            return Err((v5::DisconnectReasonCode::NormalDisconnection, String::new()));
        }
        let malformed = |error: String| (v5::DisconnectReasonCode::MalformedPacket, error);
        let packet = if self.five {
            match v5::Packet::read(&mut self.incoming, None).map_err(|e| malformed(e.to_string()))? {
                v5::Packet::Publish(publish) => Packet::Publish(
                    publish.pkid,
                    Taken {
                        topic: String::from_utf8(publish.topic.to_vec()).map_err(|e| malformed(e.to_string()))?,
                        payload: publish.payload,
                        qos: publish.qos as u8,
                        retain: publish.retain,
                        duplicate: publish.dup,
                        properties: publish.properties.map(|p| p.user_properties).unwrap_or_default(),
                    },
                ),
                v5::Packet::PubAck(ack) => Packet::PubAck(ack.pkid),
                v5::Packet::Subscribe(subscribe) => Packet::Subscribe(
                    subscribe.pkid,
                    subscribe.filters.into_iter().map(|filter| (filter.path, filter.qos as u8)).collect(),
                ),
                v5::Packet::Unsubscribe(unsubscribe) => Packet::Unsubscribe(unsubscribe.pkid, unsubscribe.filters),
                v5::Packet::PingReq(_) => Packet::Ping,
                other => Packet::Other(format!("{other:?}")),
            }
        } else {
            match v3::Packet::read(&mut self.incoming, usize::MAX).map_err(|e| malformed(e.to_string()))? {
                v3::Packet::Publish(publish) => Packet::Publish(
                    publish.pkid,
                    Taken {
                        topic: publish.topic,
                        payload: publish.payload,
                        qos: publish.qos as u8,
                        retain: publish.retain,
                        duplicate: publish.dup,
                        properties: Vec::new(),
                    },
                ),
                v3::Packet::PubAck(ack) => Packet::PubAck(ack.pkid),
                v3::Packet::Subscribe(subscribe) => Packet::Subscribe(
                    subscribe.pkid,
                    subscribe.filters.into_iter().map(|filter| (filter.path, filter.qos as u8)).collect(),
                ),
                v3::Packet::Unsubscribe(unsubscribe) => Packet::Unsubscribe(unsubscribe.pkid, unsubscribe.topics),
                v3::Packet::PingReq => Packet::Ping,
                other => Packet::Other(format!("{other:?}")),
            }
        };
        Ok(Some(packet))
    }

    fn check(&self, message: &Taken, in_flight: usize, in_a_second: usize) -> Result<(), Violation> {
        use v5::DisconnectReasonCode as Code;
        let limits = &self.strictness;
        let (topic, slashes) = (&message.topic, message.topic.matches('/').count());
        if message.qos > limits.qos_max {
            return Err((Code::QoSNotSupported, format!("a publish with QoS {}", message.qos)));
        }
        if topic.len() > limits.topic_bytes_max || slashes > limits.topic_slashes_max {
            return Err((Code::TopicNameInvalid, format!("a publish on `{topic}`")));
        }
        if message.qos > 0 && in_flight >= usize::from(limits.in_flight_max) {
            return Err((Code::ReceiveMaximumExceeded, format!("{} publishes in flight", in_flight + 1)));
        }
        if in_a_second > limits.publishes_per_second {
            return Err((Code::MessageRateTooHigh, format!("{in_a_second} publishes within a second")));
        }
        Ok(())
    }

    async fn answer(
        &mut self,
        state: &Mutex<State>,
        client_id: &str,
        packet: Packet,
    ) -> io::Result<Result<(), Violation>> {
        use v5::DisconnectReasonCode as Code;
        let mut out = BytesMut::new();
        match packet {
            Packet::Ping => out.extend_from_slice(&[0xd0, 0]),
            Packet::PubAck(id) => {
                if let Some(session) = state.lock().unwrap().sessions.get_mut(client_id) {
                    session.unacknowledged.remove(&id);
                }
            }
            Packet::Subscribe(id, filters) => {
                if let Some((filter, qos)) = filters.iter().find(|(_, qos)| *qos > self.strictness.qos_max) {
                    return Ok(Err((Code::QoSNotSupported, format!("a subscription to `{filter}` with QoS {qos}"))));
                }
                let granted: Vec<u8> = filters.iter().map(|(_, qos)| *qos).collect();
                let mut state = state.lock().unwrap();
                for (filter, qos) in filters {
                    let filter = TopicFilter::parse(&filter).unwrap();
                    let retained: Vec<Taken> = state.retained.values().cloned().collect();
                    let Some(session) = state.sessions.get_mut(client_id) else { continue };
                    let matching = retained.into_iter().filter(|message| filter.matches(&message.topic));
                    session.queue.extend(matching.map(|message| Taken { qos: message.qos.min(qos), ..message }));
                    session.filters.retain(|(known, _)| *known != filter);
                    session.filters.push((filter, qos));
                }
                suback(self.five, id, &granted, &mut out);
            }
            Packet::Unsubscribe(id, filters) => {
                if let Some(session) = state.lock().unwrap().sessions.get_mut(client_id) {
                    session.filters.retain(|(known, _)| !filters.iter().any(|filter| *filter == known.to_string()));
                }
                if self.five {
                    let reasons = vec![v5::UnsubAckReason::Success; filters.len()];
                    let answer = v5::UnsubAck { pkid: id, reasons, properties: None };
                    v5::Packet::UnsubAck(answer).write(&mut out, None).unwrap();
                } else {
                    v3::UnsubAck { pkid: id }.write(&mut out).unwrap();
                }
            }
            Packet::Other(what) => return Ok(Err((Code::ProtocolError, what))),
            Packet::Publish(..) => {}
        }
        self.write(&out).await?;
        Ok(Ok(()))
    }

    /// Sends what waits in the client's session.
    async fn deliver(&mut self, state: &Mutex<State>, client_id: &str) -> io::Result<()> {
        let mut out = BytesMut::new();
        {
            let mut state = state.lock().unwrap();
            let Some(session) = state.sessions.get_mut(client_id) else { return Ok(()) };
            while session.unacknowledged.len() < 100
                && let Some(message) = session.queue.pop_front()
            {
                let id = (1..).find(|id| !session.unacknowledged.contains_key(id)).unwrap();
                publish(self.five, id, &message, &mut out);
                if message.qos > 0 {
                    session.unacknowledged.insert(id, message);
                }
            }
        }
        self.write(&out).await
    }

    async fn end(mut self, state: &Mutex<State>, (code, what): Violation) -> io::Result<()> {
        if code == v5::DisconnectReasonCode::NormalDisconnection {
            return Ok(());
        }
        state.lock().unwrap().violations.push(what);
        if self.five {
            self.write(&[0xe0, 1, code as u8]).await?;
            // Closing at once could take it back from the client's unread bytes.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

fn publish(five: bool, id: u16, message: &Taken, out: &mut BytesMut) {
    let Taken { topic, payload, qos, retain, duplicate, properties } = message.clone();
    if five {
        let properties = v5::PublishProperties { user_properties: properties, ..v5::PublishProperties::default() };
        let packet = v5::Publish {
            dup: duplicate,
            qos: if qos == 0 {
                rumqttc::v5::mqttbytes::QoS::AtMostOnce
            } else {
                rumqttc::v5::mqttbytes::QoS::AtLeastOnce
            },
            retain,
            topic: Bytes::from(topic),
            pkid: id,
            payload,
            properties: Some(properties),
        };
        packet.write(out).unwrap();
    } else {
        let packet = v3::Publish {
            dup: duplicate,
            qos: if qos == 0 { rumqttc::QoS::AtMostOnce } else { rumqttc::QoS::AtLeastOnce },
            retain,
            topic,
            pkid: id,
            payload,
        };
        packet.write(out).unwrap();
    }
}

fn suback(five: bool, id: u16, granted: &[u8], out: &mut BytesMut) {
    // The same bytes but for the (empty) properties of MQTT 5.
    let properties: &[u8] = if five { &[0] } else { &[] };
    let remaining = u8::try_from(2 + properties.len() + granted.len()).unwrap();
    out.extend_from_slice(&[0x90, remaining]);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(properties);
    out.extend_from_slice(granted);
}

/// Length of the fixed header, and of what follows it.
fn fixed_header(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut remaining = 0;
    for (i, byte) in bytes.get(1..)?.iter().take(4).enumerate() {
        remaining |= usize::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((i + 2, remaining));
        }
    }
    None
}
