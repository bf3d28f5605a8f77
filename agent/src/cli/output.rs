//! What a command says: results on stdout, everything else on stderr.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use crate::readable::printable;
pub(super) use crate::readable::{size, time};
use crate::telemetry::LogRecord;

/// What a terminal may obey of texts with several lines.
const PLAIN: [char; 2] = ['\t', '\n'];

/// The result of a command, on stdout.
#[derive(Debug, Default)]
pub(super) struct Output;

impl Output {
    /// One line of the result.
    ///
    /// # Errors
    /// When stdout is closed or full; a reader that has seen enough is no error.
    pub(super) fn line(text: &str) -> io::Result<()> {
        Self::bytes(format!("{text}\n").as_bytes())
    }

    /// One line of a log, in colour on a terminal.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub(super) fn record(record: &LogRecord) -> io::Result<()> {
        // Its texts are printable already, and colours are to be obeyed.
        Self::raw(format!("{}\n", record.text(io::stdout().is_terminal())).as_bytes())
    }

    /// The result as it is; on a terminal what that can show of it, with a line break behind it.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub(super) fn bytes(bytes: &[u8]) -> io::Result<()> {
        Self::raw(&shown(bytes))
    }

    fn raw(bytes: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        let mut written = stdout.write_all(bytes);
        if stdout.is_terminal() && !bytes.ends_with(b"\n") {
            written = written.and_then(|()| stdout.write_all(b"\n"));
        }
        match written.and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }

    /// A part of a result that is too large for memory.
    ///
    /// # Errors
    /// When stdout is closed or full.
    pub(super) fn piece(bytes: &[u8]) -> io::Result<()> {
        io::stdout().lock().write_all(bytes)
    }

    /// A value as JSON.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub(super) fn json(value: &impl serde::Serialize) -> io::Result<()> {
        Self::line(&serde_json::to_string_pretty(value)?)
    }
}

/// What of `bytes` goes to stdout: a terminal must not obey what a payload says.
pub(super) fn shown(bytes: &[u8]) -> Cow<'_, [u8]> {
    if io::stdout().is_terminal() {
        printable(&String::from_utf8_lossy(bytes), &PLAIN).into_bytes().into()
    } else {
        bytes.into()
    }
}

/// Errors, warnings, logs and progress, on stderr.
#[derive(Debug, Default)]
pub(super) struct Errors;

impl Errors {
    /// One line. When stderr is closed there is nobody to tell.
    pub(super) fn line(text: &str) {
        let shown = if io::stderr().is_terminal() { printable(text, &PLAIN).into() } else { Cow::Borrowed(text) };
        let _ = writeln!(io::stderr().lock(), "{shown}");
    }

    /// What a long command is doing; only on a terminal.
    pub(super) fn progress(text: &str) {
        if io::stderr().is_terminal() {
            Self::line(text);
        }
    }
}

/// How far a long transfer is: one line that is written over on a terminal, nothing in a pipe.
#[derive(Debug)]
pub(super) struct Progress {
    what: String,
    of: u64,
    shown: Option<u64>,
}

impl Progress {
    /// Of `of` bytes.
    pub(super) fn new(what: &str, of: u64) -> Self {
        Self { what: what.to_owned(), of, shown: None }
    }

    /// So many bytes are there.
    pub(super) fn at(&mut self, bytes: u64) {
        let percent = (bytes * 100).checked_div(self.of).unwrap_or(100);
        if io::stderr().is_terminal() && self.shown != Some(percent) {
            self.shown = Some(percent);
            let _ = write!(io::stderr().lock(), "\r{} {percent:>3} % of {}\x1b[K", self.what, size(self.of));
        }
    }

    /// All of them are there: the line makes room for what comes next.
    pub(super) fn end(&mut self) {
        if self.shown.take().is_some() {
            let _ = write!(io::stderr().lock(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

/// Rows in columns that are as wide as they need to be.
pub(super) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let rows = rows.iter().map(|row| line(row.iter().map(String::as_str).collect()));
    [line(head.to_vec())].into_iter().chain(rows).collect::<Vec<_>>().join("\n")
}

/// `1 event`, `2 events`: `more` is what the word gets when it is not one.
pub(super) fn count_of(n: u64, what: &str, more: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { more })
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["fahrenheit".to_owned(), "1".to_owned()], vec!["a".to_owned(), "22".to_owned()]];
        assert_eq!(super::table(&["FUNCTION", "RUNS"], &rows), "FUNCTION    RUNS\nfahrenheit  1\na           22");
    }
}
