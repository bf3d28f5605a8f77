//! Records: gateways deliver them, people read them.

use std::fmt::Write as _;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream;
use serde::Deserialize;
use serde_json::json;
use sync_protocol::limits::RECORDS_BYTES_MAX;
use sync_protocol::name::{GatewayName, StreamName};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{App, PathOf, QueryOf};
use crate::auth::{Caller, GatewayCaller, Role};
use crate::error::{ApiError, ErrorBody};
use crate::limits;
use crate::records::{Data, Kept, ParseError, Query, parse};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(deliver)).routes(routes!(read))
}

/// Delivers a batch of one stream: lines of JSON, compressed with zstd. `acked` is the sequence up to which the gateway may let go.
#[utoipa::path(
    post, path = "/v1/gateways/{name}/records", tag = "gateways", params(("name" = String, Path)),
    request_body(content = Vec<u8>, content_type = "application/x-ndjson"),
    responses((status = 200, body = Object), (status = 413, body = ErrorBody), (status = 422, description = "A line is wrong; those before it were taken: `acked`", body = Object), (status = 503, body = ErrorBody))
)]
async fn deliver(
    State(app): State<App>,
    caller: GatewayCaller,
    PathOf(id): PathOf<GatewayName>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    caller.require(&id)?;
    let encoding = headers.get(CONTENT_ENCODING).map_or("", |value| value.to_str().unwrap_or("?"));
    if !matches!(encoding, "" | "identity" | "zstd") {
        let error = format!("the body is compressed with `{encoding}`, and this call takes zstd");
        return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, error));
    }
    let compressed = encoding == "zstd";
    // Whoever waits here has its body still on its own side.
    let place = app.batches.clone().acquire_owned().await.map_err(ApiError::internal)?;
    let body = within_time(axum::body::to_bytes(body, RECORDS_BYTES_MAX)).await?;
    let parsed = tokio::task::spawn_blocking(move || parse(&body, compressed)).await.map_err(ApiError::internal)?;
    let (batch, wrong) = parsed.map_err(|error| match error {
        ParseError::TooLarge => ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
        ParseError::Compression(_) => ApiError::malformed(error.to_string()),
    })?;
    let acked = batch.as_ref().and_then(|batch| batch.records.iter().map(|record| record.sequence).max());
    if let Some(batch) = batch
        && let Err(error) = app.records.keep(&id, batch).await
    {
        tracing::error!(gateway = %id, %error, "records could not be kept");
        let busy = ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the records could not be kept; send them again");
        return Ok(([(RETRY_AFTER, "5")], busy).into_response());
    }
    drop(place);
    Ok(match (acked, wrong) {
        (Some(acked), None) => Json(json!({"acked": acked})).into_response(),
        (None, None) => Json(json!({})).into_response(),
        (acked, Some(wrong)) => {
            let mut answer = json!({"error": wrong.to_string()});
            if let Some(acked) = acked {
                answer["acked"] = acked.into();
            }
            (StatusCode::UNPROCESSABLE_ENTITY, Json(answer)).into_response()
        }
    })
}

async fn within_time(read: impl Future<Output = Result<Bytes, axum::Error>>) -> Result<Bytes, ApiError> {
    let read = tokio::time::timeout(limits::BODY_TIME_MAX, read).await;
    let read = read.map_err(|_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body came too slowly"))?;
    read.map_err(|_| ApiError::too_large("the body", RECORDS_BYTES_MAX))
}

#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct RecordsQuery {
    /// Of one gateway.
    #[param(value_type = Option<String>)]
    gateway: Option<GatewayName>,
    /// Of streams of this name.
    #[param(value_type = Option<String>)]
    stream: Option<StreamName>,
    /// Made at this Unix time or later, in milliseconds.
    from_ms: Option<u64>,
    /// Made before this Unix time, in milliseconds.
    to_ms: Option<u64>,
    /// Arrived after that one: `arrival` of the last record that was read.
    #[serde(default)]
    after: u64,
    /// Most records; all that there are when it is not said.
    limit: Option<u64>,
    /// `jsonl` (when it is not said) or `csv`.
    #[serde(default)]
    format: Format,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
enum Format {
    #[default]
    Jsonl,
    Csv,
}

/// Records in the order in which they arrived, as JSON lines or CSV. Each says its `arrival`: `after` of the next call, so that nothing is
/// missed that comes late.
#[utoipa::path(get, path = "/v1/records", tag = "records", params(RecordsQuery), responses((status = 200, body = String), (status = 400, body = ErrorBody)))]
async fn read(
    State(app): State<App>,
    caller: Caller,
    QueryOf(asked): QueryOf<RecordsQuery>,
) -> Result<Response, ApiError> {
    caller.require(Role::Viewer)?;
    let format = asked.format;
    let query = Query {
        gateway: asked.gateway,
        stream: asked.stream,
        from_ms: asked.from_ms,
        to_ms: asked.to_ms,
        after: asked.after,
        limit: 0,
    };
    let left = asked.limit.unwrap_or(u64::MAX);
    let first = app.records.page(&Query { limit: left.min(limits::RECORDS_PAGE), ..query.clone() }).await?;
    let head = match format {
        Format::Csv => "arrival,gateway,stream,epoch,sequence,time_ms,time_unknown,received_ms,data,data_base64\r\n",
        Format::Jsonl => "",
    };
    let pages = stream::try_unfold((Some(first), left, query), move |(page, left, query)| {
        let app = app.clone();
        async move {
            let page = match page {
                Some(page) => page,
                None if left == 0 => return Ok(None),
                None => app.records.page(&Query { limit: left.min(limits::RECORDS_PAGE), ..query.clone() }).await?,
            };
            let Some(last) = page.last() else { return Ok::<_, crate::store::StoreError>(None) };
            let after = last.id;
            let left = left.saturating_sub(page.len() as u64);
            let mut text = String::new();
            page.iter().for_each(|record| write(&mut text, record, format));
            Ok(Some((Bytes::from(text), (None, left, Query { after, ..query }))))
        }
    });
    let kind = match format {
        Format::Csv => "text/csv; charset=utf-8",
        Format::Jsonl => "application/x-ndjson",
    };
    let head = stream::iter((!head.is_empty()).then(|| Ok(Bytes::from_static(head.as_bytes()))));
    let body = Body::from_stream(futures_util::StreamExt::chain(head, pages));
    Ok(([(CONTENT_TYPE, kind)], body).into_response())
}

fn write(out: &mut String, record: &Kept, format: Format) {
    let Kept { id, gateway, stream, epoch, sequence, time_ms, time_unknown, received_ms, data } = record;
    // Writing into a string cannot fail.
    let _ = match format {
        Format::Jsonl => {
            let data = match data {
                Data::Json(json) => format!(r#""data":{json}"#),
                Data::Bytes(bytes) => format!(r#""data_base64":"{}""#, STANDARD.encode(bytes)),
            };
            let unknown = if *time_unknown { r#""time_unknown":true,"# } else { "" };
            writeln!(
                out,
                r#"{{"arrival":{id},"id":"{gateway}/{stream}/{sequence}","gateway":"{gateway}","stream":"{stream}","epoch":{epoch},"sequence":{sequence},"time_ms":{time_ms},{unknown}"received_ms":{received_ms},{data}}}"#
            )
        }
        Format::Csv => {
            let (json, base64) = match data {
                Data::Json(json) => (quoted(json), String::new()),
                Data::Bytes(bytes) => (String::new(), STANDARD.encode(bytes)),
            };
            write!(
                out,
                "{id},{gateway},{stream},{epoch},{sequence},{time_ms},{time_unknown},{received_ms},{json},{base64}\r\n"
            )
        }
    };
}

/// A field of CSV (RFC 4180). JSON that a spreadsheet would take for a formula stays text by its quotes in JSON.
fn quoted(json: &str) -> String {
    if json.contains([',', '"', '\r', '\n']) { format!("\"{}\"", json.replace('"', "\"\"")) } else { json.to_owned() }
}
