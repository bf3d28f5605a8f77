//! SQLite: one file, one writer, a few readers. WAL with `synchronous = FULL`: a commit is on disk when it returns, and readers never wait.

mod access;
mod audit;
mod deployments;
mod fleet;
mod migrate;
mod registry;

use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Sqlite, Transaction};
use sync_protocol::{Kind, Target};

use super::{Page, Result, StoreError};
use crate::limits;

/// The database of one control plane.
#[derive(Clone, Debug)]
pub struct SqliteStore {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl SqliteStore {
    /// Opens the file, makes it when it is missing, and brings its tables up to date.
    ///
    /// # Errors
    /// When it cannot be opened, is damaged, or belongs to a newer control plane.
    pub async fn open(path: &Path) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        let writer = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await;
        let writer = writer.map_err(broken("open"))?;
        migrate::run(&writer).await?;
        let readers = SqlitePoolOptions::new().max_connections(limits::READERS).connect_with(options.read_only(true));
        Ok(Self { writer, readers: readers.await.map_err(broken("open"))? })
    }

    /// Writes a copy of all rows to `path`, as they are at one moment; others go on meanwhile.
    ///
    /// # Errors
    /// When it cannot be written, or is there already.
    pub async fn copy_to(&self, path: &Path) -> Result<()> {
        let text = path.to_str().ok_or_else(|| StoreError::Conflict("the path is not UTF-8".to_owned()))?;
        sqlx::query("VACUUM INTO ?").bind(text).execute(&self.writer).await.map_err(broken("back up"))?;
        Ok(())
    }

    /// Forgets which desired documents were signed, so that each is signed anew: others may have been since these rows were copied.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn forget_signed(&self) -> Result<()> {
        let doing = "forget what was signed";
        sqlx::query("DELETE FROM desired").execute(&self.writer).await.map_err(broken(doing))?;
        Ok(())
    }

    /// Asks the database whether it is whole.
    ///
    /// # Errors
    /// With what is damaged.
    pub async fn check(&self) -> Result<()> {
        let said: (String,) =
            sqlx::query_as("PRAGMA integrity_check(1)").fetch_one(&self.readers).await.map_err(broken("check"))?;
        if said.0 == "ok" { Ok(()) } else { Err(StoreError::Conflict(format!("the database is damaged: {}", said.0))) }
    }

    /// Ends all connections, with everything in the one file.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    async fn begin(&self, doing: &'static str) -> Result<Transaction<'static, Sqlite>> {
        self.writer.begin().await.map_err(broken(doing))
    }
}

async fn commit(tx: Transaction<'static, Sqlite>, doing: &'static str) -> Result<()> {
    tx.commit().await.map_err(broken(doing))
}

fn broken<E: std::error::Error + Send + Sync + 'static>(doing: &'static str) -> impl Fn(E) -> StoreError {
    move |source| StoreError::Broken { doing, source: Box::new(source) }
}

/// SQLite's integers are signed; what is above their range is as good as the largest.
fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn uint(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

fn text<T: Serialize>(doing: &'static str, value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(broken(doing))
}

fn read<T: DeserializeOwned>(doing: &'static str, text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(broken(doing))
}

/// A name or digest that was checked before it was written.
fn parsed<T, E: std::error::Error + Send + Sync + 'static>(doing: &'static str, value: Result<T, E>) -> Result<T> {
    value.map_err(broken(doing))
}

fn kind_of(doing: &'static str, word: &str) -> Result<Kind> {
    read(doing, &format!("\"{word}\""))
}

fn target_words(target: &Target) -> (&'static str, &str) {
    match target {
        Target::Group(name) => ("group", name.as_str()),
        Target::Gateway(name) => ("gateway", name.as_str()),
    }
}
