//! What the control plane says, with what can be wrong about it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer, KeyPair, SerialNumber,
};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use serde_json::{Value, json};
use sync_protocol::deployment::{Deployment, Target};
use sync_protocol::desired::{self, DeploymentRef, Desired, DesiredAnswer};
use sync_protocol::name::GatewayName;
use sync_protocol::provision::{ClaimToken, ProvisionRequest, Provisioned, RenewRequest};
use sync_protocol::report::Report;
use sync_protocol::request::{CERTIFICATE, SignedHeaders};
use sync_protocol::{Digest, Envelope, Role, RoleKeys, Root, SecretKey};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// 2026-11-22, when it all begins.
pub(crate) const NOW_MS: u64 = 1_795_305_600_000;
pub(crate) const DAY_MS: u64 = 24 * 3600 * 1000;
pub(crate) const GATEWAY: &str = "press-hall-3";

/// Keys and certificates of one fleet.
pub(crate) struct Fleet {
    pub(crate) ca_pem: String,
    pub(crate) ca: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    pub(crate) root: SecretKey,
    pub(crate) publisher: SecretKey,
    pub(crate) operator: SecretKey,
    pub(crate) online: SecretKey,
    pub(crate) roots: Vec<Envelope>,
    clock: Arc<AtomicU64>,
}

/// A request that came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) at: std::time::Instant,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    /// By the certificate or the signature.
    pub(crate) gateway: Option<String>,
    /// Whether it was one of [`Book::refusals`].
    pub(crate) refused: bool,
}

/// What it knows, and how it misbehaves.
pub(crate) struct Book {
    pub(crate) seen: Vec<Seen>,
    pub(crate) issued: BTreeMap<String, Provisioned>,
    pub(crate) life_ms: u64,
    pub(crate) desired: DesiredAnswer,
    pub(crate) blobs: BTreeMap<String, Bytes>,
    pub(crate) reports: Vec<Report>,
    pub(crate) records: Vec<Value>,
    pub(crate) delta: Option<Value>,
    /// Says nothing of `Range`.
    pub(crate) ranges: bool,
    /// Answers of blobs and of what is wanted say nothing of their length, and never end.
    pub(crate) endless: bool,
    /// The next answers: status, `Retry-After`.
    pub(crate) refusals: VecDeque<(u16, Option<&'static str>)>,
    /// Does what it is asked, and is cut before it says so.
    pub(crate) answers_lost: u32,
    pub(crate) report_takes: Duration,
    pub(crate) reports_at_once: u32,
    pub(crate) reports_at_once_most: u32,
    /// What it issues instead of what it should.
    pub(crate) impostor: Option<Arc<Fleet>>,
    /// Whether a certificate that has expired ends the handshake.
    pub(crate) strict: bool,
}

pub(crate) struct Server {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) port: u16,
    book: Arc<Mutex<Book>>,
    changed: watch::Sender<u64>,
    tasks: JoinSet<()>,
}

impl Fleet {
    pub(crate) fn new() -> Arc<Self> {
        Self::with_roots(1)
    }

    /// One that has changed its root of trust until it was at version `count`.
    pub(crate) fn with_roots(count: u64) -> Arc<Self> {
        let key = KeyPair::generate().unwrap();
        let mut params = params("the authority", NOW_MS - DAY_MS, NOW_MS + 10_000 * DAY_MS);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap();
        let (ca_pem, der) = (ca.pem(), ca.der().clone());
        let keys = [(); 4].map(|()| SecretKey::generate().unwrap());
        let roles: BTreeMap<_, _> =
            Role::ALL.iter().zip(&keys).map(|(role, key)| (*role, RoleKeys::new([key.public()], 1))).collect();
        let root = |version| Root { version, expires_ms: NOW_MS + 3650 * DAY_MS, roles: roles.clone(), agents: None };
        let roots = (1..=count).map(|version| Envelope::sign(&root(version), &[&keys[0]]).unwrap()).collect();
        let [root, publisher, operator, online] = keys;
        let clock = Arc::new(AtomicU64::new(NOW_MS));
        let issuer = Issuer::new(params, key);
        Arc::new(Self { ca_pem, ca: der, issuer, root, publisher, operator, online, roots, clock })
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.clock.load(SeqCst)
    }

    pub(crate) fn set_clock(&self, now_ms: u64) {
        self.clock.store(now_ms, SeqCst);
    }

    pub(crate) fn token(&self) -> ClaimToken {
        let (ca, root) = (Digest::of(&self.ca), self.roots[0].digest().unwrap());
        ClaimToken { id: "first".to_owned(), secret: "5e".repeat(32), ca, root }
    }

    /// A certificate for the key of `csr`.
    fn certify(&self, csr: &str, name: &GatewayName, life_ms: u64) -> String {
        let mut csr = CertificateSigningRequestParams::from_pem(csr).unwrap();
        csr.params = params(name.as_str(), self.now_ms(), self.now_ms() + life_ms);
        format!("{}{}", csr.signed_by(&self.issuer).unwrap().pem(), self.ca_pem)
    }

    /// A certificate for a key of somebody's own.
    pub(crate) fn certify_key(&self, key: &KeyPair) -> String {
        params(GATEWAY, NOW_MS, NOW_MS + 90 * DAY_MS).signed_by(key, &self.issuer).unwrap().pem()
    }

    pub(crate) fn provisioned(&self, name: &GatewayName, csr: &str, life_ms: u64) -> Provisioned {
        Provisioned {
            name: name.clone(),
            groups: vec![sync_protocol::name::GroupName::parse("presses").unwrap()],
            certificate: self.certify(csr, name, life_ms),
            ca: self.ca_pem.clone(),
            roots: self.roots.clone(),
        }
    }

    /// A deployment of nothing for the gateway, and the word to run it.
    pub(crate) fn answer(&self, sequence: u64, number: u64, by: &SecretKey) -> DesiredAnswer {
        self.answer_with(sequence, number, by, Vec::new())
    }

    /// The same, and something that is asked for beside it.
    pub(crate) fn answer_with(
        &self,
        sequence: u64,
        number: u64,
        by: &SecretKey,
        requests: Vec<desired::Request>,
    ) -> DesiredAnswer {
        let deployment = Envelope::sign(&self.deployment(number), &[by]).unwrap();
        let word = Desired { requests, ..self.word(sequence, &deployment) };
        let desired = Some(Envelope::sign(&word, &[&self.online]).unwrap());
        DesiredAnswer { roots: Vec::new(), desired, deployment: Some(deployment), releases: Vec::new() }
    }

    /// Nothing, for the gateway.
    pub(crate) fn deployment(&self, number: u64) -> Deployment {
        Deployment {
            target: Target::Gateway(GatewayName::parse(GATEWAY).unwrap()),
            number,
            floor: 1,
            created_ms: self.now_ms(),
            expires_ms: self.now_ms() + 30 * DAY_MS,
            artifacts: Vec::new(),
            streams: BTreeMap::new(),
            policy: sync_protocol::deployment::Policy::default(),
            comment: String::new(),
        }
    }

    /// That the gateway should run this.
    pub(crate) fn word(&self, sequence: u64, deployment: &Envelope) -> Desired {
        let number = deployment.unverified::<Deployment>().unwrap().number;
        Desired {
            gateway: GatewayName::parse(GATEWAY).unwrap(),
            groups: Vec::new(),
            sequence,
            deployment: Some(DeploymentRef { number, digest: deployment.digest().unwrap() }),
            issued_ms: self.now_ms(),
            expires_ms: self.now_ms() + 14 * DAY_MS,
            requests: Vec::new(),
        }
    }
}

fn params(name: &str, from_ms: u64, until_ms: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let at = |ms| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_millis(ms);
    (params.not_before, params.not_after) = (at(from_ms), at(until_ms));
    params.serial_number = Some(SerialNumber::from(fastrand::u64(1..u64::MAX / 2)));
    params
}

impl Server {
    pub(crate) async fn of(fleet: Arc<Fleet>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let book = Arc::new(Mutex::new(Book {
            seen: Vec::new(),
            issued: BTreeMap::new(),
            life_ms: 90 * DAY_MS,
            desired: DesiredAnswer::default(),
            blobs: BTreeMap::new(),
            reports: Vec::new(),
            records: Vec::new(),
            delta: None,
            ranges: true,
            endless: false,
            refusals: VecDeque::new(),
            answers_lost: 0,
            report_takes: Duration::ZERO,
            reports_at_once: 0,
            reports_at_once_most: 0,
            impostor: None,
            strict: false,
        }));
        let changed = watch::Sender::new(0);
        let acceptor = TlsAcceptor::from(Arc::new(tls(&fleet, Arc::clone(&book))));
        let desk = Desk { fleet: Arc::clone(&fleet), book: Arc::clone(&book), changed: changed.clone() };
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, desk) = (acceptor.clone(), desk.clone());
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let shown = stream.get_ref().1.peer_certificates().map(|chain| chain[0].clone().into_owned());
                    let service = hyper::service::service_fn(move |request| {
                        let (desk, shown) = (desk.clone(), shown.clone());
                        async move { desk.serve(request, shown).await }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { fleet, port, book, changed, tasks }
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    pub(crate) fn put(&self, bytes: &[u8]) -> sync_protocol::Blob {
        let digest = Digest::of(bytes);
        self.book().blobs.insert(digest.hex(), Bytes::copy_from_slice(bytes));
        sync_protocol::Blob { digest, bytes: bytes.len() as u64 }
    }

    pub(crate) fn wants(&self, answer: DesiredAnswer) {
        self.book().desired = answer;
        self.changed.send_modify(|count| *count += 1);
    }

    pub(crate) fn calls(&self, part: &str) -> Vec<Seen> {
        self.book().seen.iter().filter(|seen| seen.path.contains(part)).cloned().collect()
    }

    /// Stops answering, and takes nothing any more.
    pub(crate) async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

pub(crate) fn url(port: u16) -> String {
    format!("https://localhost:{port}")
}

#[derive(Clone)]
struct Desk {
    fleet: Arc<Fleet>,
    book: Arc<Mutex<Book>>,
    changed: watch::Sender<u64>,
}

/// The connection ends without an answer.
#[derive(Debug, thiserror::Error)]
#[error("lost")]
struct Lost;

impl Desk {
    async fn serve(
        &self,
        request: Request<Incoming>,
        shown: Option<CertificateDer<'static>>,
    ) -> Result<Response<Body>, Lost> {
        let (head, body) = request.into_parts();
        let body = to_bytes(Body::new(body), 8 << 20).await.map_err(|_| Lost)?;
        let path = head.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
        let gateway = match head.headers.contains_key(CERTIFICATE) {
            true => signer(&self.fleet, &head, &body),
            false => shown.as_ref().map(name_in),
        };
        let refusal = {
            let mut book = self.book.lock().unwrap();
            let (at, headers, refusal) = (std::time::Instant::now(), head.headers.clone(), book.refusals.pop_front());
            let (path, gateway, refused) = (path.clone(), gateway.clone(), refusal.is_some());
            book.seen.push(Seen { at, path, headers, gateway, refused });
            refusal
        };
        if let Some((status, retry_after)) = refusal {
            let mut response = answer(status, &json!({"error": "not now"}));
            if let Some(after) = retry_after {
                response.headers_mut().insert("retry-after", after.parse().unwrap());
            }
            return Ok(response);
        }
        let mut response =
            self.answer(head.uri.path(), head.uri.query().unwrap_or(""), &head.headers, body, gateway).await;
        let mut book = self.book.lock().unwrap();
        if book.answers_lost > 0 {
            book.answers_lost -= 1;
            return Err(Lost);
        }
        drop(book);
        response.headers_mut().insert("date", self.date());
        Ok(response)
    }

    async fn answer(
        &self,
        path: &str,
        query: &str,
        headers: &HeaderMap,
        body: Bytes,
        gateway: Option<String>,
    ) -> Response<Body> {
        let parts: Vec<&str> = path.trim_start_matches("/v1/").split('/').collect();
        match (&parts[..], gateway) {
            (["provision"], _) => self.provision(serde_json::from_slice(&body).unwrap()),
            (["blobs", hex], Some(_)) => self.blob(hex, headers),
            (["gateways", name, call], Some(gateway)) if *name == gateway => match *call {
                "desired" => self.desired(query, headers).await,
                "reported" => self.reported(serde_json::from_slice(&body).unwrap()).await,
                "records" => self.records(&body),
                "renew" => {
                    let request: RenewRequest = serde_json::from_slice(&body).unwrap();
                    let life_ms = self.book.lock().unwrap().life_ms;
                    let name = GatewayName::parse(name).unwrap();
                    answer(200, &self.fleet.provisioned(&name, &request.csr, life_ms))
                }
                _ => answer(404, &json!({"error": "no such call"})),
            },
            _ => answer(401, &json!({"error": "who is it?", "hint": "show a certificate"})),
        }
    }

    /// By its own clock.
    fn date(&self) -> axum::http::HeaderValue {
        let at = std::time::UNIX_EPOCH + Duration::from_millis(self.fleet.now_ms());
        let at = jiff::Timestamp::try_from(at).unwrap();
        jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&at).unwrap().parse().unwrap()
    }

    fn provision(&self, request: ProvisionRequest) -> Response<Body> {
        let mut book = self.book.lock().unwrap();
        if request.secret != self.fleet.token().secret {
            return answer(403, &json!({"error": "no such claim"}));
        }
        let fleet = book.impostor.clone().unwrap_or_else(|| Arc::clone(&self.fleet));
        let life_ms = book.life_ms;
        let issued = book.issued.entry(request.nonce.clone());
        answer(200, issued.or_insert_with(|| fleet.provisioned(&request.name, &request.csr, life_ms)))
    }

    async fn desired(&self, query: &str, headers: &HeaderMap) -> Response<Body> {
        let wait = query.split('&').find_map(|pair| pair.strip_prefix("wait=")).unwrap().parse().unwrap();
        let mut changed = self.changed.subscribe();
        let current = || {
            let body = serde_json::to_vec(&self.book.lock().unwrap().desired).unwrap();
            (format!("\"{}\"", Digest::of(&body).hex()), body)
        };
        let known = headers.get("if-none-match").and_then(|etag| etag.to_str().ok()).unwrap_or("");
        let held = async {
            loop {
                changed.borrow_and_update();
                let (etag, body) = current();
                if self.book.lock().unwrap().endless {
                    return Response::new(endless());
                }
                if etag != known {
                    return Response::builder().header("etag", etag).body(Body::from(body)).unwrap();
                }
                changed.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(Duration::from_secs(wait), held).await {
            Ok(response) => response,
            Err(_) => Response::builder().status(StatusCode::NOT_MODIFIED).body(Body::empty()).unwrap(),
        }
    }

    fn blob(&self, hex: &str, headers: &HeaderMap) -> Response<Body> {
        let book = self.book.lock().unwrap();
        let Some(bytes) = book.blobs.get(hex) else { return answer(404, &json!({"error": "no such blob"})) };
        if book.endless {
            return Response::new(endless());
        }
        let range = headers.get("range").filter(|_| book.ranges).and_then(|range| range.to_str().ok());
        let from: Option<usize> =
            range.map(|range| range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap());
        match from {
            None => Response::new(Body::from(bytes.clone())),
            Some(from) if from >= bytes.len() => answer(416, &Value::Null),
            Some(from) => Response::builder()
                .status(206)
                .header("content-range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len()))
                .body(Body::from(bytes.slice(from..)))
                .unwrap(),
        }
    }

    async fn reported(&self, report: Report) -> Response<Body> {
        let takes = {
            let mut book = self.book.lock().unwrap();
            book.reports_at_once += 1;
            book.reports_at_once_most = book.reports_at_once_most.max(book.reports_at_once);
            book.report_takes
        };
        tokio::time::sleep(takes).await;
        let mut book = self.book.lock().unwrap();
        book.reports_at_once -= 1;
        book.reports.push(report);
        answer(200, &json!({"delta": book.delta}))
    }

    fn records(&self, body: &[u8]) -> Response<Body> {
        let lines = zstd::decode_all(body).unwrap();
        let mut book = self.book.lock().unwrap();
        let records: Vec<Value> = lines
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect();
        let acked = records.last().map(|record| record["sequence"].clone());
        for record in records {
            if !book.records.iter().any(|held| held["id"] == record["id"]) {
                book.records.push(record);
            }
        }
        answer(200, &json!({"acked": acked}))
    }
}

/// Blanks for ever, at up to 64 MB/s.
fn endless() -> Body {
    let blanks = futures_util::stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        Some((Ok::<_, Lost>(Bytes::from_static(&[b' '; 64 << 10])), ()))
    });
    Body::from_stream(blanks)
}

fn answer<T: serde::Serialize>(status: u16, body: &T) -> Response<Body> {
    let body = Body::from(serde_json::to_vec(body).unwrap());
    Response::builder().status(status).body(body).unwrap()
}

fn name_in(certificate: &CertificateDer<'_>) -> String {
    let (_, parsed) = X509Certificate::from_der(certificate).unwrap();
    let name = parsed.subject().iter_common_name().next().unwrap().as_str().unwrap();
    name.to_owned()
}

/// Who has signed the request, by the certificate that came along.
fn signer(fleet: &Fleet, head: &axum::http::request::Parts, body: &[u8]) -> Option<String> {
    use base64::Engine as _;
    let header = |name: &'static str| head.headers.get(name).and_then(|value| value.to_str().ok());
    let signed = SignedHeaders::parse(header).ok()?;
    let first = header(CERTIFICATE)?.split(',').next()?;
    let certificate = CertificateDer::from(base64::engine::general_purpose::STANDARD.decode(first).ok()?);
    if signed.created.abs_diff(fleet.now_ms() / 1000) > sync_protocol::request::FRESH_SECS {
        return None;
    }
    let base = signed.base(head.method.as_str(), head.uri.path(), head.uri.query().unwrap_or(""), body).ok()?;
    let (_, parsed) = X509Certificate::from_der(&certificate).ok()?;
    let key = parsed.public_key().subject_public_key.data.as_ref();
    let schemes = [
        SignatureScheme::ED25519,
        SignatureScheme::ECDSA_NISTP256_SHA256,
        SignatureScheme::ECDSA_NISTP384_SHA384,
        SignatureScheme::RSA_PSS_SHA512,
    ];
    let mapping = ring::default_provider().signature_verification_algorithms.mapping;
    let known =
        mapping.iter().filter(|(scheme, _)| schemes.contains(scheme)).flat_map(|(_, algorithms)| algorithms.iter());
    let of_key = known
        .into_iter()
        .filter(|one| parsed.public_key().algorithm.algorithm.as_bytes() == oid(one.public_key_alg_id().as_ref()));
    of_key
        .into_iter()
        .any(|one| one.verify_signature(key, base.as_bytes(), &signed.signature).is_ok())
        .then(|| name_in(&certificate))
}

/// The OID at the beginning of an algorithm identifier.
fn oid(identifier: &[u8]) -> &[u8] {
    &identifier[2..2 + usize::from(identifier[1])]
}

fn tls(fleet: &Fleet, book: Arc<Mutex<Book>>) -> ServerConfig {
    let key = KeyPair::generate().unwrap();
    let mut params = params("localhost", NOW_MS - DAY_MS, NOW_MS + 9_000 * DAY_MS);
    params.subject_alt_names =
        ["localhost", "cloud.example"].map(|name| rcgen::SanType::DnsName(name.try_into().unwrap())).into();
    let certificate = params.signed_by(&key, &fleet.issuer).unwrap();
    let provider = Arc::new(ring::default_provider());
    let verifier = AnyCertificate { provider: Arc::clone(&provider), clock: Arc::clone(&fleet.clock), book };
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(
            vec![certificate.der().clone(), fleet.ca.clone()],
            PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .unwrap()
}

/// Asks for a certificate, and looks at the date of it if it is strict.
struct AnyCertificate {
    provider: Arc<CryptoProvider>,
    clock: Arc<AtomicU64>,
    book: Arc<Mutex<Book>>,
}

impl std::fmt::Debug for AnyCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AnyCertificate")
    }
}

impl ClientCertVerifier for AnyCertificate {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let (_, parsed) = X509Certificate::from_der(end_entity).unwrap();
        let until_ms = parsed.validity().not_after.timestamp() as u64 * 1000;
        if self.book.lock().unwrap().strict && self.clock.load(SeqCst) > until_ms {
            return Err(CertificateError::Expired.into());
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
