//! What a record looks like outside: a JSON envelope, or its bare bytes with the id beside them.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::IgnoredAny;

use crate::config::{MqttUplink, UplinkPayload};
use crate::invocation::Publish;
use crate::journal::Record;
use crate::name::{GatewayName, StreamName};

/// Fills `{gateway}` and `{stream}` in.
pub fn fill(pattern: &str, gateway: &GatewayName, stream: &StreamName) -> Arc<str> {
    pattern.replace("{gateway}", gateway.as_str()).replace("{stream}", stream.as_str()).into()
}

/// The records of one stream, as they leave.
#[derive(Clone, Debug)]
pub struct Envelope {
    gateway: GatewayName,
    stream: StreamName,
}

impl Envelope {
    /// For the records of `stream`.
    pub fn new(gateway: &GatewayName, stream: &StreamName) -> Self {
        Self { gateway: gateway.clone(), stream: stream.clone() }
    }

    /// Which record it is, among all of all gateways.
    pub fn id(&self, sequence: u64) -> String {
        format!("{}/{}/{sequence}", self.gateway, self.stream)
    }

    /// Appends one JSON object, on one line when the record's own JSON is.
    pub fn json(&self, record: &Record, replayed: bool, out: &mut Vec<u8>) {
        let Self { gateway, stream } = self;
        let Record { sequence, time_ms, data, .. } = record;
        out.reserve(192 + data.len() * 4 / 3);
        // Names hold no character that JSON would escape.
        let head = format!(
            r#"{{"id":"{gateway}/{stream}/{sequence}","gateway":"{gateway}","stream":"{stream}","sequence":{sequence},"time_ms":{time_ms},"replayed":{replayed},"#
        );
        out.extend(head.as_bytes());
        if record.time_unknown {
            out.extend(br#""time_unknown":true,"#);
        }
        if serde_json::from_slice::<IgnoredAny>(data).is_ok() {
            out.extend(br#""data":"#);
            out.extend(data);
            out.push(b'}');
        } else {
            out.extend(br#""data_base64":""#);
            out.extend(STANDARD.encode(data).as_bytes());
            out.extend(br#""}"#);
        }
    }

    /// Appends one line: the JSON object, without a line's end inside it.
    pub fn line(&self, record: &Record, replayed: bool, out: &mut Vec<u8>) {
        let start = out.len();
        self.json(record, replayed, out);
        // Between the tokens of JSON a line's end is as good as a space, and inside of strings it must be escaped.
        for byte in &mut out[start..] {
            if matches!(byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
        out.push(b'\n');
    }

    /// The message for `record`: QoS 1, its id in the payload or, for `payload = "bare"`, in MQTT 5 user properties.
    pub fn message(&self, uplink: &MqttUplink, topic: &Arc<str>, record: &Record, replayed: bool) -> Publish {
        let mut properties: Vec<(Cow<'static, str>, String)> = Vec::new();
        if let Some(trace_parent) = &record.trace_parent {
            properties.push(("traceparent".into(), trace_parent.as_ref().to_owned()));
        }
        let (data, content_type) = match uplink.payload {
            UplinkPayload::Envelope => {
                let mut json = Vec::new();
                self.json(record, replayed, &mut json);
                (Bytes::from(json), Some("application/json".into()))
            }
            UplinkPayload::Bare => {
                properties.push(("id".into(), self.id(record.sequence)));
                properties.push(("time_ms".into(), record.time_ms.to_string()));
                if record.time_unknown {
                    properties.push(("time_unknown".into(), "true".to_owned()));
                }
                properties.push(("replayed".into(), replayed.to_string()));
                (record.data.clone(), None)
            }
        };
        Publish {
            broker: Some(uplink.broker.clone()),
            topic: Arc::clone(topic),
            data,
            qos: 1,
            retain: false,
            content_type,
            properties,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::BrokerName;

    fn record(data: &'static [u8]) -> Record {
        Record {
            sequence: 7,
            time_ms: 99,
            time_unknown: false,
            trace_parent: Some("00-1".into()),
            data: Bytes::from_static(data),
        }
    }

    fn envelope() -> Envelope {
        Envelope::new(&GatewayName::parse("hall-3").unwrap(), &StreamName::parse("readings").unwrap())
    }

    fn sent(payload: UplinkPayload, data: &'static [u8]) -> Publish {
        let broker = BrokerName::parse("cloud").unwrap();
        let uplink = MqttUplink { broker, topic: "site/{gateway}/{stream}".to_owned(), payload };
        let envelope = envelope();
        let topic = fill(&uplink.topic, &envelope.gateway, &envelope.stream);
        envelope.message(&uplink, &topic, &record(data), true)
    }

    #[test]
    fn json_is_carried_as_it_is() {
        let message = sent(UplinkPayload::Envelope, br#"{"celsius": 20.50}"#);
        assert_eq!((&*message.topic, message.qos), ("site/hall-3/readings", 1));
        assert_eq!(
            std::str::from_utf8(&message.data).unwrap(),
            r#"{"id":"hall-3/readings/7","gateway":"hall-3","stream":"readings","sequence":7,"time_ms":99,"replayed":true,"data":{"celsius": 20.50}}"#
        );
        assert_eq!(message.properties, [("traceparent".into(), "00-1".to_owned())]);
    }

    #[test]
    fn what_is_not_json_is_carried_in_base64() {
        for data in [&b"\xff\x00"[..], b"", b"21 C", b"{} {}"] {
            let message: serde_json::Value = serde_json::from_slice(&sent(UplinkPayload::Envelope, data).data).unwrap();
            assert_eq!(STANDARD.decode(message["data_base64"].as_str().unwrap()).unwrap(), data);
            assert_eq!(message.get("data"), None);
        }
    }

    #[test]
    fn bare_bytes_have_their_id_beside_them() {
        let message = sent(UplinkPayload::Bare, b"21 C");
        assert_eq!(message.data, "21 C");
        assert!(message.properties.contains(&("id".into(), "hall-3/readings/7".to_owned())));
        assert!(message.properties.contains(&("replayed".into(), "true".to_owned())));
    }

    #[test]
    fn a_record_is_one_line_whatever_its_json_looks_like() {
        let mut lines = Vec::new();
        for data in [&b"{\n  \"a\": \"b\\n\"\r\n}"[..], b"\n"] {
            envelope().line(&record(data), false, &mut lines);
        }
        let lines: Vec<&str> = std::str::from_utf8(&lines).unwrap().lines().collect();
        assert_eq!(lines.len(), 2);
        let first: serde_json::Value = serde_json::from_str(lines[0]).unwrap();
        assert_eq!(first["data"], serde_json::json!({ "a": "b\n" }));
    }
}
