//! Whether it works, and figures.

use axum::extract::State;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::App;
use crate::error::{ApiError, ErrorBody};
use crate::limits;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(health)).routes(routes!(metrics))
}

/// Whether the database answers. Open to all, for what watches the service.
#[utoipa::path(get, path = "/healthz", tag = "service", responses((status = 200, body = String), (status = 500, body = ErrorBody)))]
async fn health(State(app): State<App>) -> Result<&'static str, ApiError> {
    app.store.roots().await?;
    Ok("ok\n")
}

/// Figures for Prometheus. Open to all: they name nobody.
#[utoipa::path(get, path = "/metrics", tag = "service", responses((status = 200, body = String)))]
async fn metrics(State(app): State<App>) -> Result<([(&'static str, &'static str); 1], String), ApiError> {
    let figure = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let (gateways, heard) = app.store.count_gateways(app.clock.now_ms().saturating_sub(limits::HEARD_MS)).await?;
    app.metrics.gateways.set(figure(gateways));
    app.metrics.gateways_heard.set(figure(heard));
    app.metrics.waiting.set(figure(app.wakes.count() as u64));
    Ok(([("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")], app.metrics.text()))
}
