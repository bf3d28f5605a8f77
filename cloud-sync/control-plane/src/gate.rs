//! Finds out who calls, before any handler runs: a person by a token, a gateway by its certificate, shown in the handshake or sent with a signed
//! request.
//!
//! A certificate counts when it is in the registry (the control plane signed it, or an operator registered it) and neither it nor its gateway
//! was revoked. One that is not there, but leads to the control plane's own authority, is a gateway's whose certificate is younger than the
//! backup that was restored; one that leads to an authority in `keys/authorities` is a gateway's of whoever runs that one. Both are taken into
//! the registry, under the name that they carry, and written to the audit log.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::{AUTHORIZATION, HeaderMap};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::SignatureScheme as Scheme;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, TrustAnchor};
use serde_json::json;
use sync_protocol::limits::RECORDS_BYTES_MAX;
use sync_protocol::name::GatewayName;
use sync_protocol::request::{CERTIFICATE, Replays, RequestError, SignedHeaders};
use tokio::sync::Semaphore;

use crate::api::App;
use crate::audit::Entry;
use crate::auth::{Caller, GatewayCaller, Renewing, WhyNot};
use crate::ca::{CaError, verify_signature};
use crate::error::ApiError;
use crate::folder::Folder;
use crate::limits;
use crate::peer::{Facts, Peer, leads_to};
use crate::secret;
use crate::store::{CertificateRow, StoreError};
use crate::token;

/// Most certificates in the header of a signed request.
const CHAIN_MAX: usize = 4;

/// What is asked of each request.
pub struct Gate {
    app: App,
    own: Vec<TrustAnchor<'static>>,
    others: Vec<TrustAnchor<'static>>,
    replays: Mutex<Replays>,
    bodies: Semaphore,
    /// Unix time in seconds: what was signed earlier may have come before, and nobody remembers.
    started: u64,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}

impl Gate {
    /// Reads the authorities beside our own: each `*.pem` in `keys/authorities`.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn open(app: App) -> Result<Self, CaError> {
        let own = vec![anchor(app.authority.der())?];
        let others = other_authorities(&app.folder)?;
        let started = app.clock.now_ms() / 1000;
        Ok(Self { app, own, others, replays: Mutex::default(), bodies: Semaphore::new(limits::BODIES_MAX), started })
    }

    /// The layer around the router.
    pub async fn pass(self: Arc<Self>, request: Request, next: Next) -> Response {
        match self.identify(request).await {
            Ok(request) => next.run(request).await,
            Err(error) => error.into_response(),
        }
    }

    async fn identify(&self, mut request: Request) -> Result<Request, ApiError> {
        if let Some(token) = bearer(request.headers()) {
            match self.person(token).await? {
                Ok(caller) => drop(request.extensions_mut().insert(caller)),
                Err(why) => drop(request.extensions_mut().insert(WhyNot(why))),
            }
        }
        let signed = request.headers().contains_key(CERTIFICATE);
        let chain = if signed {
            let (verified, chain) = self.signed(request).await?;
            request = verified;
            chain
        } else {
            request.extensions().get::<Peer>().map(|peer| peer.chain.to_vec()).unwrap_or_default()
        };
        if chain.is_empty() {
            return Ok(request);
        }
        match self.gateway(&chain).await? {
            Ok((name, true)) => drop(request.extensions_mut().insert(GatewayCaller(name))),
            Ok((name, false)) => {
                let error = format!("the certificate of gateway `{name}` has expired");
                let why = ApiError::new(StatusCode::FORBIDDEN, error).hint("it is still good for renewing it");
                request.extensions_mut().insert(WhyNot(why));
                request.extensions_mut().insert(Renewing(name));
            }
            Err(why) => drop(request.extensions_mut().insert(WhyNot(why))),
        }
        Ok(request)
    }

    /// Who has the token.
    async fn person(&self, token: &str) -> Result<Result<Caller, ApiError>, ApiError> {
        let unknown =
            || unauthorized("the token is not known here").hint("was it copied whole? an admin makes new ones");
        let Some((id, shown)) = token::parse(token) else { return Ok(Err(unknown())) };
        let Some(row) = self.app.store.token(id).await? else { return Ok(Err(unknown())) };
        if !secret::same(row.secret, shown) {
            return Ok(Err(unknown()));
        }
        let now_ms = self.app.clock.now_ms();
        if row.revoked_ms.is_some() {
            return Ok(Err(unauthorized(format!("token `{}` was revoked", row.name))));
        }
        if row.expires_ms.is_some_and(|expires_ms| expires_ms <= now_ms) {
            return Ok(Err(unauthorized(format!("token `{}` has expired", row.name)).hint("an admin makes new ones")));
        }
        if row.used_ms.is_none_or(|used_ms| used_ms.saturating_add(limits::USE_NOTED_MS) <= now_ms) {
            self.app.store.token_used(id, now_ms).await?;
        }
        Ok(Ok(Caller { name: row.name, role: row.role }))
    }

    /// Checks a signed request; answers it with its body, and the chain whose key signed it.
    async fn signed(&self, request: Request) -> Result<(Request, Vec<CertificateDer<'static>>), ApiError> {
        let (parts, body) = request.into_parts();
        let headers = &parts.headers;
        let header = |name: &'static str| headers.get(name).and_then(|value| value.to_str().ok());
        let refused = |error: RequestError| match error {
            RequestError::TooMany => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
            _ => unauthorized(error.to_string()).hint("set the clock, and sign each request anew"),
        };
        let signed = SignedHeaders::parse(header).map_err(refused)?;
        let chain = header(CERTIFICATE).and_then(chain_of).ok_or(refused(RequestError::Header(CERTIFICATE)))?;
        let facts = chain.first().and_then(Facts::of).ok_or(refused(RequestError::Header(CERTIFICATE)))?;
        let body = self.body(body).await?;
        let (path, query) = (parts.uri.path(), parts.uri.query().unwrap_or_default());
        let base = signed.base(parts.method.as_str(), path, query, &body).map_err(refused)?;
        // Which algorithm it is, the key says; there is one for each kind of key.
        let schemes =
            [Scheme::ED25519, Scheme::ECDSA_NISTP256_SHA256, Scheme::ECDSA_NISTP384_SHA384, Scheme::RSA_PSS_SHA512];
        if !schemes.iter().any(|scheme| verify_signature(&facts.spki, *scheme, base.as_bytes(), &signed.signature)) {
            return Err(unauthorized("the request is not signed by the key of its certificate"));
        }
        let now = self.app.clock.now_ms() / 1000;
        if signed.created < self.started {
            return Err(refused(RequestError::NotFresh { created: signed.created, now }));
        }
        // Only those of gateways are remembered, or strangers could fill the memory.
        if self.gateway(&chain).await?.is_ok() {
            let mut replays = self.replays.lock().unwrap_or_else(PoisonError::into_inner);
            // Each has its own: what one gateway signs takes nothing from another.
            replays.check(signed.created, &format!("{base}\n{}", facts.fingerprint), now).map_err(refused)?;
        }
        Ok((Request::from_parts(parts, Body::from(body)), chain))
    }

    /// The whole body, which a signature is over. Anybody may send one, so only so many are held at once, and not for long.
    async fn body(&self, body: Body) -> Result<Bytes, ApiError> {
        let busy = || ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "too many signed requests at once");
        let _place = self.bodies.acquire().await.map_err(|_| busy())?;
        let read = axum::body::to_bytes(body, RECORDS_BYTES_MAX);
        let read = tokio::time::timeout(limits::BODY_TIME_MAX, read).await;
        let read = read.map_err(|_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body came too slowly"))?;
        read.map_err(|_| ApiError::too_large("the body", RECORDS_BYTES_MAX))
    }

    /// Whose certificate it is, and whether it has not expired yet.
    async fn gateway(&self, chain: &[CertificateDer<'_>]) -> Result<Result<(GatewayName, bool), ApiError>, ApiError> {
        let Some(facts) = chain.first().and_then(Facts::of) else {
            return Ok(Err(unauthorized("the certificate is malformed")));
        };
        let now_ms = self.app.clock.now_ms();
        let row = match self.app.store.certificate(facts.fingerprint).await? {
            Some(row) => row,
            None => match self.adopt(chain, &facts, now_ms).await? {
                Ok(row) => row,
                Err(why) => return Ok(Err(why)),
            },
        };
        if row.revoked_ms.is_some() {
            let error = format!("the certificate of gateway `{}` was revoked", row.gateway);
            return Ok(Err(ApiError::new(StatusCode::FORBIDDEN, error).hint("provision it with a new claim token")));
        }
        Ok(Ok((row.gateway, now_ms < facts.not_after_ms)))
    }

    /// Takes a certificate into the registry whose authority vouches for the name in it.
    async fn adopt(
        &self,
        chain: &[CertificateDer<'_>],
        facts: &Facts,
        now_ms: u64,
    ) -> Result<Result<CertificateRow, ApiError>, ApiError> {
        let unknown = |error: &str| ApiError::new(StatusCode::FORBIDDEN, error).hint("provision it with a claim token");
        // An expired one is judged by its last moment: what it is still good for is decided by the caller.
        let at_ms = now_ms.min(facts.not_after_ms.saturating_sub(1000));
        let ours = leads_to(chain, &self.own, at_ms);
        if !ours && !leads_to(chain, &self.others, at_ms) {
            return Ok(Err(unknown("nobody here knows the certificate of this gateway")));
        }
        let Ok(name) = GatewayName::parse(&facts.common_name) else {
            return Ok(Err(unknown("the common name of the certificate is no gateway's name")));
        };
        let there = self.app.store.gateway(&name).await?;
        let (who, did) = if ours { ("control-plane", "adopt") } else { ("keys/authorities", "adopt") };
        let entry = Entry {
            at_ms: now_ms,
            who: who.to_owned(),
            did: did.to_owned(),
            what: format!("gateway/{name}"),
            detail: json!({"certificate": facts.fingerprint}),
        };
        match there {
            Some(row) if row.revoked_ms.is_some() => return Ok(Err(unknown("this gateway was revoked"))),
            // Who got in by a claim is not replaced by whom another authority calls the same.
            Some(_) if !ours && !self.is_others(&name).await? => {
                return Ok(Err(unknown("another gateway has the name in this certificate")));
            }
            Some(_) => {}
            None => match self.app.store.add_gateway(&name, &[], now_ms, &entry).await {
                Ok(()) | Err(StoreError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            },
        }
        let row = CertificateRow {
            fingerprint: facts.fingerprint,
            gateway: name,
            ours,
            not_after_ms: facts.not_after_ms,
            added_ms: now_ms,
            revoked_ms: None,
        };
        match self.app.store.add_certificate(&row, &entry).await {
            // Two requests of a connection may come at the same time.
            Ok(()) | Err(StoreError::Conflict(_)) => Ok(Ok(row)),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether all that is known of a gateway comes from other authorities.
    async fn is_others(&self, name: &GatewayName) -> Result<bool, ApiError> {
        Ok(self.app.store.certificates(name).await?.iter().all(|certificate| !certificate.ours))
    }
}

fn unauthorized(error: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, error)
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ").map(str::trim)
}

fn chain_of(header: &str) -> Option<Vec<CertificateDer<'static>>> {
    let chain = header.split(',').take(CHAIN_MAX + 1).map(|one| STANDARD.decode(one.trim()).map(CertificateDer::from));
    chain.collect::<Result<Vec<_>, _>>().ok().filter(|chain| chain.len() <= CHAIN_MAX)
}

fn anchor(der: &CertificateDer<'_>) -> Result<TrustAnchor<'static>, CaError> {
    let anchor = webpki::anchor_from_trusted_cert(der).map_err(|error| CaError::Certificate(error.to_string()))?;
    Ok(anchor.to_owned())
}

fn other_authorities(folder: &Folder) -> Result<Vec<TrustAnchor<'static>>, CaError> {
    let folder = folder.keys().join("authorities");
    let mut anchors = Vec::new();
    let Ok(files) = std::fs::read_dir(&folder) else { return Ok(anchors) };
    for file in files {
        let path = file.map_err(|error| CaError::File(folder.clone(), error))?.path();
        if path.extension().is_some_and(|extension| extension == "pem") {
            let damaged = |error| CaError::Certificate(format!("{}: {error}", path.display()));
            for certificate in CertificateDer::pem_file_iter(&path).map_err(damaged)? {
                anchors.push(anchor(&certificate.map_err(damaged)?)?);
            }
        }
    }
    Ok(anchors)
}
