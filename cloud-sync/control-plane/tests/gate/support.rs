//! A control plane on a free port, people and gateways that call it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use control_plane::clock::Clock;
use control_plane::folder::Folder;
use control_plane::{ControlPlane, InitOptions, ServeOptions, init, serve};
use rcgen::{CertificateParams, KeyPair};
use reqwest::{Method, StatusCode};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use sync_protocol::provision::{ClaimToken, Provisioned};
use sync_protocol::{Envelope, PublicKey, Role, RoleKeys, Root, SecretKey};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const HOUR_MS: u64 = 3600 * 1000;
pub(crate) const DAY_MS: u64 = 24 * HOUR_MS;

/// A control plane whose clock the test sets.
pub(crate) struct Cloud {
    _home: tempfile::TempDir,
    pub(crate) plane: Arc<ControlPlane>,
    pub(crate) url: String,
    pub(crate) ca: String,
    pub(crate) admin: String,
    ahead_ms: Arc<AtomicU64>,
    shutdown: CancellationToken,
    serving: Option<JoinHandle<()>>,
}

#[expect(clippy::disallowed_methods, reason = "certificates are checked by the real time")]
pub(crate) fn real_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

impl Cloud {
    pub(crate) async fn start() -> Self {
        Self::start_with(ServeOptions::default()).await
    }

    pub(crate) async fn start_with(options: ServeOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path().join("cloud"));
        let ahead_ms = Arc::new(AtomicU64::new(0));
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let made = init(&folder, &InitOptions { names, admin: "founder".to_owned() }, &Clock::system()).await.unwrap();
        let (plane, url, shutdown, serving) = open(&folder, &ahead_ms, options).await;
        let cloud = Self {
            _home: dir,
            plane,
            url,
            ca: made.ca_pem,
            admin: made.token,
            ahead_ms,
            shutdown,
            serving: Some(serving),
        };
        let (status, answer) = cloud.admin().post("/v1/roots", &root(made.online)).await;
        assert_eq!(status, StatusCode::CREATED, "{answer}");
        cloud
    }

    /// The same, after the process was started again.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        let folder = self.plane.folder.clone();
        // What it holds open goes with the last who uses it.
        let old = std::mem::replace(&mut self.plane, unused().await);
        drop(old);
        let options = ServeOptions::default();
        for _ in 0..100 {
            if folder.lock().is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let (plane, url, shutdown, serving) = open(&folder, &self.ahead_ms, options).await;
        (self.plane, self.url, self.shutdown, self.serving) = (plane, url, shutdown, Some(serving));
    }

    pub(crate) async fn stop(&mut self) {
        self.shutdown.cancel();
        if let Some(serving) = self.serving.take() {
            serving.await.unwrap();
        }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.plane.clock.now_ms()
    }

    pub(crate) fn pass(&self, ms: u64) {
        self.ahead_ms.fetch_add(ms, Ordering::Relaxed);
    }

    pub(crate) fn caller(&self, token: Option<&str>, identity: Option<(&str, &KeyPair)>) -> Caller {
        Caller { url: self.url.clone(), http: http(&self.ca, identity), token: token.map(str::to_owned) }
    }

    pub(crate) fn admin(&self) -> Caller {
        self.caller(Some(&self.admin), None)
    }

    pub(crate) async fn person(&self, role: &str) -> Caller {
        let (status, answer) = self.admin().post("/v1/tokens", &json!({"name": role, "role": role})).await;
        assert_eq!(status, StatusCode::CREATED, "{answer}");
        self.caller(answer["token"].as_str(), None)
    }

    /// A claim of one day, with `more` of its settings.
    pub(crate) async fn claim(&self, more: Value) -> ClaimToken {
        let mut asked = json!({"expires_ms": self.now_ms() + DAY_MS});
        asked.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, answer) = self.admin().post("/v1/claims", &asked).await;
        assert_eq!(status, StatusCode::CREATED, "{answer}");
        answer["token"].as_str().unwrap().parse().unwrap()
    }

    /// A gateway with a key of its own that was let in.
    pub(crate) async fn gateway(&self, name: &str) -> Gateway {
        let claim = self.claim(json!({})).await;
        self.let_in(&claim, name, KeyPair::generate().unwrap()).await
    }

    pub(crate) async fn let_in(&self, claim: &ClaimToken, name: &str, key: KeyPair) -> Gateway {
        let (status, answer) = self.provision(claim, name, &csr(&key), name).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        Gateway::of(self, answer, key)
    }

    pub(crate) async fn provision(
        &self,
        claim: &ClaimToken,
        name: &str,
        csr: &str,
        nonce: &str,
    ) -> (StatusCode, Value) {
        let asked = json!({"claim": claim.id, "secret": claim.secret, "name": name, "csr": csr, "nonce": nonce});
        self.caller(None, None).post("/v1/provision", &asked).await
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn open(
    folder: &Folder,
    ahead_ms: &Arc<AtomicU64>,
    options: ServeOptions,
) -> (Arc<ControlPlane>, String, CancellationToken, JoinHandle<()>) {
    let ahead_ms = ahead_ms.clone();
    let clock = Clock::new(move || real_ms() + ahead_ms.load(Ordering::Relaxed));
    let plane = ControlPlane::open(folder, clock).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let shutdown = CancellationToken::new();
    let serving = tokio::spawn({
        let (plane, shutdown) = (plane.clone(), shutdown.clone());
        async move { serve(plane, listener, options, shutdown).await.unwrap() }
    });
    (plane, url, shutdown, serving)
}

/// Stands where a control plane was that is being stopped.
async fn unused() -> Arc<ControlPlane> {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::new(dir.path().join("unused"));
    let options = InitOptions { names: vec!["localhost".to_owned()], admin: "nobody".to_owned() };
    init(&folder, &options, &Clock::system()).await.unwrap();
    ControlPlane::open(&folder, Clock::system()).await.unwrap()
}

/// A root of trust whose keys nobody needs again.
fn root(online: PublicKey) -> Envelope {
    let key = SecretKey::generate().unwrap();
    let own = || RoleKeys::new([key.public()], 1);
    let roles = [
        (Role::Root, own()),
        (Role::Publisher, own()),
        (Role::Operator, own()),
        (Role::Online, RoleKeys::new([online], 1)),
    ];
    let root = Root { version: 1, expires_ms: real_ms() + 3650 * DAY_MS, roles: roles.into(), agents: None };
    Envelope::sign(&root, &[&key]).unwrap()
}

pub(crate) fn csr(key: &KeyPair) -> String {
    CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
}

/// Someone who calls: with a token, a certificate, or nothing.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) url: String,
    pub(crate) http: reqwest::Client,
    pub(crate) token: Option<String>,
}

impl Caller {
    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    pub(crate) async fn call(&self, method: Method, path: &str, body: Option<&Value>) -> (StatusCode, Value) {
        let mut request = self.request(method, path);
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.call(Method::GET, path, None).await
    }

    pub(crate) async fn post(&self, path: &str, body: &impl serde::Serialize) -> (StatusCode, Value) {
        self.call(Method::POST, path, Some(&serde_json::to_value(body).unwrap())).await
    }

    pub(crate) async fn delete(&self, path: &str) -> StatusCode {
        self.call(Method::DELETE, path, None).await.0
    }

    pub(crate) async fn deliver(&self, gateway: &str, lines: &str) -> (StatusCode, Value) {
        let body = zstd::encode_all(lines.as_bytes(), 1).unwrap();
        let request = self.request(Method::POST, &format!("/v1/gateways/{gateway}/records"));
        let answer = request.header("content-encoding", "zstd").body(body).send().await.unwrap();
        let status = answer.status();
        (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or(Value::Null))
    }
}

/// One that was let in.
pub(crate) struct Gateway {
    pub(crate) name: String,
    pub(crate) groups: Vec<String>,
    pub(crate) key: KeyPair,
    pub(crate) chain: String,
    pub(crate) caller: Caller,
}

impl Gateway {
    pub(crate) fn of(cloud: &Cloud, answer: Value, key: KeyPair) -> Self {
        let answer: Provisioned = serde_json::from_value(answer).unwrap();
        let caller = cloud.caller(None, Some((&answer.certificate, &key)));
        let groups = answer.groups.into_iter().map(String::from).collect();
        Self { name: answer.name.to_string(), groups, key, chain: answer.certificate, caller }
    }

    pub(crate) async fn renew(&self) -> (StatusCode, Value) {
        self.caller.post(&format!("/v1/gateways/{}/renew", self.name), &json!({"csr": csr(&self.key)})).await
    }

    pub(crate) async fn deliver(&self, lines: &str) -> (StatusCode, Value) {
        self.caller.deliver(&self.name, lines).await
    }
}

/// A line as the agent's uplink writes it.
pub(crate) fn line(sequence: u64, data: &str) -> String {
    let time_ms = 1_795_359_600_000 + sequence;
    format!(
        "{{\"id\":\"g/readings/{sequence}\",\"gateway\":\"g\",\"stream\":\"readings\",\"sequence\":{sequence},\"time_ms\":{time_ms},\"replayed\":false,\"data\":{data}}}\n"
    )
}

fn http(ca: &str, identity: Option<(&str, &KeyPair)>) -> reqwest::Client {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match identity {
        None => config.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<Vec<_>, _>>().unwrap();
            let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
            config.with_client_auth_cert(chain, key).unwrap()
        }
    };
    reqwest::Client::builder().tls_backend_preconfigured(config).no_proxy().build().unwrap()
}
