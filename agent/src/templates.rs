//! What `tidegate new` writes: files by their path in the new function's folder.

use std::path::PathBuf;

// `RUST_TEMPLATE` and `RUST_SDK`: pairs of path and text, made by build.rs from functions/sdk/rust.
include!(concat!(env!("OUT_DIR"), "/templates.rs"));

/// The files of a new function in Rust: the template with its name filled in, and the SDK beside it.
pub fn rust(name: &str) -> impl Iterator<Item = (PathBuf, String)> {
    let template = RUST_TEMPLATE.iter().map(move |(path, text)| {
        // A file of that name would rule here already.
        let path = if *path == "gitignore" { ".gitignore" } else { path };
        (PathBuf::from(path), text.replace("{{name}}", name))
    });
    let sdk = RUST_SDK.iter().map(|(path, text)| (PathBuf::from("sdk").join(path), (*text).to_owned()));
    template.chain(sdk)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_function_is_complete_and_has_its_name() {
        let files: std::collections::BTreeMap<_, _> = rust("oven-alarm").collect();
        let text = |path: &str| &files[std::path::Path::new(path)];
        assert!(text("function.toml").contains("component = \"oven-alarm.wasm\""));
        assert!(text("Cargo.toml").contains("name = \"oven-alarm\""));
        for path in [".gitignore", "src/lib.rs", "sdk/src/lib.rs", "sdk/macros/src/lib.rs", "sdk/wit/function.wit"] {
            assert!(!text(path).is_empty());
        }
        assert!(files.iter().all(|(path, text)| !text.contains("{{name}}") || path.starts_with("sdk")));
    }
}
