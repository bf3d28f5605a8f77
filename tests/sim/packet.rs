//! MQTT as a broker speaks it, 5 and 3.1.1, written anew from the standards: a codec that the agent shares could hide its bugs.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// What a client says.
#[derive(Debug)]
pub enum Packet {
    Connect(Connect),
    Publish { id: u16, message: Message, duplicate: bool },
    PubAck(u16),
    PubRec(u16),
    PubRel(u16),
    PubComp(u16),
    Subscribe { id: u16, filters: Vec<Wanted> },
    Unsubscribe { id: u16, filters: Vec<String> },
    PingReq,
    Disconnect,
}

#[derive(Debug)]
pub struct Connect {
    pub version: u8,
    pub client: String,
    pub clean: bool,
    /// Seconds that the session is wanted after the connection.
    pub expiry_secs: u32,
    /// QoS 1 and 2 messages that the client takes at the same time.
    pub receive_maximum: u16,
}

/// One filter of SUBSCRIBE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub filter: String,
    pub qos: u8,
    /// MQTT 5: 0 sends retained messages, 1 only for a new subscription, 2 never.
    pub retain_handling: u8,
    pub retain_as_published: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub topic: String,
    pub payload: Bytes,
    pub qos: u8,
    pub retain: bool,
    /// Properties of MQTT 5 that travel with the message, as they came.
    pub properties: Bytes,
}

/// Takes the next packet out of `from`: `None` when it is not there whole.
pub fn read(from: &mut BytesMut, version: u8) -> Result<Option<Packet>, String> {
    let mut length = 0_usize;
    let mut head = 1;
    loop {
        let Some(byte) = from.get(head) else { return Ok(None) };
        length |= usize::from(byte & 0x7f) << (7 * (head - 1));
        head += 1;
        if byte & 0x80 == 0 {
            break;
        }
        if head > 4 {
            return Err("a length of more than four bytes".to_owned());
        }
    }
    if from.len() < head + length {
        return Ok(None);
    }
    let first = from[0];
    from.advance(head);
    let mut body = Body { rest: from.split_to(length).freeze() };
    let packet = match first >> 4 {
        1 => Packet::Connect(connect(&mut body)?),
        3 => publish(first, &mut body, version)?,
        4 => Packet::PubAck(body.u16()?),
        5 => Packet::PubRec(body.u16()?),
        6 if first & 0x0f == 2 => Packet::PubRel(body.u16()?),
        7 => Packet::PubComp(body.u16()?),
        8 if first & 0x0f == 2 => subscribe(&mut body, version)?,
        10 if first & 0x0f == 2 => {
            let id = body.u16()?;
            body.skip_properties(version)?;
            let mut filters = Vec::new();
            while !body.rest.is_empty() {
                filters.push(body.text()?);
            }
            Packet::Unsubscribe { id, filters }
        }
        12 => Packet::PingReq,
        14 => Packet::Disconnect,
        _ => return Err(format!("a client never sends {first:#x}")),
    };
    Ok(Some(packet))
}

fn connect(body: &mut Body) -> Result<Connect, String> {
    let name = body.text()?;
    let version = body.u8()?;
    if name != "MQTT" || !matches!(version, 4 | 5) {
        return Err(format!("protocol {name} {version}"));
    }
    let flags = body.u8()?;
    body.u16()?;
    let mut connect =
        Connect { version, client: String::new(), clean: flags & 2 != 0, expiry_secs: 0, receive_maximum: u16::MAX };
    if version == 5 {
        let mut properties = Body { rest: body.properties()? };
        while !properties.rest.is_empty() {
            match properties.u8()? {
                0x11 => connect.expiry_secs = properties.u32()?,
                0x21 => connect.receive_maximum = properties.u16()?,
                0x27 => drop(properties.u32()?),
                0x22 => drop(properties.u16()?),
                0x17 | 0x19 => drop(properties.u8()?),
                other => return Err(format!("property {other:#x} in CONNECT")),
            }
        }
    } else if !connect.clean {
        connect.expiry_secs = u32::MAX;
    }
    connect.client = body.text()?;
    Ok(connect)
}

fn publish(first: u8, body: &mut Body, version: u8) -> Result<Packet, String> {
    let qos = first >> 1 & 3;
    let topic = body.text()?;
    if topic.is_empty() || topic.contains(['+', '#']) || qos == 3 {
        return Err(format!("PUBLISH at QoS {qos} to `{topic}`"));
    }
    let id = if qos > 0 { body.u16()? } else { 0 };
    if qos > 0 && id == 0 {
        return Err("packet id 0".to_owned());
    }
    let properties = if version == 5 { body.properties()? } else { Bytes::new() };
    let message = Message { topic, payload: body.rest.split_off(0), qos, retain: first & 1 != 0, properties };
    Ok(Packet::Publish { id, message, duplicate: first & 8 != 0 })
}

fn subscribe(body: &mut Body, version: u8) -> Result<Packet, String> {
    let id = body.u16()?;
    body.skip_properties(version)?;
    let mut filters = Vec::new();
    while !body.rest.is_empty() {
        let (filter, options) = (body.text()?, body.u8()?);
        let retain_as_published = options & 8 != 0;
        filters.push(Wanted { filter, qos: options & 3, retain_handling: options >> 4 & 3, retain_as_published });
    }
    Ok(Packet::Subscribe { id, filters })
}

struct Body {
    rest: Bytes,
}

impl Body {
    fn take(&mut self, bytes: usize) -> Result<Bytes, String> {
        if self.rest.len() < bytes {
            Err("a packet that is too short".to_owned())
        } else {
            Ok(self.rest.split_to(bytes))
        }
    }

    fn u8(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?.get_u8())
    }

    fn u16(&mut self) -> Result<u16, String> {
        Ok(self.take(2)?.get_u16())
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(self.take(4)?.get_u32())
    }

    fn text(&mut self) -> Result<String, String> {
        let length = self.u16()?;
        String::from_utf8(self.take(length.into())?.to_vec()).map_err(|_| "text that is not UTF-8".to_owned())
    }

    fn properties(&mut self) -> Result<Bytes, String> {
        let mut length = 0_usize;
        for shift in 0..4 {
            let byte = self.u8()?;
            length |= usize::from(byte & 0x7f) << (7 * shift);
            if byte & 0x80 == 0 {
                return self.take(length);
            }
        }
        Err("properties of more than four bytes of length".to_owned())
    }

    fn skip_properties(&mut self, version: u8) -> Result<(), String> {
        if version == 5 { self.properties().map(drop) } else { Ok(()) }
    }
}

fn put(first: u8, body: &[u8], out: &mut BytesMut) {
    out.put_u8(first);
    put_length(body.len(), out);
    out.put_slice(body);
}

fn put_length(mut length: usize, out: &mut BytesMut) {
    loop {
        let low = (length & 0x7f) as u8;
        length >>= 7;
        out.put_u8(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            return;
        }
    }
}

/// CONNACK that lets a client in.
pub fn welcome(
    version: u8,
    session_present: bool,
    receive_maximum: u16,
    bytes_max: Option<u32>,
    qos_max: u8,
    out: &mut BytesMut,
) {
    let mut body = vec![u8::from(session_present), 0];
    if version == 5 {
        let mut properties = vec![0x21];
        properties.put_u16(receive_maximum);
        if let Some(bytes) = bytes_max {
            properties.put_u8(0x27);
            properties.put_u32(bytes);
        }
        if qos_max < 2 {
            properties.extend([0x24, qos_max]);
        }
        body.push(u8::try_from(properties.len()).unwrap());
        body.extend(properties);
    }
    put(0x20, &body, out);
}

/// PUBLISH.
pub fn publish_to(message: &Message, id: u16, duplicate: bool, version: u8, out: &mut BytesMut) {
    let mut body = BytesMut::new();
    body.put_u16(u16::try_from(message.topic.len()).unwrap());
    body.put_slice(message.topic.as_bytes());
    if message.qos > 0 {
        body.put_u16(id);
    }
    if version == 5 {
        put_length(message.properties.len(), &mut body);
        body.put_slice(&message.properties);
    }
    body.put_slice(&message.payload);
    put(0x30 | u8::from(duplicate) << 3 | message.qos << 1 | u8::from(message.retain), &body, out);
}

/// PUBACK (0x40), PUBREC (0x50), PUBREL (0x62) or PUBCOMP (0x70); `reason` other than 0 in MQTT 5 only.
pub fn reply(first: u8, id: u16, reason: u8, out: &mut BytesMut) {
    let [high, low] = id.to_be_bytes();
    if reason == 0 { put(first, &[high, low], out) } else { put(first, &[high, low, reason], out) }
}

/// SUBACK, or UNSUBACK with no `codes` in 3.1.1.
pub fn answer(first: u8, id: u16, codes: &[u8], version: u8, out: &mut BytesMut) {
    let mut body = id.to_be_bytes().to_vec();
    if version == 5 {
        body.push(0);
    }
    if version == 5 || first == 0x90 {
        body.extend(codes);
    }
    put(first, &body, out);
}

pub fn pong(out: &mut BytesMut) {
    put(0xd0, &[], out);
}
