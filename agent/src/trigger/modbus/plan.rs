//! Which requests a poll has: neighbours go together.

use std::ops::Range;

use super::{ByteOrder, ModbusSource, Place, RegisterConfig};

/// Bits that one request can read, by the protocol.
const BITS_MAX: u16 = 2_000;

/// One request: `count` registers or bits from `from` on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) from: Place,
    pub(super) count: u16,
    /// Which of the source's registers are in there.
    pub(super) registers: Vec<usize>,
}

/// As troubles call it: `input 0 to 9`.
impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, first) = (self.from.kind(), self.from.address());
        match self.count {
            1 => write!(f, "{kind} {first}"),
            count => write!(f, "{kind} {first} to {}", u32::from(first) + u32::from(count) - 1),
        }
    }
}

impl Request {
    /// Where the words or bits of `register` are in the answer.
    pub(super) fn range(&self, register: &RegisterConfig) -> Range<usize> {
        let start = usize::from(register.place.address() - self.from.address());
        start..start + usize::from(register.width())
    }
}

/// All requests of `source`, by unit.
pub(super) fn units(source: &ModbusSource) -> Vec<(u8, Vec<Request>)> {
    let unit_id = |i: usize| source.registers[i].unit_id.unwrap_or(source.unit_id);
    let mut order: Vec<usize> = (0..source.registers.len()).collect();
    order.sort_by_key(|i| (unit_id(*i), source.registers[*i].place));
    let mut units: Vec<(u8, Vec<Request>)> = Vec::new();
    for i in order {
        let register = &source.registers[i];
        if units.last().is_none_or(|(id, _)| *id != unit_id(i)) {
            units.push((unit_id(i), Vec::new()));
        }
        let Some((_, requests)) = units.last_mut() else { continue };
        let together = requests.last_mut().and_then(|last| Some((with(last, register, source)?, last)));
        match together {
            Some((count, last)) => {
                last.count = count;
                last.registers.push(i);
            }
            None => requests.push(Request { from: register.place, count: register.width(), registers: vec![i] }),
        }
    }
    units
}

/// How many `request` would read with `register` in it, when that is allowed.
fn with(request: &Request, register: &RegisterConfig, source: &ModbusSource) -> Option<u16> {
    if request.from.kind() != register.place.kind() {
        return None;
    }
    let max = if request.from.is_bit() { BITS_MAX } else { source.at_once };
    let start = register.place.address() - request.from.address();
    let count = start.saturating_add(register.width()).max(request.count);
    let is_near = start <= request.count.saturating_add(source.gap);
    (is_near && count <= max).then_some(count)
}

/// How `register` of `source` is ordered: its registers, and their halves.
pub(super) fn orders(source: &ModbusSource, register: &RegisterConfig) -> (ByteOrder, ByteOrder) {
    (register.word_order.unwrap_or(source.word_order), register.byte_order.unwrap_or(source.byte_order))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(keys: &str, registers: &[&str], expected: &[&str]) {
        let registers: Vec<_> =
            registers.iter().enumerate().map(|(i, r)| format!("{{ name = \"r{i}\", {r} }}")).collect();
        let source = format!("tcp = \"a:502\"\n{keys}\nregisters = [{}]", registers.join(", "));
        let units = units(&toml::from_str(&source).unwrap());
        let told = units
            .iter()
            .flat_map(|(id, requests)| requests.iter().map(move |r| format!("{id}: {r} for {:?}", r.registers)));
        assert_eq!(told.collect::<Vec<_>>(), expected, "{registers:?}");
    }

    #[test]
    fn neighbours_are_read_together() {
        let registers = [
            "holding = 2",
            "holding = 0, type = \"f32\"",
            "holding = 4",
            "input = 3",
            "coil = 9",
            "holding = 2, type = \"i16\"",
        ];
        let expected =
            ["1: holding 0 to 2 for [1, 0, 5]", "1: holding 4 for [2]", "1: input 3 for [3]", "1: coil 9 for [4]"];
        check("", &registers, &expected);
        let expected = ["1: holding 0 to 4 for [1, 0, 5, 2]", "1: input 3 for [3]", "1: coil 9 for [4]"];
        check("gap = 1", &registers, &expected);
    }

    #[test]
    fn a_request_reads_no_more_than_is_allowed() {
        let words: Vec<_> = (0..150).map(|n| format!("holding = {n}")).collect();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        let first: Vec<usize> = (0..125).collect();
        let last: Vec<usize> = (125..150).collect();
        check(
            "",
            &words,
            &[&format!("1: holding 0 to 124 for {first:?}"), &format!("1: holding 125 to 149 for {last:?}")],
        );
        check(
            "at_once = 3",
            &["holding = 0, type = \"u32\"", "holding = 2, type = \"u32\""],
            &["1: holding 0 to 1 for [0]", "1: holding 2 to 3 for [1]"],
        );
        check(
            "gap = 1999",
            &["coil = 0", "coil = 1999", "coil = 2000"],
            &["1: coil 0 to 1999 for [0, 1]", "1: coil 2000 for [2]"],
        );
        check("gap = 125", &["input = 65535", "input = 65411"], &["1: input 65411 to 65535 for [1, 0]"]);
    }

    #[test]
    fn each_unit_has_requests_of_its_own() {
        let registers = ["input = 0, unit_id = 7", "input = 1", "input = 1, unit_id = 7"];
        check("unit_id = 3", &registers, &["3: input 1 for [1]", "7: input 0 to 1 for [0, 2]"]);
    }
}
