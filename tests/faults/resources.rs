//! What the machine can run out of: disk, file handles, memory, its broker. The agent goes on, or says exactly why it cannot;
//! recovers by itself; loses nothing; and does not make things worse by what it logs.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use e2e::{Agent, Device, Mosquitto};
use rustix::process::{Pid, Resource, Rlimit};

/// What a fault may log in all, while events keep coming.
const LOG_BYTES_MAX: u64 = 64 << 10;
/// How long each fault lasts.
const FAULT: Duration = Duration::from_secs(4);

/// A gateway whose function appends to a stream and publishes.
struct Place {
    broker: Mosquitto,
    device: Device,
    agent: Agent,
    sent: u64,
    heard: BTreeSet<u64>,
    disk: Option<Disk>,
}

impl Place {
    /// `disk_mib`: the state folder is a file system of this size.
    async fn start(disk_mib: Option<u32>, more: &str) -> anyhow::Result<Self> {
        let broker = Mosquitto::start().await?;
        let device = Device::connect(broker.port()).await?;
        device.subscribe("results/#", 1).await?;
        let function = e2e::site::guest(
            "sweep",
            "sensors/#",
            &format!(
                "capabilities = [\"stream:readings\", \"mqtt:publish:results/#\"]\nretry = {{ attempts = 1000, max_age = \"1h\" }}\n{more}"
            ),
        );
        let mut agent =
            Agent::prepare(&format!("[mqtt.local]\nurl = \"{}\"\n[stream.readings]\n{function}", broker.url()))?;
        crate::sweep::guest().write(&agent.folder().join("sweep"), "1.0.0")?;
        let disk = disk_mib.map(|mib| Disk::mount(&agent.folder().join("state"), mib)).transpose()?;
        agent.resume().await?;
        agent.hears("local").await?;
        Ok(Self { broker, device, agent, sent: 0, heard: BTreeSet::new(), disk })
    }

    async fn send(&mut self, events: u64, padding: usize) -> anyhow::Result<()> {
        let padding = "x".repeat(padding);
        for seq in self.sent..self.sent + events {
            self.device.publish("sensors/1", format!(r#"{{"seq":{seq},"padding":"{padding}"}}"#), 1).await?;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.sent += events;
        Ok(())
    }

    /// Each event that was sent has its result, whenever it comes.
    async fn all_handled(&mut self) -> anyhow::Result<()> {
        e2e::until("all events to be handled", async || {
            let seqs = self.device.rest().into_iter().filter_map(|message| e2e::seq(&message.payload).ok());
            self.heard.extend(seqs);
            self.heard.len() as u64 == self.sent
        })
        .await
        .map_err(|error| {
            let missing: Vec<_> = (0..self.sent).filter(|seq| !self.heard.contains(seq)).take(20).collect();
            error.context(format!("{} of {} were, not {missing:?} …", self.heard.len(), self.sent))
        })
    }

    /// Events come during a fault: the process lives, answers, says `reason` in its log, and not too often.
    async fn goes_on(&mut self, padding: usize, reason: &str) -> anyhow::Result<()> {
        let before = self.agent.log().len() as u64;
        let until = std::time::Instant::now() + FAULT;
        while std::time::Instant::now() < until {
            self.send(100, padding).await?;
        }
        anyhow::ensure!(self.agent.is_running(), "the agent ended");
        let log = self.agent.log();
        let said = &log[usize::try_from(before)?..];
        anyhow::ensure!(said.contains(reason), "the log does not say `{reason}`:\n{said}");
        anyhow::ensure!(said.len() as u64 <= LOG_BYTES_MAX, "{} bytes of log in {FAULT:?}", said.len());
        println!("{} bytes of log, {} events under way", said.len(), self.sent - self.heard.len() as u64);
        Ok(())
    }

    /// The process's own hard limit stays: only the soft one counts, and anyone may move that.
    fn limit(&self, resource: Resource, soft: Option<u64>) -> anyhow::Result<()> {
        let pid = self.agent.pid().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
        let maximum = rustix::process::getrlimit(resource).maximum;
        rustix::process::prlimit(pid, resource, Rlimit { current: soft.or(maximum), maximum })?;
        Ok(())
    }

    fn proc(&self, file: &str) -> PathBuf {
        Path::new("/proc").join(self.agent.pid().unwrap_or_default().to_string()).join(file)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Before the agent's folder goes, which the disk is mounted in.
        let _ = self.agent.kill();
        self.disk.take();
    }
}

/// A small file system of its own, in memory.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path, mib: u32) -> anyhow::Result<Self> {
        std::fs::create_dir_all(at)?;
        mount(&["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"], at)?;
        Ok(Self(at.to_owned()))
    }

    /// Fills it to the last byte.
    fn fill(&self) -> anyhow::Result<()> {
        let mut ballast = File::create(self.0.join("ballast"))?;
        for size in [1 << 20, 4 << 10, 1] {
            let block = vec![0; size];
            while ballast.write_all(&block).is_ok() {}
        }
        Ok(())
    }

    fn empty(&self) -> anyhow::Result<()> {
        Ok(std::fs::remove_file(self.0.join("ballast"))?)
    }

    fn remount(&self, how: &str) -> anyhow::Result<()> {
        mount(&["-o", &format!("remount,{how}")], &self.0)
    }
}

fn mount(arguments: &[&str], at: &Path) -> anyhow::Result<()> {
    let done = Command::new("mount").args(arguments).arg(at).output()?;
    anyhow::ensure!(done.status.success(), "mount: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).stderr(Stdio::null()).status();
    }
}

/// Only root may mount. Without, these are left out, and say so.
fn may_mount() -> bool {
    let may = rustix::process::geteuid().is_root();
    if !may {
        eprintln!("left out: only root can mount a small disk");
    }
    may
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_holds_events_up_and_loses_none() -> anyhow::Result<()> {
    if !may_mount() {
        return Ok(());
    }
    let mut place = Place::start(Some(48), "").await?;
    place.send(100, 0).await?;
    place.all_handled().await?;
    for _ in 0..2 {
        place.disk.as_ref().map(Disk::fill).transpose()?;
        place.goes_on(1_000, "No space left on device").await?;
        place.agent.status()?;
        place.disk.as_ref().map(Disk::empty).transpose()?;
        place.all_handled().await?;
    }
    place.agent.stop()
}

/// Killed while the disk is full, it cannot start, and says why; with room again it goes on where it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_on_a_full_disk_says_so_or_succeeds() -> anyhow::Result<()> {
    if !may_mount() {
        return Ok(());
    }
    let mut place = Place::start(Some(48), "").await?;
    place.send(300, 1_000).await?;
    place.disk.as_ref().map(Disk::fill).transpose()?;
    place.send(100, 1_000).await?;
    place.agent.kill()?;
    if let Err(error) = place.agent.resume().await {
        let said = format!("{error:#}");
        assert!(said.contains("No space left on device") && said.contains("hint: "), "{said}");
    }
    place.disk.as_ref().map(Disk::empty).transpose()?;
    if !place.agent.is_running() {
        place.agent.resume().await?;
    }
    place.all_handled().await?;
    place.agent.stop()
}

/// A disk that went read-only, as a worn-out SD card does: no start, but a reason and what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_on_a_read_only_disk_says_so() -> anyhow::Result<()> {
    if !may_mount() {
        return Ok(());
    }
    let mut place = Place::start(Some(48), "").await?;
    place.send(100, 0).await?;
    place.all_handled().await?;
    place.agent.stop()?;
    place.disk.as_ref().map(|disk| disk.remount("ro")).transpose()?;
    let said = format!("{:#}", place.agent.resume().await.expect_err("it cannot keep anything"));
    assert!(said.contains("Read-only file system") && said.contains("hint: "), "{said}");
    place.disk.as_ref().map(|disk| disk.remount("rw")).transpose()?;
    place.send(100, 0).await?;
    place.agent.resume().await?;
    place.all_handled().await?;
    place.agent.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_file_handles_the_agent_waits_for_some() -> anyhow::Result<()> {
    let mut place = Place::start(None, "").await?;
    place.send(100, 0).await?;
    place.all_handled().await?;
    let open = std::fs::read_dir(place.proc("fd"))?.count() as u64;
    let before = rustix::process::getrlimit(Resource::Nofile).current;
    place.limit(Resource::Nofile, Some(open))?;
    // Enough for new segments, which are files.
    place.goes_on(20_000, "Too many open files").await?;
    place.limit(Resource::Nofile, before)?;
    place.all_handled().await?;
    place.agent.status()?;
    place.agent.stop()
}

/// Without memory for another instance events wait. A process that the machine kills for its memory is one that was killed with -9.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_memory_nothing_is_lost() -> anyhow::Result<()> {
    let mut place = Place::start(None, "isolation = \"fresh\"\nconcurrency = 8").await?;
    place.send(100, 0).await?;
    place.all_handled().await?;
    let status = std::fs::read_to_string(place.proc("status"))?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmSize:")?.trim().strip_suffix(" kB"));
    let kib: u64 = kib.context("no VmSize")?.parse()?;
    place.limit(Resource::As, Some((kib + 1024) << 10))?;
    place.send(400, 50_000).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    if place.agent.is_running() {
        place.limit(Resource::As, None)?;
        println!("it lived through it");
    } else {
        println!("it ended of it");
        place.agent.resume().await?;
    }
    place.all_handled().await?;
    place.agent.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_gone_for_long_is_waited_for_quietly() -> anyhow::Result<()> {
    let mut place = Place::start(None, "").await?;
    place.send(100, 0).await?;
    place.all_handled().await?;
    place.broker.stop()?;
    let before = place.agent.log().len();
    tokio::time::sleep(2 * FAULT).await;
    let log = place.agent.log();
    let said = &log[before..];
    assert!(said.contains("refused") && said.len() < 4 << 10, "{} bytes of log:\n{said}", said.len());
    let status = place.agent.status()?;
    assert_eq!(status["brokers"][0]["ready"], false, "{status:#}");
    place.broker.resume().await?;
    place.agent.hears("local").await?;
    place.device = Device::connect(place.broker.port()).await?;
    place.device.subscribe("results/#", 1).await?;
    place.send(100, 0).await?;
    place.all_handled().await?;
    place.agent.stop()
}
