//! The layout of a segment's file: groups of values, one behind the other, each whole or not there.
//!
//! ```text
//! A7 54 4C | version u8 | body bytes u32 | synced u64 | CRC32C u32 | body: values as `buffer::record` encodes them
//! ```
//! Integers are little-endian. `synced` is how much of the file was on disk for sure when the group was written. The checksum
//! also covers the segment's number and the group's place, so that bytes that lie elsewhere never pass for a group.
//!
//! What a power cut leaves behind the last synced group is torn: it ends the file, with all that follows. A group that is
//! damaged before that was on disk once, which a later group knows; then only that one is missing.

use std::cell::LazyCell;
use std::ops::Range;

use bytes::{Buf, BufMut, Bytes};

const MAGIC: [u8; 4] = [0xA7, b'T', b'L', 1];
pub(super) const HEADER_BYTES: usize = 20;

/// One group in its file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// Where its header starts.
    pub(super) at: u64,
    /// How much of the file was on disk before.
    pub(super) synced: u64,
    pub(super) body: Bytes,
}

impl Group {
    /// Where it ends.
    pub(super) const fn end(&self) -> u64 {
        self.at + (HEADER_BYTES + self.body.len()) as u64
    }
}

/// A group of `values` as bytes, for place `at` of segment `id`.
pub(super) fn encode(id: u64, at: u64, synced: u64, values: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let body_bytes = values.iter().map(|(_, value)| value.len()).sum::<usize>();
    let mut out = Vec::with_capacity(HEADER_BYTES + body_bytes);
    out.put_slice(&MAGIC);
    out.put_u32_le(u32::try_from(body_bytes).unwrap_or(u32::MAX));
    out.put_u64_le(synced);
    out.put_u32_le(0);
    values.iter().for_each(|(_, value)| out.put_slice(value));
    let sum = checksum(id, at, &out[4..16], &out[HEADER_BYTES..]);
    out[16..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
    out
}

fn checksum(id: u64, at: u64, lengths: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(head_checksum(id, at, lengths), body)
}

fn head_checksum(id: u64, at: u64, lengths: &[u8]) -> u32 {
    let place = crc32c::crc32c_append(crc32c::crc32c(&id.to_le_bytes()), &at.to_le_bytes());
    crc32c::crc32c_append(place, lengths)
}

/// Checksums of parts of a file, none of which costs more than [`Sums::STEP`] bytes: a payload may be made of what looks like
/// groups, each as long as the file.
struct Sums<'a> {
    file: &'a [u8],
    /// Of the file up to each multiple of the step.
    up_to: Vec<u32>,
}

impl<'a> Sums<'a> {
    const STEP: usize = 4096;

    fn new(file: &'a [u8]) -> Self {
        let mut up_to = vec![0];
        for step in file.chunks(Self::STEP) {
            up_to.push(crc32c::crc32c_append(up_to[up_to.len() - 1], step));
        }
        Self { file, up_to }
    }

    fn up_to(&self, end: usize) -> u32 {
        let step = end / Self::STEP;
        crc32c::crc32c_append(self.up_to[step], &self.file[step * Self::STEP..end])
    }

    /// `before`, followed by a part. The sum of the part alone is that of all up to its end less that of all before it, and in
    /// this arithmetic taking away is adding.
    fn append(&self, before: u32, part: Range<usize>) -> u32 {
        let alone = crc32c::crc32c_combine(self.up_to(part.start), self.up_to(part.end), part.len());
        crc32c::crc32c_combine(before, alone, part.len())
    }
}

/// The group at place `at` of segment `id`, when there is an intact one.
fn decode(id: u64, file: &Bytes, at: u64) -> Option<Group> {
    decode_by(id, file, at, |head, body| crc32c::crc32c_append(head, &file[body]))
}

fn decode_by(id: u64, file: &Bytes, at: u64, append: impl FnOnce(u32, Range<usize>) -> u32) -> Option<Group> {
    let start = usize::try_from(at).ok()?;
    let header = file.get(start..start + HEADER_BYTES)?;
    let mut numbers = header.strip_prefix(&MAGIC)?;
    let body_bytes = usize::try_from(numbers.get_u32_le()).ok()?;
    let synced = numbers.get_u64_le();
    let sum = numbers.get_u32_le();
    let body = start + HEADER_BYTES..(start + HEADER_BYTES).checked_add(body_bytes)?;
    if body.end > file.len() || append(head_checksum(id, at, &header[4..16]), body.clone()) != sum {
        return None;
    }
    Some(Group { at, synced, body: file.slice(body) })
}

/// What was found in a file.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) groups: Vec<Group>,
    /// Where the next group goes.
    pub(super) end: u64,
    /// Up to where all is on disk for sure, whatever was written since.
    pub(super) synced: u64,
    /// What is damaged between them.
    pub(super) holes: Vec<Bytes>,
}

/// All groups of segment `id`, whose file holds `file`.
pub(super) fn read(id: u64, file: &Bytes) -> Contents {
    let mut contents = Contents::default();
    let sums = LazyCell::new(|| Sums::new(file));
    loop {
        while let Some(group) = decode(id, file, contents.end) {
            contents.end = group.end();
            contents.synced = contents.synced.max(group.synced);
            contents.groups.push(group);
        }
        // A later group that knows this place as synced tells damage from a torn end.
        let hole = contents.end;
        let group = |at| decode_by(id, file, at, |head, body| sums.append(head, body));
        let mut later = candidates(file, hole).filter_map(group);
        let Some(next) = later.next() else { return contents };
        if next.synced <= hole && !later.any(|group| group.synced > hole) {
            return contents;
        }
        let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        contents.holes.push(file.slice(place(hole)..place(next.at)));
        contents.end = next.at;
    }
}

/// Reads `file` as a segment's. What is found lies in it in order, and what is written behind it is found with it.
///
/// # Panics
/// When that is not so.
pub(crate) fn check(file: &[u8]) {
    const ID: u64 = 1;
    let contents = read(ID, &Bytes::copy_from_slice(file));
    let mut end = 0;
    for group in &contents.groups {
        assert!(group.at >= end, "a group at {} overlaps one that ends at {end}", group.at);
        end = group.end();
    }
    assert!(contents.end == end && end <= file.len() as u64, "the end is at {}, not at {end}", contents.end);
    let holes: usize = contents.holes.iter().map(Bytes::len).sum();
    let bodies: usize = contents.groups.iter().map(|group| HEADER_BYTES + group.body.len()).sum();
    assert_eq!((bodies + holes) as u64, end);
    let mut longer = file[..usize::try_from(end).unwrap_or_default()].to_vec();
    longer.extend(encode(ID, end, contents.synced.min(end), &[(Vec::new(), b"more".to_vec())]));
    let again = read(ID, &Bytes::from(longer));
    let known = contents.groups.len();
    assert_eq!((&again.groups[..known], again.groups.len()), (&contents.groups[..], known + 1));
}

/// Places behind `from` where a group may begin.
fn candidates(file: &Bytes, from: u64) -> impl Iterator<Item = u64> {
    let start = usize::try_from(from).unwrap_or(usize::MAX).saturating_add(1).min(file.len());
    file[start..]
        .windows(MAGIC.len())
        .enumerate()
        .filter(|(_, bytes)| *bytes == MAGIC)
        .map(move |(at, _)| (start + at) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: u64 = 7;

    /// Three groups; the third knows that the first is on disk.
    fn file() -> (Vec<u8>, [usize; 3]) {
        let (mut file, mut ends) = (Vec::new(), [0; 3]);
        for (n, end) in ends.iter_mut().enumerate() {
            let synced = if n == 2 { 120 } else { 0 };
            let at = file.len() as u64;
            file.extend(encode(ID, at, synced, &[(Vec::new(), vec![b"abc"[n]; 100])]));
            *end = file.len();
        }
        (file, ends)
    }

    fn found(file: &[u8]) -> (Vec<u8>, u64, usize) {
        let contents = read(ID, &Bytes::copy_from_slice(file));
        (contents.groups.iter().map(|group| group.body[0]).collect(), contents.end, contents.holes.len())
    }

    #[test]
    fn a_torn_end_is_cut_off_wherever_it_is_torn() {
        let (file, ends) = file();
        for bytes in 0..=file.len() {
            let whole = ends.iter().filter(|end| **end <= bytes).count();
            let end = if whole == 0 { 0 } else { ends[whole - 1] as u64 };
            assert_eq!(found(&file[..bytes]), (b"abc"[..whole].to_vec(), end, 0), "{bytes} bytes");
        }
    }

    #[test]
    fn what_was_on_disk_before_damage_is_told_from_a_torn_end() {
        let (file, ends) = file();
        let flipped = |at: usize| {
            let mut file = file.clone();
            file[at] ^= 1;
            file
        };
        assert_eq!(
            found(&flipped(50)),
            (b"bc".to_vec(), ends[2] as u64, 1),
            "the third knows that the first was there"
        );
        assert_eq!(found(&flipped(150)), (b"a".to_vec(), ends[0] as u64, 0), "nobody knows that the second was");
    }

    /// The first group is damaged, and its payload says at each place that a group as long as the file begins there: going
    /// through each of them would take minutes.
    #[test]
    fn a_payload_that_looks_like_groups_holds_up_no_start() {
        const BYTES: u32 = 8 << 20;
        let mut lure = MAGIC.to_vec();
        lure.put_u32_le(BYTES / 2);
        lure.put_u64_le(0);
        lure.put_u32_le(7);
        let mut file = encode(ID, 0, 0, &[(Vec::new(), lure.repeat(BYTES as usize / lure.len()))]);
        let end = file.len();
        file.extend(encode(ID, end as u64, end as u64, &[(Vec::new(), b"z".to_vec())]));
        file[HEADER_BYTES + 1] ^= 1;
        assert_eq!(found(&file), (b"z".to_vec(), file.len() as u64, 1));
    }

    #[test]
    fn a_group_counts_in_its_own_place_only() {
        let (file, ends) = file();
        let mut moved = file[..ends[0]].to_vec();
        moved.extend(&file[..ends[0]]);
        assert_eq!(found(&moved).0, b"a");
        let other = read(ID + 1, &Bytes::from(file));
        assert_eq!((other.groups.len(), other.end), (0, 0));
    }
}
