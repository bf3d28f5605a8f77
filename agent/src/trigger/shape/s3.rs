//! The event notification of S3, version 2.1, as its user guide documents it.

use std::fmt::Write as _;

use bytes::Bytes;
use serde_json::{Value, json};

/// An object that was put, or deleted.
#[derive(Debug)]
pub(in crate::trigger) struct Object<'a> {
    pub(in crate::trigger) bucket: &'a str,
    /// As it is; the notification has it encoded.
    pub(in crate::trigger) key: &'a str,
    /// In bytes.
    pub(in crate::trigger) size: u64,
    /// What tells its content from another; nothing when it was deleted.
    pub(in crate::trigger) e_tag: Option<&'a str>,
    /// Unix time in milliseconds.
    pub(in crate::trigger) time_ms: u64,
}

/// What a function at S3 would be called with. What a folder has nothing to say of (account, address, request) is there, and says so.
pub(in crate::trigger) fn notification(object: &Object<'_>) -> Bytes {
    let Object { bucket, key, size, e_tag, time_ms } = object;
    let mut described = json!({ "key": encoded(key), "sequencer": format!("{time_ms:016X}") });
    if let (Some(e_tag), Value::Object(described)) = (e_tag, &mut described) {
        described.insert("size".to_owned(), (*size).into());
        described.insert("eTag".to_owned(), (*e_tag).into());
    }
    let time = i64::try_from(*time_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let notification = json!({ "Records": [{
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": "local",
        "eventTime": time.unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string(),
        "eventName": if e_tag.is_some() { "ObjectCreated:Put" } else { "ObjectRemoved:Delete" },
        "userIdentity": { "principalId": "tidegate" },
        "requestParameters": { "sourceIPAddress": "127.0.0.1" },
        "responseElements": { "x-amz-request-id": "none", "x-amz-id-2": "none" },
        "s3": {
            "s3SchemaVersion": "1.0",
            "configurationId": bucket,
            "bucket": {
                "name": bucket,
                "ownerIdentity": { "principalId": "tidegate" },
                "arn": format!("arn:aws:s3:::{bucket}"),
            },
            "object": described,
        },
    }] });
    notification.to_string().into()
}

/// A key as in the query of a URL, but with its slashes: `red flower.jpg` is `red+flower.jpg`.
fn encoded(key: &str) -> String {
    let mut encoded = String::with_capacity(key.len());
    for byte in key.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'*' | b'/' => {
                encoded.push(char::from(byte))
            }
            b' ' => encoded.push('+'),
            // A `String` takes all that is written to it.
            _ => drop(write!(encoded, "%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values of the user guide's example stand for their types.
    const DOCUMENTED: &str = r#"{"Records":[{
        "eventVersion":"2.1","eventSource":"aws:s3","awsRegion":"us-west-2","eventTime":"1970-01-01T00:00:00.000Z",
        "eventName":"ObjectCreated:Put","userIdentity":{"principalId":"AIDAJDPLRKLG7UEXAMPLE"},
        "requestParameters":{"sourceIPAddress":"127.0.0.1"},
        "responseElements":{"x-amz-request-id":"C3D13FE58DE4C810","x-amz-id-2":"FMyUVURIY8"},
        "s3":{"s3SchemaVersion":"1.0","configurationId":"testConfigRule",
            "bucket":{"name":"amzn-s3-demo-bucket","ownerIdentity":{"principalId":"A3NL1KOZZKExample"},
                "arn":"arn:aws:s3:::amzn-s3-demo-bucket"},
            "object":{"key":"HappyFace.jpg","size":1024,"eTag":"d41d8cd98f00b204e9800998ecf8427e",
                "sequencer":"0055AED6DCD90281E5"}}}]}"#;

    fn parse(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    /// Where each value is, and whether it is text.
    fn shape(value: &Value, path: &str, found: &mut Vec<(String, bool)>) {
        match value {
            Value::Object(members) => {
                members.iter().for_each(|(name, value)| shape(value, &format!("{path}/{name}"), found))
            }
            Value::Array(values) => values.iter().for_each(|value| shape(value, &format!("{path}/[]"), found)),
            value => found.push((path.to_owned(), value.is_string())),
        }
    }

    fn happy_face(e_tag: Option<&str>) -> Value {
        let object =
            Object { bucket: "inbox", key: "2026/happy face+ä.jpg", size: 1024, e_tag, time_ms: 1_567_539_447_192 };
        parse(&notification(&object))
    }

    #[test]
    fn a_notification_has_the_documented_shape() {
        let (mut ours, mut documented) = (Vec::new(), Vec::new());
        shape(&happy_face(Some("d41d8cd9")), "", &mut ours);
        shape(&parse(DOCUMENTED.as_bytes()), "", &mut documented);
        assert_eq!(ours, documented);
    }

    #[test]
    fn an_object_is_told_as_a_bucket_tells_it() {
        let put = &happy_face(Some("d41d8cd9"))["Records"][0];
        assert_eq!(put["eventTime"], "2019-09-03T19:37:27.192Z");
        assert_eq!(put["s3"]["bucket"]["arn"], "arn:aws:s3:::inbox");
        assert_eq!(put["s3"]["object"]["key"], "2026/happy+face%2B%C3%A4.jpg");
        let deleted = &happy_face(None)["Records"][0];
        assert_eq!(deleted["eventName"], "ObjectRemoved:Delete");
        assert_eq!(deleted["s3"]["object"].as_object().unwrap().keys().collect::<Vec<_>>(), ["key", "sequencer"]);
    }
}
