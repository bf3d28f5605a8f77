//! Brings the tables up to date: each file of `migrations/` once, in order, each in a transaction with its number.

use sqlx::SqlitePool;

use super::{Result, StoreError, broken};

const MIGRATIONS: &[&str] = &[
    include_str!("../../../migrations/0001_registry.sql"),
    include_str!("../../../migrations/0002_gate.sql"),
    include_str!("../../../migrations/0003_access.sql"),
];

pub(super) async fn run(pool: &SqlitePool) -> Result<()> {
    let doing = "bring up to date";
    let (done,): (i64,) = sqlx::query_as("PRAGMA user_version").fetch_one(pool).await.map_err(broken(doing))?;
    let done = usize::try_from(done).unwrap_or(0);
    if done > MIGRATIONS.len() {
        let why = "the database belongs to a newer control plane; use that one, or restore a backup of this one's time";
        return Err(StoreError::Conflict(why.to_owned()));
    }
    for (n, migration) in MIGRATIONS.iter().enumerate().skip(done) {
        let mut tx = pool.begin().await.map_err(broken(doing))?;
        sqlx::raw_sql(*migration).execute(&mut *tx).await.map_err(broken(doing))?;
        let number = sqlx::AssertSqlSafe(format!("PRAGMA user_version = {}", n + 1));
        sqlx::raw_sql(number).execute(&mut *tx).await.map_err(broken(doing))?;
        tx.commit().await.map_err(broken(doing))?;
    }
    Ok(())
}
