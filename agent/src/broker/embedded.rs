//! A broker inside the agent, for gateways that have none: rmqtt.
//!
//! # Promises
//! - It listens on loopback unless users are configured: without users anyone who can connect may do anything.
//! - A user publishes and subscribes only within the filters that it was given.
//! - With an [`Intake`], a device hears that its message arrived when the functions of this agent have taken care of it.
//! - A client with a persistent session finds what was published while it was away, and what it had not acknowledged.
//!   Sessions and retained messages live in memory: they end with the agent.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rmqtt::context::ServerContext;
use rmqtt::hook::Type;
use rmqtt::net::{Builder, Listener};
use rmqtt::server::MqttServer;
use rmqtt::types::{Message, Reason};
use rumqttc::tokio_rustls::TlsAcceptor;
use rumqttc::tokio_rustls::rustls::{ServerConfig, crypto};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::handover::Sessions;
use super::hooks::{Hooks, Policy};
pub use super::intake::Intake;
use super::retained::{self, Retained};
use super::shares::Shares;
use super::{FileError, OnMessage};
use crate::config::EmbeddedBrokerConfig;
use crate::limits::Limits;
use crate::tls;
use crate::topic::TopicFilter;

/// Sessions and messages are bounded by number, not by time: rmqtt's own defaults are 2 hours and 5 minutes.
const NEVER: Duration = Duration::from_secs(10 * 365 * 86_400);
/// QoS 1 and 2 messages under way to one client.
const IN_FLIGHT_MAX: NonZeroU16 = NonZeroU16::new(1024).expect("is not zero");
/// How long clients have to hang up when the broker stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a client has for its TLS handshake.
const TLS_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the embedded broker does not start.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedBrokerError {
    /// Open to the network, and to everyone.
    #[error("the embedded broker would listen on {listen} without users, so that anyone in the network could use it")]
    OpenToAll {
        /// The configured address.
        listen: SocketAddr,
    },
    /// `cert` without `key`, or the other way round.
    #[error("the embedded broker has only one of `cert` and `key`: they go together")]
    HalfTls,
    /// A file that cannot be used.
    #[error("the embedded broker: {0}")]
    File(#[from] FileError),
    /// Certificate and key do not fit.
    #[error("the embedded broker cannot use `cert` {cert} with its `key`: {why}", cert = cert.display())]
    Tls {
        /// The certificate's file.
        cert: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The address is taken, or not this machine's.
    #[error(
        "the embedded broker cannot listen on {listen}: {why}\n\nhint: another broker, such as mosquitto, may hold the port: use that one as [mqtt.local], or name another address in `embedded_broker.listen`"
    )]
    Listen {
        /// The configured address.
        listen: SocketAddr,
        /// What the system says.
        why: String,
    },
}

/// A broker that runs until it is stopped.
pub struct EmbeddedBroker {
    context: ServerContext,
    address: SocketAddr,
    /// The listener without TLS.
    plain: SocketAddr,
    policy: Arc<Policy>,
    intake: Option<Arc<Intake>>,
    server: JoinHandle<rmqtt::Result<()>>,
    /// Speaks TLS in front of it.
    front: Option<JoinHandle<()>>,
}

impl EmbeddedBroker {
    /// Starts to listen; with port 0 on a free one.
    ///
    /// # Errors
    /// When the configuration is unsafe, a file is unusable, or the address is.
    pub async fn start(config: &EmbeddedBrokerConfig, limits: &Limits) -> Result<Self, EmbeddedBrokerError> {
        Self::start_with(config, limits, None).await
    }

    /// The same, with functions that hear what is published through `intake`.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_with(
        config: &EmbeddedBrokerConfig,
        limits: &Limits,
        intake: Option<Arc<Intake>>,
    ) -> Result<Self, EmbeddedBrokerError> {
        let listen = config.listen;
        if config.users.is_empty() && !listen.ip().is_loopback() {
            return Err(EmbeddedBrokerError::OpenToAll { listen });
        }
        let policy = Arc::new(Policy::read(config, intake.clone())?);
        let tls = acceptor(config)?;
        let failed = |why: String| EmbeddedBrokerError::Listen { listen, why };

        // rmqtt refuses clients when the machine is busy, unless told not to.
        let context = ServerContext::new().busy_check_enable(false).build().await;
        *context.extends.retain_mut().await = Box::new(Retained::new(limits.broker_retained_messages_max));
        *context.extends.shared_mut().await = Box::new(Sessions::new(&context, limits.broker_queue_messages_max));
        *context.extends.shared_subscription_mut().await = Box::new(Shares::default());
        let register = context.extends.hook_mgr().register();
        let hooked = [
            Type::ClientAuthenticate,
            Type::ClientSubscribeCheckAcl,
            Type::MessagePublishCheckAcl,
            Type::MessagePublish,
            Type::MessageDelivered,
            Type::MessageDropped,
        ];
        for hook in hooked {
            register.add(hook, Box::new(Hooks(Arc::clone(&policy)))).await;
        }
        register.start().await;

        let (plain, front) = match tls {
            None => (listen, None),
            Some(tls) => {
                let front = TcpListener::bind(listen).await.map_err(|e| failed(e.to_string()))?;
                (SocketAddr::from(([127, 0, 0, 1], 0)), Some((front, tls)))
            }
        };
        let listener = listener(plain, policy.is_open_to_all(), limits).map_err(|e| failed(e.to_string()))?;
        let plain = listener.local_addr().map_err(|e| failed(e.to_string()))?;
        // Its `start` would end the process on an error.
        let server = MqttServer::new(context.clone()).listener_by_id(listener, 1).build();
        let server = tokio::spawn(server.run());
        let (address, front) = match front {
            None => (plain, None),
            Some((front, tls)) => {
                let address = front.local_addr().map_err(|e| failed(e.to_string()))?;
                (address, Some(tokio::spawn(unwrap_tls(front, tls, plain))))
            }
        };
        tracing::info!(%address, users = policy.users(), "the embedded broker listens");
        Ok(Self { context, address, plain, policy, intake, server, front })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where this process itself finds it, without TLS.
    pub fn local_url(&self) -> String {
        let port = self.plain.port();
        match self.plain.ip() {
            ip if ip.is_unspecified() => format!("mqtt://127.0.0.1:{port}"),
            _ => format!("mqtt://{}", self.plain),
        }
    }

    /// The client id under which this process itself connects; new at each start.
    pub fn own_client_id(&self) -> &str {
        self.policy.own_client_id()
    }

    /// What hears it in this process.
    pub fn intake(&self) -> Option<&Arc<Intake>> {
        self.intake.as_ref()
    }

    /// Replaces what this process hears of it, and by whom. What is retained comes for filters that are new.
    pub fn hear(&self, filters: Vec<TopicFilter>, to: Arc<dyn OnMessage>) {
        let Some(intake) = &self.intake else { return };
        let new = intake.hear(filters, Arc::clone(&to));
        if !new.is_empty() {
            let context = self.context.clone();
            tokio::spawn(async move { retained::hand_out(&context, &new, &*to).await });
        }
    }

    /// Messages that it dropped because a session's queue was full.
    pub fn dropped(&self) -> u64 {
        self.policy.dropped()
    }

    /// Stops listening, and tells every client.
    pub async fn stop(mut self) {
        // The listener is closed with its task; the TLS front stays until the clients have heard it.
        self.server.abort();
        let _ = (&mut self.server).await;
        let all_gone = async {
            loop {
                let shared = self.context.extends.shared().await;
                let mut connected = 0;
                for session in shared.iter() {
                    if session.is_connected().await {
                        connected += 1;
                        if let Some(sender) = session.tx() {
                            let _ = sender.unbounded_send(Message::Closed(Reason::from_static("the broker stops")));
                        }
                    }
                }
                drop(shared);
                if connected == 0 {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(STOP_TIMEOUT, all_gone).await.is_err() {
            tracing::warn!("clients of the embedded broker did not hang up in time");
        }
        if let Some(front) = self.front.take() {
            front.abort();
            let _ = front.await;
        }
    }
}

impl Drop for EmbeddedBroker {
    fn drop(&mut self) {
        self.server.abort();
        if let Some(front) = &self.front {
            front.abort();
        }
    }
}

impl std::fmt::Debug for EmbeddedBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EmbeddedBroker").field("address", &self.address).finish_non_exhaustive()
    }
}

fn listener(listen: SocketAddr, anonymous: bool, limits: &Limits) -> rmqtt::Result<Listener> {
    let packet_bytes_max = u32::try_from(limits.event_bytes_max.0).unwrap_or(u32::MAX).saturating_add(128 << 10);
    Builder::new()
        .name("embedded")
        .laddr(listen)
        .nodelay(true)
        // A restart finds its port while old connections still linger.
        .reuseaddr(Some(true))
        .allow_anonymous(anonymous)
        .max_packet_size(packet_bytes_max)
        .max_inflight(IN_FLIGHT_MAX)
        .max_mqueue_len(limits.broker_queue_messages_max)
        .session_expiry_interval(NEVER)
        .message_expiry_interval(Duration::ZERO)
        // Sending again within a connection only overtakes what is new; a reconnect brings what was not acknowledged.
        .message_retry_interval(Duration::ZERO)
        .bind()?
        .tcp()
}

fn acceptor(config: &EmbeddedBrokerConfig) -> Result<Option<TlsAcceptor>, EmbeddedBrokerError> {
    let (cert, key) = match (&config.cert, &config.key) {
        (None, None) => return Ok(None),
        (Some(cert), Some(key)) => (cert, key),
        _ => return Err(EmbeddedBrokerError::HalfTls),
    };
    let chain = tls::certificates("cert", cert)?;
    let key = tls::private_key("key", key)?;
    let server = ServerConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|e| EmbeddedBrokerError::Tls { cert: cert.clone(), why: e.to_string() })?;
    Ok(Some(TlsAcceptor::from(Arc::new(server))))
}

/// Speaks TLS with clients and plain MQTT with the broker behind it, on loopback. rmqtt's own TLS brings a second
/// cryptography library, and takes its streams from nobody else.
async fn unwrap_tls(front: TcpListener, tls: TlsAcceptor, plain: SocketAddr) {
    let mut clients = JoinSet::new();
    loop {
        while clients.try_join_next().is_some() {}
        let (client, from) = match front.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the embedded broker cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let tls = tls.clone();
        clients.spawn(async move {
            let served = async {
                client.set_nodelay(true)?;
                let mut client = tokio::time::timeout(TLS_TIMEOUT, tls.accept(client)).await??;
                let mut broker = TcpStream::connect(plain).await?;
                broker.set_nodelay(true)?;
                tokio::io::copy_bidirectional(&mut client, &mut broker).await?;
                Ok::<(), std::io::Error>(())
            };
            if let Err(error) = served.await {
                tracing::debug!(%from, %error, "a TLS client of the embedded broker is gone");
            }
        });
    }
}
