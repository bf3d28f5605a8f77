//! Against the examples of the provider's documentation: its developer guide of API Gateway (proxy integrations, formats 1.0 and 2.0)
//! and of Lambda (function URLs).

use std::collections::BTreeSet;

use super::super::{Auth, EventShape, PathTemplate};
use super::*;

/// The request that the documentation's examples are of: two headers, one of them twice, and a query with one parameter twice.
fn documented() -> Request {
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    Request {
        method: "POST".into(),
        protocol: "HTTP/1.1",
        path: "/my/path".into(),
        query: "parameter1=value1&parameter1=value2&parameter2=value".into(),
        headers: vec![
            header("header1", "value1"),
            header("header2", "value1"),
            header("header2", "value2"),
            header("cookie", "cookie1; cookie2"),
            header("host", "id.execute-api.us-east-1.amazonaws.com"),
            header("user-agent", "agent"),
        ],
        parameters: vec![("parameter1".into(), "value1".into())],
        client: Some("192.0.2.1".into()),
        body: "Hello from Lambda".into(),
        time_ms: 1_583_348_638_390,
    }
}

fn trigger(path: &str) -> HttpTrigger {
    HttpTrigger {
        path: PathTemplate::parse(path).unwrap(),
        methods: vec![super::super::Method::Post],
        event_shape: EventShape::ApigwV2,
        auth: Auth::None,
        token_file: None,
        cors: None,
    }
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

fn set<'a>(names: &[&'a str]) -> BTreeSet<&'a str> {
    names.iter().copied().collect()
}

#[test]
fn format_2_has_the_fields_and_forms_of_the_documented_event() {
    let event = version2(&documented(), "id", "orders", &trigger("/my/{parameter1}"));
    assert_eq!(
        keys(&event),
        set(&[
            "version",
            "routeKey",
            "rawPath",
            "rawQueryString",
            "cookies",
            "headers",
            "queryStringParameters",
            "requestContext",
            "body",
            "pathParameters",
            "isBase64Encoded",
        ])
    );
    assert_eq!(event["version"], "2.0");
    assert_eq!(event["routeKey"], "POST /my/{parameter1}");
    assert_eq!(event["rawPath"], "/my/path");
    assert_eq!(event["rawQueryString"], "parameter1=value1&parameter1=value2&parameter2=value");
    assert_eq!(event["cookies"], json!(["cookie1", "cookie2"]));
    let headers = json!({ "header1": "value1", "header2": "value1,value2", "user-agent": "agent",
        "host": "id.execute-api.us-east-1.amazonaws.com" });
    assert_eq!(event["headers"], headers);
    assert_eq!(event["queryStringParameters"], json!({ "parameter1": "value1,value2", "parameter2": "value" }));
    assert_eq!(event["pathParameters"], json!({ "parameter1": "value1" }));
    assert_eq!(event["body"], "Hello from Lambda");
    assert_eq!(event["isBase64Encoded"], false);
    let context = &event["requestContext"];
    assert_eq!(
        keys(context),
        set(&[
            "accountId",
            "apiId",
            "domainName",
            "domainPrefix",
            "http",
            "requestId",
            "routeKey",
            "stage",
            "time",
            "timeEpoch",
        ])
    );
    let http = json!({ "method": "POST", "path": "/my/path", "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1", "userAgent": "agent" });
    assert_eq!(context["http"], http);
    assert_eq!((&context["domainName"], &context["domainPrefix"]), (&headers["host"], &json!("id")));
    assert_eq!((&context["stage"], &context["requestId"]), (&json!("$default"), &json!("id")));
    assert_eq!(
        (&context["time"], &context["timeEpoch"]),
        (&json!("04/Mar/2020:19:03:58 +0000"), &json!(1_583_348_638_390_u64))
    );
}

#[test]
fn format_2_leaves_out_what_there_is_none_of() {
    let request = Request { method: "GET".into(), path: "/".into(), ..Request::default() };
    let event = version2(&request, "id", "orders", &HttpTrigger { methods: vec![], ..trigger("/") });
    let expected =
        set(&["version", "routeKey", "rawPath", "rawQueryString", "headers", "requestContext", "isBase64Encoded"]);
    assert_eq!(keys(&event), expected);
    assert_eq!((&event["routeKey"], &event["rawQueryString"]), (&json!("ANY /"), &json!("")));
}

#[test]
fn format_1_has_the_fields_and_forms_of_the_documented_event() {
    let event = version1(&documented(), "id", "orders", &trigger("/my/{parameter1}"));
    assert_eq!(
        keys(&event),
        set(&[
            "version",
            "resource",
            "path",
            "httpMethod",
            "headers",
            "multiValueHeaders",
            "queryStringParameters",
            "multiValueQueryStringParameters",
            "requestContext",
            "pathParameters",
            "stageVariables",
            "body",
            "isBase64Encoded",
        ])
    );
    assert_eq!((&event["version"], &event["resource"]), (&json!("1.0"), &json!("/my/{parameter1}")));
    assert_eq!((&event["path"], &event["httpMethod"]), (&json!("/my/path"), &json!("POST")));
    assert_eq!((&event["headers"]["header1"], &event["headers"]["header2"]), (&json!("value1"), &json!("value2")));
    assert_eq!(event["multiValueHeaders"]["header2"], json!(["value1", "value2"]));
    assert_eq!(event["multiValueHeaders"]["cookie"], json!(["cookie1; cookie2"]));
    assert_eq!(event["queryStringParameters"], json!({ "parameter1": "value2", "parameter2": "value" }));
    let multiple = json!({ "parameter1": ["value1", "value2"], "parameter2": ["value"] });
    assert_eq!(event["multiValueQueryStringParameters"], multiple);
    assert_eq!(event["pathParameters"], json!({ "parameter1": "value1" }));
    assert_eq!((&event["stageVariables"], &event["isBase64Encoded"]), (&Value::Null, &json!(false)));
    let context = &event["requestContext"];
    assert_eq!(
        keys(context),
        set(&[
            "accountId",
            "apiId",
            "authorizer",
            "domainName",
            "domainPrefix",
            "extendedRequestId",
            "httpMethod",
            "identity",
            "path",
            "protocol",
            "requestId",
            "requestTime",
            "requestTimeEpoch",
            "resourceId",
            "resourcePath",
            "stage",
        ])
    );
    assert_eq!(
        keys(&context["identity"]),
        set(&[
            "accessKey",
            "accountId",
            "caller",
            "cognitoAuthenticationProvider",
            "cognitoAuthenticationType",
            "cognitoIdentityId",
            "cognitoIdentityPoolId",
            "principalOrgId",
            "sourceIp",
            "user",
            "userAgent",
            "userArn",
        ])
    );
    assert_eq!((&context["path"], &context["resourcePath"]), (&json!("/fn/my/path"), &event["resource"]));
    assert_eq!(
        (&context["requestTime"], &context["requestTimeEpoch"]),
        (&json!("04/Mar/2020:19:03:58 +0000"), &json!(1_583_348_638_390_u64))
    );
}

#[test]
fn format_1_has_null_where_there_is_none() {
    let request = Request { method: "GET".into(), path: "/".into(), ..Request::default() };
    let event = version1(&request, "id", "orders", &trigger("/"));
    for field in
        ["queryStringParameters", "multiValueQueryStringParameters", "pathParameters", "stageVariables", "body"]
    {
        assert_eq!(event[field], Value::Null, "{field}");
    }
}

#[test]
fn a_body_that_is_not_text_comes_as_base64() {
    #[track_caller]
    fn check(content_type: Option<&str>, body: &'static [u8], version: u8, expected: (&str, bool)) {
        let headers = content_type.map(|value| ("content-type".to_owned(), value.to_owned()));
        let request = Request { headers: headers.into_iter().collect(), body: body.into(), ..Request::default() };
        let make = if version == 1 { version1 } else { version2 };
        let event = make(&request, "id", "orders", &trigger("/"));
        assert_eq!(
            (&event["body"], &event["isBase64Encoded"]),
            (&json!(expected.0), &json!(expected.1)),
            "{content_type:?}"
        );
    }
    check(Some("application/json; charset=utf-8"), b"{}", 2, ("{}", false));
    check(Some("application/vnd.api+json"), b"{}", 2, ("{}", false));
    check(Some("text/csv"), "ä".as_bytes(), 2, ("ä", false));
    check(None, b"{}", 2, ("{}", false));
    check(Some("text/plain"), b"\xff", 2, ("/w==", true));
    check(Some("application/octet-stream"), b"{}", 2, ("e30=", true));
    check(Some("application/x-www-form-urlencoded"), b"a=1", 2, ("YT0x", true));
    check(Some("application/x-www-form-urlencoded"), b"a=1", 1, ("a=1", false));
}

#[track_caller]
fn answers(version: u8, value: &str, status: u16, headers: &[(&str, &str)], body: &[u8]) {
    let answer = if version == 1 { answer1(value.as_bytes()) } else { answer2(value.to_owned().into()) };
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned().into(), (*value).to_owned().into())).collect();
    assert_eq!(answer, Ok(Answer { status, headers, body: body.to_vec().into() }), "{value}");
}

#[track_caller]
fn is_malformed(version: u8, value: &str, why: &str) {
    let answer = if version == 1 { answer1(value.as_bytes()) } else { answer2(value.to_owned().into()) };
    let told = answer.unwrap_err().to_string();
    assert!(told.contains(why), "{value}: {told}");
}

const JSON: (&str, &str) = ("content-type", "application/json");

/// The table of "response payload format" for function URLs.
#[test]
fn format_2_infers_an_answer_that_has_no_status() {
    answers(2, "\"Hello, world!\"", 200, &[JSON], b"Hello, world!");
    answers(2, "{ \"message\": \"Hello, world!\" }", 200, &[JSON], b"{ \"message\": \"Hello, world!\" }");
    answers(2, "[1, 2]", 200, &[JSON], b"[1, 2]");
    answers(2, "null", 200, &[JSON], b"null");
    answers(
        2,
        r#"{ "statusCode": 201, "headers": { "Content-Type": "application/json", "My-Custom-Header": "Custom Value" },
             "body": "{ \"message\": \"Hello, world!\" }", "cookies": [ "Cookie_1=Value1; Expires=21 Oct 2021 07:48 GMT",
             "Cookie_2=Value2; Max-Age=78000" ], "isBase64Encoded": false }"#,
        201,
        &[
            ("Content-Type", "application/json"),
            ("My-Custom-Header", "Custom Value"),
            ("set-cookie", "Cookie_1=Value1; Expires=21 Oct 2021 07:48 GMT"),
            ("set-cookie", "Cookie_2=Value2; Max-Age=78000"),
        ],
        b"{ \"message\": \"Hello, world!\" }",
    );
}

#[test]
fn format_1_takes_headers_with_one_value_and_with_several() {
    answers(
        1,
        r#"{ "statusCode": "200", "headers": { "a": "1", "b": 2 }, "multiValueHeaders": { "a": ["1", "3"] }, "body": "x" }"#,
        200,
        &[("a", "1"), ("a", "3"), ("b", "2"), JSON],
        b"x",
    );
    answers(1, r#"{ "statusCode": 204 }"#, 204, &[], b"");
}

#[test]
fn an_answer_in_base64_is_bytes() {
    for version in [1, 2] {
        let value = r#"{ "statusCode": 200, "headers": { "content-type": "image/png" }, "body": "/wA=", "isBase64Encoded": true }"#;
        answers(version, value, 200, &[("content-type", "image/png")], b"\xff\0");
    }
}

#[test]
fn headers_that_are_for_the_connection_are_not_the_functions_to_set() {
    let value = r#"{ "statusCode": 200, "headers": { "Connection": "close", "Transfer-Encoding": "chunked", "Content-Length": "9" } }"#;
    answers(2, value, 200, &[], b"");
}

#[test]
fn an_answer_that_is_malformed_says_what_is_wrong() {
    is_malformed(1, "{}", "it has no `statusCode`");
    is_malformed(1, "\"Hello\"", "a text is not an object with a `statusCode`");
    for version in [1, 2] {
        is_malformed(version, "Hello", "it is not JSON");
        is_malformed(version, r#"{ "statusCode": 99 }"#, "`statusCode` is 99");
        is_malformed(version, r#"{ "statusCode": "ok" }"#, "`statusCode` is \"ok\"");
        is_malformed(version, r#"{ "statusCode": 200, "body": {} }"#, "`body` is an object, and must be a text");
        is_malformed(version, r#"{ "statusCode": 200, "headers": [] }"#, "`headers` is a list");
        is_malformed(version, r#"{ "statusCode": 200, "headers": { "a": {} } }"#, "the value of `a` is an object");
        is_malformed(
            version,
            r#"{ "statusCode": 200, "multiValueHeaders": { "a": "b" } }"#,
            "`a` in `multiValueHeaders`",
        );
        is_malformed(version, r#"{ "statusCode": 200, "body": "%", "isBase64Encoded": true }"#, "is not base64");
        is_malformed(version, r#"{ "statusCode": 200, "isBase64Encoded": 1 }"#, "`isBase64Encoded` is a number");
        is_malformed(version, r#"{ "statusCode": 200, "cookies": "a=b" }"#, "`cookies` is a text");
    }
}
