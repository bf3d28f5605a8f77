//! Secret keys in files, and signing with them.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use sync_protocol::{Document, Envelope, PublicKey, Role, SecretKey};

use super::Failure;
use crate::config::{Access, Environment};

/// With which keys something is signed.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct KeyArgs {
    /// A secret key to sign with, once per key; `ROLE.pem` in the key folder unless said
    #[arg(long = "key", value_name = "FILE", global = true)]
    files: Vec<PathBuf>,
}

impl KeyArgs {
    /// The keys that were named, else that of `role` in the key folder.
    pub(super) fn load(&self, role: Role) -> anyhow::Result<Vec<SecretKey>> {
        if !self.files.is_empty() {
            return self.files.iter().map(|file| read_secret(file)).collect();
        }
        let file = key_folder()?.join(format!("{role}.pem"));
        if !file.exists() {
            let hint = "`tidegate keygen` makes one, and `--key FILE` names one that is elsewhere";
            return Err(Failure::wrong(format!("there is no {role} key `{}`", file.display()), hint).into());
        }
        Ok(vec![read_secret(&file)?])
    }
}

/// Signs `document` with all of `keys`.
pub(super) fn sign<T: Document>(document: &T, keys: &[SecretKey]) -> anyhow::Result<Envelope> {
    let keys: Vec<&SecretKey> = keys.iter().collect();
    Envelope::sign(document, &keys).map_err(|error| {
        let hint = "signed documents hold whole numbers only: write a fraction as text, or in a smaller unit";
        Failure::wrong(format!("this cannot be signed: {error}"), hint).into()
    })
}

/// Where keys are kept unless said.
pub(super) fn key_folder() -> anyhow::Result<PathBuf> {
    Ok(Access::load(&Environment::of_process())?.keys)
}

/// Reads a role.
pub(super) fn role(text: &str) -> Result<Role, String> {
    let known = || format!("`{text}` is no role: it must be `root`, `publisher`, `operator` or `online`");
    Role::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(known)
}

/// Reads a secret key.
pub(super) fn read_secret(file: &Path) -> anyhow::Result<SecretKey> {
    let text = read(file)?;
    SecretKey::from_pem(&text).map_err(|error| {
        let hint = "name the `.pem` file that `tidegate keygen` wrote";
        Failure::wrong(format!("`{}` cannot be used: {error}", file.display()), hint).into()
    })
}

/// Reads a public key, or takes it from a secret one.
pub(super) fn read_public(file: &Path) -> anyhow::Result<PublicKey> {
    let text = read(file)?;
    if text.contains("PRIVATE KEY") {
        return Ok(read_secret(file)?.public());
    }
    PublicKey::try_from(text.trim().to_owned()).map_err(|error| {
        let hint = "name the `.pub` file that `tidegate keygen` wrote";
        Failure::wrong(format!("`{}` cannot be used: {error}", file.display()), hint).into()
    })
}

/// Writes a new key pair as `NAME.pem`, which only its owner may read, and `NAME.pub`. One that is there stays.
pub(super) fn write_pair(folder: &Path, name: &str) -> anyhow::Result<(PathBuf, SecretKey)> {
    let file = folder.join(format!("{name}.pem"));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("cannot make `{}`", folder.display()))?;
    let key = SecretKey::generate()?;
    let mut options = OpenOptions::new();
    let mut opened = match options.write(true).create_new(true).mode(0o600).open(&file) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let hint = "keep it, or move it away first: what it has signed can be signed by no other key";
            return Err(Failure::wrong(format!("there is a key `{}` already", file.display()), hint).into());
        }
        opened => opened.with_context(|| format!("cannot write `{}`", file.display()))?,
    };
    opened.write_all(key.to_pem()?.as_bytes()).and_then(|()| opened.sync_all())?;
    write_public(folder, name, &key)?;
    Ok((file, key))
}

/// The key pair of that name that is there, or a new one.
pub(super) fn pair(folder: &Path, name: &str) -> anyhow::Result<(PathBuf, SecretKey)> {
    let file = folder.join(format!("{name}.pem"));
    if !file.exists() {
        return write_pair(folder, name);
    }
    let key = read_secret(&file)?;
    write_public(folder, name, &key)?;
    Ok((file, key))
}

fn write_public(folder: &Path, name: &str, key: &SecretKey) -> anyhow::Result<()> {
    let file = folder.join(format!("{name}.pub"));
    std::fs::write(&file, format!("{}\n", String::from(key.public())))
        .with_context(|| format!("cannot write `{}`", file.display()))
}

/// Reads a signed document from a file, whatever kind it is.
pub(super) fn read_envelope(file: &Path) -> anyhow::Result<Envelope> {
    Envelope::parse(read(file)?.as_bytes()).map_err(|error| {
        let hint = "name a file that `tidegate keygen root` or `tidegate deploy --out` wrote";
        Failure::wrong(format!("`{}` is no signed document: {error}", file.display()), hint).into()
    })
}

/// Writes a signed document.
pub(super) fn write_envelope(file: &Path, envelope: &Envelope) -> anyhow::Result<()> {
    std::fs::write(file, format!("{}\n", envelope.to_pretty()))
        .with_context(|| format!("cannot write `{}`", file.display()))
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).map_err(|error| {
        let what = format!("cannot read `{}`: {error}", file.display());
        Failure::wrong(what, "check the path and who may read it").into()
    })
}
