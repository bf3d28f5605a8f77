//! The command line: one file per command, which parses its arguments, calls the part that does the work, and shows what
//! came of it.

mod apply;
mod build;
mod check;
#[cfg(feature = "control-plane")]
mod cloud;
#[cfg(feature = "compiler")]
mod compile_component;
mod completion;
mod connect;
mod dead_letters;
pub mod demo;
mod deploy;
mod doctor;
mod failure;
mod fleet;
mod invoke;
mod keygen;
mod logs;
mod man;
mod new;
mod output;
mod publish;
mod record;
mod reload;
mod remote;
mod replay;
mod rollback;
mod run;
mod signing;
mod status;
mod throwaway;
mod trust;

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

pub use self::failure::{Failure, Status, print_error};
use crate::config::Config;
use crate::runtime::HAS_COMPILER;
use crate::store::BundleError;

/// Runs functions at the edge: on MQTT messages and timers, with models on the device, keeping results until the uplink is back.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, max_term_width = 100)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

/// Where gateway.toml is.
#[derive(Clone, Debug, clap::Args)]
pub struct ConfigArgs {
    /// The gateway's configuration; `gateway.toml` in this folder unless said, else `/etc/tidegate/gateway.toml`
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

impl ConfigArgs {
    /// The file that is meant.
    fn file(&self) -> PathBuf {
        let installed = Path::new("/etc/tidegate/gateway.toml");
        match &self.config {
            Some(file) => file.clone(),
            None if !Path::new("gateway.toml").exists() && installed.exists() => installed.to_owned(),
            None => PathBuf::from("gateway.toml"),
        }
    }

    fn load(&self) -> Result<Config, crate::config::ConfigErrors> {
        Config::load(&self.file())
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::RunArgs),
    Check(check::CheckArgs),
    Doctor(doctor::DoctorArgs),
    Reload(reload::ReloadArgs),
    New(new::NewArgs),
    Build(build::BuildArgs),
    Invoke(Box<invoke::InvokeArgs>),
    Status(status::StatusArgs),
    Logs(logs::LogsArgs),
    DeadLetters(dead_letters::DeadLettersArgs),
    Record(record::RecordArgs),
    Replay(Box<replay::ReplayArgs>),
    Apply(apply::ApplyArgs),
    Keygen(Box<keygen::KeygenArgs>),
    Publish(Box<publish::PublishArgs>),
    Deploy(Box<deploy::DeployArgs>),
    Rollback(rollback::RollbackArgs),
    Fleet(Box<fleet::FleetArgs>),
    #[cfg(feature = "control-plane")]
    Cloud(cloud::ControlPlaneArgs),
    #[cfg(feature = "compiler")]
    CompileComponent(compile_component::CompileComponentArgs),
    Completion(completion::CompletionArgs),
    Man(man::ManArgs),
    Demo(demo::DemoArgs),
}

/// Does what the command line says.
///
/// # Errors
/// When the work fails; [`print_error`] shows it and knows the exit status.
pub async fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Run(args) => run::run(&args).await,
        Command::Check(args) => check::run(&args).await,
        Command::Doctor(args) => doctor::run(&args).await,
        Command::Reload(args) => reload::run(&args).await,
        Command::New(args) => new::run(&args),
        Command::Build(args) => build::run(&args).await,
        Command::Invoke(args) => invoke::run(&args).await,
        Command::Status(args) => status::run(&args).await,
        Command::Logs(args) => logs::run(&args).await,
        Command::DeadLetters(args) => dead_letters::run(&args).await,
        Command::Record(args) => record::run(&args).await,
        Command::Replay(args) => replay::run(&args).await,
        Command::Apply(args) => apply::run(&args).await,
        Command::Keygen(args) => keygen::run(&args).await,
        Command::Publish(args) => publish::run(&args).await,
        Command::Deploy(args) => deploy::run(&args).await,
        Command::Rollback(args) => rollback::run(&args).await,
        Command::Fleet(args) => fleet::run(&args).await,
        #[cfg(feature = "control-plane")]
        Command::Cloud(args) => cloud::run(&args).await,
        #[cfg(feature = "compiler")]
        Command::CompileComponent(args) => compile_component::run(&args),
        Command::Completion(args) => completion::run(&args),
        Command::Man(args) => man::run(&args),
        Command::Demo(args) => demo::run(&args).await,
    }
}

/// Refuses what compiles in a build that cannot; `why` is what wants it.
fn needs_compiler(why: &str) -> Result<(), Failure> {
    if HAS_COMPILER {
        return Ok(());
    }
    let hint = "do it on a machine whose tidegate has the feature `compiler`, such as the laptop that functions are published from";
    Err(Failure::wrong(format!("this build of tidegate has no compiler, and {why}"), hint))
}

/// A bundle on the command line that cannot be used.
fn wrong_bundle(error: BundleError) -> anyhow::Error {
    match error {
        BundleError::Manifest(errors) => errors.into(),
        error => {
            let hint = error.hint();
            let mut causes =
                anyhow::Error::from(error).chain().map(ToString::to_string).collect::<Vec<_>>().into_iter();
            let failure = Failure::wrong(causes.next().unwrap_or_default(), hint);
            match causes.reduce(|all, cause| format!("{all}: {cause}")) {
                Some(cause) => failure.caused_by(anyhow::Error::msg(cause)).into(),
                None => failure.into(),
            }
        }
    }
}
