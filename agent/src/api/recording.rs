//! `GET /v1/recording`: events as functions get them, with what came of each, until the caller leaves.

use std::convert::Infallible;

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;

use super::error::ApiError;
use super::routes::Agent;
use crate::name::FunctionName;
use crate::recording::line;
use crate::recording::tap::{Heard, Recording, Selection};

/// How much is gathered, when it is there already, before it is sent.
const PIECE_BYTES: usize = 64 << 10;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordingQuery {
    #[serde(default)]
    functions: String,
    #[serde(default)]
    triggers: String,
}

pub(super) async fn follow(State(shared): Agent, uri: Uri) -> Result<Response, ApiError> {
    let Query(query) = Query::<RecordingQuery>::try_from_uri(&uri).map_err(|error| {
        ApiError::new(StatusCode::BAD_REQUEST, error.body_text())
            .hint("`functions=NAME,NAME` and `triggers=KIND,KIND` are known")
    })?;
    let list = |text: &str| text.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    let mut wanted = Selection { functions: Vec::new(), kinds: list(&query.triggers) };
    for name in list(&query.functions) {
        let known = FunctionName::parse(&name).ok().filter(|name| shared.agent.version(name).is_some());
        wanted.functions.push(known.ok_or_else(|| {
            ApiError::new(StatusCode::NOT_FOUND, format!("function `{name}` does not run on this gateway"))
                .hint("`tidegate status` lists the functions")
        })?);
    }
    let recording = shared.agent.record(wanted).map_err(|error| {
        ApiError::new(StatusCode::TOO_MANY_REQUESTS, error.to_string()).hint("wait until one of them ends, or end one")
    })?;
    let (stop, line_bytes_max) = (shared.stop.clone(), shared.limits.recording_line_bytes_max.0);
    // An empty line says that it has begun.
    let state = (Some("\n".to_owned()), recording);
    let body = Body::from_stream(stream::unfold(state, move |(begun, mut recording)| {
        let stop = stop.clone();
        async move {
            if let Some(begun) = begun {
                return Some((Ok::<_, Infallible>(begun), (None, recording)));
            }
            // What waits already is told before the agent stops.
            let heard = tokio::select! {
                biased;
                heard = recording.next() => heard?,
                () = stop.cancelled() => return None,
            };
            Some((Ok(piece(heard, &mut recording, line_bytes_max)), (None, recording)))
        }
    }));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// The line of `heard`, and those that wait behind it. One that nobody would read, because it is too long, is missed.
fn piece(heard: Heard, recording: &mut Recording, line_bytes_max: u64) -> String {
    let (mut lines, mut next) = (String::new(), Some(heard));
    while let Some(heard) = next {
        let line = line::write(&heard).filter(|line| line.len() as u64 <= line_bytes_max);
        let line = line.or_else(|| line::write(&Heard::Missed(1)));
        lines.extend([line.as_deref().unwrap_or_default(), "\n"]);
        next = if lines.len() < PIECE_BYTES { recording.ready() } else { None };
    }
    lines
}
