//! Accepts connections, within bounds, and sees them to their end.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::ApiStartError;
use super::door::Door;
use crate::limits::Limits;

/// Owner and group.
const SOCKET_MODE: u32 = 0o660;
/// After a failed accept, most likely for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Makes the Unix socket. It appears under its name only when nobody else can open it, in place of one that an agent left
/// behind.
pub(super) async fn bind_unix(path: &Path) -> Result<UnixListener, ApiStartError> {
    if UnixStream::connect(path).await.is_ok() {
        return Err(ApiStartError::Running(path.to_owned()));
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = Path::new(&name);
    let bind = || -> io::Result<UnixListener> {
        let _ = std::fs::remove_file(new);
        let listener = UnixListener::bind(new)?;
        std::fs::set_permissions(new, std::fs::Permissions::from_mode(SOCKET_MODE))?;
        std::fs::rename(new, path)?;
        Ok(listener)
    };
    bind().map_err(|source| ApiStartError::Socket { path: path.to_owned(), source })
}

/// Where connections come from.
pub(super) trait Accept: Send + Sync + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Peer)>> + Send;
}

/// Who calls; in the extensions of each request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) Option<IpAddr>);

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, peer) = Self::accept(self).await?;
        // An answer is one small write: waiting for more to send with it would only delay it.
        stream.set_nodelay(true)?;
        Ok((stream, Peer(Some(peer.ip().to_canonical()))))
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Peer)> {
        Self::accept(self).await.map(|(stream, _)| (stream, Peer(None)))
    }
}

pub(super) struct Server {
    connections_max: usize,
    request_max: Duration,
    head_bytes_max: usize,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    pub(super) fn new(limits: &Limits, stop: CancellationToken, tasks: TaskTracker) -> Self {
        Self {
            connections_max: limits.api_connections_max,
            request_max: limits.api_request_max.0,
            head_bytes_max: limits.api_head_bytes_max,
            stop,
            tasks,
        }
    }

    /// Accepts from `listener` until the API stops.
    pub(super) fn serve(&self, listener: impl Accept, door: Door) {
        let (door, room) = (Arc::new(door), Arc::new(Semaphore::new(self.connections_max)));
        let (stop, tasks, patience) = (self.stop.clone(), self.tasks.clone(), self.request_max);
        let mut http = http1::Builder::new();
        // Also ends connections that are kept open and not used.
        http.timer(TokioTimer::new()).header_read_timeout(self.request_max).max_buf_size(self.head_bytes_max);
        self.tasks.spawn(async move {
            loop {
                let next = async {
                    let permit = Arc::clone(&room).acquire_owned().await.map_err(io::Error::other)?;
                    listener.accept().await.map(|accepted| (accepted, permit))
                };
                let accepted = tokio::select! {
                    accepted = next => accepted,
                    () = stop.cancelled() => return,
                };
                match accepted {
                    Ok(((stream, peer), permit)) => {
                        // Who does not read holds a place as well as who does not write.
                        let mut stream = TimeoutStream::new(stream);
                        stream.set_write_timeout(Some(patience));
                        let stream = Box::pin(stream);
                        let connection = connection(stream, peer, http.clone(), Arc::clone(&door), stop.clone());
                        tasks.spawn(async move {
                            connection.await;
                            drop::<OwnedSemaphorePermit>(permit);
                        });
                    }
                    Err(error) => {
                        warn!(%error, "the API could not accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        });
    }
}

async fn connection<S>(stream: S, peer: Peer, http: http1::Builder, door: Arc<Door>, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let serve = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer);
        let door = Arc::clone(&door);
        async move { Ok::<_, Infallible>(door.answer(request.map(Body::new)).await) }
    });
    let connection = http.serve_connection(TokioIo::new(stream), serve);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        debug!(%error, "an API connection broke");
    }
}
