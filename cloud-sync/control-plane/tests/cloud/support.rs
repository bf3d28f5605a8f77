//! A control plane that serves on a free port, and those who call it. Who calls is said in a header here: how it is found out has tests of its own.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::Request;
use axum::http::HeaderMap;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use control_plane::auth::{Caller, GatewayCaller, Role};
use control_plane::clock::Clock;
use control_plane::folder::Folder;
use control_plane::{ControlPlane, api};
use reqwest::Method;
use serde_json::{Value, json};
use sync_protocol::desired::DesiredAnswer;
use sync_protocol::name::GatewayName;
use sync_protocol::report::Report;
use sync_protocol::{
    Deployment, Digest, Envelope, PublicKey, Release, Role as Signer, RoleKeys, Root, SecretKey, Trust,
};

pub(crate) const DAY_MS: u64 = 24 * 3600 * 1000;

/// The system's time, as far ahead as a test has set it.
#[derive(Clone, Default)]
pub(crate) struct Time(Arc<AtomicU64>);

impl Time {
    #[expect(clippy::disallowed_methods, reason = "the tests' one place that reads the time")]
    pub(crate) fn now_ms(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        u64::try_from(now.as_millis()).unwrap() + self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn go_ahead(&self, ms: u64) {
        self.0.fetch_add(ms, Ordering::Relaxed);
    }

    pub(crate) fn go_back(&self, ms: u64) {
        self.0.fetch_sub(ms, Ordering::Relaxed);
    }

    pub(crate) fn clock(&self) -> Clock {
        let time = self.clone();
        Clock::new(move || time.now_ms())
    }
}

/// Those who sign.
#[derive(Clone)]
pub(crate) struct Signers {
    pub(crate) root: SecretKey,
    pub(crate) publisher: SecretKey,
    pub(crate) operator: SecretKey,
}

impl Signers {
    pub(crate) fn new() -> Self {
        let key = || SecretKey::generate().unwrap();
        Self { root: key(), publisher: key(), operator: key() }
    }

    pub(crate) fn root(&self, version: u64, online: PublicKey, expires_ms: u64) -> Root {
        let role = |key: PublicKey| RoleKeys::new([key], 1);
        let roles = [
            (Signer::Root, role(self.root.public())),
            (Signer::Publisher, role(self.publisher.public())),
            (Signer::Operator, role(self.operator.public())),
            (Signer::Online, role(online)),
        ];
        Root { version, expires_ms, roles: roles.into(), agents: None }
    }
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }

    /// Its error and hint.
    #[track_caller]
    pub(crate) fn error(&self) -> String {
        let body = self.json();
        format!("{} {}: {}", self.status, body["error"].as_str().unwrap(), body["hint"].as_str().unwrap_or_default())
    }

    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert!((200..300).contains(&self.status), "{} {}", self.status, String::from_utf8_lossy(&self.body));
        self
    }

    #[track_caller]
    pub(crate) fn refused(self, status: u16, words: &str) -> Self {
        assert_eq!(self.status, status, "{}", String::from_utf8_lossy(&self.body));
        assert!(self.error().contains(words), "{}", self.error());
        self
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }
}

/// A control plane that serves.
pub(crate) struct Cloud {
    pub(crate) plane: Arc<ControlPlane>,
    pub(crate) folder: Folder,
    pub(crate) url: String,
    pub(crate) time: Time,
    pub(crate) signers: Signers,
    http: reqwest::Client,
    serving: tokio::task::JoinHandle<()>,
    pub(crate) home: tempfile::TempDir,
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.plane.closing.cancel();
        self.serving.abort();
    }
}

pub(crate) fn client() -> reqwest::Client {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// Serves `plane`, and believes the headers of the tests.
pub(crate) async fn serve(plane: Arc<ControlPlane>) -> (String, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = api::router(plane).layer(from_fn(believe));
    (url, tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }))
}

async fn believe(mut request: Request, next: Next) -> Response {
    let said = |headers: &HeaderMap, name| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let (person, gateway) = (said(request.headers(), "person"), said(request.headers(), "gateway"));
    if let Some(role) = person {
        let role: Role = serde_json::from_value(json!(role)).unwrap();
        request.extensions_mut().insert(Caller { name: "ann".to_owned(), role });
    }
    if let Some(name) = gateway {
        request.extensions_mut().insert(GatewayCaller(GatewayName::parse(&name).unwrap()));
    }
    next.run(request).await
}

impl Cloud {
    /// One that was just made.
    pub(crate) async fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let folder = Folder::new(home.path().join("cloud"));
        let time = Time::default();
        make(&folder, &time).await;
        let plane = ControlPlane::open(&folder, time.clock()).await.unwrap();
        let (url, serving) = serve(plane.clone()).await;
        Self { plane, folder, url, time, signers: Signers::new(), http: client(), serving, home }
    }

    /// One with its root of trust, and these gateways in group `presses`.
    pub(crate) async fn with_gateways(gateways: &[&str]) -> Self {
        let cloud = Self::new().await;
        cloud.hand_in_root(1).await;
        for gateway in gateways {
            cloud.add_gateway(gateway).await;
        }
        cloud.person("operator", Method::PUT, "/v1/groups/presses", &json!({"gateways": gateways})).await.ok();
        cloud
    }

    pub(crate) async fn hand_in_root(&self, version: u64) -> Envelope {
        let online = self.get("/v1/roots").await.json()["online"][0].as_str().unwrap().to_owned();
        let root = self.signers.root(version, online.try_into().unwrap(), self.time.now_ms() + 365 * DAY_MS);
        let envelope = Envelope::sign(&root, &[&self.signers.root]).unwrap();
        self.person("admin", Method::POST, "/v1/roots", &envelope).await.ok();
        envelope
    }

    pub(crate) async fn add_gateway(&self, name: &str) {
        let name = GatewayName::parse(name).unwrap();
        let admin = Caller { name: "ann".to_owned(), role: Role::Admin };
        let entry = self.plane.entry(&admin, "test", name.as_str(), json!({}));
        self.plane.store.add_gateway(&name, &[], self.time.now_ms(), &entry).await.unwrap();
    }

    pub(crate) async fn revoke(&self, name: &str) {
        let path = format!("/v1/gateways/{name}");
        self.person("operator", Method::DELETE, &path, &json!({})).await.ok();
    }

    async fn call(&self, request: reqwest::RequestBuilder) -> Answer {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Answer { status, headers, body: response.bytes().await.unwrap().to_vec() }
    }

    /// What a person with `role` says.
    pub(crate) async fn person(&self, role: &str, method: Method, path: &str, body: &impl serde::Serialize) -> Answer {
        let request = self.http.request(method, format!("{}{path}", self.url)).header("person", role);
        let request = request.header("content-type", "application/json");
        self.call(request.body(serde_json::to_vec(body).unwrap())).await
    }

    /// What a person reads.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call(self.http.get(format!("{}{path}", self.url)).header("person", "admin")).await
    }

    /// A call with headers of its own.
    pub(crate) async fn raw(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Answer {
        let mut request = self.http.request(method, format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.call(request.body(body)).await
    }

    /// Uploads bytes.
    pub(crate) async fn upload(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let path = format!("/v1/blobs/{}", digest.hex());
        let answer = self.raw(Method::PUT, &path, &[("person", "publisher")], bytes.to_vec()).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        digest
    }

    /// Publishes a function whose bundle is `bytes`; answers its artifact for a deployment.
    pub(crate) async fn publish(&self, name: &str, version: &str, bytes: &[u8]) -> Value {
        self.upload(bytes).await;
        let envelope = Envelope::sign(&release(name, version, bytes), &[&self.signers.publisher]).unwrap();
        self.person("publisher", Method::POST, "/v1/releases", &envelope).await.ok();
        artifact(&envelope)
    }

    /// A deployment of `artifacts`, not handed in.
    pub(crate) fn deployment(&self, target: &str, number: u64, artifacts: &[Value]) -> Deployment {
        let (kind, name) = target.split_once('/').unwrap();
        let deployment = json!({
            "target": {kind: name}, "number": number, "floor": 0, "created_ms": self.time.now_ms(),
            "expires_ms": self.time.now_ms() + 30 * DAY_MS, "artifacts": artifacts,
        });
        serde_json::from_value(deployment).unwrap()
    }

    pub(crate) fn sign(&self, deployment: &Deployment) -> Envelope {
        Envelope::sign(deployment, &[&self.signers.operator]).unwrap()
    }

    /// Hands a deployment in and makes it desired.
    pub(crate) async fn deploy(&self, deployment: &Deployment) {
        self.person("operator", Method::POST, "/v1/deployments", &self.sign(deployment)).await.ok();
        self.choose(&deployment.target.to_string(), json!(deployment.number)).await.ok();
    }

    pub(crate) async fn choose(&self, target: &str, number: Value) -> Answer {
        let path = format!("/v1/targets/{target}/desired");
        self.person("operator", Method::POST, &path, &json!({"deployment": number})).await
    }

    /// What a gateway is told; `etag` empty: it knows nothing.
    pub(crate) async fn ask(&self, gateway: &str, etag: &str, wait: u64) -> Answer {
        let path = format!("/v1/gateways/{gateway}/desired?wait={wait}&root=0");
        self.raw(Method::GET, &path, &[("gateway", gateway), ("if-none-match", etag)], "").await
    }

    /// The number of the deployment that a gateway is told to run, as it verifies it.
    pub(crate) async fn told(&self, gateway: &str) -> Option<u64> {
        let answer = DesiredAnswer::parse(&self.ask(gateway, "", 0).await.ok().body).unwrap();
        let trust =
            Trust::anchor(answer.roots.last().unwrap(), &answer.roots.last().unwrap().digest().unwrap()).unwrap();
        let name = GatewayName::parse(gateway).unwrap();
        let verified = trust.verify(&name, &answer, Some(self.time.now_ms()), None).unwrap();
        verified.deployment.map(|deployment| deployment.reference().number)
    }

    pub(crate) async fn report(&self, gateway: &str, report: &Report) -> Answer {
        let path = format!("/v1/gateways/{gateway}/reported");
        let headers = [("gateway", gateway), ("content-type", "application/json")];
        self.raw(Method::POST, &path, &headers, serde_json::to_vec(report).unwrap()).await
    }
}

/// Makes a control plane in `folder`.
pub(crate) async fn make(folder: &Folder, time: &Time) {
    folder.create().unwrap();
    control_plane::ca::Authority::create(&folder.keys(), time.now_ms()).unwrap();
    let store = control_plane::store::sqlite::SqliteStore::open(&folder.database()).await.unwrap();
    store.close().await;
    control_plane::online::OnlineKeys::open(folder).unwrap().create().unwrap();
}

pub(crate) fn release(name: &str, version: &str, bytes: &[u8]) -> Release {
    let release = json!({
        "kind": "function", "name": name, "version": version, "published_ms": 1,
        "blob": {"digest": Digest::of(bytes), "bytes": bytes.len()}, "capabilities": ["mqtt:publish:results/#"],
    });
    serde_json::from_value(release).unwrap()
}

/// As a deployment names it.
pub(crate) fn artifact(release: &Envelope) -> Value {
    let Release { kind, name, version, .. } = release.unverified().unwrap();
    json!({"kind": kind, "name": name, "version": version, "release": release.digest().unwrap()})
}

pub(crate) fn report(boot: &str, sequence: u64) -> Report {
    let report = json!({
        "boot": boot, "sequence": sequence, "time_ms": null, "agent": "0.0.0", "target": "x86_64-unknown-linux-gnu", "root": 1,
        "desired_sequence": 0, "progress": null, "active": null, "running": [], "unhealthy": [], "figures": {}, "last_errors": [],
    });
    serde_json::from_value(report).unwrap()
}
