//! Tokens: claims, by which gateways get in, and those of people.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::{list, told};
use crate::cli::Failure;
use crate::cli::output::{Output, time};
use crate::cli::remote::{Method, Remote};
use crate::cli::trust;
use crate::clock::Clock;
use crate::units::Span;

#[derive(Debug, clap::Args)]
pub(super) struct ClaimArgs {
    /// How many gateways it lets in
    #[arg(long, value_name = "N", default_value_t = 1)]
    uses: u64,
    /// For how long
    #[arg(long, value_name = "TIME", default_value = "7d")]
    expires: String,
    /// A group that they belong to
    #[arg(long, value_name = "NAME")]
    group: Vec<String>,
    /// What their names begin with; then one whose name is taken gets a number behind it
    #[arg(long, value_name = "TEXT")]
    name_prefix: Option<String>,
    /// The gateway whose name and place a new machine takes over
    #[arg(long, value_name = "GATEWAY")]
    replaces: Option<String>,
    /// Write the token to FILE, which only its owner may read
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct TokenArgs {
    /// What it is called in the audit log
    name: String,
    /// What it may do: each role may what those before it may
    #[arg(long, value_enum, default_value_t = RoleArg::Viewer)]
    role: RoleArg,
    /// For how long; for ever unless said
    #[arg(long, value_name = "TIME")]
    expires: Option<String>,
    /// Write the token to FILE, which only its owner may read
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
enum RoleArg {
    Viewer,
    Publisher,
    Operator,
    Admin,
}

#[derive(Debug, clap::Args)]
pub(super) struct RevokeArgs {
    /// End this one
    #[arg(long, value_name = "ID")]
    revoke: Option<String>,
}

pub(super) async fn claim(remote: &Remote, args: &ClaimArgs, as_json: bool) -> anyhow::Result<()> {
    let expires_ms = until(&args.expires)?;
    let mut wanted = json!({ "uses": args.uses, "expires_ms": expires_ms, "groups": args.group });
    if let Some(prefix) = &args.name_prefix {
        wanted["name_prefix"] = json!(prefix);
    }
    if let Some(gateway) = &args.replaces {
        wanted["replaces"] = json!(gateway);
    }
    let made = remote.call(Method::POST, "claims", &wanted).await?;
    trust::check_claim(remote, &token_of(&made)?.parse()?).await?;
    hand_over(&made, args.out.as_deref(), as_json, || {
        let gateways = if args.uses == 1 { "one gateway".to_owned() } else { format!("{} gateways", args.uses) };
        format!("it lets in {gateways} until {}: name the file in `claim_token_file` of [cloud]", time(expires_ms))
    })
}

pub(super) async fn token(remote: &Remote, args: &TokenArgs, as_json: bool) -> anyhow::Result<()> {
    let mut wanted = json!({ "name": args.name, "role": args.role });
    if let Some(expires) = &args.expires {
        wanted["expires_ms"] = json!(until(expires)?);
    }
    let made = remote.call(Method::POST, "tokens", &wanted).await?;
    hand_over(&made, args.out.as_deref(), as_json, || {
        "it is shown this once; name its file with `--token-file`".to_owned()
    })
}

pub(super) async fn claims(remote: &Remote, args: &RevokeArgs, json: bool) -> anyhow::Result<()> {
    let columns = [
        ("ID", "/id"),
        ("USED", "/uses"),
        ("OF", "/uses_max"),
        ("UNTIL", "/expires_ms"),
        ("GROUPS", "/groups"),
        ("REVOKED", "/revoked_ms"),
    ];
    list_or_revoke(remote, "claims", &columns, args, json).await
}

pub(super) async fn tokens(remote: &Remote, args: &RevokeArgs, json: bool) -> anyhow::Result<()> {
    let columns = [
        ("ID", "/id"),
        ("NAME", "/name"),
        ("ROLE", "/role"),
        ("LAST USED", "/used_ms"),
        ("UNTIL", "/expires_ms"),
        ("REVOKED", "/revoked_ms"),
    ];
    list_or_revoke(remote, "tokens", &columns, args, json).await
}

async fn list_or_revoke(
    remote: &Remote,
    path: &str,
    columns: &[(&str, &str)],
    args: &RevokeArgs,
    json: bool,
) -> anyhow::Result<()> {
    let Some(id) = &args.revoke else { return list::plain(remote, path, columns, json).await };
    remote.delete(&format!("{path}/{id}")).await?;
    told(json, &json!({ "id": id, "revoked": true }), &format!("{id} is worth nothing any more"))
}

/// A secret goes to a file, or to stdout and nowhere else.
fn token_of(made: &Value) -> anyhow::Result<&str> {
    made.get("token").and_then(Value::as_str).context("the control plane answered without a token")
}

fn hand_over(made: &Value, out: Option<&Path>, as_json: bool, told: impl Fn() -> String) -> anyhow::Result<()> {
    let token = token_of(made)?;
    let Some(file) = out else {
        let shown = if as_json { Output::json(made) } else { Output::line(token) };
        return Ok(shown?);
    };
    write_secret(file, token).with_context(|| format!("cannot write `{}`", file.display()))?;
    Ok(Output::line(&format!("{} holds the token; {}", file.display(), told()))?)
}

fn write_secret(file: &Path, text: &str) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(file)?;
    writeln!(file, "{text}")?;
    file.sync_all()
}

fn until(text: &str) -> anyhow::Result<u64> {
    let span = Span::parse(text).map_err(|error| Failure::wrong(error.to_string(), "write for example `7d`"))?;
    Ok(Clock::system().now_ms().saturating_add(u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX)))
}
