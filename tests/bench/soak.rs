//! Ten million events, each with a record that leaves over the uplink: memory stays where it is, and the disk comes back.

use std::path::Path;
use std::time::Duration;

use e2e::Mosquitto;

use crate::Options;
use crate::load::Load;
use crate::process::pss_mib;
use crate::report::{Figure, Target};
use crate::site::{Gateway, TOPIC};

/// Memory is looked at after this part of the events, when all buffers have grown, and at the end.
const WARM_UP: u64 = 10;

pub(crate) async fn measure(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let events: u64 = if options.quick { 50_000 } else { 10_000_000 };
    let broker = Mosquitto::with("allow_anonymous true\n").await?;
    let cloud = Mosquitto::with("allow_anonymous true\n").await?;
    let sections = format!(
        "[mqtt.cloud]\nurl = \"{}\"\n[stream.readings]\nuplink = {{ mqtt = \"cloud\", topic = \"up\" }}\n",
        cloud.url()
    );
    let agent = Gateway::prepare(broker.port(), &sections, "on_success = [{ stream = \"readings\" }]\n")?.start()?;
    let mut load = Load::connect(broker.port())?;
    load.until_there(TOPIC)?;

    load.run(TOPIC, 1, events / WARM_UP, 1_000)?;
    drained(&agent).await?;
    let (pid, state) = (agent.process.pid(), agent.state());
    let (memory, disk) = (pss_mib(pid)?, mib_of(&state)?);
    let steps = 9;
    for step in 1..=steps {
        load.run(TOPIC, 1, events / WARM_UP, 1_000)?;
        eprintln!(
            "soak: {} of {events} events, {:.1} MiB, disk {:.1} MiB",
            events / WARM_UP * (step + 1),
            pss_mib(pid)?,
            mib_of(&state)?
        );
    }
    drained(&agent).await?;
    let memory = Figure::beside(
        "soak-1",
        format!("memory (PSS) after {events} events"),
        "MiB",
        vec![(pss_mib(pid)?, memory)],
        "after a tenth",
    );
    let disk = Figure::beside(
        "soak-2",
        format!("state on disk after {events} events"),
        "MiB",
        vec![(mib_of(&state)?, disk)],
        "after a tenth",
    );
    Ok(vec![memory.with(Target::TimesAtMost(1.02)), disk.with(Target::TimesAtMost(1.02))])
}

/// Waits until all records have left, and their space has come back.
async fn drained(agent: &Gateway) -> anyhow::Result<()> {
    loop {
        let status = agent.status()?;
        let streams = status["streams"].as_array().map(Vec::as_slice).unwrap_or_default();
        if streams.iter().all(|stream| stream["records"] == 0) {
            tokio::time::sleep(Duration::from_secs(3)).await;
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What the files of a folder take on disk.
fn mib_of(folder: &Path) -> anyhow::Result<f64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)?.flatten() {
            // Segments come and go meanwhile.
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                folders.push(entry.path());
            } else {
                bytes += metadata.blocks() * 512;
            }
        }
    }
    Ok(bytes as f64 / f64::from(1 << 20))
}
