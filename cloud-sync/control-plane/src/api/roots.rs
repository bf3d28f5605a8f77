//! Roots of trust, and the on-line keys.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use serde_json::json;
use sync_protocol::{Envelope, PublicKey, Refused, Root};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{App, JsonBody};
use crate::auth::{Caller, Role};
use crate::error::{ApiError, ErrorBody};
use crate::limits;
use crate::trust;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(list, add)).routes(routes!(make_key))
}

/// All roots, and the keys that the next root may list for the on-line role.
#[derive(Debug, Serialize, ToSchema)]
struct Roots {
    /// Envelopes, from the first root on.
    #[schema(value_type = Vec<Object>)]
    items: Vec<Envelope>,
    /// Always `null`: there are never many.
    next: Option<String>,
    /// Public on-line keys of this control plane, in hexadecimal.
    #[schema(value_type = Vec<String>)]
    online: Vec<PublicKey>,
}

/// All roots from the first, and this control plane's on-line keys.
#[utoipa::path(get, path = "/v1/roots", tag = "trust", responses((status = 200, body = Roots), (status = 401, body = ErrorBody)))]
async fn list(State(app): State<App>, caller: Caller) -> Result<Json<Roots>, ApiError> {
    caller.require(Role::Viewer)?;
    Ok(Json(Roots { items: app.store.roots().await?, next: None, online: app.online.public() }))
}

/// Hands in the next root: version 1 once, then each signed by the root keys of the one before and by its own.
#[utoipa::path(
    post, path = "/v1/roots", tag = "trust", request_body(content = Object, description = "Envelope of a root"),
    responses((status = 201, body = Object), (status = 200, description = "It is there already"), (status = 409, body = ErrorBody), (status = 422, body = ErrorBody))
)]
async fn add(
    State(app): State<App>,
    caller: Caller,
    JsonBody(envelope): JsonBody<Envelope>,
) -> Result<(StatusCode, Json<serde_json::Value>), ApiError> {
    caller.require(Role::Admin)?;
    let roots = app.store.roots().await?;
    let said: Root = envelope.unverified().map_err(Refused::of("the root"))?;
    let digest = envelope.digest().map_err(Refused::of("the root"))?;
    let answer = Json(json!({"version": said.version, "digest": digest}));
    let same = roots.iter().any(|root| root.digest().is_ok_and(|there| there == digest));
    if same {
        return Ok((StatusCode::OK, answer));
    }
    let root = trust::next_root(&roots, &envelope)?;
    if app.online.usable(&root).is_none() {
        let keys: Vec<String> = app.online.public().into_iter().map(String::from).collect();
        let error = format!("root {} lists no on-line key of this control plane for the on-line role", root.version);
        let hint = format!("sign one that lists {} there, with threshold 1", keys.join(" or "));
        return Err(ApiError::refused(error).hint(hint));
    }
    let entry = app.entry(&caller, "root", format!("root/{}", root.version), json!({"digest": digest}));
    app.store.add_root(root.version, &envelope, &entry).await?;
    app.wakes.wake_all();
    Ok((StatusCode::CREATED, answer))
}

/// Makes one more on-line key, which signs once a root lists it: the first half of replacing one.
#[utoipa::path(post, path = "/v1/online-keys", tag = "trust", responses((status = 201, body = Object), (status = 403, body = ErrorBody)))]
async fn make_key(State(app): State<App>, caller: Caller) -> Result<(StatusCode, Json<serde_json::Value>), ApiError> {
    caller.require(Role::Admin)?;
    let (held, most) = (app.online.public().len(), limits::ONLINE_KEYS_MAX);
    if held >= most {
        let error = format!("{held} on-line keys are held, and no more than {most} are");
        return Err(ApiError::conflict(error).hint("remove those from `keys/` that no root lists any more"));
    }
    let key = app.online.create().map_err(ApiError::internal)?;
    Ok((StatusCode::CREATED, Json(json!({"key": key}))))
}
