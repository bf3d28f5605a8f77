//! What is deployed here, and deployment files.

use std::io::{self, Read};
use std::sync::Arc;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt as _;
use tokio::sync::mpsc;

use super::Shared;
use super::error::ApiError;
use super::routes::Agent;
use crate::deployment::ApplyError;

/// Pieces of a file that may wait for the disk.
const PIECES_MAX: usize = 4;

/// `GET /v1/deployment`.
pub(super) async fn show(State(shared): Agent) -> Result<Response, ApiError> {
    let nobody = || {
        ApiError::new(StatusCode::NOT_FOUND, "nobody may deploy to this gateway")
            .hint("add `[cloud]` to gateway.toml, and restart the agent")
    };
    shared.agent.deployment().map(|status| Json(status).into_response()).ok_or_else(nobody)
}

/// `POST /v1/apply`: the body is a deployment file, taken piece by piece.
pub(super) async fn apply(State(shared): Agent, body: Body) -> Result<Response, ApiError> {
    let (sender, pieces) = mpsc::channel(PIECES_MAX);
    let feeding = tokio::spawn(feed(Arc::clone(&shared), body, sender));
    let applied = shared.agent.apply(Box::new(Pieces { pieces, at: Bytes::new() })).await;
    // Who is still sending hears the answer only then.
    let _ = tokio::time::timeout(shared.limits.api_request_max.0, feeding).await;
    match applied {
        Ok(applied) => Ok((StatusCode::ACCEPTED, Json(applied)).into_response()),
        Err(error) => Err(failed(&error)),
    }
}

fn failed(error: &ApplyError) -> ApiError {
    match error {
        ApplyError::Malformed(_) => ApiError::new(StatusCode::BAD_REQUEST, error.to_string())
            .hint("name a file that `tidegate deploy --out` wrote"),
        ApplyError::Refused { hint, .. } => {
            let refused = ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()).log("what runs goes on");
            match hint {
                Some(hint) => refused.hint(hint),
                None => refused,
            }
        }
        ApplyError::Unable(_) => ApiError::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
    }
}

/// Hands the body on, each piece within the time that a request may take; what nobody wants any more is thrown away.
async fn feed(shared: Arc<Shared>, mut body: Body, pieces: mpsc::Sender<io::Result<Bytes>>) {
    let patience = shared.limits.api_request_max;
    loop {
        let piece = match tokio::time::timeout(patience.0, body.frame()).await {
            Ok(Some(Ok(frame))) => frame.into_data().map(Ok),
            Ok(Some(Err(error))) => Ok(Err(io::Error::other(error))),
            Ok(None) => return,
            Err(_) => Ok(Err(io::Error::new(io::ErrorKind::TimedOut, format!("nothing came within {patience}")))),
        };
        let Ok(piece) = piece else { continue };
        let ends = piece.is_err();
        let _ = pieces.send(piece).await;
        if ends {
            return;
        }
    }
}

/// The body, for a thread that reads.
struct Pieces {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    at: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.at = piece?,
                None => return Ok(0),
            }
        }
        let piece = self.at.split_to(self.at.len().min(buffer.len()));
        buffer[..piece.len()].copy_from_slice(&piece);
        Ok(piece.len())
    }
}
