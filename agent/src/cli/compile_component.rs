//! `tidegate compile-component`: what the agent starts to have a component compiled; nobody else needs it.

use std::io;

use crate::runtime::{CompileTask, compile_apart};

/// Compiles the component that it reads for the agent that has started it, and writes its code
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(super) struct CompileComponentArgs {
    /// SHA-256 of the component, in hexadecimal
    #[arg(long)]
    digest: String,
    /// Process that wants it
    #[arg(long)]
    parent: i32,
    /// Most memory that it may take
    #[arg(long)]
    memory_bytes: u64,
    /// Address space that the engine reserves for each memory
    #[arg(long)]
    reservation_bytes: Option<u64>,
}

pub(super) fn run(args: &CompileComponentArgs) -> anyhow::Result<()> {
    let task = CompileTask {
        digest: args.digest.clone(),
        parent: args.parent,
        memory_bytes: args.memory_bytes,
        reservation: args.reservation_bytes,
    };
    compile_apart(&task, io::stdin().lock(), io::stdout().lock())
}
