//! The guide on fleets, as it stands there: its commands, its files, real processes.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use e2e::Device;

/// A block of the guide.
struct Block<'a> {
    language: &'a str,
    text: &'a str,
}

/// Who follows the guide: a folder, and what was started in its terminals.
pub(crate) struct Reader {
    folder: tempfile::TempDir,
    /// What the guide says, and what it is here: ports that are free.
    instead: [(&'static str, String); 2],
    started: Vec<Child>,
    broker: u16,
}

impl Reader {
    pub(crate) fn new(cloud: u16, broker: u16) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("guide-").tempdir()?;
        std::fs::create_dir(folder.path().join("bin"))?;
        std::os::unix::fs::symlink(e2e::tidegate()?, folder.path().join("bin/tidegate"))?;
        let instead =
            [("localhost:8443", format!("localhost:{cloud}")), ("127.0.0.1:1883", format!("127.0.0.1:{broker}"))];
        Ok(Self { folder, instead, started: Vec::new(), broker })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn here(&self, text: &str) -> String {
        self.instead.iter().fold(text.to_owned(), |text, (there, here)| text.replace(there, here))
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        let line = format!("PATH={}:$PATH; {line}", self.path("bin").display());
        command
            .args(["-c", &line])
            .current_dir(self.folder.path())
            .env("XDG_CONFIG_HOME", self.path("config"))
            .stdin(Stdio::null());
        command
    }

    /// Runs a line to its end: status, and all that it said.
    pub(crate) async fn run(&self, line: &str) -> anyhow::Result<(i32, String)> {
        let mut command = self.command(&self.here(line));
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned()))
    }

    /// Each line of a block, which must succeed.
    async fn follow(&mut self, block: &Block<'_>) -> anyhow::Result<()> {
        for line in block.text.lines() {
            let (status, said) = self.run(line).await?;
            ensure!(status == 0, "`{line}` ended with {status}:\n{said}\n{}", self.logs());
        }
        Ok(())
    }

    /// A terminal in which something runs on.
    pub(crate) fn start(&mut self, line: &str, log: &str) -> anyhow::Result<()> {
        let file = std::fs::File::create(self.path(log))?;
        let line = format!("exec {}", self.here(line));
        let child = self.command(&line).stdout(Stdio::null()).stderr(file).spawn()?;
        self.started.push(child);
        Ok(())
    }

    /// The port of the embedded broker.
    pub(crate) fn broker(&self) -> u16 {
        self.broker
    }

    /// Ends what was started first, without a warning.
    pub(crate) fn kill_first(&mut self) -> anyhow::Result<()> {
        let mut child = self.started.remove(0);
        child.kill().and(child.wait())?;
        Ok(())
    }

    pub(crate) async fn until(&self, what: &str, line: &str, done: impl Fn(&str) -> bool) -> anyhow::Result<()> {
        let reached =
            e2e::until(what, async || self.run(line).await.is_ok_and(|(status, said)| status == 0 && done(&said)));
        reached.await.with_context(|| self.logs())
    }

    pub(crate) fn logs(&self) -> String {
        let end = |name: &str| {
            let log = std::fs::read_to_string(self.path(name)).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            format!("{name}:\n{}", lines[lines.len().saturating_sub(25)..].join("\n"))
        };
        ["cloud.log", "gateway.log"].map(end).join("\n")
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        for child in &mut self.started {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn blocks(page: &str) -> Vec<Block<'_>> {
    let parts = page.split("```").skip(1).step_by(2);
    parts.filter_map(|part| part.split_once('\n')).map(|(language, text)| Block { language, text }).collect()
}

/// Three terminals, as the guide says: a bad version is rolled back by itself and no event of that time is lost, an operator goes back, and the
/// same deployment comes on a stick.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guide_on_fleets_does_what_it_says() -> anyhow::Result<()> {
    let page = std::fs::read_to_string(e2e::repository().join("docs/guides/fleet.md"))?;
    let blocks = blocks(&page);
    let (cloud, broker) = (e2e::free_port()?, e2e::free_port()?);
    let mut reader = Reader::new(cloud, broker)?;
    let mut next = blocks.iter();
    let mut take = |language: &str, holds: &str| {
        let block = next.next().context("the guide ends too early")?;
        ensure!(block.language == language && block.text.contains(holds), "expected `{holds}`:\n{}", block.text);
        anyhow::Ok(block)
    };

    let (init, run) = take("sh", "tidegate cloud init")?.text.split_once('\n').context("two lines")?;
    reader.follow(&Block { language: "sh", text: init }).await?;
    reader.start(&format!("{} --listen 127.0.0.1:{cloud}", run.trim()), "cloud.log")?;
    reader.until("the control plane", "tidegate fleet", |_| true).await?;
    reader.follow(take("sh", "tidegate keygen")?).await?;

    reader.follow(take("sh", "tidegate fleet claim")?).await?;
    write(&reader, "gateway.toml", take("toml", "[cloud]")?)?;
    reader.start(take("sh", "tidegate run")?.text.trim(), "gateway.log")?;
    reader.until("the gateway to be there", "tidegate fleet", |said| said.contains("hall-1")).await?;

    reader.follow(take("sh", "tidegate publish")?).await?;
    write(&reader, "deployment.toml", take("toml", "[[function]]")?)?;
    reader.follow(take("sh", "tidegate deploy --wait")?).await?;

    let device = Device::connect(broker).await?;
    device.subscribe("alarm/#", 1).await?;
    let hot = |n: u32| format!(r#"{{"oven":"{n}","celsius":251.5}}"#);
    device.publish("ovens/0/celsius", hot(0), 1).await?;
    assert_eq!(device.next().await?.topic, "alarm/0");

    // On purpose.
    let broken = take("sh", "sed -i")?.text;
    let (prepare, deploy) = broken.trim().rsplit_once('\n').context("the last line deploys")?;
    let (prepare, send) = prepare.rsplit_once('\n').context("ovens go on meanwhile")?;
    // Here a client of the test does that, which counts what comes back.
    ensure!(send.starts_with("mosquitto_pub -t ovens/1/celsius ") && send.ends_with(" &"), "{send}");
    reader.follow(&Block { language: "sh", text: prepare }).await?;
    let events = async {
        for n in 1..=60 {
            device.publish(&format!("ovens/{n}/celsius"), hot(n), 1).await?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        anyhow::Ok(())
    };
    let (ended, sent) = tokio::join!(reader.run(deploy), events);
    sent?;
    let (status, said) = ended?;
    assert_eq!(status, 1, "{said}\n{}", reader.logs());
    assert!(said.contains("hall-1: rolled back:"), "{said}");
    let mut alarms = std::collections::BTreeSet::new();
    while alarms.len() < 60 {
        let missing = || format!("{} of 60 alarms came\n{}", alarms.len(), reader.logs());
        let topic = device.next().await.with_context(missing)?.topic;
        alarms.insert(topic);
    }

    let rollback = take("sh", "tidegate rollback")?;
    reader.follow(rollback).await?;
    let (status, said) = reader.run(rollback.text.trim()).await?;
    ensure!(status == 0 && said.contains("deployment 1 of group/halls is desired already"), "{said}");
    reader.follow(take("sh", "tidegate apply")?).await?;
    let (status, said) = reader.run("tidegate deploy --preview").await?;
    let told = said.contains("deployment 3 of group/halls was written to a file, and never sent");
    ensure!(status == 0 && told && !said.contains("warning:"), "{said}");
    Ok(())
}

const fn sh(text: &str) -> Block<'_> {
    Block { language: "sh", text }
}

fn write(reader: &Reader, name: &str, block: &Block<'_>) -> anyhow::Result<()> {
    Ok(std::fs::write(reader.path(name), reader.here(block.text))?)
}

/// What a person gets wrong ends with a status and a hint, and changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mistakes_with_a_control_plane_are_told() -> anyhow::Result<()> {
    let port = e2e::free_port()?;
    let mut reader = Reader::new(port, port)?;
    let check = async |reader: &Reader, line: &str, status: i32, said: &str| {
        let (ended, all) = reader.run(line).await?;
        ensure!(ended == status && all.contains(said), "`{line}` ended with {ended}, {status} expected:\n{all}");
        anyhow::Ok(())
    };
    check(&reader, "tidegate fleet", 2, "hint: say `--cloud`; `tidegate cloud init --configure` writes").await?;
    check(&reader, "tidegate fleet", 2, "no control plane is named").await?;
    for address in ["localhost:8443", "http://localhost:8443"] {
        check(&reader, &format!("tidegate fleet --cloud {address}"), 2, "hint: begin it with `https://`").await?;
    }
    check(&reader, "tidegate cloud run", 2, "hint: `tidegate cloud init --data").await?;
    reader
        .follow(&Block { language: "sh", text: "tidegate cloud init --url https://localhost:8443 --configure" })
        .await?;
    check(&reader, "tidegate cloud init", 2, "there is a control plane in").await?;
    check(&reader, "tidegate fleet", 3, "hint: start it with `tidegate cloud run`").await?;
    check(&reader, "tidegate keygen --send", 3, "hint: start it with `tidegate cloud run`").await?;
    reader.start(&format!("tidegate cloud run --listen 127.0.0.1:{port}"), "cloud.log")?;
    reader.until("the control plane", "tidegate fleet", |_| true).await?;
    check(&reader, "tidegate cloud run", 2, "hint: stop that one, or name another folder").await?;
    // Keys that no root of trust names yet are taken, not made again.
    check(&reader, "tidegate keygen", 0, "next: `tidegate keygen root`").await?;
    check(&reader, "cp -r config/tidegate/keys made && tidegate keygen --send", 0, "has root 1").await?;
    check(&reader, "diff -r config/tidegate/keys made", 0, "").await?;
    check(&reader, "tidegate keygen", 2, "there is a key").await?;
    check(&reader, "tidegate fleet tokens", 0, "LAST USED").await?;
    let motion = e2e::example("motion");
    let publish = |more: &str| format!("tidegate publish {}/models/motion.onnx {more}", motion.display());
    check(&reader, &publish(""), 2, "hint: say which it is: `--version 1.0.0`").await?;
    check(&reader, &publish("--version 1.0.0"), 0, "published model motion 1.0.0").await?;
    check(&reader, &publish("--version 1.0.0"), 0, "is published already").await?;
    let first = format!("tidegate publish {}/models/motion-first.onnx --name motion --version 1.0.0", motion.display());
    check(&reader, &first, 2, "hint: a version never changes: give it the next one").await?;
    let stranger = "tidegate keygen key stranger && tidegate publish";
    let forged = publish("--version 2.0.0 --key config/tidegate/keys/stranger.pem");
    check(&reader, &forged.replace("tidegate publish", stranger), 2, "error:").await?;
    let deployment = "group = \"nobody\"\n[[model]]\nname = \"motion\"\nversion = \"live\"\n";
    std::fs::write(reader.path("deployment.toml"), deployment)?;
    check(&reader, "tidegate deploy", 2, "model motion has no alias `live`").await?;
    let make = "hint: make it: `tidegate fleet group nobody --add GATEWAY`";
    check(&reader, "tidegate deploy --use model/motion=1.0.0", 2, make).await?;
    std::fs::write(reader.path("ofen.toml"), deployment.replace("motion", "ofen"))?;
    check(&reader, "tidegate deploy ofen.toml", 2, "error: no model `ofen` was published").await?;
    check(&reader, "tidegate deploy ofen.toml", 2, "hint: published are `motion`").await?;
    check(&reader, "tidegate rollback --group nobody", 2, "there is no group `nobody`").await?;
    check(&reader, "tidegate fleet group nobody --create", 0, "made group nobody").await?;
    check(&reader, "tidegate rollback --group nobody", 2, "nothing was deployed to group/nobody yet").await?;
    check(&reader, "tidegate fleet group nobody --delete --json", 0, "\"deleted\": true").await?;
    Ok(())
}

/// Compiled for two processors on the publisher's machine: the gateway fetches the code of its own, and compiles nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_fetches_the_native_code_of_its_processor() -> anyhow::Result<()> {
    let cloud = e2e::free_port()?;
    let mut reader = Reader::new(cloud, cloud)?;
    reader.follow(&sh("tidegate cloud init --url https://localhost:8443 --configure")).await?;
    reader.start(&format!("tidegate cloud run --listen 127.0.0.1:{cloud}"), "cloud.log")?;
    reader.until("the control plane", "tidegate fleet", |_| true).await?;
    let claim =
        "tidegate keygen --send\ntidegate fleet group halls --create\ntidegate fleet claim --group halls --out claim";
    reader.follow(&sh(claim)).await?;
    let config = "[gateway]\nname = \"hall-1\"\nstate_dir = \"state\"\n[api]\nlisten = \"off\"\n[cloud]\nclaim_token_file = \"claim\"\n";
    let config = reader.here(&format!("{config}url = \"https://localhost:8443\"\n"));
    std::fs::write(reader.path("gateway.toml"), config)?;
    reader.start("tidegate run", "gateway.log")?;
    reader.until("the gateway to be there", "tidegate fleet", |said| said.contains("hall-1")).await?;

    e2e::Guest::echo().write(&reader.path("hall"), "1.0.0")?;
    tidegate::store::pack(&reader.path("hall"), &reader.path("hall.tar.zst"))?;
    let targets = "--target x86_64-unknown-linux-gnu --target aarch64-unknown-linux-gnu";
    reader.follow(&sh(&format!("tidegate publish hall.tar.zst {targets}"))).await?;
    let deployment =
        "group = \"halls\"\n[[function]]\nname = \"hall\"\nversion = \"1.0.0\"\n[policy]\nprobation = \"1s\"\n";
    std::fs::write(reader.path("deployment.toml"), deployment)?;
    reader.follow(&sh("tidegate deploy --wait")).await?;
    let log = std::fs::read_to_string(reader.path("gateway.log"))?;
    ensure!(log.contains("native code of its publisher taken") && !log.contains("compiled"), "{log}");
    let blobs = std::fs::read_dir(reader.path("state/blobs"))?.count();
    assert_eq!(blobs, 2, "the bundle, and the code for one processor of two");

    let more = format!("tidegate publish hall.tar.zst {targets} --target pulley32");
    let (status, said) = reader.run(&more).await?;
    ensure!(status == 2 && said.contains("function hall 1.0.0 has no native code for pulley32"), "{said}");
    Ok(())
}
