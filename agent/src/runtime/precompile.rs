//! Native code for gateways that have no time for a compiler, or none at all: made by the publisher, on another machine.

#[cfg(feature = "compiler")]
use super::{engine, fitting::Fitting, pool::Plan};

/// Native code of one component.
#[derive(Clone, Debug)]
pub struct Precompiled {
    /// What the gateway's runtime must say of itself ([`super::Runtime::fitting`]) for the code to fit.
    pub compatibility: String,
    /// The code.
    pub code: Vec<u8>,
}

/// Why there is no native code.
#[derive(Debug, thiserror::Error)]
pub enum PrecompileError {
    /// Unknown, or the component is none.
    #[error(
        "cannot compile for `{target}`; hint: a target is `x86_64-unknown-linux-gnu`, `aarch64-unknown-linux-gnu`, `pulley32` or another of wasmtime's"
    )]
    Failed {
        /// For which processor.
        target: String,
        /// Why.
        source: wasmtime::Error,
    },
    /// Not here.
    #[error(
        "this build of tidegate has no compiler; hint: compile on a machine whose tidegate has the feature `compiler`"
    )]
    NoCompiler,
}

/// Compiles `component` for `target`, for any processor of that kind and a gateway with the usual memory.
///
/// # Errors
/// When the target is unknown, the component is none, or this build does not compile.
#[cfg(feature = "compiler")]
pub fn precompile(component: &[u8], target: &str) -> Result<Precompiled, PrecompileError> {
    let reservation = Plan::usual(target).reservation();
    let compile = || engine::compiler(Some(target), reservation)?.precompile_component(component);
    let code = compile().map_err(|source| PrecompileError::Failed { target: target.to_owned(), source })?;
    Ok(Precompiled { compatibility: Fitting::new(target, reservation).compatibility, code })
}

/// Compiles `component` for `target`, for any processor of that kind and a gateway with the usual memory.
///
/// # Errors
/// Always: this build does not compile.
#[cfg(not(feature = "compiler"))]
pub fn precompile(_component: &[u8], _target: &str) -> Result<Precompiled, PrecompileError> {
    Err(PrecompileError::NoCompiler)
}
