//! What a stranger gets to read when a config, a bundle or a topic is wrong: the exact text, one case per mistake.
//!
//! `DIR` stands for the folder that the files are in.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests say what they expect by unwrapping")]

mod functions;
mod gateway;
mod sources;

use std::fs;
use std::path::Path;

use tidegate::config::{Config, ConfigErrors, Environment};
use tidegate::limits::Limits;
use tidegate::store;

/// The smallest header that is a component.
const COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

const BROKER: &str = "[mqtt.local]\nurl = \"mqtt://127.0.0.1\"\n";

fn shown(errors: &ConfigErrors, dir: &Path) -> String {
    let lines: Vec<String> = errors.0.iter().map(|p| format!("{p}\n  hint: {}\n", p.hint)).collect();
    lines.concat().replace(&format!("{}/", dir.display()), "DIR/").replace(&dir.display().to_string(), "DIR")
}

/// All that is wrong with `gateway`, beside a bundle `f` with `manifest`.
fn problems(gateway: &str, manifest: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::create_dir(dir.join("f")).unwrap();
    fs::write(dir.join("f/function.toml"), manifest).unwrap();
    fs::write(dir.join("f/f.wasm"), COMPONENT).unwrap();
    fs::write(dir.join("f/core.wasm"), b"\0asm\x01\0\0\0").unwrap();
    fs::write(dir.join("secret"), "s3cret\n").unwrap();
    let gateway = format!("gateway.state_dir = \"{}\"\n{gateway}", dir.join("state").display());
    let config = Config::parse(&gateway, &dir.join("gateway.toml"), &Environment::default());
    match config.and_then(|config| store::resolve_all(&config, &Limits::default())) {
        Ok(_) => "nothing is wrong\n".to_owned(),
        Err(errors) => shown(&errors, dir),
    }
}

const MANIFEST: &str = "name = \"f\"\nversion = \"1.0.0\"\nruntime = \"wasm\"\ncomponent = \"f.wasm\"\n";

#[track_caller]
fn check(gateway: &str, expected: &str) {
    assert_eq!(problems(gateway, MANIFEST), expected, "\n{gateway}");
}

/// A function `f` with the lines of `keys`, beside a broker `local`.
#[track_caller]
fn check_function(keys: &str, expected: &str) {
    check(&format!("{BROKER}[[function]]\nname = \"f\"\nbundle = \"f\"\n{keys}"), expected);
}

/// A bundle whose function.toml says `manifest`.
#[track_caller]
fn check_bundle(manifest: &str, expected: &str) {
    assert_eq!(problems("[[function]]\nname = \"f\"\nbundle = \"f\"\n", manifest), expected, "\n{manifest}");
}
