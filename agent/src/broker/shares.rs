//! Shared subscriptions of the embedded broker.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use rmqtt::context::ServerContext;
use rmqtt::subscribe::SharedSubscription;
use rmqtt::types::{
    ClientId, Id, IsOnline, NodeId, SharedGroup, SubscriptionIdentifier, SubscriptionOptions, TopicName,
};

/// `$share/GROUP/FILTER`: each message goes to one member, in turn; to one that is away only when all are.
#[derive(Default)]
pub(super) struct Shares(AtomicUsize);

#[async_trait]
impl SharedSubscription for Shares {
    fn is_supported(&self) -> bool {
        true
    }

    async fn choice(
        &self,
        context: &ServerContext,
        _group: &SharedGroup,
        _publisher: &Id,
        _topic: &TopicName,
        members: &[(NodeId, ClientId, SubscriptionOptions, Option<Vec<SubscriptionIdentifier>>, Option<IsOnline>)],
    ) -> Option<(usize, IsOnline)> {
        let first = self.0.fetch_add(1, Ordering::Relaxed).checked_rem(members.len())?;
        for turn in (first..members.len()).chain(0..first) {
            let (node, client, _, _, online) = &members[turn];
            let online = match online {
                Some(online) => *online,
                None => context.extends.router().await.is_online(*node, client).await,
            };
            if online {
                return Some((turn, true));
            }
        }
        Some((first, false))
    }
}
