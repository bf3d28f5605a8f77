//! Requests to a function URL beside the same from bare axum: a pool of connections that are kept, a body that comes back.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::Context as _;
use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use e2e::{Agent, Guest};
use tidegate::clock::Clock;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::process::Process;
use crate::report::{Figure, Target};
use crate::{Options, REFERENCE_HTTP};

const PATH: &str = "/fn/echo";
/// Of a component of `wasi:http`.
const PATH_WASI: &str = "/fn/echo-wasi";
const BODY: &str = r#"{"device":"press-1","ts":1790000000000,"seq":7,"temperature":21.5}"#;
/// Half of what a function may have at the same time.
const CONNECTIONS: usize = 16;

pub(crate) async fn measure(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let (clock, requests) = (Clock::system(), if options.quick { 2_000 } else { 100_000 });
    let ours = SocketAddr::from(([127, 0, 0, 1], e2e::free_port()?));
    let theirs = SocketAddr::from(([127, 0, 0, 1], e2e::free_port()?));
    let config = format!(
        "[api]\nlisten = \"{ours}\"\n[[function]]\nname = \"echo\"\nbundle = \"echo\"\n\
         [[function.trigger]]\nhttp = {{ path = \"/echo\", methods = [\"POST\"] }}\n\
         [[function]]\nname = \"echo-wasi\"\nbundle = \"echo-wasi\"\n\
         [[function.trigger]]\nhttp = {{ path = \"/echo-wasi\", methods = [\"POST\"], event_shape = \"wasi-http\" }}\n"
    );
    let mut agent = Agent::prepare(&config)?;
    Guest::echo().write(&agent.folder().join("echo"), "1.0.0")?;
    Guest::echoes_requests().write(&agent.folder().join("echo-wasi"), "1.0.0")?;
    agent.resume().await?;
    let mut command = Command::new(std::env::current_exe()?);
    let _reference =
        Process::start(command.args([REFERENCE_HTTP, &theirs.to_string()]), &agent.folder().join("reference.log"))?;
    e2e::until("the reference to listen", async || TcpStream::connect(theirs).await.is_ok()).await?;

    let (mut native, mut wasi) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds() {
        let speed = async |to, path| per_second(to, path, requests, &clock).await;
        let bare = speed(theirs, PATH).await?;
        native.push((speed(ours, PATH).await?, bare));
        wasi.push((speed(ours, PATH_WASI).await?, bare));
    }
    let what = format!("requests to a function URL, {CONNECTIONS} connections that are kept");
    let of_wasi = "the same, to a component of wasi:http, in a new instance each";
    Ok(vec![
        Figure::beside("url-1", what, "requests/s", native, "bare axum").with(Target::TimesAtLeast(0.5)),
        Figure::beside("url-2", of_wasi, "requests/s", wasi, "bare axum"),
    ])
}

/// The reference: serves until it is killed.
pub(crate) async fn bare(address: SocketAddr) -> anyhow::Result<()> {
    let router = Router::new().route(PATH, post(|body: Bytes| async move { body }));
    Ok(axum::serve(TcpListener::bind(address).await?, router).await?)
}

async fn per_second(to: SocketAddr, path: &str, requests: usize, clock: &Clock) -> anyhow::Result<f64> {
    // What is made once is made before: connections here, instances there.
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = Connection::to(to, path).await?;
        connection.ask().await?;
        connections.push(connection);
    }
    let started = clock.instant();
    let mut asking = JoinSet::new();
    for mut connection in connections {
        asking.spawn(async move {
            for _ in 0..requests / CONNECTIONS {
                connection.ask().await?;
            }
            anyhow::Ok(())
        });
    }
    asking.join_all().await.into_iter().collect::<anyhow::Result<()>>()?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let count = (requests / CONNECTIONS * CONNECTIONS) as f64;
    Ok(count / (clock.instant() - started).as_secs_f64())
}

/// Asks one thing after the other. Knows as much of HTTP as that takes: the client is to be cheap.
struct Connection {
    stream: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Connection {
    async fn to(address: SocketAddr, path: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let head = format!("POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n");
        let request = format!("{head}content-length: {}\r\n\r\n{BODY}", BODY.len()).into_bytes();
        Ok(Self { stream, request, answer: Vec::with_capacity(4096) })
    }

    async fn ask(&mut self) -> anyhow::Result<()> {
        self.stream.write_all(&self.request).await?;
        self.answer.clear();
        // The body is the last of the answer, and of a kind that does not stand before it.
        while !self.answer.ends_with(BODY.as_bytes()) {
            anyhow::ensure!(self.stream.read_buf(&mut self.answer).await? > 0, "the connection was closed");
            // 200 and 201: the components differ in that.
            let head = self.answer.get(..11).context("a short answer")?;
            anyhow::ensure!(head == b"HTTP/1.1 20", "it answered {}", String::from_utf8_lossy(&self.answer));
        }
        Ok(())
    }
}
