//! The answer that becomes of what a function returned.

use std::borrow::Cow;

use bytes::Bytes;
use serde::de::IgnoredAny;

use super::{EventShape, lambda};

/// Name and value.
pub type Header = (Cow<'static, str>, Cow<'static, str>);

/// What the caller gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// 200 to 599.
    pub status: u16,
    /// As the function wrote them, without those that are between the gateway and its caller.
    pub headers: Vec<Header>,
    /// The body.
    pub body: Bytes,
}

/// Why what a function returned is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what it returned is no answer to a request: {0}")]
pub struct Malformed(pub(super) String);

/// Reads what a function with this shape returned.
///
/// # Errors
/// When the shape asks for a form that `value` does not have.
pub fn answer(shape: EventShape, value: Bytes) -> Result<Answer, Malformed> {
    match shape {
        EventShape::Native => Ok(native(value)),
        EventShape::ApigwV1 => lambda::answer1(&value),
        EventShape::ApigwV2 => lambda::answer2(value),
        EventShape::WasiHttp => lambda::answer_as_it_is(&value),
    }
}

fn native(body: Bytes) -> Answer {
    let content_type = if serde_json::from_slice::<IgnoredAny>(&body).is_ok() {
        "application/json"
    } else if std::str::from_utf8(&body).is_ok() {
        "text/plain; charset=utf-8"
    } else {
        "application/octet-stream"
    };
    // What it is was guessed: a browser must not guess again, and take text for a page with scripts.
    let headers = [("content-type", content_type), ("x-content-type-options", "nosniff")];
    Answer { status: 200, headers: headers.map(|(name, value)| (name.into(), value.into())).into(), body }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_native_function_returns_is_the_body() {
        for (body, content_type) in [
            (&b"{\"a\": 1}"[..], "application/json"),
            (b"<p>hello", "text/plain; charset=utf-8"),
            (b"\xff\x00", "application/octet-stream"),
        ] {
            let answer = answer(EventShape::Native, Bytes::from_static(body)).unwrap();
            assert_eq!((answer.status, &answer.body[..]), (200, body));
            assert_eq!(answer.headers[0].1, content_type);
        }
    }
}
