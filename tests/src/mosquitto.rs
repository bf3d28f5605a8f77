//! A mosquitto of the test's own.

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

    /// One with further lines of mosquitto.conf. `{folder}` stands for its own folder.
    ///
    /// # Errors
    /// When mosquitto is not installed or does not come up.
    pub async fn with(config: &str) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("mosquitto-").tempdir()?;
        let port = crate::free_port()?;
        let path = folder.path().display();
        let config = config.replace("{folder}", &path.to_string());
        // As root mosquitto would give up its rights, and then could not write into the test's folder.
        let text = format!("listener {port} 127.0.0.1\nuser root\npersistence_location {path}/\n{config}");
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
        for _ in 0..500 {
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
