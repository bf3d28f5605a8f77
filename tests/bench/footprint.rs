//! What the agent costs when it does nothing, and how soon it does something.

use std::time::Duration;

use tidegate::clock::Clock;

use crate::Options;
use crate::process::pss_mib;
use crate::report::{Figure, Target};
use crate::site::{Site, TOPIC};

/// After this long a started agent has settled.
const SETTLE: Duration = Duration::from_secs(2);

/// Memory of the agent: after a start with compiled code at hand, and after events at full speed.
pub(crate) fn memory(site: &mut Site, options: &Options) -> anyhow::Result<Vec<Figure>> {
    let events = if options.quick { 20_000 } else { 100_000 };
    let (mut idle, mut load) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds() {
        site.agent.process.stop()?;
        site.agent.restart()?;
        std::thread::sleep(SETTLE);
        // The agent may repeat what it had not acknowledged yet when it was stopped.
        site.load.let_pass()?;
        idle.push(pss_mib(site.agent.process.pid())?);
        site.load.run(TOPIC, 1, events, 1_000)?;
        load.push(pss_mib(site.agent.process.pid())?);
    }
    let what = "memory (PSS) idle, one function loaded";
    Ok(vec![
        Figure::alone("memory-1", what, "MiB", idle).with(Target::AtMost(20.0)),
        Figure::alone("memory-2", format!("memory (PSS) after {events} events at full speed"), "MiB", load),
    ])
}

/// From the start of the process to the result of an event that waited at the broker.
pub(crate) fn start(site: &mut Site, options: &Options) -> anyhow::Result<Vec<Figure>> {
    let clock = Clock::system();
    let mut rounds = Vec::new();
    for _ in 0..options.rounds() {
        site.agent.process.stop()?;
        // A repeat of an earlier event must not be taken for the first result.
        site.load.let_pass()?;
        site.load.publish(TOPIC, 1)?;
        let started = clock.instant();
        site.agent.restart()?;
        site.load.result()?;
        let ours = (clock.instant() - started).as_secs_f64() * 1e3;

        site.bare.stop()?;
        site.load.let_pass()?;
        site.load.publish(crate::bare::TOPIC, 1)?;
        let started = clock.instant();
        site.restart_bare()?;
        site.load.result()?;
        rounds.push((ours, (clock.instant() - started).as_secs_f64() * 1e3));
    }
    let what = "start to first result, compiled code cached";
    Ok(vec![Figure::beside("start-1", what, "ms", rounds, "bare loop").with(Target::AtMost(150.0))])
}
