//! Which machine code an engine takes, and where it may come from: compiled here, or by its publisher on another machine.
//!
//! wasmtime itself checks processor, features and settings of code that it loads. [`Fitting`] says beforehand whether that will
//! succeed, so that no gateway fetches code which does not fit it. What it cannot check is who made the code: it runs with all the
//! rights of the agent, so [`Runtime::adopt`] takes it by a digest that somebody signed, and by nothing else.

use std::io::{self, Read};
use std::sync::atomic::Ordering;

use sha2::{Digest, Sha256};

use super::load::hex;
use super::{Runtime, Shared};

/// Stands for wasmtime's version and for the settings of our engines, memory and processor aside. An agent without a compiler cannot ask
/// wasmtime for it; a test says what it must be.
const SETTINGS: &str = "48.0.8/1";

/// What native code must be for an engine to take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fitting {
    /// What it is compiled for: [`target`].
    pub target: String,
    /// Which version and settings it is compiled by.
    pub compatibility: String,
}

/// How functions came by their code, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CodeCounts {
    /// Components that were compiled here.
    pub compiled: u64,
    /// Components whose code came from their publishers.
    pub adopted: u64,
}

impl Fitting {
    /// Of an engine for `target` that reserves so many bytes for each memory; `None`: memories start small, and move.
    pub(super) fn new(target: &str, reservation: Option<u64>) -> Self {
        let digest = Sha256::digest(format!("{SETTINGS} {target} {reservation:?}"));
        Self { target: target.to_owned(), compatibility: format!("wasmtime-{}", hex(&digest[..8])) }
    }
}

/// What has to be compiled for, so that code runs on a machine like this one. Where there is no native compiler that is the
/// interpreter.
pub fn target() -> String {
    match std::env::consts::ARCH {
        arch @ ("x86_64" | "aarch64") => {
            let environment = if cfg!(target_env = "musl") { "musl" } else { "gnu" };
            format!("{arch}-unknown-linux-{environment}")
        }
        _ => format!("pulley{}", usize::BITS),
    }
}

impl Runtime {
    /// What native code must be for this engine.
    pub fn fitting(&self) -> Fitting {
        self.shared.fitting()
    }

    /// Whether there is code of the component with this digest (64 hexadecimal digits): compiled here, or taken before.
    pub fn has_code(&self, digest: &str) -> bool {
        self.shared.cache.as_ref().is_some_and(|cache| cache.has(digest))
    }

    /// Keeps native code of the component with this digest (64 hexadecimal digits) as if it had been compiled here, if its own
    /// digest is `signed`: whoever calls this has verified who signed that. Code that does not fit after all is found when it is
    /// loaded: then the component is compiled.
    ///
    /// # Errors
    /// When it is other code than what was signed, or cannot be read or written.
    pub fn adopt(&self, digest: &str, code: impl Read, signed: &str) -> io::Result<()> {
        let Shared { cache, adopted, .. } = &*self.shared;
        let Some(cache) = cache else { return Ok(()) };
        cache.adopt(digest, code, signed)?;
        adopted.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// How functions came by their code.
    pub fn code_counts(&self) -> CodeCounts {
        let Shared { compiled, adopted, .. } = &*self.shared;
        CodeCounts { compiled: compiled.load(Ordering::Relaxed), adopted: adopted.load(Ordering::Relaxed) }
    }
}

impl Shared {
    pub(super) fn fitting(&self) -> Fitting {
        Fitting::new(&target(), self.plan.reservation())
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};

    use super::*;
    use crate::runtime::engine;

    #[test]
    fn code_fits_by_wasmtimes_version_and_our_settings() {
        let mut config = engine::settings();
        config.target("x86_64-unknown-linux-gnu").unwrap();
        let mut hasher = DefaultHasher::new();
        wasmtime::Engine::new(&config).unwrap().precompile_compatibility_hash().hash(&mut hasher);
        let hash = format!("{:016x}", hasher.finish());
        assert_eq!(
            ("48.0.8/1", "262f05c2902dca75"),
            (SETTINGS, hash.as_str()),
            "wasmtime or our settings changed: give SETTINGS another value"
        );
    }

    #[test]
    fn code_for_another_processor_or_memory_does_not_fit() {
        let fitting = Fitting::new("pulley32", None);
        assert_eq!(fitting, Fitting::new("pulley32", None));
        assert_ne!(fitting.compatibility, Fitting::new("pulley32", Some(4 << 30)).compatibility);
        assert_ne!(fitting.compatibility, Fitting::new("pulley64", None).compatibility);
    }
}
