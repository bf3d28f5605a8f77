//! Mistakes of functions and bundles.

use std::path::Path;

use tidegate::config::Config;

use super::{check, check_bundle, check_function, shown};

#[test]
fn a_timeout_without_unit() {
    check_function(
        r#"timeout = 3
memory = "64MB"
concurrency = 0
"#,
        r#"DIR/gateway.toml:7:11: function[f].timeout: the number 3 is not a duration with its unit, in quotes
  hint: write `timeout = "3s"`
DIR/gateway.toml:9:15: function[f].concurrency: 0 is not between 1 and 256
  hint: write for example `concurrency = 4`
"#,
    );
}

#[test]
fn a_timeout_past_the_limit() {
    check_function(
        r#"timeout = "1h"
memory = "1 kB"
retry = { attempts = 0 }
isolation = "cold"
"#,
        r#"DIR/gateway.toml:7:11: function[f].timeout: 1h is not between 1ms and 15m
  hint: write for example `timeout = "3s"`
DIR/gateway.toml:8:10: function[f].memory: 1 kB is not between 64 KiB and 4 GiB
  hint: write for example `memory = "64 MiB"`
DIR/gateway.toml:9:22: function[f].retry.attempts: an event needs at least one attempt
  hint: write 1 for no further attempt: the first one counts
DIR/gateway.toml:10:13: function[f].isolation: `cold` is not known here
  hint: write `"warm"` or `"fresh"`
"#,
    );
}

#[test]
fn a_capability_that_is_none() {
    check_function(
        r#"capabilities = ["mqtt:publsh:a", "stream:readings", "model:motion", "mqtt:publish:a#"]
"#,
        r#"DIR/gateway.toml:7:17: function[f].capabilities[0]: unknown capability `mqtt:publsh:a`: it must be `mqtt:publish:FILTER`, `stream:NAME`, `model:NAME`, `source:NAME:read`, `source:NAME:write` or `keyvalue`
  hint: write for example `"mqtt:publish:results/#"`
DIR/gateway.toml:7:69: function[f].capabilities[3]: capability `mqtt:publish:a#` has a malformed topic filter: filter `a#` is malformed: `+` must be a whole level, `#` must be the whole last level
  hint: write for example `"mqtt:publish:results/#"`
"#,
    );
}

#[test]
fn a_trigger_on_an_unknown_broker() {
    check_function(
        r#"trigger = [{ mqtt = { filter = "a/#", broker = "locl", qos = 3 } }]
"#,
        r#"DIR/gateway.toml:7:48: function[f].trigger[0].mqtt.broker: there is no broker `locl`
  hint: did you mean `local`? Otherwise add `[mqtt.locl]` with its `url` to gateway.toml
DIR/gateway.toml:7:62: function[f].trigger[0].mqtt.qos: 3 is not a quality of service
  hint: write 0 (at most once), 1 (at least once) or 2 (as 1 here; exactly once between broker and agent)
"#,
    );
}

#[test]
fn a_malformed_filter() {
    check_function(
        r#"trigger = [{ mqtt = { filter = "sensors/#/temp" } }]
"#,
        r#"DIR/gateway.toml:7:32: function[f].trigger[0].mqtt.filter: filter `sensors/#/temp` is malformed: `+` must be a whole level, `#` must be the whole last level
  hint: write for example `"sensors/+/temp"`
"#,
    );
}

#[test]
fn a_trigger_of_a_later_version() {
    check_function(
        r#"trigger = [{ opcua = { node = "a" } }, { mqqt = { filter = "a" } }, { schedule = {}, mqtt = { filter = "a" } }]
"#,
        r#"DIR/gateway.toml:7:14: function[f].trigger[0].opcua: `opcua` is not available in this version
  hint: remove it; this version knows `only`, `window`, `mqtt`, `schedule`, `event`, `http`, `process`, `tail`, `file`, `sysfs`, `serial`, `modbus` or `gpio`
DIR/gateway.toml:7:42: function[f].trigger[1].mqqt: unknown key `mqqt`
  hint: did you mean `mqtt`?
DIR/gateway.toml:7:69: function[f].trigger[2]: it has `mqtt` and `schedule`, but must have exactly one
  hint: write one of `mqtt`, `schedule`, `event`, `http`, `process`, `tail`, `file`, `sysfs`, `serial`, `modbus` or `gpio`
"#,
    );
}

#[test]
fn a_filter_that_cannot_be_read() {
    check_function(
        r#"trigger = [
    { mqtt = { filter = "a" }, only = { changed = "temperature", at_most = "often" } },
    { mqtt = { filter = "b" }, only = { changd = "/t", deadband = "2" } },
]
"#,
        r#"DIR/gateway.toml:8:51: function[f].trigger[0].only.changed: `temperature` is no field: it must be a JSON pointer, or `payload` for all of it
  hint: write for example `"/temperature"`
DIR/gateway.toml:8:76: function[f].trigger[0].only.at_most: `often` is not a number of events in a time, such as `1/s`, `10/m` or `1/15m`
  hint: write for example `"1/s"`
DIR/gateway.toml:9:41: function[f].trigger[1].only.changd: unknown key `changd`
  hint: did you mean `changed`?
DIR/gateway.toml:9:67: function[f].trigger[1].only.deadband: `2` is neither a number nor a percentage in quotes
  hint: write for example `"2%"`
"#,
    );
}

#[test]
fn a_filter_that_leaves_out_nothing_or_is_where_none_can_be() {
    check_function(
        r#"trigger = [
    { mqtt = { filter = "a" }, only = {} },
    { mqtt = { filter = "b" }, only = { deadband = 1 } },
    { mqtt = { filter = "d" }, only = { changed = "/t", deadband = -1, per = "id" } },
    { schedule = { every = "1s" }, only = { at_most = "1/m" } },
    { http = { path = "/f" }, only = { at_most = "1/m" } },
]
"#,
        r#"DIR/gateway.toml:8:32: function[f].trigger[0].only: it has neither `changed` nor `at_most`, so it would leave nothing out
  hint: write for example `only = { changed = "/temperature" }` or `only = { at_most = "1/s" }`
DIR/gateway.toml:9:41: function[f].trigger[1].only.deadband: without `changed` there is nothing that it could be about
  hint: add `changed` with the field, such as `changed = "/temperature"`
DIR/gateway.toml:10:68: function[f].trigger[2].only.deadband: -1 is not a distance
  hint: write a number above 0, such as `deadband = 0.5` or `deadband = "2%"`
DIR/gateway.toml:10:78: function[f].trigger[2].only.per: each event has an `id` of its own, so there would be nothing to compare with
  hint: write for example `per = "topic"` or `per = "/sensor"`
DIR/gateway.toml:11:36: function[f].trigger[3].only: a timer tells nothing that could be left out
  hint: remove it, and say in `schedule` when the function is to run
DIR/gateway.toml:12:31: function[f].trigger[4].only: who sends a request waits for an answer, so none can be left out
  hint: remove it, and have the function itself decide what to do
"#,
    );
}

#[test]
fn windows_that_cannot_be_or_are_where_none_can_be() {
    check_function(
        r#"trigger = [
    { mqtt = { filter = "a" }, window = {} },
    { mqtt = { filter = "b" }, window = { count = 1, per = "id" } },
    { mqtt = { filter = "c" }, window = { time = "0s", every = 5 } },
    { mqtt = { filter = "d" }, window = { count = 50, every = 50 } },
    { schedule = { every = "1s" }, window = { count = 60 } },
    { http = { path = "/f" }, window = { count = 2 } },
]
"#,
        r#"DIR/gateway.toml:8:32: function[f].trigger[0].window: it has neither `count` nor `time`, so no window would ever be full
  hint: write for example `window = { count = 50 }` or `window = { time = "10s" }`
DIR/gateway.toml:9:51: function[f].trigger[1].window.count: a window cannot have 1 events
  hint: write a number from 2 to 5000, or remove `window` to get each event by itself
DIR/gateway.toml:9:60: function[f].trigger[1].window.per: each event has an `id` of its own, so each would have a window of its own
  hint: write for example `per = "topic"` or `per = "/sensor"`
DIR/gateway.toml:10:50: function[f].trigger[2].window.time: a window must be at least 1ms long
  hint: write for example `time = "10s"`
DIR/gateway.toml:10:64: function[f].trigger[2].window.every: there is no `count` of which it could be a part
  hint: write a part of `count` such as `every = 10`, a part of `time` such as `every = "10s"`, or remove it
DIR/gateway.toml:11:63: function[f].trigger[3].window.every: 50 events are not less than a window of 50
  hint: write a part of `count` such as `every = 10`, a part of `time` such as `every = "10s"`, or remove it
DIR/gateway.toml:12:36: function[f].trigger[4].window: a timer tells nothing that could be gathered
  hint: remove it, and say in `schedule` when the function is to run
DIR/gateway.toml:13:31: function[f].trigger[5].window: who sends a request waits for an answer, so none can wait for others
  hint: remove it: a function gets each request by itself
"#,
    );
}

#[test]
fn sources_that_are_not_there_or_of_another_kind() {
    check_function(
        r#"trigger = [{ tail = { source = "radio" } }, { process = { source = "rado" } }]
[source.radio]
process = { command = ["rtl_433"] }
[source.nothing]
process = { command = [] }
"#,
        r#"DIR/gateway.toml:7:32: function[f].trigger[0].tail.source: source `radio` is a `process`, and no `tail`
  hint: write `process = { source = "radio" }`, or name another source
DIR/gateway.toml:7:68: function[f].trigger[1].process.source: there is no source `rado`
  hint: did you mean `radio`? Otherwise add `[source.rado]` to gateway.toml
DIR/gateway.toml:11:23: source.nothing.process.command: the command names no program
  hint: write for example `command = ["rtl_433", "-F", "json"]`
"#,
    );
}

#[test]
fn folders_that_no_file_can_come_into() {
    check_function(
        r#"capabilities = ["source:radio:read", "source:inbx:read"]
[source.radio]
process = { command = ["rtl_433"] }
[source.inbox]
file = { folder = "inbox", on = [], min_size = "2 KiB", max_size = "1 KiB", include = [""] }
[source.outbox]
file = { folder = "outbox", on = [], min_size = "2 KiB", max_size = "1 KiB" }
"#,
        r#"DIR/gateway.toml:7:17: function[f].capabilities[0]: source `radio` is a `process`, which has no folder that could be read
  hint: name a source of the kind `file`
DIR/gateway.toml:7:38: function[f].capabilities[1]: there is no source `inbx`
  hint: did you mean `inbox`? Otherwise add `[source.inbx]` to gateway.toml
DIR/gateway.toml:11:88: source.inbox.file.include[0]: a pattern that is empty is for no file
  hint: write for example `"*.csv"`
DIR/gateway.toml:13:34: source.outbox.file.on: without a change there would be no events
  hint: write for example `on = ["created"]`, or remove it
DIR/gateway.toml:13:69: source.outbox.file.max_size: 1 KiB is less than `min_size`, 2 KiB: no file could match
  hint: write a larger one, or remove one of the two
"#,
    );
}

#[test]
fn sensors_that_mean_nothing() {
    check_function(
        r#"
[source.none]
sysfs = { every = "1ms" }
[source.both]
sysfs = { preset = "thermal", files = ["/sys/x"], unit = "K" }
[source.never]
sysfs = { preset = "iio", above = 5, below = 5.5, hysteresis = -1 }
"#,
        r#"DIR/gateway.toml:9:1: source.none.sysfs: it has neither `preset` nor `files`
  hint: write for example `preset = "thermal"`, or `files = ["/sys/class/thermal/*/temp"]`
DIR/gateway.toml:9:19: source.none.sysfs.every: 1ms is shorter than 10ms
  hint: write for example `every = "10s"`
DIR/gateway.toml:11:1: source.both.sysfs: it has both `preset` and `files`
  hint: keep one of the two
DIR/gateway.toml:11:1: source.both.sysfs: a preset has units of its own
  hint: remove `scale`, `offset` and `unit`, or name the `files`
DIR/gateway.toml:13:46: source.never.sysfs.below: 5.5 is not less than `above`, 5: no value could be normal
  hint: write a smaller one
DIR/gateway.toml:13:64: source.never.sysfs.hysteresis: it is less than nothing
  hint: write for example `hysteresis = 2.0`
"#,
    );
}

#[test]
fn schedules_that_mean_nothing() {
    check_function(
        r#"trigger = [{ schedule = { every = "5m", cron = "* * * * *" } }, { schedule = {} }, { schedule = { cron = "61 * * * *", time_zone = "Mars/Base" } }]
"#,
        r#"DIR/gateway.toml:7:14: function[f].trigger[0].schedule: it has both `every` and `cron`
  hint: keep one of the two
DIR/gateway.toml:7:67: function[f].trigger[1].schedule: it has neither `every` nor `cron`
  hint: write for example `schedule = { every = "5m" }`
DIR/gateway.toml:7:106: function[f].trigger[2].schedule.cron: `61 * * * *` is not a cron expression: Component error: Number out of bounds
  hint: write second, minute, hour, day, month and weekday, such as `0 */5 * * * *`
DIR/gateway.toml:7:132: function[f].trigger[2].schedule.time_zone: `Mars/Base` is not a time zone that this machine knows
  hint: write an IANA name such as `Europe/Berlin`, or remove it for the machine's time zone
"#,
    );
}

#[test]
fn a_destination_that_is_not_there() {
    check_function(
        r#"on_success = [{ stream = "reading" }, { mqtt = { topic = "a/+" } }, { function = "g" }, { stream = "dead-letters" }, { mqtt = { topic = "{site}/a" } }]
[stream.readings]
"#,
        r#"DIR/gateway.toml:7:26: function[f].on_success[0].stream: there is no stream `reading`
  hint: did you mean `readings`? Otherwise add `[stream.reading]` to gateway.toml
DIR/gateway.toml:7:58: function[f].on_success[1].mqtt.topic: topic `a/+` contains a wildcard (`+` or `#`), which only a filter may
  hint: write a topic without wildcards, such as `results/{gateway}`
DIR/gateway.toml:7:82: function[f].on_success[2].function: there is no function `g`
  hint: add a `[[function]]` with `name = "g"` to gateway.toml, or name one that is there: `f`
DIR/gateway.toml:7:100: function[f].on_success[3].stream: stream `dead-letters` is written by the agent only
  hint: name a stream of your own: every event that is given up on becomes a dead letter anyway
DIR/gateway.toml:7:137: function[f].on_success[4].mqtt.topic: topic `{site}/a` has a placeholder that is not known here
  hint: write it without braces, or with `{gateway}` or `{function}`
"#,
    );
}

#[test]
fn a_secret_beside_a_variable() {
    check_function(
        r#"environment = { A = "AAAA" }
secrets = { A = "secret", B = "missing" }
"#,
        r#"DIR/gateway.toml:8:13: function[f].secrets.A: `A` is in `environment` too
  hint: keep one of the two
DIR/gateway.toml:8:31: function[f].secrets.B: there is no file `DIR/missing`
  hint: create it, or correct the path: a relative one starts at the folder of this file
"#,
    );
}

#[test]
fn a_function_that_would_trigger_itself() {
    check_function(
        r#"capabilities = ["mqtt:publish:a/#"]
trigger = [{ mqtt = { filter = "a/b" } }]
on_success = [{ mqtt = { topic = "a/b" } }]
"#,
        r#"DIR/gateway.toml:4:1: function[f]: it may publish on the topics that it is triggered by: capability `mqtt:publish:a/#` and trigger `a/b`
  hint: publish on other topics, and grant only those
DIR/gateway.toml:4:1: function[f]: its destination `a/b` is a topic that it is triggered by: `a/b`
  hint: send to another topic
"#,
    );
}

#[test]
fn itself_as_destination() {
    check_function(
        r#"on_success = [{ function = "f" }]
"#,
        r#"DIR/gateway.toml:4:1: function[f]: its destinations lead back to it: `f` → `f`
  hint: remove one of these `{ function = … }` destinations
"#,
    );
}

#[test]
fn a_function_url_that_cannot_be_meant() {
    check_function(
        r#"trigger = [{ http = { path = "orders" } }, { http = { path = "/b", methods = ["GETT"] } }]
"#,
        r#"DIR/gateway.toml:7:30: function[f].trigger[0].http.path: `orders` is not the path of a function URL: it begins with `/`
  hint: write for example `"/orders/{id}"`
DIR/gateway.toml:7:79: function[f].trigger[1].http.methods[0]: `GETT` is not known here
  hint: write `"GET"`, `"HEAD"`, `"POST"`, `"PUT"`, `"PATCH"`, `"DELETE"` or `"OPTIONS"`
"#,
    );
}

#[test]
fn settings_of_a_later_version() {
    check_function(
        r#"event_shape = "payload"
"#,
        r#"DIR/gateway.toml:7:1: function[f].event_shape: `event_shape` is not available in this version
  hint: remove it; this version knows `name`, `bundle`, `capabilities`, `secrets`, `layers`, `timeout`, `memory`, `concurrency`, `isolation`, `environment`, `retry`, `idempotency`, `order`, `on_success`, `on_failure` or `trigger`
"#,
    );
}

#[test]
fn layers_that_are_not_there_or_too_many() {
    check_function(
        r#"layers = ["nowhere"]
"#,
        r#"DIR/gateway.toml:4:1: function[f].layers: there is no layer `DIR/nowhere`
  hint: correct the path: a layer is a folder, or a `.tar.zst` of one
"#,
    );
    check_function(
        r#"layers = ["1", "2", "3", "4", "5", "6"]
"#,
        r#"DIR/gateway.toml:7:10: function[f].layers: there are 6 layers, more than 5
  hint: put together those that go together anyway
"#,
    );
}

#[test]
fn the_same_name_twice() {
    check_function(
        r#"[[function]]
name = "f"
bundle = "f"
"#,
        r#"DIR/gateway.toml:7:1: function[1]: `f` is already the name of the function in line 4
  hint: give each its own name
"#,
    );
}

#[test]
fn a_bundle_that_is_not_there() {
    check(
        r#"[[function]]
name = "g"
bundle = "functions/g"
"#,
        r#"DIR/gateway.toml:2:1: function[g].bundle: there is no bundle `DIR/functions/g`
  hint: correct the path, or make it with `tidegate build` (`tidegate new g` starts one)
"#,
    );
}

#[test]
fn a_bundle_that_is_no_bundle() {
    check(
        r#"[[function]]
name = "g"
bundle = "secret"
"#,
        r#"DIR/gateway.toml:2:1: function[g].bundle: `DIR/secret` is neither a folder nor a `.tar.zst` file
  hint: name the folder that holds function.toml, or what `tidegate build` made of it
"#,
    );
}

#[test]
fn a_manifest_with_everything_missing() {
    check_bundle(
        r#"component = "f.wasm"
"#,
        r#"DIR/f/function.toml:1:1: `name` is missing
  hint: add `name = "fahrenheit"`
DIR/f/function.toml:1:1: `version` is missing
  hint: add `version = "1.0.0"`
DIR/f/function.toml:1:1: `runtime` is missing
  hint: add `runtime = "wasm"`
"#,
    );
}

#[test]
fn a_version_that_is_none() {
    check_bundle(
        r#"name = "f"
version = "1"
runtime = "python"
component = "f.wasm"
"#,
        r#"DIR/f/function.toml:2:11: version: `1` is not a version of three numbers
  hint: write for example `"1.0.0"`
DIR/f/function.toml:3:11: runtime: `python` is not available in this version
  hint: write `"wasm"`
"#,
    );
}

#[test]
fn a_component_outside() {
    check_bundle(
        r#"name = "f"
version = "1.0.0"
runtime = "wasm"
component = "../secret"
"#,
        r#"DIR/f/function.toml:4:13: component: `../secret` is outside of the bundle
  hint: put the file into the bundle's folder, and write its path from there
"#,
    );
}

#[test]
fn a_component_not_built() {
    check_bundle(
        r#"name = "f"
version = "1.0.0"
runtime = "wasm"
component = "g.wasm"
[[test]]
event = "events/a.json"
expect = { failure = "explode" }
"#,
        r#"DIR/f/function.toml:4:13: component: there is no file `g.wasm` in the bundle
  hint: run `tidegate build`, or correct the path
DIR/f/function.toml:6:9: test[0].event: there is no file `events/a.json` in the bundle
  hint: run `tidegate build`, or correct the path
DIR/f/function.toml:7:22: test[0].expect.failure: no function ends as `explode`
  hint: write `reject`, `retry`, `rejected`, `denied`, `timed-out`, `trapped`, `out-of-memory` or `bad-output`
"#,
    );
}

#[test]
fn a_core_module() {
    check_bundle(
        r#"name = "f"
version = "1.0.0"
runtime = "wasm"
component = "core.wasm"
timout = "3s"
"#,
        r#"DIR/f/function.toml:4:13: component: it is a core WebAssembly module, not a component
  hint: make a component of it with `tidegate build`, or with `wasm-tools component new`
DIR/f/function.toml:5:1: timout: unknown key `timout`
  hint: did you mean `timeout`?
"#,
    );
}

#[test]
fn text_as_component() {
    check_bundle(
        r#"name = "f"
version = "1.0.0"
runtime = "wasm"
component = "function.toml"
"#,
        r#"DIR/f/function.toml:4:13: component: it is not WebAssembly
  hint: build it again with `tidegate build`
"#,
    );
}

#[test]
fn a_trigger_of_the_bundle() {
    check_bundle(
        r#"name = "f"
version = "1.0.0"
runtime = "wasm"
component = "f.wasm"
[[trigger]]
mqtt = { filter = "a" }
"#,
        r#"DIR/f/function.toml:6:8: trigger[0].mqtt.broker: there is no broker `local`
  hint: add `[mqtt.local]` with its `url` to gateway.toml
"#,
    );
}

#[test]
fn an_environment_past_its_limit() {
    check_function(
        &format!("environment = {{ A = \"{}\" }}\n", "x".repeat(5000)),
        r#"DIR/gateway.toml:7:1: function[f].environment: the environment has 5003 bytes, more than 4 KiB
  hint: keep large settings in a file of the bundle
"#,
    );
}

#[test]
fn a_publisher_without_a_broker() {
    check(
        "[[function]]\nname = \"f\"\nbundle = \"f\"\ncapabilities = [\"mqtt:publish:a/#\"]\n",
        r#"DIR/gateway.toml:2:1: function[f]: it may `mqtt:publish:a/#`, but there is no broker `local` to publish to
  hint: add `[mqtt.local]` with its `url`, or an `[embedded_broker]`
"#,
    );
}

#[test]
fn a_config_that_is_not_there() {
    let error = Config::load(Path::new("nowhere/gateway.toml")).unwrap_err();
    assert_eq!(
        shown(&error, Path::new("?")),
        r#"nowhere/gateway.toml: there is no such file
  hint: name the file with `--config FILE`; the getting-started guide has one to copy
"#,
    );
}

#[test]
fn what_a_component_of_wasi_http_cannot_have() {
    check(
        r#"[mqtt.local]
url = "mqtt://127.0.0.1"
[[function]]
name = "f"
bundle = "f"
trigger = [
    { http = { path = "/f", event_shape = "wasi-http" } },
    { http = { path = "/g", methods = ["GET"] } },
    { mqtt = { filter = "a" } },
]
[[function]]
name = "g"
bundle = "f"
on_success = [{ function = "f" }]
"#,
        r#"DIR/gateway.toml:4:1: function[f]: it takes requests as `wasi-http`, which its trigger `http GET /g` does not make of what it hears
  hint: give the other trigger to a function of its own, or write `event_shape = "wasi-http"`
DIR/gateway.toml:4:1: function[f]: it takes requests as `wasi-http`, which its trigger `mqtt local a` does not make of what it hears
  hint: give the other trigger to a function of its own, or write `event_shape = "wasi-http"`
DIR/gateway.toml:4:1: function[f]: it takes requests as `wasi-http`, and a destination of `g` hands it events
  hint: hand them to another function
"#,
    );
}
