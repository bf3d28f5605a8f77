//! The connection to one server.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::redirect::Policy;
use sync_client::answer::{Verdict, judge};

use crate::clock::Clock;
use crate::config::HttpUplink;
use crate::hint::Told;
use crate::tls;

/// Until there is a connection, and until there is an answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// What is read of an answer.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Effort of the compression: what a small board does at ten times the speed of its link.
const ZSTD_LEVEL: i32 = 3;

/// A batch as it is sent.
pub(super) struct Parcel {
    /// The same for the same records.
    pub(super) key: String,
    /// Lines of JSON, compressed.
    pub(super) body: Vec<u8>,
}

impl Parcel {
    /// Compresses `lines`.
    pub(super) fn new(key: String, lines: &[u8]) -> std::io::Result<Self> {
        Ok(Self { key, body: zstd::bulk::compress(lines, ZSTD_LEVEL)? })
    }
}

pub(super) struct Client {
    http: reqwest::Client,
    url: String,
    headers: HeaderMap,
    clock: Clock,
}

impl Client {
    /// Reads the files of `config`. `HTTPS_PROXY` and its kin are honoured.
    pub(super) fn new(config: &HttpUplink, url: &Arc<str>, clock: Clock) -> Result<Self, String> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("zstd"));
        if let Some(file) = &config.token_file {
            let token = tls::password("token_file", file).map_err(|error| error.to_string())?;
            let mut bearer = HeaderValue::try_from(format!("Bearer {token}"))
                .map_err(|_| format!("the token in {} has characters that no header may have", file.display()))?;
            bearer.set_sensitive(true);
            headers.insert(AUTHORIZATION, bearer);
        }
        let tls = tls::client_config(config.ca.as_deref(), config.cert.as_deref(), config.key.as_deref());
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls.map_err(|error| error.to_string())?)
            .redirect(Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .pool_max_idle_per_host(1)
            .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(told)?;
        Ok(Self { http, url: url.as_ref().to_owned(), headers, clock })
    }

    /// Sends a batch, and says what came of it.
    pub(super) async fn send(&self, parcel: &Parcel) -> Verdict {
        match self.ask(parcel).await {
            Ok(verdict) => verdict,
            Err(error) => Verdict::Later { after: None, why: told(error) },
        }
    }

    async fn ask(&self, parcel: &Parcel) -> Result<Verdict, reqwest::Error> {
        let request = self.http.post(&self.url).headers(self.headers.clone());
        let request = request.header("idempotency-key", &parcel.key).body(parcel.body.clone());
        let mut response = request.send().await?;
        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let mut body = Vec::new();
        while body.len() < ANSWER_BYTES_MAX
            && let Some(chunk) = response.chunk().await?
        {
            body.extend_from_slice(&chunk[..chunk.len().min(ANSWER_BYTES_MAX - body.len())]);
        }
        Ok(judge(status, retry_after.as_deref(), &body, self.clock.now_ms()))
    }
}

fn told(error: reqwest::Error) -> String {
    Told::of(&error.into()).text()
}
