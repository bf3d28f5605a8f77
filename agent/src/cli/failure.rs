//! How a command fails: what, why not, what to do about it, and the exit status.

use std::fmt;
use std::process::ExitCode;

use super::output::Errors;
use crate::api::client::ClientError;
use crate::config::{ConfigErrors, Problem};
use crate::hint::Told;

/// Exit statuses, as the reference documents them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The function or the work failed.
    Failed = 1,
    /// The command or its input is wrong.
    Wrong = 2,
    /// There is no agent, or no control plane, to reach.
    Unreachable = 3,
}

/// An error that says what to do about it. Its causes are the ones of the error that it is wrapped in.
#[derive(Debug)]
pub struct Failure {
    what: String,
    hint: String,
    status: Status,
    cause: Option<anyhow::Error>,
}

impl Failure {
    /// The command or its input is wrong.
    pub fn wrong(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), hint: hint.into(), status: Status::Wrong, cause: None }
    }

    /// The function or the work failed.
    pub fn failed(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status: Status::Failed, ..Self::wrong(what, hint) }
    }

    /// There is no agent, or no control plane, to reach.
    pub fn unreachable(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status: Status::Unreachable, ..Self::wrong(what, hint) }
    }

    /// Whether nobody was there, so that it may be worth another try.
    pub(super) fn is_unreachable(&self) -> bool {
        self.status == Status::Unreachable
    }

    /// With what it came from.
    #[must_use]
    pub fn caused_by(self, cause: impl Into<anyhow::Error>) -> Self {
        Self { cause: Some(cause.into()), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_ref().map(AsRef::as_ref)
    }
}

/// Shows `error` on stderr, and says which status to end with.
pub fn print_error(error: &anyhow::Error) -> ExitCode {
    let mut text = String::new();
    let status = describe(error, &mut text);
    Errors::line(&text);
    ExitCode::from(status as u8)
}

/// Writes `error` as a person reads it, and says which status it stands for.
fn describe(error: &anyhow::Error, text: &mut String) -> Status {
    let find = |e: &(dyn std::error::Error + 'static)| e.downcast_ref::<ConfigErrors>().cloned();
    if let Some(ConfigErrors(problems)) = error.chain().find_map(find) {
        *text = describe_problems("error", &problems);
        if problems.len() > 1 {
            *text = format!("{text}\n\nerror: {} problems", problems.len());
        }
        return Status::Wrong;
    }
    let failure = error.chain().find_map(|e| e.downcast_ref::<Failure>());
    let told = Told::of(error);
    *text = format!("error: {}", told.causes.join("\n  caused by: "));
    // The command knows best what to do.
    if let Some(hint) = failure.map(|failure| failure.hint.clone()).filter(|hint| !hint.is_empty()).or(told.hint) {
        *text = format!("{text}\n\nhint: {hint}");
    }
    let of_client = || error.chain().find_map(|e| e.downcast_ref::<ClientError>()).map(ClientError::exit_status);
    match failure.map(|failure| failure.status as u8).or_else(of_client) {
        Some(2) => Status::Wrong,
        Some(3) => Status::Unreachable,
        _ => Status::Failed,
    }
}

/// Each problem with its hint below it.
pub(super) fn describe_problems(severity: &str, problems: &[Problem]) -> String {
    let described: Vec<String> = problems.iter().map(|p| format!("{severity}: {p}\n  hint: {}", p.hint)).collect();
    described.join("\n")
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn an_error_says_what_why_not_and_what_to_do() {
        let cause = std::io::Error::other("connection refused");
        let error: Result<(), _> =
            Err(Failure::unreachable("no agent answers on `/run/x.sock`", "start it").caused_by(cause));
        let mut text = String::new();
        let status = describe(&error.context("cannot invoke `fahrenheit`").unwrap_err(), &mut text);
        assert_eq!(status, Status::Unreachable);
        assert_eq!(
            text,
            "error: cannot invoke `fahrenheit`\n  caused by: no agent answers on `/run/x.sock`\n  caused by: connection refused\n\nhint: start it"
        );
    }
}
