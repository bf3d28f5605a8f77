//! Connections: TLS, HTTP/1.1, and how many, how large and how slow they may be.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use futures_util::{StreamExt as _, stream};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::addresses::Addresses;
use crate::peer::Peer;

/// Bounds of what strangers can take up.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Connections at once; more wait in the system's queue. Each gateway holds one.
    pub connections_max: usize,
    /// Connections of one address at once, or of one /64 of IPv6; more are closed. Behind a proxy all gateways have its address.
    pub connections_per_address_max: usize,
    /// Longest that a handshake may take.
    pub handshake: Duration,
    /// Longest that a request's head may take, and that a connection may be idle.
    pub head: Duration,
    /// Largest head of a request, in bytes: a signed request carries its certificates there.
    pub head_bytes_max: usize,
    /// How long a request's body may take before what came of it counts.
    pub body: Duration,
    /// How fast it must come after that, in bytes a second.
    pub body_rate_min: u32,
    /// How long requests may go on once it is to stop.
    pub drain: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            connections_max: 20_000,
            connections_per_address_max: 5_000,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(75),
            head_bytes_max: 32 * 1024,
            body: Duration::from_secs(30),
            body_rate_min: 512,
            drain: Duration::from_secs(10),
        }
    }
}

/// Serves `router` until `shutdown`, then lets requests that are under way finish within [`Bounds::drain`]. Each request carries a [`Peer`].
pub async fn serve(
    listener: TcpListener,
    tls: ServerConfig,
    router: Router,
    bounds: Bounds,
    shutdown: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let places = Arc::new(Semaphore::new(bounds.connections_max));
    let addresses = Addresses::default();
    let connections = TaskTracker::new();
    let cut = CancellationToken::new();
    loop {
        let accepted = async {
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accepted => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of handles: those that are open have to end first.
                tracing::warn!(%error, "a connection could not be accepted, waiting");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(of_address) = addresses.take(address.ip(), bounds.connections_per_address_max) else {
            tracing::debug!(%address, most = bounds.connections_per_address_max, "this address has too many connections");
            continue;
        };
        let serving = connection(acceptor.clone(), stream, address, router.clone(), bounds, shutdown.clone());
        let cut = cut.clone();
        connections.spawn(async move {
            let _places = (place, of_address);
            tokio::select! {
                () = cut.cancelled() => {}
                () = serving => {}
            }
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(bounds.drain, connections.wait()).await.is_err() {
        tracing::warn!(open = connections.len(), "connections that did not end are cut");
        cut.cancel();
        connections.wait().await;
    }
}

async fn connection(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    address: SocketAddr,
    router: Router,
    bounds: Bounds,
    shutdown: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(bounds.handshake, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%address, %error, "no TLS with this one"),
        Err(_) => return tracing::debug!(%address, "a handshake took too long"),
    };
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let peer = Peer { address, chain: chain.iter().cloned().map(|certificate| certificate.into_owned()).collect() };
    let service = service_fn(|mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let answer = router.clone().oneshot(request.map(|body| paced(body, bounds)));
        async move { Ok::<_, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(bounds.head).max_header_size(bounds.head_bytes_max);
    let mut serving = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = shutdown.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%address, %error, "a connection broke");
    }
}

/// `body`, which fails when it comes too slowly: what is held for it is not held for ever.
fn paced(body: Incoming, bounds: Bounds) -> Body {
    if body.is_end_stream() {
        return Body::empty();
    }
    let late = Box::pin(tokio::time::sleep(bounds.body));
    Body::from_stream(stream::unfold(Some((body.into_data_stream(), late)), move |state| async move {
        let (mut pieces, mut late) = state?;
        tokio::select! {
            biased;
            piece = pieces.next() => match piece? {
                Ok(bytes) => {
                    let bought = bytes.len() as f64 / f64::from(bounds.body_rate_min);
                    let until = late.deadline() + Duration::from_secs_f64(bought);
                    late.as_mut().reset(until);
                    Some((Ok(bytes), Some((pieces, late))))
                }
                Err(error) => Some((Err(io::Error::other(error)), None)),
            },
            () = late.as_mut() => Some((Err(io::Error::new(io::ErrorKind::TimedOut, "the body comes too slowly")), None)),
        }
    }))
}
