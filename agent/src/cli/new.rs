//! `tidegate new`: a function that builds and passes its tests as it stands.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::Failure;
use super::output::Output;
use crate::name::FunctionName;
use crate::templates;

/// Makes a folder with a new function that builds and passes its tests as it stands
#[derive(Debug, clap::Args)]
pub(super) struct NewArgs {
    /// The function's name, and its folder's; a path makes the folder there
    name: PathBuf,
    /// What the function is written in
    #[arg(long, value_enum, default_value_t = Language::Rust)]
    language: Language,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Language {
    Rust,
    C,
    Python,
    Javascript,
}

pub(super) fn run(args: &NewArgs) -> anyhow::Result<()> {
    if args.language != Language::Rust {
        let language = format!("{:?}", args.language).to_lowercase();
        let what = format!("`--language {language}` is not available in this version");
        return Err(Failure::wrong(
            what,
            "use `--language rust`, or bring a component of your own: see the reference of function.toml",
        )
        .into());
    }
    let folder = &args.name;
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let name = FunctionName::parse(&name)
        .map_err(|error| Failure::wrong(error.to_string(), "for example `tidegate new threshold-alarm`"))?;
    if folder.exists() {
        let what = format!("`{}` is there already", folder.display());
        return Err(Failure::wrong(what, "choose another name, or remove it first").into());
    }
    lay(folder, &name).with_context(|| format!("cannot make `{}`", folder.display()))?;
    let shown = folder.display();
    Output::line(&format!(
        "made `{shown}`; next:\n  tidegate build {shown}\n  tidegate invoke --bundle {shown} --event {shown}/events/hot.json"
    ))?;
    Ok(())
}

/// Writes all files of a new function.
fn lay(folder: &Path, name: &FunctionName) -> anyhow::Result<()> {
    for (path, text) in templates::rust(name.as_str()) {
        let file = folder.join(path);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&file, text).with_context(|| format!("cannot write `{}`", file.display()))?;
    }
    Ok(())
}
