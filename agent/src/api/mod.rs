//! The local API: HTTP on a Unix socket, and on TCP where the config says so.
//!
//! # Promises
//! - The Unix socket can be opened by the agent's user and group only, from the moment it exists.
//! - Over TCP a stranger's web page cannot call; with a token nobody can who does not know it.
//! - Nothing that a caller sends takes more memory than its limit, or holds a connection for ever without sending.

pub mod client;
pub(crate) mod cloudevents;
mod console;
mod cookies;
pub mod dead_letters;
mod deployments;
mod door;
mod error;
mod events;
mod guard;
mod handle;
mod invocations;
mod recording;
mod routes;
mod server;
pub mod status;
#[cfg(test)]
mod tests;
mod urls;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::door::Door;
pub use self::error::ErrorBody;
pub use self::handle::AgentHandle;
use crate::clock::Clock;
use crate::config::Console;
use crate::limits::Limits;
use crate::name::GatewayName;

/// How long callers that are being answered may take to the end when the agent stops.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Where the API listens and what it asks for.
#[derive(Clone, Debug)]
pub struct ApiOptions {
    /// TCP, besides the Unix socket.
    pub listen: Option<SocketAddr>,
    /// The Unix socket.
    pub socket: PathBuf,
    /// What callers over TCP must send; without its trailing line end.
    pub token: Option<String>,
    /// This machine's name, which requests over TCP may be for.
    pub gateway: GatewayName,
    /// The page for people.
    pub console: Console,
}

/// Why the API cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ApiStartError {
    /// The TCP address cannot be had.
    #[error(
        "the API cannot listen on {address}: {source}\n\nhint: another program may hold the port; name another in `api.listen`, or `off`"
    )]
    Tcp {
        /// `api.listen`.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Everyone in the network could call.
    #[error(
        "the API would listen on {0} for anyone\n\nhint: name a file with a token in `api.token_file`, or listen on 127.0.0.1"
    )]
    Open(SocketAddr),
    /// Another agent is there.
    #[error(
        "an agent listens on `{0}` already\n\nhint: stop that one, or give this one a `gateway.state_dir` of its own"
    )]
    Running(PathBuf),
    /// The Unix socket cannot be made.
    #[error(
        "the API cannot listen on `{path}`: {source}\n\nhint: the folder must exist and belong to the agent's user, and the path be shorter than 108 bytes; `api.socket` names another"
    )]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The running API.
#[derive(Debug)]
pub struct Api {
    address: Option<SocketAddr>,
    socket: PathBuf,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// What all calls see.
pub(crate) struct Shared {
    pub(crate) agent: Arc<dyn AgentHandle>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) clock: Clock,
    pub(crate) stop: CancellationToken,
    pub(crate) console: console::State,
}

impl Api {
    /// Listens, and answers for `agent`.
    ///
    /// # Errors
    /// When one of the addresses cannot be had.
    pub async fn start(
        options: ApiOptions,
        agent: Arc<dyn AgentHandle>,
        limits: Arc<Limits>,
        clock: Clock,
    ) -> Result<Self, ApiStartError> {
        if let Some(address) = options.listen.filter(|address| !address.ip().is_loopback() && options.token.is_none()) {
            return Err(ApiStartError::Open(address));
        }
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let shared = Arc::new(Shared {
            agent,
            limits: Arc::clone(&limits),
            clock: clock.clone(),
            stop: stop.clone(),
            console: console::State::new(options.console),
        });
        let (local, router) = (routes::local(Arc::clone(&shared)), routes::router(Arc::clone(&shared)));
        let server = server::Server::new(&limits, stop.clone(), tasks.clone());

        let unix = server::bind_unix(&options.socket).await?;
        let mut address = None;
        if let Some(listen) = options.listen {
            let failed = |source| ApiStartError::Tcp { address: listen, source };
            let tcp = TcpListener::bind(listen).await.map_err(failed)?;
            let bound = tcp.local_addr().map_err(failed)?;
            let guard = Arc::new(guard::Guard::new(bound, &options.gateway, options.token.as_deref(), &limits, clock));
            server.serve(tcp, Door::new(Some(guard), Arc::clone(&shared), router));
            address = Some(bound);
        }
        server.serve(unix, Door::new(None, shared, local));
        Ok(Self { address, socket: options.socket, stop, tasks })
    }

    /// Where TCP is served; the real port when the config said 0.
    pub const fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Takes no more calls, and lets those that run come to their end for a little while.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout(STOP_PATIENCE, self.tasks.wait()).await;
        // Left behind it would do no harm: the next start replaces it.
        let _ = std::fs::remove_file(&self.socket);
    }
}
