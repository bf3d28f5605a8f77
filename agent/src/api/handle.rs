//! What the API needs of the agent, so that it can be tried without one.

use std::io::Read;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::status::{Health, Reloaded, Status};
use crate::deployment::{Applied, ApplyError, DeploymentStatus};
use crate::dispatch::{Answer, LetterError, LetterPage, StoredLetter};
use crate::event::Event;
use crate::metrics::Metrics;
use crate::name::FunctionName;
use crate::recording::tap::{Recording, Selection, TooManyRecordings};
use crate::telemetry::LogRing;
use crate::trigger::event::EventTriggers;
use crate::trigger::http::FunctionUrls;
use crate::trigger::{Refused, Submit};

/// The agent, as the API sees it.
pub trait AgentHandle: Submit + 'static {
    /// Whether it does its work, and why not.
    fn health(&self) -> Health;

    /// What runs, and what it did.
    fn status(&self) -> Status;

    /// What Prometheus reads.
    fn metrics(&self) -> &Metrics;

    /// What was logged of late.
    fn logs(&self) -> &LogRing;

    /// The version of a function that serves now; `None` when there is no such function.
    fn version(&self, function: &FunctionName) -> Option<Arc<str>>;

    /// Which functions want which posted events.
    fn event_triggers(&self) -> Arc<EventTriggers>;

    /// Which functions have which URLs.
    fn function_urls(&self) -> Arc<FunctionUrls>;

    /// Runs `function` once on `event`: no retry, no dead letter.
    fn invoke<'a>(&'a self, function: &'a FunctionName, event: Arc<Event>) -> BoxFuture<'a, Result<Answer, Refused>>;

    /// Hears of the runs that are `wanted`, from now on.
    ///
    /// # Errors
    /// When too many do.
    fn record(&self, wanted: Selection) -> Result<Recording, TooManyRecordings>;

    /// Up to `count_max` dead letters after `after`: those of one function, or all.
    fn letters(
        &self,
        function: Option<FunctionName>,
        after: u64,
        count_max: usize,
    ) -> BoxFuture<'_, Result<LetterPage, LetterError>>;

    /// One dead letter.
    fn letter(&self, id: u64) -> BoxFuture<'_, Result<StoredLetter, LetterError>>;

    /// Tries again what a dead letter keeps; then the letter is gone.
    fn replay(&self, id: u64) -> BoxFuture<'_, Result<StoredLetter, LetterError>>;

    /// Drops a dead letter for good.
    fn drop_letter(&self, id: u64) -> BoxFuture<'_, Result<(), LetterError>>;

    /// What is deployed here; `None` when nobody may deploy.
    fn deployment(&self) -> Option<DeploymentStatus>;

    /// Takes a deployment file, and has its deployment run.
    fn apply(&self, archive: Box<dyn Read + Send>) -> BoxFuture<'_, Result<Applied, ApplyError>>;

    /// Reads the config again and applies the difference. The error is for the caller: what, which, why not, hint.
    fn reload(&self) -> BoxFuture<'_, Result<Reloaded, String>>;
}
