//! The control plane as people's commands reach it: HTTPS with its authority pinned, JSON, and blobs that go on where they were.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
pub(super) use reqwest::Method;
use reqwest::{RequestBuilder, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sync_protocol::Blob;

use super::Failure;
use super::output::{Progress, size};
use crate::config::{Access, Environment};
use crate::hint::Told;
use crate::tls;

/// Which control plane is meant, and who asks.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct CloudArgs {
    /// Address of the control plane; what cloud.toml says unless said
    #[arg(long, value_name = "URL", global = true)]
    cloud: Option<String>,
    /// The authority that signed its certificate
    #[arg(long, value_name = "FILE", global = true)]
    ca: Option<PathBuf>,
    /// File with your token
    #[arg(long, value_name = "FILE", global = true)]
    token_file: Option<PathBuf>,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
/// How much of a blob is sent at once: what a bad link takes before it breaks.
const PART_BYTES: usize = 1 << 20;
/// How often in a row an upload goes on after a broken connection that brought nothing, and how long it waits before.
const UPLOAD_ATTEMPTS: u32 = 8;
const UPLOAD_WAIT: Duration = Duration::from_millis(500);
/// How much of a blob has arrived, in the answer to HEAD.
const HAVE: &str = "tidegate-have";

/// A control plane.
#[derive(Debug)]
pub(super) struct Remote {
    http: reqwest::Client,
    url: String,
    token: String,
}

impl Remote {
    /// By what the command line says, else cloud.toml. Nothing is asked yet.
    pub(super) fn new(args: &CloudArgs) -> anyhow::Result<Self> {
        let access = Access::load(&Environment::of_process())?;
        let missing = |what: &str, option: &str| {
            let hint = "`tidegate cloud init --configure` writes cloud.toml, where it is looked for";
            Failure::wrong(format!("no {what} is named"), format!("say `--{option}`; {hint}"))
        };
        let url = args.cloud.clone().or(access.url).ok_or_else(|| missing("control plane", "cloud"))?;
        let url = address(&url)?.to_owned();
        let token_file = args.token_file.clone().or(access.token_file);
        let token_file = token_file.ok_or_else(|| missing("token for the control plane", "token-file"))?;
        let wrong = |what: String| Failure::wrong(what, "check the path and who may read it");
        let token = tls::password("token_file", &token_file).map_err(|error| wrong(error.to_string()))?;
        let ca = args.ca.clone().or(access.ca);
        let tls = tls::client_config(ca.as_deref(), None, None).map_err(|error| wrong(error.to_string()))?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .build()
            .context("cannot make a client for HTTPS")?;
        Ok(Self { http, url, token })
    }

    /// What is at `path`, which starts behind `/v1/`.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let answer = self.asked(self.request(Method::GET, path)).await?;
        read(answer).await
    }

    /// The same, or nothing when nothing is there.
    pub(super) async fn find<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<Option<T>> {
        let answer = self.send(self.request(Method::GET, path)).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        read(accepted(answer).await?).await.map(Some)
    }

    /// All elements of a list, however many answers they come in.
    pub(super) async fn list<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<Vec<T>> {
        #[derive(serde::Deserialize)]
        struct Page<T> {
            items: Vec<T>,
            next: Option<String>,
        }
        let (mut all, mut after) = (Vec::new(), None::<String>);
        loop {
            let separator = if path.contains('?') { '&' } else { '?' };
            let page: Page<T> = match &after {
                Some(after) => self.get(&format!("{path}{separator}after={}", escaped(after))).await?,
                None => self.get(path).await?,
            };
            all.extend(page.items);
            match page.next {
                Some(next) if after.as_ref() != Some(&next) => after = Some(next),
                _ => return Ok(all),
            }
        }
    }

    /// Sends `body` as JSON, and gives what is answered; null when that is nothing.
    pub(super) async fn call(&self, method: Method, path: &str, body: &impl Serialize) -> anyhow::Result<Value> {
        let request = self.request(method, path).header("content-type", "application/json");
        let answer = self.asked(request.body(serde_json::to_vec(body)?)).await?;
        let bytes = answer.bytes().await.map_err(|error| self.unreachable(&error))?;
        if bytes.is_empty() { Ok(Value::Null) } else { serde_json::from_slice(&bytes).map_err(unreadable) }
    }

    /// Takes something away.
    pub(super) async fn delete(&self, path: &str) -> anyhow::Result<()> {
        self.asked(self.request(Method::DELETE, path)).await.map(drop)
    }

    /// What is at `path` as it comes, piece by piece.
    pub(super) async fn stream(
        &self,
        path: &str,
        mut on_bytes: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> anyhow::Result<()> {
        let mut answer = self.asked(self.request(Method::GET, path)).await?;
        while let Some(bytes) = answer.chunk().await.map_err(|error| self.unreachable(&error))? {
            on_bytes(&bytes)?;
        }
        Ok(())
    }

    /// Sends the bytes of `file` that are not there yet. An upload that was broken off goes on where it was.
    pub(super) async fn upload(&self, blob: &Blob, file: &Path, name: &str) -> anyhow::Result<()> {
        let mut progress = Progress::new(&format!("uploading {name}"), blob.bytes);
        let (mut failures, mut most, mut have) = (0, 0, 0);
        loop {
            match self.upload_rest(blob, file, &mut have, &mut progress).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    failures = if have > most { 1 } else { failures + 1 };
                    most = have.max(most);
                    let broken = error.downcast_ref::<Failure>().is_some_and(Failure::is_unreachable);
                    if !broken || failures >= UPLOAD_ATTEMPTS {
                        let shown = format!(
                            "cannot upload {name}: {} of {} are there, and the same command goes on",
                            size(have),
                            size(blob.bytes)
                        );
                        return Err(error.context(shown));
                    }
                    tokio::time::sleep(UPLOAD_WAIT * failures).await;
                }
            }
        }
    }

    async fn upload_rest(
        &self,
        blob: &Blob,
        file: &Path,
        have: &mut u64,
        progress: &mut Progress,
    ) -> anyhow::Result<()> {
        let path = format!("blobs/{}", blob.digest.hex());
        let there = self.send(self.request(Method::HEAD, &path)).await?;
        *have = match there.status() {
            StatusCode::OK if !there.headers().contains_key(HAVE) => return Ok(()),
            StatusCode::OK | StatusCode::NOT_FOUND => have_of(&there),
            _ => have_of(&accepted(there).await?),
        };
        let unreadable = || format!("cannot read `{}`", file.display());
        let mut content = File::open(file).with_context(unreadable)?;
        loop {
            progress.at(*have);
            let mut part = Vec::new();
            content.seek(SeekFrom::Start(*have)).with_context(unreadable)?;
            (&content).take(PART_BYTES as u64).read_to_end(&mut part).with_context(unreadable)?;
            let sent = *have + part.len() as u64;
            let range = format!("bytes {have}-{}/{}", sent.saturating_sub(1), blob.bytes);
            let answer = self.asked(self.request(Method::PUT, &path).header("content-range", range).body(part)).await?;
            if answer.status() == StatusCode::CREATED || answer.status() == StatusCode::OK {
                progress.end();
                return Ok(());
            }
            let told: Value = read(answer).await?;
            *have = told["have"].as_u64().unwrap_or(sent);
        }
    }

    /// Fetches a blob into `file`, and checks it.
    pub(super) async fn download(&self, blob: &Blob, file: &Path, name: &str) -> anyhow::Result<()> {
        let mut progress = Progress::new(&format!("fetching {name}"), blob.bytes);
        let mut content = File::create(file).with_context(|| format!("cannot write `{}`", file.display()))?;
        let (mut have, mut hasher) = (0, <sha2::Sha256 as sha2::Digest>::new());
        self.stream(&format!("blobs/{}", blob.digest.hex()), |bytes| {
            have += bytes.len() as u64;
            sha2::Digest::update(&mut hasher, bytes);
            progress.at(have);
            content.write_all(bytes)
        })
        .await?;
        progress.end();
        if sync_protocol::Digest::finish(hasher) == blob.digest {
            return Ok(());
        }
        let hint = "publish that version again from its files, under another version";
        Err(Failure::failed(format!("what the control plane has of {name} is not what was signed"), hint).into())
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}/v1/{path}", self.url)).bearer_auth(&self.token)
    }

    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        Ok(request.send().await.map_err(|error| self.unreachable(&error))?)
    }

    async fn asked(&self, request: RequestBuilder) -> anyhow::Result<Response> {
        accepted(self.send(request).await?).await
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let causes = std::iter::successors(std::error::Error::source(error), |error| error.source());
        let why = causes.last().map_or_else(|| error.to_string(), ToString::to_string);
        let hint = "start it with `tidegate cloud run`, or correct `--cloud` and `--ca`";
        Failure::unreachable(format!("no control plane answers at {}: {why}", self.url), hint)
    }
}

/// The address of a control plane, without a slash at its end. There is none without TLS.
fn address(url: &str) -> Result<&str, Failure> {
    match url.strip_prefix("https://") {
        Some(host) if !host.trim_end_matches('/').is_empty() => Ok(url.trim_end_matches('/')),
        _ => {
            let hint = "begin it with `https://`, such as `https://localhost:8443`";
            Err(Failure::wrong(format!("`{url}` is no address of a control plane"), hint))
        }
    }
}

fn have_of(answer: &Response) -> u64 {
    answer.headers().get(HAVE).and_then(|have| have.to_str().ok()?.parse().ok()).unwrap_or(0)
}

/// The answer, unless it is an error: then what the control plane says of it.
async fn accepted(answer: Response) -> anyhow::Result<Response> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    #[derive(Default, serde::Deserialize)]
    struct Refusal {
        error: String,
        #[serde(default)]
        hint: Option<String>,
    }
    let body = answer.bytes().await.unwrap_or_default();
    let told = serde_json::from_slice(&body)
        .unwrap_or_else(|_| Refusal { error: format!("the control plane answered {status}"), hint: None });
    let missing = "`tidegate fleet` lists the gateways, and its verbs all else that is there";
    let hint = told.hint.unwrap_or_else(|| if status == StatusCode::NOT_FOUND { missing } else { "" }.to_owned());
    let failure =
        if status.is_client_error() { Failure::wrong(told.error, hint) } else { Failure::failed(told.error, hint) };
    Err(failure.into())
}

async fn read<T: DeserializeOwned>(answer: Response) -> anyhow::Result<T> {
    let bytes = answer.bytes().await.map_err(|error| {
        let why = Told::of(&error.into()).text();
        Failure::unreachable(format!("the control plane did not answer to the end: {why}"), "try again")
    })?;
    serde_json::from_slice(&bytes).map_err(unreadable)
}

fn unreadable(error: serde_json::Error) -> anyhow::Error {
    let hint = "control plane and command line may be of different versions";
    Failure::failed(format!("the control plane's answer cannot be read: {error}"), hint).into()
}

/// Text as part of a query.
pub(super) fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_control_plane_is_reached_by_https_only() {
        assert_eq!(super::address("https://localhost:8443/").unwrap(), "https://localhost:8443");
        for wrong in ["localhost:8443", "http://localhost:8443", "https://", ""] {
            assert!(super::address(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_query_holds_any_text() {
        assert_eq!(super::escaped("a b/ü&c"), "a%20b%2F%C3%BC%26c");
    }
}
