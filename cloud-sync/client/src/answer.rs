//! What a server's answer to a batch of records means, for any server of the HTTP uplink. No I/O.

use std::time::Duration;

use serde::Deserialize;

/// Longest that a server may ask to be left alone.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);
/// What is told of a server's words.
const WORDS_MAX: usize = 200;

/// What a body may say.
#[derive(Debug, Default, Deserialize)]
struct Words {
    /// Highest sequence that was taken, with all before it in the batch.
    acked: Option<u64>,
    /// Why not more.
    error: Option<String>,
}

/// What is to be done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All of the batch was taken.
    Taken,
    /// Only up to this sequence; go on behind it.
    TakenUpTo(u64),
    /// The batch is too large.
    TooLarge(String),
    /// A record of it can never be taken; those up to the sequence were.
    Refused {
        /// The last one that was taken.
        up_to: Option<u64>,
        /// The server's words.
        why: String,
    },
    /// Try again, after so long when the server says so.
    Later {
        /// How long the server wants to be left alone.
        after: Option<Duration>,
        /// What went wrong.
        why: String,
    },
}

/// Judges an answer: its status, `Retry-After` and body, at `now_ms`.
pub fn judge(status: u16, retry_after: Option<&str>, body: &[u8], now_ms: u64) -> Verdict {
    let words: Words = serde_json::from_slice(body).unwrap_or_default();
    let said = words.error.unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned());
    let said: String = said.chars().take(WORDS_MAX).collect();
    let why = |what: &str| {
        let colon = if said.is_empty() { "" } else { ": " };
        format!("the server answers {status}{what}{colon}{said}")
    };
    match status {
        200..=299 => words.acked.map_or(Verdict::Taken, Verdict::TakenUpTo),
        413 => Verdict::TooLarge(why("")),
        400 | 422 => Verdict::Refused { up_to: words.acked, why: why("") },
        429 | 503 => {
            let after = retry_after.and_then(|text| wait(text, now_ms)).map(|wait| wait.min(RETRY_AFTER_MAX));
            Verdict::Later { after, why: why("") }
        }
        401 | 403 => Verdict::Later { after: None, why: why(", it does not let this gateway in") },
        408 | 500..=599 => Verdict::Later { after: None, why: why("") },
        300..=399 => Verdict::Later { after: None, why: why(", it wants to be asked elsewhere, which is not done") },
        _ => Verdict::Later { after: None, why: why(", so `http` of the uplink may name the wrong place") },
    }
}

/// `Retry-After`: seconds, or a date.
pub(crate) fn wait(text: &str, now_ms: u64) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text.trim()).ok()?;
    let at_ms = u64::try_from(at.as_millisecond()).ok()?;
    Some(Duration::from_millis(at_ms.saturating_sub(now_ms)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(status: u16, body: &str, expected: Verdict) {
        assert_eq!(judge(status, None, body.as_bytes(), 0), expected, "{status} {body}");
    }

    #[test]
    fn a_success_takes_all_or_as_far_as_it_says() {
        check(200, "", Verdict::Taken);
        check(204, "", Verdict::Taken);
        check(202, "thank you", Verdict::Taken);
        check(200, r#"{"acked": 7}"#, Verdict::TakenUpTo(7));
        check(200, r#"{"acked": "seven"}"#, Verdict::Taken);
    }

    #[test]
    fn only_what_is_wrong_with_a_record_is_held_against_it() {
        let why = "the server answers 422: no such sensor".to_owned();
        check(422, r#"{"acked": 3, "error": "no such sensor"}"#, Verdict::Refused { up_to: Some(3), why });
        check(413, "", Verdict::TooLarge("the server answers 413".to_owned()));
        for status in [301, 401, 403, 404, 405, 408, 415, 500, 502, 507] {
            assert!(matches!(judge(status, None, b"", 0), Verdict::Later { after: None, .. }), "{status}");
        }
    }

    #[test]
    fn a_server_says_when_it_wants_to_be_asked_again() {
        let after = |text| match judge(503, Some(text), b"", 784_111_777_000 - 5_000) {
            Verdict::Later { after, .. } => after,
            other => unreachable!("{other:?}"),
        };
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(5)));
        assert_eq!(after("999999999"), Some(RETRY_AFTER_MAX));
        assert_eq!(after("soon"), None);
    }
}
