//! gateway.toml: everything that a site operator decides. Parsed once; all paths are absolute after that.
//!
//! `read` turns TOML into the types of this module and notes all that is wrong with the form, `check` all that is wrong
//! with the meaning; nothing is reported twice, and nothing hides what comes after it.

mod access;
mod check;
mod cloud;
mod deployed;
mod deployment;
pub(crate) mod document;
mod environment;
pub mod function;
pub mod gateway;
pub mod mqtt;
pub(crate) mod read;
mod source;
pub mod stream;
mod uplink;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use self::access::Access;
pub(crate) use self::check::{Names, check_settings, check_specs, check_test, environment_bytes};
pub use self::cloud::CloudConfig;
pub use self::deployment::{DeploymentFile, FunctionItem, Item, ModelItem, PolicyFile};
pub use self::document::{ConfigErrors, Place, Problem};
pub(crate) use self::document::{Document, join};
pub use self::environment::Environment;
pub use self::function::{
    BundleTest, DestinationConfig, EventTrigger, Expectation, FunctionConfig, FunctionRuntime, FunctionSettings,
    IdempotencyConfig, Isolation, Manifest, Missed, MqttDestination, MqttTrigger, RetryConfig, ScheduleTrigger,
    TriggerConfig, TriggerKind,
};
pub use self::gateway::{
    ApiConfig, ApiListen, Console, GatewayConfig, InferenceConfig, InferenceRuntime, LogConfig, LogFormat, ModelConfig,
    TraceConfig,
};
pub use self::mqtt::{BrokerUser, EmbeddedBrokerConfig, MqttConfig};
use self::read::{Read, ReadTable};
pub(crate) use self::read::{keys, kinds, words};
pub use self::source::{SourceConfig, SourceTrigger};
pub use self::stream::{BatchConfig, Drain, Durability, StreamConfig, WhenFull};
pub use self::uplink::{HttpUplink, MqttUplink, Rate, UplinkConfig, UplinkPayload, UplinkTo};
use crate::limits::Limits;
use crate::name::{BrokerName, GatewayName, SourceName, StreamName};
use crate::trigger::file::{FileSource, FileTrigger};
use crate::trigger::filter::FilterConfig;
use crate::trigger::gpio::{GpioSource, LineConfig};
use crate::trigger::http::{CorsConfig, HttpTrigger};
use crate::trigger::modbus::{ModbusSource, RegisterConfig};
use crate::trigger::port::PortConfig;
use crate::trigger::process::ProcessSource;
use crate::trigger::serial::{FrameConfig, SerialSource};
use crate::trigger::sysfs::SysfsSource;
use crate::trigger::tail::TailSource;
use crate::trigger::window::WindowConfig;

/// The Unix socket's name in the state folder.
const SOCKET: &str = "tidegate.sock";

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// The file itself, for `reload`.
    pub file: PathBuf,
    /// `[gateway]`.
    pub gateway: GatewayConfig,
    /// `[mqtt.NAME]`.
    pub mqtt: BTreeMap<BrokerName, MqttConfig>,
    /// `[embedded_broker]`; then it is `mqtt.local`.
    pub embedded_broker: Option<EmbeddedBrokerConfig>,
    /// `[api]`.
    pub api: ApiConfig,
    /// `[log]`.
    pub log: LogConfig,
    /// `[trace]`.
    pub trace: TraceConfig,
    /// `[cloud]`; without it nobody deploys to this gateway.
    pub cloud: Option<CloudConfig>,
    /// `[inference]`.
    pub inference: InferenceConfig,
    /// `[source.NAME]`.
    pub source: BTreeMap<SourceName, SourceConfig>,
    /// `[stream.NAME]`.
    pub stream: BTreeMap<StreamName, StreamConfig>,
    /// `[[model]]`.
    pub model: Vec<ModelConfig>,
    /// `[[function]]`.
    pub function: Vec<FunctionConfig>,
}

keys! { Config:
    gateway = section(GatewayConfig::default()),
    mqtt = section(BTreeMap::new()),
    embedded_broker = setting(),
    api = section(ApiConfig::default()),
    log = section(LogConfig::default()),
    trace = section(TraceConfig::default()),
    cloud = setting(),
    inference = section(InferenceConfig::default()),
    source = section(BTreeMap::new()),
    stream = section(BTreeMap::new()),
    model = each(),
    function = each();
    with file = |table| table.file();
    later control_plane, device, layer, embedded_cloud
}

impl Config {
    /// Reads and checks `file`, with the process's environment over it.
    ///
    /// # Errors
    /// With all that is wrong, each with its place and what to do about it.
    pub fn load(file: &Path) -> Result<Self, ConfigErrors> {
        let hint = "name the file with `--config FILE`; the getting-started guide has one to copy";
        Self::of_document(Document::open(file, hint)?, &Environment::of_process())
    }

    /// Reads and checks `text` as if it stood in `file`, which relative paths start from.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, file: &Path, environment: &Environment) -> Result<Self, ConfigErrors> {
        Self::of_document(Document::parse(file, text.to_owned()), environment)
    }

    fn of_document(mut document: Document, environment: &Environment) -> Result<Self, ConfigErrors> {
        // What a malformed text seems to say is not worth a second complaint.
        if document.has_problems() {
            return document.finish(None);
        }
        document.set_credentials(environment.credentials());
        let root = std::mem::replace(&mut document.root, toml::Value::Boolean(false));
        let names = Names::of_document(&root);
        let mut config = Self::read(&root, "", &mut document);
        if let Some(config) = &mut config {
            environment.apply(config);
            if config.gateway.name.is_none() {
                config.gateway.name = Some(gateway_name(rustix::system::uname().nodename().to_string_lossy().as_ref()));
            }
            check::check(config, &names, &Limits::default(), &mut document);
        }
        document.finish(config)
    }

    /// Where the Unix socket is.
    pub fn socket(&self) -> PathBuf {
        self.api.socket.clone().unwrap_or_else(|| self.gateway.state_dir.join(SOCKET))
    }

    /// This machine's name: there is one after loading.
    pub fn gateway_name(&self) -> GatewayName {
        self.gateway.name.clone().unwrap_or_else(|| gateway_name(""))
    }
}

/// Reads a function.toml.
pub(crate) fn read_manifest(document: &mut Document) -> Option<Manifest> {
    if document.has_problems() {
        return None;
    }
    let root = std::mem::replace(&mut document.root, toml::Value::Boolean(false));
    Manifest::read(&root, "", document)
}

impl FromStr for Config {
    type Err = ConfigErrors;
    /// As [`Config::parse`], for a gateway.toml in the current folder and without environment.
    fn from_str(text: &str) -> Result<Self, ConfigErrors> {
        Self::parse(text, Path::new("gateway.toml"), &Environment::default())
    }
}

/// Where the agent of `file` has its Unix socket, whatever else is right or wrong in there.
pub fn socket_in(file: &Path) -> Option<PathBuf> {
    let document = Document::open(file, "").ok()?;
    let text = |table: &str, key: &str| document.root.get(table)?.get(key)?.as_str().map(|path| document.resolve(path));
    let state_dir = || text("gateway", "state_dir").unwrap_or_else(|| GatewayConfig::default().state_dir);
    Some(text("api", "socket").unwrap_or_else(|| state_dir().join(SOCKET)))
}

/// Where the agent of `file` keeps its state, whatever else is right or wrong in there: a deployed agent may know keys that this one does not.
pub fn state_dir_in(file: &Path) -> Option<PathBuf> {
    let document = Document::open(file, "").ok()?;
    let said = document.root.get("gateway").and_then(|gateway| gateway.get("state_dir"));
    Some(said.and_then(|path| path.as_str()).map_or(GatewayConfig::default().state_dir, |path| document.resolve(path)))
}

/// All keys that the two files can have, by table; the reference must name each.
pub fn tables() -> Vec<(&'static str, &'static [&'static str])> {
    vec![
        ("gateway.toml", Config::KEYS),
        ("[gateway]", GatewayConfig::KEYS),
        ("[mqtt.NAME]", MqttConfig::KEYS),
        ("[embedded_broker]", EmbeddedBrokerConfig::KEYS),
        ("[embedded_broker.users.NAME]", BrokerUser::KEYS),
        ("[api]", ApiConfig::KEYS),
        ("[log]", LogConfig::KEYS),
        ("[trace]", TraceConfig::KEYS),
        ("[cloud]", CloudConfig::KEYS),
        ("[inference]", InferenceConfig::KEYS),
        ("process source", ProcessSource::KEYS),
        ("tail source", TailSource::KEYS),
        ("file source", FileSource::KEYS),
        ("sysfs source", SysfsSource::KEYS),
        ("serial source", SerialSource::KEYS),
        ("frame of a serial source", FrameConfig::KEYS),
        ("serial port", PortConfig::KEYS),
        ("modbus source", ModbusSource::KEYS),
        ("register of a modbus source", RegisterConfig::KEYS),
        ("gpio source", GpioSource::KEYS),
        ("line of a gpio source", LineConfig::KEYS),
        ("[stream.NAME]", StreamConfig::KEYS),
        ("uplink", UplinkConfig::KEYS),
        ("batch", BatchConfig::KEYS),
        ("[[model]]", ModelConfig::KEYS),
        ("[[function]]", FunctionConfig::KEYS),
        ("settings of [[function]]", FunctionSettings::KEYS),
        ("retry", RetryConfig::KEYS),
        ("idempotency", IdempotencyConfig::KEYS),
        ("mqtt destination", MqttDestination::KEYS),
        ("[[function.trigger]]", TriggerConfig::KEYS),
        ("only of a trigger", FilterConfig::KEYS),
        ("window of a trigger", WindowConfig::KEYS),
        ("mqtt trigger", MqttTrigger::KEYS),
        ("schedule trigger", ScheduleTrigger::KEYS),
        ("event trigger", EventTrigger::KEYS),
        ("http trigger", HttpTrigger::KEYS),
        ("cors of an http trigger", CorsConfig::KEYS),
        ("process or tail trigger", SourceTrigger::KEYS),
        ("file trigger", FileTrigger::KEYS),
        ("function.toml", Manifest::KEYS),
        ("function.toml settings", FunctionSettings::KEYS),
        ("function.toml [[test]]", BundleTest::KEYS),
    ]
}

/// A host name as a gateway's name: what is not allowed becomes `-`.
fn gateway_name(host: &str) -> GatewayName {
    let allowed =
        |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c.to_ascii_lowercase() } else { '-' };
    let name: String = host.chars().map(allowed).take(crate::name::NAME_BYTES_MAX).collect();
    GatewayName::parse(name.trim_start_matches(['-', '_']))
        .or_else(|_| GatewayName::parse("gateway"))
        .unwrap_or_else(|_| unreachable!("`gateway` is a name"))
}
