//! Sessions of the embedded broker, while they pass from one connection to the next.
//!
//! rmqtt hands over what a session still owes to its client as a message to the task of the next connection, which throws that away unread
//! when the connection ends first. What is published meanwhile finds no session, and goes too. Here what is owed waits under the client's
//! name, and the next connection gets it as if it had just been published: that rmqtt keeps, connection or not.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_channel::mpsc;
use rmqtt::Result;
use rmqtt::context::ServerContext;
use rmqtt::inflight::{MomentStatus, OutInflightMessage};
use rmqtt::session::{OfflineInfo, Session};
use rmqtt::shared::{DefaultShared, Entry, RetainLoadCallback, Shared};
use rmqtt::types::{
    ClientId, ForwardedCount, ForwardedRecipients, From, Id, IsAdmin, Message, MsgID, NodeId, OfflineSession, Publish,
    Reason, SessionStatus, SessionTx, SubRelations, SubRelationsMap, SubsSearchParams, SubsSearchResult, Subscribe,
    SubscribeReturn, To, TopicFilter, Tx, Unsubscribe,
};
use tokio::sync::{Mutex, oneshot};

/// How long the connection before may take to let go.
const PATIENCE: Duration = Duration::from_secs(5);

/// Messages that found no session.
type Missed = Vec<(To, From, Publish, Reason)>;

/// What a client is owed that has no session right now.
#[derive(Default)]
struct Owed {
    /// What the session before left.
    left: Option<OfflineInfo>,
    /// What was published since.
    missed: VecDeque<(From, Publish)>,
}

/// rmqtt's own sessions, which keep what they owe when they pass on.
#[derive(Clone)]
pub(super) struct Sessions {
    sessions: DefaultShared,
    context: ServerContext,
    /// By client, from the moment that a connection asks for a session until it has it.
    passing: Arc<Mutex<HashMap<ClientId, Owed>>>,
    messages_max: usize,
}

impl Sessions {
    pub(super) fn new(context: &ServerContext, messages_max: usize) -> Self {
        let sessions = DefaultShared::new(Some(context.clone()));
        Self { sessions, context: context.clone(), passing: Arc::default(), messages_max }
    }

    /// Keeps what found no session because that is just passing on. Gives back the rest.
    async fn keep(&self, missed: Missed) -> Missed {
        let mut passing = self.passing.lock().await;
        let mut lost = Missed::new();
        for (to, from, publish, reason) in missed {
            match passing.get_mut(&to.client_id) {
                Some(owed) if owed.missed.len() < self.messages_max => owed.missed.push_back((from, publish)),
                Some(_) => lost.push((to, from, publish, Reason::MessageQueueFull)),
                None => lost.extend(self.send(to, from, publish, reason)),
            }
        }
        lost
    }

    /// To the session that is there by now.
    fn send(&self, to: To, from: From, publish: Publish, reason: Reason) -> Option<(To, From, Publish, Reason)> {
        let Some((tx, _)) = self.sessions.tx(&to.client_id) else { return Some((to, from, publish, reason)) };
        match tx.unbounded_send(Message::Forward(from, publish)).map_err(|error| error.into_inner()) {
            Err(Message::Forward(from, publish)) => Some((to, from, publish, reason)),
            _ => None,
        }
    }
}

/// The session of one client, as whoever connects or publishes finds it.
struct Held {
    entry: Box<dyn Entry>,
    sessions: Sessions,
}

impl Held {
    /// Has the connection that has the session let go of it, with all that was sent to it.
    async fn take_from(&mut self, session: Session, tx: Tx, clean_start: bool) -> Result<()> {
        // From here on nothing goes to the one before, which reads no more once it has let go.
        let (nowhere, _) = mpsc::unbounded();
        self.entry.set(session.clone(), SessionTx::new(nowhere)).await?;
        if session.connected().await.unwrap_or_default() {
            // Only one that is off-line takes in first what was sent to it before.
            let _ = tx.unbounded_send(Message::Closed(Reason::ConnectKicked(false)));
        }
        let (let_go, gone) = oneshot::channel();
        if tx.unbounded_send(Message::Kick(let_go, self.entry.id(), clean_start, false)).is_ok()
            && tokio::time::timeout(PATIENCE, gone).await.is_err()
        {
            tracing::warn!(client = %self.entry.id().client_id, "the connection before does not let go of its session");
        }
        Ok(())
    }
}

#[async_trait]
impl Entry for Held {
    async fn try_lock(&self) -> Result<Box<dyn Entry>> {
        Ok(Box::new(Self { entry: self.entry.try_lock().await?, sessions: self.sessions.clone() }))
    }

    async fn kick(
        &mut self,
        clean_start: bool,
        clear_subscriptions: bool,
        is_admin: IsAdmin,
    ) -> Result<OfflineSession> {
        let client = self.entry.id().client_id.clone();
        if is_admin {
            return self.entry.kick(clean_start, clear_subscriptions, is_admin).await;
        }
        if !clean_start {
            self.sessions.passing.lock().await.entry(client.clone()).or_default();
        }
        if let Some((session, tx)) = self.entry.session().zip(self.entry.tx()) {
            self.take_from(session, tx, clean_start).await?;
        }
        let kicked = self.entry.kick(clean_start, clear_subscriptions, is_admin).await?;
        let mut passing = self.sessions.passing.lock().await;
        if clean_start {
            passing.remove(&client);
            return Ok(kicked);
        }
        let owed = passing.entry(client.clone()).or_default();
        if let OfflineSession::Exist(Some(left)) = kicked {
            owed.left = Some(left);
        }
        let Some(OfflineInfo { id, created_at, .. }) = &owed.left else {
            passing.remove(&client);
            return Ok(OfflineSession::NotExist);
        };
        // What it is owed comes by `set`.
        Ok(OfflineSession::Exist(Some(OfflineInfo {
            id: id.clone(),
            subscriptions: Vec::new(),
            offline_messages: VecDeque::new(),
            inflight_messages: Vec::new(),
            created_at: *created_at,
        })))
    }

    async fn set(&mut self, session: Session, tx: Tx) -> Result<()> {
        let mut passing = self.sessions.passing.lock().await;
        let owed = passing.remove(&session.id.client_id).unwrap_or_default();
        if let Some(left) = owed.left {
            for (filter, options) in &left.subscriptions {
                let router = self.sessions.context.extends.router().await;
                router.add(filter, session.id.clone(), options.clone()).await?;
            }
            session.subscriptions_extend(left.subscriptions).await?;
            let under_way = left.inflight_messages;
            let ids: HashSet<_> = under_way.iter().filter_map(|message| message.publish.packet_id).collect();
            for message in under_way {
                send_again(&session, &tx, message).await?;
            }
            for (from, publish) in left.offline_messages {
                // One that was sent before, and is under way since.
                if !(publish.dup && publish.packet_id.is_some_and(|id| ids.contains(&id))) {
                    tx.unbounded_send(Message::Forward(from, publish))?;
                }
            }
        }
        for (from, publish) in owed.missed {
            tx.unbounded_send(Message::Forward(from, publish))?;
        }
        self.entry.set(session, tx).await
    }

    fn id(&self) -> Id {
        self.entry.id()
    }

    fn id_same(&self) -> Option<bool> {
        self.entry.id_same()
    }

    async fn remove(&mut self) -> Result<Option<(Session, Tx)>> {
        self.entry.remove().await
    }

    async fn remove_with(&mut self, id: &Id) -> Result<Option<(Session, Tx)>> {
        self.entry.remove_with(id).await
    }

    async fn online(&self) -> bool {
        self.entry.online().await
    }

    async fn is_connected(&self) -> bool {
        self.entry.is_connected().await
    }

    fn session(&self) -> Option<Session> {
        self.entry.session()
    }

    fn exist(&self) -> bool {
        self.entry.exist()
    }

    fn tx(&self) -> Option<Tx> {
        self.entry.tx()
    }

    async fn subscribe(&self, subscribe: &Subscribe) -> Result<SubscribeReturn> {
        self.entry.subscribe(subscribe).await
    }

    async fn unsubscribe(&self, unsubscribe: &Unsubscribe) -> Result<bool> {
        self.entry.unsubscribe(unsubscribe).await
    }

    async fn publish(&self, from: From, publish: Publish) -> std::result::Result<(), (From, Publish, Reason)> {
        let Err((from, publish, reason)) = self.entry.publish(from, publish).await else { return Ok(()) };
        match self.sessions.keep(vec![(self.entry.id(), from, publish, reason)]).await.pop() {
            Some((_, from, publish, reason)) => Err((from, publish, reason)),
            None => Ok(()),
        }
    }

    async fn subscriptions(&self) -> Option<Vec<SubsSearchResult>> {
        self.entry.subscriptions().await
    }
}

/// A message that was under way on the connection before.
async fn send_again(session: &Session, tx: &Tx, mut message: OutInflightMessage) -> Result<()> {
    if matches!(message.status, MomentStatus::UnComplete) {
        // A release that is asked for off-line would be forgotten.
        session.out_inflight().write().await.push_back(message.clone());
        tx.unbounded_send(Message::SendRerelease(message))?;
    } else {
        // Under its packet id: those of new messages are given out behind it.
        message.publish.dup = true;
        tx.unbounded_send(Message::Forward(message.from, message.publish))?;
    }
    Ok(())
}

#[async_trait]
impl Shared for Sessions {
    fn entry(&self, id: Id) -> Box<dyn Entry> {
        Box::new(Held { entry: self.sessions.entry(id), sessions: self.clone() })
    }

    async fn forwards(
        &self,
        id: Option<MsgID>,
        from: From,
        publish: Publish,
    ) -> std::result::Result<ForwardedCount, (ForwardedCount, Missed)> {
        let (count, missed) = match self.sessions.forwards(id, from, publish).await {
            Ok(count) => return Ok(count),
            Err(some) => some,
        };
        let all = count + missed.len();
        let lost = self.keep(missed).await;
        if lost.is_empty() { Ok(all) } else { Err((all - lost.len(), lost)) }
    }

    // This and the next are for brokers of several nodes.
    async fn forwards_and_get_shareds(
        &self,
        from: From,
        publish: Publish,
    ) -> std::result::Result<(SubRelationsMap, ForwardedRecipients), (ForwardedRecipients, Missed)> {
        self.sessions.forwards_and_get_shareds(from, publish).await
    }

    async fn forwards_to(
        &self,
        from: From,
        publish: &Publish,
        relations: SubRelations,
        id: Option<MsgID>,
    ) -> std::result::Result<ForwardedRecipients, (ForwardedRecipients, Missed)> {
        self.sessions.forwards_to(from, publish, relations, id).await
    }

    fn exist(&self, client_id: &str) -> bool {
        self.sessions.exist(client_id)
    }

    fn iter(&self) -> Box<dyn Iterator<Item = Box<dyn Entry>> + Sync + Send + '_> {
        self.sessions.iter()
    }

    fn random_session(&self) -> Option<Session> {
        self.sessions.random_session()
    }

    async fn session_status(&self, client_id: &str) -> Option<SessionStatus> {
        self.sessions.session_status(client_id).await
    }

    async fn client_states_count(&self) -> usize {
        self.sessions.client_states_count().await
    }

    fn sessions_count(&self) -> usize {
        self.sessions.sessions_count()
    }

    async fn query_subscriptions(&self, query: &SubsSearchParams) -> Vec<SubsSearchResult> {
        self.sessions.query_subscriptions(query).await
    }

    async fn subscriptions_count(&self) -> usize {
        self.sessions.subscriptions_count().await
    }

    async fn retain_load_with(
        &self,
        filter: &TopicFilter,
        to: Arc<dyn RetainLoadCallback>,
    ) -> Result<Vec<(NodeId, MsgID)>> {
        self.sessions.retain_load_with(filter, to).await
    }
}
