//! Gateways, as people see them: what they said of themselves, their shadow, their log.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sync_protocol::Digest;
use sync_protocol::desired::{DeploymentRef, Request};
use sync_protocol::name::{GatewayName, GroupName};
use sync_protocol::report::{Progress, Report};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{App, JsonBody, List, PageQuery, PathOf, QueryOf};
use crate::auth::{Caller, Role};
use crate::error::{ApiError, ErrorBody};
use crate::limits;
use crate::shadow::delta;
use crate::store::{GatewayRow, Shadow};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(get))
        .routes(routes!(shadow, set_shadow))
        .routes(routes!(logs, ask_logs))
        .routes(routes!(try_again))
}

/// A gateway in short.
#[derive(Debug, Serialize, ToSchema)]
struct GatewayItem {
    #[schema(value_type = String)]
    name: GatewayName,
    #[schema(value_type = Vec<String>)]
    groups: Vec<GroupName>,
    created_ms: u64,
    /// Unix time since which it may not call.
    revoked_ms: Option<u64>,
    /// Unix time at which it was noticed that two machines speak under its name.
    cloned_ms: Option<u64>,
    /// Unix time of its last report.
    reported_ms: Option<u64>,
    /// What it should run: number and digest.
    #[schema(value_type = Option<Object>)]
    desired: Option<DeploymentRef>,
    /// What it says it runs.
    #[schema(value_type = Option<Object>)]
    active: Option<DeploymentRef>,
    /// How far it is.
    #[schema(value_type = Option<Object>)]
    progress: Option<Progress>,
    /// Why it is not well; empty when it is.
    unhealthy: Vec<String>,
    /// Why it refused what it was told last; empty when it did not.
    refused: String,
    /// Whether it waits for news now.
    connected: bool,
}

/// All that is known of one.
#[derive(Debug, Serialize, ToSchema)]
struct GatewayDetail {
    #[serde(flatten)]
    short: GatewayItem,
    /// Its newest report.
    #[schema(value_type = Option<Object>)]
    report: Option<Report>,
    /// Counts its reports.
    report_version: u64,
    /// The phases that it was in, newest first.
    #[schema(value_type = Vec<Object>)]
    phases: Vec<PhaseItem>,
}

/// A phase that it was in.
#[derive(Debug, Serialize, ToSchema)]
struct PhaseItem {
    /// Unix time at which it said so.
    received_ms: u64,
    #[serde(flatten)]
    #[schema(value_type = Object)]
    progress: Progress,
}

async fn item(app: &App, row: GatewayRow, report: Option<(&Report, u64)>) -> Result<GatewayItem, ApiError> {
    let said = report.map(|(report, _)| report);
    Ok(GatewayItem {
        desired: app.store.desired_of(&row.name).await?.map(|deployed| deployed.reference),
        cloned_ms: app.store.cloned_ms(&row.name).await?,
        connected: app.wakes.waits(&row.name),
        name: row.name,
        groups: row.groups,
        created_ms: row.created_ms,
        revoked_ms: row.revoked_ms,
        reported_ms: report.map(|(_, received_ms)| received_ms),
        active: said.and_then(|report| report.active),
        progress: said.and_then(|report| report.progress.clone()),
        unhealthy: said.map(|report| report.unhealthy.clone()).unwrap_or_default(),
        refused: said.map(|report| report.refused.clone()).unwrap_or_default(),
    })
}

async fn known(app: &App, name: &GatewayName) -> Result<GatewayRow, ApiError> {
    app.store.gateway(name).await?.ok_or_else(|| ApiError::missing(format!("gateway `{name}`")))
}

/// Gateways, by name.
#[utoipa::path(get, path = "/v1/gateways", tag = "fleet", params(PageQuery), responses((status = 200, body = List<GatewayItem>)))]
async fn list(
    State(app): State<App>,
    caller: Caller,
    QueryOf(query): QueryOf<PageQuery>,
) -> Result<Json<List<GatewayItem>>, ApiError> {
    caller.require(Role::Viewer)?;
    let page = query.page();
    let mut items = Vec::new();
    for row in app.store.gateways(&page).await? {
        let reported = app.store.reported(&row.name).await?;
        items.push(item(&app, row, reported.as_ref().map(|said| (&said.report, said.received_ms))).await?);
    }
    Ok(Json(List::of(&page, items, |item: &GatewayItem| item.name.to_string())))
}

/// All that is known of one.
#[utoipa::path(get, path = "/v1/gateways/{name}", tag = "fleet", params(("name" = String, Path)), responses((status = 200, body = GatewayDetail), (status = 404, body = ErrorBody)))]
async fn get(
    State(app): State<App>,
    caller: Caller,
    PathOf(name): PathOf<GatewayName>,
) -> Result<Json<GatewayDetail>, ApiError> {
    caller.require(Role::Viewer)?;
    let row = known(&app, &name).await?;
    let reported = app.store.reported(&name).await?;
    let short = item(&app, row, reported.as_ref().map(|said| (&said.report, said.received_ms))).await?;
    let phases = app.store.phases(&name, limits::PHASES_MAX).await?;
    let phase = |row: crate::store::PhaseRow| PhaseItem { received_ms: row.received_ms, progress: row.progress };
    Ok(Json(GatewayDetail {
        short,
        report_version: reported.as_ref().map_or(0, |reported| reported.version),
        report: reported.map(|reported| reported.report),
        phases: phases.into_iter().map(phase).collect(),
    }))
}

/// A shadow: what people want, what the gateway says, and what is left between them.
#[derive(Debug, Serialize, ToSchema)]
struct ShadowBody {
    #[schema(value_type = Object)]
    desired: Value,
    #[schema(value_type = Object)]
    reported: Value,
    /// `null`: nothing is left.
    #[schema(value_type = Option<Object>)]
    delta: Option<Value>,
    /// Of `desired`: what a change of it must name.
    version: u64,
    /// Of `reported`.
    reported_version: u64,
}

/// The shadow of a gateway.
#[utoipa::path(get, path = "/v1/gateways/{name}/shadow", tag = "fleet", params(("name" = String, Path)), responses((status = 200, body = ShadowBody)))]
async fn shadow(
    State(app): State<App>,
    caller: Caller,
    PathOf(name): PathOf<GatewayName>,
) -> Result<Json<ShadowBody>, ApiError> {
    caller.require(Role::Viewer)?;
    known(&app, &name).await?;
    let Shadow { desired, version } = app.store.shadow(&name).await?;
    let said = app.store.reported(&name).await?;
    let reported_version = said.as_ref().map_or(0, |said| said.version);
    let reported = said.map_or(Value::Null, |said| said.report.shadow);
    Ok(Json(ShadowBody { delta: delta(&desired, &reported), desired, reported, version, reported_version }))
}

/// What people want in it.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Wish {
    /// The whole of it: a JSON object.
    #[schema(value_type = Object)]
    desired: Value,
    /// The version that it was changed from; 0 at first.
    version: u64,
}

/// Replaces what people want, when nobody else has meanwhile. The gateway learns of the delta with its next report.
#[utoipa::path(
    put, path = "/v1/gateways/{name}/shadow", tag = "fleet", request_body = Wish, params(("name" = String, Path)),
    responses((status = 200, body = Object, description = "`{\"version\": N}`"), (status = 409, body = ErrorBody, description = "Somebody else has changed it"), (status = 422, body = ErrorBody))
)]
async fn set_shadow(
    State(app): State<App>,
    caller: Caller,
    PathOf(name): PathOf<GatewayName>,
    JsonBody(Wish { desired, version }): JsonBody<Wish>,
) -> Result<Json<Value>, ApiError> {
    caller.require(Role::Operator)?;
    known(&app, &name).await?;
    if !desired.is_object() {
        return Err(ApiError::refused(format!("`desired` of the shadow of `{name}` must be a JSON object")));
    }
    let bytes = desired.to_string().len();
    if bytes > limits::SHADOW_BYTES_MAX {
        return Err(ApiError::too_large(format!("the shadow of `{name}`, {bytes} bytes"), limits::SHADOW_BYTES_MAX));
    }
    let entry = app.entry(&caller, "shadow", format!("gateway/{name}"), json!({"version": version + 1}));
    let version = app.store.set_shadow(&name, &desired, version, app.clock.now_ms(), &entry).await?;
    Ok(Json(json!({"version": version})))
}

/// Which log lines.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct LogWish {
    /// For how long.
    minutes: u64,
    /// Lowest level: `error`, `warn`, `info`, `debug`, `trace`.
    level: String,
}

/// Asks a gateway to send its log for a while; it begins within a second when it is connected.
#[utoipa::path(
    post, path = "/v1/gateways/{name}/logs", tag = "fleet", request_body = LogWish, params(("name" = String, Path)),
    responses((status = 202, body = Object, description = "`{\"until_ms\": N}`"), (status = 422, body = ErrorBody))
)]
async fn ask_logs(
    State(app): State<App>,
    caller: Caller,
    PathOf(name): PathOf<GatewayName>,
    JsonBody(LogWish { minutes, level }): JsonBody<LogWish>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    caller.require(Role::Operator)?;
    known(&app, &name).await?;
    let most = limits::LOG_MINUTES_MAX;
    if minutes == 0 || minutes > most {
        return Err(ApiError::refused(format!("{minutes} minutes of log: it must be 1 to {most}")));
    }
    if !["error", "warn", "info", "debug", "trace"].contains(&level.as_str()) {
        let shown: String = level.chars().take(40).collect();
        return Err(ApiError::refused(format!("`{shown}` is no level: error, warn, info, debug or trace")));
    }
    let until_ms = app.clock.now_ms() + minutes * 60 * 1000;
    let entry = app.entry(&caller, "logs", format!("gateway/{name}"), json!({"level": level, "until_ms": until_ms}));
    app.store.ask(&name, &Request::Logs { until_ms, level }, until_ms, &entry).await?;
    app.wakes.wake([&name]);
    Ok((StatusCode::ACCEPTED, Json(json!({"until_ms": until_ms}))))
}

/// A log line.
#[derive(Debug, Serialize, ToSchema)]
struct LogItem {
    id: u64,
    received_ms: u64,
    /// As the gateway's local API gives it.
    #[schema(value_type = Object)]
    line: Value,
}

/// The log lines that came, oldest first.
#[utoipa::path(get, path = "/v1/gateways/{name}/logs", tag = "fleet", params(("name" = String, Path), PageQuery), responses((status = 200, body = List<LogItem>)))]
async fn logs(
    State(app): State<App>,
    caller: Caller,
    PathOf(name): PathOf<GatewayName>,
    QueryOf(query): QueryOf<PageQuery>,
) -> Result<Json<List<LogItem>>, ApiError> {
    caller.require(Role::Operator)?;
    known(&app, &name).await?;
    let page = query.page();
    let after = match page.after.as_str() {
        "" => 0,
        after => after.parse().map_err(|_| ApiError::malformed(format!("`after={after}` is no id of a line")))?,
    };
    let lines = app.store.log_lines(&name, after, page.limit).await?;
    let item = |line: crate::store::LogLine| LogItem { id: line.id, received_ms: line.received_ms, line: line.line };
    let items: Vec<LogItem> = lines.into_iter().map(item).collect();
    // What follows is what is yet to come, too.
    let next = items.last().map(|item| item.id.to_string()).or((after > 0).then(|| after.to_string()));
    Ok(Json(List { items, next }))
}

/// Which deployment.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Again {
    /// Its digest.
    #[schema(value_type = String)]
    deployment: Digest,
}

/// Asks a gateway to try a deployment again that it has rolled back.
#[utoipa::path(
    post, path = "/v1/gateways/{name}/try-again", tag = "fleet", request_body = Again, params(("name" = String, Path)),
    responses((status = 202, description = "It is asked"), (status = 404, body = ErrorBody))
)]
async fn try_again(
    State(app): State<App>,
    caller: Caller,
    PathOf(name): PathOf<GatewayName>,
    JsonBody(Again { deployment }): JsonBody<Again>,
) -> Result<StatusCode, ApiError> {
    caller.require(Role::Operator)?;
    known(&app, &name).await?;
    let there = app.store.deployment_by_digest(deployment).await?;
    there.ok_or_else(|| ApiError::missing(format!("deployment {deployment}")))?;
    let until_ms = app.clock.now_ms() + limits::TRY_AGAIN_MS;
    let entry = app.entry(&caller, "try-again", format!("gateway/{name}"), json!({"deployment": deployment}));
    app.store.ask(&name, &Request::TryAgain { deployment }, until_ms, &entry).await?;
    app.wakes.wake([&name]);
    Ok(StatusCode::ACCEPTED)
}
