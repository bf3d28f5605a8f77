//! `[source.NAME]`: what of this machine triggers may hear.

use std::path::Path;

use super::document::Document;
use super::read::{keys, kinds};
use crate::name::SourceName;
use crate::trigger::file::FileSource;
use crate::trigger::gpio::GpioSource;
use crate::trigger::modbus::{Link, ModbusSource};
use crate::trigger::process::ProcessSource;
use crate::trigger::serial::SerialSource;
use crate::trigger::source::{Left, Outlet};
use crate::trigger::sysfs::SysfsSource;
use crate::trigger::tail::TailSource;

/// Exactly one of the keys.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceConfig {
    /// `process = { command = ["rtl_433", "-F", "json"] }`.
    Process(ProcessSource),
    /// `tail = { file = "/var/log/syslog" }`.
    Tail(TailSource),
    /// `file = { folder = "/data/inbox" }`.
    File(FileSource),
    /// `sysfs = { preset = "thermal", every = "10s" }`.
    Sysfs(SysfsSource),
    /// `serial = { device = "/dev/ttyUSB0", baud = 9600 }`.
    Serial(SerialSource),
    /// `modbus = { tcp = "192.168.1.20:502", registers = […] }`.
    Modbus(ModbusSource),
    /// `gpio = { chip = "/dev/gpiochip0", lines = […] }`.
    Gpio(GpioSource),
}

kinds! { SourceConfig: "process" = Self::Process, "tail" = Self::Tail, "file" = Self::File, "sysfs" = Self::Sysfs, "serial" = Self::Serial, "modbus" = Self::Modbus, "gpio" = Self::Gpio; later "opcua" }

impl SourceConfig {
    /// The key.
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Process(_) => "process",
            Self::Tail(_) => "tail",
            Self::File(_) => "file",
            Self::Sysfs(_) => "sysfs",
            Self::Serial(_) => "serial",
            Self::Modbus(_) => "modbus",
            Self::Gpio(_) => "gpio",
        }
    }

    /// The device that it alone can open, and the key that says so.
    pub(super) fn device(&self) -> Option<(&'static str, &Path)> {
        match self {
            Self::Serial(serial) => Some(("device", &serial.port.device)),
            Self::Modbus(ModbusSource { link: Link::Rtu(port), .. }) => Some(("rtu.device", &port.device)),
            // Lines of a chip can be opened by several.
            Self::Process(_) | Self::Tail(_) | Self::File(_) | Self::Sysfs(_) | Self::Modbus(_) | Self::Gpio(_) => None,
        }
    }

    /// Whether functions can set something there.
    pub(crate) const fn takes_orders(&self) -> bool {
        matches!(self, Self::Modbus(_) | Self::Gpio(_))
    }

    /// Whether it is in this build: that of a gateway may leave some out.
    const fn is_built(&self) -> bool {
        match self {
            Self::Process(_) | Self::Tail(_) | Self::File(_) | Self::Sysfs(_) => true,
            Self::Serial(_) => cfg!(feature = "serial"),
            Self::Modbus(_) => cfg!(feature = "modbus"),
            Self::Gpio(_) => cfg!(feature = "gpio"),
        }
    }

    pub(super) fn check(&self, path: &str, document: &mut Document) {
        if !self.is_built() {
            let what = format!("this build of tidegate has no `{}`", self.kind());
            document.refuse_key(path, what, "install one that has it, or remove the source");
        }
        match self {
            Self::Process(process) => process.check(path, document),
            Self::Tail(_) => {}
            Self::File(file) => file.check(path, document),
            Self::Sysfs(sysfs) => sysfs.check(path, document),
            Self::Serial(serial) => serial.check(path, document),
            Self::Modbus(modbus) => modbus.check(path, document),
            Self::Gpio(gpio) => gpio.check(path, document),
        }
    }

    /// Makes events until the outlet says that it is to end; gives what is open then.
    pub(crate) async fn run(self, outlet: Outlet) -> Option<Left> {
        match self {
            Self::Process(process) => process.run(outlet).await,
            Self::Tail(tail) => tail.run(outlet).await,
            Self::File(file) => file.run(outlet).await,
            Self::Sysfs(sysfs) => sysfs.run(outlet).await,
            #[cfg(feature = "serial")]
            Self::Serial(serial) => serial.run(outlet).await,
            #[cfg(feature = "modbus")]
            Self::Modbus(modbus) => modbus.run(outlet).await,
            #[cfg(feature = "gpio")]
            Self::Gpio(gpio) => return gpio.run(outlet).await,
            // `check` has refused those that are not built.
            #[cfg(not(feature = "serial"))]
            Self::Serial(_) => {}
            #[cfg(not(feature = "modbus"))]
            Self::Modbus(_) => {}
            #[cfg(not(feature = "gpio"))]
            Self::Gpio(_) => {}
        }
        None
    }
}

/// `process = { source = "radio" }`, and what else a trigger of that kind can say.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceTrigger {
    /// Which `[source.NAME]`.
    pub source: SourceName,
}

keys! { SourceTrigger: source = required("\"radio\"") }
