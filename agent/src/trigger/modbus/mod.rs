//! `modbus` sources: registers and coils of a device, polled over TCP or a serial line.
//!
//! # Promises
//! - Each register is read once in each interval, neighbours in one request, and nothing happens in between. When functions do not keep up,
//!   intervals are left out.
//! - An exception, and a unit that does not answer, is counted and costs its own registers only.
//! - A device that stalls is left after `timeout`; the connection is made anew, after 1 s and at most 10 s later each time.
//! - What functions set is set in their order, between the requests of a poll, and also while nobody has room for what was read.
//! - With `when = "change"` an event comes when a value differs from what was told last, by more than its `deadband`.

#[cfg(feature = "modbus")]
mod line;
#[cfg(feature = "modbus")]
mod order;
#[cfg(feature = "modbus")]
mod plan;
#[cfg(feature = "modbus")]
mod poll;
mod register;
#[cfg(feature = "modbus")]
mod value;

use std::collections::BTreeSet;
use std::time::Duration;

pub use self::register::{Place, RegisterConfig, ValueType};
use super::port::PortConfig;
use crate::config::document::element;
use crate::config::{Document, join, keys, kinds, words};
use crate::units::Span;

/// Registers that one request can read, by the protocol.
const REGISTERS_MAX: u16 = 125;
/// The shortest interval.
const EVERY_MIN: Duration = Duration::from_millis(10);

/// `modbus = { tcp = "192.168.1.20:502", every = "1s", registers = [{ name = "pressure", input = 0 }] }`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModbusSource {
    /// How to reach the device.
    pub link: Link,
    /// Which of those that are reached, where a register does not say.
    pub unit_id: u8,
    /// How often it is asked.
    pub every: Span,
    /// How long it may take to answer.
    pub timeout: Span,
    /// Which polls are events.
    pub when: When,
    /// Which of several registers has the high bits, where a register does not say.
    pub word_order: ByteOrder,
    /// Which half of a register has them.
    pub byte_order: ByteOrder,
    /// So many registers that nobody wants are read to have their neighbours in one request.
    pub gap: u16,
    /// Most registers of one request.
    pub at_once: u16,
    /// What is read.
    pub registers: Vec<RegisterConfig>,
}

keys! { ModbusSource:
    unit_id = or(1),
    every = or(Span::from_secs(1)),
    timeout = or(Span::from_secs(1)),
    when = or(When::Always),
    word_order = or(ByteOrder::Big),
    byte_order = or(ByteOrder::Big),
    gap = or(0),
    at_once = or(REGISTERS_MAX),
    registers = each();
    flatten link: Link
}

/// Exactly one of the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// `tcp = "192.168.1.20:502"`.
    Tcp(String),
    /// `rtu = { device = "/dev/ttyUSB0", baud = 9600 }`.
    Rtu(PortConfig),
}

kinds! { beside Link: "tcp" = Self::Tcp, "rtu" = Self::Rtu }

/// `when`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Each.
    Always,
    /// Those with a value that differs.
    Change,
}

words! { When: "always" = Self::Always, "change" = Self::Change }

/// `word_order`, `byte_order`: what comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteOrder {
    /// The high bits.
    Big,
    /// The low ones.
    Little,
}

words! { ByteOrder: "big" = Self::Big, "little" = Self::Little }

impl ModbusSource {
    pub(crate) fn check(&self, path: &str, document: &mut Document) {
        match &self.link {
            Link::Tcp(address) => {
                let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
                if !port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0)) {
                    let hint = "write for example `tcp = \"192.168.1.20:502\"`";
                    document.refuse(&join(path, "tcp"), format!("`{address}` is not HOST:PORT"), hint);
                }
            }
            Link::Rtu(port) => port.check(&join(path, "rtu"), document),
        }
        if self.every.0 < EVERY_MIN {
            let what = format!("{} is shorter than {}", self.every, Span(EVERY_MIN));
            document.refuse(&join(path, "every"), what, "write for example `every = \"1s\"`");
        }
        if self.timeout.0.is_zero() {
            document.refuse(&join(path, "timeout"), "nobody answers so soon", "write for example `timeout = \"1s\"`");
        }
        if !(1..=REGISTERS_MAX).contains(&self.at_once) {
            let what = format!("{} is not between 1 and {REGISTERS_MAX}", self.at_once);
            document.refuse(&join(path, "at_once"), what, "write how many the device allows, or remove it");
        }
        if self.registers.is_empty() && !document.has_problems() {
            let hint = "write for example `registers = [{ name = \"pressure\", input = 0 }]`";
            document.refuse_key(path, "there is nothing to read", hint);
        }
        let (list, mut names) = (join(path, "registers"), BTreeSet::new());
        for (i, register) in self.registers.iter().enumerate() {
            let path = element(&list, i, self.registers.iter().map(|register| Some(register.name.as_str())));
            if !names.insert(&register.name) {
                let what = format!("`{}` is already the name of another register", register.name);
                document.refuse_key(&path, what, "give each its own name");
            }
            register.check(&path, self.at_once, document);
            let unit_id = register.unit_id.unwrap_or(self.unit_id);
            if matches!(self.link, Link::Rtu(_)) && !(1..=247).contains(&unit_id) {
                let what = format!("{unit_id} is the address of no device at a serial line");
                document.refuse(&join(&path, "unit_id"), what, "write the one of the device, from 1 to 247");
            }
        }
    }
}

#[cfg(feature = "modbus")]
impl ModbusSource {
    /// Asks, and sets what is ordered, until the source is stopped.
    pub(crate) async fn run(self, mut outlet: super::source::Outlet) {
        let orders = outlet.orders.take();
        let access = line::Access::new(&self, &outlet.clock);
        let ask = async {
            // With nobody who hears it, it is there for those who set something.
            if outlet.is_heard(|_| true) {
                poll::run(&access, &outlet).await;
            }
        };
        let obey = async {
            if let Some(mut orders) = orders {
                order::run(&access, &mut orders, &outlet).await;
            }
        };
        tokio::select! {
            () = outlet.stopped() => {}
            _ = futures_util::future::join(ask, obey) => {}
        }
    }
}
