//! Who may call over TCP. The Unix socket needs none of it: the file system decides who may open that.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::error::ApiError;
use crate::name::GatewayName;

/// What a request over TCP must bring.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    /// Hosts that requests may be for; `None` when any may, because a token is needed anyway.
    hosts: Option<Vec<String>>,
    /// Digest of the token.
    token: Option<[u8; 32]>,
}

impl Guard {
    pub(super) fn new(listen: SocketAddr, gateway: &GatewayName, token: Option<&str>) -> Self {
        let ours = || {
            let address = listen.ip();
            let names = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned(), gateway.to_string()];
            names.into_iter().chain([address.to_string()]).collect()
        };
        let hosts = listen.ip().is_loopback().then(ours);
        Self { hosts, token: token.map(digest) }
    }

    /// A page of a stranger that a browser on this machine shows can call loopback: under its own name, when its DNS is
    /// pointed here (so `Host` is looked at), or across origins (so `Origin` is).
    fn check(&self, request: &Request) -> Result<(), ApiError> {
        let headers = request.headers();
        if let Some(hosts) = &self.hosts {
            let ours = |authority: &str| host(authority).is_some_and(|host| hosts.contains(&host));
            let named = request.uri().authority().map(ToString::to_string);
            let named = named.or_else(|| text(headers.get(HOST)));
            if !named.as_deref().is_some_and(ours) {
                return Err(ApiError::new(
                    StatusCode::MISDIRECTED_REQUEST,
                    "this host name is not one of this gateway's",
                )
                .hint("call it as `localhost`, by its address, or by the gateway's name")
                .log(format!("a request for the host {named:?} was refused")));
            }
            let origin = text(headers.get(ORIGIN));
            let foreign = |origin: &str| !origin.split_once("://").is_some_and(|(_, authority)| ours(authority));
            if origin.as_deref().is_some_and(foreign) {
                return Err(ApiError::new(StatusCode::FORBIDDEN, "pages of other sites may not call this gateway")
                    .log(format!("a request from the origin {origin:?} was refused")));
            }
        }
        let Some(expected) = &self.token else { return Ok(()) };
        if request.uri().path() == "/healthz" {
            return Ok(());
        }
        let given = text(headers.get(AUTHORIZATION));
        let given = given.as_deref().and_then(|value| value.split_once(' '));
        let given = given.and_then(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer").then_some(token.trim()));
        // Digests are compared: how long that takes says nothing about the token, whose digest the caller cannot steer.
        if given.map(digest).as_ref() == Some(expected) {
            return Ok(());
        }
        let (what, log) = match given {
            Some(_) => ("the token is not the one of this gateway", "a request with a wrong token was refused"),
            None => ("a token is needed", "a request without a token was refused"),
        };
        Err(ApiError::new(StatusCode::UNAUTHORIZED, what)
            .hint("send `Authorization: Bearer TOKEN` with the content of `api.token_file`")
            .header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
            .log(log))
    }
}

pub(super) async fn guard(State(guard): State<Guard>, request: Request, next: Next) -> Response {
    match guard.check(&request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

fn text(value: Option<&HeaderValue>) -> Option<String> {
    value.and_then(|value| value.to_str().ok()).map(ToOwned::to_owned)
}

/// `[::1]:8470` → `::1`, `Localhost` → `localhost`.
fn host(authority: &str) -> Option<String> {
    let uri = format!("http://{authority}/").parse::<Uri>().ok()?;
    let host = uri.host()?.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    Some(host.parse::<IpAddr>().map_or_else(|_| host.to_ascii_lowercase(), |address| address.to_string()))
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    #[track_caller]
    fn check(guard: &Guard, path: &str, headers: &[(&str, &str)], expected: u16) {
        let request = headers.iter().fold(Request::get(path), |request, (name, value)| request.header(*name, *value));
        let result = guard.check(&request.body(Body::empty()).unwrap());
        let status = result.map_or_else(|error| error.into_response().status().as_u16(), |()| 200);
        assert_eq!(status, expected, "{path} {headers:?}");
    }

    fn guard(listen: &str, token: Option<&str>) -> Guard {
        Guard::new(listen.parse().unwrap(), &GatewayName::parse("press-hall-3").unwrap(), token)
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
    }

    #[test]
    fn a_token_is_needed_where_one_is_configured() {
        let guard = guard("0.0.0.0:8470", Some("s3cret"));
        check(&guard, "/v1/status", &[("host", "gateway.example")], 401);
        check(&guard, "/v1/status", &[("host", "x"), ("authorization", "Bearer s3cre")], 401);
        check(&guard, "/v1/status", &[("host", "x"), ("authorization", "Basic s3cret")], 401);
        check(&guard, "/v1/status", &[("host", "x"), ("authorization", "bearer s3cret")], 200);
        check(&guard, "/healthz", &[("host", "x")], 200);
    }
}
