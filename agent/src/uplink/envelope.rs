//! What a record looks like as an MQTT message.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::IgnoredAny;

use crate::config::{UplinkConfig, UplinkPayload};
use crate::invocation::Publish;
use crate::journal::Record;
use crate::name::{GatewayName, StreamName};

/// Fills `{gateway}` and `{stream}` in.
pub fn topic(pattern: &str, gateway: &GatewayName, stream: &StreamName) -> Arc<str> {
    pattern.replace("{gateway}", gateway.as_str()).replace("{stream}", stream.as_str()).into()
}

/// The message for `record`: QoS 1, its id in the payload or, for `payload = "bare"`, in MQTT 5 user properties.
pub fn message(
    uplink: &UplinkConfig,
    topic: &Arc<str>,
    gateway: &GatewayName,
    stream: &StreamName,
    record: &Record,
    replayed: bool,
) -> Publish {
    let Record { sequence, time_ms, trace_parent, data } = record;
    let mut properties: Vec<(Cow<'static, str>, String)> = Vec::new();
    if let Some(trace_parent) = trace_parent {
        properties.push(("traceparent".into(), trace_parent.as_ref().to_owned()));
    }
    let (data, content_type) = match uplink.payload {
        UplinkPayload::Envelope => {
            // Names hold no character that JSON would escape.
            let head = format!(
                r#"{{"id":"{gateway}/{stream}/{sequence}","gateway":"{gateway}","stream":"{stream}","sequence":{sequence},"time_ms":{time_ms},"replayed":{replayed},"#
            );
            let mut json = Vec::with_capacity(head.len() + data.len() * 4 / 3 + 20);
            json.extend(head.as_bytes());
            if serde_json::from_slice::<IgnoredAny>(data).is_ok() {
                json.extend(br#""data":"#);
                json.extend(data);
                json.push(b'}');
            } else {
                json.extend(br#""data_base64":""#);
                json.extend(STANDARD.encode(data).as_bytes());
                json.extend(br#""}"#);
            }
            (Bytes::from(json), Some("application/json".into()))
        }
        UplinkPayload::Bare => {
            properties.push(("id".into(), format!("{gateway}/{stream}/{sequence}")));
            properties.push(("time_ms".into(), time_ms.to_string()));
            properties.push(("replayed".into(), replayed.to_string()));
            (data.clone(), None)
        }
    };
    Publish {
        broker: Some(uplink.mqtt.clone()),
        topic: Arc::clone(topic),
        data,
        qos: 1,
        retain: false,
        content_type,
        properties,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::BrokerName;

    fn sent(payload: UplinkPayload, data: &'static [u8]) -> Publish {
        let uplink = UplinkConfig {
            mqtt: BrokerName::parse("cloud").unwrap(),
            topic: "site/{gateway}/{stream}".to_owned(),
            payload,
        };
        let (gateway, stream) = (GatewayName::parse("hall-3").unwrap(), StreamName::parse("readings").unwrap());
        let record =
            Record { sequence: 7, time_ms: 99, trace_parent: Some("00-1".into()), data: Bytes::from_static(data) };
        message(&uplink, &topic(&uplink.topic, &gateway, &stream), &gateway, &stream, &record, true)
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
}
