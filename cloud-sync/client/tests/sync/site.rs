//! A gateway and its server.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use sync_client::{Cloud, Follower, Identity, Limits, Link, Now, Session, SessionConfig, SyncConfig};
use sync_protocol::name::GatewayName;
use sync_protocol::report::Report;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::relay::Relay;
use crate::server::{Fleet, GATEWAY, NOW_MS, Server, url};

/// Short enough for tests, long enough for a busy machine.
pub(crate) const LIMITS: Limits = Limits {
    connect: Duration::from_secs(10),
    answer: Duration::from_secs(10),
    wait: Duration::from_secs(300),
    wait_min: Duration::from_secs(1),
    back_off: Duration::from_millis(20),
    back_off_max: Duration::from_secs(5),
    pace: Duration::from_secs(60),
    pace_bytes: 1,
    disk_spare_bytes: 0,
    gap: Duration::from_millis(10),
};

pub(crate) struct Site {
    pub(crate) server: Server,
    pub(crate) relay: Relay,
    pub(crate) state: TempDir,
    pub(crate) limits: Limits,
    /// 0: never set.
    pub(crate) clock: Arc<AtomicU64>,
    pub(crate) reports: watch::Sender<Report>,
    pub(crate) sign_requests: bool,
}

/// A follower at work.
pub(crate) struct Running {
    pub(crate) cloud: Cloud,
    cancel: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) async fn stop(self) {
        self.cancel.cancel();
        self.task.await.unwrap();
    }

    pub(crate) async fn link(&self, wanted: impl Fn(&Link) -> bool) -> Link {
        let mut link = self.cloud.link();
        let found = tokio::time::timeout(Duration::from_secs(30), link.wait_for(wanted)).await;
        found.unwrap_or_else(|_| panic!("it is {:?}", *self.cloud.link().borrow())).unwrap().clone()
    }

    pub(crate) async fn connected(&self) {
        self.link(|link| *link == Link::Connected).await;
    }

    /// Until the deployment with this number is handed over.
    pub(crate) async fn deployed(&self, number: u64) {
        let mut accepted = self.cloud.accepted();
        let found = accepted.wait_for(|accepted| {
            accepted.as_ref().and_then(|accepted| accepted.document()).is_some_and(|document| document.number == number)
        });
        tokio::time::timeout(Duration::from_secs(30), found).await.expect("it is not handed over").unwrap();
    }
}

impl Site {
    pub(crate) async fn new() -> Self {
        Self::of(Server::of(Fleet::new()).await).await
    }

    pub(crate) async fn of(server: Server) -> Self {
        let relay = Relay::to(server.port).await;
        let state = tempfile::tempdir().unwrap();
        std::fs::write(state.path().join("claim"), format!("{}\n", server.fleet.token())).unwrap();
        let clock = Arc::new(AtomicU64::new(NOW_MS));
        let reports = watch::Sender::new(report());
        Self { server, relay, state, limits: LIMITS, clock, reports, sign_requests: false }
    }

    pub(crate) fn now(&self) -> Now {
        let clock = Arc::clone(&self.clock);
        Arc::new(move || Some(clock.load(SeqCst)).filter(|now| *now > 0))
    }

    /// Both clocks.
    pub(crate) fn set_clocks(&self, now_ms: u64) {
        self.clock.store(now_ms, SeqCst);
        self.server.fleet.set_clock(now_ms);
    }

    pub(crate) fn config(&self) -> SyncConfig {
        SyncConfig {
            state: self.state.path().to_owned(),
            url: url(self.relay.port),
            gateway: GatewayName::parse(GATEWAY).unwrap(),
            claim_token: Some(self.state.path().join("claim")),
            root: None,
            certificate: None,
            ca: None,
            sign_requests: self.sign_requests,
            report_every: Duration::from_secs(3600),
            limits: self.limits,
        }
    }

    pub(crate) fn follow(&self) -> Running {
        self.follow_with(self.config())
    }

    pub(crate) fn follow_with(&self, config: SyncConfig) -> Running {
        let (follower, cloud) = Follower::open(config, self.now()).unwrap();
        let cancel = CancellationToken::new();
        let task = tokio::spawn(follower.run(self.reports.subscribe(), cancel.clone()));
        Running { cloud, cancel, task }
    }

    /// Provisions the gateway, and stops again.
    pub(crate) async fn provision(&self) -> Identity {
        let running = self.follow();
        running.connected().await;
        running.stop().await;
        self.identity().unwrap()
    }

    pub(crate) fn identity(&self) -> Option<Identity> {
        Identity::open(&self.identity_folder()).unwrap()
    }

    pub(crate) fn identity_folder(&self) -> std::path::PathBuf {
        self.state.path().join("identity")
    }

    /// A session of a provisioned gateway, by way of the relay.
    pub(crate) async fn session(&self) -> Session {
        self.session_of(self.provision().await)
    }

    pub(crate) fn session_of(&self, identity: Identity) -> Session {
        let ca = vec![self.server.fleet.ca.clone()];
        let config =
            SessionConfig { url: url(self.relay.port), ca, sign_requests: self.sign_requests, limits: self.limits };
        Session::new(Arc::new(identity), &config, self.now()).unwrap()
    }
}

pub(crate) fn report() -> Report {
    Report {
        boot: String::new(),
        sequence: 0,
        time_ms: None,
        agent: "0.0.0".to_owned(),
        target: "x86_64-unknown-linux-gnu".to_owned(),
        compiles: true,
        root: 0,
        desired_sequence: 0,
        progress: None,
        active: None,
        running: Vec::new(),
        unhealthy: Vec::new(),
        refused: String::new(),
        figures: std::collections::BTreeMap::new(),
        last_errors: Vec::new(),
        shadow: serde_json::Value::Null,
        logs: Vec::new(),
    }
}

/// Until `what` holds.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
