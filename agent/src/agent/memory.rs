//! Gives back memory that only a start, a reload or a burst needed, so that a gateway at rest holds little, however long it runs.
//!
//! Compiling a function leaves tens of megabytes of freed heap, and starting touches much of the binary once: the dynamic
//! linker's tables, the parsers, the compiler, each with the 64 KiB around it that the kernel maps too. Pages of the binary
//! are clean, so letting go of them costs a minor fault when one is needed again.

use std::ffi::CStr;
use std::fs;
use std::ops::Range;
use std::ptr::null_mut;
use std::time::Duration;

use rustix::mm::{Advice, madvise};
use tikv_jemalloc_sys::mallctl;

/// After this long what was applied is at work, and its own pages are the first to be mapped again.
const SETTLED: Duration = Duration::from_secs(1);

/// Of C libraries, whose allocator is glibc's: allocations from here on are given back when they are freed: those of a segment that is read, or of a large event. By glibc's
/// default the first of them makes the allocator keep the next.
#[cfg(target_env = "gnu")]
const LARGE_BYTES: std::ffi::c_int = 1 << 20;
/// Heaps that threads share. By glibc's default each thread soon has its own, and each keeps holes that no other can use.
#[cfg(target_env = "gnu")]
const HEAPS_MAX: std::ffi::c_int = 2;
/// How often what is not in use is given back: a few times between two polls of the control plane.
const RELEASE_EVERY: Duration = Duration::from_secs(15);

/// Has the allocator of C libraries keep little. To be called before there are threads.
pub fn bound_heap() {
    #[cfg(target_env = "gnu")]
    {
        const M_MMAP_THRESHOLD: std::ffi::c_int = -3;
        const M_ARENA_MAX: std::ffi::c_int = -8;
        set_allocator(M_MMAP_THRESHOLD, LARGE_BYTES);
        set_allocator(M_ARENA_MAX, HEAPS_MAX);
    }
}

/// Keeps memory small from now on, as long as the runtime runs.
pub(super) fn stay_small() {
    tokio::spawn(async {
        let mut ticks = tokio::time::interval(RELEASE_EVERY);
        loop {
            ticks.tick().await;
            // The kernel walks all page tables for this.
            let _ = tokio::task::spawn_blocking(release).await;
        }
    });
}

/// Does so in a while.
pub(super) fn release_soon() {
    tokio::spawn(async {
        tokio::time::sleep(SETTLED).await;
        let _ = tokio::task::spawn_blocking(release).await;
    });
}

fn release() {
    purge_heap();
    trim_heap();
    let (Ok(binary), Ok(smaps)) = (fs::read_link("/proc/self/exe"), fs::read_to_string("/proc/self/smaps")) else {
        return;
    };
    for range in clean_mappings(&smaps, &binary.to_string_lossy()) {
        let start = std::ptr::with_exposed_provenance_mut(range.start);
        #[expect(
            unsafe_code,
            reason = "the range is a mapping of a file that holds no page of its own: each reads the same when it is mapped again"
        )]
        let released = unsafe { madvise(start, range.len(), Advice::LinuxDontNeed) };
        if let Err(error) = released {
            tracing::debug!(%error, "pages of the binary cannot be released");
        }
    }
}

/// The parts of `binary` that are mapped as they are on disk: not writable, and never written to (as what the dynamic linker
/// has relocated).
fn clean_mappings(smaps: &str, binary: &str) -> Vec<Range<usize>> {
    let (mut found, mut candidate) = (Vec::new(), None);
    let name = format!(" {binary}");
    for line in smaps.lines() {
        if let Some((range, rights)) = header(line) {
            candidate = (line.ends_with(&name) && rights.starts_with("r-")).then_some(range);
        } else if line.strip_prefix("Anonymous:").is_some_and(|size| size.trim() == "0 kB") {
            found.extend(candidate.take());
        }
    }
    found
}

/// Addresses and rights, when `line` starts a mapping.
fn header(line: &str) -> Option<(Range<usize>, &str)> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some((address(start)?..address(end)?, rest))
}

/// Of the agent's own allocator. Threads at rest do not look whether what they have freed is long unused.
fn purge_heap() {
    // 4096 stands for all arenas (`MALLCTL_ARENAS_ALL`).
    const PURGE: &CStr = c"arena.4096.purge";
    #[expect(unsafe_code, reason = "it takes its own locks, and touches only what is free")]
    // SAFETY: as above; this command reads and writes no value, and where the program has another allocator there is nothing to purge.
    let _ = unsafe { mallctl(PURGE.as_ptr(), null_mut(), null_mut(), null_mut(), 0) };
}

#[cfg(target_env = "gnu")]
fn trim_heap() {
    #[allow(unsafe_code, reason = "glibc's own declaration")]
    unsafe extern "C" {
        fn malloc_trim(pad: usize) -> std::ffi::c_int;
    }
    #[expect(unsafe_code, reason = "it takes its own locks, and touches only what is free")]
    // SAFETY: as above; the result only says whether anything was given back.
    let _ = unsafe { malloc_trim(0) };
}

#[cfg(target_env = "gnu")]
fn set_allocator(parameter: std::ffi::c_int, value: std::ffi::c_int) {
    #[allow(unsafe_code, reason = "glibc's own declaration")]
    unsafe extern "C" {
        fn mallopt(parameter: std::ffi::c_int, value: std::ffi::c_int) -> std::ffi::c_int;
    }
    #[expect(unsafe_code, reason = "it takes its own locks, and changes what later allocations do")]
    // SAFETY: as above; the result only says whether the parameter is known.
    let _ = unsafe { mallopt(parameter, value) };
}

#[cfg(not(target_env = "gnu"))]
const fn trim_heap() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_clean_pages_of_the_binary_are_released() {
        let smaps = "\
1000-3000 r--p 00000000 fe:00 1    /usr/bin/tidegate
Anonymous:             0 kB
3000-9000 r-xp 00002000 fe:00 1    /usr/bin/tidegate
Rss:                  16 kB
Anonymous:             0 kB
9000-a000 r--p 00008000 fe:00 1    /usr/bin/tidegate
Anonymous:             4 kB
a000-b000 rw-p 00009000 fe:00 1    /usr/bin/tidegate
Anonymous:             0 kB
b000-c000 r--p 00000000 fe:00 2    /usr/lib/libc.so.6
Anonymous:             0 kB
c000-d000 rw-p 00000000 00:00 0
Anonymous:             0 kB
";
        assert_eq!(clean_mappings(smaps, "/usr/bin/tidegate"), [0x1000..0x3000, 0x3000..0x9000]);
    }

    #[test]
    fn what_is_released_reads_the_same_afterwards() {
        static TABLE: [u8; 256 << 10] = [7; 256 << 10];
        let sum = || std::hint::black_box(&TABLE).iter().map(|byte| u32::from(*byte)).sum::<u32>();
        let (before, binary) = (sum(), fs::read_link("/proc/self/exe").unwrap());
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        assert!(clean_mappings(&smaps, &binary.to_string_lossy()).len() >= 2, "{smaps}");
        release();
        assert_eq!(sum(), before);
    }
}
