//! The gateway itself: what it is called, where it keeps things, how it is seen, and what runs its models.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Serialize;
use toml::Value;

use super::document::Document;
use super::read::{Read, keys, text, words};
use crate::limits::Limits;
use crate::name::{GatewayName, ModelName};
use crate::units::ByteSize;

/// `[gateway]`.
#[derive(Clone, Debug, PartialEq)]
pub struct GatewayConfig {
    /// This machine's name; the host name unless said.
    pub name: Option<GatewayName>,
    /// Everything that the agent keeps.
    pub state_dir: PathBuf,
    /// Budget of all streams and key-values together.
    pub buffer_bytes: ByteSize,
}

keys! { GatewayConfig:
    name = optional(),
    state_dir = or(Self::default().state_dir),
    buffer_bytes = or(Self::default().buffer_bytes),
}

impl Default for GatewayConfig {
    fn default() -> Self {
        let state_dir = PathBuf::from("/var/lib/tidegate");
        Self { name: None, state_dir, buffer_bytes: Limits::default().buffer_bytes_max }
    }
}

/// `[api]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiConfig {
    /// Where HTTP is served; `off` or a socket address. The Unix socket is always there.
    pub listen: ApiListen,
    /// The Unix socket; in the state folder unless said.
    pub socket: Option<PathBuf>,
    /// File with the token that callers must send as `Authorization: Bearer …`; required when `listen` is not loopback.
    pub token_file: Option<PathBuf>,
    /// Whether there is a page for people, and what they may do there.
    pub console: Console,
}

keys! { ApiConfig:
    listen = or(Self::default().listen),
    socket = optional(),
    token_file = optional(),
    console = or(Console::On),
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            listen: ApiListen::At(([127, 0, 0, 1], 8470).into()),
            socket: None,
            token_file: None,
            console: Console::On,
        }
    }
}

/// The page for people at the API's `/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// Who may call the API may look, invoke functions, and replay or drop dead letters.
    On,
    /// They may look.
    ReadOnly,
    /// There is no page.
    Off,
}

words! { Console: "on" = Self::On, "read-only" = Self::ReadOnly, "off" = Self::Off }

/// Where the API listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiListen {
    /// Only on the Unix socket.
    Off,
    /// On TCP too.
    At(SocketAddr),
}

/// Why `listen` was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is neither ADDRESS:PORT nor `off`")]
pub struct ApiListenError(String);

impl FromStr for ApiListen {
    type Err = ApiListenError;
    fn from_str(text: &str) -> Result<Self, ApiListenError> {
        match text {
            "off" => Ok(Self::Off),
            text => text.parse().map(Self::At).map_err(|_| ApiListenError(text.to_owned())),
        }
    }
}

impl Read for ApiListen {
    fn read(value: &Value, path: &str, document: &mut Document) -> Option<Self> {
        text(value, path, document, ("ADDRESS:PORT or `off`, in quotes", "\"127.0.0.1:8470\""), str::parse)
    }
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// A level (`error`, `warn`, `info`, `debug`, `trace`) or a filter as tracing-subscriber's `EnvFilter` reads it.
    pub level: String,
    /// Text on a terminal and JSON otherwise, unless said.
    pub format: LogFormat,
}

keys! { LogConfig: level = or(Self::default().level), format = or(LogFormat::Auto) }

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Auto }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// For people.
    Text,
    /// One object per line.
    Json,
}

words! { LogFormat: "auto" = Self::Auto, "text" = Self::Text, "json" = Self::Json }

/// `[trace]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TraceConfig {
    /// OTLP over HTTP: `http://127.0.0.1:4318/v1/traces`. Nothing is exported without it.
    pub otlp: Option<String>,
    /// Share of traces that are exported, 0.0 to 1.0; all unless said. A sampled parent is always followed.
    pub sample: Option<f64>,
}

keys! { TraceConfig: otlp = optional(), sample = optional() }

/// `[inference]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InferenceConfig {
    /// Which engine runs the models; one per process.
    pub runtime: InferenceRuntime,
    /// Path of ONNX Runtime's library, when it is not beside the binary or on the system's path.
    pub library: Option<PathBuf>,
    /// Threads of one inference (ONNX Runtime).
    pub threads: Option<u16>,
}

keys! { InferenceConfig:
    runtime = or(InferenceRuntime::Auto),
    library = optional(),
    threads = optional(),
}

/// Which engine runs the models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum InferenceRuntime {
    /// ONNX Runtime when its library is found, else tract.
    #[default]
    Auto,
    /// ONNX Runtime, or an error.
    Onnxruntime,
    /// The built-in engine.
    Tract,
}

words! { InferenceRuntime: "auto" = Self::Auto, "onnxruntime" = Self::Onnxruntime, "tract" = Self::Tract }

/// `[[model]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// What functions call it.
    pub name: ModelName,
    /// The ONNX file.
    pub file: PathBuf,
    /// Inputs and expected outputs that it must pass before it takes over.
    pub tests: Option<PathBuf>,
    /// Runs of it at the same time, each with memory of its own; 1 unless said.
    pub concurrency: Option<u16>,
}

keys! { ModelConfig:
    name = required("\"motion\""),
    file = required("\"models/motion.onnx\""),
    tests = optional(),
    concurrency = optional(),
}
