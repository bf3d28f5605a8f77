//! The gateway's side of the control plane: identity, session, downloads, trust on disk, reports and records.
//!
//! It hands over only what [`sync_protocol::trust`] has verified, and never installs anything. Time comes in as [`Now`]; where files are
//! kept, as a folder.
//!
//! # Promises
//! - Each file is there whole or not at all, whenever the power goes: written beside, synced, renamed, the folder synced.
//! - The identity outlives everything else: its folder is written when it is made and when it is renewed, and at no other time.
//! - What is trusted is on disk before it is handed over.
//! - A blob has its final name only once all of its bytes are there, synced, and come to its digest.
//!
//! # On disk
//! | folder | holds |
//! |---|---|
//! | `identity/` | `key.pem` (0600), `certificate.pem`, `ca.pem`, `roots.json`, `identity.json` |
//! | `trust/` | `trust.json`: what was accepted last, so that nothing older is |
//! | `blobs/` | bundles, models, layers, runtimes by their SHA-256; `.part` is on its way |

pub mod answer;
mod back_off;
pub mod blobs;
pub mod cloud;
mod download;
mod error;
mod files;
pub mod follower;
pub mod identity;
pub mod limits;
pub mod provision;
mod report;
pub mod session;
mod signing;
mod tls;
mod transport;
pub mod trust_store;

use std::sync::Arc;

pub use self::answer::Verdict;
pub use self::blobs::{BlobError, BlobStore};
pub use self::cloud::{Cloud, Link};
pub use self::follower::{Follower, OpenError, SyncConfig};
pub use self::identity::{Identity, IdentityError};
pub use self::limits::Limits;
pub use self::session::{Answer, RenewError, Session, SessionConfig, SessionError};
pub use self::trust_store::{Accepted, TrustError, TrustStore};

/// Unix time in milliseconds; `None` while the machine's clock was never set.
pub type Now = Arc<dyn Fn() -> Option<u64> + Send + Sync>;
