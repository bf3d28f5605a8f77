//! Much on disk: how soon the agent serves, and how fast and how quietly it drains.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use e2e::Mosquitto;
use rustix::process::Pid;
use tidegate::clock::Clock;
use tidegate::config::{Config, Environment};
use tidegate::journal::{Batch, Journal, JournalConfig, RecordMeta};
use tidegate::limits::Limits;
use tidegate::name::StreamName;
use tidegate::units::ByteSize;

use crate::Options;
use crate::append::RECORD_BYTES;
use crate::load::Load;
use crate::report::{Figure, Target};
use crate::site::{Gateway, TOPIC};

/// Records of one commit while the backlog is made.
const TOGETHER: u64 = 1_000;
/// More than what is made, so that no limit drops it.
const ROOM: ByteSize = ByteSize::mib(4096);
/// Events per second of the live traffic.
const LIVE: u32 = 200;

pub(crate) async fn measure(options: &Options) -> anyhow::Result<Vec<Figure>> {
    Ok(vec![start(options).await?, drain(options).await?].into_iter().flatten().collect())
}

/// From the start of the process to the result of an event that waited at the broker, with a gibibyte in a stream.
async fn start(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let bytes: u64 = if options.quick { 16 << 20 } else { 1 << 30 };
    let broker = Mosquitto::with("allow_anonymous true\n").await?;
    let prepared = Gateway::prepare(broker.port(), &room(), "")?;
    fill(&prepared.journal()?, bytes / 1_000, 1_000).await?;
    let mut load = Load::connect(broker.port())?;
    let mut agent = prepared.start()?;
    load.until_there(TOPIC)?;
    anyhow::ensure!(left(&agent)? == bytes / 1_000, "the backlog is not there");
    let clock = Clock::system();
    let mut rounds = Vec::new();
    for _ in 0..options.rounds() {
        agent.process.stop()?;
        load.let_pass()?;
        load.publish(TOPIC, 1)?;
        let started = clock.instant();
        agent.restart()?;
        load.result()?;
        rounds.push((clock.instant() - started).as_secs_f64() * 1e3);
    }
    let what = format!("start to first result with {} MiB in a stream", bytes >> 20);
    Ok(vec![Figure::alone("backlog-1", what, "ms", rounds).with(Target::AtMost(1_000.0))])
}

/// A stream drains to a broker nearby while events are handled. One round: the backlog takes longer to make than to drain.
async fn drain(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let records: u64 = if options.quick { 20_000 } else { 1_000_000 };
    let local = Mosquitto::with("allow_anonymous true\n").await?;
    let mut cloud = Mosquitto::with("allow_anonymous true\n").await?;
    cloud.stop()?;
    let sections =
        format!("[mqtt.cloud]\nurl = \"{}\"\n{}uplink = {{ mqtt = \"cloud\", topic = \"up\" }}\n", cloud.url(), room());
    let prepared = Gateway::prepare(local.port(), &sections, "")?;
    fill(&prepared.journal()?, records, RECORD_BYTES).await?;
    let mut load = Load::connect(local.port())?;
    let agent = prepared.start()?;
    load.until_there(TOPIC)?;
    let p99 = |mut latencies: Vec<f64>| {
        latencies.sort_by(f64::total_cmp);
        latencies[latencies.len() * 99 / 100]
    };
    let quiet = p99(load.latencies_ms(TOPIC, 1, u64::from(LIVE) * 10, LIVE)?);
    let clock = Clock::system();
    cloud.resume().await?;
    // In the field it has a machine of its own.
    let pid = cloud.pid().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).context("it has ended")?;
    rustix::process::setpriority_process(Some(pid), 19)?;
    while left(&agent)? >= records {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (started, begun_with) = (clock.instant(), left(&agent)?);
    let mut busy = Vec::new();
    let (mut drained, mut seconds) = (0, 0.0);
    while left(&agent)? > 0 {
        busy.extend(load.latencies_ms(TOPIC, 1, u64::from(LIVE) / 4, LIVE)?);
        (drained, seconds) = (begun_with - left(&agent)?, (clock.instant() - started).as_secs_f64());
    }
    ensure_whole(&agent)?;
    let rate = Figure::alone(
        "backlog-2",
        format!("drain of {records} records to a broker nearby"),
        "records/s",
        vec![drained as f64 / seconds],
    );
    let what = format!("p99 latency of live events at {LIVE}/s while it drains");
    let live = Figure::beside("backlog-3", what, "ms", vec![(p99(busy), quiet)], "without");
    Ok(vec![rate.with(Target::AtLeast(20_000.0)), live.with(Target::TimesAtMost(2.0))])
}

/// Records that wait in the stream.
fn left(agent: &Gateway) -> anyhow::Result<u64> {
    stream_of(agent)?["records"].as_u64().context("the status counts no records")
}

/// What left went over the link: nothing was dropped or given up.
fn ensure_whole(agent: &Gateway) -> anyhow::Result<()> {
    let stream = stream_of(agent)?;
    let lost = ["dropped_by_age", "dropped_by_bytes", "dropped_by_buffer", "lost"].map(|key| stream[key].as_u64());
    anyhow::ensure!(lost == [Some(0); 4] && stream["draining"]["dead_letters"] == 0, "records were lost: {stream}");
    Ok(())
}

fn stream_of(agent: &Gateway) -> anyhow::Result<serde_json::Value> {
    let status = agent.status()?;
    let mut streams = status["streams"].as_array().into_iter().flatten();
    streams.find(|stream| stream["name"] == "readings").cloned().context("the status has no stream `readings`")
}

/// The sections that make that room; further keys of the stream may follow.
fn room() -> String {
    format!("[gateway]\nbuffer_bytes = \"{ROOM}\"\n[stream.readings]\nmax_bytes = \"{ROOM}\"\n")
}

/// Makes a journal with that many records in `readings`.
async fn fill(folder: &Path, records: u64, bytes: usize) -> anyhow::Result<()> {
    let text = room().replacen("[gateway]\n", "[gateway]\nname = \"bench\"\n", 1);
    let config = Config::parse(&text, &folder.join("gateway.toml"), &Environment::default())?;
    let limits = Limits { buffer_bytes_max: ROOM, ..Limits::default() };
    let config = JournalConfig { streams: config.stream, limits: Arc::new(limits) };
    let journal = Journal::open(folder, config, Clock::system())?;
    let stream = StreamName::parse("readings")?;
    let time_ms = Clock::system().now_ms();
    let json = format!("\"{}\"", "x".repeat(bytes - 2));
    let data = Bytes::from(json);
    let mut left = records;
    while left > 0 {
        let together = left.min(TOGETHER);
        let record = (stream.clone(), data.clone(), RecordMeta { time_ms, ..RecordMeta::default() });
        let batch = Batch { records: vec![record; usize::try_from(together)?], ..Batch::default() };
        journal.commit(batch).await?;
        left -= together;
    }
    Ok(journal.close().await?)
}
