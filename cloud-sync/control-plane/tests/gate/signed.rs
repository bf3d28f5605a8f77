//! Requests that a gateway signs, where a proxy ends TLS.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{KeyPair, PKCS_ED25519, SigningKey as _};
use reqwest::{Method, StatusCode};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use sync_protocol::request::{
    CERTIFICATE, CONTENT_DIGEST, Covered, SIGNATURE, SIGNATURE_INPUT, content_digest, signature,
};

use crate::support::{Caller, Cloud, DAY_MS, Gateway, csr, line};

/// A request as a proxy sees it: it can be sent as it is, changed, and sent again.
#[derive(Clone)]
struct Signed {
    path: String,
    headers: Vec<(&'static str, String)>,
    body: String,
}

fn sign(gateway: &Gateway, path: &str, body: &str, created: u64, nonce: &str) -> Signed {
    let digest = content_digest(body.as_bytes());
    let covered = Covered { method: "POST", path, query: "", content_digest: &digest, created, nonce };
    let chain = CertificateDer::pem_slice_iter(gateway.chain.as_bytes()).map(|der| STANDARD.encode(der.unwrap()));
    let headers = vec![
        (CERTIFICATE, chain.collect::<Vec<_>>().join(",")),
        (SIGNATURE_INPUT, covered.signature_input()),
        (SIGNATURE, signature(&gateway.key.sign(covered.base().as_bytes()).unwrap())),
        (CONTENT_DIGEST, digest.clone()),
        ("content-type", "application/json".to_owned()),
    ];
    Signed { path: path.to_owned(), headers, body: body.to_owned() }
}

async fn send(proxy: &Caller, signed: &Signed) -> (StatusCode, Value) {
    let mut request = proxy.request(Method::POST, &signed.path).body(signed.body.clone());
    for (name, value) in &signed.headers {
        request = request.header(*name, value);
    }
    let answer = request.send().await.unwrap();
    (answer.status(), serde_json::from_str(&answer.text().await.unwrap()).unwrap_or(Value::Null))
}

const RECORDS: &str = "/v1/gateways/hall-3/records";

#[tokio::test]
async fn a_signed_request_counts_once() {
    let cloud = Cloud::start().await;
    let proxy = cloud.caller(None, None);
    let claim = cloud.claim(json!({"uses": 2, "name_prefix": "hall-"})).await;
    for key in [KeyPair::generate().unwrap(), KeyPair::generate_for(&PKCS_ED25519).unwrap()] {
        let name = if key.is_compatible(&PKCS_ED25519) { "hall-4" } else { "hall-3" };
        let gateway = cloud.let_in(&claim, name, key).await;
        let path = format!("/v1/gateways/{name}/records");
        let signed = sign(&gateway, &path, &line(1, "1"), cloud.now_ms() / 1000, "n1");
        let (status, answer) = send(&proxy, &signed).await;
        assert_eq!((status, answer), (StatusCode::OK, json!({"acked": 1})));
        let (status, answer) = send(&proxy, &signed).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{answer}");
    }
}

#[tokio::test]
async fn who_is_in_between_can_change_nothing() {
    let cloud = Cloud::start().await;
    let (gateway, proxy) = (cloud.gateway("hall-3").await, cloud.caller(None, None));
    let other = cloud.gateway("hall-4").await;
    let good = sign(&gateway, RECORDS, &line(1, "1"), cloud.now_ms() / 1000, "n1");
    let with = |name: &'static str, value: String| {
        let mut signed = good.clone();
        signed.headers.iter_mut().find(|(header, _)| *header == name).unwrap().1 = value;
        signed
    };
    let of_other = sign(&other, RECORDS, &line(1, "1"), cloud.now_ms() / 1000, "n1");
    let changed = line(1, "2");
    let wrong = [
        ("body", Signed { body: changed.clone(), ..good.clone() }),
        (
            "body and digest",
            Signed { body: changed.clone(), ..with(CONTENT_DIGEST, content_digest(changed.as_bytes())) },
        ),
        ("path", Signed { path: "/v1/gateways/hall-3/renew".to_owned(), ..good.clone() }),
        ("query", Signed { path: format!("{RECORDS}?x=1"), ..good.clone() }),
        ("signature of another", with(SIGNATURE, of_other.headers[2].1.clone())),
        ("certificate of another", with(CERTIFICATE, of_other.headers[0].1.clone())),
        ("no certificate", with(CERTIFICATE, "x".to_owned())),
        ("later", with(SIGNATURE_INPUT, of_other.headers[1].1.replace("n1", "n2"))),
    ];
    for (what, signed) in wrong {
        let (status, answer) = send(&proxy, &signed).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{what}: {answer}");
    }
    assert_eq!(send(&proxy, &of_other).await.0, StatusCode::FORBIDDEN);
    assert_eq!(send(&proxy, &good).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_request_of_another_time_is_refused_with_the_time_of_now() {
    let cloud = Cloud::start().await;
    let (gateway, proxy) = (cloud.gateway("hall-3").await, cloud.caller(None, None));
    let now = cloud.now_ms() / 1000;
    for created in [0, now - 301, now + 400] {
        let signed = sign(&gateway, RECORDS, &line(1, "1"), created, "n");
        let (status, answer) = send(&proxy, &signed).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{answer}");
        assert!(answer["error"].as_str().unwrap().contains("it is"), "{answer}");
    }
}

/// What was remembered is gone then, so what was signed before does not count.
#[tokio::test]
async fn a_request_cannot_be_sent_again_over_a_restart() {
    let mut cloud = Cloud::start().await;
    let gateway = cloud.gateway("hall-3").await;
    let signed = sign(&gateway, RECORDS, &line(1, "1"), cloud.now_ms() / 1000, "n");
    assert_eq!(send(&cloud.caller(None, None), &signed).await.0, StatusCode::OK);
    cloud.pass(2_000);
    cloud.restart().await;
    assert_eq!(send(&cloud.caller(None, None), &signed).await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn an_expired_certificate_is_renewed_by_a_signed_request_too() {
    let cloud = Cloud::start().await;
    let (gateway, proxy) = (cloud.gateway("hall-3").await, cloud.caller(None, None));
    cloud.pass(200 * DAY_MS);
    let now = cloud.now_ms() / 1000;
    let refused = sign(&gateway, RECORDS, &line(1, "1"), now, "n1");
    assert_eq!(send(&proxy, &refused).await.0, StatusCode::FORBIDDEN);
    let body = json!({"csr": csr(&gateway.key)}).to_string();
    let (status, answer) = send(&proxy, &sign(&gateway, "/v1/gateways/hall-3/renew", &body, now, "n2")).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let gateway = Gateway::of(&cloud, answer, gateway.key);
    assert_eq!(send(&proxy, &sign(&gateway, RECORDS, &line(1, "1"), now, "n3")).await.0, StatusCode::OK);
}
