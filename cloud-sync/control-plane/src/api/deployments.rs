//! Deployments: handed in signed, looked at before, and chosen among.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sync_protocol::limits::{ANSWER_BYTES_MAX, ARTIFACTS_MAX, ROOT_BYTES_MAX};
use sync_protocol::name::{GatewayName, GroupName};
use sync_protocol::{Deployment, Digest, Envelope, Refused, Release, Target, VerifiedDeployment};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{App, JsonBody, List, PageQuery, PathOf, QueryOf};
use crate::auth::{Caller, Role};
use crate::error::{ApiError, ErrorBody};
use crate::preview::{Complete, Machine, Preview, preview};
use crate::store::Deployed;
use crate::trust;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(add, list))
        .routes(routes!(get))
        .routes(routes!(look_ahead))
        .routes(routes!(target, choose))
}

/// `group/presses` as the path has it.
fn target_of(kind: &str, name: &str) -> Result<Target, ApiError> {
    let wrong = |error: sync_protocol::name::NameError| ApiError::malformed(error.to_string());
    match kind {
        "group" => GroupName::parse(name).map(Target::Group).map_err(wrong),
        "gateway" => GatewayName::parse(name).map(Target::Gateway).map_err(wrong),
        _ => Err(ApiError::malformed(format!("`{kind}/{name}` is no target: it must be `group/…` or `gateway/…`"))),
    }
}

/// One deployment.
#[derive(Debug, Serialize, ToSchema)]
struct DeploymentItem {
    /// `group/presses`.
    target: String,
    /// Its number.
    number: u64,
    /// What it is known by.
    #[schema(value_type = String)]
    digest: Digest,
    /// Lowest number that its target may go back to once it has seen this one.
    floor: u64,
    /// Unix time past which nobody begins it.
    expires_ms: u64,
    /// Why.
    comment: String,
    /// Unix time at which it came.
    received_ms: u64,
    /// As its operator signed it.
    #[schema(value_type = Object)]
    envelope: Envelope,
}

impl TryFrom<Deployed> for DeploymentItem {
    type Error = ApiError;
    fn try_from(deployed: Deployed) -> Result<Self, ApiError> {
        let deployment: Deployment = deployed.envelope.unverified().map_err(ApiError::internal)?;
        Ok(Self {
            target: deployment.target.to_string(),
            number: deployment.number,
            digest: deployed.reference.digest,
            floor: deployment.floor,
            expires_ms: deployment.expires_ms,
            comment: deployment.comment,
            received_ms: deployed.received_ms,
            envelope: deployed.envelope,
        })
    }
}

/// What gateways will check of it, checked now.
async fn verify(app: &App, envelope: &Envelope) -> Result<VerifiedDeployment, ApiError> {
    let root = trust::newest(&app.store.roots().await?)?;
    let releases = app.releases_of(envelope).await?;
    Ok(root.verify_deployment(envelope, &releases)?)
}

/// Those who belong to a target; refuses one that nobody knows.
async fn gateways_of(app: &App, target: &Target) -> Result<Vec<GatewayName>, ApiError> {
    match target {
        Target::Gateway(name) => match app.store.gateway(name).await?.filter(|row| row.revoked_ms.is_none()) {
            Some(row) => Ok(vec![row.name]),
            None => Err(ApiError::refused(format!("there is no gateway `{name}` to deploy to"))
                .hint("`tidegate fleet gateways` lists them")),
        },
        Target::Group(name) => app.store.group(name).await?.ok_or_else(|| {
            ApiError::refused(format!("there is no group `{name}` to deploy to"))
                .hint(format!("make it: `tidegate fleet group {name} --add GATEWAY`"))
        }),
    }
}

/// Hands in a deployment. It does nothing yet: `POST /v1/targets/…/desired` makes it what its target should run.
#[utoipa::path(
    post, path = "/v1/deployments", tag = "deployments", request_body(content = Object, description = "Envelope of a deployment"),
    responses((status = 201, body = DeploymentItem), (status = 200, description = "It is there already"), (status = 409, body = ErrorBody), (status = 422, body = ErrorBody))
)]
async fn add(
    State(app): State<App>,
    caller: Caller,
    JsonBody(envelope): JsonBody<Envelope>,
) -> Result<(StatusCode, Json<DeploymentItem>), ApiError> {
    caller.require(Role::Operator)?;
    let verified = verify(&app, &envelope).await?;
    let (deployment, reference) = (verified.deployment(), verified.reference());
    if let Some(there) = app.store.deployment_by_digest(reference.digest).await? {
        return Ok((StatusCode::OK, Json(there.try_into()?)));
    }
    gateways_of(&app, &deployment.target).await?;
    let now_ms = app.clock.now_ms();
    let root = trust::newest(&app.store.roots().await?)?;
    for (what, expires_ms) in [
        (format!("deployment {deployment}"), deployment.expires_ms),
        (format!("root {}", root.version), root.expires_ms),
    ] {
        if expires_ms <= now_ms {
            return Err(Refused::Expired { document: what, expired_ms: expires_ms, now_ms }.into());
        }
    }
    // With roots and the desired document it must fit into one answer.
    let bytes = serde_json::to_vec(&verified.to_answer()).map_err(ApiError::internal)?.len();
    let most = ANSWER_BYTES_MAX - 4 * ROOT_BYTES_MAX;
    if bytes > most {
        return Err(ApiError::too_large(format!("deployment {deployment} with its releases, {bytes} bytes"), most));
    }
    let detail = json!({"digest": reference.digest, "signers": envelope.signers().collect::<Vec<_>>()});
    let entry = app.entry(&caller, "deployment", deployment.to_string(), detail);
    let new = app.store.add_deployment(reference.digest, deployment, &envelope, &entry).await?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    let deployed = Deployed { reference, envelope, received_ms: now_ms };
    Ok((status, Json(deployed.try_into()?)))
}

/// Of which target.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct OfTarget {
    /// `group/presses` or `gateway/press-hall-3`.
    target: Option<String>,
}

/// Deployments, in the order in which they came.
#[utoipa::path(get, path = "/v1/deployments", tag = "deployments", params(OfTarget, PageQuery), responses((status = 200, body = List<DeploymentItem>)))]
async fn list(
    State(app): State<App>,
    caller: Caller,
    QueryOf(of): QueryOf<OfTarget>,
    QueryOf(query): QueryOf<PageQuery>,
) -> Result<Json<List<DeploymentItem>>, ApiError> {
    caller.require(Role::Viewer)?;
    let words = of.target.as_deref().map(|target| target.split_once('/').unwrap_or((target, "")));
    let target = words.map(|(kind, name)| target_of(kind, name)).transpose()?;
    let page = query.page();
    let deployments = app.store.deployments(target.as_ref(), &page).await?;
    let items = deployments.into_iter().map(DeploymentItem::try_from).collect::<Result<_, _>>()?;
    Ok(Json(List::of(&page, items, |item: &DeploymentItem| item.digest.to_string())))
}

/// One deployment.
#[utoipa::path(
    get, path = "/v1/deployments/{kind}/{target}/{number}", tag = "deployments",
    params(("kind" = String, Path), ("target" = String, Path), ("number" = u64, Path)),
    responses((status = 200, body = DeploymentItem), (status = 404, body = ErrorBody))
)]
async fn get(
    State(app): State<App>,
    caller: Caller,
    PathOf((kind, target, number)): PathOf<(String, String, u64)>,
) -> Result<Json<DeploymentItem>, ApiError> {
    caller.require(Role::Viewer)?;
    let target = target_of(&kind, &target)?;
    let deployed = app.store.deployment(&target, number).await?;
    deployed.ok_or_else(|| ApiError::missing(format!("deployment {number} of {target}")))?.try_into().map(Json)
}

/// What a deployment would change, gateway by gateway. It may be unsigned still.
#[utoipa::path(
    post, path = "/v1/deployments/preview", tag = "deployments", request_body(content = Object, description = "A deployment, or its envelope"),
    params(PageQuery), responses((status = 200, body = List<Preview>), (status = 422, body = ErrorBody))
)]
async fn look_ahead(
    State(app): State<App>,
    caller: Caller,
    QueryOf(query): QueryOf<PageQuery>,
    JsonBody(said): JsonBody<Value>,
) -> Result<Json<List<Preview>>, ApiError> {
    caller.require(Role::Viewer)?;
    let signed = said.get("signed").cloned().unwrap_or(said);
    let deployment: Deployment = serde_json::from_value(without_type(signed))
        .map_err(|error| ApiError::malformed(format!("the deployment is malformed: {error}")))?;
    if deployment.artifacts.len() > ARTIFACTS_MAX {
        return Err(ApiError::too_large("the deployment", format!("{ARTIFACTS_MAX} artifacts")));
    }
    let releases = releases(&app, &deployment).await?;
    let complete: Vec<Release> =
        deployment.artifacts.iter().filter_map(|artifact| releases.get(&artifact.release).cloned()).collect();
    if let Some(missing) = deployment.artifacts.iter().find(|artifact| !releases.contains_key(&artifact.release)) {
        return Err(ApiError::refused(format!("{missing} is not published")).hint("`tidegate publish` does that"));
    }
    deployment.check(&complete)?;
    let page = query.page();
    let mut gateways = gateways_of(&app, &deployment.target).await?;
    gateways.retain(|gateway| gateway.as_str() > page.after.as_str());
    gateways.truncate(usize::try_from(page.limit).unwrap_or(usize::MAX));
    let next = Complete { deployment: &deployment, releases: &releases };
    let mut items = Vec::with_capacity(gateways.len());
    for gateway in gateways {
        items.push(preview_of(&app, &gateway, next).await?);
    }
    Ok(Json(List::of(&page, items, |item: &Preview| item.gateway.to_string())))
}

fn without_type(mut signed: Value) -> Value {
    if let Value::Object(members) = &mut signed {
        members.remove("_type");
    }
    signed
}

async fn releases(app: &App, deployment: &Deployment) -> Result<BTreeMap<Digest, Release>, ApiError> {
    let mut releases = BTreeMap::new();
    for artifact in &deployment.artifacts {
        if let Some(published) = app.store.release(artifact.release).await? {
            releases.insert(published.digest, published.envelope.unverified().map_err(ApiError::internal)?);
        }
    }
    Ok(releases)
}

async fn preview_of(app: &App, gateway: &GatewayName, next: Complete<'_>) -> Result<Preview, ApiError> {
    let reported = app.store.reported(gateway).await?;
    let active = reported.as_ref().and_then(|reported| reported.report.active);
    let active = match active {
        Some(active) => app.store.deployment_by_digest(active.digest).await?,
        None => None,
    };
    let machine = reported
        .as_ref()
        .map(|reported| Machine { target: reported.report.target.as_str(), compiles: reported.report.compiles });
    let Some(active) = active else { return Ok(preview(gateway, None, next, machine)) };
    let deployment: Deployment = active.envelope.unverified().map_err(ApiError::internal)?;
    let releases = releases(app, &deployment).await?;
    Ok(preview(gateway, Some(Complete { deployment: &deployment, releases: &releases }), next, machine))
}

/// What a target should run.
#[derive(Debug, Serialize, ToSchema)]
struct TargetItem {
    /// `group/presses`.
    target: String,
    /// Number of the deployment; `null`: nothing of its own.
    deployment: Option<u64>,
    /// No number below it runs there again.
    floor: u64,
    /// The highest number that was handed in.
    newest: u64,
    /// Unix time at which that was chosen; `null`: never.
    changed_ms: Option<u64>,
}

/// What a target should run.
#[utoipa::path(get, path = "/v1/targets/{kind}/{name}/desired", tag = "deployments", params(("kind" = String, Path), ("name" = String, Path)), responses((status = 200, body = TargetItem)))]
async fn target(
    State(app): State<App>,
    caller: Caller,
    PathOf((kind, name)): PathOf<(String, String)>,
) -> Result<Json<TargetItem>, ApiError> {
    caller.require(Role::Viewer)?;
    let target = target_of(&kind, &name)?;
    let state = app.store.target(&target).await?;
    Ok(Json(TargetItem {
        newest: app.store.highest_number(&target).await?,
        deployment: state.as_ref().and_then(|state| state.number),
        floor: state.as_ref().map_or(0, |state| state.floor),
        changed_ms: state.map(|state| state.changed_ms),
        target: target.to_string(),
    }))
}

/// Which deployment.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Choice {
    /// Its number; `null`: none of this target's own any more, so that a gateway follows its groups again.
    #[serde(deserialize_with = "Option::deserialize")]
    deployment: Option<u64>,
}

/// Makes a deployment what its target should run: `deploy` with the newest one, `rollback` with an older one that is not below the floor.
#[utoipa::path(
    post, path = "/v1/targets/{kind}/{name}/desired", tag = "deployments", request_body = Choice,
    params(("kind" = String, Path), ("name" = String, Path)),
    responses((status = 200, body = Object, description = "`{\"gateways\": N}`: so many are told"), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody))
)]
async fn choose(
    State(app): State<App>,
    caller: Caller,
    PathOf((kind, name)): PathOf<(String, String)>,
    JsonBody(Choice { deployment: number }): JsonBody<Choice>,
) -> Result<Json<Value>, ApiError> {
    caller.require(Role::Operator)?;
    let target = target_of(&kind, &name)?;
    let gateways = gateways_of(&app, &target).await?;
    if let Some(number) = number {
        let deployed = app.store.deployment(&target, number).await?;
        let deployed = deployed.ok_or_else(|| ApiError::missing(format!("deployment {number} of {target}")))?;
        // Keys that signed it may have been taken away since; a gateway would refuse it then.
        verify(&app, &deployed.envelope).await?;
    }
    let entry = app.entry(&caller, "desire", target.to_string(), json!({"deployment": number}));
    app.store.set_desired(&target, number, app.clock.now_ms(), &entry).await?;
    app.wakes.wake(&gateways);
    Ok(Json(json!({"gateways": gateways.len()})))
}
