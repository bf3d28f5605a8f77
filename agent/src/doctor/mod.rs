//! What of this gateway is not as it should be, whether its agent runs or not, and what to do about it. Looks only, and changes nothing.

mod files;
mod links;
mod machine;

use std::path::Path;

use serde::Serialize;

use crate::api::client::Client;
use crate::api::status::Status;
use crate::clock::Clock;
use crate::config::Config;

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It cannot be told here.
    Unknown,
    /// It works, and may not for long or not as wished.
    Warning,
    /// Something does not work because of it.
    Error,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which: `clock`, `broker local`.
    pub about: String,
    /// How bad it is.
    pub verdict: Verdict,
    /// What was found.
    pub what: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Finding {
    fn new(about: impl Into<String>, verdict: Verdict, what: impl Into<String>) -> Self {
        Self { about: about.into(), verdict, what: what.into(), hint: None }
    }

    fn ok(about: impl Into<String>, what: impl Into<String>) -> Self {
        Self::new(about, Verdict::Ok, what)
    }

    fn unknown(about: impl Into<String>, what: impl Into<String>) -> Self {
        Self::new(about, Verdict::Unknown, what)
    }

    fn warning(about: impl Into<String>, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..Self::new(about, Verdict::Warning, what) }
    }

    fn error(about: impl Into<String>, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..Self::new(about, Verdict::Error, what) }
    }
}

/// Looks at the machine, the files that `config` names, and all that it connects to, in an order in which the first that is wrong
/// is most likely why others are. `root` is `/`.
pub async fn examine(config: &Config, clock: &Clock, root: &Path) -> Vec<Finding> {
    let state_dir = &config.gateway.state_dir;
    let mut found = vec![machine::clock(clock), machine::memory(root)];
    found.extend(machine::power(root));
    found.push(machine::disk(state_dir, config.gateway.buffer_bytes));
    found.push(machine::wear(state_dir, root));
    found.push(files::state(state_dir));
    found.extend(files::secrets(config));
    found.extend(files::certificates(config, clock.now_ms()));
    found.extend(files::devices(config));
    found.push(links::engine(config));
    let running = running(config).await;
    found.push(links::agent(config, running.as_ref()));
    found.extend(links::brokers(config, running.as_ref()).await);
    found.extend(links::control_plane(config, running.as_ref()).await);
    found
}

/// What the agent of this gateway says, if it runs and lets us ask.
async fn running(config: &Config) -> Option<Status> {
    Client::connect(&config.socket()).await.ok()?.get("/v1/status").await.ok()?.json().ok()
}
