//! What an agent handled is recorded, and run again by another version, with nothing around it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context as _, ensure};
use e2e::site::guest;
use e2e::{Agent, Guest, Site};
use serde_json::Value;

const GUIDE: &str = include_str!("../../docs/guides/record-and-replay.md");
const CAPABILITIES: &str = "capabilities = [\"mqtt:publish:results/#\", \"keyvalue\"]\nconcurrency = 1";

/// `tidegate record` while it runs.
struct Recorder {
    child: Child,
    file: PathBuf,
}

impl Recorder {
    /// Into `file` of the agent's folder. It has begun when this returns.
    async fn start(agent: &Agent, file: &str, more: &[&str]) -> anyhow::Result<Self> {
        let file = agent.folder().join(file);
        let mut command = Command::new(e2e::tidegate()?);
        command.args(["record", "--config"]).arg(agent.config()).arg("--out").arg(&file).args(more);
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let recorder = Self { child, file };
        e2e::until("the recording to begin", async || recorder.part().exists()).await?;
        Ok(recorder)
    }

    fn part(&self) -> PathBuf {
        let mut part = self.file.clone().into_os_string();
        part.push(".part");
        part.into()
    }

    /// Waits until it ends by itself, well; tells what it said.
    async fn ends(self) -> anyhow::Result<(PathBuf, String)> {
        let (file, status, said) = self.ended().await?;
        ensure!(status == Some(0), "the recording ended with {status:?}: {said}");
        Ok((file, said))
    }

    /// The same, however it ends.
    async fn ended(mut self) -> anyhow::Result<(PathBuf, Option<i32>, String)> {
        e2e::until("the recording to end", async || !matches!(self.child.try_wait(), Ok(None))).await?;
        let status = self.child.wait()?;
        let mut said = String::new();
        self.child.stdout.take().context("no stdout")?.read_to_string(&mut said)?;
        self.child.stderr.take().context("no stderr")?.read_to_string(&mut said)?;
        Ok((self.file.clone(), status.code(), said))
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A site with function `alarm`, which is version 1.0.0.
async fn site(alarm: Guest) -> anyhow::Result<Site> {
    Site::with_guests(&guest("alarm", "sensors/#", CAPABILITIES), &[("alarm", alarm)]).await
}

/// A version of `alarm` that is nowhere deployed, with the capabilities that it has at the site.
fn version(parent: &Path, version: &str, alarm: &Guest) -> anyhow::Result<PathBuf> {
    let bundle = parent.join(version).join("alarm");
    write(&bundle, version, alarm)?;
    Ok(bundle)
}

fn write(bundle: &Path, version: &str, alarm: &Guest) -> anyhow::Result<()> {
    alarm.write(bundle, version)?;
    let manifest = bundle.join("function.toml");
    let text = std::fs::read_to_string(&manifest)?;
    Ok(std::fs::write(manifest, format!("{text}{CAPABILITIES}\n"))?)
}

/// Publishes the payload; rejects `x`, and publishes `t` twice.
fn stricter() -> Guest {
    let again = "(drop (call $publish (i32.const 2048) (i32.const 9) (call $data (local.get $event)) (i32.const 1)))";
    let reject = "(return (call $fail (i32.const 1) (i32.const 2048) (i32.const 7)))";
    Guest::forward("results/a").but_on(b't', again).but_on(b'x', reject)
}

/// Runs `tidegate replay`; tells the report, and the status.
fn replay(bundle: &Path, file: &Path, more: &[&str]) -> anyhow::Result<(Value, Option<i32>)> {
    let output = command(bundle, file, &[more, &["--json"]].concat())?;
    let said = String::from_utf8_lossy(&output.stderr);
    let mut report: Value = serde_json::from_slice(&output.stdout).with_context(|| said.into_owned())?;
    // All else is the same each time.
    let latency = report.as_object_mut().and_then(|report| report.remove("latency"));
    ensure!(latency.is_some_and(|latency| latency["after"]["p50_us"].is_u64()), "no latency: {report}");
    Ok((report, output.status.code()))
}

fn command(bundle: &Path, file: &Path, more: &[&str]) -> anyhow::Result<Output> {
    let mut command = Command::new(e2e::tidegate()?);
    command.arg("replay").arg("--bundle").arg(bundle).args(more).arg(file);
    Ok(command.stdin(Stdio::null()).output()?)
}

async fn publish(site: &Site, payloads: &[&str]) -> anyhow::Result<()> {
    for payload in payloads {
        site.device.publish("sensors/1", *payload, 1).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_shows_exactly_what_a_change_makes_different() -> anyhow::Result<()> {
    let site = site(Guest::forward("results/a")).await?;
    let recorder = Recorder::start(&site.agent, "events.jsonl", &["--events", "6", "--trigger", "mqtt"]).await?;
    publish(&site, &["a", "b", "x", "c", "t", "d"]).await?;
    let (file, said) = recorder.ends().await?;
    assert!(said.contains("6 events"), "{said}");
    assert_eq!(std::fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
    site.device.take(6).await?;

    let folder = tempfile::tempdir()?;
    let old = version(folder.path(), "1.0.0", &Guest::forward("results/a"))?;
    let new = version(folder.path(), "1.1.0", &stricter())?;
    let (report, status) = replay(&old, &file, &[])?;
    assert_eq!((status, &report["events"], &report["same"]), (Some(0), &6.into(), &6.into()), "{report}");

    let (report, status) = replay(&new, &file, &[])?;
    assert_eq!((status, &report["same"], &report["different"]), (Some(1), &4.into(), &2.into()), "{report}");
    assert_eq!(report["differences"], serde_json::json!({ "outcome": 1, "publishes": 1 }));
    assert_eq!(report["endings"][0]["after"], "rejected");
    assert_eq!(report["before"], serde_json::json!({ "recording": true, "versions": ["1.0.0"] }));
    let shown = report["shown"].as_array().context("nothing is shown")?;
    let events: Vec<_> = shown.iter().map(|shown| (&shown["event"]["data_text"], &shown["line"])).collect();
    assert_eq!(events, [(&"x".into(), &3.into()), (&"t".into(), &5.into())]);

    let (same, _) = replay(&new, &file, &[])?;
    assert_eq!(same, report, "the same result each time");
    let (against, status) = replay(&new, &file, &["--against", &old.display().to_string()])?;
    assert_eq!((status, &against["differences"]), (Some(1), &report["differences"]));
    assert_eq!(against["digest"], report["digest"]);

    let shown = command(&new, &file, &["--show", "1"])?;
    let text = String::from_utf8(shown.stdout)?;
    assert!(text.contains("event 3, line 3: mqtt.message `sensors/1`"), "{text}");
    assert!(text.contains("  | x\n  - returned x\n  - would publish on `results/a` of local (QoS 1): x\n"), "{text}");
    assert!(text.contains("  + rejected the event: results\n") && !text.contains("event 5"), "{text}");
    let said = String::from_utf8(shown.stderr)?;
    assert!(said.contains("2 of 6 events came out differently"), "{said}");

    // A line is an event for the tests of a bundle, and for one run.
    let line = folder.path().join("line.json");
    std::fs::write(&line, std::fs::read_to_string(&file)?.lines().nth(1).context("no line")?)?;
    let mut invoke = Command::new(e2e::tidegate()?);
    let output = invoke.args(["invoke", "--bundle"]).arg(&old).arg("--cloudevent").arg(&line).output()?;
    assert_eq!(String::from_utf8(output.stdout)?, "b");
    assert_eq!(site.device.rest(), [], "nothing leaves in a replay");
    Ok(())
}

/// Publishes the id of its run, and returns its deadline; after `random`, some WAT.
fn timely(random: &str) -> Guest {
    Guest::raw(
        &format!(
            "(drop (call $publish (i32.const 2048) (i32.const 9)
                (i32.load offset=96 (local.get $event)) (i32.load offset=100 (local.get $event))))
             (i64.store (i32.const 1500) (i64.load offset=112 (local.get $event)))
             {random}
             (call $answer (i32.const 1500) (i32.const 16))"
        ),
        "results/a",
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_has_the_time_of_the_recording_and_the_same_chance_each_time() -> anyhow::Result<()> {
    let site = site(timely("")).await?;
    let recorder = Recorder::start(&site.agent, "events.jsonl", &["--events", "3"]).await?;
    publish(&site, &["a", "b", "c"]).await?;
    let (file, _) = recorder.ends().await?;
    let folder = tempfile::tempdir()?;
    let (report, status) = replay(&version(folder.path(), "1.0.0", &timely(""))?, &file, &[])?;
    assert_eq!((status, &report["same"]), (Some(0), &3.into()), "{report}");

    let random = version(folder.path(), "1.1.0", &timely("(i64.store (i32.const 1508) (call $random))"))?;
    let (report, status) = replay(&random, &file, &[])?;
    assert_eq!((status, &report["differences"]), (Some(1), &serde_json::json!({ "result": 3 })));
    assert_eq!(replay(&random, &file, &[])?.0, report);
    let drawn: std::collections::BTreeSet<_> = report["shown"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|shown| shown["after"]["result_base64"].to_string())
        .collect();
    assert_eq!(drawn.len(), 3, "each event has numbers of its own: {report}");
    Ok(())
}

/// Counts events under one key, and returns the count as bytes.
fn counter() -> Guest {
    counter_that("")
}

/// The same, which does `then` with the count at 1416 before it publishes that.
fn counter_that(then: &str) -> Guest {
    let body = format!(
        "(if (i32.eqz (i32.load (i32.const 1300))) (then
            (call $open (i32.const 2048) (i32.const 1) (i32.const 1400))
            (i32.store (i32.const 1300) (i32.load (i32.const 1404)))))
         (call $increment (i32.load (i32.const 1300)) (i32.const 2049) (i32.const 1) (i64.const 1) (i32.const 1408))
         {then}
         (drop (call $publish (i32.const 2050) (i32.const 9) (i32.const 1416) (i32.const 8)))
         (call $answer (i32.const 1416) (i32.const 8))",
    );
    // The last two name what it may try to set.
    Guest::raw(&body, "cnresults/aplclevel")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_remembers_what_the_function_did_when_the_recording_began() -> anyhow::Result<()> {
    let site = site(counter()).await?;
    publish(&site, &["1", "2", "3"]).await?;
    site.device.take(3).await?;
    let recorder = Recorder::start(&site.agent, "events.jsonl", &["--events", "3"]).await?;
    publish(&site, &["4", "5", "6"]).await?;
    let (file, _) = recorder.ends().await?;
    let folder = tempfile::tempdir()?;
    let (report, status) = replay(&version(folder.path(), "1.0.0", &counter())?, &file, &[])?;
    assert_eq!((status, &report["same"]), (Some(0), &3.into()), "{report}");
    Ok(())
}

/// Nothing of such a run is kept, so that it is what it has read alone that makes it fail again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_failed_fails_in_its_replay() -> anyhow::Result<()> {
    let full = counter_that(
        "(if (i64.gt_u (i64.load (i32.const 1416)) (i64.const 2))
            (then (return (call $fail (i32.const 1) (i32.const 2048) (i32.const 1)))))",
    );
    let folder = tempfile::tempdir()?;
    let bundle = version(folder.path(), "1.0.0", &full)?;
    let site = site(full).await?;
    publish(&site, &["1", "2"]).await?;
    site.device.take(2).await?;
    let recorder = Recorder::start(&site.agent, "events.jsonl", &["--events", "2"]).await?;
    publish(&site, &["3", "4"]).await?;
    let (file, _) = recorder.ends().await?;
    let (report, status) = replay(&bundle, &file, &[])?;
    assert_eq!((status, &report["same"]), (Some(0), &2.into()), "{report}");
    Ok(())
}

/// Of the second run nothing was kept on the gateway, since what it set can only be read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_was_not_kept_leaves_nothing_behind_in_its_replay() -> anyhow::Result<()> {
    const GRANTED: &str =
        "capabilities = [\"mqtt:publish:results/#\", \"keyvalue\", \"source:plc:write\"]\nconcurrency = 1";
    let set = "(if (call $set_point (i32.const 2059) (i32.const 3) (i32.const 2062) (i32.const 5) (i64.const 1))
        (then (return (call $fail_with_refusal (i32.const 1)))))";
    let alarm = counter().but_on(b'x', set);
    let folder = tempfile::tempdir()?;
    let bundle = folder.path().join("alarm");
    alarm.write(&bundle, "1.0.0")?;
    let manifest = std::fs::read_to_string(bundle.join("function.toml"))?;
    std::fs::write(bundle.join("function.toml"), format!("{manifest}{GRANTED}\n"))?;
    let plc = "[source.plc]\nmodbus = { tcp = \"127.0.0.1:1\", registers = [{ name = \"level\", input = 0 }] }\n";
    let config = format!("{plc}{}", guest("alarm", "sensors/#", GRANTED));
    let site = Site::with_guests(&config, &[("alarm", alarm)]).await?;
    let recorder = Recorder::start(&site.agent, "events.jsonl", &["--events", "3"]).await?;
    publish(&site, &["a", "x", "b"]).await?;
    let (file, _) = recorder.ends().await?;
    let counts = site.device.take(2).await?;
    assert_eq!([&counts[0], &counts[1]].map(|count| count.payload[0]), [1, 2], "what it counted was not kept");
    let (report, status) = replay(&bundle, &file, &[])?;
    assert_eq!((status, &report["same"]), (Some(0), &3.into()), "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_that_was_cut_is_replayed_up_to_there() -> anyhow::Result<()> {
    let site = site(Guest::forward("results/a")).await?;
    let mut recorder = Recorder::start(&site.agent, "events.jsonl", &[]).await?;
    publish(&site, &["a", "b", "c"]).await?;
    let part = recorder.part();
    let segments = || -> Vec<u8> {
        let files = std::fs::read_dir(&part).into_iter().flatten().flatten();
        files.flat_map(|file| std::fs::read(file.path()).unwrap_or_default()).collect()
    };
    let lines = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count();
    e2e::until("three events to be recorded", async || lines(&segments()) == 3).await?;
    // What a kill leaves behind is all there.
    recorder.child.kill()?;
    recorder.child.wait()?;
    let recording = segments();
    let folder = tempfile::tempdir()?;
    let (bundle, file) =
        (version(folder.path(), "1.0.0", &Guest::forward("results/a"))?, folder.path().join("cut.jsonl"));
    std::fs::write(&file, &recording)?;
    assert_eq!(replay(&bundle, &file, &[])?.0["same"], 3);

    std::fs::write(&file, &recording[..recording.len() - 10])?;
    let (report, status) = replay(&bundle, &file, &[])?;
    assert_eq!((status, &report["same"], &report["damaged"]), (Some(0), &2.into(), &1.into()), "{report}");
    let text = String::from_utf8(command(&bundle, &file, &[])?.stdout)?;
    assert!(text.contains("left out: 1 line for damage, first line 3: it is cut off"), "{text}");

    for (content, hint) in [("", "`tidegate record`"), ("{\"temperature\":21}", "`tidegate invoke --event`")] {
        std::fs::write(&file, content)?;
        let output = command(&bundle, &file, &[])?;
        let said = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("has no event of function `alarm`") && said.contains(hint), "{said}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_that_is_full_keeps_the_newest_events() -> anyhow::Result<()> {
    let site = site(Guest::forward("results/a")).await?;
    let bounds = ["--events", "100", "--max-bytes", "16 KiB"];
    let recorder = Recorder::start(&site.agent, "events.jsonl", &bounds).await?;
    let payloads: Vec<_> = (0..100).map(|n| format!("{n:03}")).collect();
    publish(&site, &payloads.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    let (file, said) = recorder.ends().await?;
    assert!(said.contains("made room: "), "{said}");
    let text = std::fs::read_to_string(&file)?;
    assert!(text.len() <= 16 << 10, "{} bytes", text.len());
    let events = text.lines().map(|line| Ok(serde_json::from_str::<Value>(line)?["data_text"].clone()));
    let events = events.collect::<anyhow::Result<Vec<_>>>()?;
    let newest: Vec<Value> = payloads[100 - events.len()..].iter().map(|payload| payload.as_str().into()).collect();
    assert_eq!(events, newest);

    let output = site.agent.command(&["record", "--out", &file.display().to_string()])?;
    assert_eq!(output.status.code(), Some(2), "what was recorded is not written over");
    let gone = site.agent.folder().join("gone.jsonl");
    let output = site.agent.command(&["record", "--function", "gone", "--out", &gone.display().to_string()])?;
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(!gone.exists());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_outlives_the_agent() -> anyhow::Result<()> {
    let mut site = site(Guest::forward("results/a")).await?;
    for how in ["stopped", "killed"] {
        let recorder = Recorder::start(&site.agent, how, &[]).await?;
        publish(&site, &["a", "b"]).await?;
        let segment = recorder.part().join("0000000001.jsonl");
        let text = || std::fs::read_to_string(&segment).unwrap_or_default();
        e2e::until("two events to be recorded", async || text().lines().count() == 2).await?;
        if how == "killed" {
            site.agent.kill()?
        } else {
            site.agent.stop()?
        }
        let (file, status, said) = recorder.ended().await?;
        assert_eq!(status, Some(1), "{how}: {said}");
        assert!(said.contains("the agent ended the recording"), "{how}: {said}");
        assert_eq!(std::fs::read_to_string(&file)?.lines().count(), 2, "{how}");
        site.agent.resume().await?;
        site.agent.hears("local").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_to_stdout_ends_when_it_is_full() -> anyhow::Result<()> {
    let site = site(Guest::forward("results/a")).await?;
    let mut command = Command::new(e2e::tidegate()?);
    command.args(["record", "--out", "-", "--max-bytes", "2 KiB", "--config"]).arg(site.agent.config());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    // Whatever comes before it has begun is for nobody: so they come until it has what it wants.
    let done = async || {
        let _ = publish(&site, &["a"]).await;
        !matches!(child.try_wait(), Ok(None))
    };
    e2e::until("the recording to end", done).await?;
    let output = child.wait_with_output()?;
    let lines = String::from_utf8(output.stdout)?;
    assert!(output.status.success() && lines.len() >= 2 << 10, "{lines}");
    for line in lines.lines() {
        assert_eq!(serde_json::from_str::<Value>(line)?["data_text"], "a");
    }
    Ok(())
}

/// As with `| head`: it has seen enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_that_nobody_reads_any_more_ends_well() -> anyhow::Result<()> {
    let site = site(Guest::forward("results/a")).await?;
    let mut command = Command::new(e2e::tidegate()?);
    command.args(["record", "--out", "-", "--config"]).arg(site.agent.config());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let stdout = child.stdout.take().context("no stdout")?;
    let first = std::thread::spawn(move || BufReader::new(stdout).lines().next());
    // The reader goes with its first line; the next one finds nobody.
    let done = async || {
        let _ = publish(&site, &["a"]).await;
        !matches!(child.try_wait(), Ok(None))
    };
    e2e::until("the recording to end", done).await?;
    let output = child.wait_with_output()?;
    assert_eq!((output.status.code(), String::from_utf8(output.stderr)?), (Some(0), String::new()));
    assert!(first.join().is_ok_and(|line| line.is_some_and(|line| line.is_ok_and(|line| line.contains("\"a\"")))));
    Ok(())
}

/// By the command that the refusal names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_recording_left_is_said_and_can_be_put_together() -> anyhow::Result<()> {
    let site = site(Guest::forward("results/a")).await?;
    let mut recorder = Recorder::start(&site.agent, "events.jsonl", &["--max-bytes", "16 KiB"]).await?;
    publish(&site, &["a", "b", "c", "d", "e", "f", "g", "h"]).await?;
    let part = recorder.part();
    let events = || -> usize {
        let files = std::fs::read_dir(&part).into_iter().flatten().flatten();
        files.map(|file| std::fs::read_to_string(file.path()).unwrap_or_default().lines().count()).sum()
    };
    e2e::until("the events to be recorded", async || events() == 8).await?;
    recorder.child.kill()?;
    recorder.child.wait()?;
    assert!(std::fs::read_dir(&part)?.count() > 1, "there are several segments");

    let file = recorder.file.display().to_string();
    let output = site.agent.command(&["record", "--out", &file])?;
    let said = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("of a recording that runs, or was killed"), "{said}");
    let together = said.split('`').find(|words| words.starts_with("cat ")).context(said.clone())?;
    let together = together.replace("FILE", "whole.jsonl");
    let status = Command::new("sh").args(["-c", &together]).current_dir(site.agent.folder()).status()?;
    ensure!(status.success(), "{together}");
    let whole = site.agent.folder().join("whole.jsonl");
    let folder = tempfile::tempdir()?;
    let bundle = version(folder.path(), "1.0.0", &Guest::forward("results/a"))?;
    let (report, status) = replay(&bundle, &whole, &[])?;
    assert_eq!((status, &report["same"]), (Some(0), &8.into()), "{report}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_recorder_cannot_take_is_counted_and_holds_up_no_event() -> anyhow::Result<()> {
    // Three times what may wait, and soon done: who does not read for long is not waited for.
    const EVENTS: u64 = 60;
    let told = "(drop (call $publish (i32.const 2048) (i32.const 9) (i32.const 2048) (i32.const 1)))
        (call $answer (i32.const 2048) (i32.const 1))";
    let site = site(Guest::raw(told, "results/a")).await?;
    // One that listens, and does not read.
    let mut stream = UnixStream::connect(site.agent.folder().join("state/tidegate.sock"))?;
    stream.set_read_timeout(Some(e2e::PATIENCE))?;
    stream.write_all(b"GET /v1/recording HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut lines = BufReader::new(stream).lines();
    // The head, then the empty line that says that it has begun: 1 byte in a chunk.
    ensure!(lines.by_ref().any(|line| line.is_ok_and(|line| line == "1")), "it did not begin");
    let payload = "x".repeat(200 << 10);
    for _ in 0..EVENTS {
        site.device.publish("sensors/1", payload.clone(), 1).await?;
    }
    site.device.take(60).await?;

    let (mut events, mut missed) = (0, 0);
    while events + missed < EVENTS {
        let line = lines.next().context("the recording ended")??;
        if !line.starts_with('{') {
            continue;
        }
        match serde_json::from_str::<Value>(&line)?["missed"].as_u64() {
            Some(more) => missed += more,
            None => events += 1,
        }
    }
    assert_eq!(events + missed, EVENTS, "{events} and {missed}");
    assert!(events > 0 && missed > 0, "{events} and {missed}");
    Ok(())
}

/// Each line that the guide has in a block of `sh`, as it stands; the changed version differs, which is status 1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_commands_of_the_guide_run() -> anyhow::Result<()> {
    let site = site(Guest::forward("results/a")).await?;
    let folder = site.agent.folder();
    write(&folder.join("functions/alarm"), "1.1.0", &stricter())?;
    write(&folder.join("before/alarm"), "1.0.0", &Guest::forward("results/a"))?;
    let blocks = GUIDE.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    let mut statuses = Vec::new();
    for line in blocks.flat_map(str::lines) {
        let line = line.replace("tidegate ", &format!("{} ", e2e::tidegate()?.display()));
        let mut command = Command::new("sh");
        let child = command.args(["-c", &line]).current_dir(folder).stdin(Stdio::null());
        if line.contains(" record ") {
            let mut child = child.spawn()?;
            // Whatever comes before it has begun is for nobody: so they come until it has what it wants.
            let done = async || {
                let _ = publish(&site, &["a", "x"]).await;
                !matches!(child.try_wait(), Ok(None))
            };
            e2e::until("the guide's recording", done).await?;
            statuses.push(child.wait()?.code());
        } else {
            let output = child.output()?;
            ensure!(output.status.code() != Some(2), "`{line}`: {}", String::from_utf8_lossy(&output.stderr));
            statuses.push(output.status.code());
        }
    }
    // The last one is of an event by itself, `a` or `x`.
    assert_eq!(statuses[..4], [Some(0), Some(1), Some(1), Some(0)]);
    Ok(())
}
