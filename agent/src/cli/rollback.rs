//! `tidegate rollback`: back to a deployment that was signed before.

use serde::Deserialize;
use serde_json::Value;
use sync_protocol::{Deployment, Target};

use super::Failure;
use super::deploy::{self, Listed, TargetArgs, WaitArgs};
use super::output::Output;
use super::remote::{CloudArgs, Remote};

/// Goes back to an earlier deployment of a group or gateway; nothing has to be signed again
#[derive(Debug, clap::Args)]
pub(super) struct RollbackArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Number of the deployment to go to; the one before unless said
    #[arg(long, value_name = "NUMBER")]
    to: Option<u64>,
    #[command(flatten)]
    wait: WaitArgs,
    #[command(flatten)]
    cloud: CloudArgs,
}

#[derive(Deserialize)]
struct Desired {
    deployment: Option<u64>,
}

pub(super) async fn run(args: &RollbackArgs) -> anyhow::Result<()> {
    let target = args.target.required()?;
    let remote = Remote::new(&args.cloud)?;
    let now: Option<Desired> = remote.find(&format!("targets/{target}/desired")).await?;
    let Some(now) = now.and_then(|now| now.deployment) else {
        return Err(nothing(&remote, &target).await?.into());
    };
    let listed: Vec<Listed> = remote.list(&format!("deployments?target={target}")).await?;
    let mut deployments = Vec::new();
    for Listed { envelope } in listed {
        deployments.push((envelope.unverified::<Deployment>()?, envelope));
    }
    let to = choose(&deployments.iter().map(|(deployment, _)| deployment.number).collect::<Vec<_>>(), now, args.to);
    let to = to.ok_or_else(|| nowhere(&target, now, args.to))?;
    let Some((deployment, envelope)) = deployments.iter().find(|(deployment, _)| deployment.number == to) else {
        return Err(nowhere(&target, now, args.to).into());
    };
    if to == now {
        Output::line(&format!("deployment {deployment} is desired already"))?;
    } else {
        deploy::make_desired(&remote, &target, to).await?;
        Output::line(&format!("deployment {deployment} is desired again, instead of {now}"))?;
    }
    if args.wait.wait {
        return deploy::follow(&remote, &target, &envelope.digest()?, &args.wait).await;
    }
    Ok(())
}

/// The one that was named, or the newest below the one of now.
fn choose(numbers: &[u64], now: u64, wanted: Option<u64>) -> Option<u64> {
    match wanted {
        Some(wanted) => numbers.contains(&wanted).then_some(wanted),
        None => numbers.iter().copied().filter(|number| *number < now).max(),
    }
}

/// Why nothing is desired for `target`: perhaps there is no such group or gateway.
async fn nothing(remote: &Remote, target: &Target) -> anyhow::Result<Failure> {
    let (kind, name, list) = match target {
        Target::Group(name) => ("group", name.as_str(), "tidegate fleet group"),
        Target::Gateway(name) => ("gateway", name.as_str(), "tidegate fleet"),
    };
    let there: Option<Value> = remote.find(&format!("{kind}s/{name}")).await?;
    Ok(match there {
        Some(_) => Failure::wrong(format!("nothing was deployed to {target} yet"), "`tidegate deploy` does that"),
        None => Failure::wrong(format!("there is no {kind} `{name}`"), format!("`{list}` lists them")),
    })
}

fn nowhere(target: &Target, now: u64, wanted: Option<u64>) -> Failure {
    let what = match wanted {
        Some(wanted) => format!("{target} has no deployment {wanted}"),
        None => format!("{target} has no deployment below {now}"),
    };
    Failure::wrong(what, "`tidegate fleet deployments` lists them")
}

#[cfg(test)]
mod tests {
    use super::choose;

    #[test]
    fn back_is_the_one_before_unless_said() {
        assert_eq!(choose(&[1, 2, 5, 7], 7, None), Some(5));
        assert_eq!(choose(&[1, 2, 5, 7], 5, Some(7)), Some(7));
        assert_eq!(choose(&[1, 2], 1, None), None);
        assert_eq!(choose(&[1, 2], 2, Some(4)), None);
    }
}
