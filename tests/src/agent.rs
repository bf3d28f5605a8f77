//! An agent as its users run it: a process with a config file.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::Context as _;
use serde_json::Value;
use tidegate::api::client::{Client, Reply};
use tidegate::deployment::DeploymentStatus;

/// A running agent. Ends with this value.
#[derive(Debug)]
pub struct Agent {
    folder: tempfile::TempDir,
    child: Option<Child>,
    environment: Vec<(String, String)>,
}

impl Agent {
    /// Starts one with this gateway.toml and waits until it is ready. The state folder is set already.
    ///
    /// # Errors
    /// When it does not become ready; with what it said.
    pub async fn start(config: &str) -> anyhow::Result<Self> {
        let mut agent = Self::prepare(config)?;
        agent.resume().await?;
        Ok(agent)
    }

    /// The same, not started yet.
    ///
    /// # Errors
    /// When its files cannot be written.
    pub fn prepare(config: &str) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("agent-").tempdir()?;
        let agent = Self { folder, child: None, environment: Vec::new() };
        agent.configure(config)?;
        Ok(agent)
    }

    /// Writes another gateway.toml; `reload` makes the agent read it. An `[api]` is added to it, and a `[gateway]` or its keys.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(&self, config: &str) -> anyhow::Result<()> {
        let api = if config.contains("[api]") { "" } else { "[api]\nlisten = \"off\"\n" };
        let (before, gateway) = config.split_once("[gateway]").unwrap_or((config, ""));
        let text = format!("[gateway]\nname = \"test\"\nstate_dir = \"state\"\n{gateway}\n{api}\n{before}");
        Ok(std::fs::write(self.config(), text)?)
    }

    /// Sets a variable of its environment, from the next start on.
    pub fn set_environment(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// Starts it, again perhaps, and waits until it is ready.
    ///
    /// # Errors
    /// When it does not become ready; with what it said.
    pub async fn resume(&mut self) -> anyhow::Result<()> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("agent.log"))?;
        let child = crate::agent()?
            .args(["run", "--config"])
            .arg(self.config())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .envs(self.environment.iter().cloned())
            .spawn()
            .context("could not start the agent")?;
        self.child = Some(child);
        let ready = crate::until("the agent to be ready", async || {
            !self.is_running() || self.command(&["status"]).is_ok_and(|output| output.status.success())
        });
        let ready = ready.await.with_context(|| self.log());
        anyhow::ensure!(self.is_running(), "the agent ended at its start; it said:\n{}", self.log());
        ready
    }

    /// Waits until `broker` has answered to all subscriptions: before, what devices publish may be for nobody.
    ///
    /// # Errors
    /// When it does not.
    pub async fn hears(&self, broker: &str) -> anyhow::Result<()> {
        let ready = |status: &Value| {
            let brokers = status["brokers"].as_array().map(Vec::as_slice).unwrap_or_default();
            brokers.iter().any(|b| b["name"] == broker && b["ready"] == true)
        };
        crate::until("the agent to hear its broker", async || self.status().is_ok_and(|status| ready(&status))).await
    }

    /// gateway.toml.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("gateway.toml")
    }

    /// The agent's folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Whether the process lives.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
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

    /// SIGTERM, and waits for its end.
    ///
    /// # Errors
    /// When it ends with another status than 0.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = child.wait()?;
        anyhow::ensure!(status.success(), "the agent ended with {status}; it said:\n{}", self.log());
        Ok(())
    }

    /// Runs a command of `tidegate` against this agent.
    ///
    /// # Errors
    /// When it cannot be started; its own failure is in the output.
    pub fn command(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(crate::tidegate()?);
        let (verb, rest) = arguments.split_first().context("no command")?;
        command.arg(verb).arg("--socket").arg(self.folder.path().join("state/tidegate.sock")).args(rest);
        Ok(command.stdin(Stdio::null()).output()?)
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

    /// `tidegate status --json`.
    ///
    /// # Errors
    /// When it fails.
    pub fn status(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.tell(&["status", "--json"])?)?)
    }

    /// Hands it a deployment file, as `tidegate apply` does.
    ///
    /// # Errors
    /// When it does not answer; a refusal is an answer.
    pub async fn apply(&self, file: &Path) -> anyhow::Result<Reply> {
        Ok(self.client().await?.post_file("/v1/apply", tokio::fs::File::open(file).await?).await?)
    }

    /// What is deployed here.
    ///
    /// # Errors
    /// When it does not say.
    pub async fn deployment(&self) -> anyhow::Result<DeploymentStatus> {
        Ok(self.client().await?.get("/v1/deployment").await?.json()?)
    }

    /// A sample of its metrics: the value behind `sample`, which is the name with its labels.
    ///
    /// # Errors
    /// When it does not answer, or has no such sample.
    pub async fn metric(&self, sample: &str) -> anyhow::Result<u64> {
        let reply = self.client().await?.get("/metrics").await?;
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        let value = text.lines().find_map(|line| line.strip_prefix(sample)?.trim().parse().ok());
        value.with_context(|| format!("no `{sample}` in {text}"))
    }

    async fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.folder.path().join("state/tidegate.sock")).await?)
    }

    /// All that it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("agent.log")).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.kill();
        if std::thread::panicking() {
            // The test's own output is all that is left of a failure in CI.
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("the agent's last lines:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        }
    }
}
