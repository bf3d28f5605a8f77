//! MQTT in → `fahrenheit` → MQTT out, beside the bare loop: throughput, CPU, latency.

use crate::Options;
use crate::load::Load;
use crate::process::cpu_seconds;
use crate::report::{Figure, Target, median};
use crate::site::{Site, TOPIC};

/// Events on their way at the same time, at most.
const WINDOW: u64 = 1_000;
const LOOP: &str = "bare loop";

/// Of one run.
struct Run {
    per_second: f64,
    /// CPU seconds per 100,000 events.
    cpu: f64,
}

fn run(load: &mut Load, pid: u32, topic: &str, qos: u8, events: u64) -> anyhow::Result<Run> {
    // Instances are made and buffers have grown when the clock starts.
    load.run(topic, qos, events / 10, WINDOW)?;
    let before = cpu_seconds(pid)?;
    let rate = load.run(topic, qos, events, WINDOW)?;
    let cpu = (cpu_seconds(pid)? - before) * 1e5 / events as f64;
    Ok(Run { per_second: rate.per_second, cpu })
}

pub(crate) fn measure(site: &mut Site, options: &Options) -> anyhow::Result<Vec<Figure>> {
    let events = if options.quick { 20_000 } else { 100_000 };
    let mut figures = Vec::new();
    for (qos, rate_id, cpu_id) in [(0, "rate-1", "cpu-1"), (1, "rate-2", "cpu-2")] {
        let (mut rates, mut cpus) = (Vec::new(), Vec::new());
        for _ in 0..options.rounds() {
            let ours = run(&mut site.load, site.agent.process.pid(), TOPIC, qos, events)?;
            let theirs = run(&mut site.load, site.bare.pid(), crate::bare::TOPIC, qos, events)?;
            rates.push((ours.per_second, theirs.per_second));
            cpus.push((ours.cpu, theirs.cpu));
        }
        let what = format!("throughput, QoS {qos}");
        figures.push(Figure::beside(rate_id, what, "events/s", rates, LOOP).with(Target::TimesAtLeast(0.7)));
        let what = format!("CPU per 100,000 events, QoS {qos}");
        figures.push(Figure::beside(cpu_id, what, "s", cpus, LOOP).with(Target::TimesAtMost(2.0)));
    }
    Ok(figures)
}

pub(crate) fn latency(site: &mut Site, options: &Options) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (id, qos, per_second, seconds) in
        [("latency-1", 0, 200, 3), ("latency-2", 1, 200, 3), ("latency-3", 0, 20, 4), ("latency-4", 1, 20, 4)]
    {
        let events = if options.quick { 20 } else { u64::from(per_second) * seconds };
        let mut rounds = Vec::new();
        for _ in 0..options.rounds() {
            let ours = median(site.load.latencies_ms(TOPIC, qos, events, per_second)?);
            rounds.push((ours, median(site.load.latencies_ms(crate::bare::TOPIC, qos, events, per_second)?)));
        }
        let what = format!("p50 latency at {per_second}/s, QoS {qos}");
        figures.push(Figure::beside(id, what, "ms", rounds, LOOP).with(Target::MoreAtMost(0.3)));
    }
    Ok(figures)
}
