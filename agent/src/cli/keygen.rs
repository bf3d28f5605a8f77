//! `tidegate keygen`: keys of those who sign, and the root of trust that says who may sign what.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Subcommand;
use serde::Deserialize;
use sync_protocol::{Envelope, PublicKey, Role, RoleKeys, Root};

use super::Failure;
use super::output::Output;
use super::remote::{CloudArgs, Method, Remote};
use super::signing::{self, KeyArgs};
use super::trust;
use crate::clock::Clock;
use crate::units::Span;

/// Makes keys for those who sign, and the root of trust that says who may sign what
///
/// Without a verb: a key each for root, publisher and operator, and the first root of trust of them. It names the control plane's own key too,
/// which is asked for with `--send`, or read with `--online`.
#[derive(Debug, clap::Args)]
pub(super) struct KeygenArgs {
    #[command(subcommand)]
    verb: Option<Verb>,
    /// Folder of the keys; `keys` beside cloud.toml unless said
    #[arg(long, value_name = "DIR", global = true)]
    keys: Option<PathBuf>,
    /// The control plane's public key, when it cannot be asked: `online.pub` of its folder
    #[arg(long, value_name = "FILE", global = true)]
    online: Option<PathBuf>,
    /// Where the root of trust goes; beside the key folder unless said
    #[arg(long, value_name = "FILE", global = true)]
    out: Option<PathBuf>,
    /// Give the root of trust to the control plane too
    #[arg(long, global = true)]
    send: bool,
    #[command(flatten)]
    signers: KeyArgs,
    #[command(flatten)]
    cloud: CloudArgs,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Makes one key more: NAME.pem, which is secret, and NAME.pub
    Key {
        /// What the files are called
        name: String,
    },
    /// Makes the first root of trust, or from an earlier one the next
    Root(RootArgs),
    /// Adds your signature to a root of trust or a deployment that needs several
    Sign {
        /// The file, which is written again
        file: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct RootArgs {
    /// The root of trust to go on from; without it, the first one is made
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// Let a key sign as ROLE
    #[arg(long, value_name = "ROLE=FILE")]
    add: Vec<RoleFile>,
    /// Take a role from a key
    #[arg(long, value_name = "ROLE=FILE")]
    remove: Vec<RoleFile>,
    /// Let this key take the place of all that ROLE has
    #[arg(long, value_name = "ROLE=FILE")]
    rotate: Vec<RoleFile>,
    /// Publishers' keys that may sign versions of the agent itself too, from now on only these; without it, what the earlier root says
    #[arg(long, value_name = "FILE", conflicts_with = "no_agents")]
    agents: Vec<PathBuf>,
    /// How many different ones of those must sign
    #[arg(long, value_name = "N", default_value_t = 1, requires = "agents")]
    agents_threshold: usize,
    /// Let nobody sign versions of the agent
    #[arg(long)]
    no_agents: bool,
    /// How many different keys of ROLE must sign
    #[arg(long, value_name = "ROLE=N")]
    threshold: Vec<Threshold>,
    /// For how long new deployments are accepted by it
    #[arg(long, value_name = "TIME", default_value = "730d")]
    expires: String,
}

/// `ROLE=FILE`.
#[derive(Clone, Debug)]
struct RoleFile(Role, PathBuf);

impl FromStr for RoleFile {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (role, file) = text.split_once('=').ok_or_else(|| format!("`{text}` is not ROLE=FILE"))?;
        Ok(Self(signing::role(role)?, file.into()))
    }
}

/// `ROLE=N`.
#[derive(Clone, Copy, Debug)]
struct Threshold(Role, usize);

impl FromStr for Threshold {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (role, number) = text.split_once('=').ok_or_else(|| format!("`{text}` is not ROLE=N"))?;
        Ok(Self(signing::role(role)?, number.parse().map_err(|_| format!("`{number}` is no number"))?))
    }
}

pub(super) async fn run(args: &KeygenArgs) -> anyhow::Result<()> {
    let folder = args.keys.clone().map_or_else(signing::key_folder, Ok)?;
    match &args.verb {
        None => first(args, &folder).await,
        Some(Verb::Key { name }) => {
            let (file, key) = signing::write_pair(&folder, name)?;
            Ok(Output::line(&format!("{} is secret; its public key is {}", file.display(), id(&key.public())))?)
        }
        Some(Verb::Root(root)) => next(args, root, &folder).await,
        Some(Verb::Sign { file }) => countersign(args, file).await,
    }
}

/// The three keys of a team of one, and the root that says so.
async fn first(args: &KeygenArgs, folder: &Path) -> anyhow::Result<()> {
    // Before any key is made: the same command can then be said again.
    let online = online(args).await?;
    // Keys that no root of trust names yet were made by a command that came no further.
    let named = root_file(args, folder, 1).exists() || folder.with_file_name("root.json").exists();
    let pair = if named { signing::write_pair } else { signing::pair };
    let mut roles = Vec::new();
    let mut root_key = None;
    for role in [Role::Root, Role::Publisher, Role::Operator] {
        let (file, key) = pair(folder, role.as_str())?;
        Output::line(&format!("{} is secret; its public key is {}", file.display(), id(&key.public())))?;
        roles.push((role, RoleKeys::new([key.public()], 1)));
        root_key.get_or_insert(key);
    }
    let Some((online, key)) = online.zip(root_key) else {
        let next =
            "`tidegate keygen root` makes the root of trust of them, once the control plane's public key is at hand";
        return Ok(Output::line(&format!("next: {next}"))?);
    };
    roles.push((Role::Online, RoleKeys::new([online], 1)));
    let root = Root { version: 1, expires_ms: expiry("730d")?, roles: roles.into_iter().collect(), agents: None };
    keep(args, &signing::sign(&root, &[key])?, &root, folder).await
}

/// The control plane's own key: from its file, or from itself.
async fn online(args: &KeygenArgs) -> anyhow::Result<Option<PublicKey>> {
    #[derive(Deserialize)]
    struct Roots {
        online: Vec<PublicKey>,
    }
    match &args.online {
        Some(file) => signing::read_public(file).map(Some),
        None if args.send => {
            let roots: Roots = Remote::new(&args.cloud)?.get("roots").await?;
            Ok(roots.online.first().copied())
        }
        None => Ok(None),
    }
}

/// The root that comes after another one, or the first.
async fn next(args: &KeygenArgs, changes: &RootArgs, folder: &Path) -> anyhow::Result<()> {
    let earlier = changes.from.as_deref().map(read_root).transpose()?;
    let mut root = earlier.clone().unwrap_or_else(|| Root {
        version: 0,
        expires_ms: 0,
        roles: Role::ALL.map(|role| (role, RoleKeys::new([], 1))).into(),
        agents: None,
    });
    root.version += 1;
    root.expires_ms = expiry(&changes.expires)?;
    for RoleFile(role, file) in &changes.rotate {
        let key = signing::read_public(file)?;
        let threshold = root.roles.get(role).map_or(1, |keys| keys.threshold);
        root.roles.insert(*role, RoleKeys::new([key], threshold));
    }
    for RoleFile(role, file) in &changes.add {
        let key = signing::read_public(file)?;
        root.roles.entry(*role).or_insert_with(|| RoleKeys::new([], 1)).keys.insert(key.id(), key);
    }
    let has_online = root.roles.get(&Role::Online).is_some_and(|keys| !keys.keys.is_empty());
    if let Some(key) = online(args).await?.filter(|_| args.online.is_some() || !has_online) {
        root.roles.insert(Role::Online, RoleKeys::new([key], 1));
    }
    for RoleFile(role, file) in &changes.remove {
        let key = signing::read_public(file)?.id();
        if root.roles.get_mut(role).and_then(|keys| keys.keys.remove(&key)).is_none() {
            let what = format!("`{}` is no {role} key, so that role cannot be taken from it", file.display());
            return Err(Failure::wrong(what, "the root of trust lists the keys of each role").into());
        }
    }
    for Threshold(role, threshold) in &changes.threshold {
        root.roles.entry(*role).or_insert_with(|| RoleKeys::new([], 1)).threshold = *threshold;
    }
    if changes.no_agents {
        root.agents = None;
    } else if !changes.agents.is_empty() {
        let keys = changes.agents.iter().map(|file| signing::read_public(file)).collect::<Result<Vec<_>, _>>()?;
        root.agents = Some(RoleKeys::new(keys, changes.agents_threshold));
    }
    for (role, keys) in &root.roles {
        if keys.threshold == 0 || keys.keys.len() < keys.threshold {
            let has = keys.keys.len();
            let what = format!("role {role} has {has} keys, of which {} would have to sign", keys.threshold);
            let hint = format!("add keys with `--add {role}=FILE`, or set `--threshold {role}=N`");
            return Err(Failure::wrong(what, hint).into());
        }
    }
    // What is left to be wrong is about those who sign agents.
    let hint =
        "name publishers' `.pub` files with `--agents`, at least as many as `--agents-threshold`; or `--no-agents`";
    root.check().map_err(|refused| Failure::wrong(refused.to_string(), hint))?;
    let keys = args.signers.load(Role::Root)?;
    keep(args, &signing::sign(&root, &keys)?, &root, folder).await
}

/// One signature more.
async fn countersign(args: &KeygenArgs, file: &Path) -> anyhow::Result<()> {
    let mut envelope = signing::read_envelope(file)?;
    let root = envelope.unverified::<Root>().ok();
    let keys = args.signers.load(if root.is_some() { Role::Root } else { Role::Operator })?;
    for key in &keys {
        envelope.add_signature(key)?;
    }
    signing::write_envelope(file, &envelope)?;
    match root {
        Some(root) if args.send => send(args, file, &envelope, &root).await,
        _ => Ok(Output::line(&format!("{} has {} signatures", file.display(), envelope.signers().count()))?),
    }
}

/// Writes a root, and says what is missing of its signatures.
async fn keep(args: &KeygenArgs, envelope: &Envelope, root: &Root, folder: &Path) -> anyhow::Result<()> {
    let file = root_file(args, folder, root.version);
    signing::write_envelope(&file, envelope)?;
    Output::line(&format!("{} is root {} of trust, until {}", file.display(), root.version, day(root.expires_ms)))?;
    for (role, keys) in &root.roles {
        let ids: Vec<String> = keys.keys.values().map(id).collect();
        Output::line(&format!("  {:<10} {} of {}: {}", role.as_str(), keys.threshold, ids.len(), ids.join(", ")))?;
    }
    if let Some(keys) = &root.agents {
        let ids: Vec<String> = keys.keys.values().map(id).collect();
        Output::line(&format!("  {:<10} {} of {}: {}", "agents", keys.threshold, ids.len(), ids.join(", ")))?;
    }
    let own = root.roles.get(&Role::Root).map(|keys| envelope.verify::<Root>(keys));
    if let Some(Err(missing)) = own {
        Output::line(&format!("it does not hold yet: {missing}; others sign it with `tidegate keygen sign`"))?;
        return Ok(());
    }
    if args.send { send(args, &file, envelope, root).await } else { Ok(()) }
}

/// Where the root of that version goes.
fn root_file(args: &KeygenArgs, folder: &Path, version: u64) -> PathBuf {
    let name = if version == 1 { "root.json".to_owned() } else { format!("root.{version}.json") };
    args.out.clone().unwrap_or_else(|| folder.parent().unwrap_or(folder).join(name))
}

async fn send(args: &KeygenArgs, file: &Path, envelope: &Envelope, root: &Root) -> anyhow::Result<()> {
    let sent = Remote::new(&args.cloud)?.call(Method::POST, "roots", envelope).await;
    if sent.is_err() {
        let file = file.display();
        Output::line(&format!("{file} stays; once it can be handed in: `tidegate keygen sign {file} --send`"))?;
    }
    sent?;
    Output::line(&format!("the control plane has root {}, {}", root.version, envelope.digest()?))?;
    trust::pin_own(envelope)
}

fn read_root(file: &Path) -> anyhow::Result<Root> {
    signing::read_envelope(file)?.unverified().map_err(|error| {
        Failure::wrong(format!("`{}` is no root of trust: {error}", file.display()), "name the newest root").into()
    })
}

fn expiry(text: &str) -> anyhow::Result<u64> {
    let span = Span::parse(text).map_err(|error| Failure::wrong(error.to_string(), "write for example `730d`"))?;
    Ok(Clock::system().now_ms().saturating_add(u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX)))
}

fn id(key: &PublicKey) -> String {
    key.id().to_string()
}

fn day(ms: u64) -> String {
    super::output::time(ms).chars().take(10).collect()
}
