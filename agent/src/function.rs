//! A function as the agent runs it: its bundle's manifest with gateway.toml's settings over it, nothing left open.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use crate::capability::Capabilities;
use crate::config::function::{DestinationConfig, IdempotencyConfig, Isolation, Order, RetryConfig, TriggerConfig};
use crate::name::{FunctionName, SourceName};
use crate::store::layers::View;
use crate::units::{ByteSize, Span};

/// Everything that decides how a function runs. Two equal specs need no restart.
#[derive(Clone, Debug, PartialEq)]
pub struct FunctionSpec {
    /// Its name on this gateway.
    pub name: FunctionName,
    /// Its version, from the manifest.
    pub version: Arc<str>,
    /// The component's file.
    pub component: PathBuf,
    /// SHA-256 of the component, lower-case hexadecimal.
    pub digest: Arc<str>,
    /// Folder of the bundle, mounted read-only at `/var/task`.
    pub root: PathBuf,
    /// Its layers over each other, mounted read-only at `/opt`.
    pub layers: Option<Arc<View>>,
    /// Folders of sources that it may read, mounted read-only at `/mnt/NAME`.
    pub folders: BTreeMap<SourceName, PathBuf>,
    /// Longest a handler may run.
    pub timeout: Span,
    /// Linear memory of one instance.
    pub memory: ByteSize,
    /// Instances at the same time.
    pub concurrency: u32,
    /// Whether an instance serves one event only.
    pub isolation: Isolation,
    /// Environment and `wasi:config`, secrets included.
    pub environment: BTreeMap<String, String>,
    /// Granted.
    pub capabilities: Capabilities,
    /// Further attempts.
    pub retry: RetryConfig,
    /// Which events run once.
    pub idempotency: Option<IdempotencyConfig>,
    /// Which events wait for each other.
    pub order: Order,
    /// Where the returned value goes.
    pub on_success: Vec<DestinationConfig>,
    /// Where an event that was given up on goes, beside the dead letters.
    pub on_failure: Vec<DestinationConfig>,
    /// What it runs on.
    pub triggers: Vec<TriggerConfig>,
}
