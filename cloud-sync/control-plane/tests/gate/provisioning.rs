//! Claims: who gets in by one, and who does not.

use rcgen::{CertificateParams, DnType, IsCa, KeyPair, PKCS_ED25519, SanType};
use reqwest::StatusCode;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;
use sync_protocol::Digest;
use sync_protocol::name::GatewayName;

use crate::support::{Cloud, DAY_MS, Gateway, csr, line};

#[tokio::test]
async fn a_claim_lets_in_as_many_as_it_says() {
    let cloud = Cloud::start().await;
    let claim = cloud.claim(json!({"uses": 2, "groups": ["presses"]})).await;
    for name in ["hall-1", "hall-2"] {
        let gateway = cloud.let_in(&claim, name, KeyPair::generate().unwrap()).await;
        assert_eq!((gateway.name.as_str(), &gateway.groups[..]), (name, &["presses".to_owned()][..]));
        assert_eq!(gateway.deliver(&line(1, "1")).await.0, StatusCode::OK);
    }
    let (status, answer) = cloud.provision(&claim, "hall-3", &csr(&KeyPair::generate().unwrap()), "n3").await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
    let (_, claims) = cloud.admin().get("/v1/claims").await;
    assert_eq!((&claims["items"][0]["uses"], &claims["items"][0]["uses_max"]), (&json!(2), &json!(2)));
}

#[tokio::test]
async fn a_claim_lets_nobody_in_once_it_has_expired_or_was_revoked() {
    let cloud = Cloud::start().await;
    let key = KeyPair::generate().unwrap();
    let (expired, revoked) =
        (cloud.claim(json!({})).await, cloud.claim(json!({"expires_ms": cloud.now_ms() + 9 * DAY_MS})).await);
    assert_eq!(cloud.admin().delete(&format!("/v1/claims/{}", revoked.id)).await, StatusCode::NO_CONTENT);
    cloud.pass(DAY_MS);
    for claim in [expired, revoked] {
        let (status, answer) = cloud.provision(&claim, "hall-1", &csr(&key), "n").await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
    }
    let mut guessed = cloud.claim(json!({})).await;
    guessed.secret = "0".repeat(64);
    assert_eq!(cloud.provision(&guessed, "hall-1", &csr(&key), "n").await.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_request_whose_answer_was_lost_is_answered_the_same_again() {
    let cloud = Cloud::start().await;
    let claim = cloud.claim(json!({"name_prefix": "hall-"})).await;
    let key = KeyPair::generate().unwrap();
    let (_, first) = cloud.provision(&claim, "hall-3", &csr(&key), "nonce").await;
    cloud.pass(2 * DAY_MS);
    let (status, again) = cloud.provision(&claim, "hall-3", &csr(&key), "nonce").await;
    assert_eq!((status, &again["name"]), (StatusCode::OK, &first["name"]), "{again}");
    let gateway = Gateway::of(&cloud, again, key);
    assert_eq!(gateway.deliver(&line(1, "1")).await.0, StatusCode::OK);

    let thief = KeyPair::generate().unwrap();
    let (status, answer) = cloud.provision(&claim, "hall-3", &csr(&thief), "nonce").await;
    assert_eq!(status, StatusCode::CONFLICT, "{answer}");
}

#[tokio::test]
async fn a_name_that_is_taken_gets_a_number_or_is_refused() {
    let cloud = Cloud::start().await;
    cloud.gateway("hall-3").await;
    let plain = cloud.claim(json!({})).await;
    let (status, answer) = cloud.provision(&plain, "hall-3", &csr(&KeyPair::generate().unwrap()), "n").await;
    assert_eq!((status, answer["error"].as_str()), (StatusCode::CONFLICT, Some("there is a gateway `hall-3` already")));

    let image = cloud.claim(json!({"uses": 9, "name_prefix": "hall-"})).await;
    let mut names = Vec::new();
    for wanted in ["hall-3", "raspberrypi", "raspberrypi"] {
        let key = KeyPair::generate().unwrap();
        let nonce = format!("n{}", names.len());
        let (_, answer) = cloud.provision(&image, wanted, &csr(&key), &nonce).await;
        names.push(answer["name"].as_str().unwrap().to_owned());
    }
    assert_eq!(names, ["hall-3-2", "hall-raspberrypi", "hall-raspberrypi-2"]);
}

#[tokio::test]
async fn of_what_a_gateway_asks_for_only_its_key_counts() {
    let cloud = Cloud::start().await;
    let claim = cloud.claim(json!({})).await;
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let mut greedy = CertificateParams::default();
    greedy.distinguished_name.push(DnType::CommonName, "hall-1");
    greedy.subject_alt_names = vec![SanType::DnsName("localhost".try_into().unwrap())];
    greedy.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let csr = greedy.serialize_request(&key).unwrap().pem().unwrap();
    let (status, answer) = cloud.provision(&claim, "hall-3", &csr, "n").await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let der = CertificateDer::from_pem_slice(answer["certificate"].as_str().unwrap().as_bytes()).unwrap();
    let (_, issued) = x509_parser::parse_x509_certificate(&der).unwrap();
    assert_eq!(issued.subject().to_string(), "CN=hall-3");
    assert!(!issued.is_ca());
    let names = issued.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names.len(), 1);
    assert!(names.value.general_names[0].to_string().contains("urn:tidegate:gateway:hall-3"));
    assert_eq!(issued.public_key().subject_public_key.as_ref(), key.public_key_raw());
}

#[tokio::test]
async fn who_has_not_the_key_gets_no_certificate_for_it() {
    let cloud = Cloud::start().await;
    let claim = cloud.claim(json!({})).await;
    let real = pem::decode(&csr(&KeyPair::generate().unwrap()));
    let mut forged = real.clone();
    *forged.last_mut().unwrap() ^= 1;
    for wrong in
        [pem::encode(&forged), pem::encode(&real[..real.len() / 2]), "no request".to_owned(), "A".repeat(20_000)]
    {
        let (status, answer) = cloud.provision(&claim, "hall-3", &wrong, "n").await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{answer}");
    }
    let rsa = include_str!("rsa.csr.pem");
    assert_eq!(cloud.provision(&claim, "hall-3", rsa, "n").await.0, StatusCode::OK);
}

/// PEM of requests, taken apart.
mod pem {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    pub(super) fn decode(text: &str) -> Vec<u8> {
        let lines: String = text.lines().filter(|line| !line.starts_with("-----")).collect();
        STANDARD.decode(lines).unwrap()
    }

    pub(super) fn encode(der: &[u8]) -> String {
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n", STANDARD.encode(der))
    }
}

#[tokio::test]
async fn a_machine_is_replaced_only_by_a_claim_that_says_so() {
    let cloud = Cloud::start().await;
    let old = cloud.gateway("hall-3").await;
    let claim = cloud.claim(json!({"replaces": "hall-3", "groups": ["presses"]})).await;
    let new = cloud.let_in(&claim, "raspberrypi", KeyPair::generate().unwrap()).await;
    assert_eq!((new.name.as_str(), &new.groups[..]), ("hall-3", &["presses".to_owned()][..]));
    assert_eq!(new.deliver(&line(1, "1")).await.0, StatusCode::OK);
    assert_eq!(old.deliver(&line(1, "1")).await.0, StatusCode::FORBIDDEN);
    assert_eq!(old.renew().await.0, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn a_claim_pins_the_authority_and_the_root() {
    let cloud = Cloud::start().await;
    let claim = cloud.claim(json!({})).await;
    let (_, roots) = cloud.admin().get("/v1/roots").await;
    let root: sync_protocol::Envelope = serde_json::from_value(roots["items"][0].clone()).unwrap();
    assert_eq!(claim.root, root.digest().unwrap());
    let ca = CertificateDer::from_pem_slice(cloud.ca.as_bytes()).unwrap();
    assert_eq!(claim.ca, Digest::of(&ca));
}

#[tokio::test]
async fn two_machines_under_one_name_are_noticed_and_not_cut_off() {
    let cloud = Cloud::start().await;
    let gateway = cloud.gateway("hall-3").await;
    let name = GatewayName::parse("hall-3").unwrap();
    for (boot, noticed) in
        [("one", false), ("one", false), ("two", false), ("one", false), ("two", true), ("one", false)]
    {
        assert_eq!(cloud.plane.store.notice_boot(&name, boot, cloud.now_ms()).await.unwrap(), noticed, "{boot}");
    }
    assert!(cloud.plane.store.cloned_ms(&name).await.unwrap().is_some());
    let (_, log) = cloud.admin().get("/v1/audit").await;
    let last = log["items"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&last["entry"]["did"], &last["entry"]["what"]), (&json!("notice-clone"), &json!("gateway/hall-3")));
    assert_eq!(gateway.deliver(&line(1, "1")).await.0, StatusCode::OK);
}
