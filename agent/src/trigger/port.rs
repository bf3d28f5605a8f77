//! Serial ports: how one is set up, and opened. `serial` sources listen on one, `modbus` sources talk over one.

use std::path::PathBuf;

use crate::config::{Document, join, keys, words};

/// What a serial source and a Modbus line have in common: `device = "/dev/ttyUSB0", baud = 9600`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortConfig {
    /// The device file.
    pub device: PathBuf,
    /// Bits a second.
    pub baud: u32,
    /// Of one character: 5 to 8.
    pub data_bits: u8,
    /// What checks a character.
    pub parity: Parity,
    /// 1 or 2.
    pub stop_bits: u8,
    /// How a side that has no room says so.
    pub flow: Flow,
}

keys! { PortConfig:
    device = required("\"/dev/ttyUSB0\""),
    baud = required("9600"),
    data_bits = or(8),
    parity = or(Parity::None),
    stop_bits = or(1),
    flow = or(Flow::None),
}

/// `parity`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parity {
    /// Nothing.
    None,
    /// A bit that makes the number of ones even.
    Even,
    /// One that makes it odd.
    Odd,
}

words! { Parity: "none" = Self::None, "even" = Self::Even, "odd" = Self::Odd }

/// `flow`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// It does not: what finds no room is lost.
    None,
    /// By the wires RTS and CTS.
    Hardware,
    /// By the characters XON and XOFF.
    Software,
}

words! { Flow: "none" = Self::None, "hardware" = Self::Hardware, "software" = Self::Software }

impl PortConfig {
    pub(super) fn check(&self, path: &str, document: &mut Document) {
        if self.baud == 0 {
            document.refuse(&join(path, "baud"), "nothing would ever come", "write for example `baud = 9600`");
        }
        if !(5..=8).contains(&self.data_bits) {
            let what = format!("a character of {} bits is not between 5 and 8", self.data_bits);
            document.refuse(&join(path, "data_bits"), what, "write 8, or 7 for some older devices");
        }
        if !(1..=2).contains(&self.stop_bits) {
            let what = format!("there are no {} stop bits", self.stop_bits);
            document.refuse(&join(path, "stop_bits"), what, "write 1 or 2");
        }
    }
}

/// One that is open.
#[cfg(feature = "serial")]
pub(super) use serial2_tokio::SerialPort;

#[cfg(any(feature = "serial", feature = "modbus"))]
mod open {
    use serial2_tokio::{CharSize, FlowControl, SerialPort, Settings, StopBits};

    use super::{Flow, Parity, PortConfig};

    impl PortConfig {
        /// Opens the device.
        ///
        /// # Errors
        /// With what is told of it.
        pub(in crate::trigger) fn open(&self) -> Result<SerialPort, String> {
            let opened = SerialPort::open(&self.device, |settings| self.applied_to(settings));
            opened.map_err(|error| format!("`{}` cannot be opened: {error}", self.device.display()))
        }

        fn applied_to(&self, mut settings: Settings) -> std::io::Result<Settings> {
            settings.set_raw();
            settings.set_baud_rate(self.baud)?;
            settings.set_char_size(match self.data_bits {
                5 => CharSize::Bits5,
                6 => CharSize::Bits6,
                7 => CharSize::Bits7,
                _ => CharSize::Bits8,
            });
            settings.set_parity(match self.parity {
                Parity::None => serial2_tokio::Parity::None,
                Parity::Even => serial2_tokio::Parity::Even,
                Parity::Odd => serial2_tokio::Parity::Odd,
            });
            settings.set_stop_bits(if self.stop_bits == 2 { StopBits::Two } else { StopBits::One });
            settings.set_flow_control(match self.flow {
                Flow::None => FlowControl::None,
                Flow::Hardware => FlowControl::RtsCts,
                Flow::Software => FlowControl::XonXoff,
            });
            Ok(settings)
        }
    }
}
