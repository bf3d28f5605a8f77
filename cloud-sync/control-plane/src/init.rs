//! Makes a new control plane: its folder, authority, own certificate, on-line key, and the first token.

use std::io;

use serde_json::json;
use sync_protocol::{Digest, PublicKey};

use crate::audit::Entry;
use crate::auth::Role;
use crate::ca::{Authority, CaError};
use crate::clock::Clock;
use crate::folder::Folder;
use crate::online::OnlineKeys;
use crate::store::sqlite::SqliteStore;
use crate::store::{Access as _, StoreError};
use crate::tls::ServerCertificate;
use crate::token;

/// How it is to be.
#[derive(Clone, Debug)]
pub struct InitOptions {
    /// Host names and addresses by which gateways and people reach it.
    pub names: Vec<String>,
    /// Whose the first token is.
    pub admin: String,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Initialized {
    /// The authority that clients have to trust, in PEM.
    pub ca_pem: String,
    /// Its digest, as in claim tokens.
    pub ca: Digest,
    /// What the first root must list for the on-line role.
    pub online: PublicKey,
    /// The first admin's token. It is nowhere else.
    pub token: String,
}

/// Why it was not made.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// There is one already.
    #[error("there is a control plane in {0} already")]
    Exists(String),
    /// No name was given.
    #[error("a control plane needs at least one host name or address by which it is reached")]
    NoName,
    /// The folder.
    #[error("folder {0}: {1}")]
    Folder(String, #[source] io::Error),
    /// The authority or the certificate.
    #[error(transparent)]
    Authority(#[from] CaError),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No random bytes.
    #[error("the system has no random bytes: {0}")]
    Random(String),
}

/// Makes one in `folder`, which must not hold one yet.
///
/// # Errors
/// When there is one, a name is none, or something cannot be written.
pub async fn init(folder: &Folder, options: &InitOptions, clock: &Clock) -> Result<Initialized, InitError> {
    let shown = folder.path().display().to_string();
    if folder.database().exists() {
        return Err(InitError::Exists(shown));
    }
    if options.names.is_empty() {
        return Err(InitError::NoName);
    }
    let failed = |error| InitError::Folder(shown.clone(), error);
    folder.create().map_err(failed)?;
    let now_ms = clock.now_ms();
    let authority = Authority::create(&folder.keys(), now_ms)?;
    ServerCertificate::create(&authority, folder, &options.names, now_ms)?;
    let online = OnlineKeys::open(folder).map_err(failed)?.create().map_err(failed)?;
    let (row, token) =
        token::make(&options.admin, Role::Admin, None, now_ms).map_err(|error| InitError::Random(error.to_string()))?;
    // The database comes last: with it, there is a control plane.
    let store = SqliteStore::open(&folder.database()).await?;
    let entry = Entry {
        at_ms: now_ms,
        who: "control-plane".to_owned(),
        did: "init".to_owned(),
        what: format!("token/{}", row.id),
        detail: json!({"name": row.name, "role": row.role, "ca": authority.digest(), "online": online}),
    };
    store.add_token(&row, &entry).await?;
    store.close().await;
    Ok(Initialized { ca_pem: authority.pem().to_owned(), ca: authority.digest(), online, token })
}
