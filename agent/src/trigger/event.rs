//! `event` triggers: which functions want which events that are posted to `/v1/events`.

use crate::config::EventTrigger;
use crate::event::Event;
use crate::name::FunctionName;

/// All of them, on one gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventTriggers(Vec<(FunctionName, EventTrigger)>);

impl EventTriggers {
    /// The triggers of all functions.
    pub fn new(triggers: impl IntoIterator<Item = (FunctionName, EventTrigger)>) -> Self {
        Self(triggers.into_iter().collect())
    }

    /// The functions that `event` is for, each once, however many of its triggers match.
    pub fn matching(&self, event: &Event) -> Vec<FunctionName> {
        let mut functions: Vec<FunctionName> = Vec::new();
        for (function, trigger) in &self.0 {
            let source = trigger.source.as_deref().is_none_or(|pattern| matches(pattern, &event.source));
            if source && matches(&trigger.kind, &event.kind) && !functions.contains(function) {
                functions.push(function.clone());
            }
        }
        functions
    }

    /// The kinds that anything waits for, as they are written.
    pub fn kinds(&self) -> Vec<&str> {
        let mut kinds: Vec<_> = self.0.iter().map(|(_, trigger)| trigger.kind.as_str()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    }
}

/// A `*` at the end stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == text, |start| text.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn triggers() -> EventTriggers {
        let trigger = |function: &str, kind: &str, source: Option<&str>| {
            (FunctionName::parse(function).unwrap(), EventTrigger { kind: kind.into(), source: source.map(Into::into) })
        };
        EventTriggers::new([
            trigger("press", "com.example.press.*", Some("/press/1")),
            trigger("press", "com.example.press.stopped", None),
            trigger("audit", "*", None),
        ])
    }

    #[track_caller]
    fn check(kind: &'static str, source: &str, expected: &[&str]) {
        let event = Event { kind: kind.into(), source: source.into(), ..Event::default() };
        let functions = triggers().matching(&event);
        assert_eq!(functions.iter().map(FunctionName::as_str).collect::<Vec<_>>(), expected, "{kind} from {source}");
    }

    #[test]
    fn a_star_stands_for_the_rest() {
        check("com.example.press.started", "/press/1", &["press", "audit"]);
        check("com.example.press.started", "/press/2", &["audit"]);
        check("com.example.press", "/press/1", &["audit"]);
    }

    #[test]
    fn a_function_gets_an_event_once() {
        check("com.example.press.stopped", "/press/1", &["press", "audit"]);
        check("com.example.press.stopped", "/press/9", &["press", "audit"]);
    }

    #[test]
    fn what_anything_waits_for_can_be_told() {
        assert_eq!(triggers().kinds(), ["*", "com.example.press.*", "com.example.press.stopped"]);
    }
}
