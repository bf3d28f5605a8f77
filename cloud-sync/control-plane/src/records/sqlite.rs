//! Records in an SQLite file of their own, so that they hold up nothing else. One task writes; batches that wait together share one commit.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};
use sync_protocol::name::{GatewayName, StreamName};
use tokio::sync::{mpsc, oneshot};

use super::{Batch, Data, Incoming, Kept, Query, Records, Retention};
use crate::clock::Clock;
use crate::limits;
use crate::store::{Result, StoreError};

/// Records of one statement: enough that its cost is theirs, few enough for SQLite's bound on parameters.
const ROWS: usize = 400;
const JSON: i64 = 1;
const TIME_UNKNOWN: i64 = 2;
/// Records that go in one transaction of the retention, so that those that arrive meanwhile do not wait long.
const EXPIRED_AT_ONCE: i64 = 20_000;

type Reply = oneshot::Sender<Result<()>>;

struct Job {
    gateway: GatewayName,
    batch: Batch,
    reply: Reply,
}

/// The records of one control plane.
#[derive(Debug)]
pub struct SqliteRecords {
    writer: SqlitePool,
    readers: SqlitePool,
    jobs: mpsc::Sender<Job>,
}

impl SqliteRecords {
    /// Opens the file, makes it when it is missing, and begins to write.
    ///
    /// # Errors
    /// When it cannot be opened or is damaged.
    pub async fn open(path: &Path, clock: Clock) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // NORMAL would give away the last commits with the power, which gateways have let go of.
            .synchronous(SqliteSynchronous::Full)
            .pragma("cache_size", "-65536")
            .busy_timeout(Duration::from_secs(10));
        let writer = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await;
        let writer = writer.map_err(broken("open the records"))?;
        sqlx::raw_sql(include_str!("schema.sql")).execute(&writer).await.map_err(broken("open the records"))?;
        let readers = SqlitePoolOptions::new().max_connections(limits::READERS).connect_with(options.read_only(true));
        let readers = readers.await.map_err(broken("open the records"))?;
        let (jobs, waiting) = mpsc::channel(limits::BATCHES_WAITING_MAX);
        tokio::spawn(write(writer.clone(), waiting, clock));
        Ok(Self { writer, readers, jobs })
    }
}

/// Writes what waits, all of it in one transaction, until nobody can send any more.
async fn write(pool: SqlitePool, mut waiting: mpsc::Receiver<Job>, clock: Clock) {
    let mut streams = HashMap::new();
    let mut jobs = Vec::new();
    while waiting.recv_many(&mut jobs, limits::BATCHES_TOGETHER_MAX).await > 0 {
        let done = write_together(&pool, &jobs, &mut streams, clock.now_ms()).await;
        if done.is_err() {
            // What was rolled back may be in there.
            streams.clear();
        }
        let why = done.err().map(|error| error.to_string());
        for job in jobs.drain(..) {
            // Who asked may have gone: then the gateway sends again.
            let _ = job.reply.send(match &why {
                None => Ok(()),
                Some(why) => Err(broken("keep records")(std::io::Error::other(why.clone()))),
            });
        }
    }
}

/// Newest epoch of each stream: its row and number.
type Streams = HashMap<(GatewayName, StreamName), (i64, i64)>;

async fn write_together(pool: &SqlitePool, jobs: &[Job], streams: &mut Streams, now_ms: u64) -> Result<()> {
    let mut tx = pool.begin().await.map_err(broken("keep records"))?;
    let last: (i64,) = sqlx::query_as("SELECT coalesce(max(id), 0) FROM records")
        .fetch_one(&mut *tx)
        .await
        .map_err(broken("keep records"))?;
    let mut writing = Writing { last: last.0, now_ms };
    for job in jobs {
        writing.keep(&mut tx, job, streams).await?;
    }
    tx.commit().await.map_err(broken("keep records"))
}

/// One transaction.
struct Writing {
    /// The newest arrival so far.
    last: i64,
    now_ms: u64,
}

impl Writing {
    async fn keep(&mut self, db: &mut SqliteConnection, job: &Job, streams: &mut Streams) -> Result<()> {
        let key = (job.gateway.clone(), job.batch.stream.clone());
        let (mut row, mut epoch) = match streams.get(&key) {
            Some(known) => *known,
            None => newest(db, &key).await?,
        };
        for records in job.batch.records.chunks(ROWS) {
            let before = self.last;
            if self.insert(db, row, records).await? < records.len() && differs(db, row, records, before).await? {
                tracing::warn!(gateway = %key.0, stream = %key.1, "known sequences with other content: a journal was replaced");
                let undone = sqlx::query("DELETE FROM records WHERE id > ?").bind(before).execute(&mut *db).await;
                undone.map_err(broken("keep records"))?;
                epoch += 1;
                row = add_stream(db, &key, epoch).await?;
                self.insert(db, row, records).await?;
            }
        }
        if streams.len() >= limits::STREAMS_CACHED_MAX {
            streams.clear();
        }
        streams.insert(key, (row, epoch));
        Ok(())
    }

    /// Adds those that are not there; answers how many.
    async fn insert(&mut self, db: &mut SqliteConnection, stream: i64, records: &[Incoming]) -> Result<usize> {
        let mut sql =
            QueryBuilder::<Sqlite>::new("INSERT INTO records (stream, sequence, time_ms, received_ms, kind, data) ");
        sql.push_values(records, |mut row, record| {
            let json = if matches!(record.data, Data::Json(_)) { JSON } else { 0 };
            let unknown = if record.time_ms.is_none() { TIME_UNKNOWN } else { 0 };
            row.push_bind(stream)
                .push_bind(int(record.sequence))
                .push_bind(int(record.time_ms.unwrap_or(self.now_ms)))
                .push_bind(int(self.now_ms))
                .push_bind(json | unknown)
                .push_bind(record.data.as_bytes().to_vec());
        });
        sql.push(" ON CONFLICT DO NOTHING");
        let done = sql.build().execute(db).await.map_err(broken("keep records"))?;
        if done.rows_affected() > 0 {
            self.last = done.last_insert_rowid();
        }
        Ok(usize::try_from(done.rows_affected()).unwrap_or(usize::MAX))
    }
}

async fn newest(db: &mut SqliteConnection, key: &(GatewayName, StreamName)) -> Result<(i64, i64)> {
    let found: Option<(i64, i64)> =
        sqlx::query_as("SELECT id, epoch FROM streams WHERE gateway = ? AND stream = ? ORDER BY epoch DESC LIMIT 1")
            .bind(key.0.as_str())
            .bind(key.1.as_str())
            .fetch_optional(&mut *db)
            .await
            .map_err(broken("look for a stream"))?;
    match found {
        Some(found) => Ok(found),
        None => Ok((add_stream(db, key, 1).await?, 1)),
    }
}

async fn add_stream(db: &mut SqliteConnection, key: &(GatewayName, StreamName), epoch: i64) -> Result<i64> {
    let added = sqlx::query("INSERT INTO streams (gateway, stream, epoch) VALUES (?, ?, ?)")
        .bind(key.0.as_str())
        .bind(key.1.as_str())
        .bind(epoch)
        .execute(db)
        .await
        .map_err(broken("add a stream"))?;
    Ok(added.last_insert_rowid())
}

/// Whether one of `records` was there up to arrival `before`, under its sequence, and is another one.
async fn differs(db: &mut SqliteConnection, stream: i64, records: &[Incoming], before: i64) -> Result<bool> {
    let mut sql = QueryBuilder::<Sqlite>::new("SELECT sequence, time_ms, kind, data FROM records WHERE stream = ");
    sql.push_bind(stream).push(" AND sequence IN (");
    let mut list = sql.separated(", ");
    records.iter().for_each(|record| {
        list.push_bind(int(record.sequence));
    });
    sql.push(") AND id <= ").push_bind(before);
    let rows: Vec<(i64, i64, i64, Vec<u8>)> =
        sql.build_query_as().fetch_all(db).await.map_err(broken("compare records"))?;
    let there: HashMap<i64, (i64, i64, Vec<u8>)> =
        rows.into_iter().map(|(sequence, time_ms, kind, data)| (sequence, (time_ms, kind, data))).collect();
    Ok(records.iter().any(|record| {
        there.get(&int(record.sequence)).is_some_and(|(time_ms, kind, data)| {
            // A time that was unknown may have become known since.
            let timed = kind & TIME_UNKNOWN == 0;
            let moved = record
                .time_ms
                .is_some_and(|made_ms| timed && made_ms.abs_diff(uint(*time_ms)) > limits::SAME_RECORD_MS_MAX);
            moved || data != record.data.as_bytes()
        })
    }))
}

type Columns = (i64, String, String, i64, i64, i64, i64, i64, Vec<u8>);

fn kept(columns: Columns) -> Result<Kept> {
    let (id, gateway, stream, epoch, sequence, time_ms, received_ms, kind, data) = columns;
    let doing = "read records";
    let data = match kind & JSON {
        0 => Data::Bytes(data),
        _ => Data::Json(String::from_utf8(data).map_err(broken(doing))?),
    };
    Ok(Kept {
        id: uint(id),
        gateway: GatewayName::parse(&gateway).map_err(broken(doing))?,
        stream: StreamName::parse(&stream).map_err(broken(doing))?,
        epoch: uint(epoch),
        sequence: uint(sequence),
        time_ms: uint(time_ms),
        time_unknown: kind & TIME_UNKNOWN != 0,
        received_ms: uint(received_ms),
        data,
    })
}

#[async_trait]
impl Records for SqliteRecords {
    async fn keep(&self, gateway: &GatewayName, batch: Batch) -> Result<()> {
        let stopped = |_| broken("keep records")(std::io::Error::other("nobody writes any more"));
        let (reply, kept) = oneshot::channel();
        let job = Job { gateway: gateway.clone(), batch, reply };
        self.jobs.send(job).await.map_err(|_| stopped(()))?;
        kept.await.map_err(|_| stopped(()))?
    }

    async fn page(&self, query: &Query) -> Result<Vec<Kept>> {
        let doing = "read records";
        let mut sql = QueryBuilder::<Sqlite>::new("SELECT id FROM streams WHERE TRUE");
        if let Some(gateway) = &query.gateway {
            sql.push(" AND gateway = ").push_bind(gateway.as_str().to_owned());
        }
        if let Some(stream) = &query.stream {
            sql.push(" AND stream = ").push_bind(stream.as_str().to_owned());
        }
        let mut streams: Vec<i64> = Vec::new();
        if query.gateway.is_some() || query.stream.is_some() {
            streams = sql.build_query_scalar().fetch_all(&self.readers).await.map_err(broken(doing))?;
            if streams.is_empty() {
                return Ok(Vec::new());
            }
        }
        let mut sql = QueryBuilder::<Sqlite>::new(
            "SELECT records.id, gateway, streams.stream, epoch, sequence, time_ms, received_ms, kind, data
             FROM records CROSS JOIN streams WHERE streams.id = records.stream AND records.id > ",
        );
        sql.push_bind(int(query.after));
        if let [one] = streams[..] {
            sql.push(" AND records.stream = ").push_bind(one);
        } else if !streams.is_empty() {
            // Their numbers come from the database itself.
            let list: Vec<String> = streams.iter().map(i64::to_string).collect();
            sql.push(format!(" AND +records.stream IN ({})", list.join(",")));
        }
        if let Some(from_ms) = query.from_ms {
            sql.push(" AND time_ms >= ").push_bind(int(from_ms));
        }
        if let Some(to_ms) = query.to_ms {
            sql.push(" AND time_ms < ").push_bind(int(to_ms));
        }
        sql.push(" ORDER BY records.id LIMIT ").push_bind(int(query.limit));
        let rows: Vec<Columns> = sql.build_query_as().fetch_all(&self.readers).await.map_err(broken(doing))?;
        rows.into_iter().map(kept).collect()
    }

    async fn expire(&self, retention: Retention, now_ms: u64) -> Result<u64> {
        let doing = "let go of records";
        let mut gone = 0;
        loop {
            let over = self.bytes().await? > retention.bytes_max;
            let oldest = int(now_ms.saturating_sub(retention.age_ms_max));
            // Arrivals are in the order of their ids, so the oldest are the first.
            let done = sqlx::query(
                "DELETE FROM records WHERE id IN (SELECT id FROM records ORDER BY id LIMIT ?) AND (? OR received_ms < ?)",
            )
            .bind(EXPIRED_AT_ONCE)
            .bind(over)
            .bind(oldest)
            .execute(&self.writer)
            .await
            .map_err(broken(doing))?;
            gone += done.rows_affected();
            if done.rows_affected() == 0 {
                return Ok(gone);
            }
        }
    }

    async fn copy_to(&self, path: &Path) -> Result<()> {
        let text = path.to_str().ok_or_else(|| StoreError::Conflict("the path is not UTF-8".to_owned()))?;
        sqlx::query("VACUUM INTO ?").bind(text).execute(&self.readers).await.map_err(broken("back up the records"))?;
        Ok(())
    }

    async fn bytes(&self) -> Result<u64> {
        let (pages, free, size): (i64, i64, i64) = sqlx::query_as(
            "SELECT page_count, freelist_count, page_size
             FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()",
        )
        .fetch_one(&self.readers)
        .await
        .map_err(broken("measure the records"))?;
        Ok(uint(pages.saturating_sub(free).saturating_mul(size)))
    }
}

fn broken<E: std::error::Error + Send + Sync + 'static>(doing: &'static str) -> impl Fn(E) -> StoreError {
    move |source| StoreError::Broken { doing, source: Box::new(source) }
}

fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn uint(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
