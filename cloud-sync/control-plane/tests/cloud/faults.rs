//! Kills, damage, and two at once.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support::{Cloud, Signers, Time, client, make, release, report};
use control_plane::backup::{BackupError, backup, restore};
use control_plane::folder::Folder;
use control_plane::{ControlPlane, OpenError};
use reqwest::Client;
use serde_json::{Value, json};
use sync_protocol::{Digest, Envelope};

/// The process that is killed: serves `cloud` in its working folder, and writes where.
#[test]
#[ignore = "started by the test below"]
fn child() {
    if !Path::new("cloud").exists() {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let plane = ControlPlane::open(&Folder::new("cloud"), Time::default().clock()).await.unwrap();
        let (url, serving) = crate::support::serve(plane).await;
        std::fs::write("url.part", url).unwrap();
        std::fs::rename("url.part", "url").unwrap();
        serving.await.unwrap();
    });
}

struct Process(Child);

impl Process {
    async fn start(home: &Path) -> (Self, String) {
        let _ = std::fs::remove_file(home.join("url"));
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--ignored", "--exact", "faults::child"])
            .current_dir(home)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = Self(command.spawn().unwrap());
        for _ in 0..3000 {
            if let Ok(url) = std::fs::read_to_string(home.join("url")) {
                return (process, url);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the control plane does not start");
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        assert_eq!(self.0.wait().unwrap().signal(), Some(9), "it ended by the kill");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// One who works with it: what was answered with 2xx goes into `done`.
struct Worker {
    http: Client,
    url: String,
    signers: Signers,
    done: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Worker {
    async fn send(&self, method: reqwest::Method, path: &str, body: Vec<u8>) -> Option<(u16, Vec<u8>)> {
        let who = if path.starts_with("/v1/gateways/") { ("gateway", "press-1") } else { ("person", "admin") };
        let request = self.http.request(method, format!("{}{path}", self.url)).header(who.0, who.1);
        let request = request.header("content-type", "application/json").body(body);
        let response = request.send().await.ok()?;
        let status = response.status().as_u16();
        Some((status, response.bytes().await.ok()?.to_vec()))
    }

    /// Uploads, publishes and reports, until the line breaks.
    async fn work(&self, round: u32, worker: u32) -> Option<()> {
        for n in 0_u32.. {
            let (bytes, version) = (format!("{round}/{worker}/{n}").repeat(5000), format!("{round}.{worker}.{n}"));
            let blob = format!("/v1/blobs/{}", Digest::of(bytes.as_bytes()).hex());
            if self.send(reqwest::Method::PUT, &blob, bytes.clone().into_bytes()).await?.0 == 201 {
                self.done.lock().unwrap().push((blob, json!(Digest::of(bytes.as_bytes()))));
            }
            let signed = release("oven", &version, bytes.as_bytes());
            let signed = Envelope::sign(&signed, &[&self.signers.publisher]).unwrap();
            let (status, said) =
                self.send(reqwest::Method::POST, "/v1/releases", serde_json::to_vec(&signed).unwrap()).await?;
            assert_eq!(status, 201, "{}", String::from_utf8_lossy(&said));
            self.done.lock().unwrap().push((format!("/v1/releases/{}", signed.digest().unwrap()), json!(version)));
            let said = serde_json::to_vec(&report(&version, 1)).unwrap();
            assert_eq!(self.send(reqwest::Method::POST, "/v1/gateways/press-1/reported", said).await?.0, 200);
        }
        None
    }
}

/// [cloud-40] A kill at any time loses nothing that was answered with 2xx, and leaves nothing half done.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_loses_nothing_that_was_answered() {
    let cloud = Cloud::with_gateways(&["press-1"]).await;
    let (home, signers) = (tempfile::tempdir().unwrap(), cloud.signers.clone());
    backup(&cloud.folder, &home.path().join("cloud")).await.unwrap();
    let done: Arc<Mutex<Vec<(String, Value)>>> = Arc::default();
    for round in 1..=4_u32 {
        let (process, url) = Process::start(home.path()).await;
        let workers = (0..4).map(|worker| {
            let worker_of = Worker { http: client(), url: url.clone(), signers: signers.clone(), done: done.clone() };
            tokio::spawn(async move { worker_of.work(round, worker).await })
        });
        let workers: Vec<_> = workers.collect();
        let before = done.lock().unwrap().len();
        while done.lock().unwrap().len() < before + 10 * round as usize {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        process.kill();
        for worker in workers {
            assert_eq!(worker.await.unwrap(), None);
        }
    }
    let (process, url) = Process::start(home.path()).await;
    let reader = Worker { http: client(), url, signers, done: done.clone() };
    let done = done.lock().unwrap().clone();
    assert!(done.len() >= 100);
    for (path, expected) in done {
        let (status, body) = reader.send(reqwest::Method::GET, &path, Vec::new()).await.unwrap();
        assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
        let found = match path.starts_with("/v1/blobs/") {
            true => json!(Digest::of(&body)),
            false => serde_json::from_slice::<Value>(&body).unwrap()["version"].clone(),
        };
        assert_eq!(found, expected, "{path}");
    }
    process.kill();
    backup(&Folder::new(home.path().join("cloud")), &home.path().join("whole")).await.unwrap();
}

/// [cloud-41] A damaged backup is not restored, a backup never replaces anything, and neither leaves half of it behind.
#[tokio::test]
async fn a_damaged_backup_is_not_restored() {
    let cloud = Cloud::with_gateways(&["press-1"]).await;
    cloud.publish("oven", "1.0.0", b"oven").await;
    let (to, restored) = (cloud.home.path().join("backup"), Folder::new(cloud.home.path().join("restored")));
    backup(&cloud.folder, &to).await.unwrap();
    assert!(matches!(backup(&cloud.folder, &to).await, Err(BackupError::Exists(_))));
    assert!(matches!(restore(&cloud.home.path().join("none"), &restored).await, Err(BackupError::Missing(_))));

    let blob = to.join("blobs/whole").join(Digest::of(b"oven").hex());
    std::fs::write(&blob, b"over").unwrap();
    assert!(matches!(restore(&to, &restored).await, Err(BackupError::Blob(..))));
    let left: Vec<_> = std::fs::read_dir(cloud.home.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    std::fs::write(&blob, b"oven").unwrap();
    restore(&to, &restored).await.unwrap();
}

/// [cloud-42] Two control planes never share a folder, and one of a newer version is left alone.
#[tokio::test]
async fn a_folder_has_one_control_plane() {
    let (home, time) = (tempfile::tempdir().unwrap(), Time::default());
    let folder = Folder::new(home.path().join("cloud"));
    assert!(matches!(ControlPlane::open(&folder, time.clock()).await, Err(OpenError::Missing(_))));
    make(&folder, &time).await;
    let open = ControlPlane::open(&folder, time.clock()).await.unwrap();
    assert!(matches!(ControlPlane::open(&folder, time.clock()).await, Err(OpenError::Used(_))));
    drop(open);
    let store = sqlx::sqlite::SqlitePool::connect(&format!("sqlite://{}", folder.database().display())).await.unwrap();
    sqlx::raw_sql("PRAGMA user_version = 99").execute(&store).await.unwrap();
    store.close().await;
    let error = ControlPlane::open(&folder, time.clock()).await.unwrap_err().to_string();
    assert!(error.contains("newer control plane"), "{error}");
}
