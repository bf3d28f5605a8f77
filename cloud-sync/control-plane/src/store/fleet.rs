//! Gateways, groups, and what gateways say of themselves.

use async_trait::async_trait;
use serde_json::Value;
use sync_protocol::name::{GatewayName, GroupName};
use sync_protocol::report::{Progress, Report};

use super::{Page, Result};
use crate::audit::Entry;

/// A gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayRow {
    /// Its name.
    pub name: GatewayName,
    /// Its groups.
    pub groups: Vec<GroupName>,
    /// Unix time.
    pub created_ms: u64,
    /// Unix time since which it may not call any more.
    pub revoked_ms: Option<u64>,
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRow {
    /// Its name.
    pub name: GroupName,
    /// How many gateways.
    pub gateways: u64,
}

/// The newest report of a gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct Reported {
    /// What it said.
    pub report: Report,
    /// Counts its reports.
    pub version: u64,
    /// Unix time, by the control plane's clock.
    pub received_ms: u64,
}

/// A phase that a gateway was in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhaseRow {
    /// Which.
    pub progress: Progress,
    /// Unix time.
    pub received_ms: u64,
}

/// What people want in a gateway's shadow.
#[derive(Clone, Debug, PartialEq)]
pub struct Shadow {
    /// A JSON object.
    pub desired: Value,
    /// Counts its changes; 0: never set.
    pub version: u64,
}

/// A log line of a gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct LogLine {
    /// Counts over all gateways.
    pub id: u64,
    /// As the gateway's local API gives it.
    pub line: Value,
    /// Unix time.
    pub received_ms: u64,
}

/// Gateways, groups, reports, shadows, logs.
#[async_trait]
pub trait Fleet: Send + Sync + std::fmt::Debug {
    /// Adds a gateway to those that may call, with its groups, which come into being when they are not there.
    async fn add_gateway(&self, name: &GatewayName, groups: &[GroupName], now_ms: u64, entry: &Entry) -> Result<()>;
    /// One of them.
    async fn gateway(&self, name: &GatewayName) -> Result<Option<GatewayRow>>;
    /// By name.
    async fn gateways(&self, page: &Page) -> Result<Vec<GatewayRow>>;
    /// How many there are that may call, and how many of them have reported since `since_ms`.
    async fn count_gateways(&self, since_ms: u64) -> Result<(u64, u64)>;
    /// Takes a gateway's right to call.
    async fn revoke_gateway(&self, name: &GatewayName, now_ms: u64, entry: &Entry) -> Result<()>;

    /// Makes a group what is said; answers who was in it before.
    async fn set_group(
        &self,
        name: &GroupName,
        gateways: &[GatewayName],
        now_ms: u64,
        entry: &Entry,
    ) -> Result<Vec<GatewayName>>;
    /// Removes a group; answers who was in it.
    async fn remove_group(&self, name: &GroupName, entry: &Entry) -> Result<Vec<GatewayName>>;
    /// Who is in it; `None`: there is no such group.
    async fn group(&self, name: &GroupName) -> Result<Option<Vec<GatewayName>>>;
    /// By name.
    async fn groups(&self, page: &Page) -> Result<Vec<GroupRow>>;

    /// Keeps a report as the newest, its phase when it is another than before, and its log lines. Answers the report before.
    async fn report(&self, gateway: &GatewayName, report: &Report, now_ms: u64) -> Result<Option<Reported>>;
    /// The newest report.
    async fn reported(&self, gateway: &GatewayName) -> Result<Option<Reported>>;
    /// The phases of a gateway, newest first.
    async fn phases(&self, gateway: &GatewayName, limit: u64) -> Result<Vec<PhaseRow>>;
    /// The log lines of a gateway behind `after`, oldest first.
    async fn log_lines(&self, gateway: &GatewayName, after: u64, limit: u64) -> Result<Vec<LogLine>>;

    /// What people want in its shadow.
    async fn shadow(&self, gateway: &GatewayName) -> Result<Shadow>;
    /// Replaces that, when it is still at `version`; answers the next version.
    async fn set_shadow(
        &self,
        gateway: &GatewayName,
        desired: &Value,
        version: u64,
        now_ms: u64,
        entry: &Entry,
    ) -> Result<u64>;

    /// Lets go of what is past its time.
    async fn expire(&self, now_ms: u64) -> Result<()>;
}
