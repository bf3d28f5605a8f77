//! Retained messages of the embedded broker, in memory.

use std::collections::HashSet;
use std::time::Duration;

use async_trait::async_trait;
use rmqtt::context::ServerContext;
use rmqtt::retain::{DefaultRetainStorage, RetainStorage};
use rmqtt::types::{Retain, TopicFilter, TopicName};

use super::hooks::incoming;
use super::{Incoming, OnMessage};
use crate::topic;

/// Hands out what is retained on any of `filters`, each message once.
pub(super) async fn hand_out(context: &ServerContext, filters: &[topic::TopicFilter], to: &dyn OnMessage) {
    let mut topics = HashSet::new();
    for filter in filters {
        // `$share/…` gets nothing that is retained, in MQTT.
        let found = context.extends.retain().await.get(&filter.as_str().into()).await.unwrap_or_default();
        for (topic, retained) in found {
            if topics.insert(topic) {
                to.on_message(Incoming { retain: true, qos: 0, ..incoming(&retained.publish) }, None);
            }
        }
    }
}

/// rmqtt's own storage with its switch on, and a bound.
pub(super) struct Retained {
    messages: DefaultRetainStorage,
    messages_max: usize,
}

impl Retained {
    pub(super) fn new(messages_max: usize) -> Self {
        Self { messages: DefaultRetainStorage::new(), messages_max }
    }

    async fn is_full(&self) -> bool {
        let max = isize::try_from(self.messages_max).unwrap_or(isize::MAX);
        if self.messages.count().await >= max {
            self.messages.remove_expired_messages().await;
        }
        self.messages.count().await >= max
    }
}

#[async_trait]
impl RetainStorage for Retained {
    fn enable(&self) -> bool {
        true
    }

    async fn set(&self, topic: &TopicName, retain: Retain, expiry: Option<Duration>) -> rmqtt::Result<()> {
        let is_new = !retain.publish.payload.is_empty() && self.messages.get_message(topic).await?.is_empty();
        if is_new && self.is_full().await {
            let max = self.messages_max;
            tracing::warn!(%topic, max, "the embedded broker keeps no more retained messages");
            return Ok(());
        }
        // rmqtt's zero for "never" would be "at once" here.
        self.messages.set_with_timeout(topic, retain, expiry.filter(|after| !after.is_zero())).await
    }

    async fn get(&self, filter: &TopicFilter) -> rmqtt::Result<Vec<(TopicName, Retain)>> {
        self.messages.get_message(filter).await
    }

    async fn count(&self) -> isize {
        self.messages.count().await
    }

    async fn max(&self) -> isize {
        self.messages.max().await
    }
}
