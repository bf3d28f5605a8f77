//! The deployment file: all that a gateway without a network needs, on a stick.
//!
//! A `.tar` of `deployment.json`, which is what the control plane would answer, and `blobs/` by digest.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use sync_protocol::{Blob, DesiredAnswer, Envelope, Release};

use crate::cli::remote::Remote;

/// Writes it; the blobs come from the control plane.
pub(super) async fn write(
    remote: &Remote,
    file: &Path,
    deployment: &Envelope,
    releases: &[Envelope],
) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let roots = remote.list("roots").await?;
    let answer =
        DesiredAnswer { roots, desired: None, deployment: Some(deployment.clone()), releases: releases.to_vec() };
    let mut blobs: BTreeMap<String, (Blob, String)> = BTreeMap::new();
    for envelope in releases {
        let release: Release = envelope.unverified()?;
        let native = release.native.iter().map(|native| native.blob);
        for blob in [release.blob].into_iter().chain(native) {
            blobs.insert(blob.digest.hex(), (blob, release.to_string()));
        }
    }
    for (hex, (blob, name)) in &blobs {
        remote.download(blob, &folder.path().join(hex), name).await?;
    }
    let written = || -> std::io::Result<()> {
        let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let unfinished = tempfile::Builder::new().prefix(".deploy-").tempfile_in(parent)?;
        let mut archive = tar::Builder::new(unfinished);
        let mut add = |name: &str, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(0);
            archive.append_data(&mut header, name, content)
        };
        add("deployment.json", &serde_json::to_vec_pretty(&answer)?)?;
        for hex in blobs.keys() {
            add(&format!("blobs/{hex}"), &std::fs::read(folder.path().join(hex))?)?;
        }
        let unfinished = archive.into_inner()?;
        unfinished.as_file().sync_all()?;
        unfinished.persist(file).map_err(|error| error.error)?;
        Ok(())
    };
    written().with_context(|| format!("cannot write `{}`", file.display()))
}
