//! A disk that counts what is written to it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::lab::beside;

/// The kernel counts in these, whatever the device does.
const SECTOR_BYTES: u64 = 512;

/// An ext4 in a file, as a block device that counts. Gone with this value.
pub(crate) struct Disk {
    /// Where the image is, until it is unmounted.
    _image: tempfile::TempDir,
    device: String,
    folder: PathBuf,
}

impl Disk {
    /// Whether one can; says of `what` that it cannot.
    pub(crate) fn can_be_made(what: &str) -> bool {
        let is_root = rustix::process::geteuid().is_root();
        if !is_root {
            eprintln!("{what}: left out, since only root can mount a loop device");
        }
        is_root
    }

    /// Mounted at `folder`, or where nothing else is.
    pub(crate) fn make(folder: Option<PathBuf>) -> anyhow::Result<Self> {
        let own = tempfile::Builder::new().prefix("bench-disk-").tempdir_in(beside()?)?;
        let image = own.path().join("image");
        std::fs::File::create(&image)?.set_len(512 << 20)?;
        let device = run("losetup", &["--find", "--show", &image.to_string_lossy()])?.trim().to_owned();
        let folder = folder.unwrap_or_else(|| own.path().join("mounted"));
        let disk = Self { _image: own, device, folder };
        std::fs::create_dir_all(disk.folder())?;
        // Or the kernel would go on making inode tables while we count.
        run("mkfs.ext4", &["-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", &disk.device])?;
        run("mount", &["-o", "noatime", &disk.device, &disk.folder().to_string_lossy()])?;
        Ok(disk)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Brings everything to the device, the file system's own books too.
    pub(crate) fn settle(&self) -> anyhow::Result<()> {
        run("sync", &["--file-system", &self.folder().to_string_lossy()])?;
        Ok(())
    }

    pub(crate) fn written_bytes(&self) -> anyhow::Result<u64> {
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
