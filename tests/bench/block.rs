//! What a record costs in flash: bytes that reach the block device, each durability on an ext4 of its own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tidegate::clock::Clock;
use tidegate::config::{Config, Environment};
use tidegate::journal::{Journal, JournalConfig};
use tidegate::limits::Limits;
use tidegate::name::StreamName;

use crate::Options;
use crate::append::{RECORD_BYTES, append_one};
use crate::lab::beside;
use crate::report::{Figure, Target};

const PER_SECOND: u32 = 10;
/// Two whole periods of the slowest durability, and a little.
const SECONDS: u32 = 62;
/// The kernel counts in these, whatever the device does.
const SECTOR_BYTES: u64 = 512;

pub(crate) async fn measure(options: &Options) -> anyhow::Result<Vec<Figure>> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("block: left out, since only root can mount a loop device");
        return Ok(Vec::new());
    }
    let seconds = if options.quick { 3 } else { SECONDS };
    let most = 3.0 * RECORD_BYTES as f64;
    let parts = [("block-1", "each", None), ("block-2", "1s", None), ("block-3", "30s", Some(Target::AtMost(most)))];
    let runs = parts.map(|(id, durability, target)| async move {
        let bytes =
            written(durability, seconds).await.with_context(|| format!("with durability = \"{durability}\""))?;
        let what =
            format!("bytes at the block device per 200-byte record at {PER_SECOND}/s, durability \"{durability}\"");
        let figure = Figure::alone(id, what, "B", vec![bytes]);
        anyhow::Ok(target.into_iter().fold(figure, Figure::with))
    });
    let [each, one, thirty] = runs;
    let (each, one, thirty) = tokio::try_join!(each, one, thirty)?;
    Ok(vec![each, one, thirty])
}

/// Bytes per record.
async fn written(durability: &str, seconds: u32) -> anyhow::Result<f64> {
    let disk = Disk::make()?;
    let text = format!("[gateway]\nname = \"bench\"\n[stream.readings]\ndurability = \"{durability}\"\n");
    let config = Config::parse(&text, &disk.folder().join("gateway.toml"), &Environment::default())?;
    let clock = Clock::system();
    let journal_config = JournalConfig { streams: config.stream, limits: Arc::new(Limits::default()) };
    let journal = Journal::open(&disk.folder().join("journal"), journal_config, clock.clone())?;
    let stream = StreamName::parse("readings")?;
    append_one(&journal, &stream).await?;
    disk.settle()?;
    let before = disk.written_bytes()?;
    let mut due = clock.instant();
    let records = seconds * PER_SECOND;
    for _ in 0..records {
        due += Duration::from_secs(1) / PER_SECOND;
        append_one(&journal, &stream).await?;
        tokio::time::sleep_until(due).await;
    }
    // What is not on disk by its own durability's time would be counted as saved.
    journal.close().await?;
    disk.settle()?;
    Ok((disk.written_bytes()? - before) as f64 / f64::from(records))
}

/// An ext4 in a file, as a block device that counts. Gone with this value.
struct Disk {
    folder: tempfile::TempDir,
    device: String,
}

impl Disk {
    fn make() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("bench-disk-").tempdir_in(beside()?)?;
        let image = folder.path().join("image");
        std::fs::File::create(&image)?.set_len(512 << 20)?;
        let device = run("losetup", &["--find", "--show", &image.to_string_lossy()])?.trim().to_owned();
        let disk = Self { folder, device };
        std::fs::create_dir(disk.folder())?;
        // Or the kernel would go on making inode tables while we count.
        run("mkfs.ext4", &["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", &disk.device])?;
        run("mount", &["-o", "noatime", &disk.device, &disk.folder().to_string_lossy()])?;
        Ok(disk)
    }

    fn folder(&self) -> PathBuf {
        self.folder.path().join("mounted")
    }

    /// Brings everything to the device, the file system's own books too.
    fn settle(&self) -> anyhow::Result<()> {
        run("sync", &["--file-system", &self.folder().to_string_lossy()])?;
        Ok(())
    }

    fn written_bytes(&self) -> anyhow::Result<u64> {
        let name = Path::new(&self.device).file_name().context("the loop device has no name")?;
        let stat = std::fs::read_to_string(Path::new("/sys/block").join(name).join("stat"))?;
        let sectors = stat.split_whitespace().nth(6).context("no count of written sectors")?;
        Ok(sectors.parse::<u64>()? * SECTOR_BYTES)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for (program, argument) in
            [("umount", self.folder().to_string_lossy().into_owned()), ("losetup", self.device.clone())]
        {
            let arguments: &[&str] = if program == "losetup" { &["--detach", &argument] } else { &[&argument] };
            if let Err(error) = run(program, arguments) {
                eprintln!("{error:#}");
            }
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    // Debian has some of them where only root's path leads.
    let beyond = "PATH=$PATH:/usr/sbin:/sbin; exec \"$0\" \"$@\"";
    let output = Command::new("sh").args(["-c", beyond, program]).args(arguments).output();
    let output = output.with_context(|| format!("cannot start `{program}`"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "`{program} {}` failed: {said}", arguments.join(" "));
    Ok(String::from_utf8(output.stdout)?)
}
