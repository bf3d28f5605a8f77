//! `tidegate fleet`: what the control plane knows of gateways, and what people set there.

mod claim;
mod gateway;
mod list;
mod records;
mod set;

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};
use sync_protocol::Digest;

use super::output::Output;
use super::remote::{CloudArgs, Method, Remote};
use super::{signing, trust};

/// Shows the gateways of a control plane and what it keeps of them, and sets what people set there
///
/// Without a verb: all gateways.
#[derive(Debug, clap::Args)]
pub(super) struct FleetArgs {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Print what the control plane answers, or what was done, as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(flatten)]
    cloud: CloudArgs,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// All gateways, and how far each is
    Gateways,
    /// One gateway: what runs, what failed last
    Show {
        /// Its name
        gateway: String,
    },
    /// Takes a gateway's certificate from it, for good
    Revoke {
        /// Its name
        gateway: String,
    },
    /// Asks a gateway to try again the deployment that it has given up or rolled back
    TryAgain {
        /// Its name
        gateway: String,
    },
    /// Groups; with a name, who is in it, or who is to be
    Group(set::GroupArgs),
    /// Makes a claim token, by which new gateways get in
    Claim(claim::ClaimArgs),
    /// Claim tokens; `--revoke ID` ends one
    Claims(claim::RevokeArgs),
    /// Makes a token for a person or a program
    Token(claim::TokenArgs),
    /// Tokens; `--revoke ID` ends one
    Tokens(claim::RevokeArgs),
    /// What was published
    Releases,
    /// Aliases; with an artifact, an alias and a version, lets the alias mean that
    Alias(set::AliasArgs),
    /// What was deployed
    Deployments(list::DeploymentsArgs),
    /// Roots of trust; `--add FILE` hands in the next, `--trust DIGEST` has this laptop trust one and its followers
    Roots {
        /// The next root, as `tidegate keygen root` wrote it
        #[arg(long, value_name = "FILE")]
        add: Option<PathBuf>,
        /// Trust the root with this digest, which somebody told you who holds a key of it
        #[arg(long, value_name = "DIGEST", conflicts_with = "add")]
        trust: Option<Digest>,
    },
    /// Records that gateways have sent, as JSON lines or CSV
    Records(records::RecordsArgs),
    /// Who changed what
    Audit,
    /// Asks a gateway for its log, and shows it
    Logs(gateway::LogsArgs),
    /// Desired and reported document of a gateway; `--set JSON` changes the desired one
    Shadow(gateway::ShadowArgs),
}

pub(super) async fn run(args: &FleetArgs) -> anyhow::Result<()> {
    let remote = Remote::new(&args.cloud)?;
    let json = args.json;
    match args.verb.as_ref().unwrap_or(&Verb::Gateways) {
        Verb::Gateways => list::gateways(&remote, json).await,
        Verb::Show { gateway } => gateway::show(&remote, gateway, json).await,
        Verb::Revoke { gateway } => {
            remote.delete(&format!("gateways/{gateway}")).await?;
            let line = format!("{gateway} may not come back: a new claim makes it a gateway again");
            told(json, &json!({ "name": gateway, "revoked": true }), &line)
        }
        Verb::TryAgain { gateway } => gateway::try_again(&remote, gateway, json).await,
        Verb::Group(group) => set::group(&remote, group, json).await,
        Verb::Claim(claim) => claim::claim(&remote, claim, json).await,
        Verb::Claims(revoke) => claim::claims(&remote, revoke, json).await,
        Verb::Token(token) => claim::token(&remote, token, json).await,
        Verb::Tokens(revoke) => claim::tokens(&remote, revoke, json).await,
        Verb::Releases => list::releases(&remote, json).await,
        Verb::Alias(alias) => set::alias(&remote, alias, json).await,
        Verb::Deployments(deployments) => list::deployments(&remote, deployments, json).await,
        Verb::Roots { trust: Some(digest), .. } => trust::pin_by_digest(&remote, *digest).await,
        Verb::Roots { add: None, .. } => list::roots(&remote, json).await,
        Verb::Roots { add: Some(file), .. } => {
            let root = remote.call(Method::POST, "roots", &signing::read_envelope(file)?).await?;
            told(json, &root, &format!("the control plane has root {}", root.get("version").unwrap_or(&Value::Null)))
        }
        Verb::Records(records) => records::records(&remote, records).await,
        Verb::Audit => list::audit(&remote, json).await,
        Verb::Logs(logs) => gateway::logs(&remote, logs, json).await,
        Verb::Shadow(shadow) => gateway::shadow(&remote, shadow, json).await,
    }
}

/// What was done: a line for people, or the same for programs.
fn told(as_json: bool, answer: &Value, line: &str) -> anyhow::Result<()> {
    let printed = if as_json { Output::json(answer) } else { Output::line(line) };
    Ok(printed?)
}
