//! What the agent's own process uses, from `/proc`.

use std::fmt;
use std::time::Duration;

use super::Scrape;

/// Clock ticks per second in `/proc/self/stat`: part of Linux's interface to user space, on every machine that we run on.
const USER_HZ: f64 = 100.0;

/// Memory that a process uses, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    /// What is in RAM, shared pages counted whole.
    pub(super) resident: u64,
    /// What is in RAM, each shared page divided by who shares it: what would be free without us.
    pub(super) proportional: u64,
}

/// Writes what the process uses. What `/proc` does not tell is left out.
pub(super) fn collect(scrape: &mut Scrape<'_>, uptime: Duration) -> fmt::Result {
    let build = [("version", env!("CARGO_PKG_VERSION")), ("architecture", std::env::consts::ARCH)];
    scrape.info("tidegate_build", "Which agent this is", &build)?;
    scrape.gauge("tidegate_uptime_seconds", "Since the agent started", uptime.as_secs_f64())?;
    if let Some(memory) = std::fs::read_to_string("/proc/self/smaps_rollup").ok().and_then(|text| memory(&text)) {
        scrape.gauge("process_resident_memory_bytes", "In RAM, shared pages counted whole", float(memory.resident))?;
        scrape.gauge(
            "process_proportional_memory_bytes",
            "In RAM, shared pages by share",
            float(memory.proportional),
        )?;
    }
    if let Some(cpu) = std::fs::read_to_string("/proc/self/stat").ok().and_then(|text| cpu_seconds(&text)) {
        scrape.seconds_counter("process_cpu", "User and system time", cpu)?;
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        scrape.gauge("process_open_fds", "Open files and sockets", float(open.count() as u64))?;
    }
    Ok(())
}

/// In RAM, shared pages counted whole.
pub(super) fn resident_bytes() -> Option<u64> {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    Some(memory(&rollup)?.resident)
}

#[expect(clippy::cast_precision_loss, reason = "exact up to 8 PiB")]
const fn float(n: u64) -> f64 {
    n as f64
}

fn memory(smaps_rollup: &str) -> Option<Memory> {
    let kilobytes = |key: &str| {
        let line = smaps_rollup.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    Some(Memory { resident: kilobytes("Rss:")? << 10, proportional: kilobytes("Pss:")? << 10 })
}

/// User and system time. The command's name is in brackets and may hold anything, so fields count from the last bracket.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some((ticks()? + ticks()?) / USER_HZ)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "5583-7ffe ---p 00000000 00:00 0  [rollup]\nRss:   2048 kB\nPss:   1024 kB\nPss_Dirty:  8 kB\n";
        assert_eq!(memory(text), Some(Memory { resident: 2 << 20, proportional: 1 << 20 }));
    }

    #[test]
    fn a_commands_name_cannot_shift_the_fields() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194304 100 0 0 0 150 50 0 0 20 0 1 0 1 1 1";
        assert_eq!(cpu_seconds(stat), Some(2.0));
    }
}
