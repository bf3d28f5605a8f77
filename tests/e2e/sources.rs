//! What a gateway hears of its own machine.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use e2e::{Guest, Site};
use serde_json::Value;

/// `[[function]]` of that name and bundle, which hears `source` by a trigger of that kind, and what it may.
pub(super) fn hears(name: &str, kind: &str, source: &str, capability: &str) -> String {
    format!(
        "[[function]]\nname = \"{name}\"\nbundle = \"{name}\"\ncapabilities = [\"{capability}\"]\n\
         [[function.trigger]]\n{kind} = {{ source = \"{source}\" }}\n"
    )
}

/// How the source stands.
pub(super) fn source(status: &Value, name: &str) -> Value {
    let mut sources = status["sources"].as_array().into_iter().flatten();
    sources.find(|source| source["name"] == name).cloned().unwrap_or_default()
}

fn records(site: &Site) -> u64 {
    let status = site.agent.status().unwrap_or_default();
    super::stream(&status, "kept")["records"].as_u64().unwrap_or(0)
}

/// Waits for so many records in `kept`.
pub(super) async fn keeps(site: &Site, count: u64) -> anyhow::Result<()> {
    let all = e2e::until("all lines to be kept", async || records(site) >= count).await;
    all.with_context(|| format!("{} of {count}; {}", records(site), site.agent.log()))
}

#[tokio::test]
async fn each_line_of_a_program_is_an_event_and_it_is_started_again() -> anyhow::Result<()> {
    let script = "echo one; echo two; echo no more coffee >&2; exit 3";
    let config = format!(
        "[source.radio]\nprocess = {{ command = [\"sh\", \"-c\", \"{script}\"] }}\n{}{}",
        hears("first", "process", "radio", "mqtt:publish:results/#"),
        hears("second", "process", "radio", "mqtt:publish:results/#")
    );
    let guests = [("first", Guest::forward("results/1")), ("second", Guest::forward("results/2"))];
    let site = Site::with_guests(&config, &guests).await?;
    // Two runs of the program, and two functions that hear each.
    let mut heard: Vec<(String, Vec<u8>)> = Vec::new();
    for message in site.device.take(8).await? {
        heard.push((message.topic, message.payload.to_vec()));
    }
    for topic in ["results/1", "results/2"] {
        let mut lines: Vec<_> = heard.iter().filter(|(at, _)| at == topic).map(|(_, line)| line.as_slice()).collect();
        lines.sort_unstable();
        assert_eq!(lines, [b"one", b"one", b"two", b"two"], "{topic}");
    }
    let status = site.agent.status()?;
    let trouble = source(&status, "radio")["trouble"].to_string();
    assert!(trouble.contains("`sh` ended with exit status: 3: no more coffee"), "{status}");
    let complaints = site.agent.log().matches("no more coffee").count();
    assert_eq!(complaints, 1, "troubles are logged once a minute");
    Ok(())
}

#[tokio::test]
async fn a_program_that_floods_is_held_up_and_ends_with_the_agent() -> anyhow::Result<()> {
    const LINES: u64 = 20_000;
    // A number that no other test sleeps for finds the child of the child.
    let seconds = format!("86400.{}", fastrand::u32(100_000..1_000_000));
    let config = format!(
        "[source.flood]\nprocess = {{ command = [\"sh\", \"-c\", \"seq {LINES}; sleep {seconds}\"] }}\n[stream.kept]\n{}",
        hears("keep", "process", "flood", "stream:kept")
    );
    let mut site = Site::with_guests(&config, &[("keep", Guest::append("kept"))]).await?;
    keeps(&site, LINES).await?;
    assert_eq!(records(&site), LINES);
    let is_there = || -> anyhow::Result<bool> {
        for entry in std::fs::read_dir("/proc")? {
            let command = std::fs::read(entry?.path().join("cmdline")).unwrap_or_default();
            if command.starts_with(b"sleep\0") && command[6..].starts_with(seconds.as_bytes()) {
                return Ok(true);
            }
        }
        Ok(false)
    };
    assert!(is_there()?, "the program does not run");
    site.agent.stop()?;
    e2e::until("the program to end", async || !is_there().unwrap_or(true)).await
}

/// Appends lines to the file.
fn write(file: &Path, lines: &[String]) -> anyhow::Result<()> {
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(file)?;
    lines.iter().try_for_each(|line| writeln!(file, "{line}"))?;
    Ok(())
}

/// A file that grows, and what its lines must lead to.
struct Growing<'a> {
    site: &'a mut Site,
    written: BTreeSet<String>,
    heard: BTreeSet<String>,
}

impl Growing<'_> {
    fn write(&mut self, file: &Path, what: &str, count: u64) -> anyhow::Result<()> {
        let lines: Vec<_> = (0..count).map(|n| format!("{what}-{n}")).collect();
        write(file, &lines)?;
        self.written.extend(lines);
        Ok(())
    }

    /// Waits until each line was handled.
    async fn all_are_heard(&mut self) -> anyhow::Result<()> {
        while self.heard != self.written {
            let message = self.site.device.next().await.with_context(|| {
                let missing: Vec<_> = self.written.difference(&self.heard).take(20).collect();
                format!("{missing:?} did not come; {}", self.site.agent.log())
            })?;
            self.heard.insert(String::from_utf8_lossy(&message.payload).into_owned());
        }
        Ok(())
    }
}

/// Processor time that a process has had, in hundredths of a second.
fn ticks(pid: u32) -> anyhow::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

#[tokio::test]
async fn sources_of_which_nothing_is_heard_rest() -> anyhow::Result<()> {
    let folder = tempfile::Builder::new().prefix("still-").tempdir()?;
    let log = folder.path().join("app.log");
    std::fs::write(&log, "")?;
    let config = format!(
        "[source.app]\ntail = {{ file = {log:?} }}\n[source.inbox]\nfile = {{ folder = {:?} }}\n\
         [source.quiet]\nprocess = {{ command = [\"sleep\", \"1000\"] }}\n{}{}{}",
        folder.path(),
        hears("lines", "tail", "app", "keyvalue"),
        hears("files", "file", "inbox", "keyvalue"),
        hears("said", "process", "quiet", "keyvalue")
    );
    let guests = ["lines", "files", "said"].map(|name| (name, Guest::echo()));
    let mut site = Site::with_guests(&config, &guests).await?;
    let pid = site.agent.pid().context("it runs")?;
    e2e::until("a second of rest", async || {
        let before = ticks(pid);
        tokio::time::sleep(Duration::from_secs(1)).await;
        before.and_then(|before| Ok(ticks(pid)? - before)).is_ok_and(|ticks| ticks < 5)
    })
    .await?;
    // Its program ends with it.
    site.agent.stop()
}

#[tokio::test]
async fn each_line_of_a_file_is_an_event_over_rotation_truncation_and_kills() -> anyhow::Result<()> {
    let folder = tempfile::Builder::new().prefix("tail-").tempdir()?;
    let [log, old, older] = ["app.log", "app.log.1", "app.log.2"].map(|name| folder.path().join(name));
    let config = format!(
        "[source.app]\ntail = {{ file = \"{}\", from = \"start\" }}\n{}",
        log.display(),
        hears("tell", "tail", "app", "mqtt:publish:results/#")
    );
    let mut site = Site::with_guests(&config, &[("tell", Guest::forward("results/line"))]).await?;
    let missed = async || site.agent.status().is_ok_and(|status| source(&status, "app")["trouble"].is_string());
    e2e::until("a file that is not there to be missed", missed).await?;
    let mut app = Growing { site: &mut site, written: BTreeSet::new(), heard: BTreeSet::new() };
    app.write(&log, "first", 500)?;
    app.all_are_heard().await?;

    // Renamed while it is written, and made anew.
    std::fs::rename(&log, &old)?;
    app.write(&old, "late", 10)?;
    app.write(&log, "second", 500)?;
    app.all_are_heard().await?;

    // Copied and truncated.
    std::fs::write(&log, "")?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    app.write(&log, "third", 100)?;
    app.all_are_heard().await?;

    // Rotated twice while nobody looks.
    app.site.agent.kill()?;
    app.write(&log, "away", 100)?;
    std::fs::rename(&old, &older)?;
    std::fs::rename(&log, &old)?;
    app.write(&log, "between", 100)?;
    std::fs::rename(&old, &older)?;
    std::fs::rename(&log, &old)?;
    app.write(&log, "back", 100)?;
    app.site.agent.resume().await?;
    app.all_are_heard().await?;
    let status = site.agent.status()?;
    assert_eq!(source(&status, "app")["trouble"], Value::Null, "{status}");
    Ok(())
}
