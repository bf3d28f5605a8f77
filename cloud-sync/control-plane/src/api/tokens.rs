//! Tokens of people.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{App, JsonBody, List, PageQuery, PathOf, QueryOf};
use crate::auth::{Caller, Role};
use crate::error::{ApiError, ErrorBody};
use crate::limits;
use crate::store::TokenRow;
use crate::token;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(make, list)).routes(routes!(revoke))
}

/// Whose token it is to be.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewToken {
    /// Whose: stands in the audit log.
    name: String,
    /// What it may do.
    role: Role,
    /// Unix time in milliseconds past which it is not taken any more; never when it is not said.
    expires_ms: Option<u64>,
}

/// Makes a token. It is shown this once.
#[utoipa::path(post, path = "/v1/tokens", tag = "access", request_body = NewToken, responses((status = 201, body = Object), (status = 403, body = ErrorBody)))]
async fn make(
    State(app): State<App>,
    caller: Caller,
    JsonBody(asked): JsonBody<NewToken>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    caller.require(Role::Admin)?;
    let plain = |name: &str| name.chars().all(|c| c.is_alphanumeric() || " -_.@".contains(c));
    if asked.name.trim().is_empty() || asked.name.len() > limits::TOKEN_NAME_BYTES_MAX || !plain(&asked.name) {
        let max = limits::TOKEN_NAME_BYTES_MAX;
        return Err(ApiError::refused(format!("`name` must have 1 to {max} bytes of letters, digits and ` -_.@`")));
    }
    let now_ms = app.clock.now_ms();
    if asked.expires_ms.is_some_and(|expires_ms| expires_ms <= now_ms) {
        return Err(ApiError::refused("`expires_ms` is in the past"));
    }
    let (row, text) = token::make(&asked.name, asked.role, asked.expires_ms, now_ms).map_err(ApiError::internal)?;
    let detail = json!({"name": row.name, "role": row.role, "expires_ms": row.expires_ms});
    let entry = app.entry(&caller, "make-token", format!("token/{}", row.id), detail);
    app.store.add_token(&row, &entry).await?;
    Ok((StatusCode::CREATED, Json(json!({"id": row.id, "token": text}))))
}

/// A token, without its secret.
#[derive(Debug, Serialize, ToSchema)]
struct Token {
    id: String,
    name: String,
    role: Role,
    created_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_ms: Option<u64>,
    /// When it was used last, to the minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    used_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked_ms: Option<u64>,
}

/// Tokens, without their secrets.
#[utoipa::path(get, path = "/v1/tokens", tag = "access", params(PageQuery), responses((status = 200, body = List<Token>)))]
async fn list(
    State(app): State<App>,
    caller: Caller,
    QueryOf(query): QueryOf<PageQuery>,
) -> Result<Json<List<Token>>, ApiError> {
    caller.require(Role::Admin)?;
    let page = query.page();
    let tokens = app.store.tokens(&page).await?.into_iter().map(|row| {
        let TokenRow { id, name, role, created_ms, expires_ms, used_ms, revoked_ms, .. } = row;
        Token { id, name, role, created_ms, expires_ms, used_ms, revoked_ms }
    });
    Ok(Json(List::of(&page, tokens.collect(), |token| token.id.clone())))
}

/// Takes a token back, from this moment on.
#[utoipa::path(delete, path = "/v1/tokens/{id}", tag = "access", params(("id" = String, Path)), responses((status = 204), (status = 404, body = ErrorBody)))]
async fn revoke(State(app): State<App>, caller: Caller, PathOf(id): PathOf<String>) -> Result<StatusCode, ApiError> {
    caller.require(Role::Admin)?;
    let entry = app.entry(&caller, "revoke-token", format!("token/{id}"), json!({}));
    app.store.revoke_token(&id, &entry).await?;
    Ok(StatusCode::NO_CONTENT)
}
