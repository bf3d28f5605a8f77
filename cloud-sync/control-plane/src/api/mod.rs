//! All that is reachable from outside. One file a subject; the OpenAPI document comes from the handlers themselves.

mod audit;
mod blobs;
mod deployments;
mod extract;
mod gateways;
mod groups;
mod health;
mod provision;
mod records;
mod releases;
mod roots;
mod sync;
mod tokens;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::get;
use utoipa::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;

pub use self::extract::{JsonBody, List, PageQuery, PathOf, QueryOf};
use crate::ControlPlane;
use crate::error::ApiError;
use crate::limits;

/// What handlers share.
pub type App = Arc<ControlPlane>;

#[derive(OpenApi)]
#[openapi(info(
    title = "Tidegate control plane",
    description = "Errors are `{\"error\", \"hint\"}`. Lists are `{\"items\", \"next\"}`: `next` is what `after` of the next page is.",
    license(name = "Apache-2.0")
))]
struct Document;

/// Every call, without what finds out who calls: [`crate::auth`] expects that in the request.
pub fn router(app: App) -> Router {
    let (router, mut document) = routes().split_for_parts();
    let token = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
    document.components.get_or_insert_default().add_security_scheme("token", token);
    let document = document.to_json().unwrap_or_default();
    let json = [("content-type", "application/json")];
    router
        .route("/v1/openapi.json", get(move || std::future::ready((json, document))))
        .fallback(|| std::future::ready(ApiError::missing("such call").hint("GET /v1/openapi.json lists all")))
        .layer(DefaultBodyLimit::max(limits::BODY_BYTES_MAX))
        .with_state(app)
}

fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Document::openapi())
        .merge(health::routes())
        .merge(roots::routes())
        .merge(blobs::routes())
        .merge(releases::routes())
        .merge(deployments::routes())
        .merge(groups::routes())
        .merge(gateways::routes())
        .merge(sync::routes())
        .merge(provision::routes())
        .merge(records::routes())
        .merge(tokens::routes())
        .merge(audit::routes())
}
