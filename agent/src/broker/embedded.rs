//! A broker inside the agent, for gateways that have none: rmqtt.
//!
//! # Promises
//! - It listens on loopback unless users are configured: without users anyone who can connect may do anything.
//! - A user publishes and subscribes only within the filters that it was given.
//! - A client with a persistent session finds what was published while it was away, and what it had not acknowledged.
//!   Sessions and retained messages live in memory: they end with the agent.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use rmqtt::codec::v5::SubscribeAckReason;
use rmqtt::context::ServerContext;
use rmqtt::hook::{Handler, HookResult, Parameter, ReturnType, Type};
use rmqtt::net::{Builder, Listener};
use rmqtt::server::MqttServer;
use rmqtt::types::{AuthResult, Message, PublishAclResult, Reason, SubscribeAclResult};
use rumqttc::tokio_rustls::TlsAcceptor;
use rumqttc::tokio_rustls::rustls::{ServerConfig, crypto};
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::retained::Retained;
use super::shares::Shares;
use super::{FileError, files};
use crate::config::EmbeddedBrokerConfig;
use crate::limits::Limits;
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

/// One user: what it knows and what it may.
struct User {
    password: [u8; 32],
    publish: Vec<TopicFilter>,
    subscribe: Vec<TopicFilter>,
}

/// Who may do what. Nothing is held back when there are no users.
struct Policy {
    users: BTreeMap<String, User>,
    dropped: AtomicU64,
}

impl Policy {
    fn read(config: &EmbeddedBrokerConfig) -> Result<Self, EmbeddedBrokerError> {
        let mut users = BTreeMap::new();
        for (name, user) in &config.users {
            let password = Sha256::digest(files::password(&user.password_file)?.as_bytes()).into();
            let (publish, subscribe) = (user.publish.clone(), user.subscribe.clone());
            users.insert(name.clone(), User { password, publish, subscribe });
        }
        Ok(Self { users, dropped: AtomicU64::new(0) })
    }

    /// Takes as long for a wrong password, or an unknown user, as for the right one.
    fn knows(&self, name: Option<&str>, password: &[u8]) -> bool {
        let user = name.and_then(|name| self.users.get(name));
        let expected = user.map_or([0; 32], |user| user.password);
        let given: [u8; 32] = Sha256::digest(password).into();
        let difference = expected.iter().zip(given).fold(0, |sum, (a, b)| sum | (a ^ b));
        std::hint::black_box(difference) == 0 && user.is_some()
    }

    fn may_publish(&self, name: Option<&str>, topic: &str) -> bool {
        self.users.is_empty() || self.user(name).is_some_and(|user| user.publish.iter().any(|f| f.matches(topic)))
    }

    fn may_subscribe(&self, name: Option<&str>, filter: &str) -> bool {
        let Ok(filter) = TopicFilter::parse(filter) else { return false };
        self.users.is_empty() || self.user(name).is_some_and(|user| user.subscribe.iter().any(|f| f.covers(&filter)))
    }

    fn user(&self, name: Option<&str>) -> Option<&User> {
        self.users.get(name?)
    }
}

struct Hooks(Arc<Policy>);

#[async_trait]
impl Handler for Hooks {
    async fn hook(&self, parameter: &Parameter, so_far: Option<HookResult>) -> ReturnType {
        match parameter {
            Parameter::ClientAuthenticate(info) => {
                let name = info.username().map(|name| &**name);
                let password = info.password().map_or(&[][..], |password| password.as_ref());
                let result = if self.0.users.is_empty() || self.0.knows(name, password) {
                    // Not a superuser, whom no filter holds back.
                    AuthResult::Allow(false, None)
                } else {
                    AuthResult::BadUsernameOrPassword
                };
                (false, Some(HookResult::AuthResult(result)))
            }
            Parameter::ClientSubscribeCheckAcl(session, subscribe) => {
                let name = session.username().map(|name| &**name);
                let result = if self.0.may_subscribe(name, &subscribe.topic_filter) {
                    SubscribeAclResult::new_success(subscribe.opts.qos(), None)
                } else {
                    SubscribeAclResult::new_failure(SubscribeAckReason::NotAuthorized)
                };
                (false, Some(HookResult::SubscribeAclResult(result)))
            }
            Parameter::MessagePublishCheckAcl(session, publish) => {
                let name = session.username().map(|name| &**name);
                let result = if self.0.may_publish(name, &publish.topic) {
                    PublishAclResult::allow()
                } else {
                    // MQTT 5 hears that it is not authorized; 3.1.1, which cannot be told, is not disconnected for it.
                    PublishAclResult::rejected(false, None)
                };
                (false, Some(HookResult::PublishAclResult(result)))
            }
            Parameter::OfflineInflightMessages(session, _) => {
                // rmqtt hands these to the session's next connection last first; turned round they come in their order.
                let mut in_flight = session.out_inflight().write().await;
                for message in in_flight.to_inflight_messages().into_iter().rev() {
                    in_flight.push_back(message);
                }
                (true, so_far)
            }
            Parameter::MessageDropped(_to, _from, publish, reason) => {
                let dropped = self.0.dropped.fetch_add(1, Ordering::Relaxed) + 1;
                // A full queue drops for each message that comes: one line for each power of two says as much.
                if dropped.is_power_of_two() {
                    tracing::warn!(topic = %publish.topic, ?reason, dropped, "the embedded broker dropped a message");
                }
                (true, so_far)
            }
            _ => (true, so_far),
        }
    }
}

/// A broker that runs until it is stopped.
pub struct EmbeddedBroker {
    context: ServerContext,
    address: SocketAddr,
    /// The listener without TLS.
    plain: SocketAddr,
    policy: Arc<Policy>,
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
        let listen = config.listen;
        if config.users.is_empty() && !listen.ip().is_loopback() {
            return Err(EmbeddedBrokerError::OpenToAll { listen });
        }
        let policy = Arc::new(Policy::read(config)?);
        let tls = acceptor(config)?;
        let failed = |why: String| EmbeddedBrokerError::Listen { listen, why };

        // rmqtt refuses clients when the machine is busy, unless told not to.
        let context = ServerContext::new().busy_check_enable(false).build().await;
        *context.extends.retain_mut().await = Box::new(Retained::new(limits.broker_retained_messages_max));
        *context.extends.shared_subscription_mut().await = Box::new(Shares::default());
        let register = context.extends.hook_mgr().register();
        let hooked = [
            Type::ClientAuthenticate,
            Type::ClientSubscribeCheckAcl,
            Type::MessagePublishCheckAcl,
            Type::OfflineInflightMessages,
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
        let listener = listener(plain, policy.users.is_empty(), limits).map_err(|e| failed(e.to_string()))?;
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
        tracing::info!(%address, users = policy.users.len(), "the embedded broker listens");
        Ok(Self { context, address, plain, policy, server, front })
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

    /// Messages that it dropped because a session's queue was full.
    pub fn dropped(&self) -> u64 {
        self.policy.dropped.load(Ordering::Relaxed)
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
    let chain = files::certificates("cert", cert)?;
    let key = files::private_key("key", key)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        let filters = |text: &str| vec![TopicFilter::parse(text).unwrap()];
        let password = Sha256::digest(b"secret").into();
        let user = User { password, publish: filters("sensors/#"), subscribe: filters("results/+") };
        Policy { users: BTreeMap::from([("device".to_owned(), user)]), dropped: AtomicU64::new(0) }
    }

    #[test]
    fn only_the_right_password_of_a_known_user_lets_in() {
        assert!(policy().knows(Some("device"), b"secret"));
        assert!(!policy().knows(Some("device"), b"Secret"));
        assert!(!policy().knows(Some("device"), b""));
        assert!(!policy().knows(Some("other"), b"secret"));
        assert!(!policy().knows(None, b"secret"));
    }

    #[test]
    fn a_user_stays_within_its_filters() {
        assert!(policy().may_publish(Some("device"), "sensors/1/temp"));
        assert!(!policy().may_publish(Some("device"), "results/1"));
        assert!(policy().may_subscribe(Some("device"), "results/1"));
        assert!(policy().may_subscribe(Some("device"), "$share/g/results/+"));
        assert!(!policy().may_subscribe(Some("device"), "results/#"));
        assert!(!policy().may_subscribe(None, "results/1"));
    }
}
