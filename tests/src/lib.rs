//! What the end-to-end tests and the bench speak in: a mosquitto, an agent as a process, devices, a link that can be cut.
//!
//! Everything is real and belongs to one test: processes end with the value that started them, ports are free ones, files
//! are in a folder of the test's own.

mod agent;
mod browser;
mod control_plane;
mod device;
mod guest;
pub mod http;
pub mod line;
#[path = "../../agent/tests/support/mosquitto.rs"]
mod mosquitto;
pub mod signed;
pub mod site;
pub mod wire;

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;

pub use self::agent::Agent;
pub use self::browser::Browser;
pub use self::control_plane::ControlPlane;
pub use self::device::{Device, Message};
pub use self::guest::Guest;
pub use self::mosquitto::Mosquitto;
pub use self::signed::Signers;
pub use self::site::Site;
pub use tidegate::cli::demo::link::Link;

/// How long a test waits for what must come: long, since it only matters when the test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A TCP port that was free a moment ago.
///
/// # Errors
/// When there is none.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// The folder of the repository.
pub fn repository() -> PathBuf {
    let tests = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    tests.parent().map(PathBuf::from).unwrap_or(tests)
}

/// A bundle of `functions/examples`.
pub fn example(name: &str) -> PathBuf {
    repository().join("functions/examples").join(name)
}

/// The agent's binary, built with the profile that this test was built with.
///
/// # Errors
/// When it has not been built.
pub fn tidegate() -> anyhow::Result<PathBuf> {
    let mut folder = std::env::current_exe()?;
    // target/PROFILE/deps/TEST, or target/PROFILE/BENCH
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    let binary = folder.join("tidegate");
    anyhow::ensure!(binary.is_file(), "{} is not there\n\nhint: run `cargo build -p tidegate` first", binary.display());
    Ok(binary)
}

/// What starts the agent of a test: [`tidegate`], or the binary that `TIDEGATE_TEST_AGENT` names, by which `cross/suite` has a gateway's
/// run under emulation. What people type there, and the control plane, are this machine's.
///
/// # Errors
/// When it has not been built.
pub fn agent() -> anyhow::Result<Command> {
    #[expect(clippy::disallowed_methods, reason = "tests have no configuration")]
    let named = std::env::var_os("TIDEGATE_TEST_AGENT").map(PathBuf::from);
    Ok(Command::new(named.map_or_else(tidegate, Ok)?))
}

/// `seq` of a reading, of what was made of it, or of the envelope around it.
///
/// # Errors
/// When it is not JSON, or has none.
pub fn seq(payload: &[u8]) -> anyhow::Result<u64> {
    let json: serde_json::Value = serde_json::from_slice(payload)?;
    json["seq"].as_u64().or_else(|| json["data"]["seq"].as_u64()).with_context(|| format!("no seq in {json}"))
}

/// Waits until `done` says so.
///
/// # Errors
/// When it does not within [`PATIENCE`]; `what` is what was waited for.
pub async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) -> anyhow::Result<()> {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.map_err(|_| anyhow::anyhow!("waited {PATIENCE:?} for: {what}"))
}
