//! `event` triggers: which functions want which events that are posted to `/v1/events`.

use std::sync::Arc;

use super::filter::{self, Filter};
use super::listener::{self, Routed};
use super::window::Window;
use crate::config::EventTrigger;
use crate::event::Event;
use crate::name::FunctionName;

/// All of them, on one gateway, arranged.
#[derive(Clone, Debug, Default)]
pub struct EventTriggers(Vec<Route>);

/// One trigger of one function.
#[derive(Clone, Debug)]
pub struct Route {
    /// Which events.
    pub trigger: EventTrigger,
    /// Who runs.
    pub function: FunctionName,
    /// What it does not see of that.
    pub only: Option<Arc<Filter>>,
    /// Where that waits for more.
    pub window: Option<Arc<Window>>,
}

impl Routed for Route {
    fn to(&self) -> (&FunctionName, bool) {
        (&self.function, self.window.is_some())
    }
}

/// A function that wants an event.
#[derive(Debug)]
pub struct Wanted {
    /// Who runs.
    pub function: FunctionName,
    /// One of which has to let the event pass, when there are any.
    pub filters: Vec<Arc<Filter>>,
    /// Where it waits for more.
    pub window: Option<Arc<Window>>,
}

impl Route {
    fn is_for(&self, event: &Event) -> bool {
        let source = self.trigger.source.as_deref().is_none_or(|pattern| matches(pattern, &event.source));
        source && matches(&self.trigger.kind, &event.kind)
    }
}

impl EventTriggers {
    /// The triggers of all functions.
    pub fn new(routes: impl IntoIterator<Item = Route>) -> Self {
        let mut routes: Vec<_> = routes.into_iter().collect();
        listener::arrange(&mut routes);
        Self(routes)
    }

    /// The functions that `event` is for, each once, however many of its triggers match, and each of their windows.
    pub fn matching(&self, event: &Event) -> Vec<Wanted> {
        let wanted = listener::together(&self.0).filter_map(|routes| {
            let matching = || routes.iter().filter(|route| route.is_for(event));
            let Route { function, window, .. } = matching().next()?;
            let filters = filter::needed(matching().map(|route| route.only.as_ref()));
            Some(Wanted { function: function.clone(), filters, window: window.clone() })
        });
        wanted.collect()
    }

    /// The kinds that anything waits for, as they are written.
    pub fn kinds(&self) -> Vec<&str> {
        let mut kinds: Vec<_> = self.0.iter().map(|route| route.trigger.kind.as_str()).collect();
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
            let trigger = EventTrigger { kind: kind.into(), source: source.map(Into::into) };
            Route { trigger, function: FunctionName::parse(function).unwrap(), only: None, window: None }
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
        let functions: Vec<_> = functions.iter().map(|wanted| wanted.function.as_str()).collect();
        assert_eq!(functions, expected, "{kind} from {source}");
    }

    #[test]
    fn a_star_stands_for_the_rest() {
        check("com.example.press.started", "/press/1", &["audit", "press"]);
        check("com.example.press.started", "/press/2", &["audit"]);
        check("com.example.press", "/press/1", &["audit"]);
    }

    #[test]
    fn a_function_gets_an_event_once() {
        check("com.example.press.stopped", "/press/1", &["audit", "press"]);
        check("com.example.press.stopped", "/press/9", &["audit", "press"]);
    }

    #[test]
    fn what_anything_waits_for_can_be_told() {
        assert_eq!(triggers().kinds(), ["*", "com.example.press.*", "com.example.press.stopped"]);
    }
}
