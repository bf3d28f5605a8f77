//! Reads a recording, line by line. What is damaged is left out and counted: a recording may have been cut by a kill, or by hand.

use std::io::{self, BufRead, Read as _};

use super::Recorded;
use super::line::{self, Line};

/// Reads the events of a recording.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    line_bytes_max: u64,
    line: Vec<u8>,
    found: Found,
}

/// What was read so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Lines, whole or not.
    pub lines: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Events that the recorder could not take.
    pub missed: u64,
    /// Lines that are no event.
    pub damaged: u64,
    /// The first of them, and why.
    pub first_damage: Option<(u64, String)>,
}

impl<R: BufRead> Reader<R> {
    /// Reads from `from`; longer lines than `line_bytes_max` count as damaged.
    pub fn new(from: R, line_bytes_max: u64) -> Self {
        Self { from, line_bytes_max, line: Vec::new(), found: Found::default() }
    }

    /// What was read so far.
    pub const fn found(&self) -> &Found {
        &self.found
    }

    /// The next event.
    ///
    /// # Errors
    /// When it cannot be read on.
    pub fn next_event(&mut self) -> io::Result<Option<Recorded>> {
        loop {
            self.line.clear();
            let read = self.from.by_ref().take(self.line_bytes_max + 1).read_until(b'\n', &mut self.line)?;
            if read == 0 {
                return Ok(None);
            }
            self.found.lines += 1;
            self.found.bytes += read as u64;
            if read as u64 > self.line_bytes_max {
                self.skip()?;
                self.damaged(format!("it has more than {} bytes", self.line_bytes_max));
                continue;
            }
            let line = self.line.trim_ascii();
            if line.is_empty() {
                continue;
            }
            match line::parse(line) {
                Ok(Line::Event(recorded)) => return Ok(Some(*recorded)),
                Ok(Line::Missed(missed)) => self.found.missed += missed,
                Err(_) if !self.line.ends_with(b"\n") => self.damaged("it is cut off".to_owned()),
                Err(why) => self.damaged(why),
            }
        }
    }

    fn damaged(&mut self, why: String) {
        self.found.damaged += 1;
        self.found.first_damage.get_or_insert((self.found.lines, why));
    }

    /// Goes to the end of a line of any length.
    fn skip(&mut self) -> io::Result<()> {
        while !self.line.ends_with(b"\n") {
            self.line.clear();
            let read = self.from.by_ref().take(self.line_bytes_max + 1).read_until(b'\n', &mut self.line)?;
            self.found.bytes += read as u64;
            if read == 0 {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::recording::line::tests::recorded;
    use crate::recording::tap::Heard;

    /// How many events are in `text`, and what else.
    fn read(text: &str, line_bytes_max: u64) -> (u64, Found) {
        let mut reader = Reader::new(text.as_bytes(), line_bytes_max);
        let mut events = 0;
        while reader.next_event().unwrap().is_some() {
            events += 1;
        }
        (events, reader.found().clone())
    }

    #[test]
    fn what_is_damaged_is_left_out_and_counted() {
        let line = line::write(&Heard::Run(Arc::new(recorded("scale")))).unwrap();
        let (cut, long) = (&line[..line.len() / 2], "x".repeat(5_000));
        let text = format!("\n{line}\n{cut}\n{{\"missed\":3}}\n{long}\r\n{line}\n{{\"missed\":4}}\n{cut}");
        let (events, found) = read(&text, 2_000);
        assert_eq!((events, found.missed, found.damaged), (2, 7, 3));
        assert_eq!((found.lines, found.bytes), (8, text.len() as u64));
        let (line_number, why) = found.first_damage.unwrap();
        assert!(line_number == 3 && why.contains("EOF"), "{line_number}: {why}");
        assert_eq!(read(cut, 2_000).1.first_damage, Some((1, "it is cut off".to_owned())));
        assert_eq!(read(&line, 2_000).0, 1, "a single event needs no line break");
        assert_eq!(read(&"x".repeat(9_999), 2_000).1.damaged, 1);
    }
}
