//! The audit log: each line chained to the one before it.

use sqlx::{Sqlite, Transaction};

use super::{Result, broken, text};
use crate::audit::{Entry, hash};

/// Writes one line within the transaction that does what it tells of.
pub(super) async fn append(tx: &mut Transaction<'static, Sqlite>, entry: &Entry) -> Result<()> {
    let doing = "write the audit log";
    let last: Option<(String,)> = sqlx::query_as("SELECT hash FROM audit ORDER BY id DESC LIMIT 1")
        .fetch_optional(&mut **tx)
        .await
        .map_err(broken(doing))?;
    let entry = text(doing, entry)?;
    let hash = hash(&last.map_or_else(String::new, |last| last.0), &entry);
    sqlx::query("INSERT INTO audit (entry, hash) VALUES (?, ?)")
        .bind(entry)
        .bind(hash)
        .execute(&mut **tx)
        .await
        .map_err(broken(doing))?;
    Ok(())
}
