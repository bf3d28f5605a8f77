//! Groups and aliases.

use serde_json::{Value, json};

use super::{list, told};
use crate::cli::Failure;
use crate::cli::output::Output;
use crate::cli::remote::{Method, Remote};

#[derive(Debug, clap::Args)]
pub(super) struct GroupArgs {
    /// Its name; without one, all groups are listed
    name: Option<String>,
    /// A gateway that joins it
    #[arg(long, value_name = "GATEWAY", requires = "name")]
    add: Vec<String>,
    /// A gateway that leaves it
    #[arg(long, value_name = "GATEWAY", requires = "name")]
    remove: Vec<String>,
    /// Make it, with nobody in it yet
    #[arg(long, requires = "name")]
    create: bool,
    /// Take the group away; its gateways stay
    #[arg(long, requires = "name", conflicts_with_all = ["add", "remove", "create"])]
    delete: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct AliasArgs {
    /// Of what: `function/motion`
    #[arg(value_name = "KIND/NAME", requires = "alias")]
    artifact: Option<String>,
    /// The alias: `live`
    #[arg(requires = "version")]
    alias: Option<String>,
    /// What it is to mean
    version: Option<String>,
}

pub(super) async fn group(remote: &Remote, args: &GroupArgs, as_json: bool) -> anyhow::Result<()> {
    let Some(name) = &args.name else {
        return list::plain(remote, "groups", &[("GROUP", "/name"), ("GATEWAYS", "/gateways")], as_json).await;
    };
    let path = format!("groups/{name}");
    if args.delete {
        remote.delete(&path).await?;
        let line = format!("there is no group {name} any more");
        return told(as_json, &json!({ "name": name, "deleted": true }), &line);
    }
    let there: Option<Value> = remote.find(&path).await?;
    let is_new = there.is_none();
    let names = there.as_ref().and_then(|group| group.get("gateways")).and_then(Value::as_array);
    let mut gateways: Vec<String> =
        names.into_iter().flatten().filter_map(|name| name.as_str().map(str::to_owned)).collect();
    if args.add.is_empty() && args.remove.is_empty() && !(args.create && is_new) {
        let hint = format!("`tidegate fleet group {name} --add GATEWAY` makes it");
        there.ok_or_else(|| Failure::wrong(format!("there is no group `{name}`"), hint))?;
    } else {
        if let Some(missing) = args.remove.iter().find(|gateway| !gateways.contains(gateway)) {
            let what = format!("gateway `{missing}` is not in group {name}");
            return Err(Failure::wrong(what, format!("in it are: {}", gateways.join(", "))).into());
        }
        gateways.retain(|gateway| !args.remove.contains(gateway));
        gateways.extend(args.add.iter().cloned());
        gateways.sort();
        gateways.dedup();
        remote.call(Method::PUT, &path, &json!({ "gateways": gateways })).await?;
    }
    if as_json {
        return Ok(Output::json(&json!({ "name": name, "gateways": gateways }))?);
    }
    if is_new {
        Output::line(&format!("made group {name}"))?;
    }
    Ok(Output::line(&if gateways.is_empty() { format!("nobody is in {name}") } else { gateways.join("\n") })?)
}

pub(super) async fn alias(remote: &Remote, args: &AliasArgs, as_json: bool) -> anyhow::Result<()> {
    let (Some(artifact), Some(alias), Some(version)) = (&args.artifact, &args.alias, &args.version) else {
        let columns = [("KIND", "/kind"), ("NAME", "/name"), ("ALIAS", "/alias"), ("VERSION", "/version")];
        return list::plain(remote, "aliases", &columns, as_json).await;
    };
    remote.call(Method::PUT, &format!("aliases/{artifact}/{alias}"), &json!({ "version": version })).await?;
    let answer = json!({ "artifact": artifact, "alias": alias, "version": version });
    told(as_json, &answer, &format!("{alias} means {artifact} {version}"))
}
