//! `wasi:config`: the `environment` and `secrets` of the function's configuration.

use wasmtime::component::{HasSelf, Linker};

use super::state::HostState;
use super::world::config::wasi::config::store;

pub(crate) fn add_to_linker(linker: &mut Linker<HostState>) -> wasmtime::Result<()> {
    store::add_to_linker::<_, HasSelf<HostState>>(linker, |state| state)
}

impl store::Host for HostState {
    fn get(&mut self, key: String) -> Result<Option<String>, store::Error> {
        Ok(self.spec.environment.get(&key).cloned())
    }

    fn get_all(&mut self) -> Result<Vec<(String, String)>, store::Error> {
        Ok(self.spec.environment.iter().map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}
