//! The loop that follows the control plane: gets an identity, asks what to run, verifies the answer, hands it over, renews.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sync_protocol::name::GatewayName;
use sync_protocol::report::Report;
use sync_protocol::{DesiredAnswer, Envelope};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::Now;
use crate::back_off::BackOff;
use crate::blobs::{BlobError, BlobStore};
use crate::cloud::{Cloud, Link};
use crate::error::SessionError;
use crate::files;
use crate::identity::{self, Identity, IdentityError};
use crate::limits::Limits;
use crate::provision::{ProvisionError, provision};
use crate::report::Reporter;
use crate::session::{Answer, Session, SessionConfig};
use crate::trust_store::{TrustError, TrustStore};

/// How a gateway takes part.
#[derive(Clone, Debug)]
pub struct SyncConfig {
    /// Where `identity/`, `trust/` and `blobs/` are.
    pub state: PathBuf,
    /// `https://cloud.example:8443`.
    pub url: String,
    /// The name that it wants; with a certificate of others, the one that it has.
    pub gateway: GatewayName,
    /// File with a claim token, to be provisioned with.
    pub claim_token: Option<PathBuf>,
    /// File with the first root of trust, for where no claim token names it.
    pub root: Option<PathBuf>,
    /// Certificate and key that somebody else looks after.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// File with authorities of the control plane's certificate.
    pub ca: Option<PathBuf>,
    /// Sign each request instead of showing a certificate.
    pub sign_requests: bool,
    /// How often it reports though nothing happens.
    pub report_every: Duration,
    /// Waits.
    pub limits: Limits,
}

/// Why there is nothing to follow with.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Blobs.
    #[error("{0}")]
    Blobs(#[from] BlobError),
    /// Trust.
    #[error("{0}")]
    Trust(#[from] TrustError),
    /// Identity.
    #[error("{0}")]
    Identity(#[from] IdentityError),
    /// The file with the first root.
    #[error("`root` = {}: {why}", path.display())]
    Root {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// Follows until it is told to stop. What it finds out is in [`Cloud`].
pub struct Follower {
    config: SyncConfig,
    cloud: Cloud,
    identity: Option<Identity>,
    now: Now,
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Follower({})", self.config.url)
    }
}

impl Follower {
    /// Opens what is on disk; asks nobody.
    ///
    /// # Errors
    /// When something on disk cannot be used.
    pub fn open(config: SyncConfig, now: Now) -> Result<(Self, Cloud), OpenError> {
        let blobs = BlobStore::open(&config.state.join("blobs"), config.limits.disk_spare_bytes)?;
        let trust = TrustStore::open(&config.state.join("trust"))?;
        let identity = open_identity(&config)?;
        if let Some(identity) = &identity {
            trust.begin_with_identity(identity)?;
        }
        if let Some(path) = config.root.as_deref().filter(|_| !trust.has_root()) {
            trust.begin_with_root(&read_root(path)?)?;
        }
        let name = identity.as_ref().map_or(&config.gateway, Identity::name).clone();
        let cloud = Cloud::new(name, trust, blobs, config.limits);
        Ok((Self { config, cloud: cloud.clone(), identity, now }, cloud))
    }

    /// Follows, and sends what `reports` says, until `cancel`.
    pub async fn run(self, reports: watch::Receiver<Report>, cancel: CancellationToken) {
        let reporter = Reporter::new(self.cloud.clone(), reports.clone(), self.config.report_every, self.now.clone());
        tokio::select! {
            biased;
            () = cancel.cancelled() => {}
            () = self.follow(&reports) => {}
            () = reporter.run() => {}
        }
    }

    async fn follow(mut self, reports: &watch::Receiver<Report>) {
        let mut back_off = BackOff::new(&self.config.limits);
        let mut asking = Asking::new(&self.config.limits);
        let mut session = None;
        loop {
            let opened = match session.take().filter(|open: &Arc<Session>| !open.identity().renew_due((self.now)())) {
                Some(session) => Ok(session),
                None => self.open_session().await,
            };
            let turn = match opened {
                Ok(open) => asking.turn(&self, &open, reports).await.map(|()| session = Some(open)),
                Err(link) => Err((link, None)),
            };
            match turn {
                Ok(()) => back_off.reset(),
                Err((link, retry_after)) => {
                    // A session is made anew: the certificate may have been replaced meanwhile.
                    self.cloud.note(link);
                    tokio::time::sleep(back_off.step(retry_after)).await;
                }
            }
        }
    }

    /// A session with a certificate that is good, if there is any way to get one.
    async fn open_session(&mut self) -> Result<Arc<Session>, Link> {
        let identity = match self.identity.take() {
            Some(identity) => identity,
            None => self.identify().await?,
        };
        let renews = identity.renew_due((self.now)());
        let mut session = self.session_of(identity, self.config.sign_requests)?;
        if renews {
            match session.renew().await {
                Ok(()) => {
                    tracing::info!("certificate renewed");
                    let identity = self.identify().await?;
                    session = self.session_of(identity, self.config.sign_requests)?;
                }
                Err(error) => tracing::warn!(%error, "certificate not renewed, trying again later"),
            }
        }
        let session = Arc::new(session);
        self.cloud.begin_session(Arc::clone(&session));
        Ok(session)
    }

    fn session_of(&self, identity: Identity, sign_requests: bool) -> Result<Session, Link> {
        let config = self.session_config(sign_requests).map_err(|error| Link::Offline(error.to_string()))?;
        Session::new(Arc::new(identity), &config, self.now.clone()).map_err(|error| Link::Offline(error.to_string()))
    }

    fn session_config(&self, sign_requests: bool) -> Result<SessionConfig, IdentityError> {
        let ca = self.config.ca.as_deref().map(identity::authorities).transpose()?.unwrap_or_default();
        Ok(SessionConfig { url: self.config.url.clone(), ca, sign_requests, limits: self.config.limits })
    }

    /// The identity on disk, or a new one.
    async fn identify(&self) -> Result<Identity, Link> {
        let config = self.config.clone();
        let opened = tokio::task::spawn_blocking(move || open_identity(&config)).await;
        let unprovisioned = |error: ProvisionError| {
            let hint = error.hint().map_or(String::new(), |hint| format!(" ({hint})"));
            Link::Unprovisioned(format!("{error}{hint}"))
        };
        match opened.map_err(|error| Link::Offline(error.to_string()))? {
            Ok(Some(identity)) => return Ok(identity),
            Ok(None) => {}
            Err(error) => return Err(unprovisioned(error.into())),
        }
        let (name, token) = (&self.config.gateway, self.config.claim_token.as_deref());
        let token = token.unwrap_or(Path::new("`claim_token_file` of `[cloud]`"));
        let config = self.session_config(false).map_err(|error| unprovisioned(error.into()))?;
        let folder = self.config.state.join("identity");
        let provisioned = provision(&folder, self.cloud.trust(), name, token, &config, self.now.clone()).await;
        let identity = provisioned.map_err(unprovisioned)?;
        tracing::info!(gateway = %identity.name(), "provisioned");
        Ok(identity)
    }

    /// Gets a new certificate for the key of one that is not taken any more: by the key's signature, since nobody looks at the certificate's
    /// dates then. It may have expired by the control plane's clock alone.
    async fn enrol_again(&self) -> Result<(), String> {
        let identity = self.identify().await.map_err(|link| link.to_string())?;
        let session = self.session_of(identity, true).map_err(|link| link.to_string())?;
        session.renew().await.map_err(|error| error.to_string())
    }

    async fn accept(&self, answer: DesiredAnswer, reports: &watch::Receiver<Report>) -> Result<(), TrustError> {
        let (cloud, now_ms, running) = (self.cloud.clone(), (self.now)(), reports.borrow().active);
        let accept = move || {
            let (trust, name, desired) = (cloud.trust(), cloud.name(), answer.desired.clone());
            trust.accept(&name, answer, now_ms, running.as_ref()).inspect_err(|_| {
                if let Some(desired) = desired.and_then(|desired| trust.heard(&name, &desired, now_ms)) {
                    cloud.take_requests(&desired.requests);
                }
            })
        };
        let accepted = tokio::task::spawn_blocking(accept).await;
        let accepted = accepted.map_err(|error| TrustError::File {
            what: "write",
            path: PathBuf::from("trust.json"),
            source: std::io::Error::other(error),
        })?;
        self.cloud.hand_over(accepted?);
        Ok(())
    }
}

/// What is asked next, and for how long it may be held.
struct Asking {
    etag: Option<String>,
    wait: Duration,
    wait_min: Duration,
    wait_max: Duration,
    gap: Duration,
    /// Times in a row that it was held to the end.
    calm: u32,
    /// What came last was refused, which time or a new root may change.
    refused: bool,
}

/// Times that a request must have been held to the end before it is held for longer.
const CALM: u32 = 16;

impl Asking {
    const fn new(limits: &Limits) -> Self {
        Self {
            etag: None,
            wait: limits.wait,
            wait_min: limits.wait_min,
            wait_max: limits.wait,
            gap: limits.gap,
            calm: 0,
            refused: false,
        }
    }

    /// Asks once. The error says how it stands, and how long the other side wants to be left alone.
    async fn turn(
        &mut self,
        follower: &Follower,
        session: &Session,
        reports: &watch::Receiver<Report>,
    ) -> Result<(), (Link, Option<Duration>)> {
        // Who answers everything at once is not asked any faster for it.
        let gap = tokio::time::sleep(self.gap);
        let (cloud, held) = (&follower.cloud, self.etag.is_some());
        let wait = if held { self.wait } else { Duration::ZERO };
        match session.desired(self.etag.as_deref(), cloud.trust().root_version(), wait).await {
            Ok(Answer::Unchanged) => {
                cloud.note(Link::Connected);
                self.calm += 1;
                if self.calm >= CALM {
                    (self.wait, self.calm) = ((self.wait * 2).min(self.wait_max), 0);
                }
                if self.refused {
                    self.etag = None;
                }
            }
            Ok(Answer::Changed { answer, etag }) => {
                cloud.note(Link::Connected);
                let accepted = follower.accept(*answer, reports).await;
                self.refused = accepted.is_err();
                match accepted {
                    Ok(()) => self.etag = etag,
                    // Held until it changes; then it is looked at again, whether it has changed or not.
                    Err(TrustError::Refused(why)) => {
                        self.etag = etag;
                        cloud.refuse(why.to_string());
                    }
                    Err(error) => {
                        self.etag = None;
                        return Err((Link::Offline(error.to_string()), None));
                    }
                }
            }
            // Proxies and address translation cut what is silent for long.
            Err(error) if held && self.wait > self.wait_min && error.is_cut() => {
                (self.wait, self.calm) = ((self.wait / 2).max(self.wait_min), 0);
                tracing::debug!(%error, wait_secs = self.wait.as_secs(), "held request was cut, holding shorter");
                gap.await;
                return Err((Link::Connecting, Some(Duration::ZERO)));
            }
            Err(error) => return Err((self.failed(follower, session, &error).await, error.retry_after())),
        }
        gap.await;
        Ok(())
    }

    async fn failed(&self, follower: &Follower, session: &Session, error: &SessionError) -> Link {
        let hint = error.hint().map_or(String::new(), |hint| format!(" ({hint})"));
        let why = format!("{error}{hint}");
        match error {
            SessionError::Certificate { .. } | SessionError::NotLetIn { .. } if session.identity().is_ours() => {
                match follower.enrol_again().await {
                    Ok(()) => Link::Connecting,
                    Err(renewal) => Link::Refused(format!("{why}; {renewal}")),
                }
            }
            SessionError::Certificate { .. } | SessionError::NotLetIn { .. } | SessionError::Stranger { .. } => {
                Link::Refused(why)
            }
            _ => Link::Offline(why),
        }
    }
}

/// What is on disk: ours, or that of others.
fn open_identity(config: &SyncConfig) -> Result<Option<Identity>, IdentityError> {
    match &config.certificate {
        Some((certificate, key)) => Identity::from_files(config.gateway.clone(), certificate, key).map(Some),
        None => Identity::open(&config.state.join("identity")),
    }
}

fn read_root(path: &Path) -> Result<Envelope, OpenError> {
    let wrong = |why: String| OpenError::Root { path: path.to_owned(), why };
    let json = files::read(path).map_err(|error| wrong(error.to_string()))?;
    let json = json.ok_or_else(|| wrong("there is no such file".to_owned()))?;
    Envelope::parse(&json).map_err(|error| wrong(error.to_string()))
}
