//! `tidegate deploy`: composes a deployment, shows what it would do, signs it, makes it desired, and follows it to the end.

mod compose;
mod file;
mod preview;
mod wait;

use std::path::PathBuf;

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::json;
use sync_protocol::trust::Latest;
use sync_protocol::{Deployment, Envelope, Refused, Role, Target};

use self::compose::Choice;
pub(super) use self::wait::{WaitArgs, follow};
use super::Failure;
use super::output::{Errors, Output};
use super::remote::{CloudArgs, Method, Remote};
use super::signing::{self, KeyArgs};
use super::trust::{Laptop, TrustArgs};
use crate::config::DeploymentFile;
use crate::name::{GatewayName, GroupName};

/// Composes, signs and starts a deployment
///
/// FILE is a deployment.toml, from which the next deployment is made; or one that `--out` wrote, which you sign too.
#[derive(Debug, clap::Args)]
pub(super) struct DeployArgs {
    /// What is deployed
    #[arg(default_value = "deployment.toml")]
    file: PathBuf,
    #[command(flatten)]
    target: TargetArgs,
    /// A version instead of the one that FILE says: `model/motion=2.0.0`
    #[arg(long = "use", value_name = "KIND/NAME=VERSION")]
    choices: Vec<Choice>,
    /// The lowest number that the target may go back to from now on; the one of the deployment before unless said
    #[arg(long, value_name = "NUMBER")]
    floor: Option<u64>,
    /// Its number; one above the highest that operators have signed for the target, unless said
    #[arg(long, value_name = "NUMBER")]
    number: Option<u64>,
    /// Why, for those who read it; what FILE says unless said
    #[arg(long, value_name = "TEXT")]
    comment: Option<String>,
    /// Show what would be signed, and what each gateway would fetch, restart, keep and remove, and do nothing
    #[arg(long)]
    preview: bool,
    /// Print the preview as JSON
    #[arg(long, requires = "preview")]
    json: bool,
    /// Let gateways remove what they run and FILE does not name
    #[arg(long)]
    allow_removal: bool,
    /// Write the signed deployment to FILE, and send nothing: for review, for others to sign, for a stick
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Write all that a gateway needs beside it, as a `.tar` for `tidegate apply`
    #[arg(long, requires = "out")]
    with_blobs: bool,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    trust: TrustArgs,
    #[command(flatten)]
    signers: KeyArgs,
    #[command(flatten)]
    cloud: CloudArgs,
}

/// For whom.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct TargetArgs {
    /// For all gateways of a group
    #[arg(long, value_name = "NAME", conflicts_with = "gateway")]
    group: Option<String>,
    /// For one gateway
    #[arg(long, value_name = "NAME")]
    gateway: Option<String>,
}

impl TargetArgs {
    /// What was said, if anything was.
    pub(super) fn target(&self) -> Result<Option<Target>, Failure> {
        let wrong = |error: crate::name::NameError| Failure::wrong(error.to_string(), "for example `--group presses`");
        if let Some(group) = &self.group {
            return Ok(Some(Target::Group(GroupName::parse(group).map_err(wrong)?)));
        }
        let gateway = self.gateway.as_ref().map(|name| GatewayName::parse(name).map(Target::Gateway));
        gateway.transpose().map_err(wrong)
    }

    /// What was said.
    pub(super) fn required(&self) -> Result<Target, Failure> {
        let missing = || Failure::wrong("no target is named", "say `--group NAME` or `--gateway NAME`");
        self.target()?.ok_or_else(missing)
    }
}

/// A deployment in a list of the control plane.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Listed {
    /// What its operators signed.
    pub(super) envelope: Envelope,
}

/// A deployment and the releases that it names.
struct Composed {
    deployment: Deployment,
    /// As it is signed so far; one that was just composed is not.
    envelope: Option<Envelope>,
    releases: Vec<Envelope>,
}

pub(super) async fn run(args: &DeployArgs) -> anyhow::Result<()> {
    let remote = Remote::new(&args.cloud)?;
    let mut laptop = Laptop::open(&args.trust, &remote).await?;
    let composed = compose(args, &remote, &mut laptop).await?;
    laptop.keep()?;
    let deployment = &composed.deployment;
    let previews = preview::ask(&remote, deployment).await?;
    if args.preview {
        return preview::show(deployment, &previews, args);
    }
    if !args.allow_removal {
        preview::refuse_removal(deployment, &previews)?;
    }
    let keys = args.signers.load(Role::Operator)?;
    keys.iter().try_for_each(|key| laptop.check_key(key, Role::Operator))?;
    preview::document(&format!("signing deployment {deployment}"), deployment)?;
    let envelope = match composed.envelope {
        None => signing::sign(deployment, &keys)?,
        Some(mut envelope) => {
            for key in &keys {
                envelope.add_signature(key)?;
            }
            envelope
        }
    };
    let verified = laptop.root().verify_deployment(&envelope, &composed.releases);
    if verified.is_ok() {
        laptop.signed(deployment, &envelope, args.out.is_some())?;
    }
    if let Some(out) = &args.out {
        if args.with_blobs {
            file::write(&remote, out, &envelope, &composed.releases).await?;
            let hint = "on the gateway: `tidegate apply`";
            return Ok(Output::line(&format!("{} holds deployment {deployment}; {hint}", out.display()))?);
        }
        signing::write_envelope(out, &envelope)?;
        let out = out.display();
        let told = match verified {
            Ok(_) => format!("{out} is deployment {deployment}, signed; `tidegate deploy {out}` starts it"),
            Err(Refused::Signatures { valid, threshold, .. }) => format!(
                "{out} is deployment {deployment} with {valid} of the {threshold} signatures that it needs; `tidegate deploy {out}` adds another operator's and starts it"
            ),
            Err(refused) => return Err(unsent(deployment, &refused).into()),
        };
        return Ok(Output::line(&told)?);
    }
    verified.map_err(|refused| unsent(deployment, &refused))?;
    remote.call(Method::POST, "deployments", &envelope).await.context("the deployment was not accepted")?;
    make_desired(&remote, &deployment.target, deployment.number).await?;
    Output::line(&format!("deployment {deployment} is desired"))?;
    if args.wait.wait {
        return follow(&remote, &deployment.target, &envelope.digest()?, &args.wait).await;
    }
    Errors::progress("`tidegate fleet` shows how far the gateways are; `--wait` follows them");
    Ok(())
}

fn unsent(deployment: &Deployment, refused: &Refused) -> Failure {
    let (why, hint) = match refused {
        Refused::Signatures { valid, threshold, .. } => (
            format!("it has {valid} of the {threshold} signatures that it needs"),
            "write it with `--out FILE`; another operator signs and starts that: `tidegate deploy FILE`",
        ),
        _ => (refused.to_string(), refused.hint()),
    };
    Failure::wrong(format!("deployment {deployment} is not sent: {why}"), hint)
}

/// The deployment that FILE means.
async fn compose(args: &DeployArgs, remote: &Remote, laptop: &mut Laptop) -> anyhow::Result<Composed> {
    let is_signed = args.file.extension().is_some_and(|kind| kind == "json");
    if !is_signed {
        let file = DeploymentFile::load(&args.file)?;
        return compose::compose(args, &file, remote, laptop).await;
    }
    let envelope = signing::read_envelope(&args.file)?;
    let deployment: Deployment = envelope.unverified().map_err(|error| {
        let hint = "name a deployment.toml, or what `tidegate deploy --out` wrote";
        Failure::wrong(format!("`{}` is no deployment: {error}", args.file.display()), hint)
    })?;
    let changes = !args.choices.is_empty() || args.floor.is_some() || args.number.is_some() || args.comment.is_some();
    if changes || args.target.target()?.is_some() {
        let hint = "a signed deployment stays as it is: compose another one from a deployment.toml";
        return Err(Failure::wrong(format!("`{}` cannot be changed", args.file.display()), hint).into());
    }
    let shown: Vec<Listed> = remote.list(&format!("deployments?target={}", deployment.target)).await?;
    laptop.deployments(&shown.into_iter().map(|listed| listed.envelope).collect::<Vec<_>>())?;
    let below = |latest: &Latest| deployment.number <= latest.number || deployment.floor < latest.floor;
    if let Some(latest) = laptop.latest(&deployment.target).filter(below)
        && !laptop.is_latest(&deployment, &envelope)
    {
        let Deployment { target, number, floor, .. } = &deployment;
        let what = format!(
            "`{}` has number {number} and floor {floor}, and {target} is at number {} and floor {} already",
            args.file.display(),
            latest.number,
            latest.floor
        );
        return Err(Failure::wrong(what, "it was overtaken: compose another one from a deployment.toml").into());
    }
    let (mut releases, mut signed) = (Vec::new(), Vec::new());
    for artifact in &deployment.artifacts {
        let listed: super::publish::Listed = remote.get(&format!("releases/{}", artifact.release.hex())).await?;
        signed.push(laptop.release(&listed.envelope)?);
        releases.push(listed.envelope);
    }
    deployment.check(&signed).map_err(|refused| {
        let what = format!("`{}` is not to be signed: {refused}", args.file.display());
        Failure::wrong(what, "ask whoever wrote it, and compose another one from a deployment.toml")
    })?;
    Ok(Composed { deployment, envelope: Some(envelope), releases })
}

/// Chooses among what was signed for a target.
pub(super) async fn make_desired(remote: &Remote, target: &Target, number: u64) -> anyhow::Result<()> {
    let path = format!("targets/{target}/desired");
    remote.call(Method::POST, &path, &json!({ "deployment": number })).await?;
    Ok(())
}
