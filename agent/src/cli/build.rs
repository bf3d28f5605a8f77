//! `tidegate build`: compiles a function, makes a component of it, runs its tests, and packs the bundle.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;

use super::Failure;
use super::output::{self, Errors, Output};
use super::throwaway::{self, ModelArg};
use crate::componentize::componentize;
use crate::config::Manifest;
use crate::limits::Limits;
use crate::store::bundle::{MANIFEST, read_manifest_of};
use crate::store::{pack, resolve_alone};

/// cargo for functions, as a shell script.
const CARGO_WASM: &str = include_str!("../../../cross/guest/cargo-wasm");

/// Builds a function, runs its tests, and packs its bundle
#[derive(Debug, clap::Args)]
pub(super) struct BuildArgs {
    /// The function's folder, with its function.toml
    #[arg(default_value = ".")]
    pub(super) dir: PathBuf,
    /// A model that the tests run; `models/NAME.onnx` of the folder unless said
    #[arg(long = "model", value_name = "NAME=FILE")]
    pub(super) models: Vec<ModelArg>,
    /// A folder, or a `.tar.zst` of one, that the tests see at `/opt`; later ones over earlier ones
    #[arg(long = "layer", value_name = "PATH")]
    pub(super) layers: Vec<PathBuf>,
    /// Make the bundle without running its tests
    #[arg(long)]
    pub(super) no_test: bool,
    /// Where the bundle file goes; `NAME-VERSION.tar.zst` in the folder unless said
    #[arg(long, short, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
}

pub(super) async fn run(args: &BuildArgs) -> anyhow::Result<()> {
    let (file, bytes) = bundle(args).await?;
    Ok(Output::line(&format!("{} ({})", file.display(), output::size(bytes)))?)
}

/// Makes the bundle file, and says how many bytes it has.
pub(super) async fn bundle(args: &BuildArgs) -> anyhow::Result<(PathBuf, u64)> {
    super::needs_compiler("building a function compiles it")?;
    let limits = Limits::default();
    let manifest = read_manifest_of(&args.dir, &limits)?;
    if args.dir.join("Cargo.toml").is_file() {
        Errors::progress(&format!("compiling `{}`", manifest.name));
        let core = compile(&args.dir)?;
        let component = componentize(&core).map_err(|error| {
            let hint = error.hint();
            Failure::failed(format!("cannot make a component of `{}`", manifest.name), hint).caused_by(error)
        })?;
        let file = component_file(&manifest, &args.dir)?;
        fs::write(&file, component).with_context(|| format!("cannot write `{}`", file.display()))?;
    }
    test(args, &limits).await?;
    let file = match &args.output {
        Some(file) => file.clone(),
        None => args.dir.join(format!("{}-{}.tar.zst", manifest.name, manifest.version)),
    };
    let bytes = pack(&args.dir, &file).with_context(|| format!("cannot write bundle `{}`", file.display()))?;
    Ok((file, bytes))
}

/// Where the manifest wants the component.
fn component_file(manifest: &Manifest, dir: &Path) -> Result<PathBuf, Failure> {
    let hint = format!("add `component = \"{}.wasm\"` to {MANIFEST}", manifest.name);
    let file = manifest
        .component
        .clone()
        .ok_or_else(|| Failure::wrong(format!("{MANIFEST} of `{}` names no component", manifest.name), hint))?;
    let root = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
    if file.parent().is_some_and(|parent| parent.starts_with(&root))
        && file.components().all(|c| c != std::path::Component::ParentDir)
    {
        Ok(file)
    } else {
        let what = format!("component `{}` is outside of the function's folder", file.display());
        Err(Failure::wrong(what, "write a file name without `..`"))
    }
}

/// Compiles the crate in `dir` for WebAssembly; what the compiler says goes to stderr.
fn compile(dir: &Path) -> anyhow::Result<Vec<u8>> {
    let mut cargo_wasm = tempfile::NamedTempFile::new().context("cannot make a temporary file")?;
    cargo_wasm.write_all(CARGO_WASM.as_bytes()).context("cannot write a temporary file")?;
    let output = Command::new("sh")
        .arg(cargo_wasm.path())
        .args(["build", "--release", "--lib", "--message-format=json-render-diagnostics"])
        .current_dir(dir)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run `sh`")?;
    if !output.status.success() {
        let hint = "the compiler says above what is wrong; Rust comes from https://rustup.rs";
        return Err(Failure::failed(format!("`{}` does not compile", dir.display()), hint).into());
    }
    let module = built_module(&output.stdout).ok_or_else(|| {
        let hint = "add `[lib]` with `crate-type = [\"cdylib\"]` to its Cargo.toml";
        Failure::failed(format!("`{}` compiles to no WebAssembly module", dir.display()), hint)
    })?;
    fs::read(&module).with_context(|| format!("cannot read `{}`", module.display()))
}

/// The module among what cargo says that it made: the last one, because dependencies come first.
fn built_module(messages: &[u8]) -> Option<PathBuf> {
    let messages = messages.split(|byte| *byte == b'\n').rev();
    messages.filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok()).find_map(|message| {
        let files = message.get("filenames")?.as_array()?;
        files.iter().filter_map(|file| file.as_str()).find(|file| file.ends_with(".wasm")).map(PathBuf::from)
    })
}

/// Loads the function, which checks what it imports and exports, and runs its tests.
async fn test(args: &BuildArgs, limits: &Limits) -> anyhow::Result<()> {
    let state = tempfile::tempdir().context("cannot make a temporary folder")?;
    let resolved = resolve_alone(&args.dir, &args.layers, state.path(), limits).map_err(super::wrong_bundle)?;
    let tests = resolved.bundle.manifest.test.clone();
    let function = throwaway::start(resolved, &args.models).await?;
    if args.no_test {
        return Ok(());
    }
    let mut failed = 0;
    for test in &tests {
        let name = test.event.strip_prefix(function.root()).unwrap_or(&test.event).display();
        match function.test(test).await? {
            Ok(()) => Errors::progress(&format!("test {name} … ok")),
            Err(why) => {
                failed += 1;
                Errors::line(&format!("test {name} … failed\n  {}", why.replace('\n', "\n  ")));
            }
        }
    }
    if failed > 0 {
        let what = format!("{failed} of {} tests failed, so no bundle was made", tests.len());
        return Err(Failure::failed(what, "correct the function, or the expected results in its function.toml").into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_is_found_among_cargos_messages() {
        let messages = br#"{"reason":"compiler-artifact","filenames":["/t/libserde.rlib"]}
{"reason":"compiler-artifact","filenames":["/t/double.wasm"]}
{"reason":"build-finished","success":true}
"#;
        assert_eq!(built_module(messages), Some(PathBuf::from("/t/double.wasm")));
        assert_eq!(built_module(b"{}\n"), None);
    }
}
