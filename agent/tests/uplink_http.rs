//! The uplink to an HTTP server: a real one, of axum, that loses answers, stops, and refuses.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod support;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::Value;
use tempfile::TempDir;
use tidegate::clock::Clock;
use tidegate::config::{BatchConfig, HttpUplink, StreamConfig, UplinkConfig, UplinkTo};
use tidegate::journal::{Batch, Journal, JournalConfig, RecordMeta};
use tidegate::limits::Limits;
use tidegate::name::{GatewayName, StreamName};
use tidegate::units::Span;
use tidegate::uplink::{Publishers, Uplink, UplinkState, UplinkStatus};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

/// What the server does with the next request.
#[derive(Clone, Debug)]
enum Act {
    Take,
    /// Takes it, and the answer is lost.
    TakeAndHangUp,
    HangUp,
    /// Takes the first few, and says so.
    TakeFirst(usize),
    Answer(u16, &'static str),
    RetryAfter(u16, u64),
}

#[derive(Default)]
struct Seen {
    acts: VecDeque<Act>,
    /// Most records that it takes in a request.
    records_max: usize,
    /// Data that it refuses, whoever sends it.
    poison: Option<Value>,
    token: Option<String>,
    /// Each record that was taken first, in order.
    records: Vec<Value>,
    ids: HashSet<String>,
    repeats: usize,
    keys: Vec<String>,
    sizes: Vec<usize>,
}

#[derive(Clone, Default)]
struct Server(Arc<Mutex<Seen>>);

impl Server {
    fn seen<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }

    fn next(&self, acts: impl IntoIterator<Item = Act>) {
        self.seen(|seen| seen.acts.extend(acts));
    }

    fn data(&self) -> Vec<u64> {
        self.seen(|seen| seen.records.iter().map(|record| record["data"].as_u64().unwrap()).collect())
    }

    async fn listen(&self, address: SocketAddr) -> (SocketAddr, AbortHandle) {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().route("/records/{stream}", post(take)).with_state(self.clone());
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        (address, task.abort_handle())
    }
}

async fn take(State(server): State<Server>, headers: HeaderMap, body: Bytes) -> Response {
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    assert_eq!(header("content-encoding").as_deref(), Some("zstd"));
    assert_eq!(header("content-type").as_deref(), Some("application/x-ndjson"));
    let lines = zstd::bulk::decompress(&body, 4 << 20).unwrap();
    let records: Vec<Value> =
        std::str::from_utf8(&lines).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let act = server.seen(|seen| {
        seen.keys.push(header("idempotency-key").unwrap());
        if seen.token.is_some() && header("authorization") != seen.token.as_ref().map(|token| format!("Bearer {token}"))
        {
            return Act::Answer(401, "who are you?");
        }
        if records.len() > seen.records_max {
            return Act::Answer(413, "");
        }
        if seen.poison.as_ref().is_some_and(|poison| records.iter().any(|record| record["data"] == *poison)) {
            return Act::Answer(422, r#"{"error": "poison"}"#);
        }
        seen.acts.pop_front().unwrap_or(Act::Take)
    });
    let take = |count: usize| {
        server.seen(|seen| {
            seen.sizes.push(count);
            for record in records.iter().take(count) {
                if seen.ids.insert(record["id"].as_str().unwrap().to_owned()) {
                    seen.records.push(record.clone());
                } else {
                    seen.repeats += 1;
                }
            }
        });
        records.get(count.saturating_sub(1)).and_then(|record| record["sequence"].as_u64())
    };
    match act {
        Act::Take => {
            take(records.len());
            StatusCode::NO_CONTENT.into_response()
        }
        Act::TakeFirst(count) => format!(r#"{{"acked": {}}}"#, take(count).unwrap()).into_response(),
        Act::TakeAndHangUp => {
            take(records.len());
            hang_up()
        }
        Act::HangUp => hang_up(),
        Act::Answer(status, text) => (StatusCode::from_u16(status).unwrap(), text).into_response(),
        Act::RetryAfter(status, secs) => {
            (StatusCode::from_u16(status).unwrap(), [("retry-after", secs.to_string())]).into_response()
        }
    }
}

/// The connection ends in the middle of the answer.
fn hang_up() -> Response {
    let broken = futures_util::stream::iter([Ok("{"), Err(std::io::Error::other("gone"))]);
    Response::builder().header("content-length", "100").body(axum::body::Body::from_stream(broken)).unwrap()
}

fn readings() -> StreamName {
    StreamName::parse("readings").unwrap()
}

fn config(address: SocketAddr) -> StreamConfig {
    let batch = BatchConfig { max_records: 100, max_wait: Span(Duration::from_millis(5)) };
    let uplink = Some(UplinkConfig::http(&format!("http://{address}/records/{{stream}}")));
    StreamConfig { uplink, batch, ..StreamConfig::default() }
}

struct Gateway {
    journal: Arc<Journal>,
    uplink: Uplink,
}

impl Gateway {
    fn start(dir: &Path, stream: StreamConfig) -> Self {
        let streams = BTreeMap::from([(readings(), stream)]);
        let config = JournalConfig { streams: streams.clone(), limits: Arc::new(Limits::default()) };
        let journal = Arc::new(Journal::open(dir, config, Clock::system()).unwrap());
        let gateway = GatewayName::parse("hall-3").unwrap();
        let uplink =
            Uplink::start(Arc::clone(&journal), &Publishers::new(), gateway, &streams, Clock::system()).unwrap();
        Self { journal, uplink }
    }

    async fn append(&self, numbers: std::ops::RangeInclusive<u64>) {
        let meta = RecordMeta { time_ms: 1, ..RecordMeta::default() };
        let records = numbers.map(|n| (readings(), Bytes::from(n.to_string()), meta.clone())).collect();
        self.journal.commit(Batch { records, ..Batch::default() }).await.unwrap();
    }

    fn kept(&self, name: &str) -> u64 {
        self.journal.status().iter().find(|stream| stream.name.as_str() == name).unwrap().records
    }

    fn status(&self) -> UplinkStatus {
        self.uplink.status()[&readings()].clone()
    }

    async fn sent(&self) {
        eventually("all arrive and go", || self.kept("readings") == 0).await;
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not happen within 30 s");
}

async fn site() -> (TempDir, Server, SocketAddr, Gateway) {
    let server = Server::default();
    server.seen(|seen| seen.records_max = 1000);
    let (address, _) = server.listen(([127, 0, 0, 1], 0).into()).await;
    let dir = TempDir::new().unwrap();
    let gateway = Gateway::start(dir.path(), config(address));
    (dir, server, address, gateway)
}

/// Whatever is lost on the way, each record comes in the end, once by its id, in order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_loses_answers_gets_each_record_once_by_its_id() {
    let (dir, server, address, gateway) = site().await;
    server.next([Act::HangUp, Act::TakeAndHangUp, Act::TakeFirst(30), Act::Answer(500, ""), Act::TakeFirst(1)]);
    gateway.append(1..=1000).await;
    eventually("half has come", || server.data().len() > 500).await;
    drop(gateway);
    server.next([Act::TakeAndHangUp]);
    let mut gateway = None;
    for _ in 0..100 {
        // The old one's tasks hold the journal for a moment more.
        tokio::time::sleep(Duration::from_millis(50)).await;
        if std::fs::File::open(dir.path().join("lock")).unwrap().try_lock().is_ok() {
            gateway = Some(Gateway::start(dir.path(), config(address)));
            break;
        }
    }
    let gateway = gateway.unwrap();
    gateway.append(1001..=1100).await;
    gateway.sent().await;
    assert_eq!(server.data(), (1..=1100).collect::<Vec<_>>());
    assert!(server.seen(|seen| seen.repeats) >= 100, "the batch whose answer was lost came again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_is_sent_again_has_the_same_key() {
    let (_dir, server, _, gateway) = site().await;
    // What was there before the uplink ran says so; the batch that counts comes later.
    gateway.append(1..=1).await;
    gateway.sent().await;
    server.next([Act::TakeAndHangUp, Act::Answer(502, "")]);
    gateway.append(2..=101).await;
    gateway.sent().await;
    assert_eq!(server.seen(|seen| seen.keys[1..].to_vec()), vec!["hall-3/readings/2-101/100"; 3]);
    let again = server.seen(|seen| (seen.repeats, seen.records[1]["replayed"].clone()));
    assert_eq!(again, (100, Value::Bool(false)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_takes_less_gets_less() {
    let (_dir, server, _, gateway) = site().await;
    server.seen(|seen| seen.records_max = 30);
    gateway.append(1..=500).await;
    gateway.sent().await;
    assert_eq!(server.data(), (1..=500).collect::<Vec<_>>());
    assert_eq!(gateway.kept("dead-letters"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_is_refused_becomes_a_dead_letter_and_the_others_go_on() {
    let (_dir, server, _, gateway) = site().await;
    server.seen(|seen| seen.poison = Some(Value::from(77)));
    gateway.append(1..=200).await;
    gateway.sent().await;
    assert_eq!(server.data(), (1..=200).filter(|n| *n != 77).collect::<Vec<_>>());
    assert_eq!((gateway.kept("dead-letters"), gateway.status().dead_letters), (1, 1));
    let letters = gateway.journal.read(&StreamName::parse("dead-letters").unwrap(), 0, 10, 1 << 20).unwrap();
    let letter: Value = serde_json::from_slice(&letters[0].data).unwrap();
    assert_eq!(letter["reason"], "the server answers 422: poison");
    assert_eq!(letter["record"]["id"], "hall-3/readings/77");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_asks_for_time_gets_it() {
    let (_dir, server, _, gateway) = site().await;
    server.next([Act::RetryAfter(429, 2)]);
    let begin = Clock::system().instant();
    gateway.append(1..=10).await;
    gateway.sent().await;
    assert!(begin.elapsed() >= Duration::from_secs(2), "{:?}", begin.elapsed());
    assert_eq!(server.seen(|seen| seen.keys.len()), 2);
}

/// Nobody is let in: records wait, and the status says why; when the token is right they go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_permission_records_wait_until_the_token_is_right() {
    let (_, server, address, _) = site().await;
    server.seen(|seen| seen.token = Some("right".to_owned()));
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "wrong\n").unwrap();
    let mut config = config(address);
    if let Some(UplinkConfig { to: UplinkTo::Http(http), .. }) = &mut config.uplink {
        *http = HttpUplink { token_file: Some(file.clone()), ..http.clone() };
    }
    let gateway = Gateway::start(&dir.path().join("journal"), config);
    gateway.append(1..=10).await;
    eventually("it is told why", || gateway.status().last_error.is_some()).await;
    let status = gateway.status();
    assert_eq!(status.state, UplinkState::Offline);
    assert_eq!(status.last_error.unwrap(), "the server answers 401, it does not let this gateway in: who are you?");
    std::fs::write(&file, "right\n").unwrap();
    gateway.sent().await;
    assert_eq!((server.data(), gateway.kept("dead-letters")), ((1..=10).collect(), 0));
}

/// The server is away and comes back at the same place: what had to wait says so, what comes later does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waited_for_the_server_says_so() {
    let server = Server::default();
    server.seen(|seen| seen.records_max = 1000);
    let (address, task) = server.listen(([127, 0, 0, 1], 0).into()).await;
    task.abort();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let dir = TempDir::new().unwrap();
    let gateway = Gateway::start(dir.path(), config(address));
    gateway.append(1..=250).await;
    eventually("it has tried", || gateway.status().last_error.is_some()).await;
    let _server = server.listen(address).await;
    gateway.sent().await;
    gateway.append(251..=260).await;
    gateway.sent().await;
    let replayed: Vec<bool> =
        server.seen(|seen| seen.records.iter().map(|record| record["replayed"].as_bool().unwrap()).collect());
    assert_eq!(replayed, [vec![true; 250], vec![false; 10]].concat());
}

/// A server whose certificate is of an authority of our own, and that lets in only who has one of it, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_show_a_certificate_of_our_own_authority() {
    let dir = TempDir::new().unwrap();
    let authority = support::certificates::Authority::new(dir.path(), "authority");
    let ca = dir.path().join("authority.pem");
    let (server_cert, server_key) = authority.issue("server");
    let (cert, key) = authority.issue("gateway");
    let (address, requests) = tls_server(&ca, &server_cert, &server_key).await;
    let with = |ca, cert, key| {
        let mut config = config(address);
        if let Some(UplinkConfig { to: UplinkTo::Http(http), .. }) = &mut config.uplink {
            let url = format!("https://{address}/records");
            *http = HttpUplink { url, token_file: None, ca, cert, key };
        }
        config
    };
    let strangers = [with(None, None, None), with(Some(ca.clone()), None, None)];
    for (i, stranger) in strangers.into_iter().enumerate() {
        let gateway = Gateway::start(&dir.path().join(format!("stranger-{i}")), stranger);
        gateway.append(1..=1).await;
        eventually("it is told why", || gateway.status().last_error.is_some()).await;
        let why = gateway.status().last_error.unwrap().to_lowercase();
        assert!(why.contains("certificate"), "{why}");
    }
    assert_eq!(requests.load(Ordering::SeqCst), 0);
    let gateway = Gateway::start(&dir.path().join("known"), with(Some(ca), Some(cert), Some(key)));
    gateway.append(1..=1).await;
    gateway.sent().await;
    assert_eq!(requests.load(Ordering::SeqCst), 1);
}

/// Answers 204 to whoever has a certificate of `ca`.
async fn tls_server(ca: &Path, cert: &Path, key: &Path) -> (SocketAddr, Arc<AtomicUsize>) {
    use rumqttc::tokio_rustls::TlsAcceptor;
    use rumqttc::tokio_rustls::rustls::server::WebPkiClientVerifier;
    use rumqttc::tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto};
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};

    let certificates =
        |path: &Path| -> Vec<_> { CertificateDer::pem_file_iter(path).unwrap().collect::<Result<_, _>>().unwrap() };
    let mut roots = RootCertStore::empty();
    certificates(ca).into_iter().for_each(|certificate| roots.add(certificate).unwrap());
    let provider = Arc::new(crypto::ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(certificates(cert), PrivateKeyDer::from_pem_file(key).unwrap())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let requests = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&requests);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (acceptor, count) = (acceptor.clone(), Arc::clone(&count));
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(socket).await else { return };
                let mut request = Vec::new();
                while !request.windows(4).any(|window| window == b"\r\n\r\n") {
                    if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                count.fetch_add(1, Ordering::SeqCst);
                let answer = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
                stream.write_all(answer).await.unwrap();
                stream.shutdown().await.unwrap();
            });
        }
    });
    (address, requests)
}
