//! Listening on a port, as long as it is there.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{sleep, timeout};

use super::SerialSource;
use super::frames::{Frame, Frames};
use crate::broker::BackOff;
use crate::trigger::lines::{Line, Lines};
use crate::trigger::port::SerialPort;
use crate::trigger::source::{Observed, Outlet};

/// CloudEvents `type`, without a `frame` and with one.
const LINE: &str = "serial.line";
const FRAME: &str = "serial.frame";
/// How soon a port that is not there is looked for again, at first and at last. One that was there for the latter begins anew.
const REOPEN: Duration = Duration::from_secs(1);
const REOPEN_MAX: Duration = Duration::from_secs(10);
/// What is read at once: as much as the kernel hands out.
const CHUNK_BYTES: usize = 4 << 10;

impl SerialSource {
    /// Listens until the source is stopped.
    pub(crate) async fn run(self, outlet: Outlet) {
        let mut back_off = BackOff::new(REOPEN, REOPEN_MAX);
        loop {
            let started = outlet.clock.instant();
            let why = tokio::select! {
                () = outlet.stopped() => return,
                why = self.once(&outlet) => why,
            };
            outlet.trouble(why);
            if outlet.clock.instant() - started >= REOPEN_MAX {
                back_off.reset();
            }
            tokio::select! {
                () = outlet.stopped() => return,
                () = sleep(back_off.step()) => {}
            }
        }
    }

    /// Listens as long as the port is there; says why it is not.
    async fn once(&self, outlet: &Outlet) -> String {
        let port = match self.port.open() {
            Ok(port) => port,
            Err(why) => return why,
        };
        outlet.well();
        let why = match &self.frame {
            Some(frame) => {
                let pause = frame.pause.map(|pause| pause.0);
                frames(&port, Frames::new(frame, outlet.line_bytes_max), pause, outlet).await
            }
            None => lines(&port, outlet).await,
        };
        format!("`{}` {why}", self.port.device.display())
    }
}

async fn lines(port: &SerialPort, outlet: &Outlet) -> String {
    let mut lines = Lines::new(outlet.line_bytes_max);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match some(port.read(&mut chunk).await) {
            Ok(bytes) => lines.add(&chunk[..bytes]),
            Err(why) => return why,
        }
        while let Some(line) = lines.next() {
            match line {
                Line::Whole(data) => emit(LINE, data, outlet).await,
                Line::TooLong => too_long("line", outlet),
            }
        }
    }
}

async fn frames(port: &SerialPort, mut frames: Frames, pause: Option<Duration>, outlet: &Outlet) -> String {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = port.read(&mut chunk);
        let read = match pause.filter(|_| frames.is_open()) {
            Some(pause) => timeout(pause, read).await.ok(),
            None => Some(read.await),
        };
        let silent = match read.map(some) {
            Some(Ok(bytes)) => {
                frames.add(&chunk[..bytes]);
                false
            }
            Some(Err(why)) => return why,
            None => true,
        };
        while let Some(frame) = if silent { frames.rest() } else { frames.next() } {
            match frame {
                Frame::Whole(data) => emit(FRAME, data, outlet).await,
                Frame::TooLong => too_long("frame", outlet),
                Frame::Stray(bytes) => outlet.count(&format!("{bytes} bytes belong to no frame, and are left out")),
            }
        }
    }
}

/// How much was read; a port that ends is gone.
fn some(read: std::io::Result<usize>) -> Result<usize, String> {
    match read {
        Ok(0) => Err("is gone".to_owned()),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}

async fn emit(kind: &'static str, data: Bytes, outlet: &Outlet) {
    drop(outlet.tell(Observed { kind, data, ..Observed::default() }).await);
}

fn too_long(what: &str, outlet: &Outlet) {
    outlet.count(&format!("a {what} is longer than {} bytes, and left out", outlet.line_bytes_max));
}
