//! How one sees what the agent does: traces, metrics, health.

use std::net::SocketAddr;

use e2e::site::{fahrenheit, reading};
use e2e::{Site, http};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn trace_parent() -> String {
    format!("00-{TRACE}-{PARENT}-01")
}

/// `traceparent` of a message: trace and span.
fn traced(message: &e2e::Message) -> Option<(String, String)> {
    let value = message.properties.iter().find(|(key, _)| key == "traceparent").map(|(_, value)| value.clone())?;
    let mut parts = value.split('-').skip(1).map(str::to_owned);
    Some((parts.next()?, parts.next()?))
}

#[tokio::test]
async fn a_trace_goes_on_from_and_into_user_properties() -> anyhow::Result<()> {
    let site = Site::with(&fahrenheit("")).await?;
    let topic = "sensors/press-1/temp";
    site.device.publish_with(topic, &reading("press-1", 1), &[("traceparent", &trace_parent())]).await?;
    let (trace, span) = traced(&site.device.next().await?).ok_or_else(|| anyhow::anyhow!("no traceparent"))?;
    assert_eq!(trace, TRACE);
    assert_ne!(span, PARENT, "it is the function's own span");
    site.device.publish_with(topic, &reading("press-1", 2), &[("traceparent", "rubbish")]).await?;
    assert!(traced(&site.device.next().await?).is_none_or(|(trace, _)| trace != TRACE && trace.len() == 32));
    Ok(())
}

/// One OTLP request, answered with 200.
async fn collect(mut connection: TcpStream) -> anyhow::Result<ExportTraceServiceRequest> {
    let mut request = Vec::new();
    loop {
        anyhow::ensure!(connection.read_buf(&mut request).await? > 0, "the exporter left in the middle");
        let Some(end) = request.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&request[..end]).to_lowercase();
        anyhow::ensure!(head.starts_with("post /v1/traces"), "{head}");
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok()).unwrap_or(0);
        if request.len() >= end + 4 + length {
            connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await?;
            return Ok(ExportTraceServiceRequest::decode(&request[end + 4..end + 4 + length])?);
        }
    }
}

#[tokio::test]
async fn spans_arrive_at_a_collector() -> anyhow::Result<()> {
    let collector = TcpListener::bind("127.0.0.1:0").await?;
    let config = format!("[trace]\notlp = \"http://{}/v1/traces\"\n{}", collector.local_addr()?, fahrenheit(""));
    let site = Site::with(&config).await?;
    site.device
        .publish_with("sensors/press-1/temp", &reading("press-1", 1), &[("traceparent", &trace_parent())])
        .await?;
    let (_, own) = traced(&site.device.next().await?).ok_or_else(|| anyhow::anyhow!("no traceparent"))?;
    let (connection, _) = tokio::time::timeout(e2e::PATIENCE, collector.accept()).await??;
    let request = collect(connection).await?;
    let spans: Vec<_> = request.resource_spans.iter().flat_map(|r| &r.scope_spans).flat_map(|s| &s.spans).collect();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let root =
        spans.iter().find(|span| span.name == "fahrenheit").ok_or_else(|| anyhow::anyhow!("no span: {spans:?}"))?;
    assert_eq!(
        (hex(&root.trace_id).as_str(), hex(&root.parent_span_id).as_str(), hex(&root.span_id)),
        (TRACE, PARENT, own)
    );
    let mut parts: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    parts.sort_unstable();
    assert_eq!(parts, ["cold start", "commit", "fahrenheit", "handler", "queue"]);
    Ok(())
}

#[tokio::test]
async fn metrics_are_open_metrics_and_health_is_told() -> anyhow::Result<()> {
    let address = SocketAddr::from(([127, 0, 0, 1], e2e::free_port()?));
    let site = Site::with(&format!("[api]\nlisten = \"{address}\"\n{}", fahrenheit(""))).await?;
    for seq in 0..3 {
        site.device.publish("sensors/press-1/temp", reading("press-1", seq), 1).await?;
        site.device.next().await?;
    }
    let health = http::request(address, "GET /healthz", &[], "").await?;
    assert_eq!((health.status, health.body.as_str()), (200, r#"{"status":"ok"}"#));
    let metrics = http::request(address, "GET /metrics", &[], "").await?;
    assert!(metrics.head.contains("application/openmetrics-text"), "{}", metrics.head);
    assert!(metrics.body.ends_with("# EOF\n"));
    let mut samples = std::collections::BTreeMap::new();
    for line in metrics.body.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').ok_or_else(|| anyhow::anyhow!("not a sample: {line}"))?;
        let twice = samples.insert(name, value.parse::<f64>()?);
        assert!(twice.is_none(), "{name} is there twice");
    }
    assert_eq!(samples.get("tidegate_function_events_received_total{function=\"fahrenheit\"}"), Some(&3.0));
    let succeeded = samples
        .iter()
        .find(|(name, _)| name.starts_with("tidegate_function_invocations_total") && name.contains("succeeded"));
    assert_eq!(succeeded.map(|(_, value)| *value), Some(3.0));
    assert!(samples.keys().any(|name| name.starts_with("tidegate_function_handler_seconds_bucket")));
    Ok(())
}
