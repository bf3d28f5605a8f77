//! `tidegate cloud`: the control plane itself, on this machine.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Subcommand;
use control_plane::folder::Folder;
use control_plane::tls::ServerCertificate;
use control_plane::{ControlPlane, InitOptions, OpenError, ServeOptions, backup};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Failure;
use super::output::{Output, size};
use super::run::{shutdown, signals, tell_systemd};
use crate::clock::Clock;
use crate::config::{Access, Environment, LogConfig};
use crate::limits::Limits;
use crate::telemetry;

/// Makes and runs a control plane: a database and a folder of blobs on this machine
#[derive(Debug, clap::Args)]
pub(super) struct ControlPlaneArgs {
    #[command(subcommand)]
    verb: Verb,
    /// Its folder
    #[arg(long, value_name = "DIR", default_value = "cloud", global = true)]
    data: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Makes a new one: its authority, its certificate, its own key, the first admin's token
    Init {
        /// How gateways and people reach it
        #[arg(long, default_value = "https://localhost:8443")]
        url: String,
        /// Another host name or address of it
        #[arg(long)]
        name: Vec<String>,
        /// Write a cloud.toml for yourself, so that further commands find it
        #[arg(long)]
        configure: bool,
    },
    /// Serves it until SIGTERM or SIGINT
    Run {
        /// Where it listens
        #[arg(long, value_name = "ADDRESS:PORT", default_value = "0.0.0.0:8443")]
        listen: SocketAddr,
        /// Most connections of one address; behind a proxy, where all come from one, as many as there are gateways
        #[arg(long, value_name = "N", default_value_t = ServeOptions::default().bounds.connections_per_address_max)]
        connections_per_address: usize,
    },
    /// Signs its certificate anew, for further names; one that serves shows it within seconds
    Certify {
        /// Another host name or address by which it is reached
        #[arg(long)]
        name: Vec<String>,
    },
    /// Copies it to another folder, which holds all its secrets then; it may serve meanwhile
    Backup {
        /// The folder, which must not be there yet
        to: PathBuf,
    },
    /// Makes it again from a copy
    Restore {
        /// What `backup` made
        from: PathBuf,
    },
}

pub(super) async fn run(args: &ControlPlaneArgs) -> anyhow::Result<()> {
    let data = std::path::absolute(&args.data).context("the current folder is gone")?;
    match &args.verb {
        Verb::Init { url, name, configure } => init(&data, url, name, *configure).await,
        Verb::Run { listen, connections_per_address } => serve(&data, *listen, *connections_per_address).await,
        Verb::Certify { name } => {
            let now_ms = Clock::system().now_ms();
            let names = ServerCertificate::certify(&Folder::new(&data), name, now_ms).map_err(|error| {
                Failure::wrong(
                    error.to_string(),
                    "name the control plane with `--data`, and hosts with `--name cloud.example`",
                )
            })?;
            Ok(Output::line(&format!(
                "its certificate is for {}; one that serves shows it within seconds",
                names.join(", ")
            ))?)
        }
        Verb::Backup { to } => {
            let copied = backup::backup(&Folder::new(&data), to).await.map_err(|error| {
                Failure::failed(
                    format!("there is no backup: {error}"),
                    "name the control plane with `--data`, and a new folder",
                )
            })?;
            Ok(Output::line(&format!("{} is a copy: its rows, and {}", to.display(), blobs(copied)))?)
        }
        Verb::Restore { from } => {
            let copied = backup::restore(from, &Folder::new(&data)).await.map_err(|error| {
                Failure::failed(format!("nothing was restored: {error}"), "name a copy, and with `--data` a new folder")
            })?;
            // Where `init` put it, and cloud.toml looks for it.
            let (ca, shown) = (Folder::new(&data).keys().join("ca.pem"), data.join("ca.pem"));
            std::fs::copy(&ca, &shown).with_context(|| format!("cannot write `{}`", shown.display()))?;
            let next = format!("`tidegate cloud run --data {}` serves it", data.display());
            Ok(Output::line(&format!("restored {}: its rows, and {}; {next}", data.display(), blobs(copied)))?)
        }
    }
}

fn blobs(copied: backup::Copied) -> String {
    let unit = if copied.blobs == 1 { "blob" } else { "blobs" };
    format!("{} {unit} ({})", copied.blobs, size(copied.bytes))
}

async fn init(data: &Path, url: &str, names: &[String], configure: bool) -> anyhow::Result<()> {
    let mut all = vec![host(url)?];
    all.extend(names.iter().cloned());
    all.dedup();
    let options = InitOptions { names: all, admin: "admin".to_owned() };
    let clock = control_plane::clock::Clock::system();
    let made = control_plane::init(&Folder::new(data), &options, &clock).await.map_err(|error| {
        Failure::wrong(error.to_string(), "name another folder with `--data`, or correct `--url` and `--name`")
    })?;
    let write = |name: &str, text: &str, mode: u32| {
        let file = data.join(name);
        write(&file, text, mode).with_context(|| format!("cannot write `{}`", file.display())).map(|()| file)
    };
    let ca = write("ca.pem", &made.ca_pem, 0o644)?;
    write("online.pub", &format!("{}\n", String::from(made.online)), 0o644)?;
    let token = write("admin.token", &format!("{}\n", made.token), 0o600)?;
    Output::line(&format!("made a control plane in {}: its authority is {}", data.display(), ca.display()))?;
    Output::line(&format!("{} is the first admin's token: keep it from others", token.display()))?;
    if configure {
        let file = configure_access(url, &ca, &token)?;
        Output::line(&format!("{} names them, for the commands of this user", file.display()))?;
    } else if std::io::stdout().is_terminal() {
        Output::line("`--configure` would have written a cloud.toml, so that further commands find it")?;
    }
    let shown = data.display();
    Ok(Output::line(&format!("next: `tidegate cloud run --data {shown}`, then `tidegate keygen --send`"))?)
}

/// The host in `https://HOST:PORT`.
fn host(url: &str) -> Result<String, Failure> {
    let wrong = || Failure::wrong(format!("`{url}` is no address of a control plane"), "write `https://HOST:PORT`");
    let authority = url.strip_prefix("https://").and_then(|rest| rest.split('/').next()).ok_or_else(wrong)?;
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next(),
        None => authority.split(':').next(),
    };
    host.filter(|host| !host.is_empty()).map(str::to_owned).ok_or_else(wrong)
}

fn configure_access(url: &str, ca: &Path, token: &Path) -> anyhow::Result<PathBuf> {
    let folder = Access::folder(&Environment::of_process()).ok_or_else(|| {
        Failure::wrong(
            "there is no folder for your settings",
            "set HOME or XDG_CONFIG_HOME, or leave out `--configure`",
        )
    })?;
    let file = folder.join(Access::FILE);
    if file.exists() {
        let hint = "move it away, or name the new control plane with `--cloud`, `--ca` and `--token-file`";
        return Err(Failure::wrong(format!("there is a `{}` already", file.display()), hint).into());
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make `{}`", folder.display()))?;
    write(&file, &Access::text(url, ca, token), 0o644).with_context(|| format!("cannot write `{}`", file.display()))?;
    Ok(file)
}

fn write(file: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(mode).open(file)?;
    std::io::Write::write_all(&mut file, text.as_bytes())?;
    file.sync_all()
}

async fn serve(data: &Path, listen: SocketAddr, connections_per_address: usize) -> anyhow::Result<()> {
    let mut log = LogConfig::default();
    log.level = Environment::of_process().log.unwrap_or(log.level);
    telemetry::init(&log, &Limits::default(), Clock::system())?;
    let plane =
        ControlPlane::open(&Folder::new(data), control_plane::clock::Clock::system()).await.map_err(|error| {
            let hint = match &error {
                OpenError::Missing(_) => format!("`tidegate cloud init --data {}` makes one", data.display()),
                OpenError::Used(_) => "stop that one, or name another folder with `--data`".to_owned(),
                _ => "see that its files are whole, and yours to read and write; `tidegate cloud restore` makes it again from a copy".to_owned(),
            };
            Failure::wrong(error.to_string(), hint)
        })?;
    let listener = TcpListener::bind(listen).await.map_err(|error| {
        Failure::wrong(format!("cannot listen on {listen}: {error}"), "name another address with `--listen`")
    })?;
    let (stop, signals) = (CancellationToken::new(), signals()?);
    tracing::info!(address = %listener.local_addr()?, "the control plane serves");
    tell_systemd(&[sd_notify::NotifyState::Ready]);
    let stopping = stop.clone();
    tokio::spawn(async move {
        shutdown(signals).await;
        stopping.cancel();
    });
    let mut options = ServeOptions::default();
    options.bounds.connections_per_address_max = connections_per_address;
    control_plane::serve(plane, listener, options, stop).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::host;

    #[test]
    fn an_address_names_its_host() {
        assert_eq!(host("https://cloud.example:8443").unwrap(), "cloud.example");
        assert_eq!(host("https://[::1]:8443/").unwrap(), "::1");
        for wrong in ["http://cloud.example", "cloud.example", "https://"] {
            assert!(host(wrong).is_err(), "{wrong}");
        }
    }
}
