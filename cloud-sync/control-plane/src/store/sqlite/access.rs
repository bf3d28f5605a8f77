//! Tokens, claims, certificates, and reading the audit log.

use async_trait::async_trait;
use serde_json::json;
use sqlx::{Sqlite, Transaction};
use sync_protocol::Digest;
use sync_protocol::name::{GatewayName, GroupName};

use super::fleet::{join, make_group};
use super::{Page, Result, SqliteStore, StoreError, audit, broken, commit, int, parsed, read, text, uint};
use crate::audit::Entry;
use crate::auth::Role;
use crate::claim;
use crate::clones::Boots;
use crate::store::{Access, AuditRow, CertificateRow, ClaimRow, Grant, NotGranted, TokenRow, Wish};

type TokenColumns = (String, String, String, String, i64, Option<i64>, Option<i64>, Option<i64>);

fn token(columns: TokenColumns) -> Result<TokenRow> {
    let doing = "read a token";
    let (id, name, role, secret, created_ms, expires_ms, used_ms, revoked_ms) = columns;
    Ok(TokenRow {
        id,
        name,
        role: read::<Role>(doing, &format!("\"{role}\""))?,
        secret: parsed(doing, secret.parse())?,
        created_ms: uint(created_ms),
        expires_ms: expires_ms.map(uint),
        used_ms: used_ms.map(uint),
        revoked_ms: revoked_ms.map(uint),
    })
}

type ClaimColumns = (String, String, i64, i64, String, Option<String>, Option<String>, i64, i64, Option<i64>);

fn claim_row(columns: ClaimColumns) -> Result<ClaimRow> {
    let doing = "read a claim";
    let (id, secret, uses_max, uses, groups, name_prefix, replaces, created_ms, expires_ms, revoked_ms) = columns;
    Ok(ClaimRow {
        id,
        secret: parsed(doing, secret.parse())?,
        uses_max: uint(uses_max),
        uses: uint(uses),
        groups: read(doing, &groups)?,
        name_prefix,
        replaces: replaces.map(|name| parsed(doing, GatewayName::parse(&name))).transpose()?,
        created_ms: uint(created_ms),
        expires_ms: uint(expires_ms),
        revoked_ms: revoked_ms.map(uint),
    })
}

type CertificateColumns = (String, String, bool, i64, i64, Option<i64>);

fn certificate(columns: CertificateColumns) -> Result<CertificateRow> {
    let doing = "read a certificate";
    let (fingerprint, gateway, ours, not_after_ms, added_ms, revoked_ms) = columns;
    Ok(CertificateRow {
        fingerprint: parsed(doing, fingerprint.parse())?,
        gateway: parsed(doing, GatewayName::parse(&gateway))?,
        ours,
        not_after_ms: uint(not_after_ms),
        added_ms: uint(added_ms),
        revoked_ms: revoked_ms.map(uint),
    })
}

async fn groups_of(tx: &mut Transaction<'static, Sqlite>, gateway: &GatewayName) -> Result<Vec<GroupName>> {
    let doing = "read the groups";
    let rows: Vec<(String,)> =
        sqlx::query_as("SELECT group_name FROM group_gateways WHERE gateway = ? ORDER BY group_name")
            .bind(gateway.as_str())
            .fetch_all(&mut **tx)
            .await
            .map_err(broken(doing))?;
    rows.iter().map(|(group,)| parsed(doing, GroupName::parse(group))).collect()
}

async fn exists(tx: &mut Transaction<'static, Sqlite>, name: &GatewayName) -> Result<bool> {
    let row: Option<(i64,)> = sqlx::query_as("SELECT 1 FROM gateways WHERE name = ?")
        .bind(name.as_str())
        .fetch_optional(&mut **tx)
        .await
        .map_err(broken("look for a gateway"))?;
    Ok(row.is_some())
}

/// Makes the gateway, with the claim's groups. What was known of a machine that it replaces counts no more.
async fn admit(
    tx: &mut Transaction<'static, Sqlite>,
    name: &GatewayName,
    claim: &ClaimRow,
    wish: &Wish<'_>,
) -> Result<()> {
    let failed = broken("add a gateway");
    let now_ms = int(wish.now_ms);
    sqlx::query("UPDATE certificates SET revoked_ms = coalesce(revoked_ms, ?) WHERE gateway = ?")
        .bind(now_ms)
        .bind(name.as_str())
        .execute(&mut **tx)
        .await
        .map_err(&failed)?;
    for forget in ["DELETE FROM grants WHERE gateway = ?", "DELETE FROM boots WHERE gateway = ?"] {
        sqlx::query(forget).bind(name.as_str()).execute(&mut **tx).await.map_err(&failed)?;
    }
    sqlx::query(
        "INSERT INTO gateways (name, created_ms) VALUES (?, ?)
         ON CONFLICT (name) DO UPDATE SET created_ms = excluded.created_ms, revoked_ms = NULL",
    )
    .bind(name.as_str())
    .bind(now_ms)
    .execute(&mut **tx)
    .await
    .map_err(&failed)?;
    for group in &claim.groups {
        make_group(tx, group, wish.now_ms).await?;
        join(tx, group, name).await?;
    }
    Ok(())
}

/// The revoked gateway that had this key: with it nobody comes in again, under whatever name.
async fn revoked_with(tx: &mut Transaction<'static, Sqlite>, wish: &Wish<'_>) -> Result<Option<GatewayName>> {
    let doing = "look for a key";
    let row: Option<(String,)> = sqlx::query_as(
        "SELECT gateway FROM grants JOIN gateways ON gateways.name = gateway
         WHERE key = ? AND revoked_ms IS NOT NULL LIMIT 1",
    )
    .bind(wish.key.to_string())
    .fetch_optional(&mut **tx)
    .await
    .map_err(broken(doing))?;
    row.map(|(name,)| parsed(doing, GatewayName::parse(&name))).transpose()
}

const TOKEN: &str = "SELECT id, name, role, secret, created_ms, expires_ms, used_ms, revoked_ms FROM tokens";
const CLAIM: &str =
    "SELECT id, secret, uses_max, uses, groups, name_prefix, replaces, created_ms, expires_ms, revoked_ms FROM claims";

#[async_trait]
impl Access for SqliteStore {
    async fn add_token(&self, token: &TokenRow, entry: &Entry) -> Result<()> {
        let doing = "add a token";
        let mut tx = self.begin(doing).await?;
        let role = serde_json::to_value(token.role).map_err(broken(doing))?;
        sqlx::query("INSERT INTO tokens (id, name, role, secret, created_ms, expires_ms) VALUES (?, ?, ?, ?, ?, ?)")
            .bind(&token.id)
            .bind(&token.name)
            .bind(role.as_str())
            .bind(token.secret.to_string())
            .bind(int(token.created_ms))
            .bind(token.expires_ms.map(int))
            .execute(&mut *tx)
            .await
            .map_err(broken(doing))?;
        audit::append(&mut tx, entry).await?;
        commit(tx, doing).await
    }

    async fn token(&self, id: &str) -> Result<Option<TokenRow>> {
        let sql = sqlx::AssertSqlSafe(format!("{TOKEN} WHERE id = ?"));
        let row = sqlx::query_as(sql).bind(id).fetch_optional(&self.readers).await;
        row.map_err(broken("read a token"))?.map(token).transpose()
    }

    async fn tokens(&self, page: &Page) -> Result<Vec<TokenRow>> {
        let sql = sqlx::AssertSqlSafe(format!("{TOKEN} WHERE id > ? ORDER BY id LIMIT ?"));
        let rows: Result<Vec<TokenColumns>, _> =
            sqlx::query_as(sql).bind(&page.after).bind(int(page.limit)).fetch_all(&self.readers).await;
        rows.map_err(broken("read the tokens"))?.into_iter().map(token).collect()
    }

    async fn token_used(&self, id: &str, now_ms: u64) -> Result<()> {
        let update = sqlx::query("UPDATE tokens SET used_ms = ? WHERE id = ?").bind(int(now_ms)).bind(id);
        update.execute(&self.writer).await.map_err(broken("note the use of a token"))?;
        Ok(())
    }

    async fn revoke_token(&self, id: &str, entry: &Entry) -> Result<()> {
        revoke(self, "token", "UPDATE tokens SET revoked_ms = coalesce(revoked_ms, ?) WHERE id = ?", id, entry).await
    }

    async fn add_claim(&self, claim: &ClaimRow, entry: &Entry) -> Result<()> {
        let doing = "add a claim";
        let mut tx = self.begin(doing).await?;
        sqlx::query(
            "INSERT INTO claims (id, secret, uses_max, uses, groups, name_prefix, replaces, created_ms, expires_ms)
             VALUES (?, ?, ?, 0, ?, ?, ?, ?, ?)",
        )
        .bind(&claim.id)
        .bind(claim.secret.to_string())
        .bind(int(claim.uses_max))
        .bind(text(doing, &claim.groups)?)
        .bind(&claim.name_prefix)
        .bind(claim.replaces.as_ref().map(GatewayName::as_str))
        .bind(int(claim.created_ms))
        .bind(int(claim.expires_ms))
        .execute(&mut *tx)
        .await
        .map_err(broken(doing))?;
        audit::append(&mut tx, entry).await?;
        commit(tx, doing).await
    }

    async fn claims(&self, page: &Page) -> Result<Vec<ClaimRow>> {
        let sql = sqlx::AssertSqlSafe(format!("{CLAIM} WHERE id > ? ORDER BY id LIMIT ?"));
        let rows: Result<Vec<ClaimColumns>, _> =
            sqlx::query_as(sql).bind(&page.after).bind(int(page.limit)).fetch_all(&self.readers).await;
        rows.map_err(broken("read the claims"))?.into_iter().map(claim_row).collect()
    }

    async fn revoke_claim(&self, id: &str, entry: &Entry) -> Result<()> {
        revoke(self, "claim", "UPDATE claims SET revoked_ms = coalesce(revoked_ms, ?) WHERE id = ?", id, entry).await
    }

    async fn grant(&self, wish: &Wish<'_>) -> Result<Result<Grant, NotGranted>> {
        let doing = "let a gateway in";
        let mut tx = self.begin(doing).await?;
        let sql = sqlx::AssertSqlSafe(format!("{CLAIM} WHERE id = ?"));
        let row: Option<ClaimColumns> =
            sqlx::query_as(sql).bind(wish.claim).fetch_optional(&mut *tx).await.map_err(broken(doing))?;
        let row = row.map(claim_row).transpose()?;
        let nonce = wish.nonce.to_string();
        let earlier: Option<(String, String, Option<i64>)> = sqlx::query_as(
            "SELECT grants.key, grants.gateway, gateways.revoked_ms
             FROM grants JOIN gateways ON gateways.name = grants.gateway WHERE nonce = ? AND claim = ?",
        )
        .bind(&nonce)
        .bind(wish.claim)
        .fetch_optional(&mut *tx)
        .await
        .map_err(broken(doing))?;
        if let Err(refused) = claim::may(row.as_ref(), wish, earlier.is_some()) {
            return Ok(Err(refused));
        }
        let Some(claim) = row else { return Ok(Err(NotGranted::Unknown)) };
        if let Some((key, gateway, revoked_ms)) = earlier {
            let name = parsed(doing, GatewayName::parse(&gateway))?;
            if key != wish.key.to_string() {
                return Ok(Err(NotGranted::AnotherKey));
            }
            if revoked_ms.is_some() {
                return Ok(Err(NotGranted::GatewayRevoked(name)));
            }
            return Ok(Ok(Grant { groups: groups_of(&mut tx, &name).await?, name }));
        }
        if let Some(name) = revoked_with(&mut tx, wish).await? {
            return Ok(Err(NotGranted::GatewayRevoked(name)));
        }
        let mut free = None;
        for name in claim::names(&claim, wish.name) {
            if claim.replaces.is_some() || !exists(&mut tx, &name).await? {
                free = Some(name);
                break;
            }
        }
        let Some(name) = free else { return Ok(Err(NotGranted::NameTaken(wish.name.clone()))) };
        admit(&mut tx, &name, &claim, wish).await?;
        sqlx::query("INSERT INTO grants (nonce, claim, key, gateway, granted_ms) VALUES (?, ?, ?, ?, ?)")
            .bind(&nonce)
            .bind(wish.claim)
            .bind(wish.key.to_string())
            .bind(name.as_str())
            .bind(int(wish.now_ms))
            .execute(&mut *tx)
            .await
            .map_err(broken(doing))?;
        let used = sqlx::query("UPDATE claims SET uses = uses + 1 WHERE id = ?").bind(wish.claim);
        used.execute(&mut *tx).await.map_err(broken(doing))?;
        let entry = Entry {
            at_ms: wish.now_ms,
            who: format!("gateway/{name}"),
            did: "provision".to_owned(),
            what: format!("gateway/{name}"),
            detail: json!({"claim": wish.claim, "wanted": wish.name, "key": wish.key}),
        };
        audit::append(&mut tx, &entry).await?;
        let groups = groups_of(&mut tx, &name).await?;
        commit(tx, doing).await?;
        Ok(Ok(Grant { name, groups }))
    }

    async fn add_certificate(&self, certificate: &CertificateRow, entry: &Entry) -> Result<()> {
        let doing = "add a certificate";
        let mut tx = self.begin(doing).await?;
        let added = sqlx::query(
            "INSERT INTO certificates (fingerprint, gateway, ours, not_after_ms, added_ms) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT DO NOTHING",
        )
        .bind(certificate.fingerprint.to_string())
        .bind(certificate.gateway.as_str())
        .bind(certificate.ours)
        .bind(int(certificate.not_after_ms))
        .bind(int(certificate.added_ms))
        .execute(&mut *tx)
        .await
        .map_err(broken(doing))?;
        if added.rows_affected() == 0 {
            return Err(StoreError::Conflict(format!("certificate {} is known already", certificate.fingerprint)));
        }
        audit::append(&mut tx, entry).await?;
        commit(tx, doing).await
    }

    async fn certificate(&self, fingerprint: Digest) -> Result<Option<CertificateRow>> {
        let row: Option<CertificateColumns> = sqlx::query_as(
            "SELECT fingerprint, gateway, ours, not_after_ms, added_ms, coalesce(certificates.revoked_ms, gateways.revoked_ms)
             FROM certificates JOIN gateways ON gateways.name = certificates.gateway WHERE fingerprint = ?",
        )
        .bind(fingerprint.to_string())
        .fetch_optional(&self.readers)
        .await
        .map_err(broken("read a certificate"))?;
        row.map(certificate).transpose()
    }

    async fn certificates(&self, gateway: &GatewayName) -> Result<Vec<CertificateRow>> {
        let rows: Vec<CertificateColumns> = sqlx::query_as(
            "SELECT fingerprint, gateway, ours, not_after_ms, added_ms, revoked_ms FROM certificates
             WHERE gateway = ? AND revoked_ms IS NULL ORDER BY added_ms DESC LIMIT 100",
        )
        .bind(gateway.as_str())
        .fetch_all(&self.readers)
        .await
        .map_err(broken("read the certificates"))?;
        rows.into_iter().map(certificate).collect()
    }

    async fn notice_boot(&self, gateway: &GatewayName, boot: &str, now_ms: u64) -> Result<bool> {
        let doing = "note a start";
        let row: Option<(String, i64)> = sqlx::query_as("SELECT seen, returns FROM boots WHERE gateway = ?")
            .bind(gateway.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(broken(doing))?;
        let mut boots = match row {
            Some((seen, returns)) => Boots { seen: read(doing, &seen)?, returns: uint(returns) },
            None => Boots::default(),
        };
        let before = boots.cloned();
        if !boots.notice(boot) {
            return Ok(false);
        }
        let noticed = boots.cloned() && !before;
        let mut tx = self.begin(doing).await?;
        sqlx::query(
            "INSERT INTO boots (gateway, seen, returns, noticed_ms) VALUES (?, ?, ?, ?)
             ON CONFLICT (gateway) DO UPDATE SET seen = excluded.seen, returns = excluded.returns,
             noticed_ms = coalesce(noticed_ms, excluded.noticed_ms)",
        )
        .bind(gateway.as_str())
        .bind(text(doing, &boots.seen)?)
        .bind(int(boots.returns))
        .bind(noticed.then_some(int(now_ms)))
        .execute(&mut *tx)
        .await
        .map_err(broken(doing))?;
        if noticed {
            let entry = Entry {
                at_ms: now_ms,
                who: "control-plane".to_owned(),
                did: "notice-clone".to_owned(),
                what: format!("gateway/{gateway}"),
                detail: json!({"boots": boots.seen}),
            };
            audit::append(&mut tx, &entry).await?;
        }
        commit(tx, doing).await?;
        Ok(noticed)
    }

    async fn cloned_ms(&self, gateway: &GatewayName) -> Result<Option<u64>> {
        let row: Option<(Option<i64>,)> = sqlx::query_as("SELECT noticed_ms FROM boots WHERE gateway = ?")
            .bind(gateway.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(broken("look for clones"))?;
        Ok(row.and_then(|(noticed_ms,)| noticed_ms).map(uint))
    }

    async fn audit(&self, after: u64, limit: u64) -> Result<Vec<AuditRow>> {
        let rows: Vec<(i64, String, String)> =
            sqlx::query_as("SELECT id, entry, hash FROM audit WHERE id > ? ORDER BY id LIMIT ?")
                .bind(int(after))
                .bind(int(limit))
                .fetch_all(&self.readers)
                .await
                .map_err(broken("read the audit log"))?;
        Ok(rows.into_iter().map(|(id, entry, hash)| AuditRow { id: uint(id), entry, hash }).collect())
    }
}

async fn revoke(store: &SqliteStore, what: &str, sql: &'static str, id: &str, entry: &Entry) -> Result<()> {
    let doing = "take back a right";
    let mut tx = store.begin(doing).await?;
    let done = sqlx::query(sql).bind(int(entry.at_ms)).bind(id).execute(&mut *tx).await.map_err(broken(doing))?;
    if done.rows_affected() == 0 {
        return Err(StoreError::Missing(format!("{what} `{id}`")));
    }
    audit::append(&mut tx, entry).await?;
    commit(tx, doing).await
}
