//! The gateway's own client against the control plane as it is served.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use sync_client::{
    Cloud as Connection, Follower, Identity, Limits, Link, Now, Session, SessionConfig, SyncConfig, Verdict,
};
use sync_protocol::name::GatewayName;
use sync_protocol::report::Report;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{Cloud, DAY_MS, line};

/// A gateway that follows, as the agent does.
struct Following {
    connection: Connection,
    reports: watch::Sender<Report>,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

fn report() -> Report {
    let report = json!({
        "boot": "", "sequence": 0, "time_ms": null, "agent": "0.0.0", "target": "x86_64-unknown-linux-gnu", "root": 1,
        "desired_sequence": 0, "progress": null, "active": null, "running": [], "unhealthy": [], "figures": {}, "last_errors": [],
    });
    serde_json::from_value(report).unwrap()
}

fn now(cloud: &Cloud) -> Now {
    let clock = cloud.plane.clock.clone();
    Arc::new(move || Some(clock.now_ms()))
}

fn limits() -> Limits {
    Limits { back_off: Duration::from_millis(50), gap: Duration::from_millis(20), ..Limits::default() }
}

impl Following {
    fn start(cloud: &Cloud, state: &Path, sign_requests: bool) -> Self {
        let config = SyncConfig {
            state: state.to_owned(),
            url: cloud.url.clone(),
            gateway: GatewayName::parse("hall-3").unwrap(),
            claim_token: Some(state.join("claim")),
            root: None,
            certificate: None,
            ca: None,
            sign_requests,
            report_every: Duration::from_secs(3600),
            limits: limits(),
        };
        let (follower, connection) = Follower::open(config, now(cloud)).unwrap();
        let (reports, seen) = watch::channel(report());
        let cancel = CancellationToken::new();
        let task = tokio::spawn(follower.run(seen, cancel.clone()));
        Self { connection, reports, cancel, task }
    }

    async fn is_connected(&self) {
        let mut link = self.connection.link();
        let connected = link.wait_for(|link| *link == Link::Connected);
        let done = tokio::time::timeout(Duration::from_secs(30), connected).await.map(|link| link.is_ok());
        assert_eq!(done, Ok(true), "{}", *self.connection.link().borrow());
    }

    async fn deliver(&self, sequence: u64) -> Verdict {
        let body = zstd::encode_all(line(sequence, "1").as_bytes(), 1).unwrap();
        self.connection.records("key", body.into()).await
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap();
    }
}

async fn with_claim(cloud: &Cloud) -> tempfile::TempDir {
    let state = tempfile::tempdir().unwrap();
    let claim = cloud.claim(json!({"groups": ["presses"]})).await;
    std::fs::write(state.path().join("claim"), claim.to_string()).unwrap();
    state
}

async fn gateway(cloud: &Cloud) -> Value {
    cloud.admin().get("/v1/gateways/hall-3").await.1
}

/// Off for months, it asks for a new certificate with the expired one, and goes on.
#[tokio::test]
async fn a_gateway_gets_in_delivers_and_comes_back_after_months() {
    for sign_requests in [false, true] {
        let mut cloud = Cloud::start().await;
        let state = with_claim(&cloud).await;
        let following = Following::start(&cloud, state.path(), sign_requests);
        following.is_connected().await;
        assert_eq!(following.deliver(1).await, Verdict::TakenUpTo(1));
        following.stop().await;
        let shown = gateway(&cloud).await;
        assert_eq!((&shown["groups"], &shown["cloned_ms"]), (&json!(["presses"]), &Value::Null), "{shown}");
        let first = Identity::open(&state.path().join("identity")).unwrap().unwrap();

        cloud.pass(200 * DAY_MS);
        cloud.restart().await;
        let following = Following::start(&cloud, state.path(), sign_requests);
        following.is_connected().await;
        assert_eq!(following.deliver(2).await, Verdict::TakenUpTo(2));
        following.stop().await;
        let second = Identity::open(&state.path().join("identity")).unwrap().unwrap();
        assert!(second.life().until_ms > first.life().until_ms + 199 * DAY_MS);
        let log = cloud.plane.store.audit(0, 100).await.unwrap();
        let did = |what: &str| log.iter().filter(|row| row.entry.contains(&format!("\"did\":\"{what}\""))).count();
        assert_eq!((did("provision"), did("renew")), (1, 1), "{log:?}");
    }
}

#[tokio::test]
async fn a_certificate_is_renewed_before_it_expires() {
    let cloud = Cloud::start().await;
    let state = with_claim(&cloud).await;
    let following = Following::start(&cloud, state.path(), false);
    following.is_connected().await;
    following.stop().await;
    let folder = state.path().join("identity");
    let before = std::fs::read(folder.join("certificate.pem")).unwrap();
    let identity = Arc::new(Identity::open(&folder).unwrap().unwrap());
    assert!(!identity.renew_due(Some(cloud.now_ms() + 50 * DAY_MS)));
    assert!(identity.renew_due(Some(cloud.now_ms() + 61 * DAY_MS)));
    let config = SessionConfig { url: cloud.url.clone(), ca: Vec::new(), sign_requests: false, limits: limits() };
    Session::new(identity.clone(), &config, now(&cloud)).unwrap().renew().await.unwrap();
    assert_ne!(std::fs::read(folder.join("certificate.pem")).unwrap(), before);
    let renewed = Identity::open(&folder).unwrap().unwrap();
    let session = Session::new(Arc::new(renewed), &config, now(&cloud)).unwrap();
    let body = zstd::encode_all(line(1, "1").as_bytes(), 1).unwrap();
    assert_eq!(session.records("key", body.into()).await, Verdict::TakenUpTo(1));
}

/// A disk was copied after provisioning: both run, and report in turn.
#[tokio::test]
async fn a_cloned_gateway_is_shown_and_goes_on() {
    let cloud = Cloud::start().await;
    let state = with_claim(&cloud).await;
    let original = Following::start(&cloud, state.path(), false);
    original.is_connected().await;
    let copy = tempfile::tempdir().unwrap();
    std::fs::create_dir(copy.path().join("identity")).unwrap();
    for file in std::fs::read_dir(state.path().join("identity")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join("identity").join(file.file_name())).unwrap();
    }
    let clone = Following::start(&cloud, copy.path(), false);
    clone.is_connected().await;
    let mut noticed = false;
    for n in 0..200 {
        let following = if n % 2 == 0 { &original } else { &clone };
        // What changes is reported at once.
        following.reports.send_modify(|report| report.unhealthy = vec![n.to_string()]);
        tokio::time::sleep(Duration::from_millis(50)).await;
        noticed = gateway(&cloud).await["cloned_ms"].is_u64();
        if noticed {
            break;
        }
    }
    assert!(noticed, "{}", gateway(&cloud).await);
    assert_eq!(original.deliver(1).await, Verdict::TakenUpTo(1));
    original.stop().await;
    clone.stop().await;
}

#[tokio::test]
async fn a_revoked_gateway_is_told_so() {
    let cloud = Cloud::start().await;
    let state = with_claim(&cloud).await;
    let following = Following::start(&cloud, state.path(), false);
    following.is_connected().await;
    cloud.admin().delete("/v1/gateways/hall-3").await;
    assert!(matches!(following.deliver(1).await, Verdict::Later { why, .. } if why.contains("revoked")));
    let mut link = following.connection.link();
    let refused = link.wait_for(|link| matches!(link, Link::Refused(why) if why.contains("revoked")));
    tokio::time::timeout(Duration::from_secs(30), refused).await.unwrap().unwrap();
    following.stop().await;
}
