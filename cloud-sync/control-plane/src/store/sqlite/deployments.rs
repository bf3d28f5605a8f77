//! Deployments, targets, desired documents.

use async_trait::async_trait;
use sqlx::{Sqlite, Transaction};
use sync_protocol::desired::{DeploymentRef, Request};
use sync_protocol::name::GatewayName;
use sync_protocol::{Deployment, Digest, Envelope, KeyId, Target};

use super::{
    Page, Result, SqliteStore, StoreError, audit, broken, commit, int, parsed, read, target_words, text, uint,
};
use crate::audit::Entry;
use crate::store::{Deployed, Deployments, Signed, TargetState};

type DeploymentColumns = (i64, String, String, i64);

fn deployed((number, digest, envelope, received_ms): DeploymentColumns) -> Result<Deployed> {
    let doing = "read a deployment";
    Ok(Deployed {
        reference: DeploymentRef { number: uint(number), digest: parsed(doing, digest.parse())? },
        envelope: read(doing, &envelope)?,
        received_ms: uint(received_ms),
    })
}

async fn highest(tx: &mut Transaction<'static, Sqlite>, target: &Target) -> Result<u64> {
    let (kind, name) = target_words(target);
    let (highest,): (i64,) =
        sqlx::query_as("SELECT coalesce(max(number), 0) FROM deployments WHERE target_kind = ? AND target = ?")
            .bind(kind)
            .bind(name)
            .fetch_one(&mut **tx)
            .await
            .map_err(broken("number a deployment"))?;
    Ok(uint(highest))
}

#[async_trait]
impl Deployments for SqliteStore {
    async fn add_deployment(
        &self,
        digest: Digest,
        deployment: &Deployment,
        envelope: &Envelope,
        entry: &Entry,
    ) -> Result<bool> {
        let doing = "add a deployment";
        let (kind, name) = target_words(&deployment.target);
        let mut tx = self.begin(doing).await?;
        let there: Option<(i64,)> = sqlx::query_as("SELECT 1 FROM deployments WHERE digest = ?")
            .bind(digest.to_string())
            .fetch_optional(&mut *tx)
            .await
            .map_err(broken(doing))?;
        if there.is_some() {
            return Ok(false);
        }
        let highest = highest(&mut tx, &deployment.target).await?;
        if deployment.number <= highest {
            let (target, number) = (&deployment.target, deployment.number);
            return Err(StoreError::Conflict(format!(
                "deployment {number} of {target} does not follow {highest}, its newest one"
            )));
        }
        sqlx::query(
            "INSERT INTO deployments (target_kind, target, number, digest, floor, envelope, received_ms)
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(kind)
        .bind(name)
        .bind(int(deployment.number))
        .bind(digest.to_string())
        .bind(int(deployment.floor))
        .bind(text(doing, envelope)?)
        .bind(int(entry.at_ms))
        .execute(&mut *tx)
        .await
        .map_err(broken(doing))?;
        for artifact in &deployment.artifacts {
            sqlx::query("INSERT OR IGNORE INTO deployment_releases (deployment, release) VALUES (?, ?)")
                .bind(digest.to_string())
                .bind(artifact.release.to_string())
                .execute(&mut *tx)
                .await
                .map_err(broken(doing))?;
        }
        audit::append(&mut tx, entry).await?;
        commit(tx, doing).await?;
        Ok(true)
    }

    async fn deployment(&self, target: &Target, number: u64) -> Result<Option<Deployed>> {
        let (kind, name) = target_words(target);
        let row: Option<DeploymentColumns> = sqlx::query_as(
            "SELECT number, digest, envelope, received_ms FROM deployments
             WHERE target_kind = ? AND target = ? AND number = ?",
        )
        .bind(kind)
        .bind(name)
        .bind(int(number))
        .fetch_optional(&self.readers)
        .await
        .map_err(broken("read a deployment"))?;
        row.map(deployed).transpose()
    }

    async fn deployment_by_digest(&self, digest: Digest) -> Result<Option<Deployed>> {
        let row: Option<DeploymentColumns> =
            sqlx::query_as("SELECT number, digest, envelope, received_ms FROM deployments WHERE digest = ?")
                .bind(digest.to_string())
                .fetch_optional(&self.readers)
                .await
                .map_err(broken("read a deployment"))?;
        row.map(deployed).transpose()
    }

    async fn deployments(&self, target: Option<&Target>, page: &Page) -> Result<Vec<Deployed>> {
        let words = target.map(target_words);
        let rows: Vec<DeploymentColumns> = sqlx::query_as(
            "SELECT number, digest, envelope, received_ms FROM deployments
             WHERE (?1 IS NULL OR (target_kind = ?1 AND target = ?2))
               AND rowid > coalesce((SELECT rowid FROM deployments WHERE digest = ?3), 0)
             ORDER BY rowid LIMIT ?4",
        )
        .bind(words.map(|(kind, _)| kind))
        .bind(words.map(|(_, name)| name))
        .bind(&page.after)
        .bind(int(page.limit))
        .fetch_all(&self.readers)
        .await
        .map_err(broken("list deployments"))?;
        rows.into_iter().map(deployed).collect()
    }

    async fn highest_number(&self, target: &Target) -> Result<u64> {
        let mut tx = self.readers.begin().await.map_err(broken("number a deployment"))?;
        highest(&mut tx, target).await
    }

    async fn set_desired(&self, target: &Target, number: Option<u64>, now_ms: u64, entry: &Entry) -> Result<()> {
        let doing = "choose a deployment";
        let (kind, name) = target_words(target);
        let mut tx = self.begin(doing).await?;
        let floor: Option<(i64,)> = sqlx::query_as("SELECT floor FROM targets WHERE kind = ? AND name = ?")
            .bind(kind)
            .bind(name)
            .fetch_optional(&mut *tx)
            .await
            .map_err(broken(doing))?;
        let mut floor = floor.map_or(0, |(floor,)| floor);
        if let Some(number) = number {
            let row: Option<(i64,)> =
                sqlx::query_as("SELECT floor FROM deployments WHERE target_kind = ? AND target = ? AND number = ?")
                    .bind(kind)
                    .bind(name)
                    .bind(int(number))
                    .fetch_optional(&mut *tx)
                    .await
                    .map_err(broken(doing))?;
            let (its_floor,) = row.ok_or_else(|| StoreError::Missing(format!("deployment {number} of {target}")))?;
            if number < uint(floor) {
                return Err(StoreError::Conflict(format!(
                    "deployment {number} of {target} is below {floor}, below which its operators let it never go again"
                )));
            }
            floor = floor.max(its_floor);
        }
        sqlx::query(
            "INSERT INTO targets (kind, name, number, floor, changed_ms) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT DO UPDATE
             SET number = excluded.number, floor = excluded.floor, changed_ms = excluded.changed_ms",
        )
        .bind(kind)
        .bind(name)
        .bind(number.map(int))
        .bind(floor)
        .bind(int(now_ms))
        .execute(&mut *tx)
        .await
        .map_err(broken(doing))?;
        audit::append(&mut tx, entry).await?;
        commit(tx, doing).await
    }

    async fn target(&self, target: &Target) -> Result<Option<TargetState>> {
        let (kind, name) = target_words(target);
        let row: Option<(Option<i64>, i64, i64)> =
            sqlx::query_as("SELECT number, floor, changed_ms FROM targets WHERE kind = ? AND name = ?")
                .bind(kind)
                .bind(name)
                .fetch_optional(&self.readers)
                .await
                .map_err(broken("read a target"))?;
        Ok(row.map(|(number, floor, changed_ms)| TargetState {
            target: target.clone(),
            number: number.map(uint),
            floor: uint(floor),
            changed_ms: uint(changed_ms),
        }))
    }

    async fn desired_of(&self, gateway: &GatewayName) -> Result<Option<Deployed>> {
        let row: Option<DeploymentColumns> = sqlx::query_as(
            "SELECT deployments.number, digest, envelope, received_ms FROM targets
             JOIN deployments ON target_kind = kind AND target = name AND deployments.number = targets.number
             WHERE kind = 'gateway' AND name = ?1
                OR kind = 'group' AND name IN (SELECT group_name FROM group_gateways WHERE gateway = ?1)
             ORDER BY kind = 'gateway' DESC, changed_ms DESC, name LIMIT 1",
        )
        .bind(gateway.as_str())
        .fetch_optional(&self.readers)
        .await
        .map_err(broken("choose a deployment"))?;
        row.map(deployed).transpose()
    }

    async fn signed(&self, gateway: &GatewayName) -> Result<Option<Signed>> {
        let doing = "read a desired document";
        let row: Option<(i64, String, String, String, i64, i64)> = sqlx::query_as(
            "SELECT sequence, content, key, envelope, issued_ms, expires_ms FROM desired WHERE gateway = ?",
        )
        .bind(gateway.as_str())
        .fetch_optional(&self.readers)
        .await
        .map_err(broken(doing))?;
        let Some((sequence, content, key, envelope, issued_ms, expires_ms)) = row else { return Ok(None) };
        Ok(Some(Signed {
            sequence: uint(sequence),
            content: parsed(doing, content.parse())?,
            key: KeyId(parsed(doing, key.parse())?),
            envelope: read(doing, &envelope)?,
            issued_ms: uint(issued_ms),
            expires_ms: uint(expires_ms),
        }))
    }

    async fn keep_signed(&self, gateway: &GatewayName, signed: &Signed) -> Result<bool> {
        let doing = "keep a desired document";
        let done = sqlx::query(
            "INSERT INTO desired (gateway, sequence, content, key, envelope, issued_ms, expires_ms)
             VALUES (?, ?, ?, ?, ?, ?, ?)
             ON CONFLICT DO UPDATE
             SET sequence = excluded.sequence, content = excluded.content, key = excluded.key,
                 envelope = excluded.envelope, issued_ms = excluded.issued_ms, expires_ms = excluded.expires_ms
             WHERE desired.sequence < excluded.sequence",
        )
        .bind(gateway.as_str())
        .bind(int(signed.sequence))
        .bind(signed.content.to_string())
        .bind(signed.key.0.to_string())
        .bind(text(doing, &signed.envelope)?)
        .bind(int(signed.issued_ms))
        .bind(int(signed.expires_ms))
        .execute(&self.writer)
        .await
        .map_err(broken(doing))?;
        Ok(done.rows_affected() == 1)
    }

    async fn ask(&self, gateway: &GatewayName, request: &Request, until_ms: u64, entry: &Entry) -> Result<()> {
        let doing = "ask a gateway";
        let kind = match request {
            Request::Logs { .. } => "logs",
            Request::TryAgain { .. } => "try-again",
        };
        let mut tx = self.begin(doing).await?;
        sqlx::query(
            "INSERT INTO requests (gateway, kind, request, until_ms) VALUES (?, ?, ?, ?)
             ON CONFLICT DO UPDATE SET request = excluded.request, until_ms = excluded.until_ms",
        )
        .bind(gateway.as_str())
        .bind(kind)
        .bind(text(doing, request)?)
        .bind(int(until_ms))
        .execute(&mut *tx)
        .await
        .map_err(broken(doing))?;
        audit::append(&mut tx, entry).await?;
        commit(tx, doing).await
    }

    async fn asked(&self, gateway: &GatewayName, now_ms: u64) -> Result<Vec<Request>> {
        let doing = "read requests";
        let rows: Vec<(String,)> =
            sqlx::query_as("SELECT request FROM requests WHERE gateway = ? AND until_ms > ? ORDER BY kind")
                .bind(gateway.as_str())
                .bind(int(now_ms))
                .fetch_all(&self.readers)
                .await
                .map_err(broken(doing))?;
        rows.iter().map(|(request,)| read(doing, request)).collect()
    }
}
