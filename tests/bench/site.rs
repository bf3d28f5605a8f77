//! What is measured from outside: a mosquitto, the agent with `fahrenheit`, and the reference beside it.

use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::{Agent, Mosquitto};

use crate::load::Load;
use crate::process::Process;

/// Everything runs at the same time; what has no events rests.
pub(crate) struct Site {
    pub(crate) load: Load,
    pub(crate) agent: Gateway,
    pub(crate) bare: Process,
    port: u16,
    folder: tempfile::TempDir,
    _broker: Mosquitto,
}

/// The agent, in its folder, which outlives a restart.
pub(crate) struct Gateway {
    pub(crate) process: Process,
    prepared: Agent,
    binary: PathBuf,
}

impl Gateway {
    /// Writes the agent's folder and starts it for the first time.
    fn start(port: u16) -> anyhow::Result<Self> {
        Self::prepare(port, "", "")?.start()
    }

    /// The same, not started yet, with further `sections` of gateway.toml and `keys` of its function.
    pub(crate) fn prepare(port: u16, sections: &str, keys: &str) -> anyhow::Result<Prepared> {
        let (bundle, api) = (e2e::example("fahrenheit"), e2e::free_port()?);
        let config = format!(
            "[api]\nlisten = \"127.0.0.1:{api}\"\n[mqtt.local]\nurl = \"mqtt://127.0.0.1:{port}\"\n{sections}[[function]]\n\
             name = \"fahrenheit\"\nbundle = \"{}\"\ncapabilities = [\"mqtt:publish:results/#\"]\n{keys}",
            bundle.display()
        );
        Ok(Prepared { agent: Agent::prepare(&config)?, binary: e2e::tidegate()? })
    }

    /// What `tidegate status --json` says.
    pub(crate) fn status(&self) -> anyhow::Result<serde_json::Value> {
        self.prepared.status()
    }

    /// Where its state is.
    pub(crate) fn state(&self) -> PathBuf {
        self.prepared.folder().join("state")
    }

    pub(crate) fn restart(&mut self) -> anyhow::Result<()> {
        self.process = spawn(&self.binary, &self.prepared)?;
        Ok(())
    }
}

/// An agent's folder before its first start.
pub(crate) struct Prepared {
    agent: Agent,
    binary: PathBuf,
}

impl Prepared {
    /// Where its journal will be.
    pub(crate) fn journal(&self) -> anyhow::Result<PathBuf> {
        let state = self.agent.folder().join("state");
        std::fs::create_dir_all(&state)?;
        Ok(state.join("journal"))
    }

    pub(crate) fn start(self) -> anyhow::Result<Gateway> {
        let process = spawn(&self.binary, &self.agent)?;
        Ok(Gateway { process, prepared: self.agent, binary: self.binary })
    }
}

fn spawn(binary: &Path, prepared: &Agent) -> anyhow::Result<Process> {
    let log = prepared.folder().join("agent.log");
    Process::start(Command::new(binary).arg("run").arg("--config").arg(prepared.config()), &log)
}

impl Site {
    /// Starts it all, and waits until both have made a result.
    pub(crate) async fn start() -> anyhow::Result<Self> {
        // As Debian installs it, but for the files: all limits are mosquitto's own.
        let broker = Mosquitto::with("allow_anonymous true\n").await?;
        let (port, folder) = (broker.port(), tempfile::tempdir()?);
        let agent = Gateway::start(port)?;
        let bare = spawn_bare(port, folder.path())?;
        let mut site = Self { load: Load::connect(port)?, agent, bare, port, folder, _broker: broker };
        for topic in [TOPIC, crate::bare::TOPIC] {
            site.load.until_there(topic)?;
        }
        Ok(site)
    }

    pub(crate) fn restart_bare(&mut self) -> anyhow::Result<()> {
        self.bare = spawn_bare(self.port, self.folder.path())?;
        Ok(())
    }
}

/// What the trigger of `fahrenheit` listens to.
pub(crate) const TOPIC: &str = "sensors";

fn spawn_bare(port: u16, folder: &Path) -> anyhow::Result<Process> {
    let mut command = Command::new(std::env::current_exe()?);
    Process::start(command.args([crate::REFERENCE_LOOP, &port.to_string()]), &folder.join("bare.log"))
}
