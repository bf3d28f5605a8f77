//! The event that becomes of a request.

use std::sync::Arc;

use bytes::Bytes;

use super::path::decode;
use super::{EventShape, HttpTrigger, lambda};
use crate::event::{Event, new_id};

/// CloudEvents `type`.
pub(super) const KIND: &str = "http.request";

/// A request that came whole.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// `GET`.
    pub method: String,
    /// `HTTP/1.1`.
    pub protocol: &'static str,
    /// Without [`super::PREFIX`], as it came.
    pub path: String,
    /// What stands behind `?`, as it came.
    pub query: String,
    /// In lower case, in their order; without credentials that were for the gateway.
    pub headers: Vec<(String, String)>,
    /// What the parameters of the trigger's path are.
    pub parameters: Vec<(String, String)>,
    /// Address of the caller; none over the Unix socket.
    pub client: Option<String>,
    /// The body.
    pub body: Bytes,
    /// Unix time in milliseconds at which it came.
    pub time_ms: u64,
}

impl Request {
    /// The event that `function` is called with.
    pub fn event(self, function: &str, trigger: &HttpTrigger) -> Event {
        let id = new_id();
        let subject = Some(Arc::from(&*self.path));
        let trace_parent = self.header("traceparent").map(Into::into);
        let time_ms = self.time_ms;
        let (content_type, attributes, data) = match trigger.event_shape {
            EventShape::Native | EventShape::WasiHttp => {
                let content_type = self.header("content-type").map(Into::into);
                let body = self.body.clone();
                (content_type, self.attributes(trigger), body)
            }
            EventShape::ApigwV1 => lambda_event(&lambda::version1(&self, &id, function, trigger)),
            EventShape::ApigwV2 => lambda_event(&lambda::version2(&self, &id, function, trigger)),
        };
        Event {
            id,
            source: "http".into(),
            kind: KIND.into(),
            subject,
            time_ms,
            content_type,
            attributes,
            data,
            trace_parent,
            hops: 0,
        }
    }

    /// The value of a header, the first one when there are several.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| &**value)
    }

    /// What the query says, decoded, in its order.
    pub(super) fn query(&self) -> impl Iterator<Item = (String, String)> {
        self.query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let read = |text: &str| if text.contains('+') { decode(&text.replace('+', " ")) } else { decode(text) };
            (read(name), read(value))
        })
    }

    /// `method`, `path`, `route`, `client`, then `path.NAME`, `query.NAME` and `header.NAME`.
    fn attributes(self, trigger: &HttpTrigger) -> Vec<(String, String)> {
        let query: Vec<_> = self.query().collect();
        let own = [
            ("method", Some(self.method)),
            ("path", Some(self.path)),
            ("route", Some(trigger.path.to_string())),
            ("query", Some(self.query).filter(|query| !query.is_empty())),
            ("client", self.client),
        ];
        let own = own.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        let named = |kind: &'static str| move |(name, value): (String, String)| ([kind, &name].concat(), value);
        own.chain(self.parameters.into_iter().map(named("path.")))
            .chain(query.into_iter().map(named("query.")))
            .chain(self.headers.into_iter().map(named("header.")))
            .collect()
    }
}

type Parts = (Option<Arc<str>>, Vec<(String, String)>, Bytes);

fn lambda_event(event: &serde_json::Value) -> Parts {
    (Some("application/json".into()), Vec::new(), event.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::super::{Auth, PathTemplate};
    use super::*;

    #[test]
    fn a_native_event_has_the_body_as_it_came_and_all_else_as_attributes() {
        let request = Request {
            method: "PUT".into(),
            protocol: "HTTP/1.1",
            path: "/orders/a%20b".into(),
            query: "full&tag=x%26y&tag=a+b".into(),
            headers: vec![
                ("content-type".into(), "image/png".into()),
                ("accept".into(), "a/b".into()),
                ("accept".into(), "c/d".into()),
                ("traceparent".into(), "00-1-2-01".into()),
            ],
            parameters: vec![("id".into(), "a b".into())],
            client: Some("10.0.0.7".into()),
            body: Bytes::from_static(b"\xff\x00"),
            time_ms: 7,
        };
        let trigger = HttpTrigger {
            path: PathTemplate::parse("/orders/{id}").unwrap(),
            methods: vec![],
            event_shape: EventShape::Native,
            auth: Auth::Token,
            token_file: None,
            cors: None,
        };
        let event = request.event("orders", &trigger);
        assert_eq!((&*event.source, &*event.kind, event.time_ms), ("http", "http.request", 7));
        assert_eq!(event.subject.as_deref(), Some("/orders/a%20b"));
        assert_eq!(event.content_type.as_deref(), Some("image/png"));
        assert_eq!(event.trace_parent.as_deref(), Some("00-1-2-01"));
        assert_eq!(event.data, &b"\xff\x00"[..]);
        let attributes: Vec<_> = event.attributes.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            attributes,
            [
                "method=PUT",
                "path=/orders/a%20b",
                "route=/orders/{id}",
                "query=full&tag=x%26y&tag=a+b",
                "client=10.0.0.7",
                "path.id=a b",
                "query.full=",
                "query.tag=x&y",
                "query.tag=a b",
                "header.content-type=image/png",
                "header.accept=a/b",
                "header.accept=c/d",
                "header.traceparent=00-1-2-01",
            ]
        );
    }
}
