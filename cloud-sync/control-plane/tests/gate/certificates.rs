//! Certificates: whose they are, how long they count, and those of other authorities.

use std::fs;

use control_plane::ca::Authority;
use control_plane::peer::Facts;
use control_plane::tls::ServerCertificate;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use reqwest::StatusCode;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::json;
use sync_protocol::name::GatewayName;

use crate::support::{Cloud, DAY_MS, Gateway, csr, line};

#[tokio::test]
async fn a_gateway_cannot_act_for_another() {
    let cloud = Cloud::start().await;
    let (one, other) = (cloud.gateway("hall-1").await, cloud.gateway("hall-2").await);
    let (status, answer) = one.caller.deliver(&other.name, &line(1, "1")).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
    let asked = json!({"csr": csr(&one.key)});
    assert_eq!(one.caller.post("/v1/gateways/hall-2/renew", &asked).await.0, StatusCode::FORBIDDEN);
    assert_eq!(one.deliver(&line(1, "1").replace("\"g\"", "\"hall-2\"")).await.0, StatusCode::OK);
    let (_, kept) = cloud.admin().get("/v1/records").await;
    assert_eq!(kept["gateway"], "hall-1", "{kept}");
}

#[tokio::test]
async fn a_stranger_is_nobody() {
    let cloud = Cloud::start().await;
    cloud.gateway("hall-3").await;
    // One that is called as the control plane's own.
    let false_authority = authority("Tidegate control plane");
    // A name that is taken, and one that is free.
    for name in ["hall-3", "hall-9"] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        let own = params.self_signed(&key).unwrap().pem();
        for (pem, key) in [(own, key), signed(&false_authority, name)] {
            let stranger = cloud.caller(None, Some((&pem, &key)));
            assert_eq!(stranger.deliver(name, &line(1, "1")).await.0, StatusCode::FORBIDDEN, "{name}");
            let renew = format!("/v1/gateways/{name}/renew");
            assert_eq!(stranger.post(&renew, &json!({"csr": csr(&key)})).await.0, StatusCode::FORBIDDEN, "{name}");
        }
    }
    assert_eq!(cloud.caller(None, None).deliver("hall-3", &line(1, "1")).await.0, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_gateway_that_was_off_for_months_renews_and_goes_on() {
    let cloud = Cloud::start().await;
    let gateway = cloud.gateway("hall-3").await;
    cloud.pass(300 * DAY_MS);
    let (status, answer) = gateway.deliver(&line(1, "1")).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
    let (status, answer) = gateway.renew().await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    let gateway = Gateway::of(&cloud, answer, gateway.key);
    // Its certificate begins in the future of this machine, which only the control plane's clock has seen.
    assert_eq!(gateway.deliver(&line(1, "1")).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_renewal_may_bring_a_new_key() {
    let cloud = Cloud::start().await;
    let gateway = cloud.gateway("hall-3").await;
    let key = KeyPair::generate().unwrap();
    let (status, answer) = gateway.caller.post("/v1/gateways/hall-3/renew", &json!({"csr": csr(&key)})).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    assert_eq!(Gateway::of(&cloud, answer, key).deliver(&line(1, "1")).await.0, StatusCode::OK);
}

#[tokio::test]
async fn a_revoked_gateway_is_out_at_once_and_stays_out() {
    let cloud = Cloud::start().await;
    let claim = cloud.claim(json!({"uses": 9, "name_prefix": "hall-"})).await;
    let gateway = cloud.let_in(&claim, "hall-3", KeyPair::generate().unwrap()).await;
    assert_eq!(gateway.deliver(&line(1, "1")).await.0, StatusCode::OK);
    assert_eq!(cloud.admin().delete("/v1/gateways/hall-3").await, StatusCode::NO_CONTENT);
    // Within the connection that is open.
    assert_eq!(gateway.deliver(&line(2, "2")).await.0, StatusCode::FORBIDDEN);
    assert_eq!(gateway.renew().await.0, StatusCode::FORBIDDEN);
    for nonce in ["hall-3", "another"] {
        let (status, answer) = cloud.provision(&claim, "hall-3", &csr(&gateway.key), nonce).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{answer}");
    }
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn signed(authority: &CertifiedIssuer<'_, KeyPair>, name: &str) -> (String, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    (params.signed_by(&key, authority).unwrap().pem(), key)
}

/// As with AWS IoT, whose certificates all have the same name.
#[tokio::test]
async fn a_certificate_of_another_authority_can_be_registered() {
    let cloud = Cloud::start().await;
    let (pem, key) = signed(&authority("Another authority"), "AWS IoT Certificate");
    let gateway = cloud.caller(None, Some((&pem, &key)));
    assert_eq!(gateway.deliver("hall-3", &line(1, "1")).await.0, StatusCode::FORBIDDEN);
    let (status, answer) = cloud.admin().post("/v1/gateways/hall-3/certificates", &json!({"certificate": pem})).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    assert_eq!(gateway.deliver("hall-3", &line(1, "1")).await.0, StatusCode::OK);
    assert_eq!(gateway.deliver("hall-4", &line(1, "1")).await.0, StatusCode::FORBIDDEN);
    let (status, _) = cloud.admin().post("/v1/gateways/hall-4/certificates", &json!({"certificate": pem})).await;
    assert_eq!(status, StatusCode::CONFLICT);
}

#[tokio::test]
async fn another_authority_that_is_trusted_vouches_for_names_that_are_free() {
    let mut cloud = Cloud::start().await;
    cloud.gateway("hall-1").await;
    let authority = authority("Another authority");
    let folder = cloud.plane.folder.keys().join("authorities");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("site.pem"), authority.pem()).unwrap();
    cloud.restart().await;
    for (name, expected) in [
        ("hall-2", StatusCode::OK),
        // A renewed one of the same.
        ("hall-2", StatusCode::OK),
        ("hall-1", StatusCode::FORBIDDEN),
        ("No Name", StatusCode::FORBIDDEN),
    ] {
        let (pem, key) = signed(&authority, name);
        let (status, answer) = cloud.caller(None, Some((&pem, &key))).deliver(name, &line(1, "1")).await;
        let path_is_wrong = status == StatusCode::BAD_REQUEST && name == "No Name";
        assert!(status == expected || path_is_wrong, "{name}: {status} {answer}");
    }
}

/// The registry of a backup does not know certificates that were signed after it.
#[tokio::test]
async fn a_gateway_of_our_own_that_a_backup_does_not_know_is_taken_in() {
    let cloud = Cloud::start().await;
    let keys = cloud.plane.folder.keys();
    let authority = Authority::open(&keys).unwrap();
    let key = KeyPair::generate().unwrap();
    let requested = control_plane::ca::RequestedKey::from_pem(&csr(&key)).unwrap();
    let name = GatewayName::parse("hall-3").unwrap();
    let issued = authority.sign_gateway(&name, &requested, cloud.now_ms()).unwrap();
    let gateway = cloud.caller(None, Some((&issued.chain_pem, &key)));
    assert_eq!(gateway.deliver("hall-3", &line(1, "1")).await.0, StatusCode::OK);
    let (_, log) = cloud.admin().get("/v1/audit").await;
    assert!(log["items"].as_array().unwrap().iter().any(|line| line["entry"]["did"] == "adopt"), "{log}");
}

#[tokio::test]
async fn the_control_plane_renews_its_own_certificate() {
    let cloud = Cloud::start().await;
    let folder = cloud.plane.folder.clone();
    let before = fs::read(folder.keys().join("server.pem")).unwrap();
    let now_ms = cloud.now_ms();
    let certificate = ServerCertificate::open(cloud.plane.authority.clone(), folder.clone(), now_ms).unwrap();
    assert!(!certificate.renew_if_due(now_ms + 50 * DAY_MS).unwrap());
    assert!(certificate.renew_if_due(now_ms + 61 * DAY_MS).unwrap());
    let after = fs::read_to_string(folder.keys().join("server.pem")).unwrap();
    assert_ne!(before, after.as_bytes());
    // Under the same names, so that a client that comes now still finds it.
    let der = CertificateDer::from_pem_slice(after.as_bytes()).unwrap();
    assert_eq!(Facts::of(&der).unwrap().hosts, ["localhost", "127.0.0.1"]);
}

#[tokio::test]
async fn a_name_is_added_while_it_serves() {
    let cloud = Cloud::start().await;
    let folder = cloud.plane.folder.clone();
    let shown = ServerCertificate::open(cloud.plane.authority.clone(), folder.clone(), cloud.now_ms()).unwrap();
    assert!(!shown.reread().unwrap());
    let names = ServerCertificate::certify(&folder, &["cloud.example".to_owned()], cloud.now_ms()).unwrap();
    assert_eq!(names, ["localhost", "127.0.0.1", "cloud.example"]);
    assert!(shown.reread().unwrap() && !shown.reread().unwrap());
    assert!(ServerCertificate::certify(&folder, &["not a name".to_owned()], cloud.now_ms()).is_err());
    assert!(!shown.reread().unwrap(), "a mistake changes nothing");
    assert_eq!(cloud.caller(None, None).get("/healthz").await.0, StatusCode::OK);
}

#[tokio::test]
async fn keys_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let cloud = Cloud::start().await;
    for name in ["ca-key.pem", "server.pem"] {
        let mode = fs::metadata(cloud.plane.folder.keys().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name}: {mode:o}");
    }
    assert!(Authority::create(&cloud.plane.folder.keys(), 0).is_err());
}
