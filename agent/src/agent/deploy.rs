//! gateway.toml and what is deployed beside it: how the two come to serve together, and what the gateway tells of it.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use futures_util::future::BoxFuture;
use sync_protocol::Kind;
use sync_protocol::name::ArtifactName;
use sync_protocol::report::{Report, Running};

use super::Parts;
use crate::api::AgentHandle;
use crate::api::status::Reloaded;
use crate::config::{Config, ModelConfig};
use crate::deployment::stage::{Fit, Running as Specs};
use crate::deployment::{Deployed, Host, Opened};
use crate::metrics;
use crate::store;

/// What the configuration that serves is made of.
#[derive(Clone, Debug, Default)]
pub(super) struct Layers {
    /// gateway.toml.
    pub(super) base: Arc<Config>,
    /// What stands beside it.
    pub(super) deployed: Option<Arc<Deployed>>,
}

impl Parts {
    pub(super) fn layers(&self) -> Layers {
        self.layers.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Has what `change` makes of the layers serve. On an error what served goes on as it was.
    pub(super) async fn reconfigure(
        &self,
        change: impl FnOnce(&mut Layers),
    ) -> anyhow::Result<(Reloaded, Option<Fit>)> {
        let _one_at_a_time = self.reconfiguring.lock().await;
        let mut layers = self.layers();
        change(&mut layers);
        let Layers { base, deployed } = &layers;
        let fit = deployed.as_ref().map(|deployed| Fit::new(Arc::clone(deployed), base, &self.limits)).transpose()?;
        let told = match &fit {
            Some(fit) => self.apply(fit.config.clone(), fit.functions.clone()).await?,
            None => self.apply(Config::clone(base), store::resolve_all(base, &self.limits)?).await?,
        };
        store::layers::clean(&layers.base.gateway.state_dir);
        *self.layers.write().unwrap_or_else(PoisonError::into_inner) = layers;
        Ok((told, fit))
    }

    /// Has what was deployed before the start serve, or what was kept before that, or gateway.toml alone.
    pub(super) async fn begin(&self, base: Config, opened: &mut Option<Opened>) -> anyhow::Result<()> {
        self.layers.write().unwrap_or_else(PoisonError::into_inner).base = Arc::new(base.clone());
        let Some(opened) = opened else { return self.reconfigure(|_| {}).await.map(drop) };
        let mut fit = opened.fit(&base);
        loop {
            self.keep_compiled(opened.spare_code(&base));
            let deployed = fit.as_ref().map(|fit| Arc::clone(&fit.deployed));
            match (self.reconfigure(|layers| layers.deployed = deployed).await, fit) {
                (Ok(_), fit) => {
                    opened.serves(fit.as_ref());
                    return Ok(());
                }
                (Err(error), Some(unfit)) => fit = opened.unfit(&unfit, &error).then(|| opened.fit(&base)).flatten(),
                (Err(error), None) => return Err(error),
            }
        }
    }

    fn figures(&self) -> BTreeMap<String, u64> {
        let status = self.status();
        let mut figures = BTreeMap::from([("uptime_ms".to_owned(), status.uptime_ms)]);
        figures.extend(metrics::resident_bytes().map(|bytes| ("memory_bytes".to_owned(), bytes)));
        let disk = rustix::fs::statvfs(&self.layers().base.gateway.state_dir).ok();
        figures.extend(disk.map(|disk| ("disk_free_bytes".to_owned(), disk.f_bavail.saturating_mul(disk.f_frsize))));
        for stream in status.streams {
            figures.insert(format!("stream.{}.records", stream.name), stream.records);
            figures.insert(format!("stream.{}.bytes", stream.name), stream.bytes);
        }
        for function in status.functions {
            let runs: u64 = function.numbers.invocations.values().sum();
            let succeeded = function.numbers.invocations.get("succeeded").copied().unwrap_or(0);
            figures.insert(format!("function.{}.runs", function.name), runs);
            figures.insert(format!("function.{}.failed", function.name), runs - succeeded);
            figures.insert(format!("function.{}.dead_letters", function.name), function.numbers.dead_letters);
            figures
                .extend(function.numbers.handler.p99_us.map(|us| (format!("function.{}.p99_us", function.name), us)));
        }
        figures
    }
}

impl Host for Parts {
    fn base(&self) -> Arc<Config> {
        self.layers().base
    }

    fn running(&self) -> Specs {
        self.dispatcher.functions().into_iter().map(|function| (function.spec.name.clone(), function.spec)).collect()
    }

    fn models(&self) -> Vec<ModelConfig> {
        self.layout.current().config.model.clone()
    }

    fn running_now(&self) -> Vec<Running> {
        let Layers { base, deployed } = self.layers();
        let running = |kind, name: &str, version: String, local| {
            ArtifactName::parse(name).ok().map(|name| Running { kind, name, version, local })
        };
        let functions = self.dispatcher.functions().into_iter().filter_map(|function| {
            let local = base.function.iter().any(|local| local.name == function.spec.name);
            running(Kind::Function, function.spec.name.as_str(), function.spec.version.to_string(), local)
        });
        let models = self.models.status().into_iter().filter_map(|model| {
            let local = base.model.iter().any(|local| local.name.as_str() == &*model.name);
            let artifacts = deployed.iter().flat_map(|deployed| &deployed.verified.deployment().artifacts);
            let mut of_name =
                artifacts.filter(|artifact| artifact.kind == Kind::Model && artifact.name.as_str() == &*model.name);
            let version = of_name.next().filter(|_| !local).map(|artifact| artifact.version.to_string());
            // A file that somebody put there has no version but its bytes.
            running(Kind::Model, &model.name, version.unwrap_or_else(|| model.digest[..12].to_owned()), local)
        });
        let artifacts = deployed.iter().flat_map(|deployed| &deployed.verified.deployment().artifacts);
        let layers = artifacts.filter(|artifact| artifact.kind == Kind::Layer);
        let layers = layers.filter_map(|a| running(Kind::Layer, a.name.as_str(), a.version.to_string(), false));
        let agent = self.boot_version.as_ref().and_then(|version| {
            let artifacts = deployed.iter().flat_map(|deployed| &deployed.verified.deployment().artifacts);
            let mut agents = artifacts.filter(|artifact| artifact.kind == Kind::Agent && artifact.version == *version);
            agents.next().and_then(|a| running(Kind::Agent, a.name.as_str(), a.version.to_string(), false))
        });
        functions.chain(models).chain(layers).chain(agent).collect()
    }

    fn unhealthy(&self) -> Vec<String> {
        self.unhealthy_brokers()
    }

    fn report(&self) -> Report {
        Report {
            boot: String::new(),
            sequence: 0,
            time_ms: None,
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            target: crate::runtime::target(),
            compiles: crate::runtime::HAS_COMPILER,
            root: 0,
            desired_sequence: 0,
            progress: None,
            active: None,
            running: Vec::new(),
            unhealthy: self.health().reasons,
            refused: String::new(),
            figures: self.figures(),
            last_errors: crate::deployment::last_errors(&self.logs),
            shadow: serde_json::Value::Null,
            logs: Vec::new(),
        }
    }

    fn serve(&self, deployed: Option<Arc<Deployed>>) -> BoxFuture<'_, anyhow::Result<Option<Fit>>> {
        Box::pin(async move { Ok(self.reconfigure(|layers| layers.deployed = deployed).await?.1) })
    }

    fn keep_compiled(&self, digests: Vec<Arc<str>>) {
        *self.spare_code.lock().unwrap_or_else(PoisonError::into_inner) = digests;
    }
}
