//! Sends spans to a collector: OTLP over HTTP, in batches, from a task of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{TelemetryError, Tracer};
use crate::clock::Clock;
use crate::config::TraceConfig;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::name::GatewayName;

/// A batch leaves with this many spans…
const BATCH_SPANS_MAX: usize = 512;
/// … or when its first has waited this long.
const BATCH_WAIT: Duration = Duration::from_secs(1);
/// A collector that does not answer for this long gets the next batch, not this one again.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// The task that exports.
#[derive(Debug)]
pub struct Exporter {
    task: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
}

impl Exporter {
    /// Starts exporting when `trace.otlp` is set. Without it the tracer costs nothing, and there is no exporter.
    ///
    /// # Errors
    /// When the address cannot be used.
    pub fn start(
        config: &TraceConfig,
        gateway: &GatewayName,
        limits: &Limits,
        metrics: &Metrics,
        clock: Clock,
    ) -> Result<(Tracer, Option<Self>), TelemetryError> {
        let Some(url) = &config.otlp else { return Ok((Tracer::off(), None)) };
        let unusable = |why: &str| TelemetryError::Otlp { url: url.clone(), why: why.to_owned() };
        let address = url.parse::<hyper::Uri>().map_err(|error| unusable(&error.to_string()))?;
        if address.scheme_str() != Some("http") || address.host().is_none() {
            return Err(unusable(
                "it must begin with `http://`; a collector on this machine or in this network does TLS from there",
            ));
        }
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_endpoint(url)
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(EXPORT_TIMEOUT)
            .build()
            .map_err(|error| unusable(&error.to_string()))?;
        let about = [
            KeyValue::new("service.name", "tidegate"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", gateway.to_string()),
        ];
        exporter.set_resource(&Resource::builder_empty().with_attributes(about).build());

        let dropped = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&dropped);
        metrics.register(move |scrape| {
            let labels: [(&str, &str); 1] = [("reason", "collector")];
            let lost = counted.load(Ordering::Relaxed);
            scrape.counters(
                "tidegate_traces_dropped",
                "Invocations whose spans the collector did not take",
                [(labels, lost)],
            )
        });
        let (sender, receiver) = mpsc::channel(limits.trace_invocations_max);
        let tracer = Tracer::to(sender, config.sample.unwrap_or(1.0), Arc::clone(&dropped), clock);
        let stop = CancellationToken::new();
        let task = tokio::spawn(export(exporter, receiver, dropped, stop.clone()));
        Ok((tracer, Some(Self { task, stop })))
    }

    /// Sends what is left, for a little while at most.
    pub async fn stop(self) {
        self.stop.cancel();
        let _ = tokio::time::timeout(EXPORT_TIMEOUT, self.task).await;
    }
}

async fn export(
    exporter: SpanExporter,
    mut receiver: mpsc::Receiver<Vec<SpanData>>,
    dropped: Arc<AtomicU64>,
    stop: CancellationToken,
) {
    let mut reachable = true;
    while let Some(batch) = next_batch(&mut receiver, &stop).await {
        let invocations = batch.len() as u64;
        let result = exporter.export(batch.into_iter().flatten().collect()).await;
        // Told once per change: a collector that is away for a week is one line, not a million.
        match result {
            Ok(()) if !reachable => info!("the trace collector is back"),
            Err(error) => {
                dropped.fetch_add(invocations, Ordering::Relaxed);
                if reachable {
                    warn!(%error, "spans cannot be exported: they are dropped until the trace collector is back");
                }
                reachable = false;
                // Whoever stops the agent does not wait for a collector that is away.
                if stop.is_cancelled() {
                    return;
                }
                continue;
            }
            Ok(()) => {}
        }
        reachable = true;
    }
}

/// The spans of some invocations; `None` when there will be no more.
async fn next_batch(
    receiver: &mut mpsc::Receiver<Vec<SpanData>>,
    stop: &CancellationToken,
) -> Option<Vec<Vec<SpanData>>> {
    let first = tokio::select! {
        first = receiver.recv() => first,
        () = stop.cancelled() => receiver.try_recv().ok(),
    }?;
    let mut spans = first.len();
    let mut batch = vec![first];
    let full = async {
        while spans < BATCH_SPANS_MAX {
            let Some(next) = receiver.recv().await else { return };
            spans += next.len();
            batch.push(next);
        }
    };
    tokio::select! {
        () = full => {}
        () = tokio::time::sleep(BATCH_WAIT) => {}
        () = stop.cancelled() => {}
    }
    Some(batch)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use axum::body::Bytes;
    use axum::routing::post;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
    use prost::Message;

    use super::*;
    use crate::event::Event;
    use crate::invocation::{Outcome, Timings};
    use crate::name::FunctionName;
    use crate::telemetry::{Invocation, TraceParent};

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    /// A collector on a free port, and what it received.
    async fn collector() -> (String, mpsc::UnboundedReceiver<ExportTraceServiceRequest>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        let router = axum::Router::new().route(
            "/v1/traces",
            post(move |body: Bytes| async move {
                sender.send(ExportTraceServiceRequest::decode(body).unwrap()).unwrap();
            }),
        );
        tokio::spawn(async move { axum::serve(listener, router).await });
        (url, receiver)
    }

    fn start(url: &str, metrics: &Metrics) -> Result<(Tracer, Option<Exporter>), TelemetryError> {
        let config = TraceConfig { otlp: Some(url.to_owned()), sample: None };
        let gateway = GatewayName::parse("press-hall-3").unwrap();
        Exporter::start(&config, &gateway, &Limits::default(), metrics, Clock::held_at(1_700_000_000_000))
    }

    fn run(tracer: &Tracer, trace_parent: &str) {
        let ms = Duration::from_millis;
        let timings = Timings { cold_start: Some(ms(20)), handler: ms(30), inference: ms(5) };
        tracer.record(&Invocation {
            event: &Event { id: "e1".into(), trace_parent: Some(PARENT.into()), ..Event::default() },
            function: &FunctionName::parse("motion").unwrap(),
            version: "1.2.0",
            invocation: "i1",
            attempt: 2,
            trace_parent: Some(trace_parent),
            queued: ms(10),
            timings: &timings,
            commit: Some(ms(40)),
            outcome: &Outcome::TimedOut { after_ms: 30 },
        });
    }

    #[tokio::test]
    async fn an_invocation_is_one_span_with_its_parts_below_it() {
        let (url, mut received) = collector().await;
        let (tracer, exporter) = start(&url, &Metrics::new()).unwrap();
        let own = tracer.child_of(Some(PARENT)).unwrap();
        run(&tracer, &own);
        exporter.unwrap().stop().await;

        let request = received.recv().await.unwrap();
        let resource = request.resource_spans[0].resource.as_ref().unwrap();
        let service = resource.attributes.iter().find(|a| a.key == "service.instance.id").unwrap();
        assert!(format!("{service:?}").contains("press-hall-3"));
        let spans: BTreeMap<_, _> =
            request.resource_spans[0].scope_spans[0].spans.iter().map(|span| (span.name.as_str(), span)).collect();
        assert_eq!(
            spans.keys().copied().collect::<Vec<_>>(),
            ["cold start", "commit", "handler", "inference", "motion", "queue"]
        );

        let id = |hex: u64| hex.to_be_bytes().to_vec();
        let (parent, own) = (TraceParent::parse(PARENT).unwrap(), TraceParent::parse(&own).unwrap());
        assert!(spans.values().all(|span| span.trace_id == parent.trace_id.to_be_bytes()));
        assert_eq!(spans["motion"].span_id, id(own.span_id));
        assert_eq!(spans["motion"].parent_span_id, id(parent.span_id));
        for part in ["queue", "cold start", "handler", "commit"] {
            assert_eq!(spans[part].parent_span_id, id(own.span_id), "{part}");
        }
        assert_eq!(spans["inference"].parent_span_id, spans["handler"].span_id);

        let since_ms = |ns: u64| (ns - spans["motion"].start_time_unix_nano) / 1_000_000;
        let times = |name: &str| (since_ms(spans[name].start_time_unix_nano), since_ms(spans[name].end_time_unix_nano));
        assert_eq!(spans["motion"].end_time_unix_nano, 1_700_000_000_000 * 1_000_000);
        assert_eq!(times("motion"), (0, 100));
        assert_eq!(times("queue"), (0, 10));
        assert_eq!(times("cold start"), (10, 30));
        assert_eq!(times("handler"), (30, 60));
        assert_eq!(times("inference"), (30, 35));
        assert_eq!(times("commit"), (60, 100));
        let status = spans["motion"].status.as_ref().unwrap();
        assert_eq!(
            (status.code(), status.message.as_str()),
            (StatusCode::Error, "was stopped at its timeout of 30 ms")
        );
        assert!(spans["motion"].attributes.iter().any(|a| a.key == "cloudevents.event_id"));
    }

    #[tokio::test]
    async fn a_collector_that_is_away_holds_nothing_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
        drop(listener);
        let metrics = Metrics::new();
        let (tracer, exporter) = start(&url, &metrics).unwrap();
        let started = Clock::system().instant();
        (0..5_000).for_each(|_| run(&tracer, PARENT));
        exporter.unwrap().stop().await;
        assert!(started.elapsed() < EXPORT_TIMEOUT * 3);
        assert!(metrics.encode().unwrap().lines().any(|line| {
            let lost = line.strip_prefix("tidegate_traces_dropped_total{reason=\"collector\"} ");
            lost.is_some_and(|lost| lost.parse::<u64>().unwrap() > 3_000)
        }));
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_used_is_an_error() {
        for wrong in ["localhost:4318", "https://collector:4318/v1/traces", "http://", "not a url"] {
            let error = start(wrong, &Metrics::new()).unwrap_err().to_string();
            assert!(error.contains("hint: write the collector's address"), "{error}");
        }
    }
}
