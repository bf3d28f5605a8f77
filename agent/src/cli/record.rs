//! `tidegate record`: keeps the events that functions get, and what came of each.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Failure;
use super::connect::AgentArgs;
use super::output::{self, Errors, Output};
use super::run::signals;
use crate::name::FunctionName;
use crate::recording::line;
use crate::recording::ring::{self, Kept, Ring};
use crate::units::{ByteSize, Span};

/// Keeps events as functions get them, with what came of each, for `tidegate replay`
#[derive(Debug, clap::Args)]
pub(super) struct RecordArgs {
    /// Where they go: a new file that only this user may read, for events may tell of people; `-` is stdout
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Only events of this function; may be said again
    #[arg(long = "function", value_name = "NAME", value_parser = FunctionName::parse)]
    functions: Vec<FunctionName>,
    /// Only events of this trigger: `mqtt`, `schedule`, `file`, …, or the type of posted ones; may be said again
    #[arg(long = "trigger", value_name = "KIND", value_parser = kind)]
    triggers: Vec<String>,
    /// End after so long; Ctrl-C ends it too
    #[arg(long = "for", value_name = "TIME", value_parser = Span::parse)]
    time: Option<Span>,
    /// End after so many events
    #[arg(long, value_name = "N")]
    events: Option<u64>,
    /// Keep so much: of a file the newest, of stdout the first; when it ends, a file takes its room twice for a moment
    #[arg(long, value_name = "SIZE", value_parser = ByteSize::parse, default_value = "64 MiB")]
    max_bytes: ByteSize,
    #[command(flatten)]
    agent: AgentArgs,
}

/// A word that needs no escape in a path.
fn kind(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-:~/".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        Ok(text.to_owned())
    } else {
        Err(format!("`{text}` is no type of an event"))
    }
}

pub(super) async fn run(args: &RecordArgs) -> anyhow::Result<()> {
    let file = (args.out != Path::new("-")).then_some(args.out.as_path());
    if let Some(file) = file.filter(|file| file.exists()) {
        let what = format!("`{}` is there already", file.display());
        return Err(Failure::wrong(what, "name another file, or remove it").into());
    }
    if let Some(part) = file.map(ring::part_of).filter(|part| part.exists()) {
        let what = format!("`{}` is there already: of a recording that runs, or was killed", part.display());
        return Err(Failure::wrong(what, put_together(&part)).into());
    }
    let functions = args.functions.iter().map(FunctionName::as_str).collect::<Vec<_>>().join(",");
    let path = format!("/v1/recording?functions={functions}&triggers={}", args.triggers.join(","));
    let [mut terminate, mut interrupt] = signals()?;
    let mut client = args.agent.connect().await?;
    let mut tape = Tape {
        args,
        file,
        ring: None,
        events: 0,
        bytes: 0,
        missed: 0,
        failed: None,
        is_unheard: false,
        is_done: false,
    };
    let ended = tokio::select! {
        ended = client.lines(&path, |line| tape.take(line)) => ended,
        () = tokio::time::sleep(args.time.map_or(Duration::MAX, |time| time.0)) => { tape.is_done = true; Ok(()) }
        _ = terminate.recv() => { tape.is_done = true; Ok(()) }
        _ = interrupt.recv() => { tape.is_done = true; Ok(()) }
    };
    tape.end(ended)
}

/// What is recorded, and where it goes.
struct Tape<'a> {
    args: &'a RecordArgs,
    /// None for stdout.
    file: Option<&'a Path>,
    /// Once the agent has begun.
    ring: Option<Ring>,
    events: u64,
    bytes: u64,
    missed: u64,
    failed: Option<std::io::Error>,
    /// Whether whoever read stdout has gone.
    is_unheard: bool,
    /// Whether it ended because it was to.
    is_done: bool,
}

impl Tape<'_> {
    /// Takes a line; false when that was the last one.
    fn take(&mut self, line: &str) -> bool {
        if let Err(error) = self.write(line) {
            self.failed = Some(error);
            return false;
        }
        let is_full = self.file.is_none() && self.bytes >= self.args.max_bytes.0;
        self.is_done = is_full || self.is_unheard || self.args.events.is_some_and(|events| self.events >= events);
        !self.is_done
    }

    fn write(&mut self, line: &str) -> std::io::Result<()> {
        // The first line is empty: the agent has begun.
        if line.is_empty() {
            if let (Some(file), None) = (self.file, &self.ring) {
                self.ring = Some(Ring::create(file, self.args.max_bytes.0)?);
            }
            Errors::progress("recording; Ctrl-C ends it");
            return Ok(());
        }
        let missed = line::missed(line.as_bytes());
        let events = u64::from(missed.is_none());
        match &mut self.ring {
            Some(ring) => ring.write(line, events)?,
            None => match Output::piece(&output::shown(format!("{line}\n").as_bytes())) {
                // Nobody reads on: `| head`, or a laptop that has gone.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
                    self.is_unheard = true;
                    return Ok(());
                }
                written => written?,
            },
        }
        self.bytes += line.len() as u64 + 1;
        self.events += events;
        self.missed += missed.unwrap_or(0);
        Ok(())
    }

    fn end(self, ended: Result<(), crate::api::client::ClientError>) -> anyhow::Result<()> {
        let Self { args, file, ring, events, bytes, missed, failed, is_done, .. } = self;
        let is_begun = ring.is_some() || events > 0;
        let kept = match (ring, file) {
            (Some(ring), Some(file)) => {
                let part = ring::part_of(file);
                let kept = ring.finish().map_err(|error| {
                    let what = format!("cannot finish `{}`", file.display());
                    Failure::failed(what, put_together(&part)).caused_by(error)
                })?;
                if part.exists() {
                    Errors::line(&format!("`{}` cannot be removed, and is of no use any more", part.display()));
                }
                kept
            }
            _ => Kept { events, bytes, dropped: 0 },
        };
        let cause = match ended {
            Err(error) if !is_begun => return Err(error.into()),
            ended => ended.err(),
        };
        let told = describe(file, kept, missed);
        if let Some(error) = failed {
            let hint = "look for room and rights where it goes";
            let what = format!("cannot write to `{}`", args.out.display());
            return Err(Failure::failed(what, hint).caused_by(error).into());
        }
        match file {
            Some(_) => Output::line(&told)?,
            None => Errors::progress(&told),
        }
        if is_done {
            return Ok(());
        }
        let hint = "what came until then is there; the agent was stopped, or has waited for this command for too long";
        let failure = Failure::failed("the agent ended the recording", hint);
        Err(match cause {
            Some(cause) => failure.caused_by(cause).into(),
            None => failure.into(),
        })
    }
}

/// What to do with the segments of a recording that did not become a file.
fn put_together(part: &Path) -> String {
    format!("what was recorded is all there: `cat {}/* > FILE`, then remove the folder", part.display())
}

/// What was recorded, in words.
fn describe(file: Option<&Path>, kept: Kept, missed: u64) -> String {
    let Kept { events, bytes, dropped } = kept;
    let events_of = |n| output::count_of(n, "event", "s");
    let mut told = format!("{}, {}", events_of(events), output::size(bytes));
    if let Some(file) = file {
        told = format!("{}: {told}", file.display());
    }
    if dropped > 0 {
        told = format!("{told}; made room: {} before", events_of(dropped));
    }
    if missed > 0 {
        told = format!("{told}; left out, since they came too fast: {}", events_of(missed));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_said() {
        let kept = Kept { events: 3, bytes: 2_048, dropped: 1 };
        let told = "a.jsonl: 3 events, 2 KiB; made room: 1 event before; left out, since they came too fast: 7 events";
        assert_eq!(describe(Some(Path::new("a.jsonl")), kept, 7), told);
        assert_eq!(describe(None, Kept::default(), 0), "0 events, 0 B");
    }

    #[test]
    fn a_kind_needs_no_escape() {
        assert_eq!(kind("com.example/started").unwrap(), "com.example/started");
        assert!(kind("a b").is_err() && kind("").is_err() && kind("a&b").is_err());
    }
}
