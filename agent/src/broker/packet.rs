//! MQTT 5 and 3.1.1 behind one set of packets: rumqttc's codecs, which differ in their types, meet here and nowhere else.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use rumqttc::mqttbytes::{self as v3_errors, v4 as v3};
use rumqttc::v5::mqttbytes::{self as v5_errors, v5};

use super::Incoming;
use super::greeting::{Caps, Greeting, Hello};
use crate::invocation::Publish;
use crate::receipt::NotKept;

/// Which protocol is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V3,
    V5,
}

/// What comes from a broker.
#[derive(Debug)]
pub(super) enum Received {
    /// `Err` says why the broker does not let us in.
    ConnAck(Result<Greeting, String>),
    Publish {
        id: u16,
        message: Incoming,
        /// For which of our subscriptions it comes, when the broker says so.
        subscriptions: Vec<u32>,
    },
    /// A PUBLISH over our limit, which was skipped.
    TooLarge {
        id: u16,
        qos: u8,
        topic: String,
        bytes: usize,
    },
    PubAck {
        id: u16,
        refused: Option<NotKept>,
    },
    PubRec {
        id: u16,
        refused: Option<NotKept>,
    },
    PubRel(u16),
    PubComp(u16),
    /// For each filter the granted QoS, or why it was refused.
    SubAck {
        id: u16,
        results: Vec<Result<u8, String>>,
    },
    UnsubAck(u16),
    PingResp,
    Disconnect(String),
}

/// PUBACK, PUBREC, PUBREL and PUBCOMP, which are the same four bytes in both versions when there is nothing to complain about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Reply {
    Ack = 0x40,
    Rec = 0x50,
    Rel = 0x62,
    Comp = 0x70,
}

/// Reads and writes packets of one connection.
#[derive(Debug)]
pub(super) struct Codec {
    version: Version,
    incoming_bytes_max: u32,
    outgoing_bytes_max: u32,
    /// Bytes of a packet over the limit that are still to be thrown away.
    skip: usize,
}

impl Codec {
    pub(super) const fn new(version: Version, incoming_bytes_max: u32) -> Self {
        // The most that MQTT can frame, until the broker names less.
        Self { version, incoming_bytes_max, outgoing_bytes_max: 268_435_460, skip: 0 }
    }

    pub(super) const fn set_outgoing_bytes_max(&mut self, bytes: u32) {
        self.outgoing_bytes_max = bytes;
    }

    pub(super) fn connect(&self, hello: &Hello, out: &mut BytesMut) -> Result<(), String> {
        match self.version {
            Version::V3 => {
                let mut connect = v3::Connect::new(&hello.client_id);
                connect.keep_alive = hello.keep_alive_secs;
                connect.clean_session = hello.session_expiry_secs == 0;
                if let Some((user, password)) = &hello.login {
                    connect.set_login(user, password);
                }
                connect.write(out).map_err(|e| e.to_string())?;
            }
            Version::V5 => {
                let properties = v5::ConnectProperties {
                    session_expiry_interval: Some(hello.session_expiry_secs),
                    receive_maximum: Some(hello.receive_maximum),
                    max_packet_size: Some(self.incoming_bytes_max),
                    ..v5::ConnectProperties::new()
                };
                let connect = v5::Connect {
                    keep_alive: hello.keep_alive_secs,
                    client_id: hello.client_id.clone(),
                    clean_start: false,
                    properties: Some(properties),
                };
                let login = hello.login.clone().map(|(username, password)| v5::Login { username, password });
                v5::Packet::Connect(connect, None, login).write(out, None).map_err(|e| e.to_string())?;
            }
        }
        Ok(())
    }

    /// Writes a PUBLISH; `Err` when it is larger than the broker takes, and then nothing was written.
    pub(super) fn publish(
        &self,
        publish: &Publish,
        id: u16,
        duplicate: bool,
        out: &mut BytesMut,
    ) -> Result<(), String> {
        let max = self.outgoing_bytes_max;
        let written = match self.version {
            Version::V3 => v3::Packet::Publish(v3::Publish {
                dup: duplicate,
                qos: qos3(publish.qos),
                retain: publish.retain,
                topic: publish.topic.as_ref().to_owned(),
                pkid: id,
                payload: publish.data.clone(),
            })
            .write(out, usize::try_from(max).unwrap_or(usize::MAX))
            .map_err(|e| e.to_string()),
            Version::V5 => v5::Packet::Publish(v5::Publish {
                dup: duplicate,
                qos: qos5(publish.qos),
                retain: publish.retain,
                topic: Bytes::copy_from_slice(publish.topic.as_bytes()),
                pkid: id,
                payload: publish.data.clone(),
                properties: properties(publish),
            })
            .write(out, Some(max))
            .map_err(|e| e.to_string()),
        };
        written.map(drop).map_err(|cause| {
            let bytes = publish.data.len();
            format!(
                "a publish of {bytes} bytes on `{}` does not fit into the broker's maximum of {max}: {cause}",
                publish.topic
            )
        })
    }

    pub(super) fn ack(kind: Reply, id: u16, out: &mut BytesMut) {
        out.put_u8(kind as u8);
        out.put_u8(2);
        out.put_u16(id);
    }

    /// `number` comes back with each message of these filters (MQTT 5).
    pub(super) fn subscribe(
        &self,
        id: u16,
        filters: &[(String, u8)],
        number: Option<u32>,
        out: &mut BytesMut,
    ) -> Result<(), String> {
        match self.version {
            Version::V3 => {
                let filter = |(path, qos): &(String, u8)| v3::SubscribeFilter::new(path.clone(), qos3(*qos));
                let mut packet = v3::Subscribe::new_many(filters.iter().map(filter));
                packet.pkid = id;
                packet.write(out).map_err(|e| e.to_string())?;
            }
            Version::V5 => {
                let filter = |(path, qos): &(String, u8)| v5::Filter {
                    // What the broker retains is for new subscriptions; this one may be renewed at each connection.
                    retain_forward_rule: v5::RetainForwardRule::OnNewSubscribe,
                    ..v5::Filter::new(path.clone(), qos5(*qos))
                };
                let number = number.and_then(|number| usize::try_from(number).ok());
                let properties =
                    number.map(|number| v5::SubscribeProperties { id: Some(number), user_properties: Vec::new() });
                let mut packet = v5::Subscribe::new_many(filters.iter().map(filter), properties);
                packet.pkid = id;
                packet.write(out).map_err(|e| e.to_string())?;
            }
        }
        Ok(())
    }

    pub(super) fn unsubscribe(&self, id: u16, filters: &[String], out: &mut BytesMut) -> Result<(), String> {
        let filters = filters.to_vec();
        match self.version {
            Version::V3 => v3::Unsubscribe { pkid: id, topics: filters }.write(out).map_err(|e| e.to_string())?,
            Version::V5 => {
                let packet = v5::Unsubscribe { pkid: id, filters, properties: None };
                packet.write(out).map_err(|e| e.to_string())?
            }
        };
        Ok(())
    }

    pub(super) fn ping(out: &mut BytesMut) {
        out.put_slice(&[0xc0, 0]);
    }

    pub(super) fn disconnect(out: &mut BytesMut) {
        out.put_slice(&[0xe0, 0]);
    }

    /// The next packet in `bytes`, once all of it is there.
    pub(super) fn read(&mut self, bytes: &mut BytesMut) -> Result<Option<Received>, String> {
        if self.skip > 0 {
            let skipped = self.skip.min(bytes.len());
            bytes.advance(skipped);
            self.skip -= skipped;
        }
        if self.skip > 0 || bytes.is_empty() {
            return Ok(None);
        }
        // The codec takes a packet out of the bytes before it looks inside: one that is there and ends early is malformed.
        let pending = bytes.len();
        match self.version {
            Version::V3 => {
                match v3::Packet::read(bytes, usize::try_from(self.incoming_bytes_max).unwrap_or(usize::MAX)) {
                    Ok(packet) => received3(packet).map(Some),
                    Err(v3_errors::Error::InsufficientBytes(more)) if bytes.len() == pending => {
                        Ok(wait_for(bytes, more))
                    }
                    Err(v3_errors::Error::PayloadSizeLimitExceeded(_)) => self.skip_large(bytes),
                    Err(error) => Err(format!("the broker sent a malformed packet: {error}")),
                }
            }
            Version::V5 => match v5::Packet::read(bytes, Some(self.incoming_bytes_max)) {
                Ok(packet) => received5(packet).map(Some),
                Err(v5_errors::Error::InsufficientBytes(more)) if bytes.len() == pending => Ok(wait_for(bytes, more)),
                Err(v5_errors::Error::PayloadSizeLimitExceeded { .. }) => self.skip_large(bytes),
                Err(error) => Err(format!("the broker sent a malformed packet: {error}")),
            },
        }
    }

    /// Steps over a packet that is larger than our limit. Closing the connection instead, as the codec would have it, only
    /// makes the broker send the same message again, for ever.
    fn skip_large(&mut self, bytes: &mut BytesMut) -> Result<Option<Received>, String> {
        let Some((header_len, remaining)) = fixed_header(bytes) else { return Ok(None) };
        let kind = bytes[0] >> 4;
        if kind != 3 {
            return Err(format!("the broker sent a packet of type {kind} with {remaining} bytes"));
        }
        let qos = (bytes[0] >> 1) & 3;
        let id_len = if qos > 0 { 2 } else { 0 };
        let Some(topic_len) = bytes.get(header_len..header_len + 2) else { return Ok(None) };
        let topic_end = header_len + 2 + usize::from(u16::from_be_bytes([topic_len[0], topic_len[1]]));
        if bytes.len() < topic_end + id_len {
            return Ok(None);
        }
        let topic = String::from_utf8_lossy(&bytes[header_len + 2..topic_end]).into_owned();
        let id = if qos > 0 { u16::from_be_bytes([bytes[topic_end], bytes[topic_end + 1]]) } else { 0 };
        self.skip = header_len + remaining;
        Ok(Some(Received::TooLarge { id, qos, topic, bytes: remaining }))
    }
}

/// Reads `bytes`, as they could come from a broker: however they are cut up on the way, the packets are the same.
///
/// # Panics
/// When they are not.
pub(crate) fn check(version: u8, bytes: &[u8]) {
    let version = if version == 3 { Version::V3 } else { Version::V5 };
    let read_in = |parts: usize| {
        let (mut codec, mut pending, mut found) = (Codec::new(version, 4 << 10), BytesMut::new(), Vec::new());
        for part in bytes.chunks(parts) {
            pending.extend_from_slice(part);
            loop {
                match codec.read(&mut pending) {
                    Ok(Some(packet)) => found.push(format!("{packet:?}")),
                    Ok(None) => break,
                    Err(_) => return (found, true),
                }
            }
        }
        (found, false)
    };
    assert_eq!(read_in(bytes.len().max(1)), read_in(1));
}

fn wait_for(bytes: &mut BytesMut, more: usize) -> Option<Received> {
    bytes.reserve(more);
    None
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

const fn qos3(qos: u8) -> v3_errors::QoS {
    match qos {
        0 => v3_errors::QoS::AtMostOnce,
        1 => v3_errors::QoS::AtLeastOnce,
        _ => v3_errors::QoS::ExactlyOnce,
    }
}

const fn qos5(qos: u8) -> v5_errors::QoS {
    match qos {
        0 => v5_errors::QoS::AtMostOnce,
        1 => v5_errors::QoS::AtLeastOnce,
        _ => v5_errors::QoS::ExactlyOnce,
    }
}

fn properties(publish: &Publish) -> Option<v5::PublishProperties> {
    if publish.content_type.is_none() && publish.properties.is_empty() {
        return None;
    }
    Some(v5::PublishProperties {
        content_type: publish.content_type.as_deref().map(str::to_owned),
        user_properties: publish.properties.iter().map(|(k, v)| (k.as_ref().to_owned(), v.clone())).collect(),
        ..v5::PublishProperties::default()
    })
}

fn received3(packet: v3::Packet) -> Result<Received, String> {
    Ok(match packet {
        v3::Packet::Publish(publish) => Received::Publish {
            id: publish.pkid,
            message: Incoming {
                topic: publish.topic.into(),
                payload: publish.payload,
                qos: publish.qos as u8,
                retain: publish.retain,
                duplicate: publish.dup,
                own: false,
                content_type: None,
                properties: Vec::new(),
            },
            subscriptions: Vec::new(),
        },
        v3::Packet::PubAck(ack) => Received::PubAck { id: ack.pkid, refused: None },
        v3::Packet::PubRec(ack) => Received::PubRec { id: ack.pkid, refused: None },
        v3::Packet::PubRel(ack) => Received::PubRel(ack.pkid),
        v3::Packet::PubComp(ack) => Received::PubComp(ack.pkid),
        v3::Packet::SubAck(ack) => {
            let result = |code: v3::SubscribeReasonCode| match code {
                v3::SubscribeReasonCode::Success(qos) => Ok(qos as u8),
                v3::SubscribeReasonCode::Failure => Err("the broker does not say why".to_owned()),
            };
            Received::SubAck { id: ack.pkid, results: ack.return_codes.into_iter().map(result).collect() }
        }
        v3::Packet::UnsubAck(ack) => Received::UnsubAck(ack.pkid),
        v3::Packet::PingResp => Received::PingResp,
        v3::Packet::ConnAck(ack) => Received::ConnAck(match ack.code {
            v3::ConnectReturnCode::Success => Ok(Greeting {
                session_present: ack.session_present,
                receive_maximum: u16::MAX,
                packet_bytes_max: u32::MAX,
                keep_alive_secs: None,
                session_expiry_secs: None,
                caps: Caps::of(Version::V3),
            }),
            code => Err(format!("{code:?}")),
        }),
        other => return Err(format!("the broker sent {other:?}, which only clients may")),
    })
}

fn received5(packet: v5::Packet) -> Result<Received, String> {
    Ok(match packet {
        v5::Packet::Publish(publish) => {
            let properties = publish.properties.unwrap_or_default();
            let ids = properties.subscription_identifiers.into_iter();
            let topic = std::str::from_utf8(&publish.topic).map_err(|_| "the broker sent a topic that is not UTF-8")?;
            Received::Publish {
                id: publish.pkid,
                message: Incoming {
                    topic: topic.into(),
                    payload: publish.payload,
                    qos: publish.qos as u8,
                    retain: publish.retain,
                    duplicate: publish.dup,
                    own: false,
                    content_type: properties.content_type.map(Arc::from),
                    properties: properties.user_properties,
                },
                subscriptions: ids.filter_map(|id| u32::try_from(id).ok()).collect(),
            }
        }
        v5::Packet::PubAck(ack) => {
            use v5::PubAckReason::{
                NoMatchingSubscribers, NotAuthorized, PayloadFormatInvalid, Success, TopicNameInvalid,
            };
            let refused = match ack.reason {
                Success | NoMatchingSubscribers => None,
                NotAuthorized => Some(NotKept::NotAllowed("NotAuthorized".to_owned())),
                TopicNameInvalid | PayloadFormatInvalid => Some(NotKept::ForGood(format!("{:?}", ack.reason))),
                reason => Some(NotKept::NotNow(format!("{reason:?}"))),
            };
            Received::PubAck { id: ack.pkid, refused }
        }
        v5::Packet::PubRec(ack) => {
            use v5::PubRecReason::{
                NoMatchingSubscribers, NotAuthorized, PayloadFormatInvalid, Success, TopicNameInvalid,
            };
            let refused = match ack.reason {
                Success | NoMatchingSubscribers => None,
                NotAuthorized => Some(NotKept::NotAllowed("NotAuthorized".to_owned())),
                TopicNameInvalid | PayloadFormatInvalid => Some(NotKept::ForGood(format!("{:?}", ack.reason))),
                reason => Some(NotKept::NotNow(format!("{reason:?}"))),
            };
            Received::PubRec { id: ack.pkid, refused }
        }
        v5::Packet::PubRel(ack) => Received::PubRel(ack.pkid),
        v5::Packet::PubComp(ack) => Received::PubComp(ack.pkid),
        v5::Packet::SubAck(ack) => {
            let result = |code: v5::SubscribeReasonCode| match code {
                v5::SubscribeReasonCode::Success(qos) => Ok(qos as u8),
                code => Err(format!("{code:?}")),
            };
            Received::SubAck { id: ack.pkid, results: ack.return_codes.into_iter().map(result).collect() }
        }
        v5::Packet::UnsubAck(ack) => Received::UnsubAck(ack.pkid),
        v5::Packet::PingResp(_) => Received::PingResp,
        v5::Packet::Disconnect(packet) => Received::Disconnect(format!("{:?}", packet.reason_code)),
        v5::Packet::ConnAck(ack) if ack.code == v5::ConnectReturnCode::Success => {
            let said = ack.properties.unwrap_or(v5::ConnAckProperties {
                session_expiry_interval: None,
                receive_max: None,
                max_qos: None,
                retain_available: None,
                max_packet_size: None,
                assigned_client_identifier: None,
                topic_alias_max: None,
                reason_string: None,
                user_properties: Vec::new(),
                wildcard_subscription_available: None,
                subscription_identifiers_available: None,
                shared_subscription_available: None,
                server_keep_alive: None,
                response_information: None,
                server_reference: None,
                authentication_method: None,
                authentication_data: None,
            });
            let has = |said: Option<u8>| said != Some(0);
            Received::ConnAck(Ok(Greeting {
                session_present: ack.session_present,
                receive_maximum: said.receive_max.unwrap_or(u16::MAX),
                packet_bytes_max: said.max_packet_size.unwrap_or(u32::MAX),
                keep_alive_secs: said.server_keep_alive,
                session_expiry_secs: said.session_expiry_interval,
                caps: Caps {
                    max_qos: said.max_qos.unwrap_or(2),
                    retain: has(said.retain_available),
                    wildcards: has(said.wildcard_subscription_available),
                    shares: has(said.shared_subscription_available),
                    subscription_ids: has(said.subscription_identifiers_available),
                },
            }))
        }
        v5::Packet::ConnAck(ack) => {
            let said =
                ack.properties.and_then(|p| p.reason_string).map_or_else(String::new, |text| format!(" ({text})"));
            Received::ConnAck(Err(format!("{:?}{said}", ack.code)))
        }
        other => return Err(format!("the broker sent {other:?}, which only clients may")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BYTES_MAX: u32 = 2_000;

    /// What a broker may send: messages of each QoS, one of them over the limit, and answers.
    fn packets(version: Version) -> BytesMut {
        let codec = Codec::new(version, BYTES_MAX);
        let mut bytes = BytesMut::new();
        for (qos, len) in [(0, 0), (1, 10), (2, 1_500), (1, 5_000), (0, 200)] {
            let publish = Publish {
                broker: None,
                topic: "a/b".into(),
                data: vec![b'x'; len].into(),
                qos,
                retain: qos == 1,
                content_type: Some("text/plain".into()),
                properties: vec![("site".into(), "3".to_owned())],
            };
            codec.publish(&publish, 7, false, &mut bytes).unwrap();
        }
        for reply in [Reply::Ack, Reply::Rec, Reply::Rel, Reply::Comp] {
            Codec::ack(reply, 7, &mut bytes);
        }
        bytes.put_slice(&[0xd0, 0]);
        bytes
    }

    /// Reads all that is there, as a connection does.
    fn read_all(codec: &mut Codec, bytes: &mut BytesMut) -> Result<Vec<String>, String> {
        let mut told = Vec::new();
        while let Some(received) = codec.read(bytes)? {
            told.push(format!("{received:?}"));
        }
        Ok(told)
    }

    #[test]
    fn packets_come_whole_however_their_bytes_come() {
        for version in [Version::V5, Version::V3] {
            let sent = packets(version);
            let whole = read_all(&mut Codec::new(version, BYTES_MAX), &mut sent.clone()).unwrap();
            assert_eq!(whole.len(), 10, "{whole:?}");
            for piece in [1, 2, 3, 1_000] {
                let mut codec = Codec::new(version, BYTES_MAX);
                let (mut bytes, mut told) = (BytesMut::new(), Vec::new());
                for part in sent.chunks(piece) {
                    bytes.put_slice(part);
                    told.extend(read_all(&mut codec, &mut bytes).unwrap());
                }
                assert_eq!(told, whole, "{piece} at once");
            }
        }
    }

    #[test]
    fn bytes_that_make_no_sense_end_the_connection_and_nothing_else() {
        let mut random = fastrand::Rng::with_seed(7);
        for round in 0..20_000 {
            let version = if round % 2 == 0 { Version::V5 } else { Version::V3 };
            let mut bytes = if round % 3 == 0 {
                let len = random.usize(..200);
                std::iter::repeat_with(|| random.u8(..)).take(len).collect()
            } else {
                let mut bytes = packets(version);
                for _ in 0..random.usize(1..8) {
                    let at = random.usize(..bytes.len());
                    bytes[at] = random.u8(..);
                }
                bytes
            };
            let _ = read_all(&mut Codec::new(version, BYTES_MAX), &mut bytes);
            assert!(bytes.capacity() < 1 << 20, "round {round} makes room for {}", bytes.capacity());
        }
    }
}
