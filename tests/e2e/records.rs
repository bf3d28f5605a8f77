//! Records on their way to the control plane, over a line on which goes wrong what can.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use e2e::line::{Line, Weather};
use e2e::site::guest;
use e2e::{Agent, ControlPlane, Device, Guest, Mosquitto, Site};
use fastrand::Rng;
use serde_json::Value;

/// How long the weather stays as it is.
const SPELL_MS: std::ops::Range<u64> = 10..150;

/// `TIDEGATE_RECORDS` says how many records, `TIDEGATE_SEED` draws other weather.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::disallowed_methods, reason = "it measures, and a bigger run is asked for by the environment")]
async fn each_record_of_a_gateway_is_in_the_control_plane_exactly_once() -> anyhow::Result<()> {
    let number = |variable: &str| std::env::var(variable).ok().map(|text| text.parse::<u64>()).transpose();
    let total = number("TIDEGATE_RECORDS")?.unwrap_or(5_000);
    let (each, batch) = if total > 100_000 { (500, 2_000) } else { (100, 500) };
    // The weather sets the pace: some batches a second.
    let (events, patience) = (total / each, e2e::PATIENCE + Duration::from_millis(3 * total));
    let mut plane = ControlPlane::start().await?;
    let line = Line::to(plane.address()).await?;
    let broker = Mosquitto::start().await?;
    let device = Device::connect(broker.port()).await?;
    let agent = Agent::prepare("")?;
    let cloud = plane.claim(&agent, line.address())?;
    let mut site = Site { broker, agent, device };
    // One event makes many records.
    let append = "(drop (call $append (i32.const 2048) (i32.const 8) (call $data (local.get $event)) (call $data_bytes (local.get $event))))";
    let many = format!(
        "(local.set $i (i32.const {each}))
         (loop $again {append} (local.set $i (i32.sub (local.get $i) (i32.const 1))) (br_if $again (local.get $i)))
         (call $answer (i32.const 2048) (i32.const 8))"
    );
    Guest::raw(&many, "readings").write(&site.bundle("many"), "1.0.0")?;
    site.configure(&format!(
        "[stream.readings]\nmax_bytes = \"900 MiB\"\nuplink = {{ cloud = true }}\nbatch = {{ max_records = {batch}, max_wait = \"50ms\" }}\n{}{cloud}",
        guest("many", "sensors/#", "capabilities = [\"stream:readings\"]\nconcurrency = 1"),
    ))?;
    site.agent.resume().await?;
    site.agent.hears("local").await?;
    plane.hears("test").await?;

    let began = Instant::now();
    let mut rng = Rng::with_seed(number("TIDEGATE_SEED")?.unwrap_or(1));
    let weather = tokio::spawn(async move {
        let mut changes = 0_u64;
        loop {
            let next = match rng.u8(..8) {
                0 => Weather::Cut,
                1 => Weather::Slow(Duration::from_millis(rng.u64(1..40))),
                2 | 3 => Weather::Late(Duration::from_millis(rng.u64(1..800))),
                _ => Weather::Fair,
            };
            line.becomes(next);
            tokio::time::sleep(Duration::from_millis(rng.u64(SPELL_MS))).await;
            changes += 1;
            if changes.is_multiple_of(500) {
                println!("{changes} changes of weather, {:?}", began.elapsed());
            }
        }
    });
    let wait = async |site: &Site, what: &str, is: &dyn Fn(&Value) -> bool| {
        let deadline = Instant::now() + patience;
        loop {
            let status = site.agent.status().unwrap_or_default();
            let stream = super::stream(&status, "readings");
            if is(stream) {
                return anyhow::Ok(());
            }
            ensure!(Instant::now() < deadline, "waited for {what}: {stream}\n{}", site.agent.log());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    super::send(&site.device, "sensors/press-1", 0..events, 200).await?;
    wait(&site, "all to be on the gateway's disk", &|stream| stream["newest_sequence"] == total).await?;
    // Neither what the one nor what the other had in memory is missed.
    site.agent.kill()?;
    site.agent.resume().await?;
    plane.kill()?;
    plane.resume().await?;
    // The last event comes again when the kill was before its acknowledgement had left.
    let is_there = |stream: &Value| stream["records"] == 0 && stream["newest_sequence"].as_u64() >= Some(total);
    wait(&site, "all to have arrived", &is_there).await?;
    let newest = super::stream(&site.agent.status()?, "readings")["newest_sequence"].as_u64().context("no sequence")?;
    weather.abort();
    let took = began.elapsed();
    site.agent.stop()?;

    let there = plane.tell(&["fleet", "records", "--gateway", "test", "--stream", "readings"])?;
    let mut sequences = vec![0_u8; usize::try_from(newest)? + 1];
    let mut of_event = vec![0_u64; usize::try_from(events)?];
    for line in there.lines() {
        let record: Value = serde_json::from_str(line)?;
        ensure!(record["epoch"] == 1, "{record}");
        let sequence = usize::try_from(record["sequence"].as_u64().context("no sequence")?)?;
        *sequences.get_mut(sequence).with_context(|| format!("never appended: {record}"))? += 1;
        of_event[usize::try_from(super::seq(record.to_string().as_bytes())?)?] += 1;
    }
    ensure!(sequences[0] == 0 && sequences[1..].iter().all(|times| *times == 1), "not each record is there once");
    let is_whole = |records: &u64| *records >= each && records.is_multiple_of(each);
    ensure!(of_event.iter().all(is_whole), "not each event has its records");
    println!("{total} records of {events} events, each once, in {took:?}");
    Ok(())
}
