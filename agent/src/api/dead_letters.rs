//! `/v1/dead-letters`: what was given up on, and what can be done about it. The command line reads the same types.

use axum::Json;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::error::ApiError;
use super::routes::Agent;
use crate::dispatch::{LetterError, StoredLetter};
use crate::name::{FunctionName, StreamName};

/// Letters on one page, unless the caller says.
const PAGE: usize = 100;
/// Letters on one page at most.
const PAGE_MAX: usize = 1_000;

/// A dead letter, without what it keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Its sequence in the stream `dead-letters`.
    pub id: u64,
    /// Unix time in milliseconds at which it was given up on.
    pub time_ms: u64,
    /// Which function could not handle the event, or had published; none for a record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<FunctionName>,
    /// The stream of a record that could not be sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<StreamName>,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// How many attempts there were.
    pub attempts: u32,
    /// How the last one ended, in a word; `refused` when a publish or a record was not taken.
    pub outcome: String,
    /// How the last one ended, in a sentence.
    pub reason: String,
    /// The topic that the event came on, or that was published on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub topic: Option<String>,
    /// Size of the payload.
    pub payload_bytes: u64,
}

/// Some of the letters, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// The letters.
    pub letters: Vec<Summary>,
    /// What `after` is for the next page; `null` at the end.
    pub next: Option<u64>,
}

/// A dead letter with what it keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Whole {
    /// What `GET /v1/dead-letters` tells.
    #[serde(flatten)]
    pub summary: Summary,
    /// `event`, `publish` or `record`: its attributes, and its payload as `data` when it is JSON, as `data_text` when it is other text,
    /// else as `data_base64`.
    #[serde(flatten)]
    pub kept: Map<String, Value>,
}

impl From<&StoredLetter> for Summary {
    fn from(stored: &StoredLetter) -> Self {
        let letter = &stored.letter;
        Self {
            id: stored.id,
            time_ms: stored.time_ms,
            function: letter.function.clone(),
            stream: letter.stream().cloned(),
            version: letter.version.clone(),
            attempts: letter.attempts,
            outcome: letter.outcome.clone(),
            reason: letter.reason.clone(),
            topic: letter.topic().map(str::to_owned),
            payload_bytes: letter.data().len() as u64,
        }
    }
}

impl Whole {
    fn of(stored: &StoredLetter) -> Result<Self, serde_json::Error> {
        let data = stored.letter.data();
        let readable = match (serde_json::from_slice(data), std::str::from_utf8(data)) {
            (Ok(json), _) => Some(("data", json)),
            (Err(_), Ok(text)) => Some(("data_text", Value::from(text))),
            (Err(_), Err(_)) => None,
        };
        let mut what = serde_json::to_value(&stored.letter.what)?;
        if let (Some((name, value)), Some(kept)) =
            (readable, what.as_object_mut().and_then(|what| what.values_mut().next()?.as_object_mut()))
        {
            kept.remove("data_base64");
            kept.insert(name.to_owned(), value);
        }
        let kept = if let Value::Object(kept) = what { kept } else { Map::new() };
        Ok(Self { summary: Summary::from(stored), kept })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PageQuery {
    function: Option<FunctionName>,
    #[serde(default)]
    after: u64,
    limit: Option<usize>,
}

pub(super) async fn page(State(shared): Agent, uri: Uri) -> Result<Response, ApiError> {
    let Query(query) = Query::<PageQuery>::try_from_uri(&uri).map_err(|error| {
        ApiError::new(StatusCode::BAD_REQUEST, error.body_text())
            .hint("`function=NAME`, `after=ID` and `limit=N` are known")
    })?;
    let limit = query.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX);
    let page = shared.agent.letters(query.function, query.after, limit).await.map_err(failed)?;
    let letters = page.letters.iter().map(Summary::from).collect();
    Ok(Json(Page { letters, next: page.next }).into_response())
}

pub(super) async fn show(State(shared): Agent, Path(id): Path<String>) -> Result<Response, ApiError> {
    let stored = shared.agent.letter(id_of(&id)?).await.map_err(failed)?;
    let whole = Whole::of(&stored).map_err(|error| {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, format!("dead letter {id} cannot be shown: {error}"))
    })?;
    Ok(Json(whole).into_response())
}

pub(super) async fn replay(State(shared): Agent, Path(id): Path<String>) -> Result<Response, ApiError> {
    let stored = shared.agent.replay(id_of(&id)?).await.map_err(failed)?;
    Ok(Json(Summary::from(&stored)).into_response())
}

pub(super) async fn discard(State(shared): Agent, Path(id): Path<String>) -> Result<Response, ApiError> {
    let id = id_of(&id)?;
    shared.agent.drop_letter(id).await.map_err(failed)?;
    Ok(Json(serde_json::json!({ "id": id })).into_response())
}

pub(super) fn id_of(text: &str) -> Result<u64, ApiError> {
    text.parse().map_err(|_| {
        ApiError::new(StatusCode::NOT_FOUND, format!("`{text}` is not the id of a dead letter"))
            .hint("ids are numbers: `tidegate dead-letters` lists them")
    })
}

pub(super) fn failed(error: LetterError) -> ApiError {
    let text = error.to_string();
    match error {
        LetterError::Unknown(_) => ApiError::new(StatusCode::NOT_FOUND, text).hint(
            "`tidegate dead-letters` lists them; it may have been replayed, dropped, or sent by the stream's uplink",
        ),
        LetterError::NoFunction { function, .. } => ApiError::new(StatusCode::NOT_FOUND, text)
            .hint(format!("add function `{function}` to gateway.toml and run `tidegate reload`, or drop the letter")),
        LetterError::NoBroker { broker, .. } => ApiError::new(StatusCode::NOT_FOUND, text)
            .hint(format!("add `[mqtt.{broker}]` to gateway.toml and run `tidegate reload`, or drop the letter")),
        LetterError::Unreadable(id) => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, text)
            .hint(format!("`tidegate dead-letters drop {id}` drops it")),
        LetterError::Journal(_) => {
            let (what, hint) = text.split_once("\nhint: ").unwrap_or((&text, "`tidegate logs` may say more"));
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, what).hint(hint)
        }
    }
}
