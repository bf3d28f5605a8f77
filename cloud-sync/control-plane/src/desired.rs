//! What one gateway should run, as it is told: signed by the on-line key, anew only when what it says has changed or half its life is over.

use std::time::Duration;

use sync_protocol::desired::{Desired, DesiredAnswer, Request};
use sync_protocol::limits::{ROOT_BYTES_MAX, ROOTS_MAX};
use sync_protocol::name::{GatewayName, GroupName};
use sync_protocol::{Digest, Envelope, KeyId, Refused, Root};

use crate::ControlPlane;
use crate::error::ApiError;
use crate::limits;
use crate::store::{Deployed, Signed};
use crate::trust;

/// What is answered, and by what it is known again.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Changes with what is answered.
    pub etag: String,
    /// All that the gateway needs to verify it.
    pub answer: DesiredAnswer,
}

/// What a desired document says, beside its sequence and times.
struct Content {
    groups: Vec<GroupName>,
    deployed: Option<Deployed>,
    requests: Vec<Request>,
}

impl ControlPlane {
    /// Waits until there is something else for `gateway` than `known`, at most for `wait`; `None`: there was not.
    ///
    /// # Errors
    /// When it cannot be told what the gateway should run.
    pub async fn desired(
        &self,
        gateway: &GatewayName,
        root: u64,
        known: Option<&str>,
        wait: Duration,
    ) -> Result<Option<Answer>, ApiError> {
        let mut over = std::pin::pin!(tokio::time::sleep(wait));
        // Before the first look, so that nothing is missed between looking and waiting.
        let mut waiter = self.wakes.wait(gateway);
        loop {
            let (roots, signed, content) = self.newest_for(gateway).await?;
            let (etag, newer) = etag(&roots, root, &signed)?;
            if known != Some(&etag) {
                let answer = self.answer(newer, signed, content).await?;
                return Ok(Some(Answer { etag, answer }));
            }
            let news = async {
                match waiter.as_mut() {
                    Some(waiter) => waiter.news().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = news => {}
                () = over.as_mut() => return Ok(None),
                () = self.closing.cancelled() => return Ok(None),
            }
        }
    }

    async fn newest_for(&self, gateway: &GatewayName) -> Result<(Vec<Envelope>, Signed, Content), ApiError> {
        let roots = self.store.roots().await?;
        let root = trust::newest(&roots)?;
        let key = self.online.usable(&root).ok_or_else(|| {
            ApiError::internal(format!("root {} lists none of the on-line keys of this control plane", root.version))
        })?;
        let (content, digest) = self.content(gateway).await?;
        let signed = self.store.signed(gateway).await?;
        if let Some(signed) = signed.filter(|signed| fresh(signed, digest, key, self.clock.now_ms())) {
            return Ok((roots, signed, content));
        }
        // One at a time: who looked earlier must not sign later, and so bring back what was before.
        let _signing = self.signing.lock().await;
        let (content, digest) = self.content(gateway).await?;
        let before = self.store.signed(gateway).await?;
        let now_ms = self.clock.now_ms();
        if let Some(signed) = before.as_ref().filter(|signed| fresh(signed, digest, key, now_ms)) {
            return Ok((roots, signed.clone(), content));
        }
        // The time makes it grow even behind what a control plane had signed that was then restored from an older backup.
        let sequence = before.map_or(0, |before| before.sequence + 1).max(now_ms);
        let expires_ms = now_ms + limits::DESIRED_LIFE_MS;
        let desired = Desired {
            gateway: gateway.clone(),
            groups: content.groups.clone(),
            sequence,
            deployment: content.deployed.as_ref().map(|deployed| deployed.reference),
            issued_ms: now_ms,
            expires_ms,
            requests: content.requests.clone(),
        };
        let envelope = self.online.sign(key, &desired).ok_or_else(|| ApiError::internal("the on-line key is gone"))?;
        let signed = Signed { sequence, content: digest, key, envelope, issued_ms: now_ms, expires_ms };
        if !self.store.keep_signed(gateway, &signed).await? {
            return Err(ApiError::internal(format!("another control plane signs for gateway `{gateway}`")));
        }
        self.metrics.desired_signed.inc();
        Ok((roots, signed, content))
    }

    async fn content(&self, gateway: &GatewayName) -> Result<(Content, Digest), ApiError> {
        let row = self.store.gateway(gateway).await?;
        let row = row.filter(|row| row.revoked_ms.is_none());
        let mut groups = row.ok_or_else(|| ApiError::missing(format!("gateway `{gateway}`")))?.groups;
        groups.sort();
        let deployed = self.store.desired_of(gateway).await?;
        let requests = self.store.asked(gateway, self.clock.now_ms()).await?;
        let said = (gateway, &groups, deployed.as_ref().map(|deployed| deployed.reference), &requests);
        let digest = Digest::of(&serde_json::to_vec(&said).map_err(ApiError::internal)?);
        Ok((Content { groups, deployed, requests }, digest))
    }

    async fn answer(&self, roots: Vec<Envelope>, signed: Signed, content: Content) -> Result<DesiredAnswer, ApiError> {
        let mut answer = DesiredAnswer { roots, desired: Some(signed.envelope), ..DesiredAnswer::default() };
        if let Some(deployed) = content.deployed {
            answer.releases = self.releases_of(&deployed.envelope).await?;
            answer.deployment = Some(deployed.envelope);
        }
        Ok(answer)
    }

    /// The releases that a deployment names, as far as they are here, each once.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn releases_of(&self, deployment: &Envelope) -> Result<Vec<Envelope>, ApiError> {
        let deployment: sync_protocol::Deployment = deployment.unverified().map_err(Refused::of("the deployment"))?;
        let mut digests: Vec<Digest> = deployment.artifacts.iter().map(|artifact| artifact.release).collect();
        digests.sort();
        digests.dedup();
        let mut releases = Vec::with_capacity(digests.len());
        for digest in digests {
            releases.extend(self.store.release(digest).await?.map(|release| release.envelope));
        }
        Ok(releases)
    }
}

fn fresh(signed: &Signed, content: Digest, key: KeyId, now_ms: u64) -> bool {
    let half = limits::DESIRED_LIFE_MS / 2;
    // One that was issued far ahead is from before the clock was set right, and would live too long.
    let young = now_ms < signed.issued_ms + half && signed.issued_ms < now_ms + half;
    signed.content == content && signed.key == key && young
}

/// The tag of the answer for one who trusts root `known`, and the roots that it is to learn of: only so many, more come with the next answer.
fn etag(roots: &[Envelope], known: u64, signed: &Signed) -> Result<(String, Vec<Envelope>), ApiError> {
    let (mut newest, mut newer, mut bytes) = (known, Vec::new(), 0);
    for envelope in roots {
        let root: Root = envelope.unverified().map_err(ApiError::internal)?;
        if root.version <= known {
            continue;
        }
        bytes += serde_json::to_vec(envelope).map_err(ApiError::internal)?.len();
        if !newer.is_empty() && (newer.len() >= ROOTS_MAX || bytes > 2 * ROOT_BYTES_MAX) {
            break;
        }
        newest = root.version;
        newer.push(envelope.clone());
    }
    Ok((format!("\"{}-{newest}\"", signed.sequence), newer))
}
