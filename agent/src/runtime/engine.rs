//! The wasmtime engine, configured for many small instances that must neither hang nor starve each other.

use wasmtime::{Config, Engine, WasmBacktraceDetails};

use super::fitting::target;
use super::pool::Plan;
#[cfg(feature = "compiler")]
use super::pool::configure_memory;

/// An engine by `plan`, or, when the machine refuses that much address space, one without a pool. Also says which it became.
///
/// # Errors
/// When wasmtime refuses even that.
pub(crate) fn build(plan: Plan) -> wasmtime::Result<(Engine, Plan)> {
    match Engine::new(&configuration(plan)?) {
        Ok(engine) => Ok((engine, plan)),
        Err(error) if plan != Plan::OnDemand => {
            tracing::warn!(
                ?plan,
                error = format!("{error:#}"),
                "this machine refuses the pool of instances, going on without"
            );
            Ok((Engine::new(&configuration(Plan::OnDemand)?)?, Plan::OnDemand))
        }
        Err(error) => Err(error),
    }
}

fn configuration(plan: Plan) -> wasmtime::Result<Config> {
    let mut config = settings();
    plan.configure(&mut config)?;
    // The interpreter has no features to be found out, and is by its name what publishers compile for.
    if target().starts_with("pulley") {
        config.target(&target())?;
    }
    Ok(config)
}

/// An engine that compiles and runs nothing: for any processor of `target`, or for this very one.
#[cfg(feature = "compiler")]
pub(super) fn compiler(target: Option<&str>, reservation: Option<u64>) -> wasmtime::Result<Engine> {
    let mut config = settings();
    configure_memory(reservation, &mut config);
    if let Some(target) = target {
        config.target(target)?;
    }
    Engine::new(&config)
}

/// What code is compiled by, whatever the machine.
pub(super) fn settings() -> Config {
    let mut config = Config::new();
    config
        .wasm_component_model(true)
        // WASI 0.3's concurrency inside one instance is not offered, and what it keeps per store is not free.
        .concurrency_support(false)
        .epoch_interruption(true)
        // Names of functions are enough to act on; reading DWARF would cost memory when it is scarcest.
        .wasm_backtrace_details(WasmBacktraceDetails::Disable);
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_that_the_machine_refuses_is_done_without() {
        let absurd = Plan::Pool { instances: 1_000_000, memory_bytes_max: 4 << 30, reservation_bytes: 4 << 30 };
        let (_, plan) = build(absurd).unwrap();
        assert_eq!(plan, Plan::OnDemand);
    }
}
