//! The API as a whole.

use crate::support::{Cloud, report};
use reqwest::Method;
use serde_json::Value;

const OPEN: [&str; 3] = ["/healthz", "/metrics", "/v1/provision"];

/// What gateways alone call.
const GATEWAYS: [(&str, &str); 4] = [
    ("get", "/v1/gateways/{name}/desired"),
    ("post", "/v1/gateways/{name}/reported"),
    ("post", "/v1/gateways/{name}/records"),
    ("post", "/v1/gateways/{name}/renew"),
];

const SIGNED: &str = r#"{"signed": {}, "signatures": []}"#;

/// All that people call to change something or to see what not everybody may: the least role that may, and a body that it takes. A viewer may read
/// the rest.
const ROLES: [(&str, &str, &str, &str); 26] = [
    ("put", "/v1/blobs/{digest}", "publisher", ""),
    ("post", "/v1/releases", "publisher", SIGNED),
    ("put", "/v1/aliases/{kind}/{name}/{alias}", "publisher", r#"{"version": "1.0.0"}"#),
    ("put", "/v1/tags/{kind}/{name}/{version}", "publisher", r#"{"tags": {}}"#),
    ("post", "/v1/deployments/preview", "viewer", "{}"),
    ("post", "/v1/deployments", "operator", SIGNED),
    ("post", "/v1/targets/{kind}/{name}/desired", "operator", r#"{"deployment": 1}"#),
    ("put", "/v1/groups/{name}", "operator", r#"{"gateways": []}"#),
    ("delete", "/v1/groups/{name}", "operator", ""),
    ("delete", "/v1/gateways/{name}", "operator", ""),
    ("put", "/v1/gateways/{name}/shadow", "operator", r#"{"desired": {}, "version": 0}"#),
    ("post", "/v1/gateways/{name}/logs", "operator", r#"{"minutes": 1, "level": "info"}"#),
    ("get", "/v1/gateways/{name}/logs", "operator", ""),
    ("post", "/v1/gateways/{name}/try-again", "operator", TRY_AGAIN),
    ("post", "/v1/gateways/{name}/certificates", "operator", r#"{"certificate": "none"}"#),
    ("post", "/v1/claims", "operator", r#"{"expires_ms": 1}"#),
    ("delete", "/v1/claims/{id}", "operator", ""),
    ("get", "/v1/audit", "operator", ""),
    ("get", "/v1/audit/verify", "operator", ""),
    ("post", "/v1/roots", "admin", SIGNED),
    ("post", "/v1/online-keys", "admin", ""),
    ("post", "/v1/tokens", "admin", r#"{"name": "x", "role": "viewer"}"#),
    ("get", "/v1/tokens", "admin", ""),
    ("delete", "/v1/tokens/{id}", "admin", ""),
    ("head", "/v1/blobs/{digest}", "viewer", ""),
    ("get", "/v1/blobs/{digest}", "viewer", ""),
];

const TRY_AGAIN: &str = r#"{"deployment": "sha256:0000000000000000000000000000000000000000000000000000000000000000"}"#;

/// Each call of the OpenAPI document that is not for all: method and path.
async fn calls(cloud: &Cloud) -> Vec<(String, String)> {
    let document: Value = cloud.raw(Method::GET, "/v1/openapi.json", &[], "").await.ok().json();
    let paths = document["paths"].as_object().unwrap().iter().filter(|(path, _)| !OPEN.contains(&path.as_str()));
    let calls =
        paths.flat_map(|(path, calls)| calls.as_object().unwrap().keys().map(|method| (method.clone(), path.clone())));
    let calls: Vec<_> = calls.collect();
    assert!(calls.len() > 40, "{}", calls.len());
    calls
}

/// The path with something in its places.
fn filled(path: &str) -> String {
    let path = path.replace("{kind}", "function").replace("{number}", "1").replace("{digest}", &"0".repeat(64));
    path.split('/').map(|part| if part.starts_with('{') { "x" } else { part }).collect::<Vec<_>>().join("/")
}

/// [cloud-50] Every call asks who calls, but those that are for all, and the OpenAPI document lists each.
#[tokio::test]
async fn every_call_asks_who_calls() {
    let cloud = Cloud::new().await;
    for (method, path) in calls(&cloud).await {
        let method: Method = method.to_uppercase().parse().unwrap();
        let headers = [("content-type", "application/json")];
        let answer = cloud.raw(method.clone(), &filled(&path), &headers, "{}").await;
        assert_eq!(answer.status, 401, "{method} {path}: {}", String::from_utf8_lossy(&answer.body));
    }
}

/// Every call of the OpenAPI document, so that none which is new is forgotten.
#[tokio::test]
async fn every_call_takes_a_role_and_no_less() {
    let cloud = Cloud::new().await;
    let ask = async |method: &str, path: &str, role: &str, body: &'static str| {
        let headers = [("person", role), ("content-type", "application/json")];
        let method: Method = method.to_uppercase().parse().unwrap();
        cloud.raw(method, &filled(path), &headers, body).await.status
    };
    let roles = ["viewer", "publisher", "operator", "admin"];
    for (method, path) in calls(&cloud).await {
        if GATEWAYS.contains(&(&method, &path)) {
            assert_eq!(ask(&method, &path, "admin", "{}").await, 401, "{method} {path}");
            continue;
        }
        let said = ROLES.iter().find(|(of, at, ..)| (*of, *at) == (&method, &path));
        assert!(said.is_some() || method == "get", "who may {method} {path}?");
        let (least, body) = said.map_or(("viewer", ""), |(.., least, body)| (least, body));
        let least = roles.iter().position(|role| *role == least).unwrap();
        for (n, role) in roles.iter().enumerate() {
            let status = ask(&method, &path, role, body).await;
            assert_eq!(status == 403, n < least, "{role}: {method} {path}: {status}");
            assert_ne!(status, 401, "{role}: {method} {path}");
        }
    }
    for (method, path, ..) in ROLES {
        assert!(calls(&cloud).await.contains(&(method.to_owned(), path.to_owned())), "{method} {path} is no call");
    }
}

/// [cloud-51] Every refusal says what, why not, and what to do.
#[tokio::test]
async fn every_refusal_is_told_the_same_way() {
    let cloud = Cloud::new().await;
    let hint = cloud.raw(Method::GET, "/v1/nothing", &[], "").await.refused(404, "no such call").error();
    assert!(hint.contains("/v1/openapi.json"), "{hint}");
    cloud.get("/v1/gateways/UPPER").await.refused(400, "not a gateway name");
    cloud.get("/v1/gateways?limit=many").await.refused(400, "limit");
    let wrong = [("person", "admin"), ("content-type", "application/json")];
    cloud.raw(Method::POST, "/v1/roots", &wrong, "{").await.refused(400, "");
    cloud.raw(Method::POST, "/v1/roots", &wrong, vec![b' '; 3 << 20]).await.refused(413, "more than");
}

/// [cloud-52] Anybody may see that it works, and figures that name nobody.
#[tokio::test]
async fn health_and_figures_are_open_and_name_nobody() {
    let cloud = Cloud::with_gateways(&["press-1", "press-2"]).await;
    assert_eq!(cloud.raw(Method::GET, "/healthz", &[], "").await.ok().body, b"ok\n");
    cloud.ask("press-1", "", 0).await.ok();
    cloud.report("press-1", &report("boot", 1)).await.ok();
    let figures = String::from_utf8(cloud.raw(Method::GET, "/metrics", &[], "").await.ok().body).unwrap();
    assert!(figures.contains("control_plane_desired_signed_total 1\n"), "{figures}");
    assert!(figures.contains("control_plane_gateways 2\n") && figures.contains("control_plane_gateways_heard 1\n"));
    assert!(!figures.contains("press-1"), "{figures}");
}
