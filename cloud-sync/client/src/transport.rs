//! How calls get to the control plane: TLS, connections that stay open, signatures, bounds, and what refusals mean.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use reqwest::redirect::Policy;
use reqwest::{Method, Response, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::Now;
use crate::answer;
use crate::error::{SessionError, causes};
use crate::limits::{Limits, WORDS_BYTES_MAX};
use crate::signing::{CLOCKS_DIFFER_MS, Signer};
use crate::tls::{self, Authorities};

/// Idle time after which the system looks whether the other side is still there: with the answer 132 bytes.
const TCP_KEEPALIVE: Duration = Duration::from_secs(60);
/// What is told of the control plane's words.
const WORDS_MAX: usize = 400;

/// A call to be made.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    /// Behind the address, with its query.
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Longest until the head of the answer, when it is another one than for most.
    pub(crate) timeout: Option<Duration>,
}

impl Call {
    pub(crate) fn get(path: String) -> Self {
        Self { method: Method::GET, path, headers: HeaderMap::new(), body: Bytes::new(), timeout: None }
    }

    pub(crate) fn post<T: Serialize>(path: String, body: &T) -> Result<Self, SessionError> {
        let body = serde_json::to_vec(body).map_err(|error| SessionError::Own(error.to_string()))?;
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        Ok(Self { method: Method::POST, headers, body: body.into(), ..Self::get(path) })
    }
}

/// `{"error", "hint"}`.
#[derive(Default, Deserialize)]
struct Words {
    error: Option<String>,
    hint: Option<String>,
}

pub(crate) struct Transport {
    http: reqwest::Client,
    pub(crate) url: String,
    pub(crate) limits: Limits,
    pub(crate) now: Now,
    signer: Option<Signer>,
    /// The control plane's time less ours, in milliseconds, once a signature of ours was out of time.
    ahead_ms: AtomicI64,
}

impl Transport {
    /// Makes one; the first call connects. `HTTPS_PROXY` and its kin are honoured.
    pub(crate) fn new(
        url: &str,
        authorities: Authorities,
        own: Option<tls::Shown<'_>>,
        signer: Option<Signer>,
        limits: Limits,
        now: Now,
    ) -> Result<Self, SessionError> {
        let url = url.trim_end_matches('/').to_owned();
        if !url.starts_with("https://") {
            return Err(SessionError::Own(format!("`url` = `{url}` must start with `https://`")));
        }
        let tls =
            tls::client(authorities, own, Arc::clone(&now)).map_err(|error| SessionError::Own(error.to_string()))?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(Policy::none())
            .connect_timeout(limits.connect)
            .tcp_keepalive(TCP_KEEPALIVE)
            .tcp_keepalive_interval(TCP_KEEPALIVE / 4)
            .pool_max_idle_per_host(2)
            .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| SessionError::Own(causes(&error)))?;
        Ok(Self { http, url, limits, now, signer, ahead_ms: AtomicI64::new(0) })
    }

    /// Makes a call whose answer is a success, or 304.
    pub(crate) async fn send(&self, call: Call) -> Result<Response, SessionError> {
        let response = self.send_any(&call).await?;
        let status = response.status();
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(response);
        }
        Err(self.refusal(response).await)
    }

    /// Makes a call, whatever its answer is. One that was signed out of time is signed again, by the control plane's clock.
    pub(crate) async fn send_any(&self, call: &Call) -> Result<Response, SessionError> {
        let response = self.attempt(call).await?;
        if response.status() == StatusCode::UNAUTHORIZED && self.signer.is_some() && self.take_time(response.headers())
        {
            return self.attempt(call).await;
        }
        Ok(response)
    }

    async fn attempt(&self, call: &Call) -> Result<Response, SessionError> {
        let mut headers = call.headers.clone();
        if let Some(signer) = &self.signer {
            signer.sign(call, self.signing_time_ms(), &mut headers).map_err(SessionError::Own)?;
        }
        let url = format!("{}{}", self.url, call.path);
        let request = self.http.request(call.method.clone(), url).headers(headers).body(call.body.clone());
        let timeout = call.timeout.unwrap_or(self.limits.answer);
        match tokio::time::timeout(timeout, request.send()).await {
            Ok(answered) => answered.map_err(|error| self.told(&error)),
            Err(_) => Err(self.silent(timeout)),
        }
    }

    /// What a refusal says.
    pub(crate) async fn refusal(&self, response: Response) -> SessionError {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = self.read(response, WORDS_BYTES_MAX).await.unwrap_or_default();
        let words: Words = serde_json::from_slice(&body).unwrap_or_default();
        let said = match (words.error, words.hint) {
            (Some(error), Some(hint)) => format!("{error} ({hint})"),
            (Some(error), None) => error,
            (None, _) => String::from_utf8_lossy(&body).trim().to_owned(),
        };
        let said =
            if said.is_empty() { "it does not say why".to_owned() } else { said.chars().take(WORDS_MAX).collect() };
        match status {
            401 | 403 => SessionError::NotLetIn { status, said },
            429 | 503 => SessionError::Busy { status, after: self.retry_after(&headers), said },
            _ => SessionError::Status { status, said },
        }
    }

    /// The body as JSON, when it is no longer than `max` bytes.
    pub(crate) async fn read_json<T: DeserializeOwned>(
        &self,
        response: Response,
        max: usize,
    ) -> Result<T, SessionError> {
        let body = self.read(response, max).await?;
        serde_json::from_slice(&body).map_err(|error| SessionError::Answer(error.to_string()))
    }

    /// The body, when it is no longer than `max` bytes and comes in time.
    pub(crate) async fn read(&self, mut response: Response, max: usize) -> Result<Vec<u8>, SessionError> {
        let read = async {
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(|error| self.told(&error))? {
                if body.len() + chunk.len() > max {
                    return Err(SessionError::Answer(format!("it is longer than {max} bytes")));
                }
                body.extend_from_slice(&chunk);
            }
            Ok(body)
        };
        let timeout = self.limits.answer;
        tokio::time::timeout(timeout, read).await.unwrap_or_else(|_| Err(self.silent(timeout)))
    }

    /// What a failure of the connection means.
    pub(crate) fn told(&self, error: &reqwest::Error) -> SessionError {
        SessionError::of(&self.url, error)
    }

    fn silent(&self, timeout: Duration) -> SessionError {
        SessionError::TimedOut { url: self.url.clone(), why: format!("nothing within {} s", timeout.as_secs()) }
    }

    fn retry_after(&self, headers: &HeaderMap) -> Option<Duration> {
        answer::wait(text(headers, &RETRY_AFTER)?, (self.now)().unwrap_or(0))
    }

    fn signing_time_ms(&self) -> u64 {
        (self.now)().unwrap_or(0).saturating_add_signed(self.ahead_ms.load(Ordering::Relaxed))
    }

    /// Takes over the time of an answer, and says whether that makes a difference.
    fn take_time(&self, headers: &HeaderMap) -> bool {
        // From 1970 on, a date is a time to wait.
        let Some(theirs) = text(headers, &DATE).and_then(|date| answer::wait(date, 0)) else { return false };
        let ours = i64::try_from((self.now)().unwrap_or(0)).unwrap_or(i64::MAX);
        let ahead = i64::try_from(theirs.as_millis()).unwrap_or(i64::MAX).saturating_sub(ours);
        self.ahead_ms.swap(ahead, Ordering::Relaxed).abs_diff(ahead) > CLOCKS_DIFFER_MS
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transport({})", self.url)
    }
}

/// A header as text.
pub(crate) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}
