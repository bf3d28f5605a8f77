//! What the kernel tells of inputs, as events. No I/O.

use gpiocdev_uapi::v2::{LineEdgeEvent, LineEdgeEventKind};
use serde::Serialize;

use crate::trigger::source::Observed;

/// CloudEvents `type` of an edge, and of what a level is when lines are opened.
const EDGE: &str = "gpio.edge";
const LEVEL: &str = "gpio.level";

/// What is known of the edges of a request.
#[derive(Debug)]
pub(super) struct Edges {
    lines: Vec<Line>,
    /// Those that the kernel had no room for.
    lost: u64,
}

#[derive(Debug)]
struct Line {
    offset: u32,
    name: String,
    /// The number of its last edge. Only those of one line come in their order: the kernel numbers edges of different lines before it queues them.
    last: u32,
}

impl Edges {
    /// Of lines with these offsets and names.
    pub(super) fn of(lines: impl Iterator<Item = (u32, String)>) -> Self {
        Self { lines: lines.map(|(offset, name)| Line { offset, name, last: 0 }).collect(), lost: 0 }
    }

    /// What is told of the edges in `words`, as the kernel wrote them; and how many are lost by now, when that has changed.
    pub(super) fn take(&mut self, words: &[u64]) -> (Vec<Observed>, Option<u64>) {
        let (mut told, before) = (Vec::new(), self.lost);
        for words in words.chunks_exact(LineEdgeEvent::u64_size()) {
            let Ok(event) = LineEdgeEvent::from_slice(words) else { continue };
            let Some(line) = self.lines.iter_mut().find(|line| line.offset == event.offset) else { continue };
            self.lost += u64::from(event.line_seqno.wrapping_sub(line.last).wrapping_sub(1));
            line.last = event.line_seqno;
            told.push(edge(&line.name, event));
        }
        (told, (self.lost > before).then_some(self.lost))
    }
}

#[derive(Serialize)]
struct Payload<'a> {
    name: &'a str,
    active: bool,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    edge: Option<EdgePayload>,
}

#[derive(Serialize)]
struct EdgePayload {
    edge: &'static str,
    time_ns: u64,
    sequence: u32,
}

fn edge(name: &str, event: &LineEdgeEvent) -> Observed {
    let active = event.kind == LineEdgeEventKind::RisingEdge as u32;
    let edge = if active { "rising" } else { "falling" };
    let edge = EdgePayload { edge, time_ns: event.timestamp_ns, sequence: event.line_seqno };
    observed(EDGE, &Payload { name, active, edge: Some(edge) })
}

/// What it is when it is opened.
pub(super) fn level(name: &str, active: bool) -> Observed {
    observed(LEVEL, &Payload { name, active, edge: None })
}

fn observed(kind: &'static str, payload: &Payload<'_>) -> Observed {
    Observed {
        kind,
        subject: Some(payload.name.into()),
        content_type: Some("application/json".into()),
        // Texts, numbers and booleans always have a form in JSON.
        data: serde_json::to_vec(payload).unwrap_or_default().into(),
        ..Observed::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `linux/gpio.h` has it: time, kind, offset, both numbers, and six words of nothing.
    fn event(kind: u32, offset: u32, number: u32, of_line: u32) -> Vec<u64> {
        let pair = |low: u32, high: u32| {
            u64::from_ne_bytes([low.to_ne_bytes(), high.to_ne_bytes()].concat().try_into().unwrap())
        };
        vec![7_000_000_000, pair(kind, offset), pair(number, of_line), 0, 0, 0]
    }

    fn door_and_light() -> Edges {
        Edges::of([(17, "door".to_owned()), (22, "light".to_owned())].into_iter())
    }

    fn data(observed: &Observed) -> &str {
        str::from_utf8(&observed.data).unwrap()
    }

    #[test]
    fn edges_of_a_line_are_told_by_its_name_and_in_their_order() {
        let words = [event(1, 22, 1, 1), event(1, 17, 2, 1), event(2, 22, 3, 2)].concat();
        let (told, lost) = door_and_light().take(&words);
        let expected = [
            r#"{"name":"light","active":true,"edge":"rising","time_ns":7000000000,"sequence":1}"#,
            r#"{"name":"door","active":true,"edge":"rising","time_ns":7000000000,"sequence":1}"#,
            r#"{"name":"light","active":false,"edge":"falling","time_ns":7000000000,"sequence":2}"#,
        ];
        assert_eq!(told.iter().map(data).collect::<Vec<_>>(), expected);
        assert!(told.iter().all(|observed| observed.kind == "gpio.edge"));
        assert_eq!(told[0].subject.as_deref(), Some("light"));
        assert_eq!(lost, None);
    }

    #[test]
    fn edges_of_two_lines_that_overtake_each_other_are_not_lost() {
        let (told, lost) = door_and_light().take(&[event(1, 22, 2, 1), event(1, 17, 1, 1)].concat());
        assert_eq!((told.len(), lost), (2, None));
    }

    #[test]
    fn what_the_kernel_had_no_room_for_is_counted() {
        let mut edges = door_and_light();
        let mut lost = |offset, number| edges.take(&event(1, offset, 0, number)).1;
        assert_eq!(lost(17, 1), None);
        assert_eq!(lost(17, 4), Some(2), "2 and 3 are missing");
        assert_eq!(lost(22, 1), None);
        assert_eq!(lost(17, 5), None);
        assert_eq!(lost(22, 6), Some(6), "all of them, of all lines");
        edges.lines[0].last = u32::MAX;
        assert_eq!(edges.take(&event(1, 17, 0, 0)).1, None, "numbers begin anew");
    }

    #[test]
    fn a_level_is_told_without_what_only_edges_have() {
        let level = level("door", false);
        assert_eq!((level.kind, level.subject.as_deref()), ("gpio.level", Some("door")));
        assert_eq!(data(&level), r#"{"name":"door","active":false}"#);
    }
}
