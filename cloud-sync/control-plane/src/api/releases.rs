//! What was published: releases, their aliases and tags.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sync_protocol::name::{AliasName, ArtifactName};
use sync_protocol::{Blob, Digest, Envelope, Kind, Refused, Release};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::blobs::digest_of;
use super::{App, JsonBody, List, PageQuery, PathOf, QueryOf};
use crate::auth::{Caller, Role};
use crate::blobs::Have;
use crate::error::{ApiError, ErrorBody};
use crate::limits;
use crate::store::{AliasRow, Published, TagRow};
use crate::trust;

pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(add, list))
        .routes(routes!(get))
        .routes(routes!(aliases))
        .routes(routes!(set_alias))
        .routes(routes!(tags, set_tags))
}

/// One version.
#[derive(Debug, Serialize, ToSchema)]
struct ReleaseItem {
    /// What it is known by.
    #[schema(value_type = String)]
    digest: Digest,
    /// `function`, `model`, `layer`, `runtime`, `agent`.
    #[schema(value_type = String)]
    kind: Kind,
    /// Its name.
    #[schema(value_type = String)]
    name: ArtifactName,
    /// Its version.
    version: String,
    /// Unix time at which it came.
    received_ms: u64,
    /// As its publisher signed it.
    #[schema(value_type = Object)]
    envelope: Envelope,
}

impl TryFrom<Published> for ReleaseItem {
    type Error = ApiError;
    fn try_from(published: Published) -> Result<Self, ApiError> {
        let release: Release = published.envelope.unverified().map_err(ApiError::internal)?;
        Ok(Self {
            digest: published.digest,
            kind: release.kind,
            name: release.name,
            version: release.version.to_string(),
            received_ms: published.received_ms,
            envelope: published.envelope,
        })
    }
}

/// Hands in a release. Its publishers must have signed it, and its blobs must be here. The very same again is no mistake; another one under its
/// name and version is.
#[utoipa::path(
    post, path = "/v1/releases", tag = "releases", request_body(content = Object, description = "Envelope of a release"),
    responses((status = 201, body = Object), (status = 200, description = "It is there already"), (status = 409, body = ErrorBody), (status = 422, body = ErrorBody))
)]
async fn add(
    State(app): State<App>,
    caller: Caller,
    JsonBody(envelope): JsonBody<Envelope>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    caller.require(Role::Publisher)?;
    let release = trust::newest(&app.store.roots().await?)?.verify_release(&envelope)?;
    let digest = envelope.digest().map_err(Refused::of("the release"))?;
    // What is referred to does not go from here on.
    let _referring = app.referring.read().await;
    for blob in release.native.iter().map(|native| native.blob).chain([release.blob]) {
        is_here(&app, &release, blob).await?;
    }
    let detail = json!({"digest": digest, "signers": envelope.signers().collect::<Vec<_>>()});
    let entry = app.entry(&caller, "publish", release.to_string(), detail);
    let new = app.store.add_release(digest, &release, &envelope, &entry).await?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(json!({"digest": digest, "version": release.version}))))
}

async fn is_here(app: &App, release: &Release, blob: Blob) -> Result<(), ApiError> {
    match app.blobs.have(blob.digest).await? {
        Have::Whole(bytes) if bytes == blob.bytes => Ok(()),
        Have::Whole(bytes) => Err(ApiError::refused(format!(
            "release {release}: blob {} has {bytes} bytes, not {} as it says",
            blob.digest, blob.bytes
        ))),
        Have::Part(_) => Err(ApiError::refused(format!("release {release}: blob {} is not here", blob.digest))
            .hint("upload it first: PUT /v1/blobs/DIGEST")),
    }
}

/// Of what.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Of {
    /// `function`, `model`, `layer`, `runtime`.
    #[param(value_type = Option<String>)]
    kind: Option<Kind>,
    /// Its name.
    #[param(value_type = Option<String>)]
    name: Option<ArtifactName>,
}

/// Releases, in the order in which they came.
#[utoipa::path(get, path = "/v1/releases", tag = "releases", params(Of, PageQuery), responses((status = 200, body = List<ReleaseItem>)))]
async fn list(
    State(app): State<App>,
    caller: Caller,
    QueryOf(of): QueryOf<Of>,
    QueryOf(query): QueryOf<PageQuery>,
) -> Result<Json<List<ReleaseItem>>, ApiError> {
    caller.require(Role::Viewer)?;
    let page = query.page();
    let releases = app.store.releases(of.kind, of.name.as_ref(), &page).await?;
    let items = releases.into_iter().map(ReleaseItem::try_from).collect::<Result<_, _>>()?;
    Ok(Json(List::of(&page, items, |item: &ReleaseItem| item.digest.to_string())))
}

/// One release.
#[utoipa::path(get, path = "/v1/releases/{digest}", tag = "releases", params(("digest" = String, Path)), responses((status = 200, body = ReleaseItem), (status = 404, body = ErrorBody)))]
async fn get(
    State(app): State<App>,
    caller: Caller,
    PathOf(digest): PathOf<String>,
) -> Result<Json<ReleaseItem>, ApiError> {
    caller.require(Role::Viewer)?;
    let digest = digest_of(&digest)?;
    let release = app.store.release(digest).await?.ok_or_else(|| ApiError::missing(format!("release {digest}")))?;
    release.try_into().map(Json)
}

/// Where an alias points.
#[derive(Debug, Serialize, ToSchema)]
struct AliasItem {
    #[schema(value_type = String)]
    kind: Kind,
    #[schema(value_type = String)]
    name: ArtifactName,
    #[schema(value_type = String)]
    alias: AliasName,
    version: String,
    changed_ms: u64,
}

/// Aliases. They are for people and for `deploy`; a deployment names versions.
#[utoipa::path(get, path = "/v1/aliases", tag = "releases", params(Of, PageQuery), responses((status = 200, body = List<AliasItem>)))]
async fn aliases(
    State(app): State<App>,
    caller: Caller,
    QueryOf(of): QueryOf<Of>,
    QueryOf(query): QueryOf<PageQuery>,
) -> Result<Json<List<AliasItem>>, ApiError> {
    caller.require(Role::Viewer)?;
    let page = query.page();
    let rows = app.store.aliases(of.kind.zip(of.name.as_ref()), &page).await?;
    let item =
        |AliasRow { kind, name, alias, version, changed_ms }| AliasItem { kind, name, alias, version, changed_ms };
    let items = rows.into_iter().map(item).collect();
    Ok(Json(List::of(&page, items, |item: &AliasItem| format!("{}/{}/{}", item.kind, item.name, item.alias))))
}

/// Which version.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Version {
    version: String,
}

/// Points an alias to a version that is published.
#[utoipa::path(
    put, path = "/v1/aliases/{kind}/{name}/{alias}", tag = "releases", request_body = Version,
    params(("kind" = String, Path), ("name" = String, Path), ("alias" = String, Path)),
    responses((status = 204, description = "It does"), (status = 404, body = ErrorBody))
)]
async fn set_alias(
    State(app): State<App>,
    caller: Caller,
    PathOf((kind, name, alias)): PathOf<(Kind, ArtifactName, AliasName)>,
    JsonBody(Version { version }): JsonBody<Version>,
) -> Result<StatusCode, ApiError> {
    caller.require(Role::Publisher)?;
    let what = format!("{kind}/{name}:{alias}");
    let entry = app.entry(&caller, "alias", what, json!({"version": version}));
    let row = AliasRow { kind, name, alias, version, changed_ms: app.clock.now_ms() };
    app.store.set_alias(&row, &entry).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Keys and values of a version.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Tags {
    tags: BTreeMap<String, String>,
}

/// The tags of a version.
#[utoipa::path(get, path = "/v1/tags/{kind}/{name}/{version}", tag = "releases", params(("kind" = String, Path), ("name" = String, Path), ("version" = String, Path)), responses((status = 200, body = Tags)))]
async fn tags(
    State(app): State<App>,
    caller: Caller,
    PathOf((kind, name, version)): PathOf<(Kind, ArtifactName, String)>,
) -> Result<Json<Tags>, ApiError> {
    caller.require(Role::Viewer)?;
    let tags = app.store.tags((kind, &name, &version)).await?;
    Ok(Json(Tags { tags: tags.into_iter().map(|tag| (tag.key, tag.value)).collect() }))
}

/// Replaces the tags of a version.
#[utoipa::path(
    put, path = "/v1/tags/{kind}/{name}/{version}", tag = "releases", request_body = Tags,
    params(("kind" = String, Path), ("name" = String, Path), ("version" = String, Path)),
    responses((status = 204, description = "They are"), (status = 404, body = ErrorBody), (status = 422, body = ErrorBody))
)]
async fn set_tags(
    State(app): State<App>,
    caller: Caller,
    PathOf((kind, name, version)): PathOf<(Kind, ArtifactName, String)>,
    JsonBody(Tags { tags }): JsonBody<Tags>,
) -> Result<StatusCode, ApiError> {
    caller.require(Role::Publisher)?;
    let (most, longest) = (limits::TAGS_MAX, limits::TAG_BYTES_MAX);
    if tags.len() > most || tags.iter().any(|(key, value)| key.len() > longest || value.len() > longest) {
        return Err(ApiError::refused(format!("at most {most} tags, each key and value at most {longest} bytes")));
    }
    let entry = app.entry(&caller, "tag", format!("{kind}/{name} {version}"), json!(tags));
    let rows: Vec<TagRow> = tags.into_iter().map(|(key, value)| TagRow { key, value }).collect();
    app.store.set_tags((kind, &name, &version), &rows, &entry).await?;
    Ok(StatusCode::NO_CONTENT)
}
