//! What a function may call: `emit`, `control`, key-values, configuration, models, WASI 0.2 and `wasi:http`. Everything is always linked; what is not
//! granted is refused when it is called, with an error that names the capability.

pub(super) mod chance;
mod config;
mod control;
mod emit;
pub(crate) mod http;
pub(crate) mod keyvalue;
pub(crate) mod log;
mod nn;
pub(crate) mod state;
pub(crate) mod wasi;
pub(crate) mod world;

use wasmtime::Engine;
use wasmtime::component::Linker;

pub(crate) use self::state::HostState;

/// The interfaces that a component may import, by the start of their name.
const INTERFACES: &[&str] = &[
    "tidegate:function/",
    "wasi:cli/",
    "wasi:clocks/",
    "wasi:config/store@",
    "wasi:filesystem/",
    "wasi:io/",
    "wasi:keyvalue/store@",
    "wasi:keyvalue/atomics@",
    "wasi:keyvalue/batch@",
    "wasi:nn/",
    "wasi:random/",
];

/// Everything that a component can be linked to.
pub(crate) fn linker(engine: &Engine) -> wasmtime::Result<Linker<HostState>> {
    let mut linker = Linker::new(engine);
    emit::add_to_linker(&mut linker)?;
    control::add_to_linker(&mut linker)?;
    keyvalue::add_to_linker(&mut linker)?;
    config::add_to_linker(&mut linker)?;
    nn::add_to_linker(&mut linker)?;
    wasi::add_to_linker(&mut linker)?;
    http::add_to_linker(&mut linker)?;
    Ok(linker)
}

/// Whether some version of `interface` is there to be imported, by a component that is called with requests if `is_http`.
pub(crate) fn provides(interface: &str, is_http: bool) -> bool {
    let http = if is_http { http::INTERFACES } else { &[] };
    INTERFACES.iter().chain(http).any(|start| interface.starts_with(start))
}
