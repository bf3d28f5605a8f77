//! Requests and answers as functions for Amazon API Gateway and Lambda function URLs know them: format 1.0 and format 2.0 of its
//! proxy integration.
//!
//! Where a gateway has nothing to say, a field has the value that it has there for a caller whom nobody knows. Held against the
//! provider's documented examples by the tests.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{Answer, Header, HttpTrigger, Malformed, Request};

/// Whose account it would be.
const ACCOUNT: &str = "anonymous";
const STAGE: &str = "$default";

/// The event in format 1.0.
pub(super) fn version1(request: &Request, id: &str, function: &str, trigger: &HttpTrigger) -> Value {
    let headers = grouped(request.headers.iter().cloned());
    let query = grouped(request.query());
    let (body, is_base64) = body(request, &["application/x-www-form-urlencoded"]);
    let host = request.header("host").unwrap_or_default();
    let resource = trigger.path.to_string();
    json!({
        "version": "1.0",
        "resource": resource,
        "path": request.path,
        "httpMethod": request.method,
        "headers": last(&headers),
        "multiValueHeaders": headers,
        "queryStringParameters": some(last(&query)),
        "multiValueQueryStringParameters": some(query),
        "requestContext": {
            "accountId": ACCOUNT,
            "apiId": function,
            "authorizer": { "claims": null, "scopes": null },
            "domainName": host,
            "domainPrefix": prefix(host),
            "extendedRequestId": id,
            "httpMethod": request.method,
            "identity": {
                "accessKey": null,
                "accountId": null,
                "caller": null,
                "cognitoAuthenticationProvider": null,
                "cognitoAuthenticationType": null,
                "cognitoIdentityId": null,
                "cognitoIdentityPoolId": null,
                "principalOrgId": null,
                "sourceIp": request.client.as_deref().unwrap_or_default(),
                "user": null,
                "userAgent": request.header("user-agent").unwrap_or_default(),
                "userArn": null,
            },
            "path": format!("{}{}", super::PREFIX, request.path),
            "protocol": request.protocol,
            "requestId": id,
            "requestTime": time(request.time_ms),
            "requestTimeEpoch": request.time_ms,
            "resourceId": null,
            "resourcePath": resource,
            "stage": STAGE,
        },
        "pathParameters": some(parameters(request)),
        "stageVariables": null,
        "body": body,
        "isBase64Encoded": is_base64,
    })
}

/// The event in format 2.0.
pub(super) fn version2(request: &Request, id: &str, function: &str, trigger: &HttpTrigger) -> Value {
    let is_cookie = |name: &str| name == "cookie";
    let joined = |grouped: BTreeMap<String, Vec<String>>| -> BTreeMap<String, String> {
        grouped.into_iter().map(|(name, values)| (name, values.join(","))).collect()
    };
    let headers = joined(grouped(request.headers.iter().filter(|(name, _)| !is_cookie(name)).cloned()));
    let query = joined(grouped(request.query()));
    let cookies: Vec<&str> = request
        .headers
        .iter()
        .filter(|(name, _)| is_cookie(name))
        .flat_map(|(_, value)| value.split(';').map(str::trim).filter(|cookie| !cookie.is_empty()))
        .collect();
    let (body, is_base64) = body(request, &[]);
    let host = request.header("host").unwrap_or_default();
    let method = if trigger.methods.is_empty() { "ANY" } else { request.method.as_str() };
    let route = format!("{method} {}", trigger.path);
    let mut event = json!({
        "version": "2.0",
        "routeKey": route,
        "rawPath": request.path,
        "rawQueryString": request.query,
        "headers": headers,
        "requestContext": {
            "accountId": ACCOUNT,
            "apiId": function,
            "domainName": host,
            "domainPrefix": prefix(host),
            "http": {
                "method": request.method,
                "path": request.path,
                "protocol": request.protocol,
                "sourceIp": request.client.as_deref().unwrap_or_default(),
                "userAgent": request.header("user-agent").unwrap_or_default(),
            },
            "requestId": id,
            "routeKey": route,
            "stage": STAGE,
            "time": time(request.time_ms),
            "timeEpoch": request.time_ms,
        },
        "isBase64Encoded": is_base64,
    });
    // What there is none of is left out, not null, in this format.
    let optional = [
        ("cookies", (!cookies.is_empty()).then(|| json!(cookies))),
        ("queryStringParameters", some(query).map(|query| json!(query))),
        ("pathParameters", some(parameters(request)).map(|parameters| json!(parameters))),
        ("body", body.map(Value::String)),
    ];
    if let Value::Object(event) = &mut event {
        event.extend(optional.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    }
    event
}

/// An answer in format 1.0.
pub(super) fn answer1(value: &[u8]) -> Result<Answer, Malformed> {
    answer_as_it_is(value).map(typed)
}

/// The same of a function that says itself what its body is, or does not.
pub(super) fn answer_as_it_is(value: &[u8]) -> Result<Answer, Malformed> {
    match parse(value)? {
        Value::Object(answer) if answer.contains_key("statusCode") => structured(&answer),
        Value::Object(_) => fail("it has no `statusCode`"),
        other => fail(format!("{} is not an object with a `statusCode`", kind(&other))),
    }
}

/// An answer in format 2.0: without a `statusCode` all of it is the body.
pub(super) fn answer2(value: Bytes) -> Result<Answer, Malformed> {
    let body = match parse(&value)? {
        Value::Object(answer) if answer.contains_key("statusCode") => return structured(&answer).map(typed),
        Value::String(text) => text.into(),
        _ => value,
    };
    Ok(Answer { status: 200, headers: vec![json_type()], body })
}

/// A body without a type is JSON.
fn typed(mut answer: Answer) -> Answer {
    if !answer.body.is_empty() && !answer.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
        answer.headers.push(json_type());
    }
    answer
}

fn structured(answer: &Map<String, Value>) -> Result<Answer, Malformed> {
    let status = match &answer["statusCode"] {
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    let Some(status) = status.and_then(|status| u16::try_from(status).ok()).filter(|s| (200..600).contains(s)) else {
        return fail(format!("`statusCode` is {}, and must be a number from 200 to 599", answer["statusCode"]));
    };
    let mut headers: Vec<Header> = Vec::new();
    let multiple = object(answer, "multiValueHeaders")?;
    for (name, values) in multiple.into_iter().flatten() {
        let Value::Array(values) = values else {
            return fail(format!("`{name}` in `multiValueHeaders` is {}, and must be a list", kind(values)));
        };
        for value in values {
            headers.push((name.clone().into(), text(name, value)?.into()));
        }
    }
    for (name, value) in object(answer, "headers")?.into_iter().flatten() {
        let header = (name.clone().into(), text(name, value)?.into());
        if !headers.contains(&header) {
            headers.push(header);
        }
    }
    match answer.get("cookies") {
        None | Some(Value::Null) => {}
        Some(Value::Array(cookies)) => {
            for cookie in cookies {
                headers.push(("set-cookie".into(), text("cookies", cookie)?.into()));
            }
        }
        Some(other) => return fail(format!("`cookies` is {}, and must be a list", kind(other))),
    }
    headers.retain(|(name, _)| !is_between_neighbours(name));
    let is_base64 = match answer.get("isBase64Encoded") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(is)) => *is,
        Some(other) => return fail(format!("`isBase64Encoded` is {}, and must be true or false", kind(other))),
    };
    let body: Bytes = match answer.get("body") {
        None | Some(Value::Null) => Bytes::new(),
        Some(Value::String(body)) if is_base64 => match STANDARD.decode(body.trim()) {
            Ok(body) => body.into(),
            Err(error) => return fail(format!("`body` is not base64, as `isBase64Encoded` says: {error}")),
        },
        Some(Value::String(body)) => body.clone().into(),
        Some(other) => return fail(format!("`body` is {}, and must be a text: encode it as JSON", kind(other))),
    };
    Ok(Answer { status, headers, body })
}

/// Headers that are about one connection, or that are made of the body.
fn is_between_neighbours(name: &str) -> bool {
    const NAMES: [&str; 9] = [
        "connection",
        "content-length",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
    ];
    NAMES.iter().any(|known| name.eq_ignore_ascii_case(known))
}

fn json_type() -> Header {
    ("content-type".into(), "application/json".into())
}

fn parse(value: &[u8]) -> Result<Value, Malformed> {
    serde_json::from_slice(value).map_err(|error| Malformed(format!("it is not JSON: {error}")))
}

fn object<'a>(answer: &'a Map<String, Value>, key: &str) -> Result<Option<&'a Map<String, Value>>, Malformed> {
    match answer.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(object)) => Ok(Some(object)),
        Some(other) => fail(format!("`{key}` is {}, and must be an object", kind(other))),
    }
}

fn text(name: &str, value: &Value) -> Result<String, Malformed> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(value) => Ok(value.to_string()),
        other => fail(format!("the value of `{name}` is {}, and must be a text", kind(other))),
    }
}

fn fail<T>(why: impl Into<String>) -> Result<T, Malformed> {
    Err(Malformed(why.into()))
}

const fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The body, and whether it is base64: so is what is not text, or does not say that it is. `more` are types of text beside the usual.
fn body(request: &Request, more: &[&str]) -> (Option<String>, bool) {
    if request.body.is_empty() {
        return (None, false);
    }
    let content_type = request.header("content-type").unwrap_or("application/json");
    let media = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_text = media.starts_with("text/")
        || ["application/json", "application/javascript", "application/xml"].contains(&&*media)
        || media.ends_with("+json")
        || media.ends_with("+xml")
        || more.contains(&&*media);
    let is_packed = request.header("content-encoding").is_some_and(|encoding| encoding != "identity");
    match std::str::from_utf8(&request.body) {
        Ok(text) if is_text && !is_packed => (Some(text.to_owned()), false),
        _ => (Some(STANDARD.encode(&request.body)), true),
    }
}

fn grouped(pairs: impl Iterator<Item = (String, String)>) -> BTreeMap<String, Vec<String>> {
    let mut grouped: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in pairs {
        grouped.entry(name).or_default().push(value);
    }
    grouped
}

fn last(grouped: &BTreeMap<String, Vec<String>>) -> BTreeMap<String, String> {
    grouped.iter().filter_map(|(name, values)| Some((name.clone(), values.last()?.clone()))).collect()
}

fn parameters(request: &Request) -> BTreeMap<String, String> {
    request.parameters.iter().cloned().collect()
}

fn some<V>(map: BTreeMap<String, V>) -> Option<BTreeMap<String, V>> {
    (!map.is_empty()).then_some(map)
}

/// The first label of a host.
fn prefix(host: &str) -> &str {
    host.split(['.', ':']).next().unwrap_or_default()
}

/// `12/Mar/2020:19:03:58 +0000`.
fn time(ms: u64) -> String {
    let time = i64::try_from(ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok()).unwrap_or_default();
    time.strftime("%d/%b/%Y:%H:%M:%S +0000").to_string()
}

#[cfg(test)]
mod tests;
