//! `tidegate man`: the manual pages.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::CommandFactory as _;

use super::Args;

/// Writes the manual pages, one of each command, as packages have them
#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// Where to; `/usr/local/share/man/man1` is where `man` finds them
    folder: PathBuf,
}

pub(super) fn run(args: &ManArgs) -> anyhow::Result<()> {
    let folder = args.folder.display();
    std::fs::create_dir_all(&args.folder).with_context(|| format!("cannot make the folder `{folder}`"))?;
    clap_mangen::generate_to(Args::command(), &args.folder)
        .with_context(|| format!("cannot write the manual pages into `{folder}`"))
}
