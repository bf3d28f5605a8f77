//! Roots, releases, aliases, tags.

use async_trait::async_trait;
use sqlx::{Sqlite, Transaction};
use sync_protocol::name::{AliasName, ArtifactName};
use sync_protocol::{Digest, Envelope, Kind, Release};

use super::{Page, Result, SqliteStore, StoreError, audit, broken, commit, int, kind_of, parsed, read, text, uint};
use crate::audit::Entry;
use crate::store::{AliasRow, Published, Registry, TagRow};

type ReleaseColumns = (String, String, i64);

fn published((digest, envelope, received_ms): ReleaseColumns) -> Result<Published> {
    let doing = "read a release";
    Ok(Published {
        digest: parsed(doing, digest.parse())?,
        envelope: read(doing, &envelope)?,
        received_ms: uint(received_ms),
    })
}

fn alias((kind, name, alias, version, changed_ms): (String, String, String, String, i64)) -> Result<AliasRow> {
    let doing = "read an alias";
    Ok(AliasRow {
        kind: kind_of(doing, &kind)?,
        name: parsed(doing, ArtifactName::parse(&name))?,
        alias: parsed(doing, AliasName::parse(&alias))?,
        version,
        changed_ms: uint(changed_ms),
    })
}

/// Refuses a version that is not published.
async fn published_is(
    tx: &mut Transaction<'static, Sqlite>,
    (kind, name, version): (Kind, &ArtifactName, &str),
) -> Result<()> {
    let there: Option<(i64,)> = sqlx::query_as("SELECT 1 FROM releases WHERE kind = ? AND name = ? AND version = ?")
        .bind(kind.as_str())
        .bind(name.as_str())
        .bind(version)
        .fetch_optional(&mut **tx)
        .await
        .map_err(broken("look for a release"))?;
    there.map(|_| ()).ok_or_else(|| StoreError::Missing(format!("{kind}/{name} {version} published")))
}

#[async_trait]
impl Registry for SqliteStore {
    async fn roots(&self) -> Result<Vec<Envelope>> {
        let doing = "read the roots";
        let rows: Vec<(String,)> = sqlx::query_as("SELECT envelope FROM roots ORDER BY version")
            .fetch_all(&self.readers)
            .await
            .map_err(broken(doing))?;
        rows.iter().map(|(envelope,)| read(doing, envelope)).collect()
    }

    async fn add_root(&self, version: u64, envelope: &Envelope, entry: &Entry) -> Result<()> {
        let doing = "add a root";
        let mut tx = self.begin(doing).await?;
        let (newest,): (i64,) = sqlx::query_as("SELECT coalesce(max(version), 0) FROM roots")
            .fetch_one(&mut *tx)
            .await
            .map_err(broken(doing))?;
        if uint(newest) + 1 != version {
            return Err(StoreError::Conflict(format!("root {version} does not follow root {newest}, the newest here")));
        }
        sqlx::query("INSERT INTO roots (version, envelope, received_ms) VALUES (?, ?, ?)")
            .bind(int(version))
            .bind(text(doing, envelope)?)
            .bind(int(entry.at_ms))
            .execute(&mut *tx)
            .await
            .map_err(broken(doing))?;
        audit::append(&mut tx, entry).await?;
        commit(tx, doing).await
    }

    async fn add_release(&self, digest: Digest, release: &Release, envelope: &Envelope, entry: &Entry) -> Result<bool> {
        let doing = "add a release";
        let (kind, version) = (release.kind.as_str(), release.version.to_string());
        let mut tx = self.begin(doing).await?;
        let there: Option<(String,)> =
            sqlx::query_as("SELECT digest FROM releases WHERE kind = ? AND name = ? AND version = ?")
                .bind(kind)
                .bind(release.name.as_str())
                .bind(&version)
                .fetch_optional(&mut *tx)
                .await
                .map_err(broken(doing))?;
        if let Some((there,)) = there {
            if there == digest.to_string() {
                return Ok(false);
            }
            return Err(StoreError::Conflict(format!("{release} is there already, as {there}")));
        }
        sqlx::query(
            "INSERT INTO releases (digest, kind, name, version, envelope, received_ms) VALUES (?, ?, ?, ?, ?, ?)",
        )
        .bind(digest.to_string())
        .bind(kind)
        .bind(release.name.as_str())
        .bind(&version)
        .bind(text(doing, envelope)?)
        .bind(int(entry.at_ms))
        .execute(&mut *tx)
        .await
        .map_err(broken(doing))?;
        let native = release.native.iter().map(|native| native.blob);
        for blob in native.chain([release.blob]) {
            sqlx::query("INSERT OR IGNORE INTO release_blobs (release, blob) VALUES (?, ?)")
                .bind(digest.to_string())
                .bind(blob.digest.to_string())
                .execute(&mut *tx)
                .await
                .map_err(broken(doing))?;
        }
        audit::append(&mut tx, entry).await?;
        commit(tx, doing).await?;
        Ok(true)
    }

    async fn release(&self, digest: Digest) -> Result<Option<Published>> {
        let row: Option<ReleaseColumns> =
            sqlx::query_as("SELECT digest, envelope, received_ms FROM releases WHERE digest = ?")
                .bind(digest.to_string())
                .fetch_optional(&self.readers)
                .await
                .map_err(broken("read a release"))?;
        row.map(published).transpose()
    }

    async fn releases(&self, kind: Option<Kind>, name: Option<&ArtifactName>, page: &Page) -> Result<Vec<Published>> {
        let rows: Vec<ReleaseColumns> = sqlx::query_as(
            "SELECT digest, envelope, received_ms FROM releases
             WHERE (?1 IS NULL OR kind = ?1) AND (?2 IS NULL OR name = ?2)
               AND rowid > coalesce((SELECT rowid FROM releases WHERE digest = ?3), 0)
             ORDER BY rowid LIMIT ?4",
        )
        .bind(kind.map(Kind::as_str))
        .bind(name.map(ArtifactName::as_str))
        .bind(&page.after)
        .bind(int(page.limit))
        .fetch_all(&self.readers)
        .await
        .map_err(broken("list releases"))?;
        rows.into_iter().map(published).collect()
    }

    async fn set_alias(&self, row: &AliasRow, entry: &Entry) -> Result<()> {
        let doing = "set an alias";
        let mut tx = self.begin(doing).await?;
        published_is(&mut tx, (row.kind, &row.name, &row.version)).await?;
        sqlx::query(
            "INSERT INTO aliases (kind, name, alias, version, changed_ms) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT DO UPDATE SET version = excluded.version, changed_ms = excluded.changed_ms",
        )
        .bind(row.kind.as_str())
        .bind(row.name.as_str())
        .bind(row.alias.as_str())
        .bind(&row.version)
        .bind(int(row.changed_ms))
        .execute(&mut *tx)
        .await
        .map_err(broken(doing))?;
        audit::append(&mut tx, entry).await?;
        commit(tx, doing).await
    }

    async fn aliases(&self, of: Option<(Kind, &ArtifactName)>, page: &Page) -> Result<Vec<AliasRow>> {
        let rows: Vec<(String, String, String, String, i64)> = sqlx::query_as(
            "SELECT kind, name, alias, version, changed_ms FROM aliases
             WHERE (?1 IS NULL OR (kind = ?1 AND name = ?2)) AND kind || '/' || name || '/' || alias > ?3
             ORDER BY kind || '/' || name || '/' || alias LIMIT ?4",
        )
        .bind(of.map(|(kind, _)| kind.as_str()))
        .bind(of.map(|(_, name)| name.as_str()))
        .bind(&page.after)
        .bind(int(page.limit))
        .fetch_all(&self.readers)
        .await
        .map_err(broken("list aliases"))?;
        rows.into_iter().map(alias).collect()
    }

    async fn set_tags(
        &self,
        (kind, name, version): (Kind, &ArtifactName, &str),
        tags: &[TagRow],
        entry: &Entry,
    ) -> Result<()> {
        let doing = "set tags";
        let mut tx = self.begin(doing).await?;
        published_is(&mut tx, (kind, name, version)).await?;
        let kind = kind.as_str();
        sqlx::query("DELETE FROM tags WHERE kind = ? AND name = ? AND version = ?")
            .bind(kind)
            .bind(name.as_str())
            .bind(version)
            .execute(&mut *tx)
            .await
            .map_err(broken(doing))?;
        for tag in tags {
            sqlx::query("INSERT INTO tags (kind, name, version, key, value) VALUES (?, ?, ?, ?, ?)")
                .bind(kind)
                .bind(name.as_str())
                .bind(version)
                .bind(&tag.key)
                .bind(&tag.value)
                .execute(&mut *tx)
                .await
                .map_err(broken(doing))?;
        }
        audit::append(&mut tx, entry).await?;
        commit(tx, doing).await
    }

    async fn tags(&self, (kind, name, version): (Kind, &ArtifactName, &str)) -> Result<Vec<TagRow>> {
        let rows: Vec<(String, String)> =
            sqlx::query_as("SELECT key, value FROM tags WHERE kind = ? AND name = ? AND version = ? ORDER BY key")
                .bind(kind.as_str())
                .bind(name.as_str())
                .bind(version)
                .fetch_all(&self.readers)
                .await
                .map_err(broken("read tags"))?;
        Ok(rows.into_iter().map(|(key, value)| TagRow { key, value }).collect())
    }

    async fn refers_to(&self, blob: Digest) -> Result<bool> {
        let row: Option<(i64,)> = sqlx::query_as("SELECT 1 FROM release_blobs WHERE blob = ? LIMIT 1")
            .bind(blob.to_string())
            .fetch_optional(&self.readers)
            .await
            .map_err(broken("look for a blob"))?;
        Ok(row.is_some())
    }

    async fn may_fetch(&self, gateway: &str, blob: Digest) -> Result<bool> {
        let row: Option<(i64,)> = sqlx::query_as(
            "SELECT 1 FROM release_blobs
             JOIN deployment_releases ON deployment_releases.release = release_blobs.release
             JOIN deployments ON deployments.digest = deployment_releases.deployment
             WHERE release_blobs.blob = ?1
               AND (target_kind = 'gateway' AND target = ?2
                    OR target_kind = 'group'
                       AND target IN (SELECT group_name FROM group_gateways WHERE gateway = ?2))
             LIMIT 1",
        )
        .bind(blob.to_string())
        .bind(gateway)
        .fetch_optional(&self.readers)
        .await
        .map_err(broken("look for a blob"))?;
        Ok(row.is_some())
    }

    async fn blobs(&self) -> Result<Vec<Digest>> {
        let doing = "list blobs";
        let rows: Vec<(String,)> = sqlx::query_as("SELECT DISTINCT blob FROM release_blobs")
            .fetch_all(&self.readers)
            .await
            .map_err(broken(doing))?;
        rows.iter().map(|(blob,)| parsed(doing, blob.parse())).collect()
    }
}
