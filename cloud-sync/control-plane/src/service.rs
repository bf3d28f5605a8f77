//! A control plane that serves: connections, the gate, the API, and what is done from time to time.

use std::sync::Arc;

use axum::middleware::from_fn;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::ControlPlane;
use crate::api;
use crate::ca::CaError;
use crate::gate::Gate;
use crate::limits;
use crate::records::Retention;
use crate::serve::{self, Bounds};
use crate::tls::ServerCertificate;

/// How it serves.
#[derive(Clone, Copy, Debug)]
pub struct ServeOptions {
    /// What strangers can take up.
    pub bounds: Bounds,
    /// How long records stay.
    pub retention: Retention,
}

impl Default for ServeOptions {
    fn default() -> Self {
        let retention = Retention { age_ms_max: limits::RECORDS_KEPT_MS, bytes_max: limits::RECORDS_KEPT_BYTES };
        Self { bounds: Bounds::default(), retention }
    }
}

/// Why it does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The certificate or an authority.
    #[error(transparent)]
    Certificate(#[from] CaError),
}

/// Serves `plane` on `listener` until `shutdown`; returns when requests that were under way have been answered.
///
/// # Errors
/// When a certificate is missing or damaged; nothing was served then.
pub async fn serve(
    plane: Arc<ControlPlane>,
    listener: TcpListener,
    options: ServeOptions,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let certificate = ServerCertificate::open(plane.authority.clone(), plane.folder.clone(), plane.clock.now_ms())?;
    let tls = certificate.config()?;
    let gate = Arc::new(Gate::open(plane.clone())?);
    let router = api::router(plane.clone()).layer(from_fn(move |request, next| gate.clone().pass(request, next)));
    let watching = tokio::spawn(watch_certificate(certificate.clone(), shutdown.clone()));
    let keeping = tokio::spawn(keep_house(plane.clone(), certificate, options.retention, shutdown.clone()));
    let closing = tokio::spawn({
        let (plane, shutdown) = (plane.clone(), shutdown.clone());
        async move {
            shutdown.cancelled().await;
            // Those who wait for news are answered, so that nothing holds up the end.
            plane.closing.cancel();
        }
    });
    serve::serve(listener, tls, router, options.bounds, shutdown).await;
    let _ = closing.await;
    // It ends with `shutdown`, or has ended by a panic, which was logged.
    let _ = (keeping.await, watching.await);
    Ok(())
}

/// Somebody may add a name to it, by a process of its own.
async fn watch_certificate(certificate: Arc<ServerCertificate>, shutdown: CancellationToken) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(limits::CERTIFICATE_LOOK) => {}
        }
        match certificate.reread() {
            Ok(true) => {
                tracing::info!("the certificate of the control plane was signed anew, and is shown from now on")
            }
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "the certificate of the control plane cannot be read"),
        }
    }
}

async fn keep_house(
    plane: Arc<ControlPlane>,
    certificate: Arc<ServerCertificate>,
    retention: Retention,
    shutdown: CancellationToken,
) {
    loop {
        let now_ms = plane.clock.now_ms();
        match certificate.renew_if_due(now_ms) {
            Ok(true) => tracing::info!("the certificate of the control plane was renewed"),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "the certificate of the control plane cannot be renewed"),
        }
        match plane.records.expire(retention, now_ms).await {
            Ok(0) => {}
            Ok(records) => tracing::info!(records, "records past the retention went"),
            Err(error) => tracing::error!(%error, "records past the retention cannot be let go of"),
        }
        match plane.collect_blobs().await {
            Ok(0) => {}
            Ok(blobs) => tracing::info!(blobs, "blobs that nothing refers to went"),
            Err(error) => tracing::error!(%error, "blobs that nothing refers to cannot be let go of"),
        }
        if let Err(error) = plane.store.expire(now_ms).await {
            tracing::error!(%error, "what is past its time cannot be let go of");
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(limits::HOUSEKEEPING) => {}
        }
    }
}
