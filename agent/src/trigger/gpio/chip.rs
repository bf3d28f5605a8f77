//! The kernel's side of it: chips and their lines, by the second version of its interface (Linux 5.10).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use gpiocdev_uapi::v2::{self as uapi, LineConfig as Settings, LineFlags, LineRequest, LineValues, Name, Offsets};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;

use super::{Bias, Direction, Drive, Edge, Initial, LineConfig, LineId};
use crate::config::read::nearest;

/// Where chips are, and how they are called there.
const DEVICES: &str = "/dev";
const DEVICE: &str = "gpiochip";
/// Edges that wait in the kernel: the most that it has room for.
pub(super) const EDGES_MAX: u16 = 1_024;

/// One that is open.
#[derive(Debug)]
pub(super) struct Chip {
    /// As the config calls it.
    pub(super) called: String,
    path: PathBuf,
    file: File,
    /// The names of its lines, some of which have none.
    names: Vec<String>,
}

impl Chip {
    /// Opens the one that the config calls so.
    ///
    /// # Errors
    /// With what is told of it.
    pub(super) fn open(called: &str) -> Result<Self, String> {
        let (path, file, info) = if called.starts_with('/') { at(Path::new(called))? } else { find(called)? };
        let mut chip = Self { called: called.to_owned(), path, file, names: Vec::new() };
        for offset in 0..info.num_lines {
            let line = chip.line(offset)?;
            chip.names.push(String::from(&line.name));
        }
        Ok(chip)
    }

    /// Fails when it is gone.
    ///
    /// # Errors
    /// With what is told of it.
    pub(super) fn is_there(&self) -> Result<(), String> {
        self.line(0).map(drop)
    }

    fn line(&self, offset: u32) -> Result<uapi::LineInfo, String> {
        let info = uapi::get_line_info(&self.file, offset);
        info.map_err(|error| match io_error(error) {
            error if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => {
                format!("`{}` is gone", self.path.display())
            }
            error => format!(
                "`{}` cannot be asked for its lines, for which Linux must be 5.10 or newer: {error}",
                self.path.display()
            ),
        })
    }

    /// The number of `line`.
    ///
    /// # Errors
    /// When the chip does not have it.
    pub(super) fn find(&self, line: &LineId) -> Result<u32, String> {
        let has_none = || format!("`{}` has no {line}", self.path.display());
        let name = match line {
            LineId::Offset(offset) if (0..self.names.len()).contains(&(*offset as usize)) => return Ok(*offset),
            LineId::Offset(_) => return Err(format!("{}, but {} from 0 on", has_none(), self.names.len())),
            LineId::Name(name) => name,
        };
        let mut found = (0..).zip(&self.names).filter(|(_, known)| *known == name);
        match (found.next(), found.next()) {
            (Some((offset, _)), None) => Ok(offset),
            (Some(_), Some(_)) => Err(format!(
                "`{}` has several lines `{name}`: write the number of the one that is meant",
                self.path.display()
            )),
            (None, _) => {
                let known: Vec<_> = self.names.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
                Err(match nearest(name, &known) {
                    Some(nearest) => format!("{}: did you mean `{nearest}`?", has_none()),
                    None => format!("{}: `gpioinfo` shows those that it has", has_none()),
                })
            }
        }
    }

    /// Fails when one of `lines` is there twice, by its number and by its name.
    ///
    /// # Errors
    /// With what is told of it.
    pub(super) fn are_distinct(&self, lines: &[LineConfig]) -> Result<(), String> {
        let mut known = BTreeMap::new();
        for line in lines {
            // What cannot be found is told of when it is opened.
            if let Ok(offset) = self.find(&line.line)
                && let Some(other) = known.insert(offset, &line.name)
            {
                let path = self.path.display();
                return Err(format!(
                    "`{other}` and `{}` are both line {offset} of `{path}`: keep one of them",
                    line.name
                ));
            }
        }
        Ok(())
    }

    /// Opens inputs, which are as many as can be together.
    ///
    /// # Errors
    /// With what is told of it.
    pub(super) fn inputs(&self, lines: &[(u32, &LineConfig)], consumer: &str) -> Result<File, String> {
        let mut settings = Settings::default();
        let mut debounces: Vec<(u32, u64)> = Vec::new();
        let mut flags: Vec<(LineFlags, u64)> = Vec::new();
        for (i, (_, line)) in lines.iter().enumerate() {
            add(&mut flags, of_input(line), 1 << i);
            if let Some(debounce) = line.debounce {
                // The config was checked.
                add(&mut debounces, u32::try_from(debounce.0.as_micros()).unwrap_or(u32::MAX), 1 << i);
            }
        }
        let mut flags = flags.into_iter();
        if let Some((first, _)) = flags.next() {
            settings.flags = first;
        }
        flags.for_each(|(flags, lines)| settings.add_flags(flags, lines));
        debounces.into_iter().for_each(|(debounce, lines)| settings.add_debounce(debounce, lines));
        let file = self.request(lines, settings, consumer)?;
        fcntl_setfl(&file, OFlags::NONBLOCK).map_err(|error| format!("lines cannot be waited for: {error}"))?;
        Ok(file)
    }

    /// Opens an output, which then has its initial level.
    ///
    /// # Errors
    /// With what is told of it.
    pub(super) fn output(&self, offset: u32, line: &LineConfig, consumer: &str) -> Result<File, String> {
        let with = |flags, active: bool| {
            let mut settings = Settings { flags, ..Settings::default() };
            settings.add_values(&LineValues::from_slice(&[active]));
            settings
        };
        match line.initial {
            Some(Initial::Keep) => {
                // Without a direction it is left as it is, until it is known what that is.
                let flags = of_both(line) & LineFlags::ACTIVE_LOW;
                let file = self.request(&[(offset, line)], Settings { flags, ..Settings::default() }, consumer)?;
                let as_it_is = levels(&file, 1).and_then(|levels| {
                    uapi::set_line_config(&file, with(of_output(line), levels[0])).map_err(io_error)
                });
                as_it_is.map_err(|error| self.told(offset, line, &error))?;
                Ok(file)
            }
            Some(Initial::Active(active)) => self.request(&[(offset, line)], with(of_output(line), active), consumer),
            None => self.request(&[(offset, line)], with(of_output(line), false), consumer),
        }
    }

    fn request(&self, lines: &[(u32, &LineConfig)], config: Settings, consumer: &str) -> Result<File, String> {
        let offsets: Vec<u32> = lines.iter().map(|(offset, _)| *offset).collect();
        let request = LineRequest {
            offsets: Offsets::from_slice(&offsets),
            consumer: Name::from(consumer),
            config,
            // 64 at most.
            num_lines: u32::try_from(lines.len()).unwrap_or(u32::MAX),
            event_buffer_size: u32::from(EDGES_MAX),
            ..LineRequest::default()
        };
        uapi::get_line(&self.file, request).map_err(|error| {
            let error = io_error(error);
            // The kernel does not say which one it is.
            let is_busy = error.kind() == io::ErrorKind::ResourceBusy;
            let taken = lines.iter().find(|(offset, _)| is_busy && self.user(*offset).is_some());
            match taken.or_else(|| lines.first()) {
                Some((offset, line)) => self.told(*offset, line, &error),
                None => error.to_string(),
            }
        })
    }

    /// Who has a line.
    fn user(&self, offset: u32) -> Option<String> {
        let line = self.line(offset).ok().filter(|line| line.flags.contains(LineFlags::USED))?;
        Some(if line.consumer.is_empty() {
            "the kernel".to_owned()
        } else {
            format!("`{}`", String::from(&line.consumer))
        })
    }

    /// Why `line` cannot be had.
    fn told(&self, offset: u32, line: &LineConfig, error: &io::Error) -> String {
        let is_input = line.direction == Direction::In;
        let line = format!("`{}`, line {offset} of `{}`,", line.name, self.path.display());
        // By the kernel's age, a line without an interrupt is the one or the other; the second is a chip that is gone, too.
        let [no_such, no_device] = [Errno::NXIO, Errno::NODEV].map(|errno| Some(errno.raw_os_error()));
        match (error.kind(), self.user(offset)) {
            (io::ErrorKind::ResourceBusy, Some(user)) => format!("{line} is in use by {user}"),
            _ if is_input && [no_such, no_device].contains(&error.raw_os_error()) && self.is_there().is_ok() => {
                format!("{line} cannot be heard: its chip tells of no edges")
            }
            _ => format!("{line} cannot be opened: {error}"),
        }
    }
}

/// Whether the first `count` lines of an open request are active.
///
/// # Errors
/// When its chip does not say so.
pub(super) fn levels(file: &File, count: usize) -> io::Result<Vec<bool>> {
    let mut values = LineValues::from_slice(&vec![false; count]);
    uapi::get_line_values(file, &mut values).map_err(io_error)?;
    Ok((0..count).map(|i| values.get(i).unwrap_or_default()).collect())
}

/// Sets an output.
///
/// # Errors
/// When its chip cannot be reached.
pub(super) fn set(file: &File, active: bool) -> io::Result<()> {
    uapi::set_line_values(file, &LineValues::from_slice(&[active])).map_err(io_error)
}

/// Reads edges, as many as there are and fit; gives how much of `words` they are.
///
/// # Errors
/// With `WouldBlock` when there are none.
pub(super) fn read(file: &File, words: &mut [u64]) -> io::Result<usize> {
    gpiocdev_uapi::read_event(file, words).map_err(io_error)
}

fn io_error(error: uapi::Error) -> io::Error {
    match error {
        uapi::Error::Os(errno) => io::Error::from_raw_os_error(errno.0),
        uapi::Error::UnderRead(error) => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

/// The chip of that device file.
fn at(path: &Path) -> Result<(PathBuf, File, uapi::ChipInfo), String> {
    let file = File::open(path).map_err(|error| format!("`{}` cannot be opened: {error}", path.display()))?;
    let info = uapi::get_chip_info(&file);
    let info = info.map_err(|error| format!("`{}` is no GPIO chip: {error}", path.display()))?;
    Ok((path.to_owned(), file, info))
}

/// The chip with that label.
fn find(called: &str) -> Result<(PathBuf, File, uapi::ChipInfo), String> {
    let devices = std::fs::read_dir(DEVICES).map_err(|error| format!("`{DEVICES}` cannot be read: {error}"))?;
    let is_chip = |entry: &std::fs::DirEntry| {
        // Some systems have links for the numbers of the past.
        let is_device = entry.file_type().is_ok_and(|kind| !kind.is_symlink());
        is_device && entry.file_name().to_string_lossy().starts_with(DEVICE)
    };
    let (mut found, mut others, mut failure) = (Vec::new(), Vec::new(), None);
    for entry in devices.filter_map(Result::ok).filter(is_chip) {
        match at(&entry.path()) {
            Ok(chip) if String::from(&chip.2.label) == called || String::from(&chip.2.name) == called => {
                found.push(chip)
            }
            Ok((_, _, info)) => others.push(String::from(&info.label)),
            Err(why) => failure = Some(why),
        }
    }
    if found.len() > 1 {
        return Err(format!(
            "{} chips are called `{called}`: write the device file of the one that is meant",
            found.len()
        ));
    }
    found.pop().ok_or_else(|| {
        let others: Vec<_> = others.iter().map(String::as_str).collect();
        let why = match (nearest(called, &others), failure) {
            (Some(nearest), _) => format!(": did you mean `{nearest}`?"),
            (None, Some(failure)) => format!(", and {failure}"),
            (None, None) => String::new(),
        };
        format!("there is no chip `{called}`{why}")
    })
}

/// Adds `line` to those that are alike.
fn add<T: PartialEq>(groups: &mut Vec<(T, u64)>, kind: T, line: u64) {
    match groups.iter_mut().find(|(known, _)| *known == kind) {
        Some((_, lines)) => *lines |= line,
        None => groups.push((kind, line)),
    }
}

fn of_input(line: &LineConfig) -> LineFlags {
    let edge = match line.edge.unwrap_or_default() {
        Edge::Both => LineFlags::EDGE_RISING | LineFlags::EDGE_FALLING,
        Edge::Rising => LineFlags::EDGE_RISING,
        Edge::Falling => LineFlags::EDGE_FALLING,
    };
    LineFlags::INPUT | edge | of_both(line)
}

fn of_output(line: &LineConfig) -> LineFlags {
    let drive = match line.drive.unwrap_or_default() {
        Drive::PushPull => LineFlags::empty(),
        Drive::OpenDrain => LineFlags::OPEN_DRAIN,
        Drive::OpenSource => LineFlags::OPEN_SOURCE,
    };
    LineFlags::OUTPUT | drive | of_both(line)
}

fn of_both(line: &LineConfig) -> LineFlags {
    let bias = match line.bias {
        None => LineFlags::empty(),
        Some(Bias::PullUp) => LineFlags::BIAS_PULL_UP,
        Some(Bias::PullDown) => LineFlags::BIAS_PULL_DOWN,
        Some(Bias::Disabled) => LineFlags::BIAS_DISABLED,
    };
    if line.active_low { bias | LineFlags::ACTIVE_LOW } else { bias }
}
