//! A function's standard output and error: line by line into the agent's log, and no more of it than is allowed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::name::FunctionName;

/// A longer line is shown as several.
const LINE_BYTES_MAX: usize = 8 << 10;
/// What is kept of standard error, to explain a trap.
const LAST_WORDS_BYTES_MAX: usize = 2 << 10;

/// Which of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    Out,
    Err,
}

impl Channel {
    const fn name(self) -> &'static str {
        match self {
            Self::Out => "stdout",
            Self::Err => "stderr",
        }
    }
}

#[derive(Debug)]
struct Lines {
    function: FunctionName,
    invocation: Arc<str>,
    bytes_max: u64,
    /// Since the invocation began.
    bytes: u64,
    cut: bool,
    /// The unfinished line of each channel.
    pending: [Vec<u8>; 2],
    last_words: String,
}

/// The log of one instance; clones write to the same.
#[derive(Clone, Debug)]
pub(crate) struct Log(Arc<Mutex<Lines>>);

impl Log {
    pub(crate) fn new(function: FunctionName, bytes_max: u64) -> Self {
        Self(Arc::new(Mutex::new(Lines {
            function,
            invocation: Arc::from(""),
            bytes_max,
            bytes: 0,
            cut: false,
            pending: [Vec::new(), Vec::new()],
            last_words: String::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What follows belongs to `invocation`.
    pub(crate) fn begin(&self, invocation: &Arc<str>) {
        let mut lines = self.lock();
        lines.invocation = Arc::clone(invocation);
        lines.bytes = 0;
        lines.cut = false;
        lines.last_words.clear();
    }

    /// Shows what has no line end yet.
    pub(crate) fn end(&self) {
        let mut lines = self.lock();
        lines.flush(Channel::Out);
        lines.flush(Channel::Err);
    }

    /// Says where the invocation was when its time was up.
    pub(crate) fn stopped(&self, place: Option<&str>) {
        let lines = self.lock();
        let place = place.unwrap_or("a function without a name");
        tracing::warn!(
            target: "function", function = %lines.function, invocation = %lines.invocation, "stopped at its timeout, in {place}"
        );
    }

    /// What the invocation last said on standard error: a panic's own words where it has them, else the last line.
    pub(crate) fn last_words(&self) -> Option<String> {
        let lines = self.lock();
        let mut told = lines.last_words.lines().filter(|line| !line.trim().is_empty() && !line.starts_with("note: "));
        let panic = told.clone().skip_while(|line| !line.contains("panicked at")).collect::<Vec<_>>().join(" ");
        if panic.is_empty() { told.next_back().map(str::to_owned) } else { Some(panic) }
    }

    /// Adds a line of the host's own to what the invocation says.
    pub(crate) fn tell(&self, channel: Channel, line: &str) {
        self.lock().write(channel, format!("{line}\n").as_bytes());
    }

    /// A stream that writes here.
    pub(crate) fn stream(&self, channel: Channel) -> LogStream {
        LogStream { log: self.clone(), channel }
    }
}

impl Lines {
    fn write(&mut self, channel: Channel, mut bytes: &[u8]) {
        if channel == Channel::Err {
            self.remember(bytes);
        }
        let room = usize::try_from(self.bytes_max.saturating_sub(self.bytes)).unwrap_or(usize::MAX);
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        let too_much = bytes.len() > room;
        bytes = &bytes[..bytes.len().min(room)];
        while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
            self.append(channel, &bytes[..end]);
            self.flush(channel);
            bytes = &bytes[end + 1..];
        }
        self.append(channel, bytes);
        if too_much && !self.cut {
            self.flush(channel);
            self.cut = true;
            let limit = crate::units::ByteSize(self.bytes_max);
            self.show(channel, &format!("(the log of this invocation is cut here: it may have {limit})"));
        }
    }

    fn append(&mut self, channel: Channel, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let pending = &mut self.pending[channel as usize];
            let taken = bytes.len().min(LINE_BYTES_MAX - pending.len());
            pending.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if pending.len() == LINE_BYTES_MAX {
                self.flush(channel);
            }
        }
    }

    fn flush(&mut self, channel: Channel) {
        if self.pending[channel as usize].is_empty() {
            return;
        }
        let mut line = std::mem::take(&mut self.pending[channel as usize]);
        self.show(channel, String::from_utf8_lossy(&line).trim_end_matches('\r'));
        line.clear();
        self.pending[channel as usize] = line;
    }

    fn show(&self, channel: Channel, line: &str) {
        tracing::info!(
            target: "function", function = %self.function, invocation = %self.invocation, stream = channel.name(), "{line}"
        );
    }

    fn remember(&mut self, bytes: &[u8]) {
        self.last_words.push_str(&String::from_utf8_lossy(bytes));
        if self.last_words.len() > 2 * LAST_WORDS_BYTES_MAX {
            let start = self.last_words.ceil_char_boundary(self.last_words.len() - LAST_WORDS_BYTES_MAX);
            self.last_words.drain(..start);
        }
    }
}

/// Standard output or error of one instance.
#[derive(Clone, Debug)]
pub(crate) struct LogStream {
    log: Log,
    channel: Channel,
}

impl IsTerminal for LogStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LogStream {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for LogStream {
    async fn ready(&mut self) {}
}

impl OutputStream for LogStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.log.lock().write(self.channel, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(64 << 10)
    }
}

impl AsyncWrite for LogStream {
    fn poll_write(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<std::io::Result<usize>> {
        self.log.lock().write(self.channel, bytes);
        std::task::Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `write` puts into the agent's log.
    fn shown(bytes_max: u64, write: impl FnOnce(&Log)) -> Vec<String> {
        #[derive(Clone, Default)]
        struct Buffer(Arc<Mutex<Vec<u8>>>);
        impl std::io::Write for Buffer {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let format = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).without_time();
        tracing::subscriber::with_default(format.finish(), || {
            let log = Log::new(FunctionName::parse("guest").unwrap(), bytes_max);
            log.begin(&Arc::from("one"));
            write(&log);
            log.end();
        });
        let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        text.lines()
            .map(|line| line.replace(" INFO function: ", "").replace(" function=guest invocation=one", ""))
            .collect()
    }

    fn say(log: &Log, channel: Channel, text: &str) {
        log.stream(channel).write(Bytes::from(text.to_owned())).unwrap();
    }

    #[test]
    fn output_is_logged_line_by_line() {
        let lines = shown(1_000, |log| {
            say(log, Channel::Out, "one\ntw");
            say(log, Channel::Err, "oh\n");
            say(log, Channel::Out, "o\nthree");
        });
        assert_eq!(
            lines,
            ["one stream=\"stdout\"", "oh stream=\"stderr\"", "two stream=\"stdout\"", "three stream=\"stdout\""]
        );
    }

    #[test]
    fn a_function_cannot_fill_the_log() {
        let lines = shown(10, |log| {
            for _ in 0..1_000 {
                say(log, Channel::Out, "12345\n");
            }
        });
        let cut = "(the log of this invocation is cut here: it may have 10 B) stream=\"stdout\"";
        assert_eq!(lines, ["12345 stream=\"stdout\"", "1234 stream=\"stdout\"", cut]);
        let lines = shown(100_000, |log| say(log, Channel::Out, &"x".repeat(20_000)));
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn the_last_words_of_an_invocation_are_its_own() {
        let log = Log::new(FunctionName::parse("guest").unwrap(), 0);
        say(&log, Channel::Err, "warming up\n");
        assert_eq!(log.last_words().as_deref(), Some("warming up"));
        say(&log, Channel::Err, &"noise\n".repeat(2_000));
        say(&log, Channel::Err, "thread panicked at src/lib.rs:1:1:\nno\nnote: run\n\n");
        assert_eq!(log.last_words().as_deref(), Some("thread panicked at src/lib.rs:1:1: no"));
        log.begin(&Arc::from("two"));
        assert_eq!(log.last_words(), None);
    }
}
