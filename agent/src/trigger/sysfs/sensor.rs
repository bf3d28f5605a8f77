//! Where Linux has sensors, what it calls them, and what their files say.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::{Preset, SysfsSource};
use crate::trigger::pattern::is_name;
use crate::trigger::rounded;

/// What is read of a file: the kernel never writes more about one value.
const VALUE_BYTES_MAX: u64 = 256;

/// Which files are those of sensors, below `/sys`.
const THERMAL: &[&str] = &["class/thermal/thermal_zone*/temp"];
const HWMON: &[&str] = &[
    "class/hwmon/hwmon*/temp*_input",
    "class/hwmon/hwmon*/in*_input",
    "class/hwmon/hwmon*/curr*_input",
    "class/hwmon/hwmon*/power*_input",
    "class/hwmon/hwmon*/power*_average",
    "class/hwmon/hwmon*/energy*_input",
    "class/hwmon/hwmon*/humidity*_input",
    "class/hwmon/hwmon*/fan*_input",
];
const IIO: &[&str] = &["bus/iio/devices/iio:device*/in_*_raw", "bus/iio/devices/iio:device*/in_*_input"];

/// What a channel begins with, the unit that we give, and how many of the kernel's that is: Documentation/hwmon/sysfs-interface.rst.
const HWMON_UNITS: &[(&str, &str, f64)] = &[
    ("temp", "°C", 1e-3),
    ("in", "V", 1e-3),
    ("curr", "A", 1e-3),
    ("power", "W", 1e-6),
    ("energy", "J", 1e-6),
    ("humidity", "%", 1e-3),
    ("fan", "rpm", 1.0),
];

/// The same after offset and scale: Documentation/ABI/testing/sysfs-bus-iio.
const IIO_UNITS: &[(&str, &str, f64)] = &[
    ("in_temp", "°C", 1e-3),
    ("in_voltage", "V", 1e-3),
    ("in_altvoltage", "V", 1e-3),
    ("in_current", "A", 1e-3),
    ("in_power", "W", 1e-3),
    ("in_energy", "J", 1.0),
    ("in_humidityrelative", "%", 1e-3),
    ("in_pressure", "kPa", 1.0),
    ("in_illuminance", "lx", 1.0),
    ("in_accel", "m/s²", 1.0),
    ("in_anglvel", "rad/s", 1.0),
    ("in_magn", "G", 1.0),
    ("in_resistance", "Ω", 1.0),
    ("in_concentration", "%", 1.0),
    ("in_distance", "m", 1.0),
];

/// A sensor, and what it says now.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reading {
    /// Its file.
    pub(super) file: PathBuf,
    /// What Linux calls it: chip and channel, as `coretemp/Core 0`.
    pub(super) name: String,
    pub(super) unit: Option<String>,
    pub(super) value: f64,
}

/// The files of all sensors of `source`, at most `max`.
pub(super) fn find(source: &SysfsSource, max: usize) -> Vec<PathBuf> {
    let below_root = |patterns: &[&str]| patterns.iter().map(|pattern| source.root.join(pattern)).collect();
    let patterns: Vec<PathBuf> = match source.preset {
        Some(Preset::Thermal) => below_root(THERMAL),
        Some(Preset::Hwmon) => below_root(HWMON),
        Some(Preset::Iio) => below_root(IIO),
        None => source.files.clone(),
    };
    let mut found: Vec<_> = patterns.iter().flat_map(|pattern| expand(pattern)).collect();
    found.sort_unstable();
    found.dedup();
    found.truncate(max);
    found
}

/// The paths that `pattern` stands for.
fn expand(pattern: &Path) -> Vec<PathBuf> {
    let mut paths = vec![PathBuf::new()];
    for part in pattern.components() {
        let text = part.as_os_str().to_string_lossy();
        paths = if text.contains(['*', '?']) {
            let entries = paths.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
            entries.filter(|entry| is_name(&text, &entry.file_name().to_string_lossy())).map(|e| e.path()).collect()
        } else {
            paths.into_iter().map(|path| path.join(part)).collect()
        };
    }
    paths.retain(|path| path.exists());
    paths
}

/// Reads the sensor behind `file`.
///
/// # Errors
/// With why there is no value.
pub(super) fn read(source: &SysfsSource, file: &Path) -> Result<Reading, String> {
    let told = |why: String| format!("`{}` {why}", file.display());
    let raw = number(file).map_err(told)?;
    let folder = file.parent().unwrap_or(file);
    let whole = file.file_name().unwrap_or_default().to_string_lossy();
    let channel = ["_input", "_raw", "_average"].iter().find_map(|end| whole.strip_suffix(end)).unwrap_or(&whole);
    let (unit, value) = match source.preset {
        Some(Preset::Thermal) => (Some("°C"), raw * 1e-3),
        Some(Preset::Hwmon) => in_unit(HWMON_UNITS, channel, raw),
        Some(Preset::Iio) => {
            let is_raw = whole.ends_with("_raw");
            let factor =
                |what, otherwise| if is_raw { of_channel(folder, channel, what, otherwise) } else { Ok(otherwise) };
            let (offset, scale) = (factor("offset", 0.0).map_err(told)?, factor("scale", 1.0).map_err(told)?);
            in_unit(IIO_UNITS, channel, (raw + offset) * scale)
        }
        None => (source.unit.as_deref(), (raw + source.offset) * source.scale),
    };
    let word = |name: &str| text(&folder.join(name)).ok().filter(|word| !word.is_empty());
    let folder_name = || folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let chip = word("name").or_else(|| word("type")).unwrap_or_else(folder_name);
    let name = match word(&format!("{channel}_label")) {
        Some(label) => format!("{chip}/{label}"),
        // A thermal zone has one value.
        None if source.preset == Some(Preset::Thermal) => chip,
        None => format!("{chip}/{}", channel.strip_prefix("in_").unwrap_or(channel)),
    };
    let value = rounded(value);
    if !value.is_finite() {
        return Err(told("has no finite value".to_owned()));
    }
    Ok(Reading { file: file.to_owned(), name, unit: unit.map(ToOwned::to_owned), value })
}

fn in_unit(units: &[(&'static str, &'static str, f64)], channel: &str, value: f64) -> (Option<&'static str>, f64) {
    let unit = units.iter().find(|(kind, ..)| {
        channel.strip_prefix(kind).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphabetic()))
    });
    unit.map_or((None, value), |(_, unit, factor)| (Some(unit), value * factor))
}

/// The offset or scale of a channel: `in_voltage0_scale`, or else the one of all that are alike, `in_voltage_scale`.
fn of_channel(folder: &Path, channel: &str, what: &str, otherwise: f64) -> Result<f64, String> {
    let kind = channel.strip_prefix("in_").unwrap_or(channel);
    let kind = kind.split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or(kind);
    let unnumbered: String = channel.chars().filter(|c| !c.is_ascii_digit()).collect();
    for name in [channel, &unnumbered, &format!("in_{kind}")] {
        let file = folder.join(format!("{name}_{what}"));
        if file.exists() {
            return number(&file).map_err(|why| format!("has a {what} that {why}"));
        }
    }
    Ok(otherwise)
}

fn number(file: &Path) -> Result<f64, String> {
    let text = text(file).map_err(|error| format!("cannot be read: {error}"))?;
    text.parse().map_err(|_| format!("says `{}`, which is no number", text.escape_debug()))
}

fn text(file: &Path) -> io::Result<String> {
    // Who names a pipe must not hold up the others.
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let opened = fs::OpenOptions::new().read(true).custom_flags(nonblock).open(file)?;
    let mut bytes = Vec::new();
    opened.take(VALUE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Span;

    /// A tree of files, as `/sys` has them.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, format!("{text}\n")).unwrap();
        }
        root
    }

    fn source(preset: Option<Preset>, root: &Path) -> SysfsSource {
        SysfsSource {
            preset,
            files: Vec::new(),
            root: root.to_owned(),
            every: Span::from_secs(1),
            scale: 1.0,
            offset: 0.0,
            unit: None,
            above: None,
            below: None,
            hysteresis: 0.0,
        }
    }

    #[track_caller]
    fn check(preset: Preset, files: &[(&str, &str)], expected: &[Result<(&str, f64, &str), &str>]) {
        let root = tree(files);
        let source = source(Some(preset), root.path());
        let read: Vec<_> = find(&source, 100).iter().map(|file| super::read(&source, file)).collect();
        assert_eq!(read.len(), expected.len(), "{read:?}");
        for (read, expected) in read.iter().zip(expected) {
            match (read, expected) {
                (Ok(read), Ok(expected)) => {
                    assert_eq!((&*read.name, read.value, read.unit.as_deref().unwrap_or("")), *expected);
                }
                (Err(why), Err(expected)) => assert!(why.contains(expected), "{why}"),
                _ => panic!("{read:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn thermal_zones_are_called_by_their_type() {
        let files = [
            ("class/thermal/thermal_zone0/temp", "48123"),
            ("class/thermal/thermal_zone0/type", "cpu-thermal"),
            ("class/thermal/thermal_zone1/temp", "-5500"),
            ("class/thermal/cooling_device0/type", "Fan"),
        ];
        check(Preset::Thermal, &files, &[Ok(("cpu-thermal", 48.123, "°C")), Ok(("thermal_zone1", -5.5, "°C"))]);
    }

    #[test]
    fn chips_have_channels_with_labels_and_units() {
        let files = [
            ("class/hwmon/hwmon0/name", "coretemp"),
            ("class/hwmon/hwmon0/temp2_input", "51000"),
            ("class/hwmon/hwmon0/temp2_label", "Core 0"),
            ("class/hwmon/hwmon0/temp2_max", "80000"),
            ("class/hwmon/hwmon1/name", "it8728"),
            ("class/hwmon/hwmon1/fan1_input", "1350"),
            ("class/hwmon/hwmon1/in0_input", "3312"),
            ("class/hwmon/hwmon1/power1_average", "12500000"),
            ("class/hwmon/hwmon1/temp1_input", "broken"),
        ];
        let expected = [
            Ok(("coretemp/Core 0", 51.0, "°C")),
            Ok(("it8728/fan1", 1350.0, "rpm")),
            Ok(("it8728/in0", 3.312, "V")),
            Ok(("it8728/power1", 12.5, "W")),
            Err("temp1_input` says `broken`, which is no number"),
        ];
        check(Preset::Hwmon, &files, &expected);
    }

    #[test]
    fn offset_and_scale_of_iio_are_those_of_the_channel_or_of_its_kind() {
        let device = |file: &str| format!("bus/iio/devices/iio:device0/{file}");
        let files = [
            ("name", "bme280"),
            ("in_accel_x_raw", "-100"),
            ("in_accel_scale", "0.009806"),
            ("in_humidityrelative_input", "41500"),
            ("in_temp_raw", "1000"),
            ("in_temp_offset", "50"),
            ("in_temp_scale", "20"),
            ("in_voltage0_raw", "2048"),
            ("in_voltage1_raw", "2048"),
            ("in_voltage1_label", "battery"),
            ("in_voltage1_scale", "2"),
            ("in_voltage_scale", "0.5"),
            ("in_weird_raw", "7"),
        ];
        let files = files.map(|(file, text)| (device(file), text));
        let files: Vec<_> = files.iter().map(|(file, text)| (file.as_str(), *text)).collect();
        let expected = [
            Ok(("bme280/accel_x", -0.9806, "m/s²")),
            Ok(("bme280/humidityrelative", 41.5, "%")),
            Ok(("bme280/temp", 21.0, "°C")),
            Ok(("bme280/voltage0", 1.024, "V")),
            Ok(("bme280/battery", 4.096, "V")),
            Ok(("bme280/weird", 7.0, "")),
        ];
        check(Preset::Iio, &files, &expected);
    }

    #[test]
    fn any_files_are_read_as_they_are_told() {
        let root = tree(&[("gpio/a/value", "12"), ("gpio/b/value", "-2"), ("gpio/b/other", "9"), ("gpio/c/value", "")]);
        let files = vec![root.path().join("gpio/?/value")];
        let unit = Some("mbar".to_owned());
        let source = SysfsSource { files, scale: 0.5, offset: 2.0, unit, ..source(None, root.path()) };
        let read: Vec<_> = find(&source, 100).iter().map(|file| super::read(&source, file)).collect();
        let values: Vec<_> = read.iter().flatten().map(|r| (r.name.as_str(), r.value)).collect();
        assert_eq!(values, [("a/value", 7.0), ("b/value", 0.0)]);
        assert!(read[2].as_ref().unwrap_err().contains("says ``"), "{read:?}");
        assert_eq!(find(&source, 2).len(), 2, "sensors have a bound");
    }

    #[test]
    fn the_sensors_of_this_machine_can_be_read() {
        for preset in [Preset::Thermal, Preset::Hwmon, Preset::Iio] {
            let source = source(Some(preset), Path::new("/sys"));
            for file in find(&source, 1_000) {
                // Some need a privilege, or are asleep.
                if let Ok(reading) = super::read(&source, &file) {
                    assert!(reading.value.is_finite() && !reading.name.is_empty(), "{reading:?}");
                }
            }
        }
    }
}
