//! Keeps one instance within its memory, and remembers when it wanted more, so that the trap that follows is explained.

use wasmtime::ResourceLimiter;

/// Most entries of one table. Python's interpreter, the largest seen, needs about 15,000.
pub(crate) const TABLE_ELEMENTS_MAX: usize = 100_000;

/// Counts the linear memory of an instance, over all of its memories.
#[derive(Debug)]
pub(crate) struct MemoryGuard {
    limit_bytes: u64,
    used_bytes: u64,
    /// What the growth that was last allowed added, to take back when the machine refuses it.
    last_growth_bytes: u64,
    refused: bool,
}

impl MemoryGuard {
    pub(crate) const fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes, used_bytes: 0, last_growth_bytes: 0, refused: false }
    }

    /// The limit in force, in bytes.
    pub(crate) const fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    /// Whether a growth was refused since this was last asked.
    pub(crate) const fn take_refused(&mut self) -> bool {
        std::mem::replace(&mut self.refused, false)
    }
}

impl ResourceLimiter for MemoryGuard {
    fn memory_growing(&mut self, current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let growth = desired.saturating_sub(current) as u64;
        let total = self.used_bytes.saturating_add(growth);
        // A module that stays within its own declared maximum is not short of memory by our doing.
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        if total > self.limit_bytes {
            self.refused = true;
            return Ok(false);
        }
        self.used_bytes = total;
        self.last_growth_bytes = growth;
        Ok(true)
    }

    fn memory_grow_failed(&mut self, _error: wasmtime::Error) -> wasmtime::Result<()> {
        self.used_bytes = self.used_bytes.saturating_sub(std::mem::take(&mut self.last_growth_bytes));
        self.refused = true;
        Ok(())
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_memories_of_an_instance_count_together() {
        let mut guard = MemoryGuard::new(100);
        assert!(guard.memory_growing(0, 60, None).unwrap());
        assert!(!guard.memory_growing(0, 60, None).unwrap());
        assert!(guard.take_refused());
        assert!(!guard.take_refused());
        assert!(guard.memory_growing(60, 100, None).unwrap());
    }

    #[test]
    fn memory_that_the_machine_refused_is_not_counted() {
        let mut guard = MemoryGuard::new(100);
        assert!(guard.memory_growing(0, 60, None).unwrap());
        guard.memory_grow_failed(wasmtime::Error::msg("no")).unwrap();
        assert!(guard.take_refused());
        assert!(guard.memory_growing(0, 100, None).unwrap());
    }
}
