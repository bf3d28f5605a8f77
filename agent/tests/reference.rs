//! The docs say what the code knows: each key of the config files, each command and each option, and a test for each promise.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

use std::fs;
use std::path::Path;

use clap::CommandFactory;
use tidegate::cli::Args;
use tidegate::config::{Config, Environment, tables};

const GATEWAY: &str = include_str!("../../docs/reference/gateway-toml.md");
const FUNCTION: &str = include_str!("../../docs/reference/function-toml.md");
const COMMANDS: &str = include_str!("../../docs/reference/cli.md");

/// The first block of TOML in a page.
fn example(page: &str) -> &str {
    page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap()
}

#[test]
fn every_key_is_in_the_reference() {
    for (table, keys) in tables() {
        let page = if table.starts_with("function.toml") { FUNCTION } else { GATEWAY };
        for key in keys {
            // A key that is a table has a heading of its own.
            let headings = [format!("`{key}`"), format!("[{key}]"), format!("[{key}.NAME]")];
            assert!(headings.iter().any(|shown| page.contains(shown)), "`{key}` of {table} is not in the reference");
        }
    }
}

#[test]
fn every_command_and_option_is_in_the_reference() {
    let command = Args::command();
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = command.get_name();
        let section = COMMANDS.split("\n## ").find(|section| section.starts_with(&format!("tidegate {name}")));
        let section = section.unwrap_or_else(|| panic!("`tidegate {name}` is not in the reference"));
        are_in(section, command, &format!("tidegate {name}"), "`");
        for verb in command.get_subcommands() {
            let name = format!("tidegate {name} {}", verb.get_name());
            assert!(section.contains(&format!("`{}", verb.get_name())), "`{name}` is not in the reference");
            are_in(section, verb, &name, "");
        }
    }
}

/// All arguments of `command` are in `section`: those of a verb perhaps behind its name.
#[track_caller]
fn are_in(section: &str, command: &clap::Command, name: &str, quote: &str) {
    for option in command.get_arguments().filter(|option| option.get_id() != "help") {
        let value = || option.get_value_names().map_or_else(|| option.get_id().as_str(), |names| names[0].as_str());
        let shown = match option.get_long() {
            Some(long) => format!("`--{long}"),
            None => format!("{quote}{}", value().to_uppercase()),
        };
        assert!(section.contains(&shown), "{shown} of `{name}` is not in the reference");
    }
}

/// The configuration that comes with the package starts as it is.
#[test]
fn the_packaged_config_is_good() {
    let text = include_str!("../../cross/packaging/gateway.toml");
    let config = Config::parse(text, Path::new("/etc/tidegate/gateway.toml"), &Environment::default()).unwrap();
    assert_eq!(config.gateway.state_dir, Path::new("/var/lib/tidegate"));
    assert!(config.mqtt.is_empty() && config.embedded_broker.is_none(), "it takes no broker's port");
}

/// As it stands, on a machine that has the files.
#[test]
fn the_documented_config_is_good() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let files = ["ca.pem", "gateway.pem", "gateway.key", "token", "models/motion.onnx", "models/motion.tests.json"];
    for file in files {
        fs::create_dir_all(dir.join(file).parent().unwrap()).unwrap();
        fs::write(dir.join(file), "x").unwrap();
    }
    let text = example(GATEWAY).replace("/etc/tidegate", &dir.display().to_string());
    let config = Config::parse(&text, &dir.join("gateway.toml"), &Environment::default()).unwrap();
    assert_eq!(config.gateway_name().as_str(), "press-hall-3");
    assert_eq!(config.model[0].file, dir.join("models/motion.onnx"));
    assert_eq!(config.function[0].settings.trigger.as_ref().unwrap().len(), 2);
    assert_eq!(config.function[0].settings.memory.unwrap().to_string(), "64 MiB");
}

#[test]
fn the_documented_manifest_is_good() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("function.toml"), example(FUNCTION)).unwrap();
    let manifest =
        tidegate::store::bundle::read_manifest_of(Path::new(dir.path()), &tidegate::limits::Limits::default()).unwrap();
    assert_eq!(manifest.test.len(), 2);
}

/// The text of all files under `folder` that end in `extension`.
fn text_of(folder: &Path, extension: &str) -> String {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let text = |path: std::path::PathBuf| match path.is_dir() {
        true if path.ends_with("target") => String::new(),
        true => text_of(&path, extension),
        false if path.extension().is_some_and(|found| found == extension) => fs::read_to_string(path).unwrap(),
        false => String::new(),
    };
    entries.map(text).collect()
}

/// All of our code.
fn sources() -> String {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    ["agent/src", "agent/tests", "cloud-sync", "tests"].map(|dir| text_of(&repository.join(dir), "rs")).concat()
}

/// Words in backticks that can be the name of a test.
fn test_names(text: &str) -> Vec<&str> {
    let is_test = |word: &str| {
        word.contains('_') && word.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c.is_ascii_digit())
    };
    text.split('`').skip(1).step_by(2).filter(|word| is_test(word)).collect()
}

#[test]
fn each_line_of_the_threat_model_names_tests_that_exist() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/threat-model.md");
    let (page, sources) = (fs::read_to_string(page).unwrap(), sources());
    let rows = page.lines().filter(|line| line.starts_with("| ") && !line.ends_with("| tests |"));
    let mut count = 0;
    for row in rows {
        let tests = test_names(row.trim_end_matches(" |").rsplit(" | ").next().unwrap());
        assert!(!tests.is_empty(), "no test: {row}");
        let unknown: Vec<_> = tests.iter().filter(|test| !sources.contains(&format!("fn {test}("))).collect();
        assert!(unknown.is_empty(), "tests that are not there: {unknown:?}");
        count += 1;
    }
    assert!(count > 20, "{count}");
}

#[test]
fn each_promise_names_tests_that_exist() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let sources = sources();
    let mut ids = std::collections::HashSet::new();
    for promise in text_of(&repository.join("docs/spec"), "md").split("\n- **[").skip(1) {
        let (id, promise) = promise.split_once("]**").unwrap();
        assert!(ids.insert(id.to_owned()), "two promises are [{id}]");
        let promise = promise.split("\n\n").next().unwrap();
        let (tests, others): (Vec<_>, Vec<_>) =
            test_names(promise).into_iter().partition(|test| sources.contains(&format!("fn {test}(")));
        assert!(!tests.is_empty(), "[{id}] names no test");
        let settings = ["event_bytes_max", "max_age", "max_bytes", "on_failure", "on_success", "when_full"];
        let unknown: Vec<_> = others.into_iter().filter(|word| !settings.contains(word)).collect();
        assert!(unknown.is_empty(), "[{id}] names tests that are not there: {unknown:?}");
    }
    assert!(ids.len() > 50, "{}", ids.len());
}
