//! Makes a component of the core module that a compiler for WebAssembly leaves.

use wasmparser::{ExternalKind, Payload};

/// Why a core module cannot become a component.
#[derive(Debug, thiserror::Error)]
pub enum ComponentizeError {
    /// No WebAssembly, or broken.
    #[error("it is not a WebAssembly module")]
    NotAModule(#[source] wasmparser::BinaryReaderError),
    /// There is nothing left to do.
    #[error("it is a component already")]
    AlreadyComponent,
    /// Without bindings nothing says which world the module is for.
    #[error("it has no bindings for the world `tidegate:function`")]
    NoBindings,
    /// Nothing to call.
    #[error("it exports no `handle`, neither ours nor the one of `wasi:http/incoming-handler@0.2`")]
    NoHandler,
    /// This build cannot.
    #[error("this build of tidegate has no compiler")]
    NoCompiler,
    /// It calls what no world offers, for example the imports of another kind of WebAssembly system.
    #[error("it cannot become a component")]
    Encode(#[source] anyhow::Error),
}

impl ComponentizeError {
    /// What its author can do about it.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::NotAModule(_) => "build a library for `wasm32-unknown-unknown`, with `crate-type = [\"cdylib\"]`",
            Self::AlreadyComponent => "use the file as it is: name it as `component` in function.toml",
            Self::NoBindings => "write the function with `function-sdk`, or generate bindings from functions/wit",
            Self::NoHandler => "mark one function with `#[handler]`, in the crate that is built",
            Self::NoCompiler => "build the function on a machine whose tidegate has the feature `compiler`",
            Self::Encode(_) => {
                "a function may only call the imports of functions/wit: leave out what needs a full system"
            }
        }
    }
}

/// The component of a core module that was built against `functions/wit`, or `wasi:http`.
///
/// # Errors
/// When `core` is no such module.
pub fn componentize(core: &[u8]) -> Result<Vec<u8>, ComponentizeError> {
    check(core)?;
    encode(core)
}

#[cfg(feature = "compiler")]
fn encode(core: &[u8]) -> Result<Vec<u8>, ComponentizeError> {
    wit_component::ComponentEncoder::default()
        .validate(true)
        .module(core)
        .and_then(|mut encoder| encoder.encode())
        .map_err(ComponentizeError::Encode)
}

#[cfg(not(feature = "compiler"))]
const fn encode(_core: &[u8]) -> Result<Vec<u8>, ComponentizeError> {
    Err(ComponentizeError::NoCompiler)
}

fn check(core: &[u8]) -> Result<(), ComponentizeError> {
    let (mut bindings, mut handler) = (false, false);
    for payload in wasmparser::Parser::new(0).parse_all(core) {
        match payload.map_err(ComponentizeError::NotAModule)? {
            Payload::Version { encoding: wasmparser::Encoding::Component, .. } => {
                return Err(ComponentizeError::AlreadyComponent);
            }
            Payload::CustomSection(section) => bindings |= section.name().starts_with("component-type"),
            Payload::ExportSection(exports) => {
                for export in exports {
                    let export = export.map_err(ComponentizeError::NotAModule)?;
                    handler |= export.kind == ExternalKind::Func && is_handler(export.name);
                }
            }
            _ => {}
        }
    }
    match (handler, bindings) {
        (false, _) => Err(ComponentizeError::NoHandler),
        (true, false) => Err(ComponentizeError::NoBindings),
        (true, true) => Ok(()),
    }
}

/// Ours, or the one of a component that takes requests.
fn is_handler(export: &str) -> bool {
    export == "handle" || (export.starts_with("wasi:http/incoming-handler@0.2.") && export.ends_with("#handle"))
}

#[cfg(test)]
mod tests {
    use wit_component::StringEncoding;

    use super::*;

    /// A core module with the section that `wit-bindgen` leaves in what it compiles.
    fn core(wat: &str) -> Vec<u8> {
        let mut module = wat::parse_str(wat).unwrap();
        let mut resolve = wit_parser::Resolve::default();
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../functions/wit");
        let (package, _) = resolve.push_dir(folder).unwrap();
        let world = resolve.select_world(&[package], Some("function")).unwrap();
        wit_component::embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
        module
    }

    const HANDLE: &str = r#"(module
        (memory (export "memory") 1)
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32) unreachable)
        (func (export "handle") (param i32) (result i32) unreachable))"#;

    #[test]
    fn a_module_with_a_handler_becomes_a_component() {
        let component = componentize(&core(HANDLE)).unwrap();
        assert!(wasmparser::Parser::is_component(&component));
        assert!(matches!(componentize(&component), Err(ComponentizeError::AlreadyComponent)));
    }

    #[test]
    fn a_module_that_takes_requests_becomes_a_component() {
        let export = "wasi:http/incoming-handler@0.2.12#handle";
        let requests =
            HANDLE.replace("\"handle\") (param i32) (result i32)", &format!("\"{export}\") (param i32 i32)"));
        let mut module = wat::parse_str(requests).unwrap();
        let mut resolve = wit_parser::Resolve::default();
        resolve.push_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../functions/wit")).unwrap();
        let package = resolve.push_str("http.wit", include_str!("runtime/tests/http.wit")).unwrap();
        let world = resolve.select_world(&[package], Some("proxy")).unwrap();
        wit_component::embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
        assert!(wasmparser::Parser::is_component(&componentize(&module).unwrap()));
    }

    #[test]
    fn what_is_missing_is_said() {
        assert!(matches!(componentize(b"#!/bin/sh"), Err(ComponentizeError::NotAModule(_))));
        assert!(matches!(componentize(&core("(module)")), Err(ComponentizeError::NoHandler)));
        let bare = wat::parse_str(HANDLE).unwrap();
        assert!(matches!(componentize(&bare), Err(ComponentizeError::NoBindings)));
        let foreign = HANDLE.replace("(module", r#"(module (import "env" "socket" (func))"#);
        let error = componentize(&core(&foreign)).unwrap_err();
        assert!(matches!(error, ComponentizeError::Encode(_)), "{error}");
    }
}
