//! `[source.NAME]`: what of this machine triggers may hear.

use super::document::Document;
use super::read::{keys, kinds};
use crate::name::SourceName;
use crate::trigger::file::FileSource;
use crate::trigger::process::ProcessSource;
use crate::trigger::source::Outlet;
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
}

kinds! { SourceConfig: "process" = Self::Process, "tail" = Self::Tail, "file" = Self::File, "sysfs" = Self::Sysfs; later "modbus", "gpio", "serial", "opcua" }

impl SourceConfig {
    /// The key.
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Process(_) => "process",
            Self::Tail(_) => "tail",
            Self::File(_) => "file",
            Self::Sysfs(_) => "sysfs",
        }
    }

    pub(super) fn check(&self, path: &str, document: &mut Document) {
        match self {
            Self::Process(process) => process.check(path, document),
            Self::Tail(_) => {}
            Self::File(file) => file.check(path, document),
            Self::Sysfs(sysfs) => sysfs.check(path, document),
        }
    }

    /// Makes events until the outlet says that it is to end.
    pub(crate) async fn run(self, outlet: Outlet) {
        match self {
            Self::Process(process) => process.run(outlet).await,
            Self::Tail(tail) => tail.run(outlet).await,
            Self::File(file) => file.run(outlet).await,
            Self::Sysfs(sysfs) => sysfs.run(outlet).await,
        }
    }
}

/// `process = { source = "radio" }`, and what else a trigger of that kind can say.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceTrigger {
    /// Which `[source.NAME]`.
    pub source: SourceName,
}

keys! { SourceTrigger: source = required("\"radio\"") }
