//! What the agent holds of the control plane, whether it is reachable or not.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use serde_json::Value;
use sync_protocol::Blob;
use sync_protocol::desired::Request;
use sync_protocol::name::GatewayName;
use tokio::sync::{Notify, watch};

use crate::answer::Verdict;
use crate::back_off::BackOff;
use crate::blobs::{BlobError, BlobStore};
use crate::limits::{LOG_BYTES_MAX, LOG_LINES_MAX, Limits, WRONG_MAX};
use crate::session::Session;
use crate::trust_store::{Accepted, TrustStore};

/// How it stands with the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Link {
    /// There is no identity yet, and why not.
    Unprovisioned(String),
    /// Nothing was heard yet.
    Connecting,
    /// A question is held, or was just answered.
    Connected,
    /// Out of reach, and why.
    Offline(String),
    /// It is there and does not let this gateway in, and why.
    Refused(String),
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unprovisioned(why) => write!(f, "not provisioned: {why}"),
            Self::Connecting => f.write_str("connecting"),
            Self::Connected => f.write_str("connected"),
            Self::Offline(why) => write!(f, "offline: {why}"),
            Self::Refused(why) => write!(f, "refused: {why}"),
        }
    }
}

/// One for all who speak with the control plane. Cheap to clone.
#[derive(Clone)]
pub struct Cloud(Arc<Shared>);

struct Shared {
    name: watch::Sender<GatewayName>,
    session: watch::Sender<Option<Arc<Session>>>,
    link: watch::Sender<Link>,
    accepted: watch::Sender<Option<Arc<Accepted>>>,
    /// Why the last thing that came was refused; empty: it was not.
    refused: watch::Sender<String>,
    delta: watch::Sender<Option<Value>>,
    requests: watch::Sender<Vec<Request>>,
    logs: Mutex<VecDeque<Value>>,
    logged: Notify,
    trust: Arc<TrustStore>,
    blobs: BlobStore,
    limits: Limits,
}

impl fmt::Debug for Cloud {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cloud({}, {})", *self.0.name.borrow(), *self.0.link.borrow())
    }
}

impl Cloud {
    pub(crate) fn new(name: GatewayName, trust: TrustStore, blobs: BlobStore, limits: Limits) -> Self {
        Self(Arc::new(Shared {
            name: watch::Sender::new(name),
            session: watch::Sender::new(None),
            link: watch::Sender::new(Link::Connecting),
            accepted: watch::Sender::new(None),
            refused: watch::Sender::default(),
            delta: watch::Sender::new(None),
            requests: watch::Sender::default(),
            logs: Mutex::default(),
            logged: Notify::new(),
            trust: Arc::new(trust),
            blobs,
            limits,
        }))
    }

    /// This gateway's name in the fleet: as configured, until provisioning gave another one.
    pub fn name(&self) -> GatewayName {
        self.0.name.borrow().clone()
    }

    /// How it stands with the control plane.
    pub fn link(&self) -> watch::Receiver<Link> {
        self.0.link.subscribe()
    }

    /// The newest that was verified and written down. It comes again after a restart, and when only what is asked beside the deployment changes.
    pub fn accepted(&self) -> watch::Receiver<Option<Arc<Accepted>>> {
        self.0.accepted.subscribe()
    }

    /// In what the shadow's desired differs from what was reported last; `None`: in nothing.
    pub fn delta(&self) -> watch::Receiver<Option<Value>> {
        self.0.delta.subscribe()
    }

    /// What somebody asks for beside the deployment, whether that was accepted or refused.
    pub fn requests(&self) -> watch::Receiver<Vec<Request>> {
        self.0.requests.subscribe()
    }

    /// What is trusted.
    pub fn trust(&self) -> &Arc<TrustStore> {
        &self.0.trust
    }

    /// Blobs that are here.
    pub fn blobs(&self) -> &BlobStore {
        &self.0.blobs
    }

    /// Brings all of `blobs` here, however often the line is cut; waits while there is none. `progress` hears how many of the bytes that
    /// were missing have come, and how many there are. To be dropped when it takes too long.
    ///
    /// # Errors
    /// When trying on is of no use: the disk is full, or what comes is again and again not what was signed.
    pub async fn fetch(&self, blobs: &[Blob], mut progress: impl FnMut(u64, u64)) -> Result<(), BlobError> {
        let blobs: Vec<Blob> = BTreeSet::from_iter(blobs).into_iter().copied().collect();
        let total = self.0.blobs.missing_bytes(&blobs);
        progress(0, total);
        let mut done = 0;
        for blob in &blobs {
            let missing = self.0.blobs.missing_bytes(&[*blob]);
            let had = blob.bytes - missing;
            self.fetch_one(blob, |have| progress(done + have.saturating_sub(had), total)).await?;
            done += missing;
        }
        Ok(())
    }

    async fn fetch_one(&self, blob: &Blob, mut progress: impl FnMut(u64)) -> Result<(), BlobError> {
        let mut back_off = BackOff::new(&self.0.limits);
        let (mut wrong, mut most) = (0, 0);
        loop {
            let session = match self.0.blobs.get(&blob.digest) {
                Some(_) => return Ok(()),
                None => self.session().await,
            };
            let mut have = 0;
            let fetched = session.blob(blob, &self.0.blobs, |bytes| {
                have = bytes;
                progress(bytes);
            });
            let error = match fetched.await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            wrong += u32::from(error.is_wrong());
            if !error.may_pass() && (!error.is_wrong() || wrong >= WRONG_MAX) {
                return Err(error);
            }
            // A line that is cut and yet gets on is not worse for it.
            if have > most {
                most = have;
                back_off.reset();
            }
            let retry_in = back_off.step(match &error {
                BlobError::Session { source, .. } => source.retry_after(),
                _ => None,
            });
            tracing::info!(digest = %blob.digest, %error, retry_in_ms = retry_in.as_millis(), "download interrupted, going on");
            tokio::time::sleep(retry_in).await;
        }
    }

    /// Sends records; see [`Session::records`].
    pub async fn records(&self, key: &str, body: Bytes) -> Verdict {
        let session = self.0.session.borrow().clone();
        match session {
            Some(session) => session.records(key, body).await,
            None => Verdict::Later { after: None, why: self.0.link.borrow().to_string() },
        }
    }

    /// Has log lines go with the next report, which is soon. When too many wait, the oldest are dropped.
    pub fn log(&self, lines: impl IntoIterator<Item = Value>) {
        let mut waiting = self.0.logs.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.extend(lines);
        let surplus = waiting.len().saturating_sub(LOG_LINES_MAX);
        waiting.drain(..surplus);
        self.0.logged.notify_one();
    }

    /// The session, once there is one.
    pub(crate) async fn session(&self) -> Arc<Session> {
        let mut session = self.0.session.subscribe();
        loop {
            if let Some(session) = session.borrow_and_update().clone() {
                return session;
            }
            if session.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.0.limits
    }

    pub(crate) fn begin_session(&self, session: Arc<Session>) {
        self.0.name.send_replace(session.identity().name().clone());
        self.0.session.send_replace(Some(session));
    }

    /// Tells how it stands, and logs what is new of it.
    pub(crate) fn note(&self, link: Link) {
        let changed = self.0.link.send_if_modified(|held| {
            *held != link && {
                let _before = mem::replace(held, link.clone());
                true
            }
        });
        match &link {
            _ if !changed => {}
            Link::Connected => tracing::info!("connected with the control plane"),
            Link::Connecting => {}
            Link::Offline(why) => tracing::warn!(why, "control plane out of reach"),
            Link::Unprovisioned(why) => tracing::error!(why, "this gateway is not provisioned"),
            Link::Refused(why) => tracing::error!(why, "the control plane does not let this gateway in"),
        }
    }

    pub(crate) fn hand_over(&self, accepted: Accepted) {
        self.0.refused.send_replace(String::new());
        if let Some(desired) = &accepted.desired {
            self.take_requests(&desired.requests);
        }
        self.0.accepted.send_replace(Some(Arc::new(accepted)));
    }

    pub(crate) fn refuse(&self, why: String) {
        tracing::error!(why, "what the control plane wants is refused");
        self.0.refused.send_replace(why);
    }

    /// Why the last thing that came was refused; empty: it was not.
    pub fn refused(&self) -> watch::Receiver<String> {
        self.0.refused.subscribe()
    }

    pub(crate) fn take_requests(&self, requests: &[Request]) {
        self.0.requests.send_if_modified(|held| {
            let changed = held != requests;
            if changed {
                *held = requests.to_vec();
            }
            changed
        });
    }

    pub(crate) fn take_delta(&self, delta: Option<Value>) {
        self.0.delta.send_if_modified(|held| mem::replace(held, delta.clone()) != delta);
    }

    pub(crate) async fn logged(&self) {
        self.0.logged.notified().await;
    }

    /// As many of the lines that wait as go into one report.
    pub(crate) fn take_logs(&self) -> Vec<Value> {
        let mut waiting = self.0.logs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = 0;
        let fits = |line: &&Value| {
            bytes += line.to_string().len() + 1;
            bytes <= LOG_BYTES_MAX
        };
        // One that is too long for any report goes alone, and is refused there.
        let count = waiting.iter().take_while(fits).count().max(1).min(waiting.len());
        let lines = waiting.drain(..count).collect();
        if !waiting.is_empty() {
            self.0.logged.notify_one();
        }
        lines
    }

    /// Puts lines back that did not get through.
    pub(crate) fn put_back(&self, lines: Vec<Value>) {
        let mut waiting = self.0.logs.lock().unwrap_or_else(PoisonError::into_inner);
        lines.into_iter().rev().for_each(|line| waiting.push_front(line));
        let surplus = waiting.len().saturating_sub(LOG_LINES_MAX);
        waiting.drain(..surplus);
    }
}
