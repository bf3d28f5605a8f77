//! The components of the examples are in the repository: they are what their source says, or this fails.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

const REBUILD: &str = "run `functions/build-examples`, and commit what it writes";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sha256(data: &[u8]) -> String {
    Sha256::digest(data).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

/// Digest of a source or of a component, as the lock has it.
fn locked(name: &str, part: &str) -> String {
    let lock = fs::read_to_string(repository().join("functions/examples/components.lock")).unwrap();
    let line = lock.lines().find_map(|line| line.strip_prefix(&format!("{name} {part} ")));
    line.unwrap_or_else(|| panic!("no {part} of `{name}` in components.lock: {REBUILD}")).to_owned()
}

/// The same digest that functions/build-examples makes, over lines as sha256sum writes them.
fn source_digest(name: &str) -> String {
    let example = format!("functions/examples/{name}");
    let mut files = Vec::new();
    for part in
        ["functions/wit", "functions/sdk/rust/Cargo.toml", "functions/sdk/rust/src", "functions/sdk/rust/macros"]
    {
        collect(part, &mut files);
    }
    collect(&format!("{example}/Cargo.toml"), &mut files);
    collect(&format!("{example}/src"), &mut files);
    files.sort();
    let lines = files.iter().fold(String::new(), |mut lines, file| {
        writeln!(lines, "{}  {file}", sha256(&fs::read(repository().join(file)).unwrap())).unwrap();
        lines
    });
    sha256(lines.as_bytes())
}

fn collect(part: &str, files: &mut Vec<String>) {
    let path = repository().join(part);
    if path.is_file() {
        files.push(part.to_owned());
        return;
    }
    for entry in fs::read_dir(path).unwrap() {
        collect(&format!("{part}/{}", entry.unwrap().file_name().to_str().unwrap()), files);
    }
}

#[test]
fn the_components_of_the_examples_are_those_of_their_source() {
    let mut examples = 0;
    for entry in fs::read_dir(repository().join("functions/examples")).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.is_dir() {
            continue;
        }
        let name = folder.file_name().unwrap().to_str().unwrap();
        assert_eq!(source_digest(name), locked(name, "source"), "the source of `{name}` has changed: {REBUILD}");

        let component = fs::read(folder.join(format!("{name}.wasm"))).unwrap();
        assert_eq!(sha256(&component), locked(name, "component"), "{name}.wasm is not the locked one: {REBUILD}");
        assert!(wasmparser::Parser::is_component(&component), "{name}.wasm is no component: {REBUILD}");
        examples += 1;
    }
    assert!(examples >= 3, "the examples are gone");
}
