//! How gateways get in: claims, provisioning, renewal, certificates of other authorities.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sync_protocol::name::{GatewayName, GroupName};
use sync_protocol::provision::{ClaimToken, ProvisionRequest, Provisioned, RenewRequest};
use sync_protocol::{Digest, Envelope};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{App, JsonBody, List, PageQuery, PathOf, QueryOf};
use crate::audit::Entry;
use crate::auth::{Caller, Renewing, Role};
use crate::ca::{CaError, Issued, RequestedKey};
use crate::error::{ApiError, ErrorBody};
use crate::limits;
use crate::peer::Facts;
use crate::secret;
use crate::store::{CertificateRow, ClaimRow, NotGranted, StoreError, Wish};

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(provision))
        .routes(routes!(renew))
        .routes(routes!(register))
        .routes(routes!(revoke))
        .routes(routes!(make_claim, claims))
        .routes(routes!(revoke_claim))
}

/// Gives a new gateway its name and its certificate, for a claim token. The same request again is answered the same, and costs no use.
#[utoipa::path(post, path = "/v1/provision", tag = "gateways", request_body = Object, responses((status = 200, body = Object), (status = 403, body = ErrorBody), (status = 409, body = ErrorBody)))]
async fn provision(
    State(app): State<App>,
    JsonBody(request): JsonBody<ProvisionRequest>,
) -> Result<Json<Provisioned>, ApiError> {
    if request.nonce.is_empty() || request.nonce.len() > limits::NONCE_BYTES_MAX {
        return Err(ApiError::malformed(format!("`nonce` must have 1 to {} characters", limits::NONCE_BYTES_MAX)));
    }
    let roots = roots(&app).await?;
    let key = RequestedKey::from_pem(&request.csr).map_err(certificate_error)?;
    let wish = Wish {
        claim: &request.claim,
        secret: Digest::of(request.secret.as_bytes()),
        nonce: Digest::of(request.nonce.as_bytes()),
        key: key.digest(),
        name: &request.name,
        now_ms: app.clock.now_ms(),
    };
    let grant = app.store.grant(&wish).await?.map_err(not_granted)?;
    let issued = issue(&app, &grant.name, &key, "certificate").await?;
    let ca = app.authority.pem().to_owned();
    Ok(Json(Provisioned { name: grant.name, groups: grant.groups, certificate: issued.chain_pem, ca, roots }))
}

/// A new certificate for a gateway, for the one that it has, even if that has expired.
#[utoipa::path(post, path = "/v1/gateways/{name}/renew", tag = "gateways", params(("name" = String, Path)), request_body = Object, responses((status = 200, body = Object), (status = 403, body = ErrorBody)))]
async fn renew(
    State(app): State<App>,
    Renewing(caller): Renewing,
    PathOf(id): PathOf<GatewayName>,
    JsonBody(request): JsonBody<RenewRequest>,
) -> Result<Json<Provisioned>, ApiError> {
    if caller != id {
        let error = format!("gateway `{caller}` may not renew the certificate of `{id}`");
        return Err(ApiError::new(StatusCode::FORBIDDEN, error));
    }
    let key = RequestedKey::from_pem(&request.csr).map_err(certificate_error)?;
    let issued = issue(&app, &id, &key, "renew").await?;
    let row = app.store.gateway(&id).await?.ok_or_else(|| ApiError::missing(format!("gateway `{id}`")))?;
    let ca = app.authority.pem().to_owned();
    Ok(Json(Provisioned { name: id, groups: row.groups, certificate: issued.chain_pem, ca, roots: roots(&app).await? }))
}

async fn issue(app: &App, gateway: &GatewayName, key: &RequestedKey, did: &str) -> Result<Issued, ApiError> {
    let now_ms = app.clock.now_ms();
    let issued = app.authority.sign_gateway(gateway, key, now_ms).map_err(certificate_error)?;
    let row = CertificateRow {
        fingerprint: issued.fingerprint,
        gateway: gateway.clone(),
        ours: true,
        not_after_ms: issued.not_after_ms,
        added_ms: now_ms,
        revoked_ms: None,
    };
    let entry = Entry {
        at_ms: now_ms,
        who: format!("gateway/{gateway}"),
        did: did.to_owned(),
        what: format!("gateway/{gateway}"),
        detail: json!({"certificate": issued.fingerprint, "key": key.digest(), "not_after_ms": issued.not_after_ms}),
    };
    app.store.add_certificate(&row, &entry).await?;
    Ok(issued)
}

async fn roots(app: &App) -> Result<Vec<Envelope>, ApiError> {
    let roots = app.store.roots().await?;
    if roots.is_empty() {
        let error =
            ApiError::conflict("this control plane has no root of trust yet, so gateways would have nothing to trust");
        return Err(error.hint("hand one in first: `tidegate keygen` makes it"));
    }
    Ok(roots)
}

fn certificate_error(error: CaError) -> ApiError {
    match error {
        CaError::Request(_) => ApiError::malformed(error.to_string()),
        _ => ApiError::internal(error),
    }
}

fn not_granted(why: NotGranted) -> ApiError {
    let hint = match &why {
        NotGranted::Unknown => "was it copied whole?",
        NotGranted::Expired(_) | NotGranted::Revoked(_) | NotGranted::UsedUp(..) => {
            "`tidegate fleet claim` makes a new one"
        }
        NotGranted::NameTaken(_) => {
            "give this one another name, or use a claim with a name prefix; to replace a machine, use a claim that says so"
        }
        NotGranted::AnotherKey => "begin anew with a new nonce: empty the gateway's identity folder",
        NotGranted::GatewayRevoked(_) => {
            "to take it back in, empty its identity folder and use a claim that replaces it"
        }
    };
    let status = match &why {
        NotGranted::NameTaken(_) | NotGranted::AnotherKey => StatusCode::CONFLICT,
        _ => StatusCode::FORBIDDEN,
    };
    ApiError::new(status, why.to_string()).hint(hint)
}

/// A certificate of another authority.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Registration {
    /// In PEM; only the first one counts.
    certificate: String,
}

/// Registers a certificate that a gateway has already, of whatever authority. The gateway is made when it is not there.
#[utoipa::path(post, path = "/v1/gateways/{name}/certificates", tag = "fleet", params(("name" = String, Path)), request_body = Registration, responses((status = 201, body = Object), (status = 409, body = ErrorBody)))]
async fn register(
    State(app): State<App>,
    caller: Caller,
    PathOf(id): PathOf<GatewayName>,
    JsonBody(asked): JsonBody<Registration>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    caller.require(Role::Operator)?;
    let facts = CertificateDer::from_pem_slice(asked.certificate.as_bytes()).ok().as_ref().and_then(Facts::of);
    let facts = facts.ok_or_else(|| ApiError::malformed("`certificate` is no X.509 certificate in PEM"))?;
    let detail = json!({"certificate": facts.fingerprint, "not_after_ms": facts.not_after_ms});
    let entry = app.entry(&caller, "register-certificate", format!("gateway/{id}"), detail);
    match app.store.gateway(&id).await? {
        Some(row) if row.revoked_ms.is_some() => {
            return Err(ApiError::conflict(format!("gateway `{id}` was revoked")).hint("use a claim that replaces it"));
        }
        Some(_) => {}
        None => match app.store.add_gateway(&id, &[], app.clock.now_ms(), &entry).await {
            Ok(()) | Err(StoreError::Conflict(_)) => {}
            Err(error) => return Err(error.into()),
        },
    }
    let row = CertificateRow {
        fingerprint: facts.fingerprint,
        gateway: id,
        ours: false,
        not_after_ms: facts.not_after_ms,
        added_ms: app.clock.now_ms(),
        revoked_ms: None,
    };
    app.store.add_certificate(&row, &entry).await?;
    Ok((StatusCode::CREATED, Json(json!({"fingerprint": facts.fingerprint, "not_after_ms": facts.not_after_ms}))))
}

/// Shuts a gateway out, from this moment on. Its name comes back only by a claim that replaces it.
#[utoipa::path(delete, path = "/v1/gateways/{name}", tag = "fleet", params(("name" = String, Path)), responses((status = 204), (status = 404, body = ErrorBody)))]
async fn revoke(
    State(app): State<App>,
    caller: Caller,
    PathOf(name): PathOf<GatewayName>,
) -> Result<StatusCode, ApiError> {
    caller.require(Role::Operator)?;
    let entry = app.entry(&caller, "revoke-gateway", format!("gateway/{name}"), json!({}));
    app.store.revoke_gateway(&name, entry.at_ms, &entry).await?;
    app.wakes.wake(&[name]);
    Ok(StatusCode::NO_CONTENT)
}

/// What a claim is to allow.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewClaim {
    /// How many gateways it lets in; 1 when it is not said.
    #[serde(default = "one")]
    uses: u64,
    /// Unix time in milliseconds past which it lets nobody in.
    expires_ms: u64,
    /// Groups of those that it lets in.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    groups: Vec<GroupName>,
    /// What their names begin with. With it a name that is taken gets a number, without it the gateway is refused.
    name_prefix: Option<String>,
    /// The gateway whose name and place the machine takes over, whose certificates then count no more.
    #[schema(value_type = Option<String>)]
    replaces: Option<GatewayName>,
}

const fn one() -> u64 {
    1
}

/// Makes a claim token. It is shown this once.
#[utoipa::path(post, path = "/v1/claims", tag = "fleet", request_body = NewClaim, responses((status = 201, body = Object), (status = 409, body = ErrorBody)))]
async fn make_claim(
    State(app): State<App>,
    caller: Caller,
    JsonBody(asked): JsonBody<NewClaim>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    caller.require(Role::Operator)?;
    let now_ms = app.clock.now_ms();
    if asked.uses == 0 || asked.uses > limits::CLAIM_USES_MAX {
        return Err(ApiError::refused(format!("`uses` must be 1 to {}", limits::CLAIM_USES_MAX)));
    }
    if asked.expires_ms <= now_ms || asked.expires_ms > now_ms.saturating_add(limits::CLAIM_LIFE_MS_MAX) {
        return Err(ApiError::refused("`expires_ms` must be in the future, and within two years"));
    }
    if let Some(prefix) = &asked.name_prefix {
        GatewayName::parse(prefix).map_err(|error| ApiError::refused(format!("`name_prefix`: {error}")))?;
    }
    if asked.replaces.is_some() && asked.uses != 1 {
        return Err(ApiError::refused("a claim that replaces a gateway has one use"));
    }
    if asked.groups.len() > limits::GROUPS_OF_GATEWAY_MAX {
        return Err(ApiError::refused(format!("more than {} groups", limits::GROUPS_OF_GATEWAY_MAX)));
    }
    if let Some(name) = &asked.replaces {
        app.store.gateway(name).await?.ok_or_else(|| ApiError::missing(format!("gateway `{name}`")))?;
    }
    let roots = roots(&app).await?;
    let root = roots[0].digest().map_err(ApiError::internal)?;
    let id = secret::id().map_err(ApiError::internal)?;
    let shown = secret::generate().map_err(ApiError::internal)?;
    let claim = ClaimRow {
        id: id.clone(),
        secret: Digest::of(shown.as_bytes()),
        uses_max: asked.uses,
        uses: 0,
        groups: asked.groups,
        name_prefix: asked.name_prefix,
        replaces: asked.replaces,
        created_ms: now_ms,
        expires_ms: asked.expires_ms,
        revoked_ms: None,
    };
    let detail = json!({"uses": claim.uses_max, "expires_ms": claim.expires_ms, "groups": claim.groups, "name_prefix": claim.name_prefix, "replaces": claim.replaces});
    let entry = app.entry(&caller, "make-claim", format!("claim/{id}"), detail);
    app.store.add_claim(&claim, &entry).await?;
    let token = ClaimToken { id: id.clone(), secret: shown, ca: app.authority.digest(), root };
    Ok((StatusCode::CREATED, Json(json!({"id": id, "token": token.to_string()}))))
}

/// A claim, without its secret.
#[derive(Debug, Serialize, ToSchema)]
struct Claim {
    id: String,
    /// How many gateways it lets in.
    uses_max: u64,
    /// How many it has let in.
    uses: u64,
    #[schema(value_type = Vec<String>)]
    groups: Vec<GroupName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name_prefix: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    replaces: Option<GatewayName>,
    created_ms: u64,
    expires_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked_ms: Option<u64>,
}

/// Claims, without their secrets.
#[utoipa::path(get, path = "/v1/claims", tag = "fleet", params(PageQuery), responses((status = 200, body = List<Claim>)))]
async fn claims(
    State(app): State<App>,
    caller: Caller,
    QueryOf(query): QueryOf<PageQuery>,
) -> Result<Json<List<Claim>>, ApiError> {
    caller.require(Role::Viewer)?;
    let page = query.page();
    let rows = app.store.claims(&page).await?.into_iter().map(|row| Claim {
        id: row.id,
        uses_max: row.uses_max,
        uses: row.uses,
        groups: row.groups,
        name_prefix: row.name_prefix,
        replaces: row.replaces,
        created_ms: row.created_ms,
        expires_ms: row.expires_ms,
        revoked_ms: row.revoked_ms,
    });
    Ok(Json(List::of(&page, rows.collect(), |claim| claim.id.clone())))
}

/// Takes a claim back. Gateways that it let in stay in.
#[utoipa::path(delete, path = "/v1/claims/{id}", tag = "fleet", params(("id" = String, Path)), responses((status = 204), (status = 404, body = ErrorBody)))]
async fn revoke_claim(
    State(app): State<App>,
    caller: Caller,
    PathOf(id): PathOf<String>,
) -> Result<StatusCode, ApiError> {
    caller.require(Role::Operator)?;
    let entry = app.entry(&caller, "revoke-claim", format!("claim/{id}"), json!({}));
    app.store.revoke_claim(&id, &entry).await?;
    Ok(StatusCode::NO_CONTENT)
}
