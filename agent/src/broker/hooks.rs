//! What the embedded broker asks us: who may come in, who may do what, and whether a message may be acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use rmqtt::codec::v5::SubscribeAckReason;
use rmqtt::hook::{Handler, HookResult, Parameter, ReturnType};
use rmqtt::inflight::{MomentStatus, OutInflightMessage};
use rmqtt::session::Session;
use rmqtt::types::{AuthResult, ConnectInfo, FromType, LastWill, Publish, PublishAclResult, QoS, SubscribeAclResult};
use sha2::{Digest, Sha256};

use super::Incoming;
use super::embedded::EmbeddedBrokerError;
use super::intake::Intake;
use crate::config::EmbeddedBrokerConfig;
use crate::tls;
use crate::topic::TopicFilter;

/// How long a device's message may wait for its acknowledgement. Its connection stands still meanwhile, and the device gives
/// it up when its keep-alive has passed: never more than half of that.
const ACKNOWLEDGE_PATIENCE: Duration = Duration::from_secs(10);

/// One user: what it knows and what it may.
struct User {
    password: [u8; 32],
    publish: Vec<TopicFilter>,
    subscribe: Vec<TopicFilter>,
}

/// Who may do what. Nothing is held back when there are no users.
pub(super) struct Policy {
    users: BTreeMap<String, User>,
    /// Who must have taken care of a message before it is acknowledged.
    intake: Option<Arc<Intake>>,
    /// The client id by which the agent itself connects.
    own_client_id: String,
    dropped: AtomicU64,
    refused: AtomicU64,
}

impl Policy {
    pub(super) fn read(
        config: &EmbeddedBrokerConfig,
        intake: Option<Arc<Intake>>,
    ) -> Result<Self, EmbeddedBrokerError> {
        let mut users = BTreeMap::new();
        for (name, user) in &config.users {
            let password = Sha256::digest(tls::password("password_file", &user.password_file)?.as_bytes()).into();
            let (publish, subscribe) = (user.publish.clone(), user.subscribe.clone());
            users.insert(name.clone(), User { password, publish, subscribe });
        }
        Ok(Self {
            users,
            intake,
            // Nobody else can know it, so nobody else's messages pass by the functions.
            own_client_id: format!("tidegate-agent-{}", uuid::Uuid::new_v4().simple()),
            dropped: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        })
    }

    pub(super) fn is_open_to_all(&self) -> bool {
        self.users.is_empty()
    }

    pub(super) fn users(&self) -> usize {
        self.users.len()
    }

    pub(super) fn own_client_id(&self) -> &str {
        &self.own_client_id
    }

    /// Messages that were lost because a session's queue was full.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
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

/// The policy, as rmqtt asks for it.
pub(super) struct Hooks(pub(super) Arc<Policy>);

impl Hooks {
    fn authenticate(&self, info: &ConnectInfo) -> AuthResult {
        let name = info.username().map(|name| &**name);
        let password = info.password().map_or(&[][..], |password| password.as_ref());
        if !self.0.is_open_to_all() && !self.0.knows(name, password) {
            return AuthResult::BadUsernameOrPassword;
        }
        let will = info.last_will().map(|will| match will {
            LastWill::V3(will) => &*will.topic,
            LastWill::V5(will) => &*will.topic,
        });
        // rmqtt publishes a will without asking again.
        if will.is_some_and(|topic| !self.0.may_publish(name, topic)) {
            return AuthResult::NotAuthorized;
        }
        // Not a superuser, whom no filter holds back.
        AuthResult::Allow(false, None)
    }

    /// Asked before a publish is acknowledged, and before other subscribers get it.
    async fn publish(&self, session: &Session, publish: &Publish) -> PublishAclResult {
        if !self.0.may_publish(session.username().map(|name| &**name), &publish.topic) {
            // MQTT 5 hears that it is not authorized; 3.1.1, which cannot be told, is not disconnected for it.
            return PublishAclResult::rejected(false, None);
        }
        let Some(intake) = &self.0.intake else { return PublishAclResult::allow() };
        if *session.id.client_id == *self.0.own_client_id {
            return PublishAclResult::allow();
        }
        let keep_alive = session.connect_info().await.map_or(0, |info| info.keep_alive());
        let patience = match keep_alive {
            0 => ACKNOWLEDGE_PATIENCE,
            secs => ACKNOWLEDGE_PATIENCE.min(Duration::from_millis(u64::from(secs) * 500)),
        };
        match intake.take(incoming(publish), patience).await {
            Ok(()) => PublishAclResult::allow(),
            Err(why) => {
                let refused = self.0.refused.fetch_add(1, Ordering::Relaxed) + 1;
                if refused.is_power_of_two() {
                    let (client, topic) = (&session.id.client_id, &publish.topic);
                    tracing::warn!(%client, %topic, reason = %why, refused, "a device's message was not acknowledged; it has to send it again");
                }
                // Only a connection that ends makes a device send again, in 3.1.1 and in 5.
                PublishAclResult::rejected(true, Some(why.to_string().into()))
            }
        }
    }
}

#[async_trait]
impl Handler for Hooks {
    async fn hook(&self, parameter: &Parameter, so_far: Option<HookResult>) -> ReturnType {
        match parameter {
            Parameter::ClientAuthenticate(info) => (false, Some(HookResult::AuthResult(self.authenticate(info)))),
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
                (false, Some(HookResult::PublishAclResult(self.publish(session, publish).await)))
            }
            Parameter::MessagePublish(_, from, publish) => {
                // A will comes by here alone: nobody waits for its acknowledgement, but functions hear it.
                if let Some(intake) = &self.0.intake
                    && matches!(from.typ(), FromType::LastWill)
                    && let Err(why) = intake.take(incoming(publish), ACKNOWLEDGE_PATIENCE).await
                {
                    tracing::warn!(topic = %publish.topic, reason = %why, "no function could take care of a device's last will");
                }
                (true, so_far)
            }
            Parameter::MessageDelivered(session, from, publish) => {
                // rmqtt notes only what it has written, and then has nowhere what a connection took with it that ended.
                let status = match publish.qos {
                    QoS::AtMostOnce => None,
                    QoS::AtLeastOnce => Some(MomentStatus::UnAck),
                    QoS::ExactlyOnce => Some(MomentStatus::UnReceived),
                };
                if let Some(status) = status {
                    let message = OutInflightMessage::new(status, from.clone(), (*publish).clone());
                    session.out_inflight().write().await.push_back(message);
                }
                (true, so_far)
            }
            // Without a receiver it is one that was refused, which its sender knows.
            Parameter::MessageDropped(Some(_), _from, publish, reason) => {
                let dropped = self.0.dropped.fetch_add(1, Ordering::Relaxed) + 1;
                if let Some(intake) = &self.0.intake {
                    intake.note_dropped();
                }
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

pub(super) fn incoming(publish: &Publish) -> Incoming {
    let properties = publish.properties.as_ref();
    let user_properties = properties.map_or(&[][..], |properties| &properties.user_properties);
    Incoming {
        topic: (&*publish.topic).into(),
        payload: publish.payload.clone(),
        qos: match publish.qos {
            QoS::AtMostOnce => 0,
            QoS::AtLeastOnce => 1,
            QoS::ExactlyOnce => 2,
        },
        retain: false,
        duplicate: publish.dup,
        own: false,
        content_type: properties.and_then(|properties| properties.content_type.as_deref()).map(Into::into),
        properties: user_properties.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        let filters = |text: &str| vec![TopicFilter::parse(text).unwrap()];
        let password = Sha256::digest(b"secret").into();
        let user = User { password, publish: filters("sensors/#"), subscribe: filters("results/+") };
        let users = BTreeMap::from([("device".to_owned(), user)]);
        let (dropped, refused) = (AtomicU64::new(0), AtomicU64::new(0));
        Policy { users, intake: None, own_client_id: String::new(), dropped, refused }
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
