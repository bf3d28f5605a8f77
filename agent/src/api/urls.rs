//! `/fn/…`: function URLs. Who may call, one invocation, and the answer that its function gave.

use std::borrow::Cow;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};

use super::Shared;
use super::cookies;
use super::error::ApiError;
use super::guard::Guard;
use super::invocations::INVOCATION;
use super::routes::body;
use super::server::Peer;
use crate::dispatch::Answer;
use crate::event::Event;
use crate::invocation::Outcome;
use crate::name::FunctionName;
use crate::trigger::Refused;
use crate::trigger::http::{self, Auth, CorsConfig, Found, FunctionUrl, FunctionUrls, Method, PREFIX};

/// A page that a function returns is on the address of the API itself: without an origin of its own it can call neither that nor
/// other functions.
const SANDBOX: &str = "sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts";

/// Whether `path` is that of a function URL.
pub(super) fn is_at(path: &str) -> bool {
    path.strip_prefix(PREFIX).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

pub(super) async fn serve(shared: &Shared, request: Request) -> Response {
    let (mut parts, payload) = request.into_parts();
    let urls = shared.agent.function_urls();
    let path = parts.uri.path().strip_prefix(PREFIX).unwrap_or_default().to_owned();
    if let Some(answer) = preflight(&urls, &path, &parts) {
        return answer;
    }
    let (url, parameters) = match urls.find(parts.method.as_str(), &path) {
        Found::Url(url, parameters) => (url, parameters),
        Found::Methods(methods) => return wrong_method(&parts, &methods).into_response(),
        Found::Nothing => return nothing(&parts).into_response(),
    };
    let answered = async {
        check_page(&url, &parts)?;
        check_caller(&url, &mut parts)?;
        let event = event_of(shared, &url, &parts, parameters, path, payload).await?;
        // Not before: a body that trickles in keeps nobody else out.
        let _call = Arc::clone(&url.calls).try_acquire_owned().map_err(|_| too_many())?;
        let answer = shared.agent.invoke(&url.function, event).await;
        respond(&url, answer.map_err(|refused| not_taken(&url.function, &refused))?)
    };
    let mut response = answered.await.unwrap_or_else(IntoResponse::into_response);
    url.metrics.url_answered(response.status().as_u16());
    let headers = response.headers_mut();
    cookies::confine(headers, parts.uri.path());
    headers.append(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(SANDBOX));
    if let Some(cors) = &url.trigger.cors {
        allow(cors, &parts.headers, headers);
    }
    response
}

/// The answer to a browser that asks whether a page may call; `None` when it does not ask, or nobody said who may.
fn preflight(urls: &FunctionUrls, path: &str, parts: &Parts) -> Option<Response> {
    let wanted = parts.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?.to_str().ok()?;
    if parts.method != axum::http::Method::OPTIONS || !parts.headers.contains_key(header::ORIGIN) {
        return None;
    }
    let Found::Url(url, _) = urls.find(wanted, path) else { return None };
    let cors = url.trigger.cors.as_ref()?;
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    if allow(cors, &parts.headers, headers) {
        let asked = parts.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
        let any = cors.allow_headers.iter().any(|name| name == "*");
        let named = HeaderValue::from_str(&cors.allow_headers.join(", ")).ok();
        let methods: Vec<_> = urls.methods(path).into_iter().map(Method::word).collect();
        let said = [
            (header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_str(&methods.join(", ")).ok()),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, if any { asked.cloned() } else { named }),
            (header::ACCESS_CONTROL_MAX_AGE, Some(HeaderValue::from(cors.max_age.0.as_secs()))),
        ];
        headers.extend(said.into_iter().filter_map(|(name, value)| Some((name, value?))));
    }
    Some(response)
}

/// Tells a browser that the page may see the answer; the config has the last word over what the function said.
fn allow(cors: &CorsConfig, asked: &HeaderMap, headers: &mut HeaderMap) -> bool {
    for name in [
        header::ACCESS_CONTROL_ALLOW_ORIGIN,
        header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
        header::ACCESS_CONTROL_EXPOSE_HEADERS,
    ] {
        headers.remove(name);
    }
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    let origin = asked.get(header::ORIGIN).filter(|origin| origin.to_str().is_ok_and(|origin| cors.allows(origin)));
    let Some(origin) = origin else { return false };
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    if cors.allow_credentials {
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    if let Some(exposed) = HeaderValue::from_str(&cors.expose_headers.join(", ")).ok().filter(|value| !value.is_empty())
    {
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
    }
    true
}

/// What a browser says of the page that calls: one of another site may only where `cors` lets it, whoever else may call.
fn check_page(url: &FunctionUrl, parts: &Parts) -> Result<(), ApiError> {
    let header = |name: HeaderName| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let allowed = |origin: &str| url.trigger.cors.as_ref().is_some_and(|cors| cors.allows(origin));
    let ours = |authority: &str| {
        let host = parts.uri.authority().map(|host| host.as_str()).or_else(|| header(header::HOST));
        host == Some(authority) || parts.extensions.get::<Arc<Guard>>().is_some_and(|guard| guard.is_ours(authority))
    };
    let is_foreign = match header(header::ORIGIN) {
        Some(origin) => !allowed(origin) && !origin.split_once("://").is_some_and(|(_, authority)| ours(authority)),
        // A picture or a script of a page is fetched without `Origin`; a link that somebody follows is fine.
        None => {
            header(HeaderName::from_static("sec-fetch-site")) == Some("cross-site")
                && header(HeaderName::from_static("sec-fetch-mode")) != Some("navigate")
                && !allowed("*")
        }
    };
    if !is_foreign {
        return Ok(());
    }
    Err(ApiError::new(StatusCode::FORBIDDEN, "pages of other sites may not call this function")
        .hint("name the site in `allow_origins` of the trigger's `cors`")
        .log(format!("a page of {:?} called `{}`", header(header::ORIGIN), url.trigger)))
}

/// Checks the token, and takes it out: it is for the gateway, not for the function.
fn check_caller(url: &FunctionUrl, parts: &mut Parts) -> Result<(), ApiError> {
    let Some(guard) = parts.extensions.get::<Arc<Guard>>().filter(|_| url.trigger.auth == Auth::Token) else {
        return Ok(());
    };
    if guard.check_token(&parts.headers, url.token.as_ref())? {
        parts.headers.remove(header::AUTHORIZATION);
    }
    Ok(())
}

async fn event_of(
    shared: &Shared,
    url: &FunctionUrl,
    parts: &Parts,
    parameters: Vec<(String, String)>,
    path: String,
    payload: Body,
) -> Result<Arc<Event>, ApiError> {
    let bytes_max = shared.limits.event_bytes_max;
    let (query, parameters_max) = (parts.uri.query().unwrap_or_default(), shared.limits.url_parameters_max);
    if query.split('&').nth(parameters_max).is_some() {
        let error = format!("the query has more than the {parameters_max} parameters that a request may have");
        return Err(ApiError::new(StatusCode::URI_TOO_LONG, error).hint("send them in the body"));
    }
    let payload = body(shared, payload, bytes_max.0).await?;
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let request = http::Request {
        method: parts.method.as_str().to_owned(),
        protocol: if parts.version == Version::HTTP_10 { "HTTP/1.0" } else { "HTTP/1.1" },
        path: if path.is_empty() { "/".to_owned() } else { path },
        query: query.to_owned(),
        headers: parts.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect(),
        parameters,
        client: parts.extensions.get::<Peer>().and_then(|peer| Some(peer.0?.to_string())),
        body: payload,
        time_ms: shared.clock.now_ms(),
    };
    let event = request.event(url.function.as_str(), &url.trigger);
    if event.data.len() as u64 > bytes_max.0 {
        let error = format!("the request makes an event of {} bytes, more than {bytes_max}", event.data.len());
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, error)
            .hint("send less: bytes that are not text, or are text with many quotes, take more room in an event"));
    }
    Ok(Arc::new(event))
}

fn respond(url: &FunctionUrl, answer: Answer) -> Result<Response, ApiError> {
    let Answer { invocation, outcome, .. } = answer;
    let mut response = match outcome {
        Outcome::Succeeded(value) => match http::answer(url.trigger.event_shape, value) {
            Ok(answer) => written(answer).map_err(|why| malformed(&url.function, &why))?,
            Err(why) => return Err(malformed(&url.function, &why.to_string())),
        },
        outcome => failed(&url.function, &outcome).into_response(),
    };
    response.headers_mut().extend(HeaderValue::from_str(&invocation).ok().map(|id| (INVOCATION, id)));
    Ok(response)
}

/// The answer as HTTP can say it.
fn written(answer: http::Answer) -> Result<Response, String> {
    let status = StatusCode::from_u16(answer.status).map_err(|error| error.to_string())?;
    let has_body = !matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let mut response = Response::new(if has_body { Body::from(answer.body) } else { Body::empty() });
    *response.status_mut() = status;
    for (name, value) in answer.headers {
        let known =
            HeaderName::from_bytes(name.as_bytes()).map_err(|_| format!("`{name}` is not the name of a header"))?;
        let value = match value {
            Cow::Borrowed(value) => HeaderValue::try_from(value),
            Cow::Owned(value) => HeaderValue::try_from(value),
        };
        let value = value.map_err(|_| format!("the value of `{name}` has a line break in it"))?;
        response.headers_mut().try_append(known, value).map_err(|_| "it has too many headers".to_owned())?;
    }
    Ok(response)
}

// What a stranger is told does not say how the gateway is built; its log does.

fn malformed(function: &FunctionName, why: &str) -> ApiError {
    ApiError::new(StatusCode::BAD_GATEWAY, "the function did not answer as it should")
        .log(format!("function `{function}`: {why}"))
}

fn failed(function: &FunctionName, outcome: &Outcome) -> ApiError {
    let error = match outcome {
        // The function's own word to whoever sent the event.
        Outcome::Rejected(why) => ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, why.clone()),
        Outcome::Retry(_) | Outcome::Unavailable(_) => {
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the function cannot answer now")
                .header(header::RETRY_AFTER, HeaderValue::from_static("1"))
        }
        Outcome::TimedOut { .. } => ApiError::new(StatusCode::GATEWAY_TIMEOUT, "the function did not answer in time"),
        _ => ApiError::new(StatusCode::BAD_GATEWAY, "the function failed"),
    };
    if matches!(outcome, Outcome::Rejected(_)) { error } else { error.log(format!("function `{function}` {outcome}")) }
}

fn not_taken(function: &FunctionName, refused: &Refused) -> ApiError {
    match refused {
        Refused::Full { .. } => too_many(),
        // It was removed between the two looks.
        Refused::Unknown(_) => ApiError::new(StatusCode::NOT_FOUND, "there is no such function URL"),
        Refused::Stopping => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the function is being stopped")
            .header(header::RETRY_AFTER, HeaderValue::from_static("5"))
            .log(format!("`{function}` did not take a request: {refused}")),
    }
}

fn too_many() -> ApiError {
    ApiError::new(StatusCode::TOO_MANY_REQUESTS, "the function has too many requests already")
        .header(header::RETRY_AFTER, HeaderValue::from_static("1"))
}

fn wrong_method(parts: &Parts, methods: &[Method]) -> ApiError {
    let methods: Vec<_> = methods.iter().map(|method| method.word()).collect();
    let error =
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, format!("`{}` does not take {}", parts.uri.path(), parts.method));
    match HeaderValue::from_str(&methods.join(", ")) {
        Ok(methods) => error.header(header::ALLOW, methods),
        Err(_) => error,
    }
}

fn nothing(parts: &Parts) -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, format!("there is no function URL `{}`", parts.uri.path()))
}
