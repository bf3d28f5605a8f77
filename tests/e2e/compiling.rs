//! Components are compiled in a process of its own, which ends with the agent.

use std::fs;
use std::process::{Command, Stdio};

use e2e::site::guest;
use e2e::{Guest, Site, tidegate, until};
use rustix::process::{Pid, Signal, kill_process};

/// The process that compiles for this agent, if there is one now.
fn compiling_for(agent: u32) -> Option<Pid> {
    let wanted = format!("--parent\0{agent}\0");
    let mut found = fs::read_dir("/proc").ok()?.filter_map(|entry| {
        let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        (line.contains("compile-component") && line.contains(&wanted)).then(|| Pid::from_raw(pid))?
    });
    found.next()
}

/// The process goes too, no half code stays, and the next start compiles.
#[tokio::test]
async fn an_agent_that_is_killed_while_it_compiles_leaves_nothing_behind() -> anyhow::Result<()> {
    let config = guest("hall", "sensors/#", "capabilities = [\"mqtt:publish:results/#\"]\n");
    let mut site = Site::with_guests(&config, &[("hall", Guest::forward("results/0"))]).await?;
    let agent = site.agent.pid().unwrap_or_default();
    // One is soon compiled: it is stopped when it is met, and the next version is for when it was not.
    let mut version = 0;
    let (process, mut reload) = loop {
        version += 1;
        Guest::forward(&format!("results/{version}")).write(&site.bundle("hall"), &format!("1.{version}.0"))?;
        let socket = site.agent.folder().join("state/tidegate.sock");
        let mut reload = Command::new(tidegate()?);
        reload.arg("reload").arg("--socket").arg(socket).stdout(Stdio::null()).stderr(Stdio::null());
        let mut reload = reload.spawn()?;
        let met = loop {
            if let Some(process) = compiling_for(agent) {
                break kill_process(process, Signal::STOP).is_ok().then_some(process);
            }
            if reload.try_wait()?.is_some() {
                break None;
            }
        };
        match met {
            Some(process) => break (process, reload),
            None => anyhow::ensure!(reload.wait()?.success() && version < 50, "it compiles where nobody sees it"),
        }
    };
    site.agent.kill()?;
    reload.wait()?;
    // It may have been stopped before it asked the kernel to end it with the agent: then it sees that the agent has gone.
    let _ = kill_process(process, Signal::CONT);
    until("the process that compiles to be gone", async || {
        // One that has ended may wait for whoever inherited it.
        let status = fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero())).unwrap_or_default();
        status.is_empty() || status.contains(") Z ") || status.contains(") X ")
    })
    .await?;
    let kept = fs::read_dir(site.agent.folder().join("state/compiled"))?;
    let names = kept.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names = names.collect::<anyhow::Result<Vec<String>>>()?;
    assert!(names.iter().all(|name| name.ends_with(".cwasm")), "{names:?}");

    site.agent.resume().await?;
    site.agent.hears("local").await?;
    site.device.publish("sensors/1", "here", 1).await?;
    assert_eq!(site.device.next().await?.topic, format!("results/{version}"));
    Ok(())
}
