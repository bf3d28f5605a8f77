//! Finds the agent of this machine by its socket.

use std::path::PathBuf;

use super::ConfigArgs;
use crate::api::client::{Client, ClientError};
use crate::config;

/// Where a packaged agent listens.
const INSTALLED: &str = "/run/tidegate/tidegate.sock";

/// Which agent is meant.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct AgentArgs {
    /// The agent's Unix socket; the one that the configuration names unless said
    #[arg(long, value_name = "FILE", global = true)]
    socket: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
}

impl AgentArgs {
    /// Connects to the agent.
    pub(super) async fn connect(&self) -> Result<Client, ClientError> {
        Client::connect(&self.path()).await
    }

    fn path(&self) -> PathBuf {
        if let Some(socket) = &self.socket {
            return socket.clone();
        }
        // Only the socket's place is asked for: this user may not be able to read what else the config names.
        config::socket_in(&self.config.file()).unwrap_or_else(|| PathBuf::from(INSTALLED))
    }
}
