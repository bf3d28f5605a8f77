//! Groups of gateways.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sync_protocol::name::{GatewayName, GroupName};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{App, JsonBody, List, PageQuery, PathOf, QueryOf};
use crate::auth::{Caller, Role};
use crate::error::{ApiError, ErrorBody};
use crate::limits;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(get, set, remove))
}

/// A group.
#[derive(Debug, Serialize, ToSchema)]
struct GroupItem {
    #[schema(value_type = String)]
    name: GroupName,
    /// How many gateways.
    gateways: u64,
}

/// Who is in it.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Members {
    #[schema(value_type = Vec<String>)]
    gateways: Vec<GatewayName>,
}

/// Groups, by name.
#[utoipa::path(get, path = "/v1/groups", tag = "fleet", params(PageQuery), responses((status = 200, body = List<GroupItem>)))]
async fn list(
    State(app): State<App>,
    caller: Caller,
    QueryOf(query): QueryOf<PageQuery>,
) -> Result<Json<List<GroupItem>>, ApiError> {
    caller.require(Role::Viewer)?;
    let page = query.page();
    let rows = app.store.groups(&page).await?;
    let items = rows.into_iter().map(|row| GroupItem { name: row.name, gateways: row.gateways }).collect();
    Ok(Json(List::of(&page, items, |item: &GroupItem| item.name.to_string())))
}

/// Who is in a group.
#[utoipa::path(get, path = "/v1/groups/{name}", tag = "fleet", params(("name" = String, Path)), responses((status = 200, body = Members), (status = 404, body = ErrorBody)))]
async fn get(
    State(app): State<App>,
    caller: Caller,
    PathOf(name): PathOf<GroupName>,
) -> Result<Json<Members>, ApiError> {
    caller.require(Role::Viewer)?;
    let gateways = app.store.group(&name).await?.ok_or_else(|| ApiError::missing(format!("group `{name}`")))?;
    Ok(Json(Members { gateways }))
}

/// Makes a group what is said. Who joins runs what the group should run; who leaves follows its other groups.
#[utoipa::path(
    put, path = "/v1/groups/{name}", tag = "fleet", request_body = Members, params(("name" = String, Path)),
    responses((status = 204, description = "It is"), (status = 404, body = ErrorBody, description = "A gateway is not known"), (status = 422, body = ErrorBody))
)]
async fn set(
    State(app): State<App>,
    caller: Caller,
    PathOf(name): PathOf<GroupName>,
    JsonBody(Members { gateways }): JsonBody<Members>,
) -> Result<StatusCode, ApiError> {
    caller.require(Role::Operator)?;
    if gateways.len() > limits::GROUP_GATEWAYS_MAX {
        let max = limits::GROUP_GATEWAYS_MAX;
        return Err(ApiError::refused(format!("group `{name}` would have more than {max} gateways")));
    }
    let entry = app.entry(&caller, "group", format!("group/{name}"), json!({"gateways": gateways.len()}));
    let before = app.store.set_group(&name, &gateways, app.clock.now_ms(), &entry).await?;
    app.wakes.wake(before.iter().chain(&gateways));
    Ok(StatusCode::NO_CONTENT)
}

/// Removes a group. Its deployments stay on record.
#[utoipa::path(delete, path = "/v1/groups/{name}", tag = "fleet", params(("name" = String, Path)), responses((status = 204, description = "It is gone"), (status = 404, body = ErrorBody)))]
async fn remove(
    State(app): State<App>,
    caller: Caller,
    PathOf(name): PathOf<GroupName>,
) -> Result<StatusCode, ApiError> {
    caller.require(Role::Operator)?;
    let entry = app.entry(&caller, "ungroup", format!("group/{name}"), json!({}));
    let before = app.store.remove_group(&name, &entry).await?;
    app.wakes.wake(&before);
    Ok(StatusCode::NO_CONTENT)
}
