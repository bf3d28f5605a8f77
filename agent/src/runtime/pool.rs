//! How many instances fit this machine, decided from its memory and its address space before anything is reserved.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

use super::guard::TABLE_ELEMENTS_MAX;
use crate::limits::Limits;

/// A wasm page.
const PAGE: u64 = 64 << 10;
/// Reserving all that 32-bit addresses can name lets the processor, not the code, check bounds.
const FULL_RESERVATION: u64 = 4 << 30;
/// Behind each memory: offsets of loads and stores below this need no check either.
const GUARD: u64 = 32 << 20;
/// Even a machine with one small function gets this many, so that a reload or more concurrency needs no restart.
const INSTANCES_MIN: u64 = 64;
/// More would only make the tables of the pool larger.
const INSTANCES_MAX: u64 = 2_000;
/// A small instance really uses about this much, so that more of them never fit the machine.
const INSTANCE_BYTES_MIN: u64 = 256 << 10;
/// Stack and tables of an instance: address space beside its memory.
const INSTANCE_EXTRA_BYTES: u64 = (2 << 20) + 4 * (TABLE_ELEMENTS_MAX as u64 * 8);

/// What there is to share out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Memory that this process may use, in bytes.
    pub(crate) memory_bytes: u64,
    /// Address space that this process may reserve, in bytes.
    pub(crate) address_bytes: u64,
}

/// How instances get their memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Everything is reserved at start; making an instance is cheap.
    Pool {
        /// Instances at the same time.
        instances: u32,
        /// Linear memory that one may have, in bytes.
        memory_bytes_max: u64,
        /// Address space for each memory, in bytes.
        reservation_bytes: u64,
    },
    /// Each instance asks the machine for memory; for small address spaces, and when the machine refuses the pool.
    OnDemand,
}

impl Machine {
    /// This one, as this process may use it.
    pub(crate) fn this() -> Self {
        let info = rustix::system::sysinfo();
        let installed = u64::from(info.mem_unit.max(1)).saturating_mul(info.totalram as u64);
        let memory_bytes = cgroup_memory_bytes().map_or(installed, |limit| limit.min(installed));
        // User space ends above the stack: 2^47 on x86-64, 2^39 or 2^48 on 64-bit ARM by its kernel's configuration, and
        // less than 2^32 on 32-bit boards.
        let here = 0_u8;
        let bits = usize::BITS - std::ptr::from_ref(&here).addr().leading_zeros();
        let address_bytes = 1_u64.checked_shl(bits).unwrap_or(u64::MAX);
        let limit = getrlimit(Resource::As).current.unwrap_or(u64::MAX);
        Self { memory_bytes, address_bytes: address_bytes.min(limit) }
    }
}

/// The smallest memory limit of the control groups that this process is in.
fn cgroup_memory_bytes() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let root = Path::new("/sys/fs/cgroup");
    let start = root.join(group.trim_start_matches('/'));
    let limits = start.ancestors().take_while(|dir| dir.starts_with(root));
    limits.filter_map(|dir| fs::read_to_string(dir.join("memory.max")).ok()?.trim().parse().ok()).min()
}

impl Plan {
    /// For `instances` that the configuration may need at the same time.
    pub(crate) fn new(machine: Machine, instances: u32, limits: &Limits) -> Self {
        // Below this a pool of useful size leaves no room for anything else, and memories must be able to move.
        if machine.address_bytes < 64 << 30 {
            return Self::OnDemand;
        }
        let memory_bytes_max =
            limits.memory_max.0.min(machine.memory_bytes.next_multiple_of(PAGE)).min(FULL_RESERVATION);
        // While a version is replaced both have instances.
        let wanted = (2 * u64::from(instances)).clamp(INSTANCES_MIN, INSTANCES_MAX);
        let useful = wanted.min((machine.memory_bytes / INSTANCE_BYTES_MIN).max(u64::from(instances)));
        let space = machine.address_bytes / 2;
        let fit = |reservation: u64| (space / (reservation + GUARD + INSTANCE_EXTRA_BYTES)).min(useful);
        let reservation_bytes =
            if fit(FULL_RESERVATION) >= u64::from(instances).min(useful) { FULL_RESERVATION } else { memory_bytes_max };
        let instances = u32::try_from(fit(reservation_bytes)).unwrap_or(u32::MAX);
        Self::Pool { instances, memory_bytes_max, reservation_bytes }
    }

    /// That of most gateways with a processor of this kind.
    #[cfg(feature = "compiler")]
    pub(crate) fn usual(target: &str) -> Self {
        let narrow = ["arm", "i386", "i586", "i686", "pulley32", "riscv32"];
        if narrow.iter().any(|kind| target.starts_with(kind)) {
            return Self::OnDemand;
        }
        let instances = u32::try_from(INSTANCES_MIN).unwrap_or(u32::MAX);
        Self::Pool { instances, memory_bytes_max: FULL_RESERVATION, reservation_bytes: FULL_RESERVATION }
    }

    /// What of it code depends on: address space for each memory. `None`: memories start small, and move.
    pub(crate) const fn reservation(self) -> Option<u64> {
        match self {
            Self::Pool { reservation_bytes, .. } => Some(reservation_bytes),
            Self::OnDemand => None,
        }
    }

    /// Writes the plan into an engine's configuration.
    pub(crate) fn configure(self, config: &mut wasmtime::Config) -> wasmtime::Result<()> {
        configure_memory(self.reservation(), config);
        let Self::Pool { instances, memory_bytes_max, .. } = self else {
            config.allocation_strategy(wasmtime::InstanceAllocationStrategy::OnDemand);
            return Ok(());
        };
        let mut pool = wasmtime::PoolingAllocationConfig::new();
        // A component is several core modules: a Rust one two to four, a language's runtime dozens; few have a memory of their own.
        pool.total_component_instances(instances)
            .total_core_instances(instances.saturating_mul(64))
            .max_core_instances_per_component(200)
            .total_memories(instances)
            .total_tables(instances.saturating_mul(4))
            .total_stacks(instances)
            .max_tables_per_module(4)
            .table_elements(TABLE_ELEMENTS_MAX)
            .max_memory_size(usize::try_from(memory_bytes_max)?)
            // What a fresh instance of the same function dirties is small; keeping it saves the page faults of the next.
            .linear_memory_keep_resident(64 << 10)
            .table_keep_resident(8 << 10)
            .max_unused_warm_slots(8);
        config.allocation_strategy(wasmtime::InstanceAllocationStrategy::Pooling(pool));
        Ok(())
    }
}

/// Writes what code depends on, a [`Plan::reservation`], into an engine's configuration.
pub(crate) fn configure_memory(reservation: Option<u64>, config: &mut wasmtime::Config) {
    match reservation {
        Some(bytes) => {
            config.memory_reservation(bytes).memory_guard_size(GUARD);
        }
        // Addresses are what is short: memories start small, move when they grow, and are checked in code.
        None => {
            config.memory_reservation(1 << 20).memory_guard_size(PAGE).memory_reservation_for_growth(1 << 20);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;

    #[track_caller]
    fn check(memory_bytes: u64, address_bits: u32, instances: u32, expected: Plan) {
        let machine = Machine { memory_bytes, address_bytes: 1 << address_bits };
        assert_eq!(Plan::new(machine, instances, &Limits::default()), expected);
    }

    #[test]
    fn the_pool_fits_the_machine() {
        let pool = |instances, memory_bytes_max, reservation_bytes| Plan::Pool {
            instances,
            memory_bytes_max,
            reservation_bytes,
        };
        // A PC.
        check(16 * GIB, 47, 4, pool(64, 4 * GIB, 4 * GIB));
        check(16 * GIB, 47, 500, pool(1_000, 4 * GIB, 4 * GIB));
        // A Pi of 1 GiB whose kernel gives 39 bits of addresses.
        check(GIB, 39, 4, pool(63, GIB, 4 * GIB));
        // More than fits with full reservations: smaller ones.
        check(GIB, 39, 100, pool(200, GIB, GIB));
        // A board of 512 MiB.
        check(512 * MIB, 39, 8, pool(63, 512 * MIB, 4 * GIB));
        // 32-bit.
        check(512 * MIB, 32, 4, Plan::OnDemand);
    }

    #[test]
    fn this_machine_has_memory_and_addresses() {
        let machine = Machine::this();
        assert!(machine.memory_bytes > 64 * MIB, "{machine:?}");
        assert!(machine.address_bytes > GIB, "{machine:?}");
    }
}
