//! The machine: its clock, memory, power, disk and flash.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Finding;
use crate::clock::Clock;
use crate::readable::{duration, size, time};
use crate::units::ByteSize;

/// Less than this, and the next function may not start.
const MEMORY_LOW: ByteSize = ByteSize::mib(48);
/// Less than this, and the journal soon has no room for its next segment.
const DISK_LOW: ByteSize = ByteSize::mib(16);
/// From here on processors of boards slow down.
const HOT_MILLIDEGREES: i64 = 80_000;
/// eMMC tells its life in tenths that are used up; the last but two say that it ends.
const WORN_TENTHS: u8 = 8;
/// `statfs` of a file system in memory.
const TMPFS: u64 = 0x0102_1994;
/// A sector, as the kernel counts what is written.
const SECTOR_BYTES: u64 = 512;

/// Whether the time is known, and kept by the network.
pub(super) fn clock(clock: &Clock) -> Finding {
    let now = time(clock.now_ms());
    if !clock.is_plausible() {
        let hint = "set it (`timedatectl set-ntp true`), or give the board a battery for its clock; until then TLS is refused by certificates that are \"not valid yet\"";
        return Finding::error("clock", format!("it says {now}, which cannot be"), hint);
    }
    match clock.is_kept() {
        Some(true) => Finding::ok("clock", format!("{now}, kept by the network")),
        Some(false) => Finding::warning(
            "clock",
            format!("{now}, and nothing keeps it right"),
            "have it set by the network: `timedatectl set-ntp true`, or install chrony",
        ),
        None => Finding::unknown("clock", format!("{now}; the kernel does not say whether anything keeps it right")),
    }
}

/// Whether there is room for another function.
pub(super) fn memory(root: &Path) -> Finding {
    let text = fs::read_to_string(root.join("proc/meminfo")).unwrap_or_default();
    let (Some(total), Some(free)) = (kibibytes(&text, "MemTotal:"), kibibytes(&text, "MemAvailable:")) else {
        return Finding::unknown("memory", "the kernel does not say how much there is");
    };
    let what = format!("{} of {} are available", size(free), size(total));
    if free < MEMORY_LOW.0 {
        return Finding::warning(
            "memory",
            what,
            "lower `memory` and `concurrency` of functions, or stop what else runs here",
        );
    }
    Finding::ok("memory", what)
}

fn kibibytes(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// What boards tell of their supply and of heat; nothing where they tell nothing.
pub(super) fn power(root: &Path) -> Vec<Finding> {
    let mut found = Vec::new();
    let low = entries(&root.join("sys/class/hwmon")).into_iter().find_map(|sensor| {
        (read(&sensor.join("name"))? == "rpi_volt").then(|| read(&sensor.join("in0_lcrit_alarm")))?
    });
    match low.as_deref() {
        Some("0") => found.push(Finding::ok("power", "the supply holds its voltage")),
        Some(_) => {
            let hint = "use a supply and a cable that are meant for the board: writes are lost when the voltage goes further down";
            found.push(Finding::error("power", "the voltage was too low since the start", hint));
        }
        None => {}
    }
    let zones = entries(&root.join("sys/class/thermal"));
    let hottest = zones.iter().filter_map(|zone| read(&zone.join("temp"))?.parse::<i64>().ok()).max();
    if let Some(hottest) = hottest {
        let what = format!("the hottest part has {} °C", hottest / 1000);
        found.push(match hottest < HOT_MILLIDEGREES {
            true => Finding::ok("heat", what),
            false => Finding::warning("heat", what, "give it air or a heat sink: it slows down to protect itself"),
        });
    }
    found
}

/// Whether the state folder is on a disk that keeps what is written, with room for what it may hold.
pub(super) fn disk(state_dir: &Path, buffer: ByteSize) -> Finding {
    let Some(folder) = existing(state_dir) else { return Finding::unknown("disk", "there is no folder to look at") };
    let (Ok(room), Ok(kind)) = (rustix::fs::statvfs(&folder), rustix::fs::statfs(&folder)) else {
        return Finding::unknown("disk", format!("the file system of {} tells nothing", folder.display()));
    };
    let of = state_dir.display();
    if u64::try_from(kind.f_type).is_ok_and(|kind| kind == TMPFS) {
        let hint = "put `state_dir` on a disk: what is not yet sent is gone with the next restart of the machine";
        return Finding::warning("disk", format!("{of} is in memory"), hint);
    }
    if room.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        let hint =
            "mount it again for writing; a card that failed is often mounted read-only by the kernel: look at `dmesg`";
        return Finding::error("disk", format!("{of} is on a file system that is read-only"), hint);
    }
    let free = room.f_bavail.saturating_mul(room.f_frsize);
    let what = format!("{} are free for {of}", size(free));
    if free < DISK_LOW.0 || (room.f_files > 0 && room.f_favail == 0) {
        return Finding::error(
            "disk",
            format!("only {what}"),
            "free space there: functions with streams wait until there is some",
        );
    }
    if free < buffer.0 {
        let hint =
            "lower `buffer_bytes` in [gateway], or free space: records could not be kept for as long as is configured";
        return Finding::warning("disk", format!("{what}, less than `buffer_bytes` of {buffer}"), hint);
    }
    Finding::ok("disk", what)
}

/// How much of the flash's life is over, where it tells.
pub(super) fn wear(state_dir: &Path, root: &Path) -> Finding {
    let device = existing(state_dir).and_then(|folder| block_device(&folder, root));
    let Some(device) = device else {
        return Finding::unknown("flash", "the disk behind the state folder is not known");
    };
    let name = device.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let written = written(&device, root).map(|written| format!("; {written}")).unwrap_or_default();
    // Two kinds of cells, each `0x01` for the first tenth of its life and so on (JEDEC eMMC 5.0, EXT_CSD 268 and 269).
    let life = read(&device.join("device/life_time")).and_then(|life| {
        let tenth = |cells: &str| u8::from_str_radix(cells.trim_start_matches("0x"), 16).ok();
        life.split_whitespace().filter_map(tenth).max().filter(|tenth| *tenth > 0)
    });
    match life {
        Some(tenth) if tenth >= WORN_TENTHS => Finding::warning(
            "flash",
            format!("{name} has {} % or more of its life behind it{written}", (tenth - 1) * 10),
            "plan to replace it; `durability = \"10s\"` of streams writes less often",
        ),
        Some(tenth) => {
            Finding::ok("flash", format!("{name} has at most {} % of its life behind it{written}", tenth * 10))
        }
        None => Finding::unknown("flash", format!("{name} does not tell its wear{written}")),
    }
}

/// What was written to it since the machine started.
fn written(device: &Path, root: &Path) -> Option<String> {
    let sectors: u64 = read(&device.join("stat"))?.split_whitespace().nth(6)?.parse().ok()?;
    let up: f64 = read(&root.join("proc/uptime"))?.split_whitespace().next()?.parse().ok()?;
    let up = Duration::try_from_secs_f64(up).ok()?;
    Some(format!("{} were written in {}", size(sectors.saturating_mul(SECTOR_BYTES)), duration(up)))
}

/// The disk that `folder` is on, in sysfs: the whole one, when it is on a partition.
fn block_device(folder: &Path, root: &Path) -> Option<PathBuf> {
    let device = fs::metadata(folder).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let found = fs::canonicalize(root.join(format!("sys/dev/block/{major}:{minor}"))).ok()?;
    if found.join("partition").exists() { found.parent().map(Path::to_path_buf) } else { Some(found) }
}

/// The folder, or the nearest above it that is there.
fn existing(folder: &Path) -> Option<PathBuf> {
    folder.ancestors().find(|folder| folder.is_dir()).map(Path::to_path_buf)
}

fn read(file: &Path) -> Option<String> {
    fs::read_to_string(file).ok().map(|text| text.trim().to_owned())
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn root(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, text).unwrap();
        }
        root
    }

    #[test]
    fn a_clock_that_was_never_set_is_an_error() {
        let found = clock(&Clock::held_at(86_400_000));
        assert_eq!(found.verdict, Verdict::Error, "{found:?}");
        assert!(found.what.starts_with("it says 1970-01-0"), "{found:?}");
    }

    #[test]
    fn little_memory_is_a_warning() {
        let board = root(&[("proc/meminfo", "MemTotal:      500000 kB\nMemFree: 1 kB\nMemAvailable:    20000 kB\n")]);
        assert_eq!(memory(board.path()).verdict, Verdict::Warning);
        assert_eq!(memory(board.path()).what, "19 MiB of 488 MiB are available");
        assert_eq!(memory(root(&[]).path()).verdict, Verdict::Unknown);
    }

    #[test]
    fn a_weak_supply_and_heat_are_told() {
        let board = root(&[
            ("sys/class/hwmon/hwmon0/name", "cpu_thermal\n"),
            ("sys/class/hwmon/hwmon1/name", "rpi_volt\n"),
            ("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1\n"),
            ("sys/class/thermal/thermal_zone0/temp", "83200\n"),
        ]);
        let verdicts: Vec<_> = power(board.path()).into_iter().map(|found| (found.about, found.verdict)).collect();
        assert_eq!(verdicts, [("power".to_owned(), Verdict::Error), ("heat".to_owned(), Verdict::Warning)]);
        assert_eq!(power(root(&[]).path()), []);
    }

    #[test]
    fn worn_flash_is_told_of_the_whole_disk() {
        let state = tempfile::tempdir().unwrap();
        let device = fs::metadata(state.path()).unwrap().dev();
        let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        let board = root(&[
            ("sys/devices/mmcblk0/mmcblk0p2/partition", "2\n"),
            ("sys/devices/mmcblk0/device/life_time", "0x02 0x09\n"),
            ("sys/devices/mmcblk0/stat", "1 2 3 4 5 6 4194304 8 9\n"),
            ("proc/uptime", "3600.25 1.0\n"),
        ]);
        fs::create_dir_all(board.path().join("sys/dev/block")).unwrap();
        let link = board.path().join("sys/dev/block").join(number);
        std::os::unix::fs::symlink(board.path().join("sys/devices/mmcblk0/mmcblk0p2"), link).unwrap();
        let found = wear(state.path(), board.path());
        assert_eq!(found.verdict, Verdict::Warning);
        assert_eq!(found.what, "mmcblk0 has 80 % or more of its life behind it; 2 GiB were written in 1h 0m");
    }

    #[test]
    fn a_disk_with_less_room_than_the_buffer_may_take_is_a_warning() {
        let state = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let not_there_yet = state.path().join("tidegate");
        assert_eq!(disk(&not_there_yet, ByteSize(u64::MAX)).verdict, Verdict::Warning);
    }
}
