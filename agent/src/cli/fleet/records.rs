//! Records of the fleet, as they come: they may be more than fits into memory.

use serde_json::Value;

use crate::cli::Failure;
use crate::cli::output::Output;
use crate::cli::remote::{Remote, escaped};

#[derive(Debug, clap::Args)]
pub(super) struct RecordsArgs {
    /// Of this gateway only
    #[arg(long, value_name = "NAME")]
    gateway: Option<String>,
    /// Of this stream only
    #[arg(long, value_name = "NAME")]
    stream: Option<String>,
    /// Not older than this: `2026-11-22T10:00:00Z`
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// Older than this
    #[arg(long, value_name = "TIME")]
    to: Option<String>,
    /// How they are written
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// One JSON object a line
    Jsonl,
    /// Comma-separated, with a heading
    Csv,
}

pub(super) async fn records(remote: &Remote, args: &RecordsArgs) -> anyhow::Result<()> {
    let format = match args.format {
        Format::Jsonl => "jsonl",
        Format::Csv => "csv",
    };
    if let Some(gateway) = &args.gateway {
        // One that is not there has no records, which would look like one that sent none.
        let _: Value = remote.get(&format!("gateways/{}", escaped(gateway))).await?;
    }
    let mut query = vec![format!("format={format}")];
    let plain = [("gateway", &args.gateway), ("stream", &args.stream)];
    query.extend(plain.into_iter().filter_map(|(key, value)| Some(format!("{key}={}", escaped(value.as_ref()?)))));
    for (key, time) in [("from_ms", &args.from), ("to_ms", &args.to)] {
        if let Some(time) = time {
            let at: jiff::Timestamp = time.parse().map_err(|error| {
                Failure::wrong(format!("`{time}` is no time: {error}"), "write for example `2026-11-22T10:00:00Z`")
            })?;
            query.push(format!("{key}={}", at.as_millisecond()));
        }
    }
    remote.stream(&format!("records?{}", query.join("&")), Output::piece).await
}
