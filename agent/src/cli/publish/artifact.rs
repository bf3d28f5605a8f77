//! What is published, as files: a bundle is built, a model packed, native code compiled.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use semver::Version;
use sync_protocol::capability::Capabilities;
use sync_protocol::{Blob, Kind, NativeCode, Release};

use super::{BuildArg, KindArg, PublishArgs, blob_of, now_ms};
use crate::capability::Capability;
use crate::cli::output::Errors;
use crate::cli::{Failure, build};
use crate::limits::Limits;
use crate::name::ArtifactName;
use crate::runtime::precompile;
use crate::store::bundle::MANIFEST;
use crate::store::{Bundle, layers, pack_files};

/// A version that is not signed yet, and its bytes.
pub(super) struct Artifact {
    pub(super) release: Release,
    pub(super) files: Vec<(Blob, PathBuf)>,
    /// Holds what was made on the way.
    _folder: tempfile::TempDir,
}

impl Artifact {
    /// Of what lies at the path on the command line.
    pub(super) async fn make(args: &PublishArgs) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
        let kind = kind(args)?;
        let mut artifact = match kind {
            Kind::Function => function(args, folder).await?,
            Kind::Model => model(args, folder)?,
            Kind::Layer => layer(args, folder)?,
            Kind::Runtime => plain(args, Kind::Runtime, args.path.clone(), folder)?,
            Kind::Agent => agent(args, folder)?,
        };
        artifact.release.minimum.clone_from(&args.minimum);
        if let Some(minimum) = args.minimum.as_ref().filter(|minimum| **minimum > artifact.release.version) {
            let what = format!("the minimum {minimum} is above the version {}", artifact.release.version);
            return Err(Failure::wrong(what, "a version may forbid earlier ones, and itself stays allowed").into());
        }
        if kind != Kind::Function && !args.target.is_empty() {
            return Err(Failure::wrong("only functions are compiled", "leave out `--target`").into());
        }
        if kind != Kind::Agent && !args.build.is_empty() {
            return Err(Failure::wrong("only the agent has builds", "leave out `--build`").into());
        }
        Ok(artifact)
    }
}

/// What the agent is called unless somebody says otherwise.
const AGENT: &str = "tidegate";

/// What it is: as said, or as it looks.
fn kind(args: &PublishArgs) -> Result<Kind, Failure> {
    if let Some(kind) = args.kind {
        return Ok(kind.into());
    }
    let path = &args.path;
    let ends = |end: &str| path.to_string_lossy().ends_with(end);
    if path.join(MANIFEST).is_file() || (path.is_file() && ends(".tar.zst")) {
        Ok(KindArg::Function.into())
    } else if path.is_file() && ends(".onnx") {
        Ok(KindArg::Model.into())
    } else if !path.exists() {
        let what = format!("there is no file or folder `{}`", path.display());
        Err(Failure::wrong(what, "name a function's folder, a bundle, or a model's `.onnx`"))
    } else {
        let what = format!("`{}` could be anything", path.display());
        Err(Failure::wrong(what, "say what it is: `--kind function`, `model`, `layer`, `runtime` or `agent`"))
    }
}

async fn function(args: &PublishArgs, folder: tempfile::TempDir) -> anyhow::Result<Artifact> {
    let file = if args.path.is_dir() {
        let output = Some(folder.path().join("bundle.tar.zst"));
        let (dir, models, layers) = (args.path.clone(), args.models.clone(), args.layers.clone());
        let build = build::BuildArgs { dir, models, layers, no_test: false, output };
        build::bundle(&build).await?.0
    } else {
        args.path.clone()
    };
    let bundle = Bundle::open(&file, folder.path(), &Limits::default()).map_err(crate::cli::wrong_bundle)?;
    let manifest = &bundle.manifest;
    let (name, version) = (ArtifactName::parse(manifest.name.as_str())?, manifest.version.clone());
    for (what, said, there) in [
        ("name", args.name.clone(), name.to_string()),
        ("version", args.version.as_ref().map(ToString::to_string), version.to_string()),
    ] {
        if said.as_ref().is_some_and(|said| *said != there) {
            let what = format!("the function's {what} is `{there}`, by its {MANIFEST}");
            return Err(Failure::wrong(what, format!("change it in {MANIFEST}")).into());
        }
    }
    let model = |capability: &Capability| match capability {
        Capability::Model(model) => ArtifactName::parse(model.as_str()).ok(),
        _ => None,
    };
    let models = manifest.capabilities.iter().filter_map(model).collect();
    let capabilities = Capabilities(manifest.capabilities.clone());
    let mut files = vec![(blob_of(&file)?, file)];
    let mut native = Vec::new();
    if !args.target.is_empty() {
        let unreadable = || format!("cannot read `{}`", bundle.component.display());
        let component = std::fs::read(&bundle.component).with_context(unreadable)?;
        for target in &args.target {
            Errors::progress(&format!("compiling {name} for {target}"));
            let compiled = precompile(&component, target)?;
            let file = folder.path().join(format!("{target}.cwasm"));
            std::fs::write(&file, compiled.code).with_context(|| format!("cannot write `{}`", file.display()))?;
            let blob = blob_of(&file)?;
            native.push(NativeCode { target: target.clone(), compatibility: compiled.compatibility, blob });
            files.push((blob, file));
        }
    }
    let release = Release { capabilities, models, native, ..release(Kind::Function, name, version, files[0].0) };
    Ok(Artifact { release, files, _folder: folder })
}

fn model(args: &PublishArgs, folder: tempfile::TempDir) -> anyhow::Result<Artifact> {
    let beside = args.path.with_extension("tests.json");
    let tests = args.tests.clone().or_else(|| beside.is_file().then_some(beside));
    let mut files = vec![(args.path.clone(), PathBuf::from("model.onnx"))];
    files.extend(tests.map(|tests| (tests, PathBuf::from("model.tests.json"))));
    let file = folder.path().join("model.tar.zst");
    pack_files(&files, &file).with_context(|| format!("cannot pack `{}`", args.path.display()))?;
    plain(args, Kind::Model, file, folder)
}

fn layer(args: &PublishArgs, folder: tempfile::TempDir) -> anyhow::Result<Artifact> {
    if !args.path.is_dir() {
        let what = format!("`{}` is no folder", args.path.display());
        return Err(Failure::wrong(what, "a layer is a folder, mounted as it is").into());
    }
    let file = folder.path().join("layer.tar.zst");
    let files = layers::files(&args.path, &Limits::default())
        .map_err(|error| Failure::wrong(error.to_string(), error.hint()))?;
    pack_files(&files, &file).with_context(|| format!("cannot pack `{}`", args.path.display()))?;
    plain(args, Kind::Layer, file, folder)
}

/// The agent: a binary for each processor that gateways have.
fn agent(args: &PublishArgs, folder: tempfile::TempDir) -> anyhow::Result<Artifact> {
    if args.build.is_empty() {
        let what = format!("it is not said for which gateways `{}` is", args.path.display());
        return Err(Failure::wrong(what, "say it: `--build aarch64-unknown-linux-gnu`").into());
    }
    let (mut native, mut files) = (Vec::new(), Vec::new());
    for BuildArg { target, flavour, file } in &args.build {
        let file = match file {
            Some(file) => file.clone(),
            None if files.iter().any(|(_, file)| *file == args.path) => {
                let hint = format!("name it: `--build {target}=FILE`");
                return Err(Failure::wrong(format!("there is no binary for {target}"), hint).into());
            }
            None => args.path.clone(),
        };
        let blob = blob_of(&file)?;
        native.push(NativeCode { target: target.clone(), compatibility: flavour.clone(), blob });
        files.push((blob, file));
    }
    if !files.iter().any(|(_, file)| *file == args.path) {
        let what = format!("no build is `{}`", args.path.display());
        return Err(Failure::wrong(what, "leave out the `=FILE` of the build that it is").into());
    }
    let (name, version) = named(args, Some(AGENT.to_owned()))?;
    let release = Release { native, ..release(Kind::Agent, name, version, files[0].0) };
    release.check().map_err(|refused| Failure::wrong(refused.to_string(), refused.hint()))?;
    Ok(Artifact { release, files, _folder: folder })
}

/// Something that says neither its name nor its version.
fn plain(args: &PublishArgs, kind: Kind, file: PathBuf, folder: tempfile::TempDir) -> anyhow::Result<Artifact> {
    let stem = args.path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let (name, version) = named(args, stem)?;
    let blob = blob_of(Path::new(&file))?;
    Ok(Artifact { release: release(kind, name, version, blob), files: vec![(blob, file)], _folder: folder })
}

/// Its name, which is `otherwise` unless said, and its version.
fn named(args: &PublishArgs, otherwise: Option<String>) -> Result<(ArtifactName, Version), Failure> {
    let name = ArtifactName::parse(&args.name.clone().or(otherwise).unwrap_or_default())
        .map_err(|error| Failure::wrong(error.to_string(), "name it: `--name motion`"))?;
    let missing = || Failure::wrong(format!("{name} has no version"), "say which it is: `--version 1.0.0`");
    let version = args.version.clone().ok_or_else(missing)?;
    Ok((name, version))
}

fn release(kind: Kind, name: ArtifactName, version: Version, blob: Blob) -> Release {
    Release {
        kind,
        name,
        version,
        blob,
        capabilities: Capabilities::default(),
        models: Vec::new(),
        minimum: None,
        native: Vec::new(),
        published_ms: now_ms(),
    }
}
