//! How one sees what the agent does: log lines, and a span for each invocation.

mod layer;
mod otlp;
mod recent;
mod record;
mod ring;
mod trace;

use std::io::{self, IsTerminal};
use std::sync::Arc;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

pub use self::layer::LogLayer;
pub use self::otlp::Exporter;
pub use self::recent::{RecentLatency, RecentRun, RecentRuns};
pub use self::record::LogRecord;
pub use self::ring::{Follower, LogRing};
pub use self::trace::{Invocation, TraceParent, Tracer};
use crate::clock::Clock;
use crate::config::{LogConfig, LogFormat};
use crate::limits::Limits;

/// Why logs or traces cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `log.level` is malformed.
    #[error(
        "`{level}` in `log.level` is neither a level nor a filter: {why}\n\nhint: write `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,tidegate::broker=debug`"
    )]
    Level {
        /// As it was written.
        level: String,
        /// What is wrong with it.
        why: String,
    },
    /// Something else in this process receives logs already.
    #[error("logs are set up already in this process")]
    Twice,
    /// `trace.otlp` is not an address that spans can go to.
    #[error(
        "`{url}` in `trace.otlp` cannot be used: {why}\n\nhint: write the collector's address, such as `http://127.0.0.1:4318/v1/traces`"
    )]
    Otlp {
        /// As it was written.
        url: String,
        /// What is wrong with it.
        why: String,
    },
}

/// Sends the log lines of this process to stderr and into a ring that [`LogRing::follow`] reads. Once per process.
///
/// # Errors
/// When the level is malformed, or logs are set up already.
pub fn init(config: &LogConfig, limits: &Limits, clock: Clock) -> Result<LogRing, TelemetryError> {
    let ring = LogRing::new(limits);
    let stderr = io::stderr();
    let text = match config.format {
        LogFormat::Auto => stderr.is_terminal(),
        LogFormat::Text => true,
        LogFormat::Json => false,
    };
    let colour = text && stderr.is_terminal();
    let write = Arc::new(move |record: &LogRecord| {
        let line = if text { record.text(colour) } else { record.json() };
        // Nobody is left to tell when stderr is gone.
        let _ = io::Write::write_all(&mut io::stderr().lock(), format!("{line}\n").as_bytes());
    });
    let layer = LogLayer::new(ring.clone(), write, limits, clock);
    let registry = tracing_subscriber::registry().with(filter(&config.level)?).with(layer);
    registry.try_init().map_err(|_| TelemetryError::Twice)?;
    Ok(ring)
}

/// A level alone is meant for the agent and its functions: at `debug` the libraries beneath would drown them, and what comes over a
/// noisy line is told by its source, once a minute.
fn filter(level: &str) -> Result<EnvFilter, TelemetryError> {
    let malformed = |why: String| TelemetryError::Level { level: level.to_owned(), why };
    let lower = level.trim().to_ascii_lowercase();
    let directives = match lower.as_str() {
        "debug" | "trace" => format!("info,tokio_modbus=off,tidegate={lower},function={lower}"),
        "error" | "warn" | "info" | "off" => format!("{lower},tokio_modbus=off"),
        // `EnvFilter` would take a misspelt level for the name of a module, and be silent about all others.
        word if !word.contains(['=', ',', ':', '[']) => return Err(malformed("no such level".to_owned())),
        _ => level.to_owned(),
    };
    EnvFilter::builder().parse(directives).map_err(|error| malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_level_is_an_error() {
        for right in ["info", "DEBUG", "warn,tidegate::broker=trace", "off"] {
            assert!(filter(right).is_ok(), "{right}");
        }
        for wrong in ["", "inof", "verbose", "info,=", "tidegate=loud"] {
            let error = filter(wrong).unwrap_err().to_string();
            assert!(error.contains("hint: write `error`"), "{wrong}: {error}");
        }
    }

    #[test]
    fn debug_is_for_the_agent_and_its_functions_only() {
        assert_eq!(filter("debug").unwrap().to_string(), "tokio_modbus=off,tidegate=debug,function=debug,info");
    }
}
