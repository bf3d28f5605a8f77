//! People: tokens, roles, the audit log.

use control_plane::audit::Chain;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::Connection as _;

use crate::support::{Cloud, DAY_MS, HOUR_MS};

/// Each call with the least role that may make it, and a body when it takes one.
fn calls(now_ms: u64) -> Vec<(Method, &'static str, &'static str, Option<Value>)> {
    let claim = json!({"expires_ms": now_ms + DAY_MS});
    vec![
        (Method::GET, "/v1/records", "viewer", None),
        (Method::GET, "/v1/claims", "viewer", None),
        (Method::POST, "/v1/claims", "operator", Some(claim)),
        (Method::DELETE, "/v1/claims/none", "operator", None),
        (Method::POST, "/v1/gateways/hall-9/certificates", "operator", Some(json!({"certificate": "none"}))),
        (Method::DELETE, "/v1/gateways/hall-9", "operator", None),
        (Method::GET, "/v1/audit", "operator", None),
        (Method::GET, "/v1/audit/verify", "operator", None),
        (Method::GET, "/v1/tokens", "admin", None),
        (Method::POST, "/v1/tokens", "admin", Some(json!({"name": "x", "role": "viewer"}))),
        (Method::DELETE, "/v1/tokens/none", "admin", None),
    ]
}

#[tokio::test]
async fn a_role_may_do_its_own_and_not_more() {
    let cloud = Cloud::start().await;
    let roles = ["viewer", "publisher", "operator", "admin"];
    let nobody = cloud.caller(None, None);
    for (n, role) in roles.iter().enumerate() {
        let person = cloud.person(role).await;
        for (method, path, least, body) in calls(cloud.now_ms()) {
            let (status, answer) = person.call(method.clone(), path, body.as_ref()).await;
            let may = n >= roles.iter().position(|role| *role == least).unwrap();
            assert_eq!(status != StatusCode::FORBIDDEN, may, "{role}: {method} {path}: {status} {answer}");
            assert_ne!(status, StatusCode::UNAUTHORIZED, "{role}: {method} {path}");
            let (status, _) = nobody.call(method.clone(), path, body.as_ref()).await;
            assert_eq!(status, StatusCode::UNAUTHORIZED, "nobody: {method} {path}");
        }
    }
}

#[tokio::test]
async fn a_gateway_is_no_person_and_a_person_is_no_gateway() {
    let cloud = Cloud::start().await;
    let gateway = cloud.gateway("hall-3").await;
    for (method, path, _, body) in calls(cloud.now_ms()) {
        let (status, _) = gateway.caller.call(method.clone(), path, body.as_ref()).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path}");
    }
    let (status, _) = cloud.admin().deliver("hall-3", "").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_stolen_token_is_of_no_use_once_it_is_revoked_or_expired() {
    let cloud = Cloud::start().await;
    let admin = cloud.admin();
    let asked = json!({"name": "anna", "role": "operator", "expires_ms": cloud.now_ms() + HOUR_MS});
    let (_, short) = admin.post("/v1/tokens", &asked).await;
    let anna = cloud.caller(short["token"].as_str(), None);
    assert_eq!(anna.get("/v1/claims").await.0, StatusCode::OK);
    cloud.pass(HOUR_MS);
    let (status, answer) = anna.get("/v1/claims").await;
    assert_eq!((status, answer["error"].as_str()), (StatusCode::UNAUTHORIZED, Some("token `anna` has expired")));

    let (_, long) = admin.post("/v1/tokens", &json!({"name": "ben", "role": "viewer"})).await;
    let ben = cloud.caller(long["token"].as_str(), None);
    assert_eq!(ben.get("/v1/claims").await.0, StatusCode::OK);
    assert_eq!(admin.delete(&format!("/v1/tokens/{}", long["id"].as_str().unwrap())).await, StatusCode::NO_CONTENT);
    assert_eq!(ben.get("/v1/claims").await.0, StatusCode::UNAUTHORIZED);

    let (_, list) = admin.get("/v1/tokens").await;
    let row = list["items"].as_array().unwrap().iter().find(|token| token["name"] == "ben").unwrap().clone();
    assert!(row["used_ms"].is_u64() && row["revoked_ms"].is_u64(), "{row}");
}

#[tokio::test]
async fn a_token_that_is_nearly_right_is_wrong() {
    let cloud = Cloud::start().await;
    let mut last = cloud.admin.clone();
    let end = if last.ends_with('0') { "1" } else { "0" };
    last.replace_range(last.len() - 1.., end);
    for wrong in ["", "x", "tgt1..", "tgt1.a.b", &cloud.admin[..cloud.admin.len() - 1], &last] {
        assert_eq!(cloud.caller(Some(wrong), None).get("/v1/claims").await.0, StatusCode::UNAUTHORIZED, "{wrong}");
    }
}

/// The bytes that it is in hexadecimal.
fn hex(text: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(byte).collect()
}

#[tokio::test]
async fn no_secret_is_kept() {
    let mut cloud = Cloud::start().await;
    let claim = cloud.claim(json!({})).await;
    cloud.stop().await;
    let folder = cloud.plane.folder.path().to_owned();
    let bytes: Vec<u8> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.is_file())
        .flat_map(|path| std::fs::read(path).unwrap())
        .collect();
    let holds = |part: &[u8]| bytes.windows(part.len()).any(|window| window == part);
    assert!(holds(claim.id.as_bytes()), "it was looked at where claims are kept");
    let secret = cloud.admin.rsplit('.').next().unwrap().to_owned();
    for secret in [secret, claim.secret] {
        assert!(!holds(secret.as_bytes()) && !holds(&hex(&secret)));
    }
}

#[tokio::test]
async fn a_change_of_the_audit_log_is_found() {
    let cloud = Cloud::start().await;
    let operator = cloud.person("operator").await;
    cloud.gateway("hall-3").await;
    let (_, listed) = operator.get("/v1/audit").await;
    let did: Vec<&str> =
        listed["items"].as_array().unwrap().iter().filter_map(|line| line["entry"]["did"].as_str()).collect();
    assert_eq!(did, ["init", "root", "make-token", "make-claim", "provision", "certificate"]);

    let (_, exported) = operator.get("/v1/audit?format=jsonl").await;
    let mut chain = Chain::default();
    let exported = exported.as_str().unwrap();
    for line in exported.lines() {
        let (_, rest) = line.split_once("\"entry\":").unwrap();
        let (entry, hash) = rest.rsplit_once(",\"hash\":\"").unwrap();
        assert!(chain.fits(entry, hash.trim_end_matches("\"}")), "{line}");
    }
    assert_eq!(chain.lines, 6);
    let (_, verified) = operator.get("/v1/audit/verify").await;
    assert_eq!((&verified["lines"], &verified["broken"]), (&json!(6), &Value::Null));

    let path = format!("sqlite://{}", cloud.plane.folder.database().display());
    let mut db = sqlx::SqliteConnection::connect(&path).await.unwrap();
    sqlx::query("UPDATE audit SET entry = replace(entry, 'hall-3', 'hall-4') WHERE id = 5")
        .execute(&mut db)
        .await
        .unwrap();
    let (_, verified) = operator.get("/v1/audit/verify").await;
    assert_eq!(verified["broken"], 5);
}
