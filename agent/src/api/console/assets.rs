//! What pages load: one style, two scripts, an icon. They are part of the binary.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::ASSETS;
use crate::api::error::ApiError;

struct Asset {
    name: &'static str,
    media_type: &'static str,
    text: &'static str,
    digest: String,
}

static ALL: LazyLock<[Asset; 4]> = LazyLock::new(|| {
    [
        ("console.css", "text/css; charset=utf-8", include_str!("assets/console.css")),
        ("console.js", "text/javascript; charset=utf-8", include_str!("assets/console.js")),
        // htmx 4.0.1 as it is on npm: dist/htmx.min.js.
        ("htmx.js", "text/javascript; charset=utf-8", include_str!("assets/htmx.min.js")),
        ("icon.svg", "image/svg+xml", include_str!("assets/icon.svg")),
    ]
    .map(|(name, media_type, text)| {
        let digest = hex::encode(&Sha256::digest(text)[..8]);
        Asset { name, media_type, text, digest }
    })
});

/// Where an asset is. Another content has another address, so a browser need not ask twice.
pub(super) fn url(name: &str) -> String {
    let digest = ALL.iter().find(|asset| asset.name == name).map_or("", |asset| &asset.digest);
    format!("{ASSETS}{name}?{digest}")
}

pub(super) async fn serve(Path(file): Path<String>, headers: HeaderMap) -> Response {
    let Some(asset) = ALL.iter().find(|asset| asset.name == file) else {
        return ApiError::new(StatusCode::NOT_FOUND, "there is no such file").into_response();
    };
    let tag = format!("\"{}\"", asset.digest);
    let known = headers.get(IF_NONE_MATCH).is_some_and(|value| value.as_bytes() == tag.as_bytes());
    let head: [(HeaderName, &str); 3] =
        [(ETAG, &tag), (CACHE_CONTROL, "public, max-age=31536000, immutable"), (CONTENT_TYPE, asset.media_type)];
    if known { (StatusCode::NOT_MODIFIED, head).into_response() } else { (head, asset.text).into_response() }
}
