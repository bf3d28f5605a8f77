//! Requests and answers of components that export `wasi:http/incoming-handler`: the native event holds all of a request, and the answer
//! is written as in format 1.0.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::http::{response, uri};
use serde::Serialize;

use super::request::KIND;
use crate::event::Event;

/// Attributes of a native event that a request is made of; the headers have this in front of their names.
const HEADER: &str = "header.";
/// Whom a request is for that does not say it, or nothing that could be an address.
const HOST_DEFAULT: &str = "localhost";

/// The request that `event` is, with the run's own `trace_parent` in the place of the caller's.
///
/// # Errors
/// With what is missing, or malformed, when it is none.
pub(crate) fn request(event: &Event, trace_parent: Option<&str>) -> Result<hyper::Request<Full<Bytes>>, String> {
    let attribute = |name: &str| event.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| &**value);
    let (Some(method), Some(path)) = (attribute("method"), attribute("path")) else {
        return Err(format!(
            "it answers HTTP requests, and this event is a `{}`; hint: call its function URL, or send an event with the attributes \
             `method` and `path`, as those of kind `{KIND}` have them",
            event.kind
        ));
    };
    let malformed = |error: hyper::http::Error| format!("the event is no HTTP request: {error}");
    let mut request = hyper::Request::builder().method(method);
    for (name, value) in &event.attributes {
        if let Some(name) = name.strip_prefix(HEADER) {
            request = request.header(name, value.as_bytes());
        }
    }
    if let Some(headers) = request.headers_mut() {
        let said = |value: &str| HeaderValue::from_str(value).ok();
        if let Some(own) = trace_parent.and_then(said) {
            headers.insert(HeaderName::from_static("traceparent"), own);
        }
        if let Some(content_type) = event.content_type.as_deref().and_then(said) {
            headers.entry(CONTENT_TYPE).or_insert(content_type);
        }
    }
    let said = request.headers_ref().and_then(|headers| headers.get(HOST));
    let host = said.and_then(|host| uri::Authority::try_from(host.as_bytes()).ok());
    let host = host.unwrap_or(uri::Authority::from_static(HOST_DEFAULT));
    let target = match attribute("query") {
        Some(query) => Cow::Owned(format!("{path}?{query}")),
        None => Cow::Borrowed(path),
    };
    let uri = uri::Builder::new().scheme(uri::Scheme::HTTP).authority(host).path_and_query(&*target).build();
    request.uri(uri.map_err(malformed)?).body(Full::new(event.data.clone())).map_err(malformed)
}

/// An answer as the function returns it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    status_code: u16,
    multi_value_headers: BTreeMap<&'a str, Vec<&'a str>>,
    body: Cow<'a, str>,
    is_base64_encoded: bool,
}

/// What the function returns when it answers with `head` and `body`.
///
/// # Errors
/// When that cannot be sent.
pub(crate) fn value(head: &response::Parts, body: &[u8]) -> Result<Vec<u8>, String> {
    let status_code = head.status.as_u16();
    if !(200..600).contains(&status_code) {
        return Err(format!("it answered with status {status_code}, which must be from 200 to 599"));
    }
    let mut multi_value_headers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, value) in &head.headers {
        let text = std::str::from_utf8(value.as_bytes());
        let text = text.map_err(|_| format!("the header `{name}` of its answer is not text in UTF-8"))?;
        multi_value_headers.entry(name.as_str()).or_default().push(text);
    }
    let (body, is_base64_encoded) = match std::str::from_utf8(body) {
        Ok(text) => (text.into(), false),
        Err(_) => (STANDARD.encode(body).into(), true),
    };
    let written = Written { status_code, multi_value_headers, body, is_base64_encoded };
    serde_json::to_vec(&written).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use hyper::header::SET_COOKIE;

    use super::super::{Answer, EventShape, answer};
    use super::*;

    fn event(attributes: &[(&str, &str)]) -> Event {
        let attributes = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Event { kind: "x".into(), attributes, data: Bytes::from_static(b"\xff\x00"), ..Event::default() }
    }

    #[test]
    fn an_event_becomes_the_request_that_it_was_made_of() {
        let event = event(&[
            ("method", "PURGE"),
            ("path", "/orders/a%20b"),
            ("query", "full&tag=x%26y"),
            ("path.id", "a b"),
            ("query.tag", "x&y"),
            ("header.host", "gateway:8470"),
            ("header.accept", "a/b"),
            ("header.accept", "c/d"),
            ("header.traceparent", "theirs"),
        ]);
        let request = request(&event, Some("ours")).unwrap();
        assert_eq!(request.method(), "PURGE");
        assert_eq!(request.uri(), "http://gateway:8470/orders/a%20b?full&tag=x%26y");
        let headers: Vec<_> =
            request.headers().iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
        assert_eq!(headers, ["host=gateway:8470", "accept=a/b", "accept=c/d", "traceparent=ours"]);
    }

    #[test]
    fn a_request_for_a_strange_host_is_for_this_one() {
        for host in ["", "a b", "gateway:8470/", "größe"] {
            let event = event(&[("method", "GET"), ("path", "/a"), ("header.host", host)]);
            assert_eq!(request(&event, None).unwrap().uri(), "http://localhost/a", "{host}");
        }
    }

    #[test]
    fn an_event_that_is_no_request_is_told_so() {
        for (attributes, expected) in [
            (&[][..], "this event is a `x`"),
            (&[("method", "GET")], "`method` and `path`"),
            (&[("method", "GET"), ("path", "/a b")], "no HTTP request: invalid uri"),
            (&[("method", "G T"), ("path", "/")], "no HTTP request: invalid HTTP method"),
            (&[("method", "GET"), ("path", "/"), ("header.a b", "c")], "no HTTP request: invalid HTTP header name"),
        ] {
            let told = request(&event(attributes), None).unwrap_err();
            assert!(told.contains(expected), "{told}");
        }
    }

    #[test]
    fn an_answer_is_read_as_it_was_written() {
        for body in [&b"<p>hello"[..], b"\xff\x00", b""] {
            let response = hyper::Response::builder().status(404).header(SET_COOKIE, "a=1").header(SET_COOKIE, "b=2");
            let (head, ()) = response.header("content-length", "7").body(()).unwrap().into_parts();
            let value = value(&head, body).unwrap();
            let read = answer(EventShape::WasiHttp, value.into()).unwrap();
            let cookie = |value: &'static str| ("set-cookie".into(), value.into());
            // The length is the gateway's to say, and what a body is the function's.
            let expected = Answer { status: 404, headers: vec![cookie("a=1"), cookie("b=2")], body: body.into() };
            assert_eq!(read, expected);
        }
    }

    #[test]
    fn an_answer_that_cannot_be_sent_is_told() {
        let head = |response: response::Builder| response.body(()).unwrap().into_parts().0;
        let told = value(&head(hyper::Response::builder().status(101)), b"").unwrap_err();
        assert_eq!(told, "it answered with status 101, which must be from 200 to 599");
        let told = value(&head(hyper::Response::builder().header("x", &b"\xff"[..])), b"").unwrap_err();
        assert_eq!(told, "the header `x` of its answer is not text in UTF-8");
    }
}
