//! From a deployment.toml to a deployment: exact versions for aliases, a number above all others of its target.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use semver::Version;
use serde::Deserialize;
use serde_json::Value;
use sync_protocol::capability::Capabilities;
use sync_protocol::{Artifact, Deployment, Envelope, Kind, Release, Target};

use super::{Composed, DeployArgs, Listed};
use crate::cli::Failure;
use crate::cli::output::Errors;
use crate::cli::publish;
use crate::cli::remote::Remote;
use crate::cli::trust::{Laptop, Seen};
use crate::clock::Clock;
use crate::config::{DeploymentFile, Item};
use crate::name::ArtifactName;

/// `KIND/NAME=VERSION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    kind: Kind,
    name: ArtifactName,
    version: String,
}

impl FromStr for Choice {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not KIND/NAME=VERSION, such as `model/motion=2.0.0`");
        let (which, version) = text.split_once('=').ok_or_else(wrong)?;
        let (kind, name) = which.split_once('/').ok_or_else(wrong)?;
        let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind).ok_or_else(wrong)?;
        let name = ArtifactName::parse(name).map_err(|error| error.to_string())?;
        Ok(Self { kind, name, version: version.to_owned() })
    }
}

/// What deployment.toml names once.
struct Wanted<'a> {
    kind: Kind,
    name: &'a ArtifactName,
    version: &'a str,
    capabilities: Capabilities,
    settings: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
struct Alias {
    kind: Kind,
    name: ArtifactName,
    alias: String,
    version: Version,
}

pub(super) async fn compose(
    args: &DeployArgs,
    file: &DeploymentFile,
    remote: &Remote,
    laptop: &mut Laptop,
) -> anyhow::Result<Composed> {
    let target = target(args, file)?;
    let mut wanted = wanted(file);
    for choice in &args.choices {
        let named = wanted.iter_mut().find(|wanted| wanted.kind == choice.kind && *wanted.name == choice.name);
        let named = named.ok_or_else(|| {
            let what = format!("there is no {} `{}` in `{}`", choice.kind, choice.name, args.file.display());
            Failure::wrong(what, format!("add it there: `[[{}]]`", choice.kind))
        })?;
        named.version = &choice.version;
    }
    let (number, floor, newest) = place(args, &target, remote, laptop).await?;
    let aliases: Vec<Alias> = remote.list("aliases").await?;
    let (mut artifacts, mut releases) = (Vec::new(), Vec::new());
    for wanted in wanted {
        let (release, envelope) = release(remote, laptop, &wanted, &aliases).await?;
        not_older(&wanted, &release, newest.as_ref())?;
        within(&wanted, &release)?;
        artifacts.push(Artifact {
            kind: wanted.kind,
            name: wanted.name.clone(),
            version: release.version,
            release: envelope.digest()?,
            capabilities: wanted.capabilities,
            settings: wanted.settings,
        });
        releases.push(envelope);
    }
    let now_ms = Clock::system().now_ms();
    let deployment = Deployment {
        target,
        number,
        floor,
        created_ms: now_ms,
        expires_ms: now_ms.saturating_add(u64::try_from(file.expires.0.as_millis()).unwrap_or(u64::MAX)),
        artifacts,
        streams: file.streams(),
        policy: file.policy.policy(),
        comment: args.comment.clone().unwrap_or_else(|| file.comment.clone()),
    };
    Ok(Composed { deployment, envelope: None, releases })
}

/// Number and floor of the next deployment, and the one before, by what operators have signed so far.
async fn place(
    args: &DeployArgs,
    target: &Target,
    remote: &Remote,
    laptop: &mut Laptop,
) -> anyhow::Result<(u64, u64, Option<Deployment>)> {
    let shown: Vec<Listed> = remote.list(&format!("deployments?target={target}")).await?;
    let shown: Vec<Envelope> = shown.into_iter().map(|listed| listed.envelope).collect();
    let Seen { newest, former, strange } = laptop.deployments(&shown)?;
    let latest = laptop.latest(target);
    let above = latest.map_or(0, |latest| latest.number);
    let number = args.number.unwrap_or_else(|| above.max(former) + 1);
    if number <= above {
        let what = format!("{target} has deployment {above} already, so the next cannot be {number}");
        return Err(Failure::wrong(what, format!("leave out `--number`, or say {} or more", above + 1)).into());
    }
    if args.number.is_none() && strange >= number {
        let what = format!("the control plane shows deployment {strange} of {target}, which no operator has signed");
        let hint = "find out who put it there; to go on above another number, name yours: `--number NUMBER`";
        return Err(Failure::failed(what, hint).into());
    }
    let shown = newest.as_ref().map_or(0, |newest| newest.number);
    let sent = laptop.sent(target);
    if shown < sent {
        Errors::line(&format!(
            "warning: the control plane knows no deployment {sent} of {target}, which this laptop has seen: it withholds it, or was restored from a copy"
        ));
    } else if sent < above {
        Errors::line(&format!("deployment {above} of {target} was written to a file, and never sent"));
    }
    let lowest = latest.map(|latest| latest.floor);
    let floor = args.floor.or(lowest).unwrap_or(number);
    if floor > number || lowest.is_some_and(|lowest| floor < lowest) {
        let what =
            format!("the floor of {target} cannot become {floor}: it is {} now, and only rises", lowest.unwrap_or(1));
        return Err(Failure::wrong(what, format!("say a number up to {number}, or leave out `--floor`")).into());
    }
    Ok((number, floor, newest))
}

/// An alias is the control plane's word alone: it does not bring back an older version.
fn not_older(wanted: &Wanted<'_>, release: &Release, newest: Option<&Deployment>) -> Result<(), Failure> {
    let same = |artifact: &&Artifact| artifact.kind == wanted.kind && artifact.name == *wanted.name;
    let before = newest.and_then(|newest| newest.artifacts.iter().find(same));
    let Some(before) = before.filter(|before| release.version.cmp_precedence(&before.version).is_lt()) else {
        return Ok(());
    };
    if Version::parse(wanted.version).is_ok() {
        return Ok(());
    }
    let Wanted { kind, name, version: alias, .. } = wanted;
    let what = format!(
        "`{alias}` of {kind} {name} means {} now, older than {}, which was deployed last",
        release.version, before.version
    );
    Err(Failure::wrong(what, format!("if you want that, name the version: `--use {kind}/{name}={}`", release.version)))
}

/// What the command line says, else what the file says.
fn target(args: &DeployArgs, file: &DeploymentFile) -> Result<Target, Failure> {
    if let Some(target) = args.target.target()? {
        return Ok(target);
    }
    match (&file.group, &file.gateway) {
        (Some(group), None) => Ok(Target::Group(group.clone())),
        (None, Some(gateway)) => Ok(Target::Gateway(gateway.clone())),
        (None, None) => Err(Failure::wrong("no target is named", "say `--group NAME` or `--gateway NAME`")),
        (Some(_), Some(_)) => {
            Err(Failure::wrong("the deployment names a group and a gateway", "keep one of the two in the file"))
        }
    }
}

fn wanted<'a>(file: &'a DeploymentFile) -> Vec<Wanted<'a>> {
    let functions = file.function.iter().map(|function| Wanted {
        kind: Kind::Function,
        name: &function.name,
        version: &function.version,
        capabilities: Capabilities(function.capabilities.clone()),
        settings: file.settings("function", function.name.as_str()),
    });
    let models = file.model.iter().map(|model| Wanted {
        kind: Kind::Model,
        name: &model.name,
        version: &model.version,
        capabilities: Capabilities::default(),
        settings: file.settings("model", model.name.as_str()),
    });
    let plain = |kind| {
        move |item: &'a Item| Wanted {
            kind,
            name: &item.name,
            version: &item.version,
            capabilities: Capabilities::default(),
            settings: BTreeMap::new(),
        }
    };
    let layers = file.layer.iter().map(plain(Kind::Layer));
    let runtimes = file.runtime.iter().map(plain(Kind::Runtime));
    let agent = file.agent.iter().map(plain(Kind::Agent));
    functions.chain(models).chain(layers).chain(runtimes).chain(agent).collect()
}

/// The release that a version or an alias means.
async fn release(
    remote: &Remote,
    laptop: &mut Laptop,
    wanted: &Wanted<'_>,
    aliases: &[Alias],
) -> anyhow::Result<(Release, Envelope)> {
    let Wanted { kind, name, .. } = wanted;
    let meant = aliases.iter().find(|a| a.kind == *kind && a.name == **name && a.alias == wanted.version);
    let version = meant.map_or_else(|| Version::parse(wanted.version), |alias| Ok(alias.version.clone()));
    let Ok(version) = version else { return Err(no_alias(remote, wanted).await?.into()) };
    let listed: Vec<publish::Listed> = remote.list(&format!("releases?kind={kind}&name={name}")).await?;
    let mut known = Vec::new();
    for publish::Listed { envelope } in listed {
        let release: Release = envelope.unverified()?;
        if (release.kind, &release.name, &release.version) == (*kind, *name, &version) {
            return Ok((laptop.release(&envelope)?, envelope));
        }
        known.push(release.version.to_string());
    }
    let hint = match known.is_empty() {
        true => format!("publish it: `tidegate publish … --name {name}`"),
        false => format!("published are {}", known.join(", ")),
    };
    Err(Failure::wrong(format!("there is no {kind} {name} {version}"), hint).into())
}

/// Why a word is no version: perhaps nothing of that name was ever published.
async fn no_alias(remote: &Remote, wanted: &Wanted<'_>) -> anyhow::Result<Failure> {
    let Wanted { kind, name, version: alias, .. } = wanted;
    let listed: Vec<publish::Listed> = remote.list(&format!("releases?kind={kind}")).await?;
    let mut names = BTreeSet::new();
    for publish::Listed { envelope } in listed {
        names.insert(envelope.unverified::<Release>()?.name);
    }
    if names.contains(*name) {
        let hint = format!("`tidegate publish … --alias {alias}` makes it, or name a version");
        return Ok(Failure::wrong(format!("{kind} {name} has no alias `{alias}`"), hint));
    }
    let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    let hint = match names.is_empty() {
        true => format!("publish it: `tidegate publish … --alias {alias}`"),
        false => format!("published are {}", names.join(", ")),
    };
    Ok(Failure::wrong(format!("no {kind} `{name}` was published"), hint))
}

/// Nobody may grant more than the publisher signed: gateways would refuse it.
fn within(wanted: &Wanted<'_>, release: &Release) -> Result<(), Failure> {
    let Some(over) = wanted.capabilities.0.iter().find(|capability| !release.capabilities.cover(capability)) else {
        return Ok(());
    };
    let what = format!("{release} may not be granted `{over}`: its publisher allows less");
    let ceiling: Vec<String> = release.capabilities.0.iter().map(|capability| format!("`{capability}`")).collect();
    let hint = format!("grant within {}, or publish a version whose manifest asks for it", ceiling.join(", "));
    Err(Failure::wrong(what, hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_names_kind_name_and_version() {
        let choice: Choice = "model/motion=2.0.0".parse().unwrap();
        assert_eq!((choice.kind, choice.name.as_str(), choice.version.as_str()), (Kind::Model, "motion", "2.0.0"));
        for wrong in ["motion=1.0.0", "model/motion", "toaster/motion=1"] {
            assert!(wrong.parse::<Choice>().is_err(), "{wrong}");
        }
    }
}
