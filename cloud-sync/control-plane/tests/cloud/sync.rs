//! What gateways are told, and what they say.

use std::time::Duration;

use crate::support::{Cloud, DAY_MS, report};
use reqwest::Method;
use serde_json::{Value, json};
use sync_protocol::desired::{Desired, DesiredAnswer, Request};
use sync_protocol::report::{Phase, Progress};
use sync_protocol::{Digest, Refused};
use tokio::time::timeout;

fn desired(answer: &crate::support::Answer) -> Desired {
    DesiredAnswer::parse(&answer.body).unwrap().desired.unwrap().unverified().unwrap()
}

/// [cloud-30] A gateway that waits is told of a deployment at once.
#[tokio::test]
async fn a_gateway_that_waits_is_told_at_once() {
    let cloud = Cloud::with_gateways(&["press-1"]).await;
    let oven = cloud.publish("oven", "1.0.0", b"oven").await;
    let etag = cloud.ask("press-1", "", 0).await.header("etag").to_owned();
    let waiting = cloud.ask("press-1", &etag, 30);
    let deploying = async {
        while cloud.plane.wakes.count() == 0 {
            tokio::task::yield_now().await;
        }
        cloud.deploy(&cloud.deployment("group/presses", 1, &[oven])).await;
    };
    let (answer, ()) = timeout(Duration::from_secs(5), futures_util::future::join(waiting, deploying)).await.unwrap();
    assert_eq!(desired(&answer.ok()).deployment.unwrap().number, 1);
    assert_eq!(cloud.plane.wakes.count(), 0, "nobody waits any more");
}

/// [cloud-31] No news costs one question that is held, and signs and writes nothing.
#[tokio::test]
async fn no_news_signs_nothing() {
    let cloud = Cloud::with_gateways(&["press-1"]).await;
    let first = cloud.ask("press-1", "", 0).await;
    for _ in 0..3 {
        assert_eq!(cloud.ask("press-1", first.header("etag"), 0).await.status, 304);
    }
    assert_eq!(cloud.ask("press-1", first.header("etag"), 1).await.status, 304);
    assert_eq!(desired(&cloud.ask("press-1", "", 0).await).sequence, desired(&first).sequence);
    assert_eq!(cloud.plane.metrics.desired_signed.get(), 1);
}

/// [cloud-32] A desired document is signed anew when half its life is over, and not before.
#[tokio::test]
async fn what_was_signed_is_signed_anew_when_half_its_life_is_over() {
    let cloud = Cloud::with_gateways(&["press-1"]).await;
    let first = cloud.ask("press-1", "", 0).await;
    cloud.time.go_ahead(3 * DAY_MS);
    assert_eq!(cloud.ask("press-1", first.header("etag"), 0).await.status, 304);
    cloud.time.go_ahead(DAY_MS);
    let second = cloud.ask("press-1", first.header("etag"), 0).await.ok();
    let (first, second) = (desired(&first), desired(&second));
    assert!(second.sequence > first.sequence && second.expires_ms > cloud.time.now_ms() + 6 * DAY_MS);
}

/// [cloud-32] A document that was signed while the clock was wrong does not outlive that.
#[tokio::test]
async fn what_was_signed_in_the_future_is_signed_anew() {
    let cloud = Cloud::with_gateways(&["press-1"]).await;
    let year_ms = 365 * DAY_MS;
    cloud.time.go_ahead(year_ms);
    let first = cloud.ask("press-1", "", 0).await;
    cloud.time.go_back(year_ms);
    let second = cloud.ask("press-1", first.header("etag"), 0).await.ok();
    let (first, second) = (desired(&first), desired(&second));
    assert_eq!(second.sequence, first.sequence + 1);
    assert!(second.expires_ms < cloud.time.now_ms() + 8 * DAY_MS);
}

/// [cloud-33] When the control plane stops, those who wait are answered.
#[tokio::test]
async fn a_stop_answers_those_who_wait() {
    let cloud = Cloud::with_gateways(&["press-1"]).await;
    let etag = cloud.ask("press-1", "", 0).await.header("etag").to_owned();
    let stopping = async {
        while cloud.plane.wakes.count() == 0 {
            tokio::task::yield_now().await;
        }
        cloud.plane.closing.cancel();
    };
    let both = futures_util::future::join(cloud.ask("press-1", &etag, 300), stopping);
    assert_eq!(timeout(Duration::from_secs(5), both).await.unwrap().0.status, 304);
}

/// [cloud-34] An answer brings the roots that the gateway does not have, and one whose keys are new is followed.
#[tokio::test]
async fn a_new_root_reaches_gateways() {
    let cloud = Cloud::with_gateways(&["press-1"]).await;
    let old = cloud.get("/v1/roots").await.json()["online"][0].clone();
    let next = cloud.person("admin", Method::POST, "/v1/online-keys", &json!({})).await.ok().json()["key"].clone();
    let told = cloud.ask("press-1", "", 0).await;
    let root =
        cloud.signers.root(2, next.as_str().unwrap().to_owned().try_into().unwrap(), cloud.time.now_ms() + DAY_MS);
    let envelope = sync_protocol::Envelope::sign(&root, &[&cloud.signers.root]).unwrap();
    cloud.person("admin", Method::POST, "/v1/roots", &envelope).await.ok();
    assert_ne!(old, next);
    let answer = cloud.ask("press-1", told.header("etag"), 0).await.ok();
    assert_eq!(DesiredAnswer::parse(&answer.body).unwrap().roots.len(), 2);
    assert_eq!(cloud.told("press-1").await, None, "it verifies by the new root");
}

/// [cloud-35] A gateway asks and speaks for itself only; one that was revoked is told nothing.
#[tokio::test]
async fn a_gateway_speaks_for_itself_only() {
    let cloud = Cloud::with_gateways(&["press-1", "press-2"]).await;
    let path = "/v1/gateways/press-2/desired?wait=0";
    cloud.raw(Method::GET, path, &[("gateway", "press-1")], "").await.refused(403, "may not speak for `press-2`");
    cloud.raw(Method::GET, path, &[("person", "admin")], "").await.refused(401, "a gateway's certificate");
    let body = serde_json::to_vec(&report("boot", 1)).unwrap();
    let path = "/v1/gateways/press-2/reported";
    cloud.raw(Method::POST, path, &[("gateway", "press-1")], body).await.refused(403, "may not speak");
    cloud.revoke("press-2").await;
    cloud.ask("press-2", "", 0).await.refused(404, "no gateway `press-2`");
}

/// [cloud-36] What a gateway reports is shown, with the phases that it was in; a report that is too large or malformed changes nothing.
#[tokio::test]
async fn what_a_gateway_reports_is_shown() {
    let cloud = Cloud::with_gateways(&["press-1"]).await;
    let deployment = sync_protocol::desired::DeploymentRef { number: 1, digest: Digest::of(b"1") };
    let phases =
        [(Phase::Downloading, ""), (Phase::Downloading, ""), (Phase::Staged, ""), (Phase::RolledBack, "too slow")];
    for (n, (phase, reason)) in phases.into_iter().enumerate() {
        let mut said = report("boot", n as u64);
        let (since_ms, reason) = (phase as u64, reason.to_owned());
        said.progress = Some(Progress { deployment, phase, kept: false, reason, fetched: None, since_ms });
        said.unhealthy = vec!["broker local is unreachable".to_owned()];
        cloud.report("press-1", &said).await.ok();
    }
    let shown = cloud.get("/v1/gateways/press-1").await.json();
    let phases: Vec<&str> =
        shown["phases"].as_array().unwrap().iter().map(|row| row["phase"].as_str().unwrap()).collect();
    assert_eq!(phases, ["rolled-back", "staged", "downloading"]);
    assert_eq!((&shown["progress"]["reason"], &shown["report_version"]), (&json!("too slow"), &json!(4)));
    assert_eq!(shown["unhealthy"], json!(["broker local is unreachable"]));

    let mut long = report("boot", 9);
    long.last_errors = vec!["x".repeat(300_000)];
    cloud.report("press-1", &long).await.refused(413, "more than");
    let path = "/v1/gateways/press-1/reported";
    cloud.raw(Method::POST, path, &[("gateway", "press-1")], "{").await.refused(400, "malformed");
    assert_eq!(cloud.get("/v1/gateways/press-1").await.json()["report_version"], 4);
    cloud.get("/v1/gateways/nobody").await.refused(404, "no gateway `nobody`");
}

/// [cloud-37] People change a shadow only from the version that they saw; the gateway is told what is left to do.
#[tokio::test]
async fn a_shadow_is_changed_from_what_was_seen() {
    let cloud = Cloud::with_gateways(&["press-1"]).await;
    let wish = async |desired: Value, version: u64| {
        let body = json!({"desired": desired, "version": version});
        cloud.person("operator", Method::PUT, "/v1/gateways/press-1/shadow", &body).await
    };
    assert_eq!(wish(json!({"fan": "on", "lamp": "red"}), 0).await.ok().json()["version"], 1);
    wish(json!({"fan": "off"}), 0).await.refused(409, "is at version 1, not 0");
    wish(json!([]), 1).await.refused(422, "must be a JSON object");
    wish(json!({"x": "y".repeat(70_000)}), 1).await.refused(413, "more than");

    let mut said = report("boot", 1);
    said.shadow = json!({"fan": "on", "door": "shut"});
    let heard = cloud.report("press-1", &said).await.ok().json();
    assert_eq!(heard, json!({"delta": {"lamp": "red"}, "version": 1}));
    let shadow = cloud.get("/v1/gateways/press-1/shadow").await.json();
    assert_eq!((&shadow["delta"], &shadow["reported"]["door"]), (&json!({"lamp": "red"}), &json!("shut")));
    said.shadow["lamp"] = json!("red");
    assert_eq!(cloud.report("press-1", &said).await.json()["delta"], Value::Null);
}

/// [cloud-38] A log is sent when an operator asks for it, for as long as he says; its lines are kept within bounds.
#[tokio::test]
async fn a_log_is_sent_on_request() {
    let cloud = Cloud::with_gateways(&["press-1"]).await;
    let ask = async |minutes: u64, level: &str| {
        let body = json!({"minutes": minutes, "level": level});
        cloud.person("operator", Method::POST, "/v1/gateways/press-1/logs", &body).await
    };
    ask(0, "info").await.refused(422, "must be 1 to");
    ask(5, "loud").await.refused(422, "no level");
    ask(5, "info").await.ok();
    let requests = desired(&cloud.ask("press-1", "", 0).await).requests;
    assert!(matches!(&requests[..], [Request::Logs { level, .. }] if level == "info"), "{requests:?}");

    let bound = usize::try_from(control_plane::limits::LOG_LINES_MAX).unwrap();
    for batch in 0..=bound / 1000 {
        let mut said = report("boot", 1);
        said.logs = (0..1000).map(|n| json!({"message": format!("{batch}/{n}")})).collect();
        cloud.report("press-1", &said).await.ok();
    }
    let mut lines = 0;
    let mut after = String::new();
    loop {
        let page = cloud.get(&format!("/v1/gateways/press-1/logs?limit=1000&after={after}")).await.json();
        let items = page["items"].as_array().unwrap().len();
        lines += items;
        page["next"].as_str().unwrap_or_default().clone_into(&mut after);
        if items == 0 {
            break;
        }
    }
    assert_eq!(lines, bound);
    cloud.time.go_ahead(6 * 60 * 1000);
    assert_eq!(desired(&cloud.ask("press-1", "", 0).await).requests, []);
    cloud.time.go_ahead(8 * DAY_MS);
    cloud.plane.store.expire(cloud.time.now_ms()).await.unwrap();
    assert_eq!(cloud.get("/v1/gateways/press-1/logs").await.json()["items"], json!([]));
}

/// [cloud-39] A control plane that was restored from an older backup is followed at once: what it signs comes after all that was signed since.
#[tokio::test]
async fn gateways_follow_a_control_plane_that_was_restored() {
    let cloud = Cloud::with_gateways(&["press-1"]).await;
    let oven = cloud.publish("oven", "1.0.0", b"oven").await;
    cloud.deploy(&cloud.deployment("group/presses", 1, std::slice::from_ref(&oven))).await;
    let first = DesiredAnswer::parse(&cloud.ask("press-1", "", 0).await.body).unwrap();
    let mut trust = sync_protocol::Trust::anchor(&first.roots[0], &first.roots[0].digest().unwrap()).unwrap();
    let name = sync_protocol::name::GatewayName::parse("press-1").unwrap();
    let backup = cloud.home.path().join("backup");
    control_plane::backup::backup(&cloud.folder, &backup).await.unwrap();
    cloud.deploy(&cloud.deployment("group/presses", 2, &[oven])).await;
    let second = DesiredAnswer::parse(&cloud.ask("press-1", "", 0).await.body).unwrap();
    trust.accept(&trust.verify(&name, &second, None, None).unwrap());
    let older = trust.verify(&name, &first, None, None);
    assert!(matches!(older, Err(Refused::Older { .. })), "{older:?}");

    let folder = control_plane::folder::Folder::new(cloud.home.path().join("restored"));
    let copied = control_plane::backup::restore(&backup, &folder).await.unwrap();
    assert_eq!((copied.blobs, copied.bytes), (1, 4));
    let plane = control_plane::ControlPlane::open(&folder, cloud.time.clock()).await.unwrap();
    let answer = plane.desired(&name, 1, None, Duration::ZERO).await.unwrap().unwrap().answer;
    let verified = trust.verify(&name, &answer, None, None).unwrap();
    assert_eq!(verified.deployment.unwrap().reference().number, 1);
}
