//! Blobs: resumable up and down, known by their digest.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde_json::json;
use sync_protocol::Digest;
use sync_protocol::limits::BLOB_BYTES_MAX;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{App, PathOf};
use crate::auth::{Anyone, Caller, GatewayCaller, Role};
use crate::blobs::{BlobError, Have};
use crate::error::{ApiError, ErrorBody};

/// How many bytes of an unfinished upload are here.
const HAVE: &str = "tidegate-have";

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(head, get, put))
}

/// From the path: 64 hexadecimal digits, with or without `sha256:`.
pub(super) fn digest_of(text: &str) -> Result<Digest, ApiError> {
    let digest = if text.starts_with("sha256:") { text.parse() } else { format!("sha256:{text}").parse() };
    digest.map_err(|error: sync_protocol::digest::DigestError| ApiError::malformed(error.to_string()))
}

impl From<BlobError> for ApiError {
    fn from(error: BlobError) -> Self {
        match &error {
            BlobError::Gap { have, .. } => Self::conflict(error.to_string()).hint(format!("go on at byte {have}")),
            BlobError::Length(_) => Self::refused(error.to_string()),
            BlobError::Digest { .. } => Self::refused(error.to_string()).hint("upload it again from the start"),
            BlobError::Busy(why) => Self::new(StatusCode::SERVICE_UNAVAILABLE, why).hint("try again in a minute"),
            BlobError::Io(io) if io.kind() == std::io::ErrorKind::StorageFull => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "the control plane's disk is full")
            }
            BlobError::Io(_) => Self::internal(error),
        }
    }
}

/// Lets through people, and gateways for which a deployment needs the blob.
async fn may_read(app: &App, caller: &Anyone, digest: Digest) -> Result<(), ApiError> {
    match caller {
        Anyone::Person(caller) => caller.require(Role::Viewer),
        Anyone::Gateway(GatewayCaller(name)) => match app.store.may_fetch(name.as_str(), digest).await? {
            true => Ok(()),
            false => Err(ApiError::missing(format!("blob {digest} for gateway `{name}`"))
                .hint("a gateway gets what its deployments need")),
        },
    }
}

/// Whether it is here. 404 with `Tidegate-Have: N`: so many bytes of an unfinished upload are.
#[utoipa::path(
    head, path = "/v1/blobs/{digest}", tag = "blobs", params(("digest" = String, Path, description = "64 hexadecimal digits")),
    responses((status = 200, description = "Whole; `Content-Length` says how long"), (status = 404, description = "Not, or not whole"))
)]
async fn head(State(app): State<App>, caller: Anyone, PathOf(digest): PathOf<String>) -> Result<Response, ApiError> {
    let digest = digest_of(&digest)?;
    may_read(&app, &caller, digest).await?;
    Ok(match app.blobs.have(digest).await? {
        Have::Whole(bytes) => {
            let mut response = Response::new(Body::empty());
            response.headers_mut().insert(CONTENT_LENGTH, bytes.into());
            response
        }
        Have::Part(have) => (StatusCode::NOT_FOUND, [(HAVE, have.to_string())]).into_response(),
    })
}

/// The bytes, or a range of them.
#[utoipa::path(
    get, path = "/v1/blobs/{digest}", tag = "blobs",
    params(("digest" = String, Path, description = "64 hexadecimal digits"), ("Range" = Option<String>, Header, description = "`bytes=A-` or `bytes=A-B`")),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"), (status = 206, description = "A range"), (status = 404, body = ErrorBody), (status = 416, body = ErrorBody))
)]
async fn get(
    State(app): State<App>,
    caller: Anyone,
    PathOf(digest): PathOf<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let digest = digest_of(&digest)?;
    may_read(&app, &caller, digest).await?;
    let Have::Whole(total) = app.blobs.have(digest).await? else {
        return Err(ApiError::missing(format!("blob {digest}")));
    };
    let asked = headers.get(RANGE).and_then(|range| range.to_str().ok());
    let (begins, ends) = match asked.map(|asked| range(asked, total)) {
        None => (0, total),
        Some(Some(range)) => range,
        Some(None) => {
            let error = ApiError::new(StatusCode::RANGE_NOT_SATISFIABLE, format!("blob {digest} has {total} bytes"));
            return Ok(([(CONTENT_RANGE, format!("bytes */{total}"))], error).into_response());
        }
    };
    let bytes = app.blobs.get(digest, begins, ends).await?;
    app.metrics.blob_bytes_sent.inc_by(ends - begins);
    let mut response = Response::new(Body::from_stream(bytes));
    if asked.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let range = format!("bytes {begins}-{}/{total}", ends - 1);
        response.headers_mut().insert(CONTENT_RANGE, range.parse().map_err(ApiError::internal)?);
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_LENGTH, (ends - begins).into());
    for (name, value) in [
        ("accept-ranges", "bytes".to_owned()),
        ("content-type", "application/octet-stream".to_owned()),
        ("cache-control", "public, max-age=31536000, immutable".to_owned()),
        ("etag", format!("\"{}\"", digest.hex())),
    ] {
        headers.insert(name, value.parse().map_err(ApiError::internal)?);
    }
    Ok(response)
}

/// Takes the blob, or the next piece of it.
#[utoipa::path(
    put, path = "/v1/blobs/{digest}", tag = "blobs",
    params(("digest" = String, Path, description = "64 hexadecimal digits"), ("Content-Range" = Option<String>, Header, description = "`bytes A-B/T`: a piece; one that begins at 0 begins anew")),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses(
        (status = 201, description = "Whole, and its digest is right"), (status = 202, description = "`{\"have\": N}`: the next piece begins at N"),
        (status = 409, body = ErrorBody, description = "The piece does not begin where what is here ends: `Tidegate-Have`"),
        (status = 413, body = ErrorBody), (status = 422, body = ErrorBody), (status = 503, body = ErrorBody)
    )
)]
async fn put(
    State(app): State<App>,
    caller: Caller,
    PathOf(digest): PathOf<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    caller.require(Role::Publisher)?;
    let digest = digest_of(&digest)?;
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let (begins, total) = match header(CONTENT_RANGE) {
        Some(said) => piece(said)
            .ok_or_else(|| ApiError::malformed(format!("`Content-Range: {said}`: it must be `bytes A-B/T`")))?,
        None => match header(CONTENT_LENGTH).and_then(|length| length.parse().ok()) {
            Some(length) => (0, length),
            None => return Err(ApiError::new(StatusCode::LENGTH_REQUIRED, "a blob needs its length")),
        },
    };
    if total > BLOB_BYTES_MAX {
        return Err(ApiError::too_large(format!("blob {digest}, {total} bytes"), BLOB_BYTES_MAX));
    }
    let bytes = body.into_data_stream().map_err(std::io::Error::other).boxed();
    match app.blobs.put(digest, begins, total, bytes).await {
        Ok(Have::Whole(have)) => Ok((StatusCode::CREATED, Json(json!({"have": have}))).into_response()),
        Ok(Have::Part(have)) => Ok((StatusCode::ACCEPTED, Json(json!({"have": have}))).into_response()),
        Err(error @ BlobError::Gap { have, .. }) => {
            Ok(([(HAVE, have.to_string())], ApiError::from(error)).into_response())
        }
        Err(error) => Err(error.into()),
    }
}

/// `bytes=A-` or `bytes=A-B` of `total` bytes, as first and one past the last; `None`: there are none such.
fn range(asked: &str, total: u64) -> Option<(u64, u64)> {
    let (begins, last) = asked.strip_prefix("bytes=")?.split_once('-')?;
    let begins: u64 = begins.parse().ok()?;
    let ends = match last {
        "" => total,
        last => last.parse::<u64>().ok()?.saturating_add(1).min(total),
    };
    (begins < ends).then_some((begins, ends))
}

/// `bytes A-B/T`: where it begins, and how many bytes the whole has.
fn piece(said: &str) -> Option<(u64, u64)> {
    let (range, total) = said.strip_prefix("bytes ")?.split_once('/')?;
    let (begins, last) = range.split_once('-')?;
    let (begins, last, total): (u64, u64, u64) = (begins.parse().ok()?, last.parse().ok()?, total.parse().ok()?);
    (begins <= last && last < total).then_some((begins, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_within_the_blob() {
        assert_eq!(range("bytes=0-", 10), Some((0, 10)));
        assert_eq!(range("bytes=4-7", 10), Some((4, 8)));
        assert_eq!(range("bytes=4-99", 10), Some((4, 10)));
        assert_eq!(range("bytes=10-", 10), None);
        assert_eq!(range("bytes=7-4", 10), None);
        assert_eq!(range("bytes=-4", 10), None);
        assert_eq!(range("lines=1-2", 10), None);
    }

    #[test]
    fn a_piece_says_where_it_is() {
        assert_eq!(piece("bytes 0-9/10"), Some((0, 10)));
        assert_eq!(piece("bytes 4-9/10"), Some((4, 10)));
        assert_eq!(piece("bytes 4-10/10"), None);
        assert_eq!(piece("bytes 5-4/10"), None);
        assert_eq!(piece("bytes 0-9/*"), None);
    }
}
