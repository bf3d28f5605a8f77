//! Native code that publishers compiled for this gateway's processor: fetched beside the bundle, and taken instead of compiling it.
//!
//! It is machine code, which no sandbox holds. So it is taken only by a digest that is in the release which its publishers signed, compared
//! with the bytes while they are taken. Without it nothing is lost but time: what has the bundle can compile.

use std::fs::File;
use std::sync::Arc;

use sync_client::BlobStore;
use sync_protocol::release::NativeCode;
use sync_protocol::{Blob, Release, VerifiedDeployment};

use super::book::blobs_of;
use crate::clock::aside;
use crate::function::FunctionSpec;
use crate::runtime::{Fitting, Runtime};

/// What of releases' native code this gateway takes. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Native(Option<Arc<Fitting>>);

impl Native {
    /// What fits `runtime`; nothing, unless native code is `wanted`.
    pub(super) fn new(runtime: &Runtime, wanted: bool) -> Self {
        Self(wanted.then(|| Arc::new(runtime.fitting())))
    }

    /// The bytes of all native code that fits.
    pub(super) fn blobs(&self, verified: &VerifiedDeployment) -> Vec<Blob> {
        verified.releases().iter().filter_map(|release| Some(self.of(release)?.blob)).collect()
    }

    /// All bytes of a deployment that this gateway has use for.
    pub(super) fn and_bundles(&self, verified: &VerifiedDeployment) -> Vec<Blob> {
        blobs_of(verified).chain(self.blobs(verified)).collect()
    }

    fn of<'a>(&self, release: &'a Release) -> Option<&'a NativeCode> {
        let Fitting { target, compatibility } = &**self.0.as_ref()?;
        release.native.iter().find(|code| code.target == *target && code.compatibility == *compatibility)
    }

    /// Has `runtime` take the code of `release`, which `spec` is. What does not work out is told, and left to the compiler.
    pub(super) async fn adopt(&self, release: &Release, spec: &FunctionSpec, runtime: &Runtime, blobs: &BlobStore) {
        let Some(fitting) = &self.0 else { return };
        // What was compiled here is never replaced.
        if release.native.is_empty() || runtime.has_code(&spec.digest) {
            return;
        }
        let (function, version) = (&spec.name, &spec.version);
        let Some(code) = self.of(release) else {
            let is_for_here = release.native.iter().any(|code| code.target == fitting.target);
            let why = if is_for_here {
                "it was compiled by another version or for other settings"
            } else {
                "it is for other processors"
            };
            tracing::info!(%function, %version, target = fitting.target, why, "native code of its publisher does not fit, compiling here");
            return;
        };
        let Some(file) = blobs.get(&code.blob.digest) else {
            tracing::warn!(%function, %version, digest = %code.blob.digest, "native code of its publisher is not here, compiling here");
            return;
        };
        let (runtime, component, signed) = (runtime.clone(), Arc::clone(&spec.digest), code.blob.digest.hex());
        let adopted = aside(move || runtime.adopt(&component, File::open(file)?, &signed)).await;
        match adopted.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            Ok(()) => {
                tracing::info!(%function, %version, target = fitting.target, "native code of its publisher taken")
            }
            Err(error) => {
                tracing::warn!(%function, %version, %error, "native code of its publisher refused, compiling here")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use sync_protocol::{Digest, Kind};

    use super::*;

    fn code(target: &str, compatibility: &str, digest: &[u8]) -> NativeCode {
        let blob = Blob { digest: Digest::of(digest), bytes: 1 };
        NativeCode { target: target.to_owned(), compatibility: compatibility.to_owned(), blob }
    }

    fn release(native: Vec<NativeCode>) -> Release {
        Release {
            kind: Kind::Function,
            name: crate::name::ArtifactName::parse("hall").unwrap(),
            version: semver::Version::new(1, 0, 0),
            blob: Blob { digest: Digest::of(b"bundle"), bytes: 6 },
            capabilities: sync_protocol::capability::Capabilities::default(),
            models: Vec::new(),
            minimum: None,
            native,
            published_ms: 0,
        }
    }

    #[test]
    fn only_what_fits_processor_and_engine_is_fetched() {
        let fitting = Fitting { target: "aarch64-unknown-linux-gnu".to_owned(), compatibility: "mine".to_owned() };
        let native = Native(Some(Arc::new(fitting)));
        let mine = code("aarch64-unknown-linux-gnu", "mine", b"mine");
        let others =
            [code("x86_64-unknown-linux-gnu", "mine", b"pc"), code("aarch64-unknown-linux-gnu", "older", b"old")];
        let all = release([others.to_vec(), vec![mine.clone()]].concat());
        assert_eq!(native.of(&all), Some(&mine));
        assert_eq!(native.of(&release(others.to_vec())), None);
        assert_eq!(Native(None).of(&all), None, "it is not wanted");
    }
}
