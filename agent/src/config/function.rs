//! `[[function]]` of gateway.toml, and `function.toml`, which holds the defaults of the same keys.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::document::{Document, Place};
use super::read::{Read, keys, kinds, text, words};
use super::source::SourceTrigger;
use crate::capability::Capability;
use crate::name::{BrokerName, FunctionName, SourceName, StreamName};
use crate::topic::TopicFilter;
use crate::trigger::file::FileTrigger;
use crate::trigger::filter::FilterConfig;
use crate::trigger::http::{EventShape, HttpTrigger};
use crate::trigger::window::WindowConfig;
use crate::units::{ByteSize, Span};

/// `[[function]]`: what is said here wins over the bundle's own function.toml.
#[derive(Clone, Debug, PartialEq)]
pub struct FunctionConfig {
    /// Its name on this gateway.
    pub name: FunctionName,
    /// A folder or a bundle file.
    pub bundle: PathBuf,
    /// What is granted. The bundle's own list only asks.
    pub capabilities: Vec<Capability>,
    /// Files whose content the function sees as environment; read at start and reload, never shown.
    pub secrets: BTreeMap<String, PathBuf>,
    /// Folders, or archives of them, that it sees over each other at `/opt`; the last one on top.
    pub layers: Vec<PathBuf>,
    /// The settings that both files know.
    pub settings: FunctionSettings,
    /// Where it is written.
    pub place: Place,
}

keys! { FunctionConfig:
    name = required("\"fahrenheit\""),
    bundle = required("\"functions/fahrenheit\""),
    capabilities = section(Vec::new()),
    secrets = section(BTreeMap::new()),
    layers = section(Vec::new());
    flatten settings: FunctionSettings;
    with place = |table| table.place()
}

/// The keys that `[[function]]` and function.toml share; `None` leaves it to the other, then to the default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FunctionSettings {
    /// Longest a handler may run; making an instance does not count.
    pub timeout: Option<Span>,
    /// Linear memory of one instance.
    pub memory: Option<ByteSize>,
    /// Instances at the same time.
    pub concurrency: Option<u32>,
    /// Whether an instance serves one event only.
    pub isolation: Option<Isolation>,
    /// What `wasi:config` and the environment hold.
    pub environment: BTreeMap<String, String>,
    /// Further attempts after `retry`, a timeout or a trap.
    pub retry: Option<RetryConfig>,
    /// Which events run once.
    pub idempotency: Option<IdempotencyConfig>,
    /// Which events wait for each other.
    pub order: Option<Order>,
    /// Where the returned value goes.
    pub on_success: Option<Vec<DestinationConfig>>,
    /// Where an event that was given up on goes, beside the dead letters.
    pub on_failure: Option<Vec<DestinationConfig>>,
    /// What it runs on.
    pub trigger: Option<Vec<TriggerConfig>>,
}

impl FunctionSettings {
    /// These, less what `other` decides anyway.
    pub(crate) fn without(&self, other: &Self) -> Self {
        fn keep<T: Clone, U>(mine: &Option<T>, other: &Option<U>) -> Option<T> {
            if other.is_some() { None } else { mine.clone() }
        }
        Self {
            timeout: keep(&self.timeout, &other.timeout),
            memory: keep(&self.memory, &other.memory),
            concurrency: keep(&self.concurrency, &other.concurrency),
            isolation: keep(&self.isolation, &other.isolation),
            environment: self.environment.clone(),
            retry: keep(&self.retry, &other.retry),
            idempotency: keep(&self.idempotency, &other.idempotency),
            order: keep(&self.order, &other.order),
            on_success: keep(&self.on_success, &other.on_success),
            on_failure: keep(&self.on_failure, &other.on_failure),
            trigger: keep(&self.trigger, &other.trigger),
        }
    }
}

keys! { FunctionSettings:
    timeout = setting(),
    memory = setting(),
    concurrency = setting(),
    isolation = setting(),
    environment = section(BTreeMap::new()),
    retry = setting(),
    idempotency = setting(),
    order = setting(),
    on_success = setting(),
    on_failure = setting(),
    trigger = setting();
    later event_shape
}

/// `isolation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Isolation {
    /// An instance is kept warm and serves one event after the other.
    #[default]
    Warm,
    /// A new instance for each event.
    Fresh,
}

words! { Isolation: "warm" = Self::Warm, "fresh" = Self::Fresh }

/// `retry = { attempts = 3, max_age = "1h" }`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryConfig {
    /// Counts the first.
    pub attempts: u32,
    /// Since the event came.
    pub max_age: Span,
}

keys! { RetryConfig: attempts = or(3), max_age = or(Self::default().max_age) }

impl Default for RetryConfig {
    fn default() -> Self {
        Self { attempts: 3, max_age: Span::from_secs(3600) }
    }
}

/// `idempotency = { key = ["topic", "/seq"], window = "10m" }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyConfig {
    /// What makes two events the same one.
    pub key: Vec<KeyPart>,
    /// For how long after it was dealt with.
    pub window: Span,
}

keys! { IdempotencyConfig: key = required("[\"topic\", \"/seq\"]"), window = or(Span::from_secs(600)) }

/// One part of an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyPart {
    /// The topic of an MQTT message: the event's subject.
    Topic,
    /// The event's id, as its source gave it.
    Id,
    /// The event's source.
    Source,
    /// A value in the payload, by JSON pointer.
    Pointer(String),
    /// A further attribute: a user property of MQTT 5, an extension of CloudEvents.
    Attribute(String),
}

/// Why something is no part of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no part of a key: it must be `topic`, `id`, `source`, the name of an attribute, or a JSON pointer")]
pub struct KeyPartError(String);

impl KeyPart {
    /// Reads `topic`, `/seq`, ….
    ///
    /// # Errors
    /// When it is empty, or a pointer with a `~` that escapes nothing.
    pub fn parse(text: &str) -> Result<Self, KeyPartError> {
        let escapes = |pointer: &str| pointer.split('~').skip(1).all(|rest| rest.starts_with(['0', '1']));
        match text {
            "topic" => Ok(Self::Topic),
            "id" => Ok(Self::Id),
            "source" => Ok(Self::Source),
            pointer if pointer.starts_with('/') && escapes(pointer) => Ok(Self::Pointer(pointer.to_owned())),
            name if !name.is_empty() && !name.starts_with('/') => Ok(Self::Attribute(name.to_owned())),
            _ => Err(KeyPartError(text.to_owned())),
        }
    }
}

impl std::fmt::Display for KeyPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Topic => "topic",
            Self::Id => "id",
            Self::Source => "source",
            Self::Pointer(text) | Self::Attribute(text) => text,
        })
    }
}

impl Read for KeyPart {
    fn read(value: &toml::Value, path: &str, document: &mut Document) -> Option<Self> {
        text(value, path, document, ("a part of a key in quotes", "\"/seq\""), Self::parse)
    }
}

/// `order`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Events run at the same time, as many as `concurrency` allows.
    #[default]
    None,
    /// Those of one topic run one after the other, as they came.
    Topic,
}

words! { Order: "none" = Self::None, "topic" = Self::Topic }

/// One destination: exactly one of the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DestinationConfig {
    /// `{ mqtt = { topic = "alarm", qos = 1 } }`.
    Mqtt(MqttDestination),
    /// `{ stream = "failed" }`.
    Stream(StreamName),
    /// `{ function = "other" }`.
    Function(FunctionName),
}

kinds! { DestinationConfig: "mqtt" = Self::Mqtt, "stream" = Self::Stream, "function" = Self::Function; later "http", "cloud" }

/// `{ topic = "alarm", qos = 1, retain = false, broker = "local" }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MqttDestination {
    /// Which broker; `local` unless said.
    pub broker: Option<BrokerName>,
    /// Topic; `{gateway}` and `{function}` are filled in.
    pub topic: String,
    /// 0, 1 or 2.
    pub qos: u8,
    /// Whether the broker keeps it.
    pub retain: bool,
}

keys! { MqttDestination:
    broker = optional(),
    topic = required("\"alarm/{gateway}\""),
    qos = or(1),
    retain = or(false),
}

/// `[[function.trigger]]`: what it listens to, and what all kinds of triggers have.
#[derive(Clone, Debug, PartialEq)]
pub struct TriggerConfig {
    /// Which of that the function sees; all unless said.
    pub only: Option<FilterConfig>,
    /// How many of those it gets at once; each by itself unless said.
    pub window: Option<WindowConfig>,
    /// What it listens to.
    pub kind: TriggerKind,
}

keys! { TriggerConfig: only = optional(), window = optional(); flatten kind: TriggerKind }

/// As `status` shows it: `mqtt local sensors/+/temp (changed /temperature) in windows of 50 events`.
impl std::fmt::Display for TriggerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.kind.fmt(f)?;
        if let Some(only) = &self.only {
            write!(f, " ({only})")?;
        }
        if let Some(window) = &self.window {
            write!(f, " in windows of {window}")?;
        }
        Ok(())
    }
}

/// What a trigger listens to: exactly one of the keys.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TriggerKind {
    /// `mqtt = { filter = "sensors/+/temp", qos = 1 }`.
    Mqtt(MqttTrigger),
    /// `schedule = { every = "5m" }`.
    Schedule(ScheduleTrigger),
    /// `event = { kind = "com.example.*" }`: what is posted to `/v1/events`.
    Event(EventTrigger),
    /// `http = { path = "/orders/{id}" }`: requests to a function URL.
    Http(HttpTrigger),
    /// `process = { source = "radio" }`: lines that a program writes.
    Process(SourceTrigger),
    /// `tail = { source = "syslog" }`: lines that a file grows by.
    Tail(SourceTrigger),
    /// `file = { source = "inbox" }`: files that come, change or go.
    File(FileTrigger),
    /// `sysfs = { source = "heat" }`: what sensors of the machine say.
    Sysfs(SourceTrigger),
    /// `serial = { source = "scale" }`: lines or frames of a serial port.
    Serial(SourceTrigger),
    /// `modbus = { source = "press" }`: what the registers of a device say.
    Modbus(SourceTrigger),
    /// `gpio = { source = "buttons" }`: edges and levels of lines.
    Gpio(SourceTrigger),
}

impl TriggerKind {
    /// Whether it calls components that take requests, which take nothing else.
    pub(crate) fn is_wasi_http(&self) -> bool {
        matches!(self, Self::Http(http) if http.event_shape == EventShape::WasiHttp)
    }

    /// The source that it hears, with the kind that it must be.
    pub(crate) const fn source(&self) -> Option<(&'static str, &SourceName)> {
        match self {
            Self::Mqtt(_) | Self::Schedule(_) | Self::Event(_) | Self::Http(_) => None,
            Self::Process(trigger) => Some(("process", &trigger.source)),
            Self::Tail(trigger) => Some(("tail", &trigger.source)),
            Self::File(trigger) => Some(("file", &trigger.source)),
            Self::Sysfs(trigger) => Some(("sysfs", &trigger.source)),
            Self::Serial(trigger) => Some(("serial", &trigger.source)),
            Self::Modbus(trigger) => Some(("modbus", &trigger.source)),
            Self::Gpio(trigger) => Some(("gpio", &trigger.source)),
        }
    }
}

/// `mqtt local sensors/+/temp`, `every 5m`.
impl std::fmt::Display for TriggerKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mqtt(mqtt) => {
                let broker = mqtt.broker.as_ref().map_or("local", BrokerName::as_str);
                write!(f, "mqtt {broker} {}", mqtt.filter)
            }
            Self::Schedule(schedule) => match (&schedule.every, &schedule.cron) {
                (Some(every), _) => write!(f, "every {every}"),
                (None, Some(cron)) => write!(f, "cron {cron}"),
                (None, None) => f.write_str("never"),
            },
            Self::Event(event) => match &event.source {
                Some(source) => write!(f, "event {} from {source}", event.kind),
                None => write!(f, "event {}", event.kind),
            },
            Self::Http(http) => write!(f, "http {http}"),
            Self::Process(trigger) => write!(f, "process {}", trigger.source),
            Self::Tail(trigger) => write!(f, "tail {}", trigger.source),
            Self::File(trigger) => write!(f, "file {}", trigger.source),
            Self::Sysfs(trigger) => write!(f, "sysfs {}", trigger.source),
            Self::Serial(trigger) => write!(f, "serial {}", trigger.source),
            Self::Modbus(trigger) => write!(f, "modbus {}", trigger.source),
            Self::Gpio(trigger) => write!(f, "gpio {}", trigger.source),
        }
    }
}

kinds! { beside TriggerKind: "mqtt" = Self::Mqtt, "schedule" = Self::Schedule, "event" = Self::Event, "http" = Self::Http, "process" = Self::Process, "tail" = Self::Tail, "file" = Self::File, "sysfs" = Self::Sysfs, "serial" = Self::Serial, "modbus" = Self::Modbus, "gpio" = Self::Gpio; later "opcua" }

/// `mqtt = { filter = "sensors/+/temp", qos = 1 }`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MqttTrigger {
    /// Which broker; `local` unless said.
    pub broker: Option<BrokerName>,
    /// What to subscribe to.
    pub filter: TopicFilter,
    /// 0, 1 or 2.
    pub qos: u8,
}

keys! { MqttTrigger: broker = optional(), filter = required("\"sensors/+/temp\""), qos = or(1) }

/// `schedule = { every = "5m" }` or `{ cron = "0 */5 * * * *", time_zone = "Europe/Berlin", missed = "skip" }`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScheduleTrigger {
    /// Interval.
    pub every: Option<Span>,
    /// Cron expression with seconds.
    pub cron: Option<String>,
    /// IANA name; the machine's unless said.
    pub time_zone: Option<String>,
    /// What happens to ticks that fell into a time when the agent was not running.
    pub missed: Missed,
}

keys! { ScheduleTrigger:
    every = optional(),
    cron = optional(),
    time_zone = optional(),
    missed = or(Missed::Skip),
}

/// `missed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Missed {
    /// They are gone.
    #[default]
    Skip,
    /// One for all of them.
    Once,
}

words! { Missed: "skip" = Self::Skip, "once" = Self::Once }

/// `event = { kind = "com.example.*", source = "/press/1" }`; a `*` at the end stands for anything.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventTrigger {
    /// CloudEvents `type`.
    pub kind: String,
    /// CloudEvents `source`; any unless said.
    pub source: Option<String>,
}

keys! { EventTrigger: kind = required("\"com.example.reading\""), source = optional() }

/// `function.toml`: what a bundle declares.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Its name.
    pub name: FunctionName,
    /// Its version.
    pub version: semver::Version,
    /// Which runtime it needs.
    pub runtime: FunctionRuntime,
    /// The component, for `wasm`.
    pub component: Option<PathBuf>,
    /// `module.function`, for the languages that are loaded from source.
    pub handler: Option<String>,
    /// What it asks for.
    pub capabilities: Vec<Capability>,
    /// Run by `tidegate build`, and before a version goes live.
    pub test: Vec<BundleTest>,
    /// Defaults.
    pub settings: FunctionSettings,
}

keys! { Manifest:
    name = required("\"fahrenheit\""),
    version = required("\"1.0.0\""),
    runtime = required("\"wasm\""),
    component = optional(),
    handler = optional(),
    capabilities = section(Vec::new()),
    test = each();
    flatten settings: FunctionSettings
}

/// `runtime`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FunctionRuntime {
    /// A WebAssembly component.
    Wasm,
}

words! { FunctionRuntime: "wasm" = Self::Wasm; later "python", "javascript" }

/// `[[test]]` of a function.toml.
#[derive(Clone, Debug, PartialEq)]
pub struct BundleTest {
    /// The payload, or a recorded event with its attributes.
    pub event: PathBuf,
    /// How it must end.
    pub expect: Expectation,
}

keys! { BundleTest:
    event = required("\"events/example.json\""),
    expect = required("{ result = \"events/example.result.json\" }"),
}

/// `expect = { result = "events/add.result.json" }` or `{ failure = "reject" }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// The handler returns the JSON of this file.
    Result(PathBuf),
    /// The outcome's label: `retry`, `rejected`, …
    Failure(String),
}

kinds! { Expectation: "result" = Self::Result, "failure" = Self::Failure }
