//! Puts the Rust SDK and the template of a new function into the binary, so that `tidegate new` needs nothing beside it.

#![allow(clippy::print_stdout, reason = "that is how a build script talks to cargo")]
#![allow(clippy::disallowed_methods, reason = "and cargo to it")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let package = env::var_os("CARGO_MANIFEST_DIR").ok_or_else(|| io::Error::other("cargo sets CARGO_MANIFEST_DIR"))?;
    let sdk = Path::new(&package).join("../functions/sdk/rust").canonicalize()?;
    let mut source = String::new();
    for (name, folder) in [("RUST_TEMPLATE", sdk.join("template")), ("RUST_SDK", sdk)] {
        println!("cargo::rerun-if-changed={}", folder.display());
        let mut files = Vec::new();
        collect(&folder, &folder, &mut files)?;
        files.sort();
        writeln!(
            source,
            "/// Files, by their path in the folder that it makes.\npub const {name}: &[(&str, &str)] = &["
        )
        .map_err(io::Error::other)?;
        for file in files {
            let path = folder.join(&file);
            writeln!(source, "    ({file:?}, include_str!({path:?})),").map_err(io::Error::other)?;
        }
        source.push_str("];\n");
    }
    let out = env::var_os("OUT_DIR").map(PathBuf::from).ok_or_else(|| io::Error::other("cargo sets OUT_DIR"))?;
    fs::write(out.join("templates.rs"), source)
}

/// Files below `folder`, relative to `root`; links are followed, the template is not part of the SDK.
fn collect(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let relative = path.strip_prefix(root).map_err(io::Error::other)?;
        if relative == Path::new("template") || relative == Path::new("target") {
            continue;
        }
        if path.is_dir() {
            collect(root, &path, files)?;
        } else {
            files.push(relative.to_path_buf());
        }
    }
    Ok(())
}
