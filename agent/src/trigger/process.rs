//! `process` sources: each line that a program writes to its standard output is an event, and the program is started again when it ends.
//!
//! # Promises
//! - One program per source, however many functions hear it. It ends with the agent, and so does what it has started itself.
//! - Who writes faster than functions run is held up by its pipe; nothing is left out but lines beyond `source_line_bytes_max`.
//! - A line that was not handled when the agent is killed is gone: a pipe remembers nothing.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use super::lines::{Line, Lines};
use super::source::{Observed, Outlet};
use crate::broker::BackOff;
use crate::config::{Document, join, keys};

/// CloudEvents `type`.
pub const KIND: &str = "process.line";
/// How soon a program that ended is started again, at first and at last. One that ran for the latter begins anew.
const RESTART: Duration = Duration::from_secs(1);
const RESTART_MAX: Duration = Duration::from_secs(60);
/// How long it may take to end when it is asked to.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// What is read at once.
const CHUNK_BYTES: usize = 8 << 10;
/// What is told of its standard error.
const COMPLAINT_BYTES_MAX: usize = 512;

/// `process = { command = ["rtl_433", "-F", "json"] }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSource {
    /// The program and its arguments. No shell reads them.
    pub command: Vec<String>,
}

keys! { ProcessSource: command = required("[\"rtl_433\", \"-F\", \"json\"]") }

impl ProcessSource {
    pub(crate) fn check(&self, path: &str, document: &mut Document) {
        if self.command.first().is_none_or(String::is_empty) {
            let hint = "write for example `command = [\"rtl_433\", \"-F\", \"json\"]`";
            document.refuse(&join(path, "command"), "the command names no program", hint);
        }
    }

    /// Runs the program until the source is stopped.
    pub(crate) async fn run(self, outlet: Outlet) {
        let mut back_off = BackOff::new(RESTART, RESTART_MAX);
        loop {
            let started = outlet.clock.instant();
            let Some(why) = self.once(&outlet).await else { return };
            outlet.trouble(why);
            if outlet.clock.instant() - started >= RESTART_MAX {
                back_off.reset();
            }
            tokio::select! {
                () = outlet.stopped() => return,
                () = sleep(back_off.step()) => {}
            }
        }
    }

    /// Runs it once; says how it ended, or nothing when it was to end.
    async fn once(&self, outlet: &Outlet) -> Option<String> {
        let (program, arguments) = self.command.split_first()?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own, so that its children end with it.
        let mut child = match command.process_group(0).kill_on_drop(true).spawn() {
            Ok(child) => child,
            Err(error) => return Some(format!("`{program}` cannot be started: {error}")),
        };
        let group = Group::of(&child);
        let (stdout, stderr) = (child.stdout.take()?, child.stderr.take()?);
        let complaint = tokio::select! {
            () = outlet.stopped() => {
                group.end(&mut child).await;
                return None;
            }
            ((), complaint) = futures_util::future::join(hear(stdout, outlet), last_line(stderr)) => complaint,
        };
        let status = child.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string());
        let complaint = complaint.map(|complaint| format!(": {complaint}")).unwrap_or_default();
        Some(format!("`{program}` ended with {status}{complaint}"))
    }
}

/// Makes events of lines, until there are no more.
async fn hear(mut stdout: impl AsyncRead + Unpin, outlet: &Outlet) {
    let mut lines = Lines::new(outlet.line_bytes_max);
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(bytes @ 1..) = stdout.read(&mut chunk).await {
        outlet.well();
        lines.add(&chunk[..bytes]);
        while let Some(line) = lines.next() {
            emit(line, outlet).await;
        }
    }
    if let Some(line) = lines.rest() {
        emit(line, outlet).await;
    }
}

async fn emit(line: Line, outlet: &Outlet) {
    match line {
        Line::Whole(data) => drop(outlet.tell(Observed { kind: KIND, data, ..Observed::default() }).await),
        Line::TooLong => outlet.count(&format!("a line is longer than {} bytes, and left out", outlet.line_bytes_max)),
    }
}

/// The last thing that a program complained about.
async fn last_line(mut stderr: impl AsyncRead + Unpin) -> Option<String> {
    let (mut lines, mut last) = (Lines::new(COMPLAINT_BYTES_MAX), None);
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(bytes @ 1..) = stderr.read(&mut chunk).await {
        lines.add(&chunk[..bytes]);
        last = std::iter::from_fn(|| lines.next()).last().or(last);
    }
    match lines.rest().or(last)? {
        Line::Whole(line) => Some(String::from_utf8_lossy(&line).into_owned()),
        Line::TooLong => None,
    }
}

/// The program and what it has started.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw))
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            // It may have ended.
            let _ = kill_process_group(group, signal);
        }
    }

    async fn end(&self, child: &mut Child) {
        self.signal(Signal::TERM);
        // What has not ended then is killed.
        let _ = timeout(END_PATIENCE, child.wait()).await;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}
