//! Mistakes of gateway.toml outside of its functions.

use super::check;

#[test]
fn a_text_that_is_not_toml() {
    check(
        r#"[mqtt.local
url = "mqtt://127.0.0.1"
[api
"#,
        r#"DIR/gateway.toml:2:12: unclosed table, expected `]`
  hint: this is not TOML: strings are in quotes, a table starts with [NAME], one of a list with [[NAME]]
DIR/gateway.toml:4:5: unclosed table, expected `]`
  hint: this is not TOML: strings are in quotes, a table starts with [NAME], one of a list with [[NAME]]
"#,
    );
}

#[test]
fn an_unknown_key_names_the_nearest() {
    check(
        r#"[mqtt.local]
url = "mqtt://127.0.0.1"
usrname = "me"
[gatway]
name = "a"
"#,
        r#"DIR/gateway.toml:4:1: mqtt.local.usrname: unknown key `usrname`
  hint: did you mean `username`?
DIR/gateway.toml:5:2: gatway: unknown key `gatway`
  hint: did you mean `gateway`?
"#,
    );
}

#[test]
fn a_broker_without_url() {
    check(
        r#"[mqtt.local]
version = 4
"#,
        r#"DIR/gateway.toml:2:7: mqtt.local: `url` is missing
  hint: add `url = "mqtt://127.0.0.1:1883"`
"#,
    );
}

#[test]
fn a_credential_that_the_service_lacks() {
    check(
        r#"[mqtt.local]
url = "mqtt://127.0.0.1"
username = "me"
password_file = "credential:local"
"#,
        r#"DIR/gateway.toml:5:17: mqtt.local.password_file: the service has no credential `local`
  hint: say `LoadCredential=local:FILE` in the unit, `systemctl edit tidegate`, and restart it
"#,
    );
}

#[test]
fn a_scheme_that_is_not_mqtts() {
    check(
        r#"[mqtt.local]
url = "http://broker"
"#,
        r#"DIR/gateway.toml:3:7: mqtt.local.url: `http://` is not a scheme that the agent speaks
  hint: write `mqtt://HOST:PORT`, or `mqtts://HOST:PORT` for TLS
"#,
    );
}

#[test]
fn a_url_without_scheme() {
    check(
        r#"[mqtt.local]
url = "broker:1883"
"#,
        r#"DIR/gateway.toml:3:7: mqtt.local.url: `broker:1883` has no scheme
  hint: write `mqtt://HOST:PORT`, or `mqtts://HOST:PORT` for TLS
"#,
    );
}

#[test]
fn a_url_with_a_password() {
    check(
        r#"[mqtt.local]
url = "mqtt://me:secret@broker"
"#,
        r#"DIR/gateway.toml:3:7: mqtt.local.url: the url has a user name in it
  hint: write `username` and `password_file` instead: a config file is no place for passwords
"#,
    );
}

#[test]
fn a_port_that_is_none() {
    check(
        r#"[mqtt.local]
url = "mqtt://broker:99999"
version = 4
"#,
        r#"DIR/gateway.toml:3:7: mqtt.local.url: `mqtt://broker:99999` has a port that is not between 1 and 65535
  hint: write `mqtt://HOST:PORT`, or `mqtts://HOST:PORT` for TLS
DIR/gateway.toml:4:11: mqtt.local.version: 4 is not a version of MQTT
  hint: write 5, or 3 for MQTT 3.1.1
"#,
    );
}

#[test]
fn a_certificate_that_is_not_there() {
    check(
        r#"[mqtt.local]
url = "mqtts://broker"
ca = "ca.pem"
cert = "secret"
"#,
        r#"DIR/gateway.toml:4:6: mqtt.local.ca: there is no file `DIR/ca.pem`
  hint: create it, or correct the path: a relative one starts at the folder of this file
DIR/gateway.toml:5:1: mqtt.local.cert: there is a `cert`, but no `key`
  hint: add `key = "FILE.pem"`
"#,
    );
}

#[test]
fn tls_files_without_tls() {
    check(
        r#"[mqtt.local]
url = "mqtt://broker"
ca = "secret"
password_file = "secret"
"#,
        r#"DIR/gateway.toml:4:1: mqtt.local.ca: `ca` is for TLS, but the url is not `mqtts://`
  hint: write `mqtts://` in `url`
DIR/gateway.toml:5:1: mqtt.local.password_file: there is a password, but no user name
  hint: add `username = "…"`
"#,
    );
}

#[test]
fn two_local_brokers() {
    check(
        r#"[embedded_broker]
listen = "0.0.0.0:1883"
[mqtt.local]
url = "mqtt://127.0.0.1"
"#,
        r#"DIR/gateway.toml:3:10: embedded_broker.listen: anyone who reaches 0.0.0.0:1883 could publish and subscribe to anything
  hint: listen on 127.0.0.1, or add `[embedded_broker.users.NAME]` with its `password_file`
DIR/gateway.toml:4:7: mqtt.local: `[embedded_broker]` is already the broker `local`
  hint: remove one of the two, or give this broker another name
"#,
    );
}

#[test]
fn an_api_that_anyone_could_call() {
    check(
        r#"[api]
listen = "0.0.0.0:8470"
"#,
        r#"DIR/gateway.toml:3:10: api.listen: anyone who reaches 0.0.0.0:8470 could invoke functions
  hint: listen on 127.0.0.1, or add `token_file = "FILE"` with a secret of your choice
"#,
    );
}

#[test]
fn an_address_without_port() {
    check(
        r#"[api]
listen = "localhost"
"#,
        r#"DIR/gateway.toml:3:10: api.listen: `localhost` is neither ADDRESS:PORT nor `off`
  hint: write for example `"127.0.0.1:8470"`
"#,
    );
}

#[test]
fn a_log_level_and_a_share() {
    check(
        r#"[log]
level = "loud=="
format = "xml"
[trace]
otlp = "127.0.0.1"
sample = 10
"#,
        r#"DIR/gateway.toml:4:10: log.format: `xml` is not known here
  hint: write `"auto"`, `"text"` or `"json"`
DIR/gateway.toml:6:8: trace.otlp: `127.0.0.1` is not a URL of OTLP over HTTP
  hint: write for example `otlp = "http://127.0.0.1:4318/v1/traces"`
DIR/gateway.toml:7:10: trace.sample: 10 is not a share
  hint: write a number from 0.0 (none) to 1.0 (all)
"#,
    );
}

#[test]
fn a_stream_that_cannot_hold_a_record() {
    check(
        r#"[stream.readings]
max_bytes = "64"
max_age = 7
priority = 300
[stream.small]
max_bytes = "1 kB"
batch = { max_records = 0 }
"#,
        r#"DIR/gateway.toml:3:13: stream.readings.max_bytes: `64` is not a size: write a number and a unit, such as `64 MiB`, `512 KiB` or `1 GB`
  hint: write for example `"64 MiB"`
DIR/gateway.toml:4:11: stream.readings.max_age: the number 7 is not a duration with its unit, in quotes
  hint: write `max_age = "3s"`
DIR/gateway.toml:5:12: stream.readings.priority: 300 is not between 0 and 255
  hint: write a number in that range
DIR/gateway.toml:7:13: stream.small.max_bytes: 1 kB has no room for one record, which may have 1 MiB
  hint: write at least `max_bytes = "8 MiB"`
DIR/gateway.toml:8:25: stream.small.batch.max_records: a batch needs at least one record
  hint: write 1 or more
"#,
    );
}

#[test]
fn an_uplink_to_nowhere() {
    check(
        r#"[stream.readings]
uplink = { mqtt = "clod", topic = "site/{gateway}/{steam}" }
[mqtt.cloud]
url = "mqtt://127.0.0.1"
"#,
        r#"DIR/gateway.toml:3:19: stream.readings.uplink.mqtt: there is no broker `clod`
  hint: did you mean `cloud`? Otherwise add `[mqtt.clod]` with its `url` to gateway.toml
DIR/gateway.toml:3:35: stream.readings.uplink.topic: topic `site/{gateway}/{steam}` has a placeholder that is not known here
  hint: write it without braces, or with `{gateway}` or `{stream}`
"#,
    );
}

#[test]
fn an_uplink_to_a_control_plane_that_is_not_there() {
    check(
        r#"[stream.readings]
uplink = { cloud = true }
"#,
        r#"DIR/gateway.toml:3:20: stream.readings.uplink.cloud: there is no control plane to send to
  hint: add `[cloud]` with its `url` to gateway.toml
"#,
    );
}

#[test]
fn a_control_plane_that_cannot_be() {
    check(
        r#"[cloud]
url = "http://cloud.example"
cert = "secret"
report_every = "10ms"
"#,
        r#"DIR/gateway.toml:3:7: cloud.url: `http://cloud.example` is not `https://`: who this gateway is, is told over TLS only
  hint: write `https://HOST:PORT`
DIR/gateway.toml:4:1: cloud.cert: there is a `cert`, but no `key`
  hint: add `key = "FILE.pem"`
DIR/gateway.toml:4:1: cloud.cert: without a claim token nothing says whose deployments to trust
  hint: add `root = "root.json"`, the first root document of `tidegate keygen`
DIR/gateway.toml:5:16: cloud.report_every: 10ms is shorter than 1s
  hint: write for example `report_every = "15m"`
"#,
    );
}

#[test]
fn an_uplink_to_a_server_that_cannot_be() {
    check(
        r#"[stream.a]
uplink = { http = "mqtt://cloud" }
[stream.b]
uplink = { http = "http://cloud.example/{streams}", token_file = "secret", ca = "secret", max_rate = "0/s" }
[stream.c]
uplink = { http = "https://cloud.example", cert = "secret", max_rate = "64 KiB" }
[stream.d]
uplink = { http = "https://cloud.example", topic = "a" }
[stream.e]
uplink = { http = "https://cloud.example", mqtt = "cloud", topic = "a" }
[stream.f]
uplink = { max_rate = "100/s" }
drain = "newest-first"
"#,
        r#"DIR/gateway.toml:3:19: stream.a.uplink.http: `mqtt://cloud` is not a URL of HTTP
  hint: write `https://HOST/PATH`
DIR/gateway.toml:5:19: stream.b.uplink.http: `http://cloud.example/{streams}` has a placeholder that is not known here
  hint: write it without braces, or with `{gateway}` or `{stream}`
DIR/gateway.toml:5:53: stream.b.uplink.token_file: the token would travel in the clear to `cloud.example`
  hint: write `https://` in `http`
DIR/gateway.toml:5:76: stream.b.uplink.ca: `ca` is for TLS, but the url is not `https://`
  hint: write `https://` in `http`
DIR/gateway.toml:5:102: stream.b.uplink.max_rate: nothing would ever leave
  hint: write for example `max_rate = "64 KiB/s"`, or remove it
DIR/gateway.toml:7:72: stream.c.uplink.max_rate: `64 KiB` is neither a size nor a number of records per second, such as `64 KiB/s` or `100/s`
  hint: write for example `"64 KiB/s"`
DIR/gateway.toml:9:44: stream.d.uplink.topic: unknown key `topic`
  hint: known here: `mqtt`, `http`, `cloud`, `max_rate`, `token_file`, `ca`, `cert` or `key`
DIR/gateway.toml:11:1: stream.e.uplink: it names more than one of `mqtt`, `http` and `cloud`
  hint: a stream has one uplink: keep one of them
DIR/gateway.toml:11:60: stream.e.uplink.topic: unknown key `topic`
  hint: known here: `mqtt`, `http`, `cloud` or `max_rate`
DIR/gateway.toml:13:1: stream.f.uplink: it names neither `mqtt` nor `http` nor `cloud`
  hint: add `mqtt = "cloud"` with its `topic`, `http = "https://…"`, or `cloud = true`
DIR/gateway.toml:14:9: stream.f.drain: `newest-first` is not known here
  hint: write `"in-order"` or `"live-first"`
"#,
    );
}

#[test]
fn a_name_with_capitals() {
    check(
        r#"[stream.Readings]
"#,
        r#"DIR/gateway.toml:2:1: stream.Readings: `Readings` is not a stream name: it must be 1 to 64 of `a-z`, `0-9`, `-` and `_`, and start with a letter or digit
  hint: write for example `"readings"`
"#,
    );
}

#[test]
fn a_model_without_file() {
    check(
        r#"[[model]]
name = "motion"
file = "motion.onnx"
[[model]]
name = "motion"
file = "secret"
concurrency = 0
"#,
        r#"DIR/gateway.toml:2:1: model[motion].concurrency: a model needs at least one run at a time
  hint: write 1 or more
DIR/gateway.toml:4:8: model[motion].file: there is no file `DIR/motion.onnx`
  hint: create it, or correct the path: a relative one starts at the folder of this file
DIR/gateway.toml:5:1: model[1]: `motion` is already the name of the model in line 2
  hint: give each its own name
"#,
    );
}

#[test]
fn a_durability_that_is_none() {
    check(
        r#"[stream.a]
durability = "never"
when_full = "block"
"#,
        r#"DIR/gateway.toml:3:14: stream.a.durability: `never` is neither `each` nor a duration such as `1s`
  hint: write for example `"each"`
DIR/gateway.toml:4:13: stream.a.when_full: `block` is not known here
  hint: write `"drop-oldest"` or `"reject"`
"#,
    );
}
