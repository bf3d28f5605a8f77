//! The absences of docs/architecture.md, and other habits of the house: what nobody sees when it creeps in.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// A name that only some places may use.
struct Home {
    /// As it stands in the code.
    name: &'static str,
    /// Where it may.
    only_in: &'static [&'static str],
    why: &'static str,
}

const HOMES: &[Home] = &[
    Home { name: "wasmtime", only_in: &["agent/src/runtime"], why: "only runtime/ knows wasmtime" },
    Home { name: "ort::", only_in: &["agent/src/inference"], why: "only inference/ knows ONNX Runtime" },
    Home { name: "tract_", only_in: &["agent/src/inference"], why: "only inference/ knows tract" },
    Home { name: "rumqttc::", only_in: &["agent/src/broker"], why: "only broker/ knows the client" },
    Home { name: "rmqtt::", only_in: &["agent/src/broker"], why: "only broker/ knows the embedded broker" },
    Home {
        name: "reqwest::",
        // People's calls of a control plane: its authority pinned, a token, no retries but of uploads.
        only_in: &["agent/src/uplink/http", "agent/src/cli/remote.rs"],
        why: "only the HTTP uplink and people's calls know reqwest",
    },
    Home { name: "tokio_modbus::", only_in: &["agent/src/trigger/modbus"], why: "only modbus/ knows the library" },
    Home { name: "gpiocdev_uapi::", only_in: &["agent/src/trigger/gpio"], why: "only gpio/ knows the library" },
    Home { name: "serial2_tokio::", only_in: &["agent/src/trigger/port.rs"], why: "only port.rs opens ports" },
    Home { name: "axum::", only_in: &["agent/src/api", "agent/src/telemetry/otlp.rs"], why: "only api/ serves HTTP" },
    Home { name: "askama::", only_in: &["agent/src/api/console"], why: "only the console makes pages" },
    Home { name: "clap::", only_in: &["agent/src/cli", "agent/src/main.rs"], why: "only cli/ knows the command line" },
    Home { name: "control_plane::", only_in: &["agent/src/cli/cloud.rs"], why: "a gateway has no control plane in it" },
    Home { name: "SystemTime::now", only_in: &["agent/src/clock.rs"], why: "only clock.rs reads the time" },
    Home { name: "Instant::now", only_in: &["agent/src/clock.rs"], why: "only clock.rs reads the time" },
    Home { name: "env::var", only_in: &["agent/src/config"], why: "only config/ reads the environment" },
    Home {
        name: ".instantiate(",
        only_in: &["agent/src/dispatch", "agent/src/throwaway.rs", "agent/src/runtime"],
        why: "functions are invoked by dispatch only",
    },
    Home { name: "e2e::", only_in: &[], why: "nothing uses the tests" },
];

/// The same for `sync-client`, which hands over what was verified and never installs it.
const HOMES_OF_CLIENT: &[Home] = &[
    Home { name: "wasmtime", only_in: &[], why: "only the agent's runtime/ knows wasmtime" },
    Home { name: "journal", only_in: &[], why: "records come and go with the agent" },
    Home { name: "tidegate::", only_in: &[], why: "the agent uses it, not the other way round" },
    Home { name: "control_plane::", only_in: &[], why: "what both sides share is in sync-protocol" },
    Home { name: "axum::", only_in: &[], why: "it serves nobody" },
    Home {
        name: "reqwest::",
        only_in: &[
            "cloud-sync/client/src/transport.rs",
            "cloud-sync/client/src/session.rs",
            "cloud-sync/client/src/download.rs",
            "cloud-sync/client/src/signing.rs",
            "cloud-sync/client/src/error.rs",
        ],
        why: "only calls know reqwest",
    },
    Home {
        name: "rustls::",
        only_in: &[
            "cloud-sync/client/src/tls.rs",
            "cloud-sync/client/src/signing.rs",
            "cloud-sync/client/src/error.rs",
        ],
        why: "only tls.rs and signing.rs know rustls",
    },
    Home { name: "rcgen::", only_in: &["cloud-sync/client/src/identity.rs"], why: "only identity.rs makes keys" },
    Home { name: "SystemTime::now", only_in: &[], why: "time comes in as an argument" },
    Home { name: "Instant::now", only_in: &[], why: "time comes in as an argument" },
    Home { name: "env::var", only_in: &[], why: "settings come in as an argument" },
];

/// Longest Rust file: past this it is two things.
const LINES_MAX: usize = 600;

fn repository() -> PathBuf {
    e2e::repository()
}

/// Our own files, relative to the repository: those that git knows or would add.
fn files() -> Vec<PathBuf> {
    let listed =
        Command::new("git").args(["ls-files", "-co", "--exclude-standard"]).current_dir(repository()).output().unwrap();
    assert!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let listed = String::from_utf8(listed.stdout).unwrap();
    let files = listed.lines().map(PathBuf::from).filter(|file| !file.starts_with("functions/wit/deps"));
    files.filter(|file| repository().join(file).is_file()).collect()
}

fn text(file: &Path) -> Option<String> {
    String::from_utf8(std::fs::read(repository().join(file)).unwrap()).ok()
}

fn rust_files(under: &str) -> Vec<(PathBuf, String)> {
    let files =
        files().into_iter().filter(|file| file.starts_with(under) && file.extension().is_some_and(|e| e == "rs"));
    files.filter_map(|file| text(&file).map(|text| (file, text))).collect()
}

/// A line as code: without its comment, and nothing of the tests at the end of a file.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().take_while(|(_, line)| line.trim() != "mod tests {");
    lines.map(|(n, line)| (n + 1, line.split("//").next().unwrap_or_default()))
}

fn none(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n{}", found.join("\n"));
}

/// A name that is wrong would fail only where somebody builds for a gateway.
#[test]
fn the_features_of_gateways_are_those_of_the_agent() {
    let manifest = text(Path::new("agent/Cargo.toml")).unwrap();
    let (_, features) = manifest.split_once("[features]").unwrap();
    let known: Vec<&str> = features.lines().map_while(|line| (!line.starts_with('[')).then_some(line)).collect();
    for list in ["cross/features", "cross/features-thin", "cross/features-armv7"] {
        let chosen = text(Path::new(list)).unwrap();
        let chosen = chosen.lines().filter(|line| !line.starts_with('#'));
        let unknown: Vec<_> =
            chosen.filter(|name| !known.iter().any(|line| line.starts_with(&format!("{name} =")))).collect();
        assert!(unknown.is_empty(), "{list} names {unknown:?}, which agent/Cargo.toml does not have");
    }
}

#[test]
fn each_dependency_has_one_home() {
    let mut found = at_home("agent/src", HOMES);
    found.extend(at_home("cloud-sync/client/src", HOMES_OF_CLIENT));
    none("architecture", &found);
}

/// What is named outside its home.
fn at_home(under: &str, homes: &[Home]) -> Vec<String> {
    let mut found = Vec::new();
    for (file, text) in rust_files(under) {
        if file.components().any(|part| part.as_os_str() == "tests" || part.as_os_str() == "tests.rs") {
            continue;
        }
        for (n, line) in code(&text) {
            for home in homes {
                let at = line.find(home.name);
                let whole = at.is_some_and(|at| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'));
                if (whole || home.name.starts_with('.') && at.is_some())
                    && !home.only_in.iter().any(|place| file.starts_with(place))
                {
                    found.push(format!("{}:{n}: {}", file.display(), home.why));
                }
            }
        }
    }
    found
}

/// Which of our crates each of these may use: gateways and the control plane meet in the protocol, and nowhere else.
const MAY_USE: &[(&str, &[&str])] = &[
    ("cloud-sync/protocol", &[]),
    ("cloud-sync/client", &["sync-protocol"]),
    ("cloud-sync/control-plane", &["sync-protocol"]),
];

#[test]
fn the_arrow_of_dependencies_points_one_way() {
    let ours = ["tidegate", "sync-protocol", "sync-client", "control-plane", "function-sdk", "e2e"];
    let mut found = Vec::new();
    for (folder, may_use) in MAY_USE {
        let manifest = text(&Path::new(folder).join("Cargo.toml")).unwrap();
        let (_, dependencies) = manifest.split_once("\n[dependencies]\n").unwrap();
        let dependencies = dependencies.split("\n[").next().unwrap_or_default();
        let names = dependencies.lines().filter_map(|line| line.split(['.', ' ', '=']).next());
        let wrong = names.filter(|name| ours.contains(name) && !may_use.contains(name));
        found.extend(wrong.map(|name| format!("{folder} uses {name}")));
    }
    none("architecture", &found);
}

#[test]
fn files_are_one_thing_each() {
    let mut found = Vec::new();
    for (file, text) in rust_files("") {
        let lines = text.lines().count();
        if lines > LINES_MAX {
            found.push(format!("{}: {lines} lines, more than {LINES_MAX}", file.display()));
        }
    }
    none("too long", &found);
}

/// Nothing of the machine that it was written on, and nothing left for later.
#[test]
fn nothing_is_left_over() {
    // Put together here, so that this file does not find itself.
    let never = [
        ["TO", "DO"].concat(),
        ["FIX", "ME"].concat(),
        ["X", "XX "].concat(),
        ["/ro", "ot/"].concat(),
        ["/wo", "rk/"].concat(),
        ["/ho", "me/"].concat(),
    ];
    let mut found = Vec::new();
    for file in files() {
        let Some(text) = text(&file) else { continue };
        for (n, line) in text.lines().enumerate() {
            for word in never.iter().filter(|word| line.contains(word.as_str())) {
                found.push(format!("{}:{}: `{word}`", file.display(), n + 1));
            }
        }
    }
    none("left over", &found);
}

/// A promise that a test, or a page, cites is one of docs/spec; each is cited by some test.
#[test]
fn promises_are_cited_as_they_are_written() {
    let is_id = |id: &str| {
        let number = id.rsplit_once('-').map(|(word, number)| (word, number.parse::<u32>()));
        number.is_some_and(|(word, number)| {
            !word.is_empty() && number.is_ok() && word.chars().all(|c| c.is_ascii_lowercase() || c == '-')
        })
    };
    let cited = |text: &str| -> Vec<String> {
        text.split('[')
            .skip(1)
            .filter_map(|rest| rest.split_once(']'))
            .map(|(id, _)| id.to_owned())
            .filter(|id| is_id(id))
            .collect()
    };
    let (mut promised, mut elsewhere) = (std::collections::BTreeSet::new(), Vec::new());
    for file in files() {
        let Some(text) = text(&file) else { continue };
        let kind = file.extension().and_then(|kind| kind.to_str()).unwrap_or_default();
        if file.starts_with("docs/spec") && kind == "md" {
            promised.extend(cited(&text));
        } else if kind == "rs" || kind == "md" {
            let lines = text.lines().filter(|line| kind == "md" || line.trim_start().starts_with("//"));
            elsewhere.extend(lines.flat_map(cited).map(|id| (file.clone(), id)));
        }
    }
    let unknown = elsewhere.iter().filter(|(_, id)| !promised.contains(id));
    let unknown: Vec<_> = unknown.map(|(file, id)| format!("{}: [{id}] is not in docs/spec", file.display())).collect();
    none("promises", &unknown);
}
