//! Which agent runs: the packaged one, or one that was deployed.
//!
//! `tidegate run` of the package is the boot loader: at each start it reads the boot record, and when that names a deployed agent it becomes that
//! one by `exec`. So it needs no process of its own beside the agent, and no service manager but one that starts again what has ended. When another agent
//! is to run, the one that runs ends in order and becomes the packaged one again, which chooses anew.
//!
//! # Promises
//! - An agent on trial is counted on disk before it starts; one that does not stay is not started a fourth time, and the one before runs.
//! - No byte of a deployed agent runs that does not come to the digest which the record names.
//! - Whatever is wrong with the record or with a deployed agent, the packaged one runs.
//!
//! # On disk
//! `STATE/agent/boot.json`: the [`Record`]. `HEX`: a binary, by its digest. Each is written beside, synced, renamed, and the folder synced.

mod record;
mod slots;

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use semver::Version;
use serde::{Deserialize, Serialize};
use sync_protocol::Release;
use sync_protocol::release::NativeCode;

pub(crate) use self::record::{Build, Record, Which, newer};
pub(crate) use self::slots::Slots;
use crate::config::Environment;

/// The processor and system that this agent was built for, as its publishers name it.
pub const TARGET: &str = match (cfg!(target_env = "musl"), cfg!(target_pointer_width = "64")) {
    (false, true) if cfg!(target_arch = "x86_64") => "x86_64-unknown-linux-gnu",
    (true, true) if cfg!(target_arch = "x86_64") => "x86_64-unknown-linux-musl",
    (false, true) if cfg!(target_arch = "aarch64") => "aarch64-unknown-linux-gnu",
    (true, true) if cfg!(target_arch = "aarch64") => "aarch64-unknown-linux-musl",
    (false, false) if cfg!(target_arch = "arm") => "armv7-unknown-linux-gnueabihf",
    (true, false) if cfg!(target_arch = "arm") => "armv7-unknown-linux-musleabihf",
    _ => "unknown",
};
/// What it was built with: `thin` is without the compiler.
pub const FLAVOUR: &str = if cfg!(feature = "compiler") { "full" } else { "thin" };
/// Where the packaged agent tells the deployed one that it was chosen, and by whom.
const VARIABLE: &str = "TIDEGATE_BOOT";

/// Another agent is to run in place of this one.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("another agent is to run, as it was deployed; `tidegate run` of the package starts it")]
pub struct Another;

/// How this agent came to run.
#[derive(Clone, Debug)]
pub struct Boot {
    chosen: Chosen,
    /// Whether it can become another one: it is `tidegate run`, and not part of something else.
    may_change: bool,
}

/// What the packaged agent says to the one that it starts.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Chosen {
    /// None: the packaged agent itself.
    agent: Which,
    /// Where the packaged one is.
    packaged: PathBuf,
    /// And which version it has.
    version: Version,
    /// What it was started with.
    arguments: Vec<OsString>,
    /// The process whose it is: those that it starts inherit the words, and not the choice.
    process: u32,
}

impl Chosen {
    fn packaged(packaged: PathBuf) -> Self {
        let (arguments, process) = (std::env::args_os().skip(1).collect(), std::process::id());
        Self { agent: None, packaged, version: own_version(), arguments, process }
    }

    /// What this process was told, if it was.
    fn told() -> Option<Self> {
        let told: Self = serde_json::from_str(&Environment::of_process().boot?).ok()?;
        (told.process == std::process::id()).then_some(told)
    }
}

impl Default for Boot {
    /// An agent that stays what it is.
    fn default() -> Self {
        Self { chosen: Chosen::packaged(PathBuf::new()), may_change: false }
    }
}

impl Boot {
    /// Becomes the agent that is to run, if that is another one. Returns as what it stays.
    ///
    /// # Errors
    /// When this binary cannot be found.
    pub fn choose(state_dir: &Path) -> anyhow::Result<Self> {
        if let Some(chosen) = Chosen::told() {
            return Ok(Self { chosen, may_change: true });
        }
        let (chosen, slots) = (Chosen::packaged(own_path()?), Slots::at(state_dir));
        // One on trial, and the one before. On a disk that takes nothing, giving up would change nothing either.
        for _ in 0..2 {
            let Some(build) = slots.choose(&chosen.version) else { break };
            let Err(error) = slots.check(&build).and_then(|binary| exec(&binary, &build, &chosen));
            slots.give_up(&build, &error);
        }
        Ok(Self { chosen, may_change: true })
    }

    /// Becomes the packaged agent, which chooses anew.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn again(&self) -> anyhow::Result<Infallible> {
        let Chosen { packaged, arguments, .. } = &self.chosen;
        let error = Command::new(packaged).args(arguments).env_remove(VARIABLE).exec();
        Err(error).with_context(|| format!("cannot become `{}`, which chooses the agent to run", packaged.display()))
    }

    /// Whether it can become another agent.
    pub(crate) const fn may_change(&self) -> bool {
        self.may_change
    }

    /// Which agent this is.
    pub(crate) const fn running(&self) -> &Which {
        &self.chosen.agent
    }

    /// The version of the packaged agent.
    pub(crate) const fn packaged(&self) -> &Version {
        &self.chosen.version
    }
}

/// What of a release of the agent runs here.
///
/// # Errors
/// When nothing does.
pub(crate) fn build_of(release: &Release) -> anyhow::Result<&NativeCode> {
    let fits = |build: &&NativeCode| build.target == TARGET && build.compatibility == FLAVOUR;
    release.native.iter().find(fits).with_context(|| {
        let builds = release.native.iter().map(|build| format!("{} ({})", build.target, build.compatibility));
        let builds = builds.collect::<Vec<_>>().join(", ");
        format!("{release} was not built for this gateway, which is {TARGET} ({FLAVOUR}), but for {builds}")
    })
}

/// Where the packaged agent is, beside which libraries are looked for.
pub(crate) fn program() -> Option<PathBuf> {
    Chosen::told().map(|chosen| chosen.packaged).or_else(|| own_path().ok())
}

fn exec(binary: &Path, build: &Build, chosen: &Chosen) -> anyhow::Result<Infallible> {
    let told = serde_json::to_string(&Chosen { agent: Some(build.clone()), ..chosen.clone() })?;
    let error = Command::new(binary).args(&chosen.arguments).env(VARIABLE, told).exec();
    Err(error).with_context(|| format!("`{}` cannot be started", binary.display()))
}

/// Where this binary is; after an upgrade of the package, where the new one is.
fn own_path() -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe().context("cannot find the agent's own binary")?;
    let replaced = path.to_str().and_then(|path| path.strip_suffix(" (deleted)"));
    Ok(replaced.map(PathBuf::from).unwrap_or(path))
}

fn own_version() -> Version {
    Version::parse(env!("CARGO_PKG_VERSION")).unwrap_or(Version::new(0, 0, 0))
}
