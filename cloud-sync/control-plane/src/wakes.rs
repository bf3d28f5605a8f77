//! Who waits for news of which gateway.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use sync_protocol::name::GatewayName;
use tokio::sync::watch;

use crate::limits;

type Waiting = Mutex<HashMap<GatewayName, watch::Sender<()>>>;

/// Wakes those who wait. A gateway that nobody waits for costs nothing.
#[derive(Clone, Debug, Default)]
pub struct Wakes(Arc<Waiting>);

/// One who waits. What happens after it was made is not missed.
#[derive(Debug)]
pub struct Waiter {
    waiting: Arc<Waiting>,
    gateway: GatewayName,
    news: watch::Receiver<()>,
}

impl Wakes {
    /// Begins to wait; `None` when too many do.
    pub fn wait(&self, gateway: &GatewayName) -> Option<Waiter> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= limits::WAITING_MAX && !waiting.contains_key(gateway) {
            return None;
        }
        let news = waiting.entry(gateway.clone()).or_default().subscribe();
        Some(Waiter { waiting: self.0.clone(), gateway: gateway.clone(), news })
    }

    /// There is news for each of `gateways`.
    pub fn wake<'a>(&self, gateways: impl IntoIterator<Item = &'a GatewayName>) {
        let waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for gateway in gateways {
            waiting.get(gateway).inspect(|news| news.send_replace(()));
        }
    }

    /// There is news for all.
    pub fn wake_all(&self) {
        let waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.values().for_each(|news| {
            news.send_replace(());
        });
    }

    /// Whether `gateway` waits.
    pub fn waits(&self, gateway: &GatewayName) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains_key(gateway)
    }

    /// Gateways that are waited for.
    pub fn count(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Waiter {
    /// Until there is news.
    pub async fn news(&mut self) {
        // The sender stays in the map as long as this waits.
        let _ = self.news.changed().await;
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.get(&self.gateway).is_some_and(|news| news.receiver_count() <= 1) {
            waiting.remove(&self.gateway);
        }
    }
}
