//! `serial` sources: each line, or each frame, that comes in at a serial port is an event.
//!
//! # Promises
//! - One opening per source, however many functions hear it. A port that goes is opened again when it is back.
//! - Bytes that belong to no frame, and what is longer than `source_line_bytes_max`, are left out and counted; what comes next is not.
//! - When functions do not keep up the port is not read. With `flow` that holds up the device; without, the kernel keeps some 64 KiB.

#[cfg(feature = "serial")]
mod frames;
#[cfg(feature = "serial")]
mod hear;

use super::port::PortConfig;
use crate::config::{Document, join, keys};
use crate::units::Span;

/// `serial = { device = "/dev/ttyUSB0", baud = 9600 }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SerialSource {
    /// The port.
    pub port: PortConfig,
    /// What begins and ends an event; lines unless said.
    pub frame: Option<FrameConfig>,
}

keys! { SerialSource: frame = optional(); flatten port: PortConfig }

/// `frame`: exactly one of `end`, `bytes` and `pause` says where a frame ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameConfig {
    /// The bytes that it begins with.
    pub start: Vec<u8>,
    /// Those that it ends with.
    pub end: Vec<u8>,
    /// How long it is.
    pub bytes: Option<u16>,
    /// How long the line is silent after it.
    pub pause: Option<Span>,
}

keys! { FrameConfig: start = or(Vec::new()), end = or(Vec::new()), bytes = optional(), pause = optional() }

impl SerialSource {
    pub(crate) fn check(&self, path: &str, document: &mut Document) {
        self.port.check(path, document);
        let Some(frame) = &self.frame else { return };
        let path = join(path, "frame");
        match (!frame.end.is_empty(), frame.bytes, frame.pause) {
            (true, None, None) | (false, Some(_), None) | (false, None, Some(_)) => {}
            (false, None, None) => {
                let hint =
                    "write `end = [3]`, `bytes = 32` or `pause = \"20ms\"`; without `frame` each line is an event";
                document.refuse_key(&path, "nothing says where a frame ends", hint);
            }
            _ => {
                let hint = "keep one of `end`, `bytes` and `pause`";
                document.refuse_key(&path, "it has more than one end", hint);
            }
        }
        if let Some(bytes) = frame.bytes
            && (frame.start.is_empty() || frame.start.len() >= usize::from(bytes))
        {
            let what = format!("nothing tells where {bytes} bytes begin");
            document.refuse_key(&path, what, "add `start`, shorter than the frame: `start = [0x42, 0x4D]`");
        }
        if let Some(pause) = frame.pause {
            if pause.0.is_zero() {
                let hint = "write for example `pause = \"20ms\"`";
                document.refuse(&join(&path, "pause"), "no pause is so short", hint);
            }
            if !frame.start.is_empty() {
                let hint = "remove it, or say by `end` or `bytes` where a frame ends";
                document.refuse(&join(&path, "start"), "what follows a pause needs no start", hint);
            }
        }
    }
}
