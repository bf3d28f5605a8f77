//! Makes a deployment ready without touching what runs, and without touching the world: what its tests send goes nowhere, what they
//! remember is forgotten.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use sync_client::BlobStore;
use sync_protocol::{Blob, Digest, Kind, VerifiedDeployment};

use super::agents::Agents;
use super::book::bundles_of;
use super::merge::{self, Deployed};
use super::native::Native;
use crate::capability::Capability;
use crate::clock::{Clock, aside};
use crate::config::{Config, ModelConfig, Problem};
use crate::function::FunctionSpec;
use crate::inference::{Models, Prepared};
use crate::limits::Limits;
use crate::name::{FunctionName, ModelName};
use crate::runtime::Runtime;
use crate::store::{self, Resolved};
use crate::throwaway::Throwaway;

/// Where the bytes of deployments are, and how they become bundles.
#[derive(Clone, Debug)]
pub(crate) struct Shelf {
    pub(crate) blobs: BlobStore,
    /// Where bundles are unpacked.
    pub(crate) bundles: PathBuf,
    pub(crate) limits: Arc<Limits>,
}

/// What of the agent staging works with.
#[derive(Clone, Debug)]
pub(crate) struct Bench {
    pub(crate) shelf: Shelf,
    pub(crate) runtime: Runtime,
    pub(crate) native: Native,
    pub(crate) agents: Agents,
    pub(crate) models: Arc<Models>,
    pub(crate) clock: Clock,
    /// For what is only needed meanwhile.
    pub(crate) scratch: PathBuf,
}

/// The functions that run, by name.
pub(crate) type Running = BTreeMap<FunctionName, Arc<FunctionSpec>>;

/// A deployment beside one gateway.toml, as the agent can apply it.
#[derive(Clone, Debug)]
pub(crate) struct Fit {
    pub(crate) deployed: Arc<Deployed>,
    pub(crate) config: Config,
    pub(crate) functions: Vec<Resolved>,
    /// What gateway.toml has of its own under the same name.
    pub(crate) hidden: Vec<Problem>,
}

impl Fit {
    /// Puts `deployed` beside `base`.
    ///
    /// # Errors
    /// With all that is wrong with the two together.
    pub(crate) fn new(deployed: Arc<Deployed>, base: &Config, limits: &Limits) -> anyhow::Result<Self> {
        let (config, hidden) = deployed.beside(base, limits)?;
        let functions = store::resolve_all(&config, limits)?;
        Ok(Self { deployed, config, functions, hidden })
    }

    /// Digests of the components that it runs.
    pub(crate) fn code(&self) -> Vec<Arc<str>> {
        self.functions.iter().map(|function| Arc::clone(&function.spec.digest)).collect()
    }

    /// The functions that are new or other than `running`, or that use a model which is.
    pub(crate) fn changed<'a>(
        &'a self,
        running: &'a Running,
        models: &'a [ModelConfig],
    ) -> impl Iterator<Item = &'a FunctionSpec> {
        self.functions.iter().map(|function| &function.spec).filter(move |spec| {
            running.get(&spec.name).is_none_or(|old| **old != **spec)
                || spec.capabilities.0.iter().any(|granted| match granted {
                    Capability::Model(name) => self.model(name) != models.iter().find(|model| model.name == *name),
                    _ => false,
                })
        })
    }

    fn model(&self, name: &ModelName) -> Option<&ModelConfig> {
        self.config.model.iter().find(|model| model.name == *name)
    }
}

impl Shelf {
    /// Puts a deployment that was staged before beside `base`.
    ///
    /// # Errors
    /// With all that is wrong with the two together.
    pub(crate) fn fit(&self, verified: VerifiedDeployment, base: &Config) -> anyhow::Result<Fit> {
        for bundle in bundles_of(&verified).filter(|bundle| !self.is_unpacked(bundle)) {
            self.unpack(&bundle)?;
        }
        Fit::new(Arc::new(Deployed::new(verified, &self.bundles)?), base, &self.limits)
    }

    /// Whether `blob` is ready to be read.
    pub(crate) fn is_unpacked(&self, blob: &Blob) -> bool {
        merge::folder(&self.bundles, blob).is_dir()
    }

    /// Removes what was unpacked of a blob.
    pub(crate) fn remove(&self, blob: &Digest) {
        // What is left is only room.
        let _ = std::fs::remove_dir_all(self.bundles.join(blob.hex()));
    }

    fn unpack(&self, blob: &Blob) -> anyhow::Result<PathBuf> {
        let Some(file) = self.blobs.get(&blob.digest) else { bail!("blob {} is not here", blob.digest) };
        let folder = store::unpack(&file, &self.bundles, &self.limits)
            .with_context(|| format!("cannot unpack blob {}", blob.digest))?;
        if folder.file_name() != Some(blob.digest.hex().as_ref()) {
            self.blobs.remove(&blob.digest);
            // What is left is only room.
            let _ = std::fs::remove_dir_all(folder);
            bail!("blob {} was changed on this gateway's disk", blob.digest);
        }
        Ok(folder)
    }
}

impl Bench {
    /// Verifies the bytes, compiles and tests what is new to `running` and the models of `base` or of the deployment beside it.
    ///
    /// # Errors
    /// With why it must not run here.
    pub(crate) async fn stage(
        &self,
        verified: VerifiedDeployment,
        base: &Config,
        running: &Running,
        models: &[ModelConfig],
    ) -> anyhow::Result<Fit> {
        // 0. What it is to run on.
        self.agents.stage(&verified, &self.shelf.blobs).await?;
        // 1. Bytes: unpacked from blobs that have just been read and come to their digests.
        let (shelf, base) = (self.shelf.clone(), base.clone());
        let fit = aside(move || {
            bundles_of(&verified).try_for_each(|bundle| shelf.unpack(&bundle).map(drop))?;
            shelf.fit(verified, &base)
        });
        let fit = fit.await.context("a thread of the agent ended")??;
        // 2. What is in the bundles is what was signed for.
        let mut releases = BTreeMap::new();
        for (artifact, release) in
            fit.deployed.verified.artifacts().filter(|(artifact, _)| artifact.kind == Kind::Function)
        {
            let found = fit.functions.iter().find(|function| function.spec.name.as_str() == artifact.name.as_str());
            // One that gateway.toml has of its own is another one.
            let is_local = |function: &&Resolved| !function.spec.root.starts_with(&self.shelf.bundles);
            let Some(function) = found.filter(|function| !is_local(function)) else { continue };
            let manifest = &function.bundle.manifest;
            if manifest.name.as_str() != artifact.name.as_str() || manifest.version != artifact.version {
                bail!("the bundle of {artifact} calls itself {} {}", manifest.name, manifest.version);
            }
            releases.insert(function.spec.name.clone(), release);
        }
        // 3. Code: its publisher's, or compiled, into the cache, from which it is mapped when it comes to serve.
        let changed: Vec<FunctionSpec> = fit.changed(running, models).cloned().collect();
        for spec in &changed {
            if let Some(release) = releases.get(&spec.name) {
                self.native.adopt(release, spec, &self.runtime, &self.shelf.blobs).await;
            }
            self.runtime.load(Arc::new(spec.clone())).await?;
        }
        // 4. Models: loaded, and past their own tests.
        let mut prepared = Vec::new();
        for model in &fit.config.model {
            prepared.extend(self.models.prepare(model).await?);
        }
        // 5. The bundles' tests, with the models that they will meet.
        for spec in changed {
            self.test(&fit, spec, &prepared).await?;
        }
        Ok(fit)
    }

    async fn test(&self, fit: &Fit, spec: FunctionSpec, prepared: &[Prepared]) -> anyhow::Result<()> {
        let resolved = fit.functions.iter().find(|function| function.spec.name == spec.name);
        let tests = resolved.map(|resolved| resolved.bundle.manifest.test.clone()).unwrap_or_default();
        if tests.is_empty() {
            return Ok(());
        }
        let (name, version) = (spec.name.clone(), Arc::clone(&spec.version));
        let models = Arc::new(self.models.beside(prepared));
        let (limits, clock) = (Arc::clone(&self.shelf.limits), self.clock.clone());
        let function = Throwaway::beside(spec, &self.runtime, models, limits, clock, &self.scratch).await?;
        for test in &tests {
            if let Err(why) = function.test(test).await? {
                let event = test.event.strip_prefix(function.root()).unwrap_or(&test.event).display();
                bail!("function `{name}` {version} fails its test `{event}`: {}", why.replace('\n', ", "));
            }
        }
        Ok(())
    }
}
