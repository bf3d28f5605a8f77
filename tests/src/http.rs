//! HTTP as a program beside the agent speaks it: one request, one connection.

use std::net::SocketAddr;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What came back.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    /// Body, as text.
    pub body: String,
}

/// Sends one request. `head` is `POST /v1/events`; `headers` are lines such as `Content-Type: text/plain`.
///
/// # Errors
/// When there is no answer, or one that is not HTTP.
pub async fn request(to: SocketAddr, head: &str, headers: &[&str], body: &str) -> anyhow::Result<Reply> {
    let mut connection = TcpStream::connect(to).await.with_context(|| format!("nobody listens on {to}"))?;
    let mut text = format!("{head} HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    for header in headers {
        text.push_str(header);
        text.push_str("\r\n");
    }
    connection.write_all(format!("{text}\r\n{body}").as_bytes()).await?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await?;
    let answer = String::from_utf8(answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("not an answer: {answer}"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok(Reply {
        status: status.with_context(|| format!("no status: {head}"))?,
        head: head.to_owned(),
        body: body.to_owned(),
    })
}
