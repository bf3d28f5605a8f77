//! The control plane of the demo, and the laptop of those who publish and deploy: this very program, as processes of their own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use sync_protocol::{Deployment, DesiredAnswer};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::link::Link;
use crate::cli::signing;

/// The files of the example `motion`: its bundle, and the models with their tests.
macro_rules! example {
    ($($to:literal = $file:literal),* $(,)?) => {
        &[$(($to, include_bytes!(concat!("../../../../functions/examples/motion/", $file)))),*]
    };
}

/// What lies on the laptop.
const LAPTOP: &[(&str, &[u8])] = example![
    "motion/function.toml" = "function.toml",
    "motion/motion.wasm" = "motion.wasm",
    "motion/events/sample.json" = "events/sample.json",
    "motion/events/sample.result.json" = "events/sample.result.json",
    "motion/events/five-axes.json" = "events/five-axes.json",
    "models/motion-first.onnx" = "models/motion-first.onnx",
    "models/motion-first.tests.json" = "models/motion-first.tests.json",
    "models/motion.onnx" = "models/motion.onnx",
    "models/motion.tests.json" = "models/motion.tests.json",
];

/// What is deployed, again and again, with other versions behind `live`.
const DEPLOYMENT: &str = r#"group = "wrists"

[[function]]
name = "motion"
version = "live"
capabilities = ["model:motion", "stream:activities", "keyvalue"]
# As long as it takes: what cannot be handled now is not to be given up.
retry = { attempts = 1000, max_age = "1h" }

[[model]]
name = "motion"
version = "live"

# Judged sooner than one would at work.
[policy]
probation = "3s"
invocations_min = 10
"#;

/// Of the bad version: what its author changed.
const BAD: &str = r#"name = "motion"
version = "1.1.0"
runtime = "wasm"
component = "motion.wasm"
memory = "1 MiB"
capabilities = ["keyvalue", "model:motion", "stream:activities"]

[[trigger]]
mqtt = { filter = "wrist/+/imu", qos = 1 }
"#;

/// Longest until the control plane answers.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// The control plane, the laptop, and the link between the gateway and them.
#[derive(Debug)]
pub(super) struct Cloud {
    process: Child,
    pub(super) laptop: Arc<Laptop>,
    /// Between the gateway and the control plane.
    pub(super) link: Link,
}

/// Where a person works.
#[derive(Debug)]
pub(super) struct Laptop {
    program: PathBuf,
    folder: PathBuf,
}

/// How a command ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) status: i32,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Ended {
    /// What it printed, when it did what it should.
    pub(super) fn success(self) -> anyhow::Result<String> {
        ensure!(self.status == 0, "a command failed: {}", self.stderr);
        Ok(self.stdout)
    }
}

impl Cloud {
    /// Starts a control plane, and deploys the first version to whoever joins the group `wrists`.
    pub(super) async fn start(folder: &Path) -> anyhow::Result<Self> {
        let laptop = Laptop { program: std::env::current_exe()?, folder: folder.join("laptop") };
        for (file, content) in LAPTOP {
            laptop.write(file, content)?;
        }
        laptop.write("deployment.toml", DEPLOYMENT.as_bytes())?;
        let address = free_address()?;
        let (url, data) = (format!("https://{address}"), folder.join("cloud").display().to_string());
        laptop.run(&["cloud", "init", "--data", &data, "--url", &url, "--configure"]).await?.success()?;
        let log = std::fs::File::create(folder.join("cloud.log"))?;
        let process = laptop
            .command(&["cloud", "run", "--data", &data, "--listen", &address.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("could not start the control plane")?;
        let link = Link::to(address).await?;
        let cloud = Self { process, laptop: Arc::new(laptop), link };
        cloud.answers().await.with_context(|| {
            let said = std::fs::read_to_string(folder.join("cloud.log")).unwrap_or_default();
            format!("the control plane did not start; it said:\n{said}")
        })?;
        let laptop = &cloud.laptop;
        laptop.run(&["keygen", "--send"]).await?.success()?;
        laptop.publish_model("motion-first", "1.0.0").await?;
        let model = "motion=models/motion-first.onnx";
        laptop.run(&["publish", "motion", "--model", model, "--alias", "live"]).await?.success()?;
        laptop.run(&["fleet", "group", "wrists", "--create"]).await?.success()?;
        laptop.run(&["fleet", "claim", "--group", "wrists", "--out", "../claim.token"]).await?.success()?;
        laptop.run(&["deploy"]).await?.success()?;
        Ok(cloud)
    }

    async fn answers(&self) -> anyhow::Result<()> {
        let asked = async {
            while self.laptop.run(&["fleet"]).await?.status != 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(START_PATIENCE, asked).await.context("it did not answer in time")?
    }

    /// What the gateway's gateway.toml says of it.
    pub(super) fn config(&self) -> String {
        format!("[cloud]\nurl = \"https://{}\"\nclaim_token_file = \"claim.token\"\n", self.link.address())
    }

    /// SIGTERM, and its exit status.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.process.id().and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        let stopped = tokio::time::timeout(START_PATIENCE, self.process.wait());
        let status = stopped.await.context("the control plane did not stop")??;
        ensure!(status.success(), "the control plane ended with {status}");
        Ok(())
    }
}

impl Laptop {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).current_dir(&self.folder).env("XDG_CONFIG_HOME", self.folder.join("config"));
        command
    }

    /// Runs a command of `tidegate` to its end.
    pub(super) async fn run(&self, arguments: &[&str]) -> anyhow::Result<Ended> {
        let ended = self.command(arguments).stdin(Stdio::null()).kill_on_drop(true).output().await;
        let ended = ended.with_context(|| format!("could not run `tidegate {}`", arguments.join(" ")))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let status = ended.status.code().unwrap_or(-1);
        Ok(Ended { status, stdout: text(&ended.stdout), stderr: text(&ended.stderr) })
    }

    /// The same, and passes on what it prints, line by line.
    pub(super) async fn tell(&self, arguments: &[&str], tell: impl Fn(&str)) -> anyhow::Result<Ended> {
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("could not run `tidegate {}`", arguments.join(" ")))?;
        let (mut stdout, mut stderr) = (String::new(), String::new());
        let (mut said, mut complaints) = (child.stdout.take(), child.stderr.take());
        let listen = async {
            let Some(said) = said.as_mut() else { return Ok(()) };
            let mut lines = BufReader::new(said).lines();
            while let Some(line) = lines.next_line().await? {
                tell(&line);
                stdout.push_str(&line);
                stdout.push('\n');
            }
            std::io::Result::Ok(())
        };
        let complain = async {
            match complaints.as_mut() {
                Some(complaints) => complaints.read_to_string(&mut stderr).await.map(drop),
                None => Ok(()),
            }
        };
        tokio::try_join!(listen, complain)?;
        Ok(Ended { status: child.wait().await?.code().unwrap_or(-1), stdout, stderr })
    }

    /// Publishes one of the models as a version of `motion`.
    pub(super) async fn publish_model(&self, file: &str, version: &str) -> anyhow::Result<()> {
        let path = format!("models/{file}.onnx");
        let publish = ["publish", &path, "--name", "motion", "--version", version, "--alias", "live"];
        self.run(&publish).await?.success().map(drop)
    }

    /// The function as its author should not have left it.
    pub(super) fn write_bad_version(&self) -> anyhow::Result<()> {
        self.write("motion/function.toml", BAD.as_bytes())
    }

    /// The file of a secret key.
    pub(super) fn key(&self, name: &str) -> String {
        self.folder.join("config/tidegate/keys").join(format!("{name}.pem")).display().to_string()
    }

    /// Puts a signature by `key` in the place of the operators' on a deployment file, as somebody would who has no regard for our checks.
    pub(super) fn sign_instead(&self, file: &str, key: &str) -> anyhow::Result<()> {
        let path = self.folder.join(file);
        let mut archive = tar::Archive::new(std::fs::File::open(&path)?);
        let answer = archive.entries()?.next().context("the deployment file is empty")??;
        let mut answer: DesiredAnswer = serde_json::from_reader(answer)?;
        let deployment: Deployment = answer.deployment.context("there is no deployment in the file")?.unverified()?;
        answer.deployment = Some(signing::sign(&deployment, &[signing::read_secret(Path::new(key))?])?);
        let answer = serde_json::to_vec(&answer)?;
        let mut forged = tar::Builder::new(std::fs::File::create(&path)?);
        let mut header = tar::Header::new_gnu();
        header.set_size(answer.len() as u64);
        forged.append_data(&mut header, "deployment.json", answer.as_slice())?;
        Ok(forged.finish()?)
    }

    /// Where the gateway's agent listens, which is on this machine too.
    pub(super) fn socket(&self) -> PathBuf {
        self.folder.with_file_name("state").join("tidegate.sock")
    }

    fn write(&self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        let path = self.folder.join(name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&path, content).with_context(|| format!("could not write {}", path.display()))
    }
}

/// A port of this machine that nobody uses now.
fn free_address() -> std::io::Result<SocketAddr> {
    std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()
}
