//! MQTT messages become events: `mqtt = { filter = "sensors/+/temp", qos = 1 }`.
//!
//! A message goes once to each function that one of its triggers' filters matches, however many do.

use std::borrow::Cow;
use std::sync::Arc;

use super::filter::{self, Filter};
use super::listener::{self, Routed};
use super::window::{self, Window};
use super::{Delivery, Submit};
use crate::broker::{Incoming, OnMessage, Subscription};
use crate::clock::Clock;
use crate::event::{self, Event, Opened};
use crate::name::{BrokerName, FunctionName};
use crate::receipt::Receipt;
use crate::topic::TopicFilter;

/// CloudEvents `type` of an MQTT message.
pub const KIND: &str = "mqtt.message";
/// User property with the number of functions that a message has gone through.
pub const HOPS_PROPERTY: &str = "tidegate-hops";
/// User property with the W3C trace context.
pub const TRACE_PARENT_PROPERTY: &str = "traceparent";
/// Attribute of an event whose message the broker had kept from before the subscription; its value is `true`.
pub const RETAINED_ATTRIBUTE: &str = "retained";

/// One trigger of one function.
#[derive(Clone, Debug)]
pub struct Route {
    /// Which topics.
    pub filter: TopicFilter,
    /// At which QoS the function wants them.
    pub qos: u8,
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

/// A function that wants a message.
struct Wanted<'a> {
    function: &'a FunctionName,
    /// The highest that its matching triggers want.
    qos: u8,
    filters: Vec<Arc<Filter>>,
    window: Option<&'a Window>,
}

/// All triggers on one broker. Another set of triggers is another value: give it to
/// [`Broker::subscribe`](crate::broker::Broker::subscribe).
pub struct MqttTriggers {
    source: Arc<str>,
    /// They are arranged.
    routes: Vec<Route>,
    to: Arc<dyn Submit>,
    clock: Clock,
}

impl MqttTriggers {
    /// Triggers on the messages of `broker`.
    pub fn new(broker: &BrokerName, mut routes: Vec<Route>, to: Arc<dyn Submit>, clock: Clock) -> Self {
        listener::arrange(&mut routes);
        Self { source: format!("mqtt:{broker}").into(), routes, to, clock }
    }

    /// What the broker must be asked for.
    pub fn subscriptions(&self) -> Vec<Subscription> {
        self.routes.iter().map(|route| Subscription { filter: route.filter.clone(), qos: route.qos }).collect()
    }

    /// Each function once, and each of its windows.
    fn matching<'a>(&'a self, topic: &'a str) -> impl Iterator<Item = Wanted<'a>> {
        listener::together(&self.routes).filter_map(move |triggers| {
            let matching = || triggers.iter().filter(|route| route.filter.matches(topic));
            let qos = matching().map(|route| route.qos).max()?;
            let filters = if triggers.iter().any(|route| route.only.is_some()) {
                filter::needed(matching().map(|route| route.only.as_ref()))
            } else {
                Vec::new()
            };
            Some(Wanted { function: &triggers[0].function, qos, filters, window: triggers[0].window.as_deref() })
        })
    }

    fn event(&self, message: Incoming) -> Event {
        let mut event = Event {
            id: event::new_id(),
            source: Arc::clone(&self.source),
            kind: Cow::Borrowed(KIND),
            subject: Some(message.topic),
            time_ms: self.clock.now_ms(),
            content_type: message.content_type,
            attributes: message.properties,
            data: message.payload,
            trace_parent: None,
            hops: 0,
        };
        event.attributes.retain(|(name, value)| match name.as_str() {
            TRACE_PARENT_PROPERTY => {
                event.trace_parent = Some(value.as_str().into());
                false
            }
            HOPS_PROPERTY => {
                event.hops = value.parse().unwrap_or(0);
                false
            }
            _ => true,
        });
        if message.retain {
            event.attributes.insert(0, (RETAINED_ATTRIBUTE.to_owned(), "true".to_owned()));
        }
        event
    }
}

impl OnMessage for MqttTriggers {
    fn on_message(&self, message: Incoming, receipt: Option<Receipt>) {
        let (topic, qos, own) = (Arc::clone(&message.topic), message.qos, message.own);
        let mut functions = self.matching(&topic).peekable();
        if functions.peek().is_none() {
            // A trigger that was just removed, or a filter of ours that covers more than its functions want.
            tracing::debug!(source = %self.source, %topic, "no function wants this message");
        } else {
            let event = Arc::new(self.event(message));
            let opened = Opened::new(&event);
            for Wanted { function, qos: wanted, filters, window } in functions {
                let (delivery, share) = match &receipt {
                    Some(receipt) if wanted.min(qos) > 0 => (Delivery::AtLeastOnce, receipt.clone()),
                    _ => (Delivery::AtMostOnce, Receipt::new(|_| ())),
                };
                // The event before may be the very one whose function has published this, and wait for it.
                let waits = delivery == Delivery::AtLeastOnce && !own;
                let Some(share) = filter::admit(&filters, &opened, waits, share) else { continue };
                let to = (function, window);
                if let Err(why) = window::hand_on(&*self.to, to, (&event, &opened), delivery, share) {
                    tracing::debug!(source = %self.source, %topic, %why, "the event was not taken");
                }
            }
        }
        if let Some(receipt) = receipt {
            receipt.keep();
        }
    }
}

impl std::fmt::Debug for MqttTriggers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MqttTriggers")
            .field("source", &self.source)
            .field("routes", &self.routes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::config::function::KeyPart;
    use crate::limits::Limits;
    use crate::trigger::Refused;
    use crate::trigger::filter::{Field, FilterConfig};

    #[derive(Default)]
    struct Taken(Mutex<Vec<(String, Arc<Event>, Delivery)>>);

    impl Submit for Taken {
        fn submit(
            &self,
            f: &FunctionName,
            event: Arc<Event>,
            delivery: Delivery,
            receipt: Receipt,
        ) -> Result<(), Refused> {
            self.0.lock().unwrap().push((f.to_string(), event, delivery));
            receipt.keep();
            Ok(())
        }
    }

    fn route(filter: &str, qos: u8, function: &str) -> Route {
        let function = FunctionName::parse(function).unwrap();
        Route { filter: TopicFilter::parse(filter).unwrap(), qos, function, only: None, window: None }
    }

    fn triggers(routes: Vec<Route>) -> (MqttTriggers, Arc<Taken>) {
        let taken = Arc::new(Taken::default());
        let broker = BrokerName::parse("local").unwrap();
        (MqttTriggers::new(&broker, routes, Arc::clone(&taken) as Arc<dyn Submit>, Clock::held_at(7)), taken)
    }

    fn message(topic: &str, qos: u8) -> Incoming {
        Incoming { topic: topic.into(), qos, payload: bytes::Bytes::from_static(b"{}"), ..Incoming::default() }
    }

    #[test]
    fn a_function_gets_a_message_once_however_many_filters_match() {
        let (triggers, taken) = triggers(vec![
            route("a/#", 0, "one"),
            route("b", 1, "two"),
            route("a/+", 1, "one"),
            route("#", 0, "three"),
        ]);
        triggers.on_message(message("a/1", 1), Some(Receipt::new(|result| assert_eq!(result, Ok(())))));
        let taken = taken.0.lock().unwrap();
        let taken: Vec<_> = taken.iter().map(|(function, _, delivery)| (function.as_str(), *delivery)).collect();
        assert_eq!(taken, [("one", Delivery::AtLeastOnce), ("three", Delivery::AtMostOnce)]);
    }

    #[test]
    fn an_event_carries_what_the_message_did() {
        let (triggers, taken) = triggers(vec![route("a/+", 1, "one")]);
        let property = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let properties = vec![
            property("site", "3"),
            property(TRACE_PARENT_PROPERTY, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            property(HOPS_PROPERTY, "2"),
        ];
        let content_type = Some("application/json".into());
        triggers.on_message(Incoming { content_type, properties, ..message("a/1", 0) }, None);
        let taken = taken.0.lock().unwrap();
        let event = &taken[0].1;
        assert_eq!(
            (&*event.source, &*event.kind, event.subject.as_deref()),
            ("mqtt:local", "mqtt.message", Some("a/1"))
        );
        assert_eq!((event.time_ms, event.hops, &event.data[..]), (7, 2, &b"{}"[..]));
        assert_eq!(event.content_type.as_deref(), Some("application/json"));
        assert_eq!(event.attributes, [property("site", "3")]);
        assert!(event.trace_parent.is_some());
    }

    #[test]
    fn an_event_says_that_its_message_was_retained() {
        let (triggers, taken) = triggers(vec![route("a/+", 1, "one")]);
        triggers.on_message(message("a/1", 0), None);
        triggers.on_message(Incoming { retain: true, ..message("a/1", 0) }, None);
        let taken = taken.0.lock().unwrap();
        assert!(taken[0].1.attributes.is_empty());
        assert_eq!(taken[1].1.attributes, [(RETAINED_ATTRIBUTE.to_owned(), "true".to_owned())]);
    }

    #[test]
    fn a_message_that_nobody_wants_is_settled() {
        let (triggers, taken) = triggers(vec![route("a/+", 1, "one")]);
        let (sender, settled) = std::sync::mpsc::channel();
        triggers.on_message(message("b", 1), Some(Receipt::new(move |result| sender.send(result).unwrap())));
        assert_eq!(settled.recv().unwrap(), Ok(()));
        assert!(taken.0.lock().unwrap().is_empty());
    }

    /// Has what it takes go on for ever.
    #[derive(Default)]
    struct Busy(Mutex<Vec<Receipt>>);

    impl Submit for Busy {
        fn submit(&self, _: &FunctionName, _: Arc<Event>, _: Delivery, receipt: Receipt) -> Result<(), Refused> {
            self.0.lock().unwrap().push(receipt);
            Ok(())
        }
    }

    #[test]
    fn what_a_function_publishes_itself_waits_for_no_event_before() {
        let route = route("a", 1, "one");
        let config = FilterConfig { changed: Some(Field::Payload), deadband: None, at_most: None, per: KeyPart::Topic };
        let function = route.function.clone();
        let filter = Filter::new(config, function, Arc::default(), &Limits::default(), Clock::held_at(7));
        let route = Route { only: Some(Arc::new(filter)), ..route };
        let busy = Arc::new(Busy::default());
        let to = Arc::clone(&busy) as Arc<dyn Submit>;
        let triggers = MqttTriggers::new(&BrokerName::parse("local").unwrap(), vec![route], to, Clock::held_at(7));
        let publish = |own: bool| {
            let (sender, settled) = std::sync::mpsc::channel();
            let receipt = Receipt::new(move |result| drop(sender.send(result)));
            triggers.on_message(Incoming { own, ..message("a", 1) }, Some(receipt));
            settled
        };
        let (first, second, own) = (publish(false), publish(false), publish(true));
        assert_eq!(own.try_recv(), Ok(Ok(())));
        assert!(first.try_recv().is_err() && second.try_recv().is_err());
        busy.0.lock().unwrap().drain(..).for_each(Receipt::keep);
        assert_eq!([first.try_recv(), second.try_recv()], [Ok(Ok(())), Ok(Ok(()))]);
    }
}
