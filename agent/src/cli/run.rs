//! `tidegate run`: the agent in the foreground, as systemd likes it.

use std::pin::pin;
use std::sync::Arc;

use anyhow::Context;
use futures_util::FutureExt as _;
use futures_util::future::FusedFuture as _;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::ConfigArgs;
use super::output::Errors;
use crate::agent::{Agent, Ports};
use crate::api::AgentHandle;
use crate::boot::{Another, Boot};
use crate::config::state_dir_in;

/// Runs the agent in the foreground until SIGTERM or SIGINT, then lets it finish what it has begun; a second one ends it at once
///
/// When a deployment names an agent of its own, this becomes that one; and where that does not come up three times, the one before again.
#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) async fn run(args: &RunArgs) -> anyhow::Result<()> {
    let boot = match state_dir_in(&args.config.file()) {
        Some(state_dir) => Boot::choose(&state_dir)?,
        None => Boot::default(),
    };
    let config = args.config.load()?;
    let agent = match Agent::start(config, Ports { boot: boot.clone(), ..Ports::real() }).await {
        Err(error) if error.is::<Another>() => match boot.again()? {},
        agent => agent?,
    };
    let _attendants = [tokio::spawn(reload_on_hangup(agent.handle())), tokio::spawn(keep_watchdog_quiet())];
    tell_systemd(&[NotifyState::Ready]);
    let (another, mut ended) = (agent.another(), pin!(shutdown(signals()?).fuse()));
    agent
        .run_until(async {
            tokio::select! { () = &mut ended => {}, () = another => {} }
        })
        .await?;
    // Who asks it to end while it makes room for another one gets what they asked for.
    if ended.is_terminated() || (&mut ended).now_or_never().is_some() {
        return Ok(());
    }
    match boot.again()? {}
}

/// SIGTERM and SIGINT, from now on.
pub(super) fn signals() -> anyhow::Result<[Signal; 2]> {
    let listen = |kind| signal(kind).context("cannot listen for signals");
    Ok([listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?])
}

/// Resolves at the first signal. The second one ends the process, whatever it is still doing.
pub(super) async fn shutdown([mut terminate, mut interrupt]: [Signal; 2]) {
    tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    tell_systemd(&[NotifyState::Stopping]);
    tracing::info!("stopping: no new events, what runs may finish; a second signal ends it at once");
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        Errors::line("error: ended by a second signal before all was finished");
        quit();
    });
}

#[expect(clippy::disallowed_methods, reason = "who asks twice does not want to wait for what `main` would wait for")]
fn quit() -> ! {
    std::process::exit(1)
}

/// `systemctl reload` and people send SIGHUP.
async fn reload_on_hangup(agent: Arc<dyn AgentHandle>) {
    let Ok(mut hangup) = signal(SignalKind::hangup()) else { return };
    while hangup.recv().await.is_some() {
        match agent.reload().await {
            Ok(reloaded) => tracing::info!(changes = reloaded.changes.len(), "reloaded"),
            Err(why) => tracing::error!("the reload was refused, all runs on as it did: {why}"),
        }
    }
}

/// A runtime that is stuck cannot do this, so that the service manager restarts it.
async fn keep_watchdog_quiet() {
    let Some(patience) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval(patience / 2);
    loop {
        ticks.tick().await;
        tell_systemd(&[NotifyState::Watchdog]);
    }
}

/// Tells the service manager, when there is one; without it there is nobody to miss the news.
pub(super) fn tell_systemd(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
