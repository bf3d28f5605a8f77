//! `tidegate doctor`: looks at the gateway, and says what to do.

use std::path::Path;

use super::output::{Output, count_of, table};
use super::{ConfigArgs, Failure};
use crate::clock::Clock;
use crate::config::Config;
use crate::doctor::{Finding, Verdict, examine};

/// Looks at this gateway: clock, memory, disk, flash, files, models, brokers and the control plane; and says what to do about what is wrong
#[derive(Debug, clap::Args)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print what was found as JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    // A wrong configuration is found as the rest is, and does not keep from looking at the machine.
    let (config, wrong) = match args.config.load() {
        Ok(config) => (config, Vec::new()),
        Err(errors) => (Config::default(), errors.0),
    };
    let of_config = |problem: crate::config::Problem| Finding {
        about: "configuration".to_owned(),
        verdict: Verdict::Error,
        what: problem.to_string(),
        hint: Some(problem.hint),
    };
    let mut found: Vec<Finding> = wrong.into_iter().map(of_config).collect();
    found.extend(examine(&config, &Clock::system(), Path::new("/")).await);
    if args.json {
        Output::json(&serde_json::json!({ "findings": found }))?;
    } else {
        Output::line(&describe(&found))?;
    }
    let errors = found.iter().filter(|found| found.verdict == Verdict::Error).count();
    if errors > 0 {
        let what = format!("{} on this gateway", count_of(errors as u64, "thing is wrong", ""));
        let what = if errors == 1 { what } else { format!("{errors} things are wrong on this gateway") };
        return Err(Failure::failed(what, "each says above what to do about it").into());
    }
    Ok(())
}

/// A line for each, and below it what to do.
fn describe(found: &[Finding]) -> String {
    let word = |verdict| match verdict {
        Verdict::Ok => "ok",
        Verdict::Unknown => "unknown",
        Verdict::Warning => "WARNING",
        Verdict::Error => "ERROR",
    };
    let rows: Vec<_> = found
        .iter()
        .map(|found| vec![word(found.verdict).to_owned(), found.about.clone(), found.what.clone()])
        .collect();
    let shown = table(&["", "ABOUT", "FOUND"], &rows);
    let mut lines = shown.lines();
    let mut text: Vec<String> = lines.next().into_iter().map(str::to_owned).collect();
    for (line, found) in lines.zip(found) {
        text.push(line.to_owned());
        text.extend(found.hint.as_ref().map(|hint| format!("  hint: {hint}")));
    }
    text.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_stands_below_what_is_wrong() {
        let finding = |verdict, about: &str, hint: Option<&str>| Finding {
            about: about.to_owned(),
            verdict,
            what: "found".to_owned(),
            hint: hint.map(str::to_owned),
        };
        let found = [finding(Verdict::Ok, "clock", None), finding(Verdict::Error, "disk", Some("free space"))];
        assert_eq!(
            describe(&found),
            "       ABOUT  FOUND\nok     clock  found\nERROR  disk   found\n  hint: free space"
        );
    }
}
