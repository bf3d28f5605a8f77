//! The audit log.

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{App, List, QueryOf};
use crate::audit::Chain;
use crate::auth::{Caller, Role};
use crate::error::{ApiError, ErrorBody};
use crate::limits;
use crate::store::{AuditRow, StoreError};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(verify))
}

#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct AuditQuery {
    /// Behind this line.
    #[serde(default)]
    after: u64,
    /// Most lines of the page: 100 when it is not said, 1000 at most.
    limit: Option<u64>,
    /// `jsonl`: all lines behind `after`, one JSON object a line.
    format: Option<String>,
}

/// One line. `hash` is the SHA-256 of the hash before it, in hexadecimal, followed by the text of `entry`.
#[derive(Debug, Serialize, ToSchema)]
struct Line {
    id: u64,
    #[schema(value_type = Object)]
    entry: Box<RawValue>,
    hash: String,
}

fn line(row: AuditRow) -> Result<Line, ApiError> {
    let entry = RawValue::from_string(row.entry).map_err(ApiError::internal)?;
    Ok(Line { id: row.id, entry, hash: row.hash })
}

/// The audit log, oldest first: a page of it, or all of it as JSON lines.
#[utoipa::path(get, path = "/v1/audit", tag = "access", params(AuditQuery), responses((status = 200, body = List<Line>), (status = 403, body = ErrorBody)))]
async fn list(
    State(app): State<App>,
    caller: Caller,
    QueryOf(asked): QueryOf<AuditQuery>,
) -> Result<Response, ApiError> {
    caller.require(Role::Operator)?;
    match asked.format.as_deref() {
        None | Some("json") => {
            let limit = asked.limit.unwrap_or(limits::PAGE).clamp(1, limits::PAGE_MAX);
            let rows = app.store.audit(asked.after, limit).await?;
            let full = rows.len() as u64 >= limit;
            let next = rows.last().filter(|_| full).map(|row| row.id.to_string());
            let items = rows.into_iter().map(line).collect::<Result<_, _>>()?;
            Ok(Json(List { items, next }).into_response())
        }
        Some("jsonl") => {
            let pages = stream::try_unfold(asked.after, move |after| {
                let app = app.clone();
                async move {
                    let rows = app.store.audit(after, limits::PAGE_MAX).await?;
                    let Some(after) = rows.last().map(|row| row.id) else { return Ok::<_, StoreError>(None) };
                    let lines = rows.into_iter().map(|AuditRow { id, entry, hash }| {
                        format!("{{\"id\":{id},\"entry\":{entry},\"hash\":\"{hash}\"}}\n")
                    });
                    Ok(Some((Bytes::from(lines.collect::<String>()), after)))
                }
            });
            Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(pages)).into_response())
        }
        Some(other) => Err(ApiError::malformed(format!("`format` = `{other}`: it must be `json` or `jsonl`"))),
    }
}

/// Whether the log is whole.
#[derive(Debug, Serialize, ToSchema)]
struct Verified {
    /// Lines up to the first that does not fit.
    lines: u64,
    /// The newest hash: who keeps it elsewhere notices when lines are taken off the end.
    head: String,
    /// The first line that does not fit those before it; `null` when all do.
    broken: Option<u64>,
}

/// Goes through the whole log and checks that each line fits those before it.
#[utoipa::path(get, path = "/v1/audit/verify", tag = "access", responses((status = 200, body = Verified), (status = 403, body = ErrorBody)))]
async fn verify(State(app): State<App>, caller: Caller) -> Result<Json<Verified>, ApiError> {
    caller.require(Role::Operator)?;
    let mut chain = Chain::default();
    let mut after = 0;
    loop {
        let rows = app.store.audit(after, limits::PAGE_MAX).await?;
        let Some(last) = rows.last().map(|row| row.id) else { break };
        after = last;
        if let Some(broken) = rows.iter().find(|row| !chain.fits(&row.entry, &row.hash)) {
            return Ok(Json(Verified { lines: chain.lines, head: chain.head, broken: Some(broken.id) }));
        }
    }
    Ok(Json(Verified { lines: chain.lines, head: chain.head, broken: None }))
}
