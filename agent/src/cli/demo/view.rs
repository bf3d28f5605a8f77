//! What a person sees: a block that is drawn again in place on a terminal, plain lines in a pipe.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use tokio::time::Instant;

use super::ledger::Ledger;

/// How often plain lines come.
const PLAIN_EVERY: Duration = Duration::from_secs(2);

/// Where things stand, beside the ledger.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    /// Samples that this demo sends in all.
    pub(super) samples: usize,
    /// Runs of the function, by the agent's own account, over all of its lives.
    pub(super) runs: u64,
    /// Records in the agent's stream, by its own account; `None` while it does not answer.
    pub(super) committed: Option<u64>,
    /// Records that still wait for the link.
    pub(super) waiting: Option<u64>,
    /// Share of the latest windows that were recognised, and how many those are; `None` before the first.
    pub(super) accuracy: Option<(f64, usize)>,
    pub(super) link_up: bool,
    pub(super) disk_full: bool,
    pub(super) agent_up: bool,
}

/// Writes to standard output; a reader who went away is no failure of the demo.
#[derive(Debug)]
pub(super) struct View {
    terminal: bool,
    started: Instant,
    drawn_lines: usize,
    next_plain: Instant,
}

impl View {
    pub(super) fn new(now: Instant) -> Self {
        let terminal = std::io::stdout().is_terminal();
        Self { terminal, started: now, drawn_lines: 0, next_plain: now }
    }

    /// One line that stays: what happens on the way.
    pub(super) fn say(&mut self, now: Instant, text: &str) {
        let seconds = (now - self.started).as_secs_f32();
        self.write(&format!("{seconds:5.1} s  {text}\n"));
        self.drawn_lines = 0;
    }

    /// A paragraph that stays.
    pub(super) fn paragraph(&mut self, text: &str) {
        self.write(&format!("{text}\n"));
        self.drawn_lines = 0;
    }

    /// Shows where things stand: in place on a terminal, now and then in a pipe.
    pub(super) fn show(&mut self, now: Instant, standing: Standing, ledger: &Ledger) {
        let (sent, arrived) = {
            let books = ledger.books();
            (books.sent.len(), books.arrived.len())
        };
        let handled = standing.runs;
        let committed = standing.committed.map_or_else(|| "?".to_owned(), |records| records.to_string());
        let waiting = standing.waiting.map_or_else(|| "?".to_owned(), |records| records.to_string());
        let agent = if standing.agent_up { "running" } else { "killed" };
        let link = if standing.link_up { "up" } else { "cut" };
        let accuracy = standing
            .accuracy
            .map_or_else(|| "-".to_owned(), |(share, windows)| format!("{share:.2} of the last {windows} windows"));
        let disk = if standing.disk_full { ", disk full" } else { "" };
        if !self.terminal {
            if now >= self.next_plain {
                self.next_plain = now + PLAIN_EVERY;
                self.say(
                    now,
                    &format!(
                        "agent {agent}, uplink {link}{disk}: sent {sent}, handled {handled}, committed {committed}, arrived {arrived}, accuracy {accuracy}"
                    ),
                );
            }
            return;
        }
        let bar = |n: usize, of: usize| {
            let filled = (n * 40).checked_div(of).unwrap_or(0).min(40);
            format!("{}{}", "█".repeat(filled), "·".repeat(40 - filled))
        };
        let samples = standing.samples;
        let block = format!(
            "  agent  {agent:<8} uplink  {link}{disk}\n  \
             sent      {sent:>6}  {}\n  \
             handled   {handled:>6}  {}\n  \
             committed {committed:>6}  records on disk, {waiting} waiting for the uplink\n  \
             arrived   {arrived:>6}  records at the cloud\n  \
             accuracy  {accuracy}\n",
            bar(sent, samples),
            bar(usize::try_from(handled).unwrap_or(usize::MAX), samples),
        );
        self.write(&block);
        self.drawn_lines = block.lines().count();
    }

    fn write(&self, text: &str) {
        let mut out = std::io::stdout().lock();
        if self.drawn_lines > 0 {
            // Up to where the block began, and clear from there.
            let _ = write!(out, "\x1b[{}A\x1b[J", self.drawn_lines);
        }
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}
