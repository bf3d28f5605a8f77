//! The composition root: all parts of one control plane.

use std::fs::File;
use std::io;
use std::sync::Arc;

use tokio::sync::{Mutex, RwLock, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::audit::Entry;
use crate::auth::Caller;
use crate::blobs::{Blobs, FolderBlobs};
use crate::ca::{Authority, CaError};
use crate::clock::Clock;
use crate::folder::Folder;
use crate::limits;
use crate::metrics::Metrics;
use crate::online::OnlineKeys;
use crate::records::{Records, SqliteRecords};
use crate::store::sqlite::SqliteStore;
use crate::store::{Store, StoreError};
use crate::wakes::Wakes;

/// Why a control plane did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is none in the folder.
    #[error("there is no control plane in {0}")]
    Missing(String),
    /// Another process has it open.
    #[error("another control plane uses {0}")]
    Used(String),
    /// Files that cannot be read or written.
    #[error("{doing}: {source}")]
    Io {
        /// What it was about.
        doing: String,
        /// Why.
        source: io::Error,
    },
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The authority.
    #[error(transparent)]
    Authority(#[from] CaError),
}

impl OpenError {
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

/// One control plane, open.
#[derive(Debug)]
pub struct ControlPlane {
    /// Where it all is.
    pub folder: Folder,
    /// The rows.
    pub store: Arc<dyn Store>,
    /// The bytes.
    pub blobs: Arc<dyn Blobs>,
    /// What gateways delivered.
    pub records: Arc<dyn Records>,
    /// Signs the certificates of gateways, and our own.
    pub authority: Arc<Authority>,
    /// The keys that sign desired documents.
    pub online: OnlineKeys,
    /// The time.
    pub clock: Clock,
    /// Figures.
    pub metrics: Metrics,
    /// Who waits for news.
    pub wakes: Wakes,
    /// Ends questions that are held, once the control plane is to stop.
    pub closing: CancellationToken,
    /// Held while a desired document is signed.
    pub(crate) signing: Mutex<()>,
    /// Read while something begins to refer to a blob, written while one is removed.
    pub(crate) referring: RwLock<()>,
    /// Batches of records that are taken in at once.
    pub(crate) batches: Arc<Semaphore>,
    _lock: File,
}

impl ControlPlane {
    /// Opens the one in `folder`, which `init` made.
    ///
    /// # Errors
    /// When there is none, another process uses it, or it cannot be read.
    pub async fn open(folder: &Folder, clock: Clock) -> Result<Arc<Self>, OpenError> {
        let shown = folder.path().display().to_string();
        if !folder.database().exists() {
            return Err(OpenError::Missing(shown));
        }
        let lock = folder.lock().map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => OpenError::Used(shown.clone()),
            _ => OpenError::Io { doing: format!("lock {shown}"), source: error },
        })?;
        let store = SqliteStore::open(&folder.database()).await?;
        let blobs = FolderBlobs::open(&folder.blobs()).map_err(OpenError::io("open the blobs"))?;
        let records = SqliteRecords::open(&folder.records(), clock.clone()).await?;
        Ok(Arc::new(Self {
            records: Arc::new(records),
            authority: Arc::new(Authority::open(&folder.keys())?),
            batches: Arc::new(Semaphore::new(limits::BATCHES_WAITING_MAX)),
            folder: folder.clone(),
            store: Arc::new(store),
            blobs: Arc::new(blobs),
            online: OnlineKeys::open(folder).map_err(OpenError::io("read the on-line keys"))?,
            clock,
            metrics: Metrics::default(),
            wakes: Wakes::default(),
            closing: CancellationToken::new(),
            signing: Mutex::default(),
            referring: RwLock::default(),
            _lock: lock,
        }))
    }

    /// A line for the audit log: `caller` did `did` to `what`.
    pub fn entry(&self, caller: &Caller, did: &str, what: impl Into<String>, detail: serde_json::Value) -> Entry {
        Entry { at_ms: self.clock.now_ms(), who: caller.name.clone(), did: did.to_owned(), what: what.into(), detail }
    }
}
