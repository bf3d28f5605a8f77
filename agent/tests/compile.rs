//! Components that are compiled in a process of its own: what comes of it, and what does not.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use tempfile::TempDir;
use tidegate::clock::Clock;
use tidegate::function::FunctionSpec;
use tidegate::hint::Told;
use tidegate::inference::Models;
use tidegate::journal::{Journal, JournalConfig};
use tidegate::limits::Limits;
use tidegate::runtime::{Chance, Compiler, Runtime, RuntimeConfig, Services};
use tidegate::store::resolve_alone;
use tidegate::units::{ByteSize, Span};

/// A runtime in a folder of its own.
struct Site {
    runtime: Runtime,
    folder: TempDir,
}

impl Site {
    fn new(compiler: Compiler, limits: Limits) -> Self {
        Self::within(tempfile::tempdir().unwrap(), compiler, limits)
    }

    fn within(folder: TempDir, compiler: Compiler, limits: Limits) -> Self {
        let (limits, clock) = (Arc::new(limits), Clock::system());
        let journal = JournalConfig { streams: BTreeMap::new(), limits: Arc::clone(&limits) };
        let journal = Arc::new(Journal::open(&folder.path().join("journal"), journal, clock.clone()).unwrap());
        let services =
            Services { models: Arc::new(Models::default()), journal, clock, limits, chance: Chance::default() };
        let config = RuntimeConfig {
            cache_dir: Some(folder.path().join("code")),
            instances_max: 4,
            compiler,
            ..RuntimeConfig::default()
        };
        Self { runtime: Runtime::new(config, services).unwrap(), folder }
    }

    /// Name and bytes of all compiled code, whole or not.
    fn code(&self) -> Vec<(String, Vec<u8>)> {
        let files = fs::read_dir(self.folder.path().join("code")).unwrap().map(Result::unwrap);
        files.map(|file| (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap())).collect()
    }

    /// Why a function cannot be loaded, in all words.
    async fn why(&self, spec: FunctionSpec) -> String {
        match self.runtime.load(Arc::new(spec)).await {
            Ok(_) => panic!("it was loaded"),
            Err(error) => Told::of(&error.into()).text(),
        }
    }
}

/// The program that compiles: the one that gateways run.
fn tidegate() -> Compiler {
    Compiler::Apart(PathBuf::from(env!("CARGO_BIN_EXE_tidegate")))
}

/// One that does what `script` says instead. Another process writes it: a file that this one writes may be open in a child of another
/// test when it is to be run.
fn instead(folder: &Path, script: &str) -> Compiler {
    let file = folder.join("instead");
    let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" >\"$2\" && chmod 755 \"$2\"";
    assert!(Command::new("sh").args(["-c", write, "sh", script]).arg(&file).status().unwrap().success());
    Compiler::Apart(file)
}

fn fahrenheit(folder: &Path) -> FunctionSpec {
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../functions/examples/fahrenheit");
    resolve_alone(&bundle, &[], folder, &Limits::default()).unwrap().spec
}

/// A function of one component.
fn function(folder: &Path, component: &[u8]) -> FunctionSpec {
    fs::write(
        folder.join("function.toml"),
        "name = \"it\"\nversion = \"1.0.0\"\nruntime = \"wasm\"\ncomponent = \"it.wasm\"\n",
    )
    .unwrap();
    fs::write(folder.join("it.wasm"), component).unwrap();
    resolve_alone(folder, &[], folder, &Limits::default()).unwrap().spec
}

#[tokio::test]
async fn code_of_a_process_of_its_own_is_the_same_and_is_kept() {
    let (here, apart) = (Site::new(Compiler::Here, Limits::default()), Site::new(tidegate(), Limits::default()));
    for site in [&here, &apart] {
        site.runtime.load(Arc::new(fahrenheit(site.folder.path()))).await.unwrap();
        assert_eq!(site.runtime.code_counts().compiled, 1);
    }
    assert_eq!(here.code().len(), 1);
    assert!(here.code() == apart.code(), "the same code under the same name");

    let nobody = Compiler::Apart(PathBuf::from("/nobody"));
    let Site { runtime, folder } = apart;
    drop(runtime);
    let again = Site::within(folder, nobody, Limits::default());
    again.runtime.load(Arc::new(fahrenheit(again.folder.path()))).await.unwrap();
    assert_eq!(again.runtime.code_counts().compiled, 0);
}

/// What the compiler says reaches whoever wanted it, in the words that it has in the same process.
#[tokio::test]
async fn a_component_that_does_not_compile_is_refused_with_the_reason() {
    let broken = b"\0asm\x0d\0\x01\0\xff\xff";
    let mut told = Vec::new();
    for compiler in [Compiler::Here, tidegate()] {
        let site = Site::new(compiler, Limits::default());
        let spec = function(site.folder.path(), broken);
        told.push(site.why(spec).await.replace(&site.folder.path().display().to_string(), "FOLDER"));
        assert_eq!(site.code().len(), 0);
    }
    assert!(told[0].contains("component `FOLDER/it.wasm` of function `it` does not compile: "), "{told:?}");
    assert_eq!(told[0], told[1]);
}

/// The process ends, and nothing else: what is smaller still compiles.
#[tokio::test]
async fn a_component_that_takes_too_much_memory_is_refused_and_others_are_compiled() {
    let limits = Limits { compile_bytes_max: ByteSize::mib(96), ..Limits::default() };
    let site = Site::new(tidegate(), limits);
    let body = "(local.set 0 (i32.mul (i32.add (local.get 0) (local.get 1)) (i32.load (local.get 0))))".repeat(60_000);
    let large = format!("(component (core module (memory 1) (func (param i32 i32) {body})))");
    let why = site.why(function(site.folder.path(), &wat::parse_str(large).unwrap())).await;
    assert!(why.contains("of function `it` took more than 96 MiB of memory, and was given up"), "{why}");
    assert!(why.contains("hint: compile it elsewhere: `tidegate publish --target "), "{why}");
    assert_eq!(site.code().len(), 0, "nothing is left of it");
    site.runtime.load(Arc::new(fahrenheit(site.folder.path()))).await.unwrap();
}

#[tokio::test]
async fn a_process_that_takes_too_long_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let compiler = instead(folder.path(), "exec sleep 1000");
    let limits = Limits { compile_max: Span::parse("50ms").unwrap(), ..Limits::default() };
    let site = Site::within(folder, compiler, limits);
    let why = site.why(fahrenheit(site.folder.path())).await;
    assert!(why.contains("took longer than 50ms, and was given up"), "{why}");
    assert_eq!(site.code().len(), 0);
}

/// As the kernel does when the machine has no memory left.
#[tokio::test]
async fn a_process_that_is_killed_had_no_memory() {
    let folder = tempfile::tempdir().unwrap();
    let compiler = instead(folder.path(), "kill -9 $$");
    let site = Site::within(folder, compiler, Limits::default());
    let why = site.why(fahrenheit(site.folder.path())).await;
    assert!(why.contains("of memory, and was given up"), "{why}");
}

/// Neither half of the code, nor what is none, is run.
#[tokio::test]
async fn what_is_no_code_is_not_loaded_and_not_kept() {
    for (script, said) in [("echo half; exit 1", "ended by exit status: 1"), ("echo none", "does not compile")] {
        let folder = tempfile::tempdir().unwrap();
        let compiler = instead(folder.path(), script);
        let site = Site::within(folder, compiler, Limits::default());
        let why = site.why(fahrenheit(site.folder.path())).await;
        assert!(why.contains(said), "{script}: {why}");
        assert_eq!(site.code().len(), 0);
    }
}

#[tokio::test]
async fn a_process_that_cannot_be_started_is_told() {
    let site = Site::new(Compiler::Apart(PathBuf::from("/nobody")), Limits::default());
    let why = site.why(fahrenheit(site.folder.path())).await;
    assert!(why.contains("function `fahrenheit` cannot be compiled in a process of its own: No such file"), "{why}");
}
