//! From a component's file to a function that can make instances: read, compile or map, check, link.

use std::sync::Arc;

use wasmtime_wasi_http::p2::bindings::ProxyPre;

use super::error::LoadError;
#[cfg(not(feature = "compiler"))]
use super::fitting::Fitting;
use super::host::world::function::FunctionPre;
use super::host::{self, HostState, http};
use super::pool::Plan;
use super::{Runtime, Shared};
use crate::function::FunctionSpec;
use crate::units::ByteSize;

/// What instances are made of, by what they are called with.
#[derive(Clone)]
pub(super) enum Entry {
    /// Events: it exports our `handle`, and not what follows.
    Event(FunctionPre<HostState>),
    /// Requests: it exports the `incoming-handler` of `wasi:http`.
    Http(ProxyPre<HostState>),
}

/// A function that is ready to make instances. Cheap to clone.
#[derive(Clone)]
pub struct Function {
    /// What it was made from.
    pub spec: Arc<FunctionSpec>,
    pub(super) entry: Entry,
    pub(super) shared: Arc<Shared>,
    /// Whether it asks for files.
    pub(super) files: bool,
}

impl Runtime {
    /// Makes `spec` ready: maps its compiled code, or compiles it, and checks that it fits the contract.
    ///
    /// # Errors
    /// When its file, its code, its imports or its memory are not possible here.
    pub async fn load(&self, spec: Arc<FunctionSpec>) -> Result<Function, LoadError> {
        let shared = Arc::clone(&self.shared);
        let name = spec.name.clone();
        let stopped = || LoadError::Stopped(name.clone());
        let _turn = self.shared.compiling.acquire().await.map_err(|_| stopped())?;
        // Compiling takes seconds of all cores, and mapping reads the whole file.
        let loaded = self.workers.handle().spawn_blocking(move || shared.load(spec)).await;
        loaded.map_err(|_| stopped())?
    }
}

impl Shared {
    fn load(self: Arc<Self>, spec: Arc<FunctionSpec>) -> Result<Function, LoadError> {
        // 1. Memory that no instance could ever have.
        if let Plan::Pool { memory_bytes_max, .. } = self.plan
            && spec.memory.0 > memory_bytes_max
        {
            let max = ByteSize(memory_bytes_max);
            return Err(LoadError::Memory { function: spec.name.clone(), memory: spec.memory, max });
        }
        // 2. Code.
        let cached = self.cache.as_ref().and_then(|cache| cache.load(&self.engine, &spec.digest));
        let component = match cached {
            Some(component) => component,
            None => self.compile(&spec)?,
        };
        // 3. Which of the two it is called with: its triggers must be of the same mind.
        let is_http =
            component.component_type().exports(&self.engine).any(|(export, _)| export.starts_with(http::HANDLER));
        if let Some(trigger) = spec.triggers.iter().find(|trigger| trigger.kind.is_wasi_http() != is_http) {
            let (function, trigger) = (spec.name.clone(), trigger.to_string());
            return Err(match is_http {
                true => LoadError::RequestsOnly { function, trigger },
                false => LoadError::NoIncomingHandler { function, trigger },
            });
        }
        // 4. What it wants of us, by name first: that error says more than the linker's.
        let mut files = false;
        for (import, _) in component.component_type().imports(&self.engine) {
            if !host::provides(import, is_http) {
                let (function, import) = (spec.name.clone(), import.to_owned());
                let hint = instead_of(&import);
                return Err(LoadError::Import { function, import, hint });
            }
            files |= import.starts_with("wasi:filesystem/preopens");
        }
        // 5. Types of imports and of the handler.
        let linked = self.linker.instantiate_pre(&component);
        let linked = linked.and_then(|linked| match is_http {
            true => ProxyPre::new(linked).map(Entry::Http),
            false => FunctionPre::new(linked).map(Entry::Event),
        });
        let entry = linked.map_err(|source| LoadError::Contract { function: spec.name.clone(), source })?;
        Ok(Function { spec, entry, shared: self, files })
    }

    /// Nobody here can.
    #[cfg(not(feature = "compiler"))]
    fn compile(&self, spec: &FunctionSpec) -> Result<wasmtime::component::Component, LoadError> {
        let Fitting { target, compatibility } = self.fitting();
        Err(LoadError::NoCompiler { function: spec.name.clone(), target, compatibility })
    }
}

/// What an author who wanted `import` can do.
fn instead_of(import: &str) -> &'static str {
    if import.starts_with("wasi:sockets/") {
        "functions never get sockets; send with `emit` instead"
    } else if import.starts_with("wasi:http/") {
        "only a component that exports `wasi:http/incoming-handler@0.2` may import it; send with `emit` instead"
    } else {
        "a function may import `tidegate:function`, `wasi:nn`, `wasi:keyvalue`, `wasi:config`, and of WASI 0.2 cli, clocks, \
         filesystem, io and random"
    }
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

impl std::fmt::Debug for Function {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Function")
            .field("name", &self.spec.name)
            .field("version", &self.spec.version)
            .finish_non_exhaustive()
    }
}
