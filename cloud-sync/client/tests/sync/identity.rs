//! How a gateway gets an identity, keeps it, and gets it back.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};
use sync_client::{Identity, Link};
use sync_protocol::name::GatewayName;

use crate::server::{DAY_MS, Fleet, GATEWAY, NOW_MS, Server};
use crate::site::{Site, eventually, names};

#[tokio::test]
async fn a_claim_token_makes_a_gateway_of_the_fleet() {
    let site = Site::new().await;
    let running = site.follow();
    running.connected().await;
    assert_eq!(running.cloud.name().as_str(), GATEWAY);
    assert_eq!(running.cloud.trust().root_version(), 1);
    running.stop().await;

    let folder = site.identity_folder();
    assert_eq!(names(&folder), ["ca.pem", "certificate.pem", "identity.json", "key.pem", "roots.json"]);
    assert_eq!(fs::metadata(folder.join("key.pem")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    // Once it is one, nobody is asked to make it one again.
    fs::remove_file(site.state.path().join("claim")).unwrap();
    site.provision().await;
    assert_eq!(site.server.calls("/provision").len(), 1);
}

#[tokio::test]
async fn a_new_gateway_follows_a_root_of_trust_that_was_changed_often() {
    let site = Site::of(Server::of(Fleet::with_roots(140)).await).await;
    let running = site.follow();
    running.connected().await;
    assert_eq!(running.cloud.trust().root_version(), 140);
    running.stop().await;
    // And again, when what it trusted is lost.
    fs::remove_dir_all(site.state.path().join("trust")).unwrap();
    let running = site.follow();
    running.connected().await;
    assert_eq!(running.cloud.trust().root_version(), 140);
    running.stop().await;
}

#[tokio::test]
async fn a_gateway_whose_answer_was_lost_asks_again_and_is_still_one() {
    let site = Site::new().await;
    site.server.book().answers_lost = 3;
    site.provision().await;
    assert_eq!(site.server.calls("/provision").len(), 4);
    assert_eq!(site.server.book().issued.len(), 1);
}

/// Files as a kill leaves them, at each step of provisioning.
#[tokio::test]
async fn a_kill_at_any_step_of_provisioning_leaves_one_identity() {
    let site = Site::new().await;
    site.provision().await;
    let folder = site.identity_folder();
    let whole = tempfile::tempdir().unwrap();
    copy(&folder, whole.path());
    let key = fs::read(folder.join("key.pem")).unwrap();

    // In the order in which they are written; each is written beside its place first.
    let order = ["key.pem", "identity.json", "roots.json", "identity.json", "ca.pem", "certificate.pem"];
    let begun = serde_json::json!({
        "wanted": GATEWAY, "nonce": site.server.book().issued.keys().next().unwrap().clone(), "groups": []
    });
    for step in 0..=order.len() {
        for unfinished in [false, true] {
            fs::remove_dir_all(&folder).unwrap();
            fs::create_dir(&folder).unwrap();
            for (n, name) in order[..step].iter().enumerate() {
                match n {
                    1 => fs::write(folder.join(name), begun.to_string()).unwrap(),
                    _ => drop(fs::copy(whole.path().join(name), folder.join(name)).unwrap()),
                }
            }
            if let Some(next) = order.get(step).filter(|_| unfinished) {
                fs::write(folder.join(format!("{next}.new")), b"-----BEG").unwrap();
            }
            let identity = site.provision().await;
            assert_eq!(identity.name().as_str(), GATEWAY, "step {step}");
            if step > 0 {
                assert_eq!(fs::read(folder.join("key.pem")).unwrap(), key, "step {step}");
            }
        }
    }
    // A key that was never sent is the only one that is made again.
    assert_eq!(site.server.book().issued.len(), 3);
}

fn copy(from: &Path, to: &Path) {
    for name in names(from) {
        fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

#[tokio::test]
async fn a_damaged_certificate_is_given_again() {
    let site = Site::new().await;
    site.provision().await;
    for damage in [&b""[..], b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        fs::write(site.identity_folder().join("certificate.pem"), damage).unwrap();
        assert_eq!(site.provision().await.name().as_str(), GATEWAY);
    }
    assert_eq!(site.server.book().issued.len(), 1);
}

#[tokio::test]
async fn the_identity_outlives_everything_else() {
    let site = Site::new().await;
    site.provision().await;
    fs::remove_dir_all(site.state.path().join("trust")).unwrap();
    fs::remove_dir_all(site.state.path().join("blobs")).unwrap();
    let running = site.follow();
    running.connected().await;
    assert_eq!(running.cloud.trust().root_version(), 1);
    running.stop().await;

    fs::write(site.state.path().join("trust/trust.json"), "{").unwrap();
    let running = site.follow();
    running.connected().await;
    assert_eq!(running.cloud.trust().root_version(), 1);
    assert_eq!(names(&site.state.path().join("trust")), ["trust.json", "trust.json.damaged"]);
    running.stop().await;
    assert_eq!(site.server.calls("/provision").len(), 1);
}

#[tokio::test]
async fn a_claim_is_shown_to_nobody_but_its_own_control_plane() {
    let site = Site::new().await;
    let token = Fleet::new().token();
    fs::write(site.state.path().join("claim"), token.to_string()).unwrap();
    let running = site.follow();
    let link = running.link(|link| matches!(link, Link::Unprovisioned(_))).await;
    assert!(link.to_string().contains("is not trusted as the control plane"), "{link}");
    running.stop().await;
    assert!(site.server.book().seen.is_empty());
    assert!(!site.identity_folder().join("certificate.pem").exists());
}

/// The certificate of its authority is no secret: anybody can show it beside one of their own.
#[tokio::test]
async fn a_claim_is_not_shown_to_who_shows_its_authority_and_is_not_certified_by_it() {
    let ours = Fleet::new();
    let mut thief = Arc::into_inner(Fleet::new()).unwrap();
    thief.ca = ours.ca.clone();
    let site = Site::of(Server::of(Arc::new(thief)).await).await;
    fs::write(site.state.path().join("claim"), ours.token().to_string()).unwrap();
    let running = site.follow();
    let link = running.link(|link| matches!(link, Link::Unprovisioned(_))).await;
    assert!(link.to_string().contains("is not trusted as the control plane"), "{link}");
    running.stop().await;
    assert!(site.server.book().seen.is_empty());
}

#[tokio::test]
async fn an_authority_or_root_other_than_the_tokens_is_refused() {
    let site = Site::new().await;
    site.server.book().impostor = Some(Fleet::new());
    let running = site.follow();
    let link = running.link(|link| matches!(link, Link::Unprovisioned(_))).await;
    assert!(link.to_string().contains("authority that is not"), "{link}");
    running.stop().await;
    assert!(!site.identity_folder().join("certificate.pem").exists());

    let token =
        sync_protocol::provision::ClaimToken { root: sync_protocol::Digest::of(b"other"), ..site.server.fleet.token() };
    fs::write(site.state.path().join("claim"), token.to_string()).unwrap();
    site.server.book().impostor = None;
    site.server.book().issued.clear();
    let running = site.follow();
    let link = running.link(|link| link.to_string().contains("root")).await;
    assert!(link.to_string().contains("root of trust is refused"), "{link}");
    assert!(!running.cloud.trust().has_root());
    running.stop().await;
}

#[tokio::test]
async fn what_is_wrong_with_a_claim_token_is_said() {
    let site = Site::new().await;
    for (text, said) in [(None, "there is no claim token in"), (Some("tgc1.no"), "this is no claim token")] {
        match text {
            None => fs::remove_file(site.state.path().join("claim")).unwrap(),
            Some(text) => fs::write(site.state.path().join("claim"), text).unwrap(),
        }
        let running = site.follow();
        let link = running.link(|link| matches!(link, Link::Unprovisioned(_))).await;
        assert!(link.to_string().contains(said) && link.to_string().contains("tidegate fleet claim"), "{link}");
        running.stop().await;
    }
}

#[tokio::test]
async fn a_certificate_is_renewed_when_two_thirds_of_its_life_are_over() {
    let site = Site::new().await;
    site.server.book().life_ms = 90 * DAY_MS;
    let first = site.provision().await.life();
    site.set_clocks(NOW_MS + 59 * DAY_MS);
    assert_eq!(site.provision().await.life(), first);
    site.set_clocks(NOW_MS + 61 * DAY_MS);
    let renewed = site.provision().await;
    assert_eq!(renewed.life().until_ms, NOW_MS + (61 + 90) * DAY_MS);
    assert!(!renewed.renew_due(Some(NOW_MS + 61 * DAY_MS)));
    assert_eq!(site.server.calls("/renew").len(), 1);
}

/// It renews within one run, too, and a renewal that is refused costs nothing while the certificate is good.
#[tokio::test]
async fn a_renewal_that_fails_is_tried_again_while_all_goes_on() {
    let mut site = Site::new().await;
    site.limits.wait = std::time::Duration::from_secs(1);
    let running = site.follow();
    running.connected().await;
    site.server.book().refusals.extend([(500, None); 2]);
    site.set_clocks(NOW_MS + 61 * DAY_MS);
    eventually("renewed", || site.identity().is_some_and(|identity| identity.life().from_ms > NOW_MS)).await;
    running.connected().await;
    running.stop().await;
}

#[tokio::test]
async fn a_gateway_that_was_off_for_months_comes_back() {
    for strict in [false, true] {
        let site = Site::new().await;
        site.provision().await;
        site.server.book().strict = strict;
        site.set_clocks(NOW_MS + 400 * DAY_MS);
        let identity = site.provision().await;
        assert!(identity.life().until_ms > NOW_MS + 400 * DAY_MS);
        assert_eq!(site.server.calls("/provision").len(), 1);
    }
}

/// Its own clock stands still, or was never set; that of the control plane does not.
#[tokio::test]
async fn an_expired_certificate_is_renewed_by_a_gateway_that_does_not_know_the_time() {
    for clock in [0, NOW_MS + DAY_MS] {
        let site = Site::new().await;
        site.provision().await;
        site.server.book().strict = true;
        site.set_clocks(NOW_MS + 400 * DAY_MS);
        site.clock.store(clock, std::sync::atomic::Ordering::SeqCst);
        let running = site.follow();
        running.connected().await;
        running.stop().await;
        assert!(site.identity().unwrap().life().until_ms > NOW_MS + 400 * DAY_MS, "{clock}");
    }
}

#[tokio::test]
async fn certificates_of_others_can_be_used() {
    let fleet = Fleet::new();
    let keys = [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519]
        .map(|kind| KeyPair::generate_for(kind).unwrap());
    let rsa = KeyPair::from_pem(include_str!("rsa.pem")).unwrap();
    let server = Server::of(Arc::clone(&fleet)).await;
    let mut site = Site::of(server).await;
    for key in keys.iter().chain([&rsa]) {
        for sign_requests in [false, true] {
            site.sign_requests = sign_requests;
            let [cert, secret] = ["cert.pem", "secret.pem"].map(|name| site.state.path().join(name));
            fs::write(&cert, fleet.certify_key(key)).unwrap();
            fs::write(&secret, key.serialize_pem()).unwrap();
            let identity = Identity::from_files(GatewayName::parse(GATEWAY).unwrap(), &cert, &secret).unwrap();
            let session = site.session_of(identity);
            session.report(&crate::site::report()).await.unwrap();
            // Those who made it renew it.
            assert!(!session.identity().renew_due(Some(NOW_MS + 89 * DAY_MS)));
        }
    }
    let signed = site.server.calls("/reported").into_iter().filter(|seen| seen.headers.contains_key("signature"));
    assert_eq!(signed.count(), 4);
}
