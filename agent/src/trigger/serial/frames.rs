//! Bytes as frames, of a bounded length.

use bytes::{Buf as _, Bytes, BytesMut};

use super::FrameConfig;

/// Gathers bytes until a frame is whole.
#[derive(Debug)]
pub(super) struct Frames {
    start: Vec<u8>,
    end: Vec<u8>,
    bytes: Option<usize>,
    bytes_max: usize,
    gathered: BytesMut,
    /// Up to here there is no end.
    looked: usize,
    leaving_out: bool,
}

/// What came of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    /// With its start and its end.
    Whole(Bytes),
    /// It was longer than allowed.
    TooLong,
    /// So many bytes before the start of one.
    Stray(usize),
}

impl Frames {
    pub(super) fn new(config: &FrameConfig, bytes_max: usize) -> Self {
        let FrameConfig { start, end, bytes, pause: _ } = config.clone();
        let bytes = bytes.map(usize::from);
        Self { start, end, bytes, bytes_max, gathered: BytesMut::new(), looked: 0, leaving_out: false }
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.gathered.extend_from_slice(bytes);
    }

    /// Whether a frame has begun that is not whole.
    pub(super) fn is_open(&self) -> bool {
        self.leaving_out || !self.gathered.is_empty()
    }

    /// The next frame that is whole.
    pub(super) fn next(&mut self) -> Option<Frame> {
        loop {
            let begun = self.position(0, &self.start);
            // The last ones may be a part of it.
            let stray = begun.unwrap_or((self.gathered.len() + 1).saturating_sub(self.start.len()));
            if stray > 0 {
                self.gathered.advance(stray);
                self.looked = 0;
                return Some(Frame::Stray(stray));
            }
            begun?;
            let Some(end) = self.whole() else {
                let kept = self.end.len().saturating_sub(1);
                self.looked = self.gathered.len().saturating_sub(kept);
                if self.gathered.len() > self.bytes_max {
                    self.gathered.advance(self.looked);
                    self.looked = 0;
                    // With a start, the next one is looked for.
                    if !self.start.is_empty() || !std::mem::replace(&mut self.leaving_out, true) {
                        return Some(Frame::TooLong);
                    }
                }
                return None;
            };
            let frame = self.gathered.split_to(end).freeze();
            self.looked = 0;
            if !std::mem::take(&mut self.leaving_out) {
                return Some(if frame.len() > self.bytes_max { Frame::TooLong } else { Frame::Whole(frame) });
            }
        }
    }

    /// What is left when the line is silent.
    pub(super) fn rest(&mut self) -> Option<Frame> {
        let rest = self.gathered.split().freeze();
        self.looked = 0;
        (!std::mem::take(&mut self.leaving_out) && !rest.is_empty()).then_some(Frame::Whole(rest))
    }

    /// Where the frame ends that `gathered` begins with.
    fn whole(&self) -> Option<usize> {
        match self.bytes {
            Some(bytes) => (self.gathered.len() >= bytes).then_some(bytes),
            // Where a pause is the end, the bytes have none.
            None if self.end.is_empty() => None,
            None => self.position(self.looked.max(self.start.len()), &self.end).map(|at| at + self.end.len()),
        }
    }

    /// Where `wanted` is, from `from` on.
    fn position(&self, from: usize, wanted: &[u8]) -> Option<usize> {
        if wanted.is_empty() {
            return Some(from);
        }
        let found = self.gathered.get(from..)?.windows(wanted.len()).position(|bytes| bytes == wanted);
        found.map(|at| from + at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(config: &str, pieces: &[&str], expected: &[&str]) {
        let mut frames = Frames::new(&toml::from_str(config).unwrap(), 8);
        let mut found = Vec::new();
        let text = |frame| match frame {
            Frame::Whole(frame) => String::from_utf8_lossy(&frame).into_owned(),
            Frame::TooLong => "too long".to_owned(),
            Frame::Stray(bytes) => format!("{bytes} stray"),
        };
        for piece in pieces {
            frames.add(piece.as_bytes());
            found.extend(std::iter::from_fn(|| frames.next()).map(text));
            assert!(frames.gathered.len() <= 8, "more is gathered than a frame");
        }
        found.extend(frames.rest().map(text));
        assert_eq!(found, expected, "{pieces:?}");
    }

    #[test]
    fn a_frame_goes_from_its_start_to_its_end() {
        let stx = "start = [0x3C]\nend = [0x3E, 0x3B]";
        check(stx, &["<a>;<b", ">;"], &["<a>;", "<b>;"]);
        check(stx, &["x<a>", ";yz<b>;"], &["1 stray", "<a>;", "2 stray", "<b>;"]);
        check(stx, &["<>>;<>;"], &["<>>;", "<>;"]);
        check("end = [0x0D]", &["ab\rc", "d\r\r"], &["ab\r", "cd\r", "\r"]);
    }

    #[test]
    fn a_frame_of_fixed_length_is_found_by_its_start() {
        let fixed = "start = [0x42, 0x4D]\nbytes = 4";
        check(fixed, &["BM12B", "M34"], &["BM12", "BM34"]);
        check(fixed, &["12", "3B", "M45"], &["1 stray", "2 stray", "BM45"]);
        check(fixed, &["BB", "M12"], &["1 stray", "BM12"]);
    }

    #[test]
    fn a_frame_that_is_too_long_is_left_out_and_the_next_one_is_not() {
        check("end = [0x0D]", &["123456789", "0123456789", "\rab\r"], &["too long", "ab\r"]);
        check("end = [0x0D, 0x0A]", &["123456789\r", "\nab\r\n"], &["too long", "ab\r\n"]);
        check("start = [0x3C]\nend = [0x3E]", &["<12345678", "9>", "<a>"], &["too long", "2 stray", "<a>"]);
        check("pause = \"1ms\"", &["12345", "6789"], &["too long"]);
        check("pause = \"1ms\"", &["12345"], &["12345"]);
    }
}
