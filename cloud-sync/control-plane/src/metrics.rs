//! Figures for Prometheus.

use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// All figures. Each counts from the start of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    /// Desired documents that were signed.
    pub desired_signed: Counter,
    /// Questions for the desired document that were answered with 304.
    pub desired_unchanged: Counter,
    /// Reports that were taken.
    pub reports: Counter,
    /// Bytes of blobs that were sent.
    pub blob_bytes_sent: Counter,
    /// Gateways whose question is held now.
    pub waiting: Gauge,
    /// Gateways that may call.
    pub gateways: Gauge,
    /// Those of them that have reported within the last hour.
    pub gateways_heard: Gauge,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("control_plane");
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let desired_signed = counter("desired_signed", "Desired documents that were signed");
        let desired_unchanged = counter("desired_unchanged", "Questions for the desired document answered with 304");
        let reports = counter("reports", "Reports that were taken");
        let blob_bytes_sent = counter("blob_bytes_sent", "Bytes of blobs that were sent");
        let mut gauge = |name: &str, help: &str| {
            let gauge: Gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let waiting = gauge("waiting", "Gateways whose question is held now");
        let gateways = gauge("gateways", "Gateways that may call");
        let gateways_heard = gauge("gateways_heard", "Gateways that have reported within the last hour");
        Self {
            registry: Mutex::new(registry),
            desired_signed,
            desired_unchanged,
            reports,
            blob_bytes_sent,
            waiting,
            gateways,
            gateways_heard,
        }
    }
}

impl Metrics {
    /// Adds more: `register` gets the registry.
    pub fn extend<T>(&self, register: impl FnOnce(&mut Registry) -> T) -> T {
        register(&mut self.registry.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All of them in the text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a string cannot fail.
        let _ = encode(&mut text, &self.registry.lock().unwrap_or_else(PoisonError::into_inner));
        text
    }
}
