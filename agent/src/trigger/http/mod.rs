//! `http` triggers: function URLs, below `/fn/` of the local API.
//!
//! What is here knows nothing of sockets: which URL a request is for, the event that becomes of it, and the answer that becomes of
//! what the function returned. `api/urls.rs` stands between this and the connection.

mod answer;
mod lambda;
mod path;
mod request;
mod urls;
pub(crate) mod wasi;

use std::fmt;
use std::path::PathBuf;

pub use self::answer::{Answer, Header, Malformed, answer};
pub use self::path::{PathError, PathTemplate};
pub use self::request::Request;
pub use self::urls::{Found, FunctionUrl, FunctionUrls, Token};
use crate::config::{Document, join, keys, words};
use crate::units::Span;

/// What all function URLs begin with.
pub const PREFIX: &str = "/fn";

/// `http = { path = "/orders/{id}", methods = ["GET"], event_shape = "apigw-v2" }`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HttpTrigger {
    /// Below [`PREFIX`].
    pub path: PathTemplate,
    /// Any unless said.
    pub methods: Vec<Method>,
    /// What the function is called with, and how its answer is read.
    pub event_shape: EventShape,
    /// Who may call.
    pub auth: Auth,
    /// File with a token of this URL's own.
    pub token_file: Option<PathBuf>,
    /// Which pages of other origins may call.
    pub cors: Option<CorsConfig>,
}

keys! { HttpTrigger:
    path = required("\"/orders/{id}\""),
    methods = or(Vec::new()),
    event_shape = or(EventShape::Native),
    auth = or(Auth::Token),
    token_file = optional(),
    cors = optional(),
}

/// A method of HTTP that can be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[expect(missing_docs, reason = "they are what they are called")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
}

words! { Method:
    "GET" = Self::Get,
    "HEAD" = Self::Head,
    "POST" = Self::Post,
    "PUT" = Self::Put,
    "PATCH" = Self::Patch,
    "DELETE" = Self::Delete,
    "OPTIONS" = Self::Options,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 7] = [Self::Get, Self::Head, Self::Post, Self::Put, Self::Patch, Self::Delete, Self::Options];

    /// As it stands in a request.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
            Self::Options => "OPTIONS",
        }
    }
}

/// `event_shape` of a function URL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EventShape {
    /// The body is the payload, all else attributes; what is returned is the body of the answer.
    #[default]
    Native,
    /// The proxy event of Amazon API Gateway in format 1.0, and its answer.
    ApigwV1,
    /// The same in format 2.0, which is Lambda's own for function URLs.
    ApigwV2,
    /// The request itself, for a component that exports `wasi:http/incoming-handler`.
    WasiHttp,
}

words! { EventShape:
    "native" = Self::Native,
    "apigw-v1" = Self::ApigwV1,
    "apigw-v2" = Self::ApigwV2,
    "wasi-http" = Self::WasiHttp;
    later "payload", "cloudevents"
}

/// `auth`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Auth {
    /// The URL's token or the API's, where there is one.
    #[default]
    Token,
    /// Anyone who reaches it.
    None,
}

words! { Auth: "token" = Self::Token, "none" = Self::None }

/// `cors = { allow_origins = ["https://app.example"] }`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CorsConfig {
    /// `https://app.example`, or `*` for any.
    pub allow_origins: Vec<String>,
    /// Headers that a page may send beside the harmless ones, or `*` for any.
    pub allow_headers: Vec<String>,
    /// Headers of the answer that a page may see beside the harmless ones.
    pub expose_headers: Vec<String>,
    /// Whether a page may send cookies.
    pub allow_credentials: bool,
    /// For how long a browser remembers what is allowed.
    pub max_age: Span,
}

keys! { CorsConfig:
    allow_origins = required("[\"https://app.example\"]"),
    allow_headers = or(vec!["authorization".to_owned(), "content-type".to_owned()]),
    expose_headers = or(Vec::new()),
    allow_credentials = or(false),
    max_age = or(Span::from_secs(600)),
}

impl CorsConfig {
    /// Whether pages of `origin` may call.
    pub fn allows(&self, origin: &str) -> bool {
        self.allow_origins.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin))
    }
}

impl HttpTrigger {
    pub(crate) fn check(&self, path: &str, document: &mut Document) {
        if self.auth == Auth::None && self.token_file.is_some() {
            let what = "it has a token that nobody is asked for";
            document.refuse_key(&join(path, "token_file"), what, "remove it, or `auth = \"none\"`");
        }
        let Some(cors) = &self.cors else { return };
        let path = join(path, "cors");
        for (i, origin) in cors.allow_origins.iter().enumerate() {
            let is_origin = origin == "*"
                || origin == "null"
                || origin.split_once("://").is_some_and(|(scheme, authority)| {
                    !scheme.is_empty() && !authority.is_empty() && !authority.contains(['/', '?', '#', '*', ' '])
                });
            if !is_origin {
                let hint = "write for example `https://app.example`, without a path, or `*` for any";
                document.refuse(&format!("{path}.allow_origins[{i}]"), format!("`{origin}` is not an origin"), hint);
            }
            if origin == "*" && cors.allow_credentials {
                let what = "cookies would go along with calls from any page";
                document.refuse(&join(&path, "allow_credentials"), what, "name the origins, or remove it");
            }
        }
        for (key, names) in [("allow_headers", &cors.allow_headers), ("expose_headers", &cors.expose_headers)] {
            let is_name = |name: &String| {
                !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || b"-_*".contains(&c))
            };
            if let Some(name) = names.iter().find(|name| !is_name(name)) {
                let what = format!("`{name}` is not the name of a header");
                document.refuse(&join(&path, key), what, "write for example `[\"content-type\"]`");
            }
        }
    }

    /// Reports what a bundle may not say by itself: who may call is for the gateway, or whoever signs a deployment.
    pub(crate) fn check_in_bundle(&self, path: &str, document: &mut Document) {
        let hint = "write the trigger into gateway.toml, or into the deployment";
        if self.auth == Auth::None {
            document.refuse(&join(path, "auth"), "a bundle cannot let anyone call it", hint);
        }
        if self.cors.is_some() {
            document.refuse_key(&join(path, "cors"), "a bundle cannot let pages of other sites call it", hint);
        }
        if self.token_file.is_some() {
            document.refuse_key(&join(path, "token_file"), "a bundle may name no file of the gateway", hint);
        }
    }

    /// Whether a request of this method is for it.
    pub fn takes(&self, method: &str) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|taken| taken.word() == method)
    }

    /// The methods that it takes, as far as they can be named.
    pub fn methods(&self) -> &[Method] {
        if self.methods.is_empty() { &Method::ALL } else { &self.methods }
    }

    /// Whether there are requests that are for both alike.
    pub fn conflicts_with(&self, other: &Self) -> bool {
        let share = || self.methods().iter().any(|method| other.methods().contains(method));
        self.path.is_alike(&other.path) && share()
    }
}

/// `GET,HEAD /orders/{id}`, or `ANY /orders/{id}`.
impl fmt::Display for HttpTrigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.methods.is_empty() {
            f.write_str("ANY")?;
        }
        for (i, method) in self.methods.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { "," }, method.word())?;
        }
        write!(f, " {}", self.path)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// What is wrong with `http = { … }`, or nothing.
    #[track_caller]
    fn check(said: &str, expected: &str) {
        let read = toml::from_str::<BTreeMap<String, HttpTrigger>>(&format!("http = {said}"));
        let told = read.map_or_else(
            |error| error.to_string(),
            |read| {
                let mut document = Document::of_value("gateway.toml");
                read["http"].check("http", &mut document);
                document.finish(Some(())).map_or_else(|errors| errors.to_string(), |()| String::new())
            },
        );
        assert!(if expected.is_empty() { told.is_empty() } else { told.contains(expected) }, "{said}: {told}");
    }

    #[test]
    fn a_function_url_is_read_with_all_that_it_says() {
        check("{ path = \"/orders/{id}\" }", "");
        check("{ path = \"/\", methods = [\"GET\", \"POST\"], event_shape = \"apigw-v1\", auth = \"none\" }", "");
        check("{ path = \"/a\", cors = { allow_origins = [\"https://app.example\", \"http://localhost:3000\"] } }", "");
    }

    #[test]
    fn a_function_url_that_cannot_be_meant_is_refused() {
        check("{ path = \"orders\" }", "begins with `/`");
        check("{ path = \"/a\", methods = [\"get\"] }", "`get` is not known here");
        check("{ path = \"/a\", event_shape = \"apigw\" }", "`apigw` is not known here");
        check("{ path = \"/a\", event_shape = \"payload\" }", "`payload` is not available in this version");
        check("{ path = \"/a\", auth = \"none\", token_file = \"t\" }", "a token that nobody is asked for");
        check("{ path = \"/a\", cors = { allow_origins = [\"app.example\"] } }", "`app.example` is not an origin");
        check("{ path = \"/a\", cors = { allow_origins = [\"https://a/b\"] } }", "is not an origin");
        check("{ path = \"/a\", cors = { allow_origins = [\"*\"], allow_credentials = true } }", "from any page");
        check("{ path = \"/a\", cors = { allow_origins = [\"*\"], allow_headers = [\"a b\"] } }", "name of a header");
    }
}
