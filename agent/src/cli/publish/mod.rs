//! `tidegate publish`: makes a version of something, signs it and gives it to the registry.

mod artifact;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use semver::Version;
use serde::Deserialize;
use serde_json::json;
use sync_protocol::{Blob, Envelope, Kind, Release, Role};

use self::artifact::Artifact;
use super::Failure;
use super::output::{Output, size};
use super::remote::{CloudArgs, Method, Remote};
use super::signing::{self, KeyArgs};
use super::throwaway::ModelArg;
use crate::clock::Clock;
use crate::name::{AliasName, ArtifactName};

/// Signs a version of a function, model, layer, runtime or of the agent itself, and gives it to the control plane
#[derive(Debug, clap::Args)]
pub(super) struct PublishArgs {
    /// A function's folder or bundle, a model's `.onnx`, a layer's folder, a runtime's `.wasm`, or the agent's binary for the first `--build`
    path: PathBuf,
    /// What it is; seen by PATH unless said
    #[arg(long, value_enum)]
    kind: Option<KindArg>,
    /// Its name; a function's is in its manifest
    #[arg(long)]
    name: Option<String>,
    /// Its version; a function's is in its manifest
    #[arg(long)]
    version: Option<Version>,
    /// Inputs and expected outputs that gateways try a model with; `NAME.tests.json` beside it unless said
    #[arg(long, value_name = "FILE")]
    tests: Option<PathBuf>,
    /// A model that a function's tests run
    #[arg(long = "model", value_name = "NAME=FILE")]
    models: Vec<ModelArg>,
    /// A folder, or a `.tar.zst` of one, that a function's tests see at `/opt`; later ones over earlier ones
    #[arg(long = "layer", value_name = "PATH")]
    layers: Vec<PathBuf>,
    /// Compile a function for this processor too, so that gateways need not
    #[arg(long, value_name = "TRIPLE")]
    target: Vec<String>,
    /// For which gateways PATH is (agents), or another binary: `aarch64-unknown-linux-gnu`, or `TRIPLE/thin` of one without a compiler
    #[arg(long, value_name = "TRIPLE[=FILE]")]
    build: Vec<BuildArg>,
    /// Once this version runs, none below VERSION runs there again: for one that mends a hole
    #[arg(long, value_name = "VERSION")]
    minimum: Option<Version>,
    /// A name that from now on means this version: `live`
    #[arg(long)]
    alias: Vec<String>,
    /// What is to be remembered of this version
    #[arg(long, value_name = "KEY=VALUE")]
    tag: Vec<Tag>,
    /// Write the signed version to FILE instead of giving it to the control plane: for others to sign
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Go on from a signed version that `--out` wrote: add your signature
    #[arg(long, value_name = "FILE")]
    release: Option<PathBuf>,
    #[command(flatten)]
    signers: KeyArgs,
    #[command(flatten)]
    cloud: CloudArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum KindArg {
    Function,
    Model,
    Layer,
    Runtime,
    Agent,
}

impl From<KindArg> for Kind {
    fn from(kind: KindArg) -> Self {
        match kind {
            KindArg::Function => Self::Function,
            KindArg::Model => Self::Model,
            KindArg::Layer => Self::Layer,
            KindArg::Runtime => Self::Runtime,
            KindArg::Agent => Self::Agent,
        }
    }
}

/// `KEY=VALUE`.
#[derive(Clone, Debug)]
struct Tag(String, String);

impl FromStr for Tag {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not KEY=VALUE"))?;
        Ok(Self(key.to_owned(), value.to_owned()))
    }
}

/// `TRIPLE`, `TRIPLE/FLAVOUR`, each perhaps with `=FILE`.
#[derive(Clone, Debug)]
struct BuildArg {
    target: String,
    flavour: String,
    file: Option<PathBuf>,
}

impl FromStr for BuildArg {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (which, file) = text.split_once('=').map_or((text, None), |(which, file)| (which, Some(file.into())));
        let (target, flavour) = which.split_once('/').unwrap_or((which, "full"));
        if target.split('-').count() < 3 || !["full", "thin"].contains(&flavour) {
            return Err(format!(
                "`{which}` is neither TRIPLE nor TRIPLE/thin, such as `aarch64-unknown-linux-gnu/thin`"
            ));
        }
        Ok(Self { target: target.to_owned(), flavour: flavour.to_owned(), file })
    }
}

/// A release in a list of the registry.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Listed {
    /// What its publishers signed.
    pub(super) envelope: Envelope,
}

pub(super) async fn run(args: &PublishArgs) -> anyhow::Result<()> {
    let aliases = args.alias.iter().map(|alias| AliasName::parse(alias)).collect::<Result<Vec<_>, _>>();
    let aliases = aliases.map_err(|error| Failure::wrong(error.to_string(), "for example `--alias live`"))?;
    let artifact = Artifact::make(args).await?;
    let (kind, name, version) =
        (artifact.release.kind, artifact.release.name.clone(), artifact.release.version.clone());
    let what = format!("{kind} {name} {version}");
    if let Some(out) = &args.out {
        let envelope = signing::sign(&artifact.release, &args.signers.load(Role::Publisher)?)?;
        signing::write_envelope(out, &envelope)?;
        let (out, path) = (out.display(), args.path.display());
        Output::line(&format!(
            "{out} is {what}, signed; `tidegate publish {path} --release {out}` adds another publisher's and publishes it"
        ))?;
        return Ok(());
    }
    let remote = Remote::new(&args.cloud)?;
    let there = published(&remote, kind, &name, &version).await?;
    if let Some(there) = there {
        same(&there, &artifact.release, &what)?;
        Output::line(&format!("{what} is published already, with the same content"))?;
    } else {
        let envelope = envelope(args, &artifact)?;
        for (blob, file) in &artifact.files {
            remote.upload(blob, file, &what).await?;
        }
        remote.call(Method::POST, "releases", &envelope).await?;
        let bytes: u64 = artifact.files.iter().map(|(blob, _)| blob.bytes).sum();
        Output::line(&format!("published {what} ({})", size(bytes)))?;
    }
    for alias in aliases {
        let path = format!("aliases/{kind}/{name}/{alias}");
        remote.call(Method::PUT, &path, &json!({ "version": version })).await?;
        Output::line(&format!("{alias} means {name} {version}"))?;
    }
    if !args.tag.is_empty() {
        let tags: BTreeMap<&str, &str> =
            args.tag.iter().map(|Tag(key, value)| (key.as_str(), value.as_str())).collect();
        remote.call(Method::PUT, &format!("tags/{kind}/{name}/{version}"), &json!({ "tags": tags })).await?;
    }
    Ok(())
}

/// The signed version: as it was handed over with one signature more, or a new one.
fn envelope(args: &PublishArgs, artifact: &Artifact) -> anyhow::Result<Envelope> {
    let Some(file) = &args.release else {
        return signing::sign(&artifact.release, &args.signers.load(Role::Publisher)?);
    };
    let mut envelope = signing::read_envelope(file)?;
    let signed: Release = envelope.unverified().map_err(|error| {
        Failure::wrong(format!("`{}` is no version: {error}", file.display()), "name what `--out` wrote")
    })?;
    same(&signed, &artifact.release, &format!("`{}`", file.display()))?;
    for key in args.signers.load(Role::Publisher)? {
        envelope.add_signature(&key)?;
    }
    Ok(envelope)
}

/// A version of the registry, when it is there.
pub(super) async fn published(
    remote: &Remote,
    kind: Kind,
    name: &ArtifactName,
    version: &Version,
) -> anyhow::Result<Option<Release>> {
    let listed: Vec<Listed> = remote.list(&format!("releases?kind={kind}&name={name}")).await?;
    let releases = listed.iter().filter_map(|listed| listed.envelope.unverified::<Release>().ok());
    Ok(releases.into_iter().find(|release| release.version == *version))
}

/// A version never changes: whoever runs it would not know.
fn same(there: &Release, now: &Release, what: &str) -> Result<(), Failure> {
    if there.blob == now.blob && there.capabilities == now.capabilities {
        if there.kind == Kind::Agent && there.native != now.native {
            let hint = "a version never changes: give the builds to the next one";
            return Err(Failure::wrong(format!("{what} has other builds than those to be published"), hint));
        }
        let has = |target: &str| there.native.iter().any(|code| code.target == target);
        let Some(code) = now.native.iter().find(|code| !has(&code.target)) else { return Ok(()) };
        let what = format!("{what} has no native code for {}", code.target);
        return Err(Failure::wrong(what, "a version never changes: give the code to the next one"));
    }
    let hint = "a version never changes: give it the next one";
    Err(Failure::wrong(format!("{what} has other content than what is to be published"), hint))
}

/// The bytes of a file, by digest.
fn blob_of(file: &Path) -> anyhow::Result<Blob> {
    use anyhow::Context as _;
    let unreadable = || format!("cannot read `{}`", file.display());
    let bytes = std::fs::metadata(file).with_context(unreadable)?.len();
    let digest = format!("sha256:{}", crate::store::digest_file(file).with_context(unreadable)?).parse()?;
    Ok(Blob { digest, bytes })
}

/// When it is signed, by this machine's clock.
fn now_ms() -> u64 {
    Clock::system().now_ms()
}
