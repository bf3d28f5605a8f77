//! A mosquitto process on a free port, with a folder of its own. The harness of the end-to-end tests shares this file.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;

/// A running broker on a free port of loopback. Ends with this value.
#[derive(Debug)]
pub struct Mosquitto {
    folder: tempfile::TempDir,
    port: u16,
    child: Option<Child>,
}

impl Mosquitto {
    /// One that lets anyone in, keeps sessions over a restart, and queues without a limit.
    ///
    /// # Errors
    /// When mosquitto is not installed or does not come up.
    pub async fn start() -> anyhow::Result<Self> {
        Self::with("allow_anonymous true\nmax_queued_messages 0\npersistence true\nautosave_interval 1\n").await
    }

    /// One that lets anyone in, and has nothing on disk.
    ///
    /// # Errors
    /// When mosquitto is not installed or does not come up.
    pub async fn forgetful() -> anyhow::Result<Self> {
        Self::with("allow_anonymous true\n").await
    }

    /// One that lets anyone do what `acl` grants.
    ///
    /// # Errors
    /// When mosquitto is not installed or does not come up.
    pub async fn with_acl(acl: &str) -> anyhow::Result<Self> {
        let folder = Self::new_folder()?;
        std::fs::write(folder.path().join("acl"), acl)?;
        Self::in_folder(folder, "allow_anonymous true\nacl_file {folder}/acl\n").await
    }

    /// One with further lines of mosquitto.conf. `{folder}` stands for its own folder.
    ///
    /// # Errors
    /// When mosquitto is not installed or does not come up.
    pub async fn with(config: &str) -> anyhow::Result<Self> {
        Self::in_folder(Self::new_folder()?, config).await
    }

    fn new_folder() -> std::io::Result<tempfile::TempDir> {
        tempfile::Builder::new().prefix("mosquitto-").tempdir()
    }

    async fn in_folder(folder: tempfile::TempDir, config: &str) -> anyhow::Result<Self> {
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let path = folder.path().display();
        let config = config.replace("{folder}", &path.to_string());
        // As root mosquitto would give up its rights, and then could not write into the test's folder.
        let user = if rustix::process::geteuid().is_root() { "user root\n" } else { "" };
        let text = format!("listener {port} 127.0.0.1\n{user}persistence_location {path}/\n{config}");
        std::fs::write(folder.path().join("mosquitto.conf"), text)?;
        let mut broker = Self { folder, port, child: None };
        broker.resume().await?;
        Ok(broker)
    }

    /// `mqtt://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// Where it listens.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Its own folder, for passwords and certificates.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Ends it in order: what it must remember is on disk.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        child.wait()?;
        Ok(())
    }

    /// SIGKILL: what it had not saved is gone.
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

    /// Starts it again on the same port, with what it remembers.
    ///
    /// # Errors
    /// When it does not come up.
    pub async fn resume(&mut self) -> anyhow::Result<()> {
        // Debian has it in /usr/sbin, which is not on everybody's path.
        let binary =
            ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"].into_iter().find(|path| Path::new(path).exists());
        let log = std::fs::File::create(self.folder.path().join("mosquitto.log"))?;
        let child = Command::new(binary.unwrap_or("mosquitto"))
            .arg("-c")
            .arg(self.folder.path().join("mosquitto.conf"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("could not start mosquitto\n\nhint: `tests/run` installs it")?;
        self.child = Some(child);
        for _ in 0..6_000 {
            if tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let said = std::fs::read_to_string(self.folder.path().join("mosquitto.log")).unwrap_or_default();
        anyhow::bail!("mosquitto did not come up on port {}; it said:\n{said}", self.port)
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
