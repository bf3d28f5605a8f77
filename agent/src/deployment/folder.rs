//! What is remembered of deployments, on disk.
//!
//! # On disk
//! `STATE/deployment/state.json`: the [`State`]. `NUMBER-DIGEST.json`: a deployment as it was accepted, with its signatures; it is there
//! before the state names it, and goes after the state does not. Each file is written beside, synced, renamed, and the folder synced.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use sync_protocol::desired::DeploymentRef;
use sync_protocol::{DesiredAnswer, Digest, Release};

use super::state::State;
use crate::store;

const STATE: &str = "state.json";

/// The folder.
#[derive(Clone, Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// Opens or makes it, and removes what a crash left half done.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let made = store::make_folder(path);
        made.with_context(|| format!("cannot create `{}`", path.display()))?;
        let folder = Self(path.to_owned());
        for entry in folder.entries() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(".test-") {
                // What is left is only room.
                let _ = fs::remove_dir_all(entry.path());
            } else if name.ends_with(".new") {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(folder)
    }

    /// The folder itself.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// What was written down last. A file that makes no sense, which no crash leaves behind, is set aside: gateway.toml alone serves
    /// then, until the control plane or a person says what else should.
    pub(crate) fn load(&self) -> State {
        let path = self.0.join(STATE);
        let read = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return State::default(),
            Err(error) => Err(error.to_string()),
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| error.to_string()),
        };
        read.unwrap_or_else(|why| {
            let aside = path.with_extension("damaged");
            let kept = fs::rename(&path, &aside);
            tracing::error!(file = %path.display(), why, set_aside = kept.is_ok(), "what ran here is not known any more");
            State::default()
        })
    }

    /// Brings `state` to disk.
    ///
    /// # Errors
    /// When it is not there; then what was there still is.
    pub(crate) fn store(&self, state: &State) -> anyhow::Result<()> {
        self.write(STATE, &serde_json::to_vec_pretty(state)?)
    }

    /// Brings a deployment to disk, as it was accepted.
    ///
    /// # Errors
    /// When it is not there.
    pub(crate) fn store_answer(&self, deployment: DeploymentRef, answer: &DesiredAnswer) -> anyhow::Result<()> {
        self.write(&name_of(deployment), &serde_json::to_vec(answer)?)
    }

    /// A deployment as it was accepted.
    ///
    /// # Errors
    /// When it is not there, or makes no sense.
    pub(crate) fn load_answer(&self, deployment: DeploymentRef) -> anyhow::Result<DesiredAnswer> {
        let path = self.0.join(name_of(deployment));
        let bytes = fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("`{}` makes no sense", path.display()))
    }

    /// The blobs of all deployments but `wanted`.
    pub(crate) fn others(&self, wanted: &[DeploymentRef]) -> BTreeSet<Digest> {
        let read = |path: PathBuf| serde_json::from_slice::<DesiredAnswer>(&fs::read(path).ok()?).ok();
        let answers = self.beside(wanted).filter_map(read);
        let releases = answers.flat_map(|answer| answer.releases);
        releases.filter_map(|release| Some(release.unverified::<Release>().ok()?.blob.digest)).collect()
    }

    /// Removes all deployments but `wanted`.
    pub(crate) fn keep_only(&self, wanted: &[DeploymentRef]) {
        for path in self.beside(wanted) {
            // What is left is only room.
            let _ = fs::remove_file(path);
        }
    }

    /// The files of all deployments but `wanted`.
    fn beside(&self, wanted: &[DeploymentRef]) -> impl Iterator<Item = PathBuf> {
        let wanted: Vec<String> = wanted.iter().map(|deployment| name_of(*deployment)).collect();
        self.entries().map(|entry| entry.path()).filter(move |path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let is_deployment = name.starts_with(|c: char| c.is_ascii_digit()) && name.ends_with(".json");
            is_deployment && !wanted.iter().any(|wanted| *wanted == name)
        })
    }

    fn entries(&self) -> impl Iterator<Item = fs::DirEntry> {
        fs::read_dir(&self.0).into_iter().flatten().flatten()
    }

    fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let (path, beside) = (self.0.join(name), self.0.join(format!("{name}.new")));
        let write = || -> io::Result<()> {
            let mut file = File::create(&beside)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(&self.0)?.sync_all()
        };
        write().with_context(|| format!("cannot write `{}`", path.display()))
    }
}

fn name_of(deployment: DeploymentRef) -> String {
    format!("{}-{}.json", deployment.number, deployment.digest.hex())
}
