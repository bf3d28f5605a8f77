//! Native code for a gateway that has no time for a compiler: made by its publisher, on another machine.
//!
//! wasmtime itself checks processor, features and settings of code that it loads. [`Precompiled::compatibility`] says beforehand
//! whether that will succeed, so that no gateway fetches code which does not fit it. What it cannot check is who made the code:
//! it runs with all the rights of the agent, so [`Runtime::adopt`] takes it by a digest that somebody signed, and by nothing else.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::sync::atomic::Ordering;

use wasmtime::{Config, Engine};

use super::engine;
use super::pool::Plan;
use super::{Runtime, Shared};

/// Native code of one component.
#[derive(Clone, Debug)]
pub struct Precompiled {
    /// What the gateway's runtime must say of itself ([`Runtime::fitting`]) for the code to fit.
    pub compatibility: String,
    /// The code.
    pub code: Vec<u8>,
}

/// What native code must be for the engine of this machine to take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fitting {
    /// What it is compiled for: [`target`].
    pub target: String,
    /// What its [`Precompiled::compatibility`] is.
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

/// Why there is no native code.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot compile for `{target}`; hint: a target is `x86_64-unknown-linux-gnu`, `aarch64-unknown-linux-gnu`, `pulley32` or another of wasmtime's"
)]
pub struct PrecompileError {
    target: String,
    #[source]
    source: wasmtime::Error,
}

/// Compiles `component` for `target`, for any processor of that kind and a gateway with the usual memory.
///
/// # Errors
/// When the target is unknown, or the component is none.
pub fn precompile(component: &[u8], target: &str) -> Result<Precompiled, PrecompileError> {
    let failed = |source| PrecompileError { target: target.to_owned(), source };
    let engine = compiler(target, Plan::usual(target)).map_err(failed)?;
    let code = engine.precompile_component(component).map_err(failed)?;
    Ok(Precompiled { compatibility: compatibility(&engine), code })
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
    /// What native code must be for this engine; `None` when it can say nothing of itself.
    pub fn fitting(&self) -> Option<Fitting> {
        let target = target();
        let engine = compiler(&target, self.shared.plan).ok()?;
        Some(Fitting { target, compatibility: compatibility(&engine) })
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

/// An engine that compiles for `target` and runs nothing.
fn compiler(target: &str, plan: Plan) -> wasmtime::Result<Engine> {
    let mut config: Config = engine::settings();
    plan.configure_memory(&mut config);
    Engine::new(config.target(target)?)
}

fn compatibility(engine: &Engine) -> String {
    let mut hasher = DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    format!("wasmtime-{:016x}", hasher.finish())
}
