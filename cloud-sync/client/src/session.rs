//! What a gateway asks of the control plane, one method a call.
//!
//! One connection is held by the question for the desired deployment, a second one comes and goes with everything else.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::StatusCode;
use reqwest::header::{
    CONTENT_ENCODING, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH, RETRY_AFTER,
};
use rustls_pki_types::CertificateDer;
use serde::Deserialize;
use serde_json::Value;
use sync_protocol::DesiredAnswer;
use sync_protocol::limits::ANSWER_BYTES_MAX;
use sync_protocol::provision::{Provisioned, RenewRequest};
use sync_protocol::report::Report;

use crate::Now;
use crate::answer::{self, Verdict};
pub use crate::error::SessionError;
use crate::identity::{self, Identity, IdentityError};
use crate::limits::{Limits, PROVISIONED_BYTES_MAX, WORDS_BYTES_MAX};
use crate::signing::Signer;
use crate::tls::Authorities;
use crate::transport::{Call, Transport, text};

/// How to reach the control plane.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// `https://cloud.example:8443`.
    pub url: String,
    /// Authorities of the control plane's certificate beside the identity's own: those of a company's proxy. With neither, those
    /// that browsers believe.
    pub ca: Vec<CertificateDer<'static>>,
    /// Sign each request instead of showing a certificate.
    pub sign_requests: bool,
    /// Waits.
    pub limits: Limits,
}

/// What there is to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Nothing new.
    Unchanged,
    /// This; nothing of it is verified.
    Changed {
        /// What it says.
        answer: Box<DesiredAnswer>,
        /// What it is called when it is asked for again.
        etag: Option<String>,
    },
}

/// Why a certificate was not renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// The call failed.
    #[error("cannot renew the certificate of this gateway: {0}")]
    Session(#[from] SessionError),
    /// What came, or the disk, is of no use.
    #[error("cannot renew the certificate of this gateway: {0}")]
    Identity(#[from] IdentityError),
}

/// The answer to a report.
#[derive(Deserialize)]
struct Reported {
    #[serde(default)]
    delta: Option<Value>,
}

/// The calls of one gateway, with one certificate.
#[derive(Debug)]
pub struct Session {
    transport: Transport,
    identity: Arc<Identity>,
}

impl Session {
    /// Makes one; the first call connects. `HTTPS_PROXY` and its kin are honoured.
    ///
    /// # Errors
    /// When the address or the certificates are of no use.
    pub fn new(identity: Arc<Identity>, config: &SessionConfig, now: Now) -> Result<Self, SessionError> {
        let begun = identity.life().from_ms;
        // A clock that says it was before our own certificate was made is as good as none.
        let now: Now = Arc::new(move || now().filter(|now| *now >= begun));
        let known: Vec<_> = identity.ca().iter().chain(&config.ca).cloned().collect();
        let authorities = if known.is_empty() { Authorities::Public } else { Authorities::Known(known) };
        // Some end the handshake over an expired certificate; a signature of its key may still get us a new one.
        let signed = config.sign_requests || identity.is_expired(now());
        let own = (!signed).then(|| (identity.chain(), identity.key()));
        let signer =
            signed.then(|| Signer::new(identity.chain(), identity.key())).transpose().map_err(SessionError::Own)?;
        let transport = Transport::new(&config.url, authorities, own, signer, config.limits, now)?;
        Ok(Self { transport, identity })
    }

    /// With which it identifies itself.
    pub const fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    pub(crate) const fn transport(&self) -> &Transport {
        &self.transport
    }

    fn path(&self, call: &str) -> String {
        format!("/v1/gateways/{}/{call}", self.identity.name())
    }

    /// Asks what this gateway should run. Held by the other side for up to `wait` while that is what `etag` stands for; roots behind
    /// version `root` come along.
    ///
    /// # Errors
    /// When there is no answer, or none that makes sense.
    pub async fn desired(&self, etag: Option<&str>, root: u64, wait: Duration) -> Result<Answer, SessionError> {
        let mut call = Call::get(self.path(&format!("desired?wait={}&root={root}", wait.as_secs())));
        call.timeout = Some(wait + self.transport.limits.answer);
        if let Some(etag) = etag.and_then(|etag| HeaderValue::try_from(etag).ok()) {
            call.headers.insert(IF_NONE_MATCH, etag);
        }
        let response = self.transport.send(call).await?;
        if response.status() == StatusCode::NOT_MODIFIED {
            return Ok(Answer::Unchanged);
        }
        let etag = text(response.headers(), &ETAG).map(str::to_owned);
        let answer = self.transport.read_json(response, ANSWER_BYTES_MAX).await?;
        Ok(Answer::Changed { answer: Box::new(answer), etag })
    }

    /// Sends a report, and returns in what the shadow's desired differs from its reported.
    ///
    /// # Errors
    /// When it was not taken.
    pub async fn report(&self, report: &Report) -> Result<Option<Value>, SessionError> {
        let response = self.transport.send(Call::post(self.path("reported"), report)?).await?;
        let reported: Reported = self.transport.read_json(response, WORDS_BYTES_MAX).await?;
        Ok(reported.delta)
    }

    /// Sends records: lines of JSON, compressed with zstd, as docs/reference/uplink-http.md has them. The same ones always go with
    /// the same `key`.
    pub async fn records(&self, key: &str, body: Bytes) -> Verdict {
        match self.send_records(key, body).await {
            Ok(verdict) => verdict,
            Err(error) => Verdict::Later { after: error.retry_after(), why: error.to_string() },
        }
    }

    async fn send_records(&self, key: &str, body: Bytes) -> Result<Verdict, SessionError> {
        let key = HeaderValue::try_from(key).map_err(|error| SessionError::Own(error.to_string()))?;
        let mut call = Call::get(self.path("records"));
        (call.method, call.body) = (reqwest::Method::POST, body);
        call.headers = HeaderMap::from_iter([
            (CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson")),
            (CONTENT_ENCODING, HeaderValue::from_static("zstd")),
            (HeaderName::from_static("idempotency-key"), key),
        ]);
        let response = self.transport.send_any(&call).await?;
        let status = response.status().as_u16();
        let after = text(response.headers(), &RETRY_AFTER).map(str::to_owned);
        let body = self.transport.read(response, WORDS_BYTES_MAX).await?;
        Ok(answer::judge(status, after.as_deref(), &body, (self.transport.now)().unwrap_or(0)))
    }

    /// Gets a new certificate for the same key, and keeps it. A new session has to be made with it.
    ///
    /// # Errors
    /// When it is not given, or cannot be kept; the one of now stays.
    pub async fn renew(&self) -> Result<(), RenewError> {
        let Some(folder) = self.identity.folder() else { return Ok(()) };
        let call = Call::post(self.path("renew"), &RenewRequest { csr: self.identity.csr()? })?;
        let response = self.transport.send(call).await?;
        let answer: Provisioned = self.transport.read_json(response, PROVISIONED_BYTES_MAX).await?;
        Ok(identity::keep_certificate(folder, &answer)?)
    }
}
