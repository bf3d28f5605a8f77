//! A mosquitto process on a free port, with a folder of its own.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::PATIENCE;

pub struct Mosquitto {
    child: Option<Child>,
    folder: tempfile::TempDir,
    port: u16,
}

impl Mosquitto {
    /// Anyone may do anything; nothing is on disk.
    pub async fn start() -> Self {
        Self::with("allow_anonymous true\n").await
    }

    /// With these lines in its configuration.
    pub async fn with(lines: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::in_folder(lines, folder).await
    }

    /// Anyone may do what `acl` grants.
    pub async fn with_acl(acl: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("acl");
        std::fs::write(&file, acl).unwrap();
        Self::in_folder(&format!("allow_anonymous true\nacl_file {}\n", file.display()), folder).await
    }

    async fn in_folder(lines: &str, folder: tempfile::TempDir) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let user = if rustix::process::geteuid().is_root() { "user root\n" } else { "" };
        let text =
            format!("listener {port} 127.0.0.1\n{user}persistence_location {}/\n{lines}", folder.path().display());
        std::fs::write(folder.path().join("mosquitto.conf"), text).unwrap();
        let mut mosquitto = Self { child: None, folder, port };
        mosquitto.launch().await;
        mosquitto
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// Starts it again where it was.
    pub async fn launch(&mut self) {
        let log = std::fs::File::create(self.folder.path().join("log")).unwrap();
        let config = self.folder.path().join("mosquitto.conf");
        let path = format!("{}:/usr/sbin:/usr/local/sbin", std::env::var("PATH").unwrap_or_default());
        let child =
            Command::new("mosquitto").arg("-c").arg(config).env("PATH", path).stdout(Stdio::null()).stderr(log).spawn();
        self.child = Some(child.expect("mosquitto must be installed: apt-get install mosquitto"));
        let started = std::time::Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            assert!(started.elapsed() < PATIENCE, "mosquitto does not listen:\n{log}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Ends it as a service manager does; with `persistence true` it writes its sessions.
    pub async fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap();
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
