//! `/console/`: the gateway on a page, for people. Rendered here, kept fresh by htmx, which asks for the same page again.
//!
//! # Promises
//! - All that a browser needs comes from this binary; scripts and styles run from nowhere else.
//! - What a device, a function or a caller said is text on the page, never part of it.
//! - Only the console's own pages may change anything, and only where the config lets them.
//! - While nobody looks, nothing is done.

mod actions;
mod assets;
mod pages;
mod rates;
mod session;
mod view;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::Request;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, ORIGIN, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};

use self::rates::Rates;
pub(super) use self::session::Sessions;
use super::Shared;
use super::error::ApiError;
use crate::config::Console;

/// Where it is. Not at `/`, so that its cookie goes to no function URL.
const ROOT: &str = "/console/";
const SIGN_IN: &str = "/console/sign-in";
const ASSETS: &str = "/console/assets/";
/// What htmx sends with its requests.
const HX_REQUEST: HeaderName = HeaderName::from_static("hx-request");
/// Where htmx then goes.
const HX_REDIRECT: HeaderName = HeaderName::from_static("hx-redirect");
/// Nothing but what comes from here, and no scripts or styles: a page says itself which are its own. A second wall behind the escaping.
const POLICY: &str = "default-src 'none'; img-src 'self' data:; connect-src 'self'; form-action 'self'; \
     frame-ancestors 'none'; base-uri 'none'";

/// What the console keeps between two looks.
pub(crate) struct State {
    mode: Console,
    rates: Mutex<Rates>,
}

impl State {
    pub(super) fn new(mode: Console) -> Self {
        Self { mode, rates: Mutex::default() }
    }

    /// Whether people may do more than look.
    fn acts(&self) -> bool {
        self.mode == Console::On
    }

    fn rates(&self) -> MutexGuard<'_, Rates> {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Its routes; none when it is off.
pub(super) fn router(shared: &Shared) -> Router<Arc<Shared>> {
    if shared.console.mode == Console::Off {
        return Router::new();
    }
    Router::new()
        .route("/", get(home))
        .route("/console", get(home))
        .route(ROOT, get(pages::overview))
        .route("/console/functions/{name}", get(pages::function))
        .route("/console/functions/{name}/invoke", post(actions::invoke))
        .route("/console/functions/{name}/invocations/{id}", get(pages::trace))
        .route("/console/dead-letters", get(pages::letters))
        .route("/console/dead-letters/{id}", get(pages::letter))
        .route("/console/dead-letters/{id}/replay", post(actions::replay))
        .route("/console/dead-letters/{id}/drop", post(actions::discard))
        .route("/console/log", get(pages::log))
        .route(SIGN_IN, get(pages::sign_in).post(actions::sign_in))
        .route("/console/sign-out", post(actions::sign_out))
        .route("/console/assets/{file}", get(assets::serve))
        .layer(middleware::from_fn(protect))
}

async fn home() -> Redirect {
    Redirect::to(ROOT)
}

/// Whether `path` is one of the console's.
pub(super) fn is_at(path: &str) -> bool {
    path == "/" || path == "/console" || path.starts_with(ROOT)
}

/// Whether `path` is for those too who have shown no token yet.
pub(super) fn is_public(path: &str) -> bool {
    path == "/" || path == SIGN_IN || path.starts_with(ASSETS)
}

/// What somebody is told whom the guard does not let in: where to sign in, or why not.
pub(super) fn refused(request: &Request, error: ApiError) -> Response {
    let (status, body, headers) = error.told();
    let mut response = if status != StatusCode::UNAUTHORIZED {
        pages::failure(status, body)
    } else if request.headers().contains_key(HX_REQUEST) {
        (status, [(HX_REDIRECT, SIGN_IN)]).into_response()
    } else if request.method() == Method::GET {
        Redirect::to(SIGN_IN).into_response()
    } else {
        pages::failure(status, body)
    };
    response.headers_mut().extend(headers);
    harden(response)
}

async fn protect(request: Request, next: Next) -> Response {
    let looks = matches!(*request.method(), Method::GET | Method::HEAD);
    if !looks && !is_own(request.uri(), request.headers()) {
        let error = ApiError::new(StatusCode::FORBIDDEN, "only the console's own pages may do this")
            .hint("open the console by the address of the gateway itself; programs use /v1/")
            .log(format!("a page of {:?} called `{}`", request.headers().get(ORIGIN), request.uri().path()));
        return refused(&request, error);
    }
    harden(next.run(request).await)
}

/// Whether a page of this very origin sends this. Other ports of this machine are other pages, though their cookies are the same;
/// a page that a function returned has no origin.
fn is_own(uri: &Uri, headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let host = uri.authority().map(|host| host.as_str()).or_else(|| text(HOST));
    let origin = text(ORIGIN).and_then(|origin| origin.split_once("://")).map(|(_, authority)| authority);
    let site = text(HeaderName::from_static("sec-fetch-site"));
    origin.is_some() && origin == host && site.is_none_or(|site| site == "same-origin")
}

fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let said = [
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // A page without a referrer would send its forms without an origin.
        (REFERRER_POLICY, "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    headers.extend(said.map(|(name, value)| (name, HeaderValue::from_static(value))));
    headers.entry(CONTENT_SECURITY_POLICY).or_insert(HeaderValue::from_static(POLICY));
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// A page or a part of one, or why there is none.
fn html(status: StatusCode, page: &impl askama::Template) -> Response {
    match page.render() {
        Ok(text) => (status, [(CONTENT_TYPE, "text/html; charset=utf-8")], text).into_response(),
        Err(error) => ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the page cannot be made")
            .log(error.to_string())
            .into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_page_of_the_same_origin_may_change_anything() {
        let is_own = |headers: &[(&'static str, &'static str)]| {
            let headers =
                headers.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            super::is_own(&Uri::from_static("/console/"), &headers.collect())
        };
        let host = ("host", "gateway:8470");
        assert!(is_own(&[host, ("origin", "http://gateway:8470")]));
        assert!(is_own(&[host, ("origin", "https://gateway:8470"), ("sec-fetch-site", "same-origin")]));
        for foreign in ["http://gateway:3000", "http://gateway", "null", "https://evil.example", "gateway:8470"] {
            assert!(!is_own(&[host, ("origin", foreign)]), "{foreign}");
        }
        assert!(!is_own(&[host]) && !is_own(&[("origin", "http://gateway:8470")]));
        assert!(!is_own(&[host, ("origin", "http://gateway:8470"), ("sec-fetch-site", "same-site")]));
    }

    #[test]
    fn the_consoles_paths_are_not_those_of_functions() {
        for own in ["/", "/console", "/console/", "/console/log"] {
            assert!(is_at(own), "{own}");
        }
        for other in ["/consoles", "/fn/console/", "/v1/status", ""] {
            assert!(!is_at(other), "{other}");
        }
        assert!(is_public("/console/sign-in") && is_public("/console/assets/console.css"));
        assert!(!is_public("/console/") && !is_public("/console/sign-in/more") && !is_public("/console/sign-out"));
    }
}
