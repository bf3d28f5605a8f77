//! Bytes as lines, of a bounded length.

use bytes::{Bytes, BytesMut};

/// Gathers bytes until a line is whole. What is longer than its bound is left out, up to the next line break.
#[derive(Debug)]
pub(super) struct Lines {
    gathered: BytesMut,
    bytes_max: usize,
    /// Up to here there is no line break.
    looked: usize,
    leaving_out: bool,
}

/// What came of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// Without its line break.
    Whole(Bytes),
    /// It was longer than allowed.
    TooLong,
}

impl Lines {
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { gathered: BytesMut::new(), bytes_max, looked: 0, leaving_out: false }
    }

    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.gathered.extend_from_slice(bytes);
    }

    /// Bytes that belong to a line which is not whole yet.
    pub(super) fn pending(&self) -> usize {
        self.gathered.len()
    }

    /// The next line that is whole.
    pub(super) fn next(&mut self) -> Option<Line> {
        loop {
            let Some(end) = self.gathered[self.looked..].iter().position(|byte| *byte == b'\n') else {
                self.looked = self.gathered.len();
                if self.looked > self.bytes_max {
                    self.gathered.clear();
                    self.looked = 0;
                    if !std::mem::replace(&mut self.leaving_out, true) {
                        return Some(Line::TooLong);
                    }
                }
                return None;
            };
            let mut line = self.gathered.split_to(self.looked + end + 1);
            self.looked = 0;
            if std::mem::take(&mut self.leaving_out) {
                continue;
            }
            line.truncate(line.len() - 1);
            if line.last() == Some(&b'\r') {
                line.truncate(line.len() - 1);
            }
            return Some(if line.len() > self.bytes_max { Line::TooLong } else { Line::Whole(line.freeze()) });
        }
    }

    /// What is left when nothing more comes.
    pub(super) fn rest(&mut self) -> Option<Line> {
        let rest = self.gathered.split();
        self.looked = 0;
        (!rest.is_empty() && !std::mem::take(&mut self.leaving_out)).then(|| Line::Whole(rest.freeze()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(pieces: &[&str], expected: &[&str]) {
        let mut lines = Lines::new(5);
        let mut found = Vec::new();
        let text = |line| match line {
            Line::Whole(line) => String::from_utf8_lossy(&line).into_owned(),
            Line::TooLong => "too long".to_owned(),
        };
        for piece in pieces {
            lines.add(piece.as_bytes());
            found.extend(std::iter::from_fn(|| lines.next()).map(text));
            assert!(lines.pending() <= 5, "more is gathered than a line");
        }
        found.extend(lines.rest().map(text));
        assert_eq!(found, expected, "{pieces:?}");
    }

    #[test]
    fn bytes_come_as_lines_however_they_are_cut() {
        check(&["one\ntw", "o\r\n", "\n", "three"], &["one", "two", "", "three"]);
        check(&["a", "b", "\n"], &["ab"]);
        check(&[], &[]);
    }

    #[test]
    fn what_is_too_long_is_left_out_and_the_next_line_is_not() {
        check(&["123456\n12345\n"], &["too long", "12345"]);
        check(&["123456", "789", "0\nok\n"], &["too long", "ok"]);
        check(&["123456", "789"], &["too long"]);
    }
}
