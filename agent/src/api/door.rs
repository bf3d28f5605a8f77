//! Where requests come in: who may call, and who answers.

use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use hyper::service::Service as _;
use hyper_util::service::TowerToHyperService;

use super::guard::Guard;
use super::{Shared, console, urls};

/// What is behind one listener.
pub(super) struct Door {
    guard: Option<Arc<Guard>>,
    shared: Arc<Shared>,
    router: TowerToHyperService<Router>,
}

impl Door {
    /// `guard`: who says who may call; `None` when whoever reaches the listener may.
    pub(super) fn new(guard: Option<Arc<Guard>>, shared: Arc<Shared>, router: Router) -> Self {
        Self { guard, shared, router: TowerToHyperService::new(router) }
    }

    pub(super) async fn answer(&self, mut request: Request) -> Response {
        let path = request.uri().path();
        let (is_url, is_console) = (urls::is_at(path), console::is_at(path));
        if let Some(guard) = &self.guard {
            match guard.check(&request) {
                Ok(()) if is_url || is_console => drop(request.extensions_mut().insert(Arc::clone(guard))),
                Ok(()) => {}
                Err(error) if is_console => return console::refused(&request, error),
                Err(error) => return error.into_response(),
            }
        }
        // Past the router, which would cost as much as a function does.
        if is_url {
            return urls::serve(&self.shared, request).await;
        }
        self.router.call(request).await.unwrap_or_else(|never| match never {})
    }
}
