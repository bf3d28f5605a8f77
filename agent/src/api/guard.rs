//! Who may call over TCP. The Unix socket needs none of it: the file system decides who may open that.

use std::net::{IpAddr, SocketAddr};

use axum::extract::Request;
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN, WWW_AUTHENTICATE};
use axum::http::{Extensions, HeaderMap, HeaderValue, StatusCode, Uri};

use super::console::{self, Sessions};
use super::error::ApiError;
use super::server::Peer;
use super::urls;
use crate::clock::Clock;
use crate::limits::Limits;
use crate::name::GatewayName;
use crate::trigger::http::Token;

/// What a request over TCP must bring.
#[derive(Debug)]
pub(super) struct Guard {
    /// Hosts that requests may be for; `None` when any may, because a token is needed anyway.
    hosts: Option<Vec<String>>,
    token: Option<Token>,
    sessions: Sessions,
}

impl Guard {
    pub(super) fn new(
        listen: SocketAddr,
        gateway: &GatewayName,
        token: Option<&str>,
        limits: &Limits,
        clock: Clock,
    ) -> Self {
        let ours = || {
            let address = listen.ip();
            let names = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned(), gateway.to_string()];
            names.into_iter().chain([address.to_string()]).collect()
        };
        let hosts = listen.ip().is_loopback().then(ours);
        Self { hosts, token: token.map(Token::new), sessions: Sessions::new(limits, clock) }
    }

    /// A page of a stranger that a browser on this machine shows can call loopback: under its own name, when its DNS is
    /// pointed here (so `Host` is looked at), or across origins (so `Origin` is).
    pub(super) fn check(&self, request: &Request) -> Result<(), ApiError> {
        let headers = request.headers();
        if self.hosts.is_some() {
            let named = request.uri().authority().map(|named| named.as_str());
            let named = named.or_else(|| text(headers.get(HOST)));
            if !named.is_some_and(|named| self.is_ours(named)) {
                return Err(ApiError::new(
                    StatusCode::MISDIRECTED_REQUEST,
                    "this host name is not one of this gateway's",
                )
                .hint("call it as `localhost`, by its address, or by the gateway's name")
                .log(format!("a request for the host {named:?} was refused")));
            }
        }
        // Who else may call a function URL is for its trigger to say.
        if urls::is_at(request.uri().path()) {
            return Ok(());
        }
        let origin = text(headers.get(ORIGIN));
        let foreign = |origin: &str| !origin.split_once("://").is_some_and(|(_, authority)| self.is_ours(authority));
        if self.hosts.is_some() && origin.is_some_and(foreign) {
            return Err(ApiError::new(StatusCode::FORBIDDEN, "pages of other sites may not call this gateway")
                .log(format!("a request from the origin {origin:?} was refused")));
        }
        let path = request.uri().path();
        // A cookie opens the console and nothing else: programs send the token.
        if path == "/healthz" || console::is_public(path) || console::is_at(path) && self.knows(request) {
            return Ok(());
        }
        self.check_token(headers, None).map(drop)
    }

    /// Whether a session of the console goes on for whoever asks.
    fn knows(&self, request: &Request) -> bool {
        self.sessions.holds(request.headers(), address(request.extensions()))
    }

    /// Whether `given` is the API's token.
    pub(super) fn is_token(&self, given: &str) -> bool {
        self.token.as_ref().is_some_and(|token| token.is(given))
    }

    /// Those who are signed in to the console.
    pub(super) const fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Whether callers need a token.
    pub(super) const fn asks(&self) -> bool {
        self.token.is_some()
    }

    /// Whether `authority` is one that loopback goes by.
    pub(super) fn is_ours(&self, authority: &str) -> bool {
        let Some(hosts) = &self.hosts else { return false };
        let has = |named: &str| hosts.iter().any(|host| host == named);
        // Most callers write it as it is listed, which needs no reading.
        let (name, port) = authority.split_once(':').unwrap_or((authority, ""));
        (port.bytes().all(|digit| digit.is_ascii_digit()) && has(name))
            || host(authority).is_some_and(|host| has(&host))
    }

    /// Whether the token of the API was sent, or `other`; `false` when none is needed.
    pub(super) fn check_token(&self, headers: &HeaderMap, other: Option<&Token>) -> Result<bool, ApiError> {
        let mut expected = self.token.iter().chain(other).peekable();
        if expected.peek().is_none() {
            return Ok(false);
        }
        let given = text(headers.get(AUTHORIZATION));
        let given = given.and_then(|value| value.split_once(' '));
        let given = given.and_then(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer").then_some(token.trim()));
        if given.is_some_and(|given| expected.any(|expected| expected.is(given))) {
            return Ok(true);
        }
        let (what, log) = match given {
            Some(_) => ("the token is not the one of this gateway", "a request with a wrong token was refused"),
            None => ("a token is needed", "a request without a token was refused"),
        };
        Err(ApiError::new(StatusCode::UNAUTHORIZED, what)
            .hint(
                "send `Authorization: Bearer TOKEN` with the content of `api.token_file`, or of the function URL's own",
            )
            .header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
            .log(log))
    }
}

/// Where a request came from; none on the Unix socket.
pub(super) fn address(extensions: &Extensions) -> Option<IpAddr> {
    extensions.get::<Peer>().and_then(|peer| peer.0)
}

fn text(value: Option<&HeaderValue>) -> Option<&str> {
    value.and_then(|value| value.to_str().ok())
}

/// `[::1]:8470` → `::1`, `Localhost` → `localhost`.
fn host(authority: &str) -> Option<String> {
    let uri = format!("http://{authority}/").parse::<Uri>().ok()?;
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    Some(host.parse::<IpAddr>().map_or_else(|_| host.to_ascii_lowercase(), |address| address.to_string()))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::response::IntoResponse as _;

    use super::*;

    #[track_caller]
    fn check(guard: &Guard, path: &str, headers: &[(&str, &str)], expected: u16) {
        let request = headers.iter().fold(Request::get(path), |request, (name, value)| request.header(*name, *value));
        let result = guard.check(&request.body(Body::empty()).unwrap());
        let status = result.map_or_else(|error| error.into_response().status().as_u16(), |()| 200);
        assert_eq!(status, expected, "{path} {headers:?}");
    }

    fn guard(listen: &str, token: Option<&str>) -> Guard {
        let gateway = GatewayName::parse("press-hall-3").unwrap();
        Guard::new(listen.parse().unwrap(), &gateway, token, &Limits::default(), Clock::held_at(0))
    }

    #[test]
    fn a_page_of_a_stranger_cannot_call_loopback() {
        let guard = guard("127.0.0.1:8470", None);
        for ours in ["localhost", "LOCALHOST:8470", "127.0.0.1:8470", "[::1]:8470", "press-hall-3", "localhost."] {
            check(&guard, "/v1/status", &[("host", ours)], 200);
        }
        for foreign in
            ["evil.example", "evil.example:8470", "127.0.0.1.evil.example", "localhost@evil.example", "", "a b"]
        {
            check(&guard, "/v1/status", &[("host", foreign)], 421);
        }
        check(&guard, "/v1/status", &[], 421);
        check(&guard, "/v1/status", &[("host", "localhost"), ("origin", "https://evil.example")], 403);
        check(&guard, "/v1/status", &[("host", "localhost"), ("origin", "null")], 403);
        check(&guard, "/v1/status", &[("host", "localhost"), ("origin", "http://localhost:8470")], 200);
        // A function URL is under the names of this machine as well; pages and tokens are for its trigger to look at.
        check(&guard, "/fn/orders", &[("host", "evil.example")], 421);
        check(&guard, "/fn/orders", &[("host", "localhost"), ("origin", "https://evil.example")], 200);
    }

    #[test]
    fn a_token_is_needed_where_one_is_configured() {
        let guard = guard("0.0.0.0:8470", Some("s3cret"));
        check(&guard, "/v1/status", &[("host", "gateway.example")], 401);
        check(&guard, "/v1/status", &[("host", "x"), ("authorization", "Bearer s3cre")], 401);
        check(&guard, "/v1/status", &[("host", "x"), ("authorization", "Basic s3cret")], 401);
        check(&guard, "/v1/status", &[("host", "x"), ("authorization", "bearer s3cret")], 200);
        check(&guard, "/healthz", &[("host", "x")], 200);
        check(&guard, "/fn/orders", &[("host", "x")], 200);
        check(&guard, "/fnord", &[("host", "x")], 401);
    }
}
