//! A control plane as its users run it: a process, and the laptop of those who publish and deploy.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use anyhow::Context as _;
use serde_json::Value;

use crate::{Agent, Guest};

/// A control plane on a free port. Ends with this value.
#[derive(Debug)]
pub struct ControlPlane {
    laptop: tempfile::TempDir,
    address: SocketAddr,
    child: Option<Child>,
}

impl ControlPlane {
    /// A new one, with keys for publisher, operator and root on the laptop.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn start() -> anyhow::Result<Self> {
        let laptop = tempfile::Builder::new().prefix("laptop-").tempdir()?;
        let address = SocketAddr::from(([127, 0, 0, 1], crate::free_port()?));
        let mut plane = Self { laptop, address, child: None };
        let url = format!("https://localhost:{}", address.port());
        plane.tell(&["cloud", "init", "--url", &url, "--name", "127.0.0.1", "--configure"])?;
        plane.resume().await?;
        plane.tell(&["keygen", "--send"])?;
        Ok(plane)
    }

    /// Starts it, again perhaps, and waits until it answers.
    ///
    /// # Errors
    /// When it does not; with what it said.
    pub async fn resume(&mut self) -> anyhow::Result<()> {
        let path = self.laptop.path().join("cloud.log");
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&path)?;
        let mut command = self.on_laptop(&["cloud", "run", "--listen", &self.address.to_string()])?;
        self.child = Some(command.stdout(Stdio::null()).stderr(log).spawn().context("could not start it")?);
        let answers = crate::until("the control plane", async || self.tell(&["fleet"]).is_ok()).await;
        answers.with_context(|| std::fs::read_to_string(path).unwrap_or_default())
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The laptop's folder: the control plane's own is `cloud` in it.
    pub fn laptop(&self) -> &Path {
        self.laptop.path()
    }

    /// A command of `tidegate` on the laptop, to be run.
    ///
    /// # Errors
    /// When it has not been built.
    pub fn on_laptop(&self, arguments: &[&str]) -> anyhow::Result<Command> {
        let mut command = Command::new(crate::tidegate()?);
        let config = self.laptop.path().join("config");
        command.args(arguments).current_dir(self.laptop.path()).env("XDG_CONFIG_HOME", config).stdin(Stdio::null());
        Ok(command)
    }

    /// Runs a command of `tidegate` on the laptop.
    ///
    /// # Errors
    /// When it cannot be started; its own failure is in the output.
    pub fn command(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        Ok(self.on_laptop(arguments)?.output()?)
    }

    /// Runs a command that must succeed, and gives what it printed.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub fn tell(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = self.command(arguments)?;
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(output.status.success(), "`tidegate {}` failed: {said}", arguments.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// What `tidegate fleet … --json` prints.
    ///
    /// # Errors
    /// When it fails.
    pub fn fleet(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let arguments = [&["fleet"], arguments, &["--json"]].concat();
        Ok(serde_json::from_str(&self.tell(&arguments)?)?)
    }

    /// `[cloud]` for `agent`, which reaches this at `address`, with a claim token for one gateway.
    ///
    /// # Errors
    /// When no claim is made.
    pub fn claim(&self, agent: &Agent, address: SocketAddr) -> anyhow::Result<String> {
        let token = agent.folder().join("claim.token").display().to_string();
        self.tell(&["fleet", "claim", "--out", &token])?;
        Ok(format!("[cloud]\nurl = \"https://{address}\"\nclaim_token_file = \"claim.token\"\n"))
    }

    /// Publishes a guest, which may ask for `capabilities`.
    ///
    /// # Errors
    /// When it is refused.
    pub fn publish(&self, name: &str, version: &str, guest: &Guest, capabilities: &[&str]) -> anyhow::Result<()> {
        let bundle = self.laptop.path().join(name);
        guest.write(&bundle, version)?;
        let manifest = bundle.join("function.toml");
        let text = std::fs::read_to_string(&manifest)?;
        std::fs::write(&manifest, format!("{text}capabilities = {capabilities:?}\n"))?;
        self.tell(&["publish", name]).map(drop)
    }

    /// Deploys what deployment.toml says, and more arguments.
    ///
    /// # Errors
    /// When it is refused.
    pub fn deploy(&self, text: &str, more: &[&str]) -> anyhow::Result<()> {
        std::fs::write(self.laptop.path().join("deployment.toml"), text)?;
        self.tell(&[&["deploy"], more].concat()).map(drop)
    }

    /// Waits until gateway `name` holds a question here.
    ///
    /// # Errors
    /// When it does not.
    pub async fn hears(&self, name: &str) -> anyhow::Result<()> {
        let here = || self.fleet(&["show", name]).is_ok_and(|gateway| gateway["connected"] == true);
        crate::until("the gateway to be there", async || here()).await
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let _ = self.kill();
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.laptop.path().join("cloud.log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("the control plane's last lines:\n{}", lines[lines.len().saturating_sub(20)..].join("\n"));
        }
    }
}
