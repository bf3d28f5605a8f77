//! CloudEvents 1.0.2 over HTTP: structured, binary and batch.

use std::sync::Arc;

use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderName, StatusCode};
use base64::Engine as _;
use bytes::Bytes;
use serde_json::{Map, Value};

use super::error::ApiError;
use crate::event::Event;

/// Media type of one event as JSON.
pub(super) const STRUCTURED: &str = "application/cloudevents+json";
/// Media type of several events as a JSON array.
pub(crate) const BATCH: &str = "application/cloudevents-batch+json";

/// Member of a recorded event that says what came of it.
const OUTCOME: &str = "outcome";

const SHAPES: &str = "send one event as `application/cloudevents+json`, several as `application/cloudevents-batch+json`, \
    or any payload with the headers `ce-specversion`, `ce-id`, `ce-source` and `ce-type`";

/// Whether `content_type` is the media type `expected`, parameters aside.
pub(super) fn is(content_type: Option<&str>, expected: &str) -> bool {
    let essence = content_type.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    essence.eq_ignore_ascii_case(expected)
}

/// The content type of a request.
pub(super) fn content_type(headers: &HeaderMap) -> Option<&str> {
    headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok())
}

/// Reads all events of a request. `now_ms` is the time of those that name none.
pub(super) fn read(headers: &HeaderMap, body: Bytes, now_ms: u64, events_max: usize) -> Result<Vec<Event>, ApiError> {
    let content_type = content_type(headers);
    if is(content_type, STRUCTURED) {
        return structured(&body, now_ms).map(|event| vec![event]);
    }
    if is(content_type, BATCH) {
        let events: Vec<Map<String, Value>> =
            serde_json::from_slice(&body).map_err(|error| malformed("the batch", &error))?;
        if events.len() > events_max {
            let error = format!(
                "the batch has {} events, more than `limits.api_batch_events_max` = {events_max}",
                events.len()
            );
            return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, error).hint("send it in parts"));
        }
        let parse = |(index, event)| {
            from_json(event, now_ms).map_err(|error| invalid(format!("event {index} of the batch: {error}")))
        };
        return events.into_iter().enumerate().map(parse).collect();
    }
    if headers.contains_key("ce-specversion") {
        return binary(headers, body, now_ms).map(|event| vec![event]).map_err(invalid);
    }
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "this is not a CloudEvent").hint(SHAPES))
}

/// Reads a request with these headers as [`read`] does. `None` when it is refused, or the headers are none.
pub(crate) fn read_lines<'a>(
    headers: impl Iterator<Item = (&'a str, &'a str)>,
    body: &str,
    events_max: usize,
) -> Option<Vec<Event>> {
    let header = |(name, value): (&str, &str)| Some((name.parse::<HeaderName>().ok()?, value.parse().ok()?));
    let headers = headers.map(header).collect::<Option<HeaderMap>>()?;
    read(&headers, Bytes::copy_from_slice(body.as_bytes()), 0, events_max).ok()
}

/// Reads one event as JSON.
pub(super) fn structured(body: &[u8], now_ms: u64) -> Result<Event, ApiError> {
    let event = serde_json::from_slice(body).map_err(|error| malformed("the event", &error))?;
    from_json(event, now_ms).map_err(invalid)
}

/// Reads a whole event as JSON; the error says what is wrong with it.
pub(crate) fn parse(json: &[u8], now_ms: u64) -> Result<Event, String> {
    from_json(serde_json::from_slice(json).map_err(|error| error.to_string())?, now_ms)
}

/// The same of a recorded event, with its `outcome`.
pub(crate) fn parse_recorded(json: &[u8]) -> Result<(Event, Option<Value>), String> {
    let mut json: Map<String, Value> = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    let outcome = json.remove(OUTCOME);
    Ok((from_json(json, 0)?, outcome))
}

/// A time of RFC 3339 as Unix time in milliseconds; the error says what it is instead.
pub(crate) fn time_ms(text: &str) -> Result<u64, String> {
    let time = text.parse::<jiff::Timestamp>().map_err(|error| format!("`{text}`: {error}"))?;
    u64::try_from(time.as_millisecond()).map_err(|_| format!("`{text}`, before 1970"))
}

fn malformed(what: &str, error: &serde_json::Error) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, format!("{what} is not what its content type says: {error}")).hint(SHAPES)
}

fn invalid(error: String) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, error)
        .hint("https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md says what each attribute must be")
}

/// One event while its attributes come in.
struct Draft {
    event: Event,
    has: [bool; 4],
}

impl Draft {
    const REQUIRED: [&str; 4] = ["specversion", "id", "source", "type"];

    fn new(now_ms: u64) -> Self {
        Self { event: Event { time_ms: now_ms, ..Event::default() }, has: [false; 4] }
    }

    fn attribute(&mut self, name: &str, value: String) -> Result<(), String> {
        if let Some(index) = Self::REQUIRED.iter().position(|required| *required == name) {
            if value.is_empty() {
                return Err(format!("attribute `{name}` is empty"));
            }
            self.has[index] = true;
        }
        let event = &mut self.event;
        match name {
            "specversion" if value != "1.0" => return Err(format!("attribute `specversion` is `{value}`, not `1.0`")),
            "specversion" => {}
            "id" => event.id = value.into(),
            "source" => event.source = value.into(),
            "type" => event.kind = value.into(),
            "subject" if value.is_empty() => {
                return Err("attribute `subject` is empty; leave it out instead".to_owned());
            }
            "subject" => event.subject = Some(value.into()),
            "datacontenttype" => event.content_type = Some(value.into()),
            "time" => event.time_ms = time_ms(&value).map_err(|why| format!("attribute `time` is {why}"))?,
            "traceparent" => event.trace_parent = Some(value.into()),
            name if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) => {
                return Err(format!("attribute `{name}` is malformed: a name has only `a-z` and `0-9`"));
            }
            name => event.attributes.push((name.to_owned(), value)),
        }
        Ok(())
    }

    fn finish(self) -> Result<Event, String> {
        match Self::REQUIRED.iter().zip(self.has).find(|(_, has)| !has) {
            Some((name, _)) => Err(format!("attribute `{name}` is missing")),
            None => Ok(self.event),
        }
    }
}

fn from_json(mut json: Map<String, Value>, now_ms: u64) -> Result<Event, String> {
    let mut draft = Draft::new(now_ms);
    let [data, base64, text] = ["data", "data_base64", "data_text"].map(|name| json.remove(name));
    // What a recording has beside CloudEvents: what came of the event, and attributes whatever their names.
    if json.get(OUTCOME).is_some_and(Value::is_object) {
        json.remove(OUTCOME);
    }
    if let Some(pairs) = json.get_mut("attributes").filter(|pairs| pairs.is_array()).map(Value::take) {
        draft.event.attributes = serde_json::from_value(pairs)
            .map_err(|_| "`attributes` is not a list of names with their values".to_owned())?;
    }
    for (name, value) in json {
        let value = match value {
            Value::Null => continue,
            Value::String(text) => text,
            Value::Bool(truth) => truth.to_string(),
            Value::Number(number) if number.is_i64() || number.is_u64() => number.to_string(),
            _ => return Err(format!("attribute `{name}` is neither a string, a boolean nor a whole number")),
        };
        draft.attribute(&name, value)?;
    }
    let mut event = draft.finish()?;
    event.data = match (data, base64) {
        (None, None) if text.is_some() => match text {
            Some(Value::String(text)) => text.into(),
            _ => return Err("`data_text` is not a string".to_owned()),
        },
        (Some(_), Some(_)) => return Err("`data` and `data_base64` are both there".to_owned()),
        (Some(_), _) | (_, Some(_)) if text.is_some() => {
            return Err("`data_text` is there beside another payload".to_owned());
        }
        (None, Some(Value::String(text))) => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(text);
            bytes.map_err(|error| format!("`data_base64` is malformed: {error}"))?.into()
        }
        (None, Some(_)) => return Err("`data_base64` is not a string".to_owned()),
        (Some(data), None) => {
            let is_json = event.content_type.as_deref().is_none_or(json_type);
            event.content_type.get_or_insert_with(|| Arc::from("application/json"));
            match data {
                // What is not JSON travels as a string, whose characters are the payload.
                Value::String(text) if !is_json => text.into(),
                data => data.to_string().into(),
            }
        }
        (None, None) => Bytes::new(),
    };
    Ok(event)
}

pub(crate) fn json_type(content_type: &str) -> bool {
    let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.ends_with("/json") || essence.ends_with("+json")
}

fn binary(headers: &HeaderMap, body: Bytes, now_ms: u64) -> Result<Event, String> {
    let mut draft = Draft::new(now_ms);
    for (name, value) in headers {
        let Some(name) = name.as_str().strip_prefix("ce-") else { continue };
        let value = value
            .to_str()
            .map_err(|_| format!("header `ce-{name}` has characters that are not ASCII; percent-encode them"))?;
        let value =
            percent_decode(value).ok_or_else(|| format!("header `ce-{name}` has a malformed percent-encoding"))?;
        draft.attribute(name, value)?;
    }
    let mut event = draft.finish()?;
    event.content_type = content_type(headers).map(Into::into);
    event.data = body;
    Ok(event)
}

/// HTTP binding of CloudEvents, section 3.1.3.2. `None` when what results is not UTF-8.
fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escaped = (*first == b'%').then(|| after.get(..2)).flatten();
        let escaped =
            escaped.and_then(|hex| std::str::from_utf8(hex).ok()).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use axum::response::IntoResponse;
    use serde_json::json;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (axum::http::HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn event() -> Value {
        json!({"specversion": "1.0", "id": "7", "source": "/press/1", "type": "com.example.started"})
    }

    fn post(event: &Value) -> Result<Event, ApiError> {
        structured(event.to_string().as_bytes(), 5)
    }

    async fn told(error: ApiError) -> String {
        let body = to_bytes(error.into_response().into_body(), 10_000).await.unwrap();
        serde_json::from_slice::<Value>(&body).unwrap()["error"].as_str().unwrap().to_owned()
    }

    #[test]
    fn a_structured_event_keeps_all_of_its_attributes() {
        let mut json = event();
        let more = json!({"subject": "s", "time": "2026-11-22T15:00:00.5+01:00", "traceparent": "t", "line": 3, "urgent": true,
            "datacontenttype": "application/json", "data": {"a": [1, 2.5]}});
        json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let event = post(&json).unwrap();
        assert_eq!((&*event.id, &*event.source, &*event.kind), ("7", "/press/1", "com.example.started"));
        assert_eq!((event.subject.as_deref(), event.trace_parent.as_deref()), (Some("s"), Some("t")));
        assert_eq!(event.time_ms, 1_795_356_000_500);
        assert_eq!(event.attributes, [("line".to_owned(), "3".to_owned()), ("urgent".to_owned(), "true".to_owned())]);
        assert_eq!(event.data, r#"{"a":[1,2.5]}"#);
    }

    #[test]
    fn data_is_json_text_or_bytes_as_its_type_says() {
        let data = |more: Value| {
            let mut json = event();
            json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            post(&json).unwrap()
        };
        assert_eq!(data(json!({"data": "hi"})).data, "\"hi\"");
        assert_eq!(data(json!({"data": "hi"})).content_type.as_deref(), Some("application/json"));
        assert_eq!(data(json!({"datacontenttype": "text/plain", "data": "hi"})).data, "hi");
        assert_eq!(data(json!({"datacontenttype": "image/x", "data_base64": "AP8="})).data, &[0, 255][..]);
        assert_eq!(data(json!({})).time_ms, 5);
    }

    #[test]
    fn a_recorded_event_has_its_payload_as_it_was_and_attributes_of_any_name() {
        let mut json = event();
        let more = json!({"data_text": "{ \"a\": 1.0 }", "attributes": [["Site Name", "3"], ["id", "8"]], "outcome": {"ended": "x"}});
        json.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let found = post(&json).unwrap();
        assert_eq!((&found.data[..], found.content_type.as_deref()), (&b"{ \"a\": 1.0 }"[..], None));
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!((&*found.id, found.attributes), ("7", vec![pair("Site Name", "3"), pair("id", "8")]));
    }

    #[test]
    fn a_binary_event_has_its_attributes_in_headers() {
        let headers = headers(&[
            ("ce-specversion", "1.0"),
            ("ce-id", "7"),
            ("ce-source", "/press/1"),
            ("ce-type", "com.example.started"),
            ("ce-note", "Euro%20%E2%82%AC%20100%"),
            ("content-type", "text/csv"),
        ]);
        let event = &read(&headers, Bytes::from_static(b"1;2"), 5, 1).unwrap()[0];
        assert_eq!(event.attributes, [("note".to_owned(), "Euro € 100%".to_owned())]);
        assert_eq!((event.content_type.as_deref(), &event.data[..]), (Some("text/csv"), &b"1;2"[..]));
    }

    #[tokio::test]
    async fn a_batch_is_all_or_nothing_and_bounded() {
        let headers = headers(&[("content-type", "application/cloudevents-batch+json; charset=utf-8")]);
        let batch = |events: Value, max| read(&headers, events.to_string().into(), 5, max);
        assert_eq!(batch(json!([event(), event()]), 2).unwrap().len(), 2);
        assert_eq!(batch(json!([]), 2).unwrap().len(), 0);
        assert!(told(batch(json!([event(), event()]), 1).unwrap_err()).await.contains("limits.api_batch_events_max"));
        let wrong = batch(json!([event(), {"specversion": "1.0"}]), 2).unwrap_err();
        assert_eq!(told(wrong).await, "event 1 of the batch: attribute `id` is missing");
    }

    #[tokio::test]
    async fn an_error_names_the_attribute() {
        for (name, value, expected) in [
            ("id", json!(null), "attribute `id` is missing"),
            ("id", json!(""), "attribute `id` is empty"),
            ("specversion", json!("0.3"), "attribute `specversion` is `0.3`, not `1.0`"),
            ("source", json!({}), "attribute `source` is neither a string, a boolean nor a whole number"),
            ("subject", json!(""), "attribute `subject` is empty; leave it out instead"),
            ("time", json!("yesterday"), "attribute `time` is `yesterday`: "),
            ("Camel", json!("x"), "attribute `Camel` is malformed: a name has only `a-z` and `0-9`"),
            ("data_base64", json!("%"), "`data_base64` is malformed: "),
            ("data_text", json!(1), "`data_text` is not a string"),
            ("attributes", json!([1]), "`attributes` is not a list of names with their values"),
            ("outcome", json!([]), "attribute `outcome` is neither a string, a boolean nor a whole number"),
        ] {
            let mut json = event();
            json[name] = value;
            let error = told(post(&json).unwrap_err()).await;
            assert!(error.starts_with(expected), "{error}");
        }
        let both = json!({"specversion": "1.0", "id": "7", "source": "s", "type": "t", "data": 1, "data_base64": ""});
        assert_eq!(told(post(&both).unwrap_err()).await, "`data` and `data_base64` are both there");
        let both = json!({"specversion": "1.0", "id": "7", "source": "s", "type": "t", "data": 1, "data_text": ""});
        assert_eq!(told(post(&both).unwrap_err()).await, "`data_text` is there beside another payload");
        assert!(told(read(&headers(&[]), Bytes::new(), 5, 1).unwrap_err()).await.contains("not a CloudEvent"));
    }
}
