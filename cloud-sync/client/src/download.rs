//! How a blob comes over the line: from where it was cut, never more than was signed for, never slower than is worth it.

use std::path::PathBuf;
use std::time::Duration;

use bytes::BytesMut;
use reqwest::header::{CONTENT_RANGE, HeaderValue, RANGE};
use reqwest::{Response, StatusCode};
use sync_protocol::Blob;

use crate::blobs::{BlobError, BlobStore, Part, Way, blocking};
use crate::error::SessionError;
use crate::limits::WRITE_BYTES;
use crate::session::Session;
use crate::transport::{Call, text};

impl Session {
    /// Brings one blob into `store`, in one attempt; what has come of it before counts, and stays when this one fails. `progress` hears
    /// how many bytes are there.
    ///
    /// # Errors
    /// With why it is not there.
    pub async fn blob(
        &self,
        blob: &Blob,
        store: &BlobStore,
        mut progress: impl FnMut(u64),
    ) -> Result<PathBuf, BlobError> {
        if let Some(path) = store.get(&blob.digest) {
            progress(blob.bytes);
            return Ok(path);
        }
        let mut part = store.begin(*blob, Way::Line).await?;
        if part.have() < blob.bytes || blob.bytes == 0 {
            let response = self.ask(&mut part).await?;
            part = self.receive(part, response, &mut progress).await?;
        }
        blocking(move || part.finish()).await
    }

    /// Asks for what is missing of it.
    async fn ask(&self, part: &mut Part) -> Result<Response, BlobError> {
        let digest = part.blob().digest;
        let mut call = Call::get(format!("/v1/blobs/{}", digest.hex()));
        if part.have() > 0
            && let Ok(range) = HeaderValue::try_from(format!("bytes={}-", part.have()))
        {
            call.headers.insert(RANGE, range);
        }
        let response =
            self.transport().send_any(&call).await.map_err(|source| BlobError::Session { digest, source })?;
        match response.status() {
            StatusCode::OK => part.restart()?,
            // Another piece than was asked for is of no use; neither is what is here, to those who say so.
            StatusCode::PARTIAL_CONTENT if starts_at(&response) == Some(part.have()) => {}
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {
                part.restart()?;
                let source = SessionError::Answer("it is another piece of the blob than was asked for".to_owned());
                return Err(BlobError::Session { digest, source });
            }
            _ => return Err(BlobError::Session { digest, source: self.transport().refusal(response).await }),
        }
        let missing = part.blob().bytes - part.have();
        if response.content_length().is_some_and(|length| length > missing) {
            return Err(BlobError::TooLong { digest, bytes: part.blob().bytes });
        }
        Ok(response)
    }

    /// Takes what comes, until it ends or takes too long.
    async fn receive(
        &self,
        mut part: Part,
        mut response: Response,
        progress: &mut impl FnMut(u64),
    ) -> Result<Part, BlobError> {
        let Blob { digest, bytes } = *part.blob();
        let mut pace = Pace::new(self.transport().limits.pace, self.transport().limits.pace_bytes);
        let mut waiting = BytesMut::new();
        loop {
            let came = tokio::select! {
                chunk = response.chunk() => chunk.map_err(|error| BlobError::Session { digest, source: self.transport().told(&error) }),
                came = pace.is_too_slow() => Err(BlobError::TooSlow { digest, bytes: came, secs: pace.window.as_secs() }),
            };
            let ended = !matches!(&came, Ok(Some(_)));
            if let Ok(Some(chunk)) = &came {
                pace.came += chunk.len() as u64;
                waiting.extend_from_slice(chunk);
            }
            // What has come stays, also when no more does.
            if waiting.len() >= WRITE_BYTES || ended || part.have() + waiting.len() as u64 >= bytes {
                let written = waiting.split();
                part = blocking(move || part.write(&written).map(|()| part)).await?;
                progress(part.have());
            }
            if came?.is_none() {
                return Ok(part);
            }
        }
    }
}

/// Where the piece begins that a 206 brings.
fn starts_at(response: &Response) -> Option<u64> {
    let range = text(response.headers(), &CONTENT_RANGE)?.strip_prefix("bytes ")?;
    range.split_once('-')?.0.parse().ok()
}

/// A look every now and then at what came since the last one. Drops of a byte a minute keep no connection alive.
struct Pace {
    window: Duration,
    least: u64,
    came: u64,
    next: tokio::time::Interval,
}

impl Pace {
    fn new(window: Duration, least: u64) -> Self {
        let mut next = tokio::time::interval(window);
        next.reset();
        Self { window, least, came: 0, next }
    }

    /// Returns how much came once that was too little.
    async fn is_too_slow(&mut self) -> u64 {
        loop {
            self.next.tick().await;
            let came = std::mem::take(&mut self.came);
            if came < self.least {
                return came;
            }
        }
    }
}
