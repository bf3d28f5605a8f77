//! The HTTP uplink of a whole agent.

use std::sync::{Arc, Mutex, PoisonError};

use e2e::site::guest;
use e2e::{Guest, Site};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A gateway that may only talk to a proxy: records reach a server that the gateway itself could not even find.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_reach_a_server_through_a_proxy() -> anyhow::Result<()> {
    let proxy = TcpListener::bind("127.0.0.1:0").await?;
    let address = proxy.local_addr()?;
    let asked = Arc::default();
    tokio::spawn(serve(proxy, Arc::clone(&asked)));
    let config = format!(
        r#"
[stream.readings]
uplink = {{ http = "http://cloud.invalid/{{gateway}}/{{stream}}" }}
batch = {{ max_records = 50, max_wait = "100ms" }}
{function}"#,
        function = guest("keep", "sensors/#", "capabilities = [\"stream:readings\"]\nconcurrency = 1"),
    );
    let mut site = Site::with_guests(&config, &[("keep", Guest::append("readings"))]).await?;
    site.agent.stop()?;
    site.agent.set_environment("HTTP_PROXY", &format!("http://{address}"));
    site.agent.resume().await?;
    site.agent.hears("local").await?;
    super::send(&site.device, "sensors/press-1", 0..100, 1_000).await?;
    let all = || asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let sequences =
        || -> Vec<Value> { all().into_iter().flat_map(|asked| asked.records).map(|r| r["sequence"].clone()).collect() };
    e2e::until("all records to arrive", async || sequences().len() == 100).await?;
    assert_eq!(sequences(), (1..=100).map(Value::from).collect::<Vec<_>>());
    assert!(all().iter().all(|asked| asked.url == "http://cloud.invalid/test/readings"));
    Ok(())
}

/// A request as the proxy saw it.
#[derive(Clone)]
struct Asked {
    url: String,
    records: Vec<Value>,
}

/// Plays the proxy, and the server behind it.
async fn serve(listener: TcpListener, asked: Arc<Mutex<Vec<Asked>>>) {
    while let Ok((socket, _)) = listener.accept().await {
        tokio::spawn(answer(socket, Arc::clone(&asked)));
    }
}

async fn answer(mut socket: TcpStream, all: Arc<Mutex<Vec<Asked>>>) -> anyhow::Result<()> {
    let mut bytes = bytes::BytesMut::new();
    while socket.read_buf(&mut bytes).await? > 0 {
        while let Some((url, body, end)) = request(&bytes) {
            let lines = zstd::bulk::decompress(body, 4 << 20)?;
            let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            let records = lines.map(serde_json::from_slice).collect::<Result<_, _>>()?;
            all.lock().unwrap_or_else(PoisonError::into_inner).push(Asked { url, records });
            let _ = bytes.split_to(end);
            socket.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await?;
        }
    }
    Ok(())
}

/// The URL, the body and the length of a request that is there as a whole.
fn request(bytes: &[u8]) -> Option<(String, &[u8], usize)> {
    let head_end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&bytes[..head_end]).ok()?.to_lowercase();
    let length: usize = head.lines().find_map(|line| line.strip_prefix("content-length: "))?.parse().ok()?;
    let url = head.split(' ').nth(1)?.to_owned();
    Some((url, bytes.get(head_end..head_end + length)?, head_end + length))
}
