//! The machines of the demo, all on this one: a gateway with its agent as a process of its own, a local broker, a cloud.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use tokio::process::{Child, Command};

use super::cloud::Cloud;
use super::link::Link;
use crate::api::client::Client;
use crate::api::status::Status;
use crate::broker::embedded::EmbeddedBroker;
use crate::config::EmbeddedBrokerConfig;
use crate::limits::Limits;

/// The files of the example `motion`: its bundle, and the model with its tests.
macro_rules! example {
    ($($file:literal),*) => {
        &[$(($file, include_bytes!(concat!("../../../../functions/examples/motion/", $file)))),*]
    };
}

const EXAMPLE: &[(&str, &[u8])] = example![
    "function.toml",
    "motion.wasm",
    "events/sample.json",
    "events/sample.result.json",
    "events/five-axes.json",
    "models/motion.onnx",
    "models/motion.tests.json"
];

/// What runs on a gateway that nobody deploys to.
const LOCAL: &str = r#"[[model]]
name = "motion"
file = "motion/models/motion.onnx"
tests = "motion/models/motion.tests.json"

[[function]]
name = "motion"
bundle = "motion"
capabilities = ["model:motion", "stream:activities", "keyvalue"]
# As long as it takes: what cannot be written now is not to be given up.
retry = { attempts = 1000, max_age = "1h" }
"#;

/// Longest the agent may take to answer after a start: the first one compiles the function.
const START_PATIENCE: Duration = Duration::from_secs(60);

/// Everything that the demo starts.
#[derive(Debug)]
pub(super) struct Site {
    folder: tempfile::TempDir,
    pub(super) local: EmbeddedBroker,
    /// The cloud's, where records arrive.
    pub(super) broker: EmbeddedBroker,
    /// The control plane, when there is one.
    pub(super) cloud: Option<Cloud>,
    /// Between the agent and the cloud's broker.
    pub(super) link: Link,
    /// Between the agent and its local broker.
    pub(super) wire: Link,
    disk_full: bool,
    agent: Option<Child>,
}

fn on_a_free_port() -> EmbeddedBrokerConfig {
    EmbeddedBrokerConfig { listen: ([127, 0, 0, 1], 0).into(), users: Default::default(), cert: None, key: None }
}

impl Site {
    /// Starts the brokers, the links and, for a managed gateway, a control plane, and writes what the gateway needs. The agent is not running yet.
    pub(super) async fn build(managed: bool) -> anyhow::Result<Self> {
        let limits = Limits::default();
        let folder = tempfile::Builder::new().prefix("tidegate-demo-").tempdir()?;
        let local =
            EmbeddedBroker::start(&on_a_free_port(), &limits).await.context("could not start the local broker")?;
        let broker =
            EmbeddedBroker::start(&on_a_free_port(), &limits).await.context("could not start the cloud's broker")?;
        let (link, wire) = (Link::to(broker.address()).await?, Link::to(local.address()).await?);
        let cloud = if managed { Some(Cloud::start(folder.path()).await?) } else { None };
        let site = Self { folder, local, broker, cloud, link, wire, disk_full: false, agent: None };
        if !managed {
            for (file, content) in EXAMPLE {
                site.write(&format!("motion/{file}"), content)?;
            }
        }
        site.write("gateway.toml", site.config().as_bytes())?;
        Ok(site)
    }

    fn write(&self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        let path = self.folder.path().join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, content).with_context(|| format!("could not write {}", path.display()))
    }

    fn config(&self) -> String {
        format!(
            r#"# What the demo's gateway runs.
[gateway]
name = "demo"
state_dir = "state"

[mqtt.local]
url = "mqtt://{local}"

[mqtt.cloud]
url = "mqtt://{link}"

[api]
listen = "off"

[stream.activities]
max_bytes = "8 MiB"
uplink = {{ mqtt = "cloud", topic = "site/{{gateway}}/{{stream}}" }}
batch = {{ max_records = 10, max_wait = "500ms" }}

{runs}"#,
            local = self.wire.address(),
            link = self.link.address(),
            runs = self.cloud.as_ref().map_or_else(|| LOCAL.to_owned(), Cloud::config),
        )
    }

    /// The models that are asked, one after the other.
    pub(super) fn models(&self) -> Vec<PathBuf> {
        let files: &[&str] = match self.cloud {
            Some(_) => &["laptop/models/motion-first.onnx", "laptop/models/motion.onnx"],
            None => &["motion/models/motion.onnx"],
        };
        files.iter().map(|file| self.folder.path().join(file)).collect()
    }

    /// Nothing gets from the gateway to the cloud, and nothing back.
    pub(super) fn cut_uplink(&self) {
        self.link.cut();
        if let Some(cloud) = &self.cloud {
            cloud.link.cut();
        }
    }

    pub(super) fn restore_uplink(&self) {
        self.link.restore();
        if let Some(cloud) = &self.cloud {
            cloud.link.restore();
        }
    }

    /// Where all of it is.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("agent.log")
    }

    /// Starts the agent as a process of its own and waits until it hears what sensors publish.
    pub(super) async fn start_agent(&mut self) -> anyhow::Result<()> {
        // A write over the limit of `fill_disk` is to fail, as on a full disk, instead of ending the process. And the log must
        // get out all the same: through a pipe.
        let mut agent = Command::new("/bin/sh")
            .args(["-c", r#"trap '' XFSZ; exec "$0" run --config "$1""#])
            .arg(std::env::current_exe()?)
            .arg(self.folder.path().join("gateway.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("could not start the agent")?;
        let mut log = tokio::fs::OpenOptions::new().create(true).append(true).open(self.log()).await?;
        if let Some(mut said) = agent.stderr.take() {
            tokio::spawn(async move { tokio::io::copy(&mut said, &mut log).await });
        }
        self.agent = Some(agent);
        let ready = tokio::time::timeout(START_PATIENCE, async {
            loop {
                if self.ended() {
                    anyhow::bail!("the agent ended at its start; it said:\n{}", self.said());
                }
                let status = self.status().await;
                let hears = |status: &Status| status.brokers.iter().any(|b| b.name.as_str() == "local" && b.ready);
                // A gateway that is managed gets its function from the control plane.
                if status.is_some_and(|status| hears(&status) && !status.functions.is_empty()) {
                    return Ok(());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        ready.await.with_context(|| format!("the agent was not ready in time; it said:\n{}", self.said()))?
    }

    /// What the agent says of itself, when it answers.
    pub(super) async fn status(&self) -> Option<Status> {
        let mut client = Client::connect(&self.folder.path().join("state/tidegate.sock")).await.ok()?;
        client.get("/v1/status").await.ok()?.json().ok()
    }

    fn ended(&mut self) -> bool {
        self.agent.as_mut().is_none_or(|agent| !matches!(agent.try_wait(), Ok(None)))
    }

    /// The end of the agent's log.
    pub(super) fn said(&self) -> String {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// SIGKILL: nothing of the agent gets to run any more.
    pub(super) async fn kill_agent(&mut self) -> anyhow::Result<()> {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().await.context("could not kill the agent")?;
        }
        self.disk_full = false;
        Ok(())
    }

    /// From now on each write of the agent to a file fails, until [`Site::free_disk`]; no other process notices, and it needs no
    /// rights.
    pub(super) fn fill_disk(&mut self) -> anyhow::Result<()> {
        self.limit_files(Some(0))
    }

    /// Lets it write again.
    pub(super) fn free_disk(&mut self) -> anyhow::Result<()> {
        self.limit_files(None)
    }

    pub(super) const fn disk_is_full(&self) -> bool {
        self.disk_full
    }

    fn limit_files(&mut self, bytes: Option<u64>) -> anyhow::Result<()> {
        let pid = self.agent.as_ref().and_then(Child::id).and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let pid = pid.context("the agent does not run")?;
        // The demo's own hard limit is the agent's too; only the soft one counts, and anyone may move that.
        let maximum = getrlimit(Resource::Fsize).maximum;
        prlimit(Some(pid), Resource::Fsize, Rlimit { current: bytes.or(maximum), maximum })
            .context("could not limit the agent's files")?;
        self.disk_full = bytes.is_some();
        Ok(())
    }

    /// Ends the brokers and the control plane.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        self.local.stop().await;
        self.broker.stop().await;
        match self.cloud {
            Some(cloud) => cloud.stop().await,
            None => Ok(()),
        }
    }

    /// SIGTERM, and its exit status.
    pub(super) async fn stop_agent(&mut self) -> anyhow::Result<()> {
        let Some(mut agent) = self.agent.take() else { return Ok(()) };
        if let Some(pid) = agent.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        let status = tokio::time::timeout(Duration::from_secs(20), agent.wait()).await.context("it did not stop")??;
        anyhow::ensure!(status.success(), "the agent ended with {status}; it said:\n{}", self.said());
        Ok(())
    }
}
