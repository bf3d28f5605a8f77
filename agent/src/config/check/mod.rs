//! What the form of gateway.toml cannot say: that names exist, that files can be read, that numbers make sense together.

mod function;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

pub(crate) use self::function::{check_layers, check_settings, check_specs, check_test, environment_bytes};
use super::deployed::DeployedConfig;
use super::document::{Document, join};
use super::read::{list, nearest};
use super::{
    ApiListen, Config, EmbeddedBrokerConfig, HttpUplink, ModelConfig, MqttConfig, Rate, StreamConfig, TriggerKind,
    UplinkConfig, UplinkTo,
};
use crate::limits::Limits;
use crate::name::{BrokerName, SourceName, StreamName};
use crate::topic::check_topic;
use crate::units::ByteSize;

/// The stream that the agent itself keeps dead letters in.
pub(crate) const DEAD_LETTERS: &str = "dead-letters";

/// What can be referred to by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Broker,
    Stream,
    Model,
    Function,
    Source,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Self::Broker => "broker",
            Self::Stream => "stream",
            Self::Model => "model",
            Self::Function => "function",
            Self::Source => "source",
        }
    }

    fn declaration(self, name: &str) -> String {
        match self {
            Self::Broker => format!("`[mqtt.{name}]` with its `url`"),
            Self::Stream => format!("`[stream.{name}]`"),
            Self::Model => format!("a `[[model]]` with `name = \"{name}\"`"),
            Self::Function => format!("a `[[function]]` with `name = \"{name}\"`"),
            Self::Source => format!("`[source.{name}]`"),
        }
    }
}

/// The names that a gateway.toml declares; with `None` any name will do, as for a bundle that is looked at by itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names(Option<Declared>);

#[derive(Clone, Debug)]
struct Declared {
    /// By [`Kind`].
    names: [BTreeSet<String>; 5],
    /// The kind of each source.
    sources: BTreeMap<String, String>,
}

impl Names {
    /// Any name will do.
    pub(crate) const fn any() -> Self {
        Self(None)
    }

    /// The names in a config that was loaded.
    pub(crate) fn of(config: &Config) -> Self {
        let local = config.embedded_broker.as_ref().map(|_| "local".to_owned());
        let names = [
            config.mqtt.keys().map(ToString::to_string).chain(local).collect(),
            config.stream.keys().map(ToString::to_string).collect(),
            config.model.iter().map(|model| model.name.to_string()).collect(),
            config.function.iter().map(|function| function.name.to_string()).collect(),
            config.source.keys().map(ToString::to_string).collect(),
        ];
        let sources = config.source.iter().map(|(name, source)| (name.to_string(), source.kind().to_owned()));
        Self(Some(Declared { names, sources: sources.collect() }))
    }

    /// The names in a config as it stands in the file, so that one whose table is wrong is not missed a second time.
    pub(super) fn of_document(root: &toml::Value) -> Self {
        let keys = |table: &str| -> BTreeSet<String> {
            root.get(table).and_then(toml::Value::as_table).into_iter().flat_map(toml::Table::keys).cloned().collect()
        };
        let names = |list: &str| -> BTreeSet<String> {
            let elements = root.get(list).and_then(toml::Value::as_array).into_iter().flatten();
            elements.filter_map(|element| element.get("name")?.as_str().map(ToOwned::to_owned)).collect()
        };
        let mut brokers = keys("mqtt");
        brokers.extend(root.get("embedded_broker").map(|_| "local".to_owned()));
        let names = [brokers, keys("stream"), names("model"), names("function"), keys("source")];
        let sources = root.get("source").and_then(toml::Value::as_table).into_iter().flatten();
        let kind =
            |(name, source): (&String, &toml::Value)| Some((name.clone(), source.as_table()?.keys().next()?.clone()));
        Self(Some(Declared { names, sources: sources.filter_map(kind).collect() }))
    }

    fn has(&self, kind: Kind, name: &str) -> bool {
        self.0.as_ref().is_none_or(|declared| declared.names[kind as usize].contains(name))
    }
}

/// Reports a `name` that gateway.toml does not declare.
fn check_name(document: &mut Document, path: &str, kind: Kind, name: &str, names: &Names) {
    if kind == Kind::Stream && name == DEAD_LETTERS {
        let hint = "name a stream of your own: every event that is given up on becomes a dead letter anyway";
        document.refuse(path, format!("stream `{DEAD_LETTERS}` is written by the agent only"), hint);
        return;
    }
    let Some(declared) = names.0.as_ref().map(|declared| &declared.names[kind as usize]) else { return };
    if declared.contains(name) {
        return;
    }
    let declared: Vec<&str> = declared.iter().map(String::as_str).collect();
    let add = format!("add {} to gateway.toml", kind.declaration(name));
    let hint = match nearest(name, &declared) {
        Some(nearest) => format!("did you mean `{nearest}`? Otherwise {add}"),
        None if declared.is_empty() => add,
        None => format!("{add}, or name one that is there: {}", list(&declared)),
    };
    document.refuse(path, format!("there is no {} `{name}`", kind.word()), hint);
}

fn check_broker(document: &mut Document, path: &str, name: Option<&BrokerName>, names: &Names) {
    check_name(document, path, Kind::Broker, name.map_or("local", BrokerName::as_str), names);
}

/// Reports a trigger of `kind` whose source is not there, or is of another kind.
fn check_source(document: &mut Document, path: &str, kind: &str, source: &SourceName, names: &Names) {
    check_name(document, path, Kind::Source, source.as_str(), names);
    let found = names.0.as_ref().and_then(|declared| declared.sources.get(source.as_str()));
    if let Some(found) = found.filter(|found| *found != kind) {
        let hint = format!("write `{found} = {{ source = \"{source}\" }}`, or name another source");
        document.refuse(path, format!("source `{source}` is a `{found}`, and no `{kind}`"), hint);
    }
}

/// Reports a source that is not there, or has no folder.
fn check_folder(document: &mut Document, path: &str, source: &SourceName, names: &Names) {
    check_name(document, path, Kind::Source, source.as_str(), names);
    let found = names.0.as_ref().and_then(|declared| declared.sources.get(source.as_str()));
    if let Some(found) = found.filter(|found| *found != "file") {
        let what = format!("source `{source}` is a `{found}`, which has no folder that could be read");
        document.refuse(path, what, "name a source of the kind `file`");
    }
}

/// Reports a source that is not there, or has nothing that could be set.
fn check_settable(document: &mut Document, path: &str, source: &SourceName, names: &Names) {
    check_name(document, path, Kind::Source, source.as_str(), names);
    let found = names.0.as_ref().and_then(|declared| declared.sources.get(source.as_str()));
    if let Some(found) = found.filter(|found| !["modbus", "gpio"].contains(&found.as_str())) {
        let what = format!("source `{source}` is a `{found}`, which has nothing that could be set");
        document.refuse(path, what, "name a source of the kind `modbus` or `gpio`");
    }
}

/// Reports a file that the agent could not read.
fn check_file(document: &mut Document, path: &str, file: Option<&Path>) {
    let Some(file) = file else { return };
    let (what, hint) = match std::fs::File::open(file).and_then(|opened| opened.metadata()) {
        Ok(metadata) if metadata.is_file() => return,
        Ok(_) => (format!("`{}` is not a file", file.display()), "name a file".to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => match document.credential(file) {
            Some(name) => (
                format!("the service has no credential `{name}`"),
                format!("say `LoadCredential={name}:FILE` in the unit, `systemctl edit tidegate`, and restart it"),
            ),
            None => (
                format!("there is no file `{}`", file.display()),
                "create it, or correct the path: a relative one starts at the folder of this file".to_owned(),
            ),
        },
        Err(error) => {
            (format!("`{}` cannot be read: {error}", file.display()), "let the agent's user read it".to_owned())
        }
    };
    document.refuse(path, what, hint);
}

/// Reports a topic whose placeholders are not among `known`, or that nothing can be published on.
fn check_template(document: &mut Document, path: &str, template: &str, known: &[&str]) {
    let mut filled = template.to_owned();
    for name in known {
        filled = filled.replace(name, "x");
    }
    if filled.contains(['{', '}']) {
        let hint = format!("write it without braces, or with {}", list(known));
        document.refuse(path, format!("topic `{template}` has a placeholder that is not known here"), hint);
    } else if let Err(error) = check_topic(&filled) {
        document.refuse(path, error.to_string(), "write a topic without wildcards, such as `results/{gateway}`");
    }
}

fn check_qos(document: &mut Document, path: &str, qos: u8) {
    if qos > 2 {
        let hint = "write 0 (at most once), 1 (at least once) or 2 (as 1 here; exactly once between broker and agent)";
        document.refuse(path, format!("{qos} is not a quality of service"), hint);
    }
}

/// Reports two elements of a list with the same name.
fn check_duplicates<'a>(document: &mut Document, path: &str, names: impl Iterator<Item = &'a str>) {
    let mut seen = BTreeMap::new();
    for (i, name) in names.enumerate() {
        if seen.insert(name, i).is_some() {
            let first = document.place(&format!("{path}[{name}]"));
            let second = format!("{path}[{i}]");
            let what = format!("`{name}` is already the name of the {path} in line {}", first.line);
            document.refuse_key(&second, what, "give each its own name");
        }
    }
}

/// Reports all that is wrong with the meaning of `config`.
pub(super) fn check(config: &Config, names: &Names, limits: &Limits, document: &mut Document) {
    if let (Some(_), Some(local)) = (&config.embedded_broker, config.mqtt.keys().find(|name| name.as_str() == "local"))
    {
        let hint = "remove one of the two, or give this broker another name";
        document.refuse_key(&format!("mqtt.{local}"), "`[embedded_broker]` is already the broker `local`", hint);
    }
    for (name, broker) in &config.mqtt {
        check_mqtt(broker, &format!("mqtt.{name}"), document);
    }
    let mut devices = BTreeMap::new();
    for (name, source) in &config.source {
        let path = format!("source.{name}.{}", source.kind());
        source.check(&path, document);
        if let Some((key, device)) = source.device()
            && let Some(first) = devices.insert(device, name)
        {
            let what = format!("`{}` is the device of source `{first}` already", device.display());
            document.refuse(&join(&path, key), what, format!("let triggers name `{first}`, and remove this one"));
        }
    }
    if let Some(broker) = &config.embedded_broker {
        check_embedded(broker, document);
    }
    check_api(config, document);
    check_seeing(config, document);
    check_cloud(config, document);
    check_file(document, "inference.library", config.inference.library.as_deref());
    if config.inference.threads == Some(0) {
        document.refuse("inference.threads", "an inference needs at least one thread", "write 1 or more, or remove it");
    }
    check_streams(&config.stream, config, names, limits, document);
    check_duplicates(document, "model", config.model.iter().map(|model| model.name.as_str()));
    for model in &config.model {
        let path = format!("model[{}]", model.name);
        check_file(document, &join(&path, "file"), Some(&model.file));
        check_file(document, &join(&path, "tests"), model.tests.as_deref());
        check_model(model, &path, document);
    }
    check_duplicates(document, "function", config.function.iter().map(|function| function.name.as_str()));
    for function in &config.function {
        function::check_function(function, names, limits, document);
    }
}

/// Reports all that is wrong with what a deployment brings to `config`, which has it already.
pub(super) fn check_deployed(
    deployed: &DeployedConfig,
    config: &Config,
    names: &Names,
    limits: &Limits,
    document: &mut Document,
) {
    let no_file = |document: &mut Document, path: &str| {
        let hint = "write what needs a file of the gateway into its gateway.toml";
        document.refuse_key(path, "a deployment may name no file of the gateway", hint);
    };
    check_streams(&deployed.stream, config, names, limits, document);
    for (name, stream) in &deployed.stream {
        if let Some(UplinkTo::Http(http)) = stream.uplink.as_ref().map(|uplink| &uplink.to)
            && [&http.token_file, &http.ca, &http.cert, &http.key].into_iter().any(Option::is_some)
        {
            no_file(document, &format!("stream.{name}.uplink"));
        }
    }
    for model in &deployed.model {
        check_model(model, &format!("model[{}]", model.name), document);
    }
    for function in &deployed.function {
        if !function.secrets.is_empty() {
            no_file(document, &format!("function[{}].secrets", function.name));
            continue;
        }
        for (i, trigger) in function.settings.trigger.iter().flatten().enumerate() {
            if let TriggerKind::Http(http) = &trigger.kind
                && http.token_file.is_some()
            {
                no_file(document, &format!("function[{}].trigger[{i}].http.token_file", function.name));
            }
        }
        function::check_function(function, names, limits, document);
    }
}

fn check_model(model: &ModelConfig, path: &str, document: &mut Document) {
    if model.concurrency == Some(0) {
        document.refuse(&join(path, "concurrency"), "a model needs at least one run at a time", "write 1 or more");
    }
}

fn check_streams(
    streams: &BTreeMap<StreamName, StreamConfig>,
    config: &Config,
    names: &Names,
    limits: &Limits,
    document: &mut Document,
) {
    let is_followed = config.cloud.as_ref().is_some_and(|cloud| cloud.url.is_some());
    for (name, stream) in streams {
        let path = format!("stream.{name}");
        check_stream_config(stream, &path, names, limits, document);
        if !is_followed && stream.uplink.as_ref().is_some_and(|uplink| uplink.to == UplinkTo::Cloud) {
            let hint = "add `[cloud]` with its `url` to gateway.toml";
            document.refuse(&join(&path, "uplink.cloud"), "there is no control plane to send to", hint);
        }
    }
}

fn check_cloud(config: &Config, document: &mut Document) {
    let Some(cloud) = &config.cloud else { return };
    if let Some(url) = &cloud.url {
        match url.strip_prefix("https://") {
            None => {
                let what = format!("`{url}` is not `https://`: who this gateway is, is told over TLS only");
                document.refuse("cloud.url", what, "write `https://HOST:PORT`");
            }
            Some(rest) => {
                if let Err(what) = check_authority(rest.strip_suffix('/').unwrap_or(rest)) {
                    document.refuse("cloud.url", format!("`{url}` {what}"), "write `https://HOST:PORT`");
                }
            }
        }
    } else if cloud.root.is_none() {
        let hint = "add `url = \"https://…\"`, or `root = \"root.json\"` to take deployments from files only";
        document.refuse_key("cloud", "it names neither a control plane nor whom to trust", hint);
    }
    // The token is taken away once the gateway has its identity.
    for (key, file) in [("root", &cloud.root), ("ca", &cloud.ca), ("cert", &cloud.cert), ("key", &cloud.key)] {
        check_file(document, &join("cloud", key), file.as_deref());
    }
    check_pair(document, "cloud", cloud.cert.is_some(), cloud.key.is_some());
    if cloud.cert.is_some() && cloud.root.is_none() {
        let hint = "add `root = \"root.json\"`, the first root document of `tidegate keygen`";
        document.refuse_key("cloud.cert", "without a claim token nothing says whose deployments to trust", hint);
    }
    if cloud.report_every.0 < Duration::from_secs(1) {
        let what = format!("{} is shorter than 1s", cloud.report_every);
        document.refuse("cloud.report_every", what, "write for example `report_every = \"15m\"`");
    }
}

fn check_mqtt(broker: &MqttConfig, path: &str, document: &mut Document) {
    let url = join(path, "url");
    let example = "write `mqtt://HOST:PORT`, or `mqtts://HOST:PORT` for TLS";
    let tls = match broker.url.split_once("://") {
        Some((scheme @ ("mqtt" | "mqtts"), rest)) => {
            if rest.contains('@') {
                let hint = "write `username` and `password_file` instead: a config file is no place for passwords";
                document.refuse(&url, "the url has a user name in it", hint);
            } else if let Err(what) = check_authority(rest.strip_suffix('/').unwrap_or(rest)) {
                document.refuse(&url, format!("`{}` {what}", broker.url), example);
            }
            scheme == "mqtts"
        }
        Some((scheme, _)) => {
            document.refuse(&url, format!("`{scheme}://` is not a scheme that the agent speaks"), example);
            return;
        }
        None => {
            document.refuse(&url, format!("`{}` has no scheme", broker.url), example);
            return;
        }
    };
    if !matches!(broker.version, 3 | 5) {
        let hint = "write 5, or 3 for MQTT 3.1.1";
        document.refuse(&join(path, "version"), format!("{} is not a version of MQTT", broker.version), hint);
    }
    for (key, file) in
        [("ca", &broker.ca), ("cert", &broker.cert), ("key", &broker.key), ("password_file", &broker.password_file)]
    {
        let path = join(path, key);
        check_file(document, &path, file.as_deref());
        if file.is_some() && !tls && key != "password_file" {
            document.refuse_key(
                &path,
                format!("`{key}` is for TLS, but the url is not `mqtts://`"),
                "write `mqtts://` in `url`",
            );
        }
    }
    check_pair(document, path, broker.cert.is_some(), broker.key.is_some());
    if broker.password_file.is_some() && broker.username.is_none() {
        document.refuse_key(
            &join(path, "password_file"),
            "there is a password, but no user name",
            "add `username = \"…\"`",
        );
    }
    if broker.client_id.as_deref() == Some("") {
        let hint = "name one, or remove the key: then it is `tidegate-GATEWAY-BROKER`";
        document.refuse(&join(path, "client_id"), "the client id is empty, so the broker would keep no session", hint);
    }
    let keep_alive = broker.keep_alive.0.as_secs();
    if !(5..=65_535).contains(&keep_alive) {
        let what = format!("{} is not between 5s and 65535s", broker.keep_alive);
        document.refuse(&join(path, "keep_alive"), what, "write for example `keep_alive = \"30s\"`");
    }
    if broker.max_qos > 2 {
        let what = format!("there is no QoS {}", broker.max_qos);
        document.refuse(&join(path, "max_qos"), what, "write 0, 1 or 2");
    }
    if broker.max_in_flight == Some(0) {
        document.refuse(&join(path, "max_in_flight"), "nothing could be published at QoS 1 or 2", "write 1 or more");
    }
}

/// Checks `HOST` or `HOST:PORT`.
fn check_authority(text: &str) -> Result<(), &'static str> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match bare {
        Some(address) if address.parse::<std::net::Ipv6Addr>().is_err() => return Err("has a malformed IPv6 address"),
        None if host.is_empty() => return Err("has no host"),
        None if host.contains(['/', '?', '#', ' ', ':', '[', ']']) => {
            return Err("has more than a host and a port in it");
        }
        _ => {}
    }
    match port {
        Some(port) if !port.parse::<u16>().is_ok_and(|port| port > 0) => {
            Err("has a port that is not between 1 and 65535")
        }
        _ => Ok(()),
    }
}

fn check_pair(document: &mut Document, path: &str, cert: bool, key: bool) {
    if cert != key {
        let (there, missing) = if cert { ("cert", "key") } else { ("key", "cert") };
        let what = format!("there is a `{there}`, but no `{missing}`");
        document.refuse_key(&join(path, there), what, format!("add `{missing} = \"FILE.pem\"`"));
    }
}

fn check_embedded(broker: &EmbeddedBrokerConfig, document: &mut Document) {
    if !broker.listen.ip().is_loopback() && broker.users.is_empty() {
        let what = format!("anyone who reaches {} could publish and subscribe to anything", broker.listen);
        let hint = "listen on 127.0.0.1, or add `[embedded_broker.users.NAME]` with its `password_file`";
        document.refuse("embedded_broker.listen", what, hint);
    }
    check_file(document, "embedded_broker.cert", broker.cert.as_deref());
    check_file(document, "embedded_broker.key", broker.key.as_deref());
    check_pair(document, "embedded_broker", broker.cert.is_some(), broker.key.is_some());
    for (name, user) in &broker.users {
        check_file(document, &format!("embedded_broker.users.{name}.password_file"), Some(&user.password_file));
    }
}

fn check_api(config: &Config, document: &mut Document) {
    check_file(document, "api.token_file", config.api.token_file.as_deref());
    let loopback = |ip: IpAddr| ip.is_loopback();
    if let ApiListen::At(address) = config.api.listen
        && !loopback(address.ip())
        && config.api.token_file.is_none()
    {
        let what = format!("anyone who reaches {address} could invoke functions");
        document.refuse(
            "api.listen",
            what,
            "listen on 127.0.0.1, or add `token_file = \"FILE\"` with a secret of your choice",
        );
    }
}

fn check_seeing(config: &Config, document: &mut Document) {
    if let Err(error) = tracing_subscriber::EnvFilter::builder().parse(&config.log.level) {
        let what = format!("`{}` is not a log level: {error}", config.log.level);
        document.refuse("log.level", what, "write `error`, `warn`, `info`, `debug` or `trace`");
    }
    if let Some(url) = &config.trace.otlp
        && !["http://", "https://"].iter().any(|scheme| url.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()))
    {
        let hint = "write for example `otlp = \"http://127.0.0.1:4318/v1/traces\"`";
        document.refuse("trace.otlp", format!("`{url}` is not a URL of OTLP over HTTP"), hint);
    }
    if let Some(sample) = config.trace.sample
        && !(0.0..=1.0).contains(&sample)
    {
        document.refuse(
            "trace.sample",
            format!("{sample} is not a share"),
            "write a number from 0.0 (none) to 1.0 (all)",
        );
    }
}

fn check_stream_config(stream: &StreamConfig, path: &str, names: &Names, limits: &Limits, document: &mut Document) {
    if stream.max_bytes < limits.record_bytes_max {
        let what =
            format!("{} has no room for one record, which may have {}", stream.max_bytes, limits.record_bytes_max);
        document.refuse(
            &join(path, "max_bytes"),
            what,
            format!("write at least `max_bytes = \"{}\"`", ByteSize::mib(8)),
        );
    }
    if stream.max_age.is_some_and(|age| age.0.is_zero()) {
        document.refuse(
            &join(path, "max_age"),
            "records would be dropped at once",
            "write for example `max_age = \"7d\"`",
        );
    }
    if stream.batch.max_records == 0 {
        document.refuse(&join(path, "batch.max_records"), "a batch needs at least one record", "write 1 or more");
    }
    if let Some(uplink) = &stream.uplink {
        check_uplink(uplink, &join(path, "uplink"), names, document);
    }
}

fn check_uplink(uplink: &UplinkConfig, path: &str, names: &Names, document: &mut Document) {
    const PLACEHOLDERS: &[&str] = &["{gateway}", "{stream}"];
    if let Some(Rate::Bytes(0) | Rate::Records(0)) = uplink.max_rate {
        let hint = "write for example `max_rate = \"64 KiB/s\"`, or remove it";
        document.refuse(&join(path, "max_rate"), "nothing would ever leave", hint);
    }
    match &uplink.to {
        UplinkTo::Mqtt(mqtt) => {
            check_broker(document, &join(path, "mqtt"), Some(&mqtt.broker), names);
            check_template(document, &join(path, "topic"), &mqtt.topic, PLACEHOLDERS);
        }
        UplinkTo::Http(http) => check_http_uplink(http, path, document),
        UplinkTo::Cloud => {}
    }
}

fn check_http_uplink(http: &HttpUplink, path: &str, document: &mut Document) {
    let url = join(path, "http");
    let example = "write `https://HOST/PATH`";
    let (tls, rest) = match http.url.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => (scheme == "https", rest),
        _ => return document.refuse(&url, format!("`{}` is not a URL of HTTP", http.url), example),
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        let hint = "write `token_file` instead: a config file is no place for passwords";
        document.refuse(&url, "the url has a user name in it", hint);
    } else if let Err(what) = check_authority(authority) {
        document.refuse(&url, format!("`{}` {what}", http.url), example);
    }
    let filled = http.url.replace("{gateway}", "x").replace("{stream}", "x");
    if filled.contains(['{', '}']) {
        let hint = "write it without braces, or with `{gateway}` or `{stream}`";
        document.refuse(&url, format!("`{}` has a placeholder that is not known here", http.url), hint);
    }
    let files = [("ca", &http.ca), ("cert", &http.cert), ("key", &http.key), ("token_file", &http.token_file)];
    for (key, file) in files {
        let path = join(path, key);
        check_file(document, &path, file.as_deref());
        if file.is_some() && !tls && key != "token_file" {
            let what = format!("`{key}` is for TLS, but the url is not `https://`");
            document.refuse_key(&path, what, "write `https://` in `http`");
        }
    }
    check_pair(document, path, http.cert.is_some(), http.key.is_some());
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host).trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if http.token_file.is_some() && !tls && !loopback {
        let what = format!("the token would travel in the clear to `{host}`");
        document.refuse_key(&join(path, "token_file"), what, "write `https://` in `http`");
    }
}
