//! The rows: what they are and what can be done with them. Each method is one transaction, on disk when it returns, its line of the audit log with it.
//!
//! Behind traits, one a subject, because a fleet that one machine cannot carry needs another database. `sqlite/` is the one that is there.

mod access;
mod deployments;
mod fleet;
mod registry;
pub mod sqlite;

pub use self::access::{Access, AuditRow, CertificateRow, ClaimRow, Grant, NotGranted, TokenRow, Wish};
pub use self::deployments::{Deployed, Deployments, Signed, TargetState};
pub use self::fleet::{Fleet, GatewayRow, GroupRow, LogLine, PhaseRow, Reported, Shadow};
pub use self::registry::{AliasRow, Published, Registry, TagRow};

/// Why a row was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It is not here.
    #[error("there is no {0}")]
    Missing(String),
    /// It contradicts what is here.
    #[error("{0}")]
    Conflict(String),
    /// The database failed.
    #[error("database: {doing}: {source}")]
    Broken {
        /// What it was about.
        doing: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What comes of it.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// One page of a list: at most `limit` items behind `after`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The last item of the page before; empty: from the start.
    pub after: String,
    /// How many at most.
    pub limit: u64,
}

/// All of it.
pub trait Store: Registry + Deployments + Fleet + Access {}
impl<T: Registry + Deployments + Fleet + Access> Store for T {}
