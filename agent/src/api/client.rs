//! The command line's side of the Unix socket.

use std::io;
use std::path::{Path, PathBuf};

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{HeaderMap, Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::ErrorBody;

/// Why a call of the agent failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no agent listens on `{path}`: {source}\n\nhint: start it with `tidegate run`, or name the socket of one that runs with `--socket`"
    )]
    NoAgent {
        /// The socket.
        path: PathBuf,
        /// Why it cannot be connected to.
        source: io::Error,
    },
    /// Only the agent's user and group may.
    #[error(
        "the agent's socket `{path}` may not be opened by this user\n\nhint: join the group that owns it, or run this with sudo"
    )]
    Forbidden {
        /// The socket.
        path: PathBuf,
    },
    /// The agent said no.
    #[error("{error}{}", hint.as_ref().map(|hint| format!("\n\nhint: {hint}")).unwrap_or_default())]
    Refused {
        /// Of the answer.
        status: StatusCode,
        /// What, which, why not.
        error: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The connection broke in the middle.
    #[error(
        "the agent on `{path}` did not answer to the end: {source}\n\nhint: it may have been stopped; `tidegate status` says"
    )]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        source: hyper::Error,
    },
    /// It answered something else than this version of the command line knows.
    #[error("the agent's answer cannot be read: {0}\n\nhint: agent and command line may be of different versions")]
    Unreadable(serde_json::Error),
}

impl ClientError {
    /// What the command line ends with: 3 when there is no agent to reach, 2 when the input was wrong, else 1.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::NoAgent { .. } | Self::Forbidden { .. } => 3,
            Self::Refused { status, .. } if matches!(status.as_u16(), 400 | 404 | 413 | 415) => 2,
            _ => 1,
        }
    }
}

/// An answer of the agent.
#[derive(Clone, Debug)]
pub struct Reply {
    /// 200, 404, …
    pub status: StatusCode,
    /// `Tidegate-Outcome` and the like.
    pub headers: HeaderMap,
    /// All of it.
    pub body: Bytes,
}

impl Reply {
    /// A header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The answer, unless it is an error.
    ///
    /// # Errors
    /// With what the agent said.
    pub fn success(self) -> Result<Self, ClientError> {
        if self.status.is_success() {
            return Ok(self);
        }
        let told = serde_json::from_slice(&self.body);
        let told =
            told.unwrap_or_else(|_| ErrorBody { error: format!("the agent answered {}", self.status), hint: None });
        Err(ClientError::Refused { status: self.status, error: told.error, hint: told.hint })
    }

    /// The body as what it stands for.
    ///
    /// # Errors
    /// With what the agent said, or when the body is something else.
    pub fn json<T: DeserializeOwned>(self) -> Result<T, ClientError> {
        serde_json::from_slice(&self.success()?.body).map_err(ClientError::Unreadable)
    }
}

/// What is sent along with a request.
type Sent = UnsyncBoxBody<Bytes, io::Error>;

/// How much of a file is read at once.
const PIECE_BYTES: usize = 64 << 10;

/// A connection to the agent of this machine.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    sender: SendRequest<Sent>,
}

impl Client {
    /// Connects to the agent that listens on `socket`.
    ///
    /// # Errors
    /// When none listens, or this user may not.
    pub async fn connect(socket: &Path) -> Result<Self, ClientError> {
        let path = socket.to_owned();
        let stream = match UnixStream::connect(socket).await {
            Ok(stream) => stream,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(ClientError::Forbidden { path });
            }
            Err(source) => return Err(ClientError::NoAgent { path, source }),
        };
        let connected = handshake(TokioIo::new(stream)).await;
        let (sender, connection) = connected.map_err(|source| ClientError::Broken { path: path.clone(), source })?;
        tokio::spawn(connection);
        Ok(Self { path, sender })
    }

    /// Asks for something; `path` with its query.
    ///
    /// # Errors
    /// When the connection breaks. An error status is an answer.
    pub async fn get(&mut self, path: &str) -> Result<Reply, ClientError> {
        self.call(Method::GET, path, &[], Bytes::new()).await
    }

    /// Sends something.
    ///
    /// # Errors
    /// When the connection breaks. An error status is an answer.
    pub async fn post(&mut self, path: &str, content_type: &str, body: impl Into<Bytes>) -> Result<Reply, ClientError> {
        self.call(Method::POST, path, &[(CONTENT_TYPE.as_str(), content_type)], body.into()).await
    }

    /// Sends a file, piece by piece.
    ///
    /// # Errors
    /// When the connection breaks. An error status is an answer.
    pub async fn post_file(&mut self, path: &str, file: tokio::fs::File) -> Result<Reply, ClientError> {
        let pieces = futures_util::stream::try_unfold(file, |mut file| async move {
            let mut piece = vec![0; PIECE_BYTES];
            let bytes = tokio::io::AsyncReadExt::read(&mut file, &mut piece).await?;
            piece.truncate(bytes);
            io::Result::Ok((bytes > 0).then(|| (Frame::data(Bytes::from(piece)), file)))
        });
        let answer = self.send(Method::POST, path, &[], StreamBody::new(pieces).boxed_unsync()).await?;
        self.reply(answer).await
    }

    /// Any call.
    ///
    /// # Errors
    /// When the connection breaks. An error status is an answer.
    pub async fn call(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Reply, ClientError> {
        let answer = self.send(method, path, headers, whole(body)).await?;
        self.reply(answer).await
    }

    async fn reply(&self, answer: hyper::Response<Incoming>) -> Result<Reply, ClientError> {
        let (parts, body) = answer.into_parts();
        let body = body.collect().await.map_err(|source| self.broken(source))?.to_bytes();
        Ok(Reply { status: parts.status, headers: parts.headers, body })
    }

    /// Asks for something that comes line by line, until the agent ends it or `on_line` returns false.
    ///
    /// # Errors
    /// When the connection breaks, or with what the agent said.
    pub async fn lines(&mut self, path: &str, mut on_line: impl FnMut(&str) -> bool) -> Result<(), ClientError> {
        let (parts, mut body) = self.send(Method::GET, path, &[], whole(Bytes::new())).await?.into_parts();
        if !parts.status.is_success() {
            let body = body.collect().await.map_err(|source| self.broken(source))?.to_bytes();
            return Reply { status: parts.status, headers: parts.headers, body }.success().map(|_| ());
        }
        let mut pending = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|source| self.broken(source))?.into_data() else { continue };
            pending.extend_from_slice(&data);
            while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = pending.drain(..=end).collect();
                if !on_line(String::from_utf8_lossy(&line[..end]).as_ref()) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Sent,
    ) -> Result<hyper::Response<Incoming>, ClientError> {
        let mut request = Request::builder().method(method).uri(path).header(HOST, "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).map_err(|error| ClientError::Refused {
            status: StatusCode::BAD_REQUEST,
            error: format!("`{path}` cannot be asked for: {error}"),
            hint: None,
        })?;
        self.sender.ready().await.map_err(|source| self.broken(source))?;
        self.sender.send_request(request).await.map_err(|source| self.broken(source))
    }

    fn broken(&self, source: hyper::Error) -> ClientError {
        ClientError::Broken { path: self.path.clone(), source }
    }
}

fn whole(body: Bytes) -> Sent {
    Full::new(body).map_err(|never| match never {}).boxed_unsync()
}
