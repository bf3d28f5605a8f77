//! Gateways, groups, reports, shadows, logs.

use async_trait::async_trait;
use serde_json::Value;
use sqlx::{Sqlite, Transaction};
use sync_protocol::name::{GatewayName, GroupName};
use sync_protocol::report::{Progress, Report};

use super::{Page, Result, SqliteStore, StoreError, audit, broken, commit, int, parsed, read, text, uint};
use crate::audit::Entry;
use crate::limits;
use crate::store::{Fleet, GatewayRow, GroupRow, LogLine, PhaseRow, Reported, Shadow};

/// Groups come in one column, separated by commas, which no name has.
type GatewayColumns = (String, i64, Option<i64>, Option<String>);

fn gateway((name, created_ms, revoked_ms, groups): GatewayColumns) -> Result<GatewayRow> {
    let doing = "read a gateway";
    let groups = groups.unwrap_or_default();
    let groups = groups.split(',').filter(|group| !group.is_empty());
    Ok(GatewayRow {
        name: parsed(doing, GatewayName::parse(&name))?,
        groups: groups.map(|group| parsed(doing, GroupName::parse(group))).collect::<Result<_>>()?,
        created_ms: uint(created_ms),
        revoked_ms: revoked_ms.map(uint),
    })
}

async fn members(tx: &mut Transaction<'static, Sqlite>, group: &GroupName) -> Result<Vec<GatewayName>> {
    let doing = "read a group";
    let rows: Vec<(String,)> =
        sqlx::query_as("SELECT gateway FROM group_gateways WHERE group_name = ? ORDER BY gateway")
            .bind(group.as_str())
            .fetch_all(&mut **tx)
            .await
            .map_err(broken(doing))?;
    rows.iter().map(|(name,)| parsed(doing, GatewayName::parse(name))).collect()
}

pub(super) async fn join(
    tx: &mut Transaction<'static, Sqlite>,
    group: &GroupName,
    gateway: &GatewayName,
) -> Result<()> {
    let doing = "fill a group";
    sqlx::query("INSERT OR IGNORE INTO group_gateways (group_name, gateway) VALUES (?, ?)")
        .bind(group.as_str())
        .bind(gateway.as_str())
        .execute(&mut **tx)
        .await
        .map_err(broken(doing))?;
    let (groups,): (i64,) = sqlx::query_as("SELECT count(*) FROM group_gateways WHERE gateway = ?")
        .bind(gateway.as_str())
        .fetch_one(&mut **tx)
        .await
        .map_err(broken(doing))?;
    if usize::try_from(groups).is_ok_and(|groups| groups > limits::GROUPS_OF_GATEWAY_MAX) {
        let max = limits::GROUPS_OF_GATEWAY_MAX;
        return Err(StoreError::Conflict(format!("gateway `{gateway}` would be in more than {max} groups")));
    }
    Ok(())
}

pub(super) async fn make_group(tx: &mut Transaction<'static, Sqlite>, group: &GroupName, now_ms: u64) -> Result<()> {
    sqlx::query("INSERT INTO groups (name, changed_ms) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET changed_ms = ?2")
        .bind(group.as_str())
        .bind(int(now_ms))
        .execute(&mut **tx)
        .await
        .map_err(broken("make a group"))?;
    Ok(())
}

#[async_trait]
impl Fleet for SqliteStore {
    async fn add_gateway(&self, name: &GatewayName, groups: &[GroupName], now_ms: u64, entry: &Entry) -> Result<()> {
        let doing = "add a gateway";
        let mut tx = self.begin(doing).await?;
        let there: Option<(i64,)> = sqlx::query_as("SELECT 1 FROM gateways WHERE name = ?")
            .bind(name.as_str())
            .fetch_optional(&mut *tx)
            .await
            .map_err(broken(doing))?;
        if there.is_some() {
            return Err(StoreError::Conflict(format!("there is a gateway `{name}` already")));
        }
        sqlx::query("INSERT INTO gateways (name, created_ms) VALUES (?, ?)")
            .bind(name.as_str())
            .bind(int(now_ms))
            .execute(&mut *tx)
            .await
            .map_err(broken(doing))?;
        for group in groups {
            make_group(&mut tx, group, now_ms).await?;
            join(&mut tx, group, name).await?;
        }
        audit::append(&mut tx, entry).await?;
        commit(tx, doing).await
    }

    async fn gateway(&self, name: &GatewayName) -> Result<Option<GatewayRow>> {
        let row: Option<GatewayColumns> = sqlx::query_as(
            "SELECT name, created_ms, revoked_ms,
                    (SELECT group_concat(group_name) FROM group_gateways WHERE gateway = name)
             FROM gateways WHERE name = ?",
        )
        .bind(name.as_str())
        .fetch_optional(&self.readers)
        .await
        .map_err(broken("read a gateway"))?;
        row.map(gateway).transpose()
    }

    async fn gateways(&self, page: &Page) -> Result<Vec<GatewayRow>> {
        let rows: Vec<GatewayColumns> = sqlx::query_as(
            "SELECT name, created_ms, revoked_ms,
                    (SELECT group_concat(group_name) FROM group_gateways WHERE gateway = name)
             FROM gateways WHERE name > ? ORDER BY name LIMIT ?",
        )
        .bind(&page.after)
        .bind(int(page.limit))
        .fetch_all(&self.readers)
        .await
        .map_err(broken("list gateways"))?;
        rows.into_iter().map(gateway).collect()
    }

    async fn count_gateways(&self, since_ms: u64) -> Result<(u64, u64)> {
        let (all, heard): (i64, i64) = sqlx::query_as(
            "SELECT count(*), count(received_ms >= ? OR NULL) FROM gateways
             LEFT JOIN reports ON gateway = name WHERE revoked_ms IS NULL",
        )
        .bind(int(since_ms))
        .fetch_one(&self.readers)
        .await
        .map_err(broken("count gateways"))?;
        Ok((uint(all), uint(heard)))
    }

    async fn revoke_gateway(&self, name: &GatewayName, now_ms: u64, entry: &Entry) -> Result<()> {
        let doing = "revoke a gateway";
        let mut tx = self.begin(doing).await?;
        let done = sqlx::query("UPDATE gateways SET revoked_ms = coalesce(revoked_ms, ?) WHERE name = ?")
            .bind(int(now_ms))
            .bind(name.as_str())
            .execute(&mut *tx)
            .await
            .map_err(broken(doing))?;
        if done.rows_affected() == 0 {
            return Err(StoreError::Missing(format!("gateway `{name}`")));
        }
        audit::append(&mut tx, entry).await?;
        commit(tx, doing).await
    }

    async fn set_group(
        &self,
        name: &GroupName,
        gateways: &[GatewayName],
        now_ms: u64,
        entry: &Entry,
    ) -> Result<Vec<GatewayName>> {
        let doing = "set a group";
        let mut tx = self.begin(doing).await?;
        let before = members(&mut tx, name).await?;
        make_group(&mut tx, name, now_ms).await?;
        sqlx::query("DELETE FROM group_gateways WHERE group_name = ?")
            .bind(name.as_str())
            .execute(&mut *tx)
            .await
            .map_err(broken(doing))?;
        for gateway in gateways {
            let there: Option<(i64,)> = sqlx::query_as("SELECT 1 FROM gateways WHERE name = ?")
                .bind(gateway.as_str())
                .fetch_optional(&mut *tx)
                .await
                .map_err(broken(doing))?;
            if there.is_none() {
                return Err(StoreError::Missing(format!("gateway `{gateway}`")));
            }
            join(&mut tx, name, gateway).await?;
        }
        audit::append(&mut tx, entry).await?;
        commit(tx, doing).await?;
        Ok(before)
    }

    async fn remove_group(&self, name: &GroupName, entry: &Entry) -> Result<Vec<GatewayName>> {
        let doing = "remove a group";
        let mut tx = self.begin(doing).await?;
        let before = members(&mut tx, name).await?;
        let done = sqlx::query("DELETE FROM groups WHERE name = ?")
            .bind(name.as_str())
            .execute(&mut *tx)
            .await
            .map_err(broken(doing))?;
        if done.rows_affected() == 0 {
            return Err(StoreError::Missing(format!("group `{name}`")));
        }
        audit::append(&mut tx, entry).await?;
        commit(tx, doing).await?;
        Ok(before)
    }

    async fn group(&self, name: &GroupName) -> Result<Option<Vec<GatewayName>>> {
        let doing = "read a group";
        let mut tx = self.readers.begin().await.map_err(broken(doing))?;
        let there: Option<(i64,)> = sqlx::query_as("SELECT 1 FROM groups WHERE name = ?")
            .bind(name.as_str())
            .fetch_optional(&mut *tx)
            .await
            .map_err(broken(doing))?;
        if there.is_none() {
            return Ok(None);
        }
        members(&mut tx, name).await.map(Some)
    }

    async fn groups(&self, page: &Page) -> Result<Vec<GroupRow>> {
        let doing = "list groups";
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "SELECT name, (SELECT count(*) FROM group_gateways WHERE group_name = name)
             FROM groups WHERE name > ? ORDER BY name LIMIT ?",
        )
        .bind(&page.after)
        .bind(int(page.limit))
        .fetch_all(&self.readers)
        .await
        .map_err(broken(doing))?;
        let row = |(name, gateways): (String, i64)| {
            Ok(GroupRow { name: parsed(doing, GroupName::parse(&name))?, gateways: uint(gateways) })
        };
        rows.into_iter().map(row).collect()
    }

    async fn report(&self, gateway: &GatewayName, report: &Report, now_ms: u64) -> Result<Option<Reported>> {
        let doing = "keep a report";
        let mut tx = self.begin(doing).await?;
        let before = newest(&mut tx, gateway).await?;
        let lines = &report.logs;
        let kept = Report { logs: Vec::new(), ..report.clone() };
        sqlx::query(
            "INSERT INTO reports (gateway, report, version, received_ms) VALUES (?, ?, 1, ?)
             ON CONFLICT DO UPDATE
             SET report = excluded.report, version = version + 1, received_ms = excluded.received_ms",
        )
        .bind(gateway.as_str())
        .bind(text(doing, &kept)?)
        .bind(int(now_ms))
        .execute(&mut *tx)
        .await
        .map_err(broken(doing))?;
        let phase = |report: &Report| report.progress.as_ref().map(|p| (p.deployment, p.phase, p.kept, p.since_ms));
        let changed = before.as_ref().and_then(|before| phase(&before.report)) != phase(report);
        if let Some(progress) = report.progress.as_ref().filter(|_| changed) {
            sqlx::query("INSERT INTO phases (gateway, progress, received_ms) VALUES (?, ?, ?)")
                .bind(gateway.as_str())
                .bind(text(doing, progress)?)
                .bind(int(now_ms))
                .execute(&mut *tx)
                .await
                .map_err(broken(doing))?;
            sqlx::query(
                "DELETE FROM phases WHERE gateway = ?1 AND id <=
                 (SELECT id FROM phases WHERE gateway = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
            )
            .bind(gateway.as_str())
            .bind(int(limits::PHASES_MAX))
            .execute(&mut *tx)
            .await
            .map_err(broken(doing))?;
        }
        if !lines.is_empty() {
            keep_lines(&mut tx, gateway, lines, now_ms).await?;
        }
        commit(tx, doing).await?;
        Ok(before)
    }

    async fn reported(&self, gateway: &GatewayName) -> Result<Option<Reported>> {
        let mut tx = self.readers.begin().await.map_err(broken("read a report"))?;
        newest(&mut tx, gateway).await
    }

    async fn phases(&self, gateway: &GatewayName, limit: u64) -> Result<Vec<PhaseRow>> {
        let doing = "read phases";
        let rows: Vec<(String, i64)> =
            sqlx::query_as("SELECT progress, received_ms FROM phases WHERE gateway = ? ORDER BY id DESC LIMIT ?")
                .bind(gateway.as_str())
                .bind(int(limit))
                .fetch_all(&self.readers)
                .await
                .map_err(broken(doing))?;
        let row = |(progress, received_ms): (String, i64)| {
            Ok(PhaseRow { progress: read::<Progress>(doing, &progress)?, received_ms: uint(received_ms) })
        };
        rows.into_iter().map(row).collect()
    }

    async fn log_lines(&self, gateway: &GatewayName, after: u64, limit: u64) -> Result<Vec<LogLine>> {
        let doing = "read log lines";
        let rows: Vec<(i64, String, i64)> = sqlx::query_as(
            "SELECT id, line, received_ms FROM log_lines WHERE gateway = ? AND id > ? ORDER BY id LIMIT ?",
        )
        .bind(gateway.as_str())
        .bind(int(after))
        .bind(int(limit))
        .fetch_all(&self.readers)
        .await
        .map_err(broken(doing))?;
        let row = |(id, line, received_ms): (i64, String, i64)| {
            Ok(LogLine { id: uint(id), line: read(doing, &line)?, received_ms: uint(received_ms) })
        };
        rows.into_iter().map(row).collect()
    }

    async fn shadow(&self, gateway: &GatewayName) -> Result<Shadow> {
        let doing = "read a shadow";
        let row: Option<(String, i64)> = sqlx::query_as("SELECT desired, version FROM shadows WHERE gateway = ?")
            .bind(gateway.as_str())
            .fetch_optional(&self.readers)
            .await
            .map_err(broken(doing))?;
        match row {
            Some((desired, version)) => Ok(Shadow { desired: read(doing, &desired)?, version: uint(version) }),
            None => Ok(Shadow { desired: Value::Object(serde_json::Map::new()), version: 0 }),
        }
    }

    async fn set_shadow(
        &self,
        gateway: &GatewayName,
        desired: &Value,
        version: u64,
        now_ms: u64,
        entry: &Entry,
    ) -> Result<u64> {
        let doing = "set a shadow";
        let mut tx = self.begin(doing).await?;
        let there: Option<(i64,)> = sqlx::query_as("SELECT version FROM shadows WHERE gateway = ?")
            .bind(gateway.as_str())
            .fetch_optional(&mut *tx)
            .await
            .map_err(broken(doing))?;
        let newest = there.map_or(0, |(version,)| uint(version));
        if newest != version {
            return Err(StoreError::Conflict(format!(
                "the shadow of `{gateway}` is at version {newest}, not {version}: somebody else has changed it"
            )));
        }
        sqlx::query(
            "INSERT INTO shadows (gateway, desired, version, changed_ms) VALUES (?, ?, ?, ?)
             ON CONFLICT DO UPDATE
             SET desired = excluded.desired, version = excluded.version, changed_ms = excluded.changed_ms",
        )
        .bind(gateway.as_str())
        .bind(text(doing, desired)?)
        .bind(int(newest + 1))
        .bind(int(now_ms))
        .execute(&mut *tx)
        .await
        .map_err(broken(doing))?;
        audit::append(&mut tx, entry).await?;
        commit(tx, doing).await?;
        Ok(newest + 1)
    }

    async fn expire(&self, now_ms: u64) -> Result<()> {
        let doing = "let go of what is old";
        let mut tx = self.begin(doing).await?;
        sqlx::query("DELETE FROM requests WHERE until_ms <= ?")
            .bind(int(now_ms))
            .execute(&mut *tx)
            .await
            .map_err(broken(doing))?;
        sqlx::query("DELETE FROM log_lines WHERE received_ms < ?")
            .bind(int(now_ms.saturating_sub(limits::LOGS_KEPT_MS)))
            .execute(&mut *tx)
            .await
            .map_err(broken(doing))?;
        commit(tx, doing).await
    }
}

async fn newest(tx: &mut Transaction<'static, Sqlite>, gateway: &GatewayName) -> Result<Option<Reported>> {
    let doing = "read a report";
    let row: Option<(String, i64, i64)> =
        sqlx::query_as("SELECT report, version, received_ms FROM reports WHERE gateway = ?")
            .bind(gateway.as_str())
            .fetch_optional(&mut **tx)
            .await
            .map_err(broken(doing))?;
    let Some((report, version, received_ms)) = row else { return Ok(None) };
    Ok(Some(Reported { report: read(doing, &report)?, version: uint(version), received_ms: uint(received_ms) }))
}

async fn keep_lines(
    tx: &mut Transaction<'static, Sqlite>,
    gateway: &GatewayName,
    lines: &[Value],
    now_ms: u64,
) -> Result<()> {
    let doing = "keep log lines";
    for line in lines {
        sqlx::query("INSERT INTO log_lines (gateway, line, received_ms) VALUES (?, ?, ?)")
            .bind(gateway.as_str())
            .bind(text(doing, line)?)
            .bind(int(now_ms))
            .execute(&mut **tx)
            .await
            .map_err(broken(doing))?;
    }
    sqlx::query(
        "DELETE FROM log_lines WHERE gateway = ?1 AND id <=
         (SELECT id FROM log_lines WHERE gateway = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
    )
    .bind(gateway.as_str())
    .bind(int(limits::LOG_LINES_MAX))
    .execute(&mut **tx)
    .await
    .map_err(broken(doing))?;
    Ok(())
}
