//! The checks of `[[function]]`, of function.toml, and of what the two make together.

use std::collections::BTreeMap;

use super::{
    Kind, Names, check_broker, check_file, check_folder, check_name, check_qos, check_settable, check_source,
    check_template,
};
use crate::capability::Capability;
use crate::config::document::{Document, Place, Problem, join};
use crate::config::read::list;
use crate::config::{
    BundleTest, DestinationConfig, Expectation, FunctionConfig, FunctionSettings, MqttTrigger, ScheduleTrigger,
    TriggerConfig, TriggerKind,
};
use crate::function::FunctionSpec;
use crate::limits::Limits;
use crate::name::{BrokerName, FunctionName, GatewayName};
use crate::trigger::http::HttpTrigger;
use crate::units::ByteSize;

/// Reports what is wrong with one `[[function]]` of gateway.toml.
pub(super) fn check_function(function: &FunctionConfig, names: &Names, limits: &Limits, document: &mut Document) {
    let path = format!("function[{}]", function.name);
    for (i, capability) in function.capabilities.iter().enumerate() {
        let path = format!("{path}.capabilities[{i}]");
        match capability {
            Capability::Stream(name) => check_name(document, &path, Kind::Stream, name.as_str(), names),
            Capability::Model(name) => check_name(document, &path, Kind::Model, name.as_str(), names),
            Capability::SourceRead(source) => check_folder(document, &path, source, names),
            Capability::SourceWrite(source) => check_settable(document, &path, source, names),
            Capability::MqttPublish(filter) if filter.as_str().starts_with("$share/") => {
                let what = format!("`{filter}` is a shared subscription, which nothing can be published on");
                document.refuse(&path, what, "write the filter behind `$share/GROUP/` only");
            }
            Capability::MqttPublish(_) | Capability::KeyValue => {}
        }
    }
    for (name, file) in &function.secrets {
        let path = format!("{path}.secrets.{name}");
        check_variable(name, &path, document);
        check_file(document, &path, Some(file));
        if function.settings.environment.contains_key(name) {
            document.refuse_key(&path, format!("`{name}` is in `environment` too"), "keep one of the two");
        }
    }
    check_layers(function.layers.len(), &path, limits, document);
    check_settings(&function.settings, &path, names, limits, document);
}

/// Reports more layers than one function may have.
pub(crate) fn check_layers(count: usize, path: &str, limits: &Limits, document: &mut Document) {
    if count > limits.layers_max {
        let what = format!("there are {count} layers, more than {}", limits.layers_max);
        document.refuse(&join(path, "layers"), what, "put together those that go together anyway");
    }
}

/// Reports what is wrong with the keys that gateway.toml and function.toml share.
pub(crate) fn check_settings(
    settings: &FunctionSettings,
    path: &str,
    names: &Names,
    limits: &Limits,
    document: &mut Document,
) {
    if let Some(timeout) = settings.timeout
        && (timeout.0.is_zero() || timeout > limits.timeout_max)
    {
        let what = format!("{timeout} is not between 1ms and {}", limits.timeout_max);
        document.refuse(&join(path, "timeout"), what, "write for example `timeout = \"3s\"`");
    }
    let page = ByteSize(64 << 10);
    if let Some(memory) = settings.memory
        && (memory < page || memory > limits.memory_max)
    {
        let what = format!("{memory} is not between {page} and {}", limits.memory_max);
        document.refuse(&join(path, "memory"), what, "write for example `memory = \"64 MiB\"`");
    }
    if let Some(concurrency) = settings.concurrency
        && (concurrency == 0 || concurrency > limits.concurrency_max)
    {
        let what = format!("{concurrency} is not between 1 and {}", limits.concurrency_max);
        document.refuse(&join(path, "concurrency"), what, "write for example `concurrency = 4`");
    }
    if settings.retry.is_some_and(|retry| retry.attempts == 0) {
        let hint = "write 1 for no further attempt: the first one counts";
        document.refuse(&join(path, "retry.attempts"), "an event needs at least one attempt", hint);
    }
    if let Some(idempotency) = &settings.idempotency {
        let path = join(path, "idempotency");
        if idempotency.key.is_empty() {
            let hint = "write for example `key = [\"topic\", \"/seq\"]`";
            document.refuse(&join(&path, "key"), "without a part, all events would be the same one", hint);
        }
        if idempotency.window.0.is_zero() || idempotency.window > limits.seen_window_max {
            let what = format!("{} is not between 1ms and {}", idempotency.window, limits.seen_window_max);
            document.refuse(&join(&path, "window"), what, "write for example `window = \"10m\"`");
        }
    }
    for name in settings.environment.keys() {
        check_variable(name, &format!("{path}.environment.{name}"), document);
    }
    let bytes = environment_bytes(&settings.environment);
    if bytes > limits.environment_bytes_max.0 {
        let what = format!("the environment has {bytes} bytes, more than {}", limits.environment_bytes_max);
        document.refuse_key(&join(path, "environment"), what, "keep large settings in a file of the bundle");
    }
    for (key, destinations) in [("on_success", &settings.on_success), ("on_failure", &settings.on_failure)] {
        for (i, destination) in destinations.iter().flatten().enumerate() {
            check_destination(destination, &format!("{}[{i}]", join(path, key)), names, document);
        }
    }
    for (i, trigger) in settings.trigger.iter().flatten().enumerate() {
        check_trigger(trigger, &format!("{}[{i}]", join(path, "trigger")), names, limits, document);
    }
}

/// What the environment costs: names, values, and the two characters around them.
pub(crate) fn environment_bytes(environment: &BTreeMap<String, String>) -> u64 {
    environment.iter().map(|(name, value)| name.len() as u64 + value.len() as u64 + 2).sum()
}

fn check_variable(name: &str, path: &str, document: &mut Document) {
    if name.is_empty() || name.contains(['=', '\0']) {
        document.refuse_key(path, format!("`{name}` cannot be the name of a variable"), "use letters, digits and `_`");
    }
}

fn check_destination(destination: &DestinationConfig, path: &str, names: &Names, document: &mut Document) {
    match destination {
        DestinationConfig::Mqtt(mqtt) => {
            let path = join(path, "mqtt");
            check_broker(document, &join(&path, "broker"), mqtt.broker.as_ref(), names);
            check_template(document, &join(&path, "topic"), &mqtt.topic, &["{gateway}", "{function}"]);
            check_qos(document, &join(&path, "qos"), mqtt.qos);
        }
        DestinationConfig::Stream(name) => {
            check_name(document, &join(path, "stream"), Kind::Stream, name.as_str(), names);
        }
        DestinationConfig::Function(name) => {
            check_name(document, &join(path, "function"), Kind::Function, name.as_str(), names);
        }
    }
}

fn check_trigger(trigger: &TriggerConfig, path: &str, names: &Names, limits: &Limits, document: &mut Document) {
    if let Some(only) = &trigger.only {
        let path = join(path, "only");
        match &trigger.kind {
            TriggerKind::Schedule(_) => {
                let hint = "remove it, and say in `schedule` when the function is to run";
                document.refuse_key(&path, "a timer tells nothing that could be left out", hint);
            }
            TriggerKind::Http(_) => {
                let hint = "remove it, and have the function itself decide what to do";
                document.refuse_key(&path, "who sends a request waits for an answer, so none can be left out", hint);
            }
            _ => only.check(&path, document),
        }
    }
    if let Some(window) = &trigger.window {
        let path = join(path, "window");
        match &trigger.kind {
            TriggerKind::Schedule(_) => {
                let hint = "remove it, and say in `schedule` when the function is to run";
                document.refuse_key(&path, "a timer tells nothing that could be gathered", hint);
            }
            TriggerKind::Http(_) => {
                let hint = "remove it: a function gets each request by itself";
                document.refuse_key(
                    &path,
                    "who sends a request waits for an answer, so none can wait for others",
                    hint,
                );
            }
            _ => window.check(&path, limits, document),
        }
    }
    match &trigger.kind {
        TriggerKind::Mqtt(mqtt) => {
            let path = join(path, "mqtt");
            check_broker(document, &join(&path, "broker"), mqtt.broker.as_ref(), names);
            check_qos(document, &join(&path, "qos"), mqtt.qos);
        }
        TriggerKind::Schedule(schedule) => check_schedule(schedule, &join(path, "schedule"), document),
        TriggerKind::Event(event) => {
            if event.kind.is_empty() {
                let hint = "write the CloudEvents `type`, or `*` for any";
                document.refuse(&join(path, "event.kind"), "the kind is empty, so no event could match", hint);
            }
        }
        TriggerKind::Http(http) => http.check(&join(path, "http"), document),
        TriggerKind::Process(_)
        | TriggerKind::Tail(_)
        | TriggerKind::File(_)
        | TriggerKind::Sysfs(_)
        | TriggerKind::Serial(_)
        | TriggerKind::Modbus(_)
        | TriggerKind::Gpio(_) => {
            let Some((kind, source)) = trigger.kind.source() else { return };
            check_source(document, &format!("{path}.{kind}.source"), kind, source, names);
        }
    }
}

fn check_schedule(schedule: &ScheduleTrigger, path: &str, document: &mut Document) {
    match (&schedule.every, &schedule.cron) {
        (Some(_), Some(_)) => document.refuse_key(path, "it has both `every` and `cron`", "keep one of the two"),
        (None, None) => {
            document.refuse_key(
                path,
                "it has neither `every` nor `cron`",
                "write for example `schedule = { every = \"5m\" }`",
            );
        }
        (Some(every), None) => {
            if every.0 < std::time::Duration::from_millis(1) {
                document.refuse(
                    &join(path, "every"),
                    "the interval is shorter than 1ms",
                    "write for example `every = \"5m\"`",
                );
            }
            if schedule.time_zone.is_some() {
                let what = "an interval is the same in every time zone";
                document.refuse_key(&join(path, "time_zone"), what, "remove it, or use `cron`");
            }
        }
        (None, Some(cron)) => {
            if let Err(error) = cron.parse::<croner::Cron>() {
                let hint = "write second, minute, hour, day, month and weekday, such as `0 */5 * * * *`";
                let what = format!("`{cron}` is not a cron expression: {}", error.to_string().trim_end_matches('.'));
                document.refuse(&join(path, "cron"), what, hint);
            }
        }
    }
    if let Some(zone) = &schedule.time_zone
        && jiff::tz::TimeZone::get(zone).is_err()
    {
        let hint = "write an IANA name such as `Europe/Berlin`, or remove it for the machine's time zone";
        document.refuse(&join(path, "time_zone"), format!("`{zone}` is not a time zone that this machine knows"), hint);
    }
}

/// The labels of outcomes that a test may expect, beside `reject`, which is what the handler says.
const FAILURES: [&str; 8] =
    ["reject", "retry", "rejected", "denied", "timed-out", "trapped", "out-of-memory", "bad-output"];

/// Reports a test that expects what cannot come.
pub(crate) fn check_test(test: &BundleTest, path: &str, document: &mut Document) {
    if let Expectation::Failure(label) = &test.expect
        && !FAILURES.contains(&label.as_str())
    {
        let what = format!("no function ends as `{label}`");
        document.refuse(&join(path, "expect.failure"), what, format!("write {}", list(&FAILURES)));
    }
}

/// What is wrong with functions as they will run: gateway.toml and function.toml together.
pub(crate) fn check_specs(specs: &[(&FunctionSpec, &Place)], names: &Names, gateway: &GatewayName) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (spec, place) in specs {
        let mut refuse = |what: String, hint: String| {
            let key = format!("function[{}]", spec.name);
            problems.push(Problem { place: (*place).clone(), key, what, hint });
        };
        let subscribed = || {
            spec.triggers.iter().filter_map(|trigger| match &trigger.kind {
                TriggerKind::Mqtt(mqtt) => Some(mqtt),
                _ => None,
            })
        };
        check_own_topics(spec, subscribed(), gateway, &mut refuse);
        let publishes = spec.capabilities.0.iter().find(|capability| matches!(capability, Capability::MqttPublish(_)));
        if let Some(capability) = publishes
            && !names.has(Kind::Broker, "local")
            && subscribed().next().is_none()
        {
            let what = format!("it may `{capability}`, but there is no broker `local` to publish to");
            refuse(what, "add `[mqtt.local]` with its `url`, or an `[embedded_broker]`".to_owned());
        }
        check_own_urls(spec, specs, &mut refuse);
        check_own_shapes(spec, specs, &mut refuse);
        if let Some(round) = destination_loop(spec, specs) {
            let round: Vec<String> = round.iter().map(|name| format!("`{name}`")).collect();
            let what = format!("its destinations lead back to it: {}", round.join(" → "));
            refuse(what, "remove one of these `{ function = … }` destinations".to_owned());
        }
    }
    problems
}

/// A request is for one function: each path and method has one trigger.
fn check_own_urls(spec: &FunctionSpec, specs: &[(&FunctionSpec, &Place)], refuse: &mut impl FnMut(String, String)) {
    let urls = |spec: &'_ FunctionSpec| -> Vec<HttpTrigger> {
        let url = |trigger: &TriggerConfig| match &trigger.kind {
            TriggerKind::Http(http) => Some(http.clone()),
            _ => None,
        };
        spec.triggers.iter().filter_map(url).collect()
    };
    let own = urls(spec);
    for (i, url) in own.iter().enumerate() {
        let hint = "give each a path or methods of its own".to_owned();
        if own[..i].iter().any(|other| url.conflicts_with(other)) {
            refuse(format!("it has the function URL `{url}` twice"), hint.clone());
        }
        // The later one is told, once.
        let before = specs.iter().map(|(other, _)| *other).take_while(|other| other.name != spec.name);
        for other in before {
            if let Some(same) = urls(other).iter().find(|other| url.conflicts_with(other)) {
                let what = format!("its function URL `{url}` is one of `{}` already: `{same}`", other.name);
                refuse(what, hint.clone());
            }
        }
    }
}

/// A component that takes requests takes nothing else.
fn check_own_shapes(spec: &FunctionSpec, specs: &[(&FunctionSpec, &Place)], refuse: &mut impl FnMut(String, String)) {
    if !spec.triggers.iter().any(|trigger| trigger.kind.is_wasi_http()) {
        return;
    }
    for trigger in spec.triggers.iter().filter(|trigger| !trigger.kind.is_wasi_http()) {
        let what =
            format!("it takes requests as `wasi-http`, which its trigger `{trigger}` does not make of what it hears");
        refuse(
            what,
            "give the other trigger to a function of its own, or write `event_shape = \"wasi-http\"`".to_owned(),
        );
    }
    let is_it = |to: &DestinationConfig| matches!(to, DestinationConfig::Function(name) if *name == spec.name);
    for (other, _) in specs {
        if other.on_success.iter().chain(&other.on_failure).any(is_it) {
            let what =
                format!("it takes requests as `wasi-http`, and a destination of `{}` hands it events", other.name);
            refuse(what, "hand them to another function".to_owned());
        }
    }
}

/// A function whose results start it again would never rest.
fn check_own_topics<'a>(
    spec: &FunctionSpec,
    triggers: impl Iterator<Item = &'a MqttTrigger>,
    gateway: &GatewayName,
    refuse: &mut impl FnMut(String, String),
) {
    for trigger in triggers {
        for capability in &spec.capabilities.0 {
            if let Capability::MqttPublish(filter) = capability
                && (filter.covers(&trigger.filter) || trigger.filter.covers(filter))
            {
                let what = format!(
                    "it may publish on the topics that it is triggered by: capability `{capability}` and trigger `{}`",
                    trigger.filter
                );
                refuse(what, "publish on other topics, and grant only those".to_owned());
            }
        }
        for destination in spec.on_success.iter().chain(&spec.on_failure) {
            let DestinationConfig::Mqtt(mqtt) = destination else { continue };
            let topic = mqtt.topic.replace("{function}", spec.name.as_str()).replace("{gateway}", gateway.as_str());
            if trigger.filter.matches(&topic)
                && mqtt.broker.as_ref().map_or("local", BrokerName::as_str)
                    == trigger.broker.as_ref().map_or("local", BrokerName::as_str)
            {
                let what =
                    format!("its destination `{topic}` is a topic that it is triggered by: `{}`", trigger.filter);
                refuse(what, "send to another topic".to_owned());
            }
        }
    }
}

/// The way from `start` back to it along function destinations.
fn destination_loop<'a>(
    start: &'a FunctionSpec,
    specs: &[(&'a FunctionSpec, &Place)],
) -> Option<Vec<&'a FunctionName>> {
    let next = |spec: &'a FunctionSpec| {
        spec.on_success.iter().chain(&spec.on_failure).filter_map(|destination| match destination {
            DestinationConfig::Function(name) => Some(name),
            _ => None,
        })
    };
    let mut ways: Vec<Vec<&FunctionName>> = next(start).map(|name| vec![&start.name, name]).collect();
    while let Some(way) = ways.pop() {
        let last = *way.last()?;
        if *last == start.name {
            return Some(way);
        }
        let spec = specs.iter().map(|(spec, _)| *spec).find(|spec| spec.name == *last);
        for name in spec.into_iter().flat_map(next) {
            if *name == start.name || !way.contains(&name) {
                let mut longer = way.clone();
                longer.push(name);
                ways.push(longer);
            }
        }
    }
    None
}
