//! The on-line keys, with which desired documents are signed. They can choose among what operators signed, nothing more.

use std::io;
use std::sync::{PoisonError, RwLock};

use sync_protocol::{Document, Envelope, KeyId, PublicKey, Role, Root, SecretKey};

use crate::folder::{Folder, write_secret};

/// All keys in the folder. The one that is used is the first that the newest root lists, so that a key is replaced by a new root that lists the
/// next one.
#[derive(Debug)]
pub struct OnlineKeys {
    folder: Folder,
    keys: RwLock<Vec<SecretKey>>,
}

impl OnlineKeys {
    /// Reads those that are there.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn open(folder: &Folder) -> io::Result<Self> {
        let mut files: Vec<_> = std::fs::read_dir(folder.keys())?.collect::<Result<_, _>>()?;
        files.sort_by_key(std::fs::DirEntry::file_name);
        let mut keys = Vec::new();
        for file in files {
            let name = file.file_name();
            if name.to_str().is_some_and(|name| name.starts_with("online-") && name.ends_with(".pem")) {
                let text = std::fs::read_to_string(file.path())?;
                let wrong = |error| io::Error::other(format!("{}: {error}", file.path().display()));
                keys.push(SecretKey::from_pem(&text).map_err(wrong)?);
            }
        }
        Ok(Self { folder: folder.clone(), keys: RwLock::new(keys) })
    }

    /// Makes one more and keeps it. It signs once a root lists it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(&self) -> io::Result<PublicKey> {
        let key = SecretKey::generate().map_err(io::Error::other)?;
        let public = key.public();
        let path = self.folder.keys().join(format!("online-{}.pem", public.id()));
        write_secret(&path, key.to_pem().map_err(io::Error::other)?.as_bytes())?;
        self.keys.write().unwrap_or_else(PoisonError::into_inner).push(key);
        Ok(public)
    }

    /// All of them.
    pub fn public(&self) -> Vec<PublicKey> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).iter().map(SecretKey::public).collect()
    }

    /// The one that `root` lists for the on-line role, alone enough to sign for it.
    pub fn usable(&self, root: &Root) -> Option<KeyId> {
        let role = root.roles.get(&Role::Online).filter(|role| role.threshold <= 1)?;
        self.public().iter().map(PublicKey::id).find(|id| role.keys.contains_key(id))
    }

    /// Signs `document` with `key`; `None` when it is not here.
    pub fn sign<T: Document>(&self, key: KeyId, document: &T) -> Option<Envelope> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let key = keys.iter().find(|held| held.public().id() == key)?;
        Envelope::sign(document, &[key]).ok()
    }
}
