//! `tidegate replay`: runs a recording through a version of a function, and shows what comes out differently.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::Failure;
use super::output::{self, Output, Progress};
use super::throwaway::{self, ModelArg};
use crate::limits::Limits;
use crate::name::FunctionName;
use crate::recording::read::Reader;
use crate::recording::{Came, line};
use crate::replay::{Difference, Latency, Replay, Report, Side, Version};
use crate::store::resolve_alone;

/// Runs recorded events through a version of a function, here and in their own time, and shows what comes out differently
#[derive(Debug, clap::Args)]
pub(super) struct ReplayArgs {
    /// What `tidegate record` wrote, or one event as CloudEvents JSON
    file: PathBuf,
    /// The version to run, a folder or a `.tar.zst` of one
    #[arg(long, value_name = "DIR")]
    bundle: PathBuf,
    /// Compare with this version, which runs too; with what was recorded unless said
    #[arg(long, value_name = "DIR")]
    against: Option<PathBuf>,
    /// Run the events of this function; of the one that the bundle names unless said
    #[arg(long, value_name = "NAME", value_parser = FunctionName::parse)]
    function: Option<FunctionName>,
    /// A model that it runs; `models/NAME.onnx` of the bundle unless said
    #[arg(long = "model", value_name = "NAME=FILE")]
    models: Vec<ModelArg>,
    /// A folder, or a `.tar.zst` of one, that it sees at `/opt`; later ones over earlier ones
    #[arg(long = "layer", value_name = "PATH")]
    layers: Vec<PathBuf>,
    /// A variable of its environment, as gateway.toml has it; may be said again
    #[arg(long = "environment", value_name = "NAME=VALUE", value_parser = variable)]
    environment: Vec<(String, String)>,
    /// How many differences to show whole
    #[arg(long, value_name = "N", default_value_t = 3)]
    show: usize,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("`{text}` is not NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}

pub(super) async fn run(args: &ReplayArgs) -> anyhow::Result<()> {
    super::needs_compiler("a version that is tried is compiled first")?;
    let limits = Limits::default();
    let unreadable = |error| {
        let what = format!("cannot read the recording `{}`", args.file.display());
        Failure::wrong(what, "name a file that `tidegate record` wrote").caused_by(error)
    };
    let (from, bytes) = open(&args.file, &limits).map_err(unreadable)?;
    let state = tempfile::tempdir().context("cannot make a temporary folder")?;
    let new = load(args, &args.bundle, state.path(), &limits).await?;
    let old = match &args.against {
        Some(bundle) => Some(load(args, bundle, state.path(), &limits).await?),
        None => None,
    };
    let function = args.function.clone().unwrap_or_else(|| new.name().clone());
    let mut replay = Replay::new(function, new, old, args.show);
    let mut reader = Reader::new(from, limits.recording_line_bytes_max.0);
    let mut progress = Progress::new("replaying", bytes);
    while let Some(recorded) = reader.next_event().map_err(unreadable)? {
        replay.run(reader.found().lines, recorded).await?;
        progress.at(reader.found().bytes);
    }
    progress.end();
    let report = replay.end(reader.found());
    if args.json {
        Output::json(&report.json())?;
    } else {
        for text in describe(&report) {
            Output::line(&text)?;
        }
    }
    conclude(&report, &args.file)
}

/// The recording, and how large it is. One event may be laid out over several lines.
fn open(file: &Path, limits: &Limits) -> std::io::Result<(Box<dyn BufRead>, u64)> {
    let mut opened = File::open(file)?;
    let bytes = opened.metadata()?.len();
    if bytes <= limits.event_bytes_max.0 {
        let mut content = Vec::new();
        opened.read_to_end(&mut content)?;
        if line::parse(&content).is_ok() {
            // Within JSON a line break is a space.
            content.iter_mut().filter(|byte| **byte == b'\n').for_each(|byte| *byte = b' ');
        }
        return Ok((Box::new(Cursor::new(content)), bytes));
    }
    Ok((Box::new(BufReader::new(opened)), bytes))
}

/// Loads a version as `tidegate invoke --bundle` does.
async fn load(args: &ReplayArgs, bundle: &Path, state: &Path, limits: &Limits) -> anyhow::Result<Version> {
    let mut resolved = resolve_alone(bundle, &args.layers, state, limits).map_err(super::wrong_bundle)?;
    resolved.spec.environment.extend(args.environment.iter().cloned());
    let loaded = async {
        let models = throwaway::models(&resolved.spec, &args.models).await?;
        Version::load(resolved.spec, models).await
    };
    loaded.await.map_err(|error| {
        // Not the same as one that does something else.
        Failure::wrong(format!("`{}` cannot be run", bundle.display()), "").caused_by(error).into()
    })
}

/// Status 0 when all came out the same, 1 when something did not, 2 when nothing ran.
fn conclude(report: &Report, file: &Path) -> anyhow::Result<()> {
    if report.events == 0 {
        let others: Vec<_> = report.of_other_functions.keys().map(|name| format!("`{name}`")).collect();
        let hint = match (others.is_empty(), report.damaged) {
            (false, _) => format!("it has events of {}: say which with `--function`", others.join(", ")),
            (true, 0) => "record some with `tidegate record`".to_owned(),
            (true, _) => "a bare payload is for `tidegate invoke --event`".to_owned(),
        };
        let what = format!("`{}` has no event of function `{}`", file.display(), report.function);
        return Err(Failure::wrong(what, hint).into());
    }
    if report.different > 0 {
        let what = format!("{} of {} events came out differently", report.different, report.events);
        return Err(Failure::failed(what, "`--show N` shows more of them").into());
    }
    Ok(())
}

/// The report for people.
fn describe(report: &Report) -> Vec<String> {
    let mut lines: Vec<_> = report.shown.iter().flat_map(difference).collect();
    let times = [report.first_ms, report.last_ms].map(|time| time.map(output::time).unwrap_or_default());
    let count = |n| output::count_of(n, "event", "s");
    lines.push(format!("{} of `{}`, {} to {}", count(report.events), report.function, times[0], times[1]));
    lines.push(format!("  {} came out the same", report.same));
    lines.push(format!("  {} came out differently", report.different));
    let differences = report.differences.iter().map(|(what, events)| format!("    {events} in {}", what.words()));
    lines.extend(differences);
    let endings = report.endings.iter().map(|((before, after), events)| format!("      {events} {before} → {after}"));
    lines.extend(endings);
    if report.not_compared > 0 {
        lines.push(format!("  {} had no outcome to be compared with", report.not_compared));
    }
    if report.missed > 0 {
        lines.push(format!("missing: {} that the recorder could not take", count(report.missed)));
    }
    if let Some((line, why)) = &report.first_damage {
        let damaged = output::count_of(report.damaged, "line", "s");
        lines.push(format!("left out: {damaged} for damage, first line {line}: {why}"));
    }
    let others =
        report.of_other_functions.iter().map(|(name, events)| format!("left out: {} of `{name}`", count(*events)));
    lines.extend(others);
    lines.push(format!("outcomes {}", report.digest));
    lines.push(String::new());
    lines.push(latencies(report));
    lines
}

fn latencies(report: &Report) -> String {
    let row = |side: &Side, place: &str| {
        let micros = |time: Option<u64>| time.map_or_else(|| "-".to_owned(), |time| format!("{time} µs"));
        let versions: Vec<_> = side.versions.iter().map(String::as_str).collect();
        let Latency { p50_us, p99_us } = side.latency;
        vec![versions.join(", "), place.to_owned(), micros(p50_us), micros(p99_us)]
    };
    let place = if report.is_against_recording { "where it was recorded" } else { "this machine" };
    let rows = [row(&report.before, place), row(&report.after, "this machine")];
    output::table(&["VERSION", "HANDLER ON", "P50", "P99"], &rows)
}

/// A difference whole: what is gone behind `-`, what is new behind `+`.
fn difference(difference: &Difference) -> Vec<String> {
    let Difference { number, line, event, before, after, .. } = difference;
    let subject = event.subject.as_deref().map(|subject| format!(" `{subject}`")).unwrap_or_default();
    let time = output::time(event.time_ms);
    let mut lines = vec![format!("event {number}, line {line}: {}{subject} at {time}, id {}", event.kind, event.id)];
    lines.extend(throwaway::text(&event.data).lines().map(|text| format!("  | {text}")));
    let (old, new) = (told(before), told(after));
    lines.extend(without(&old, &new).into_iter().map(|text| format!("  - {text}")));
    lines.extend(without(&new, &old).into_iter().map(|text| format!("  + {text}")));
    lines.push(String::new());
    lines
}

/// What a run gave, in words.
fn told(came: &Came) -> Vec<String> {
    let ended = match &came.why {
        Some(why) => why.clone(),
        None if came.result.is_empty() => "returned nothing".to_owned(),
        None => format!("returned {}", throwaway::text(&came.result)),
    };
    std::iter::once(ended).chain(throwaway::describe(&came.effects)).collect()
}

/// Those of `texts` that are not in `others`, each as often as it is more often there.
fn without<'a>(texts: &'a [String], others: &[String]) -> Vec<&'a str> {
    let mut others: Vec<_> = others.iter().collect();
    let mut new = Vec::new();
    for text in texts {
        match others.iter().position(|other| *other == text) {
            Some(at) => drop(others.remove(at)),
            None => new.push(text.as_str()),
        }
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_shows_what_is_gone_and_what_is_new() {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let (old, new) = (texts(&["a", "b", "b", "c"]), texts(&["b", "c", "d"]));
        assert_eq!(without(&old, &new), ["a", "b"]);
        assert_eq!(without(&new, &old), ["d"]);
    }
}
