//! One version of something that can be deployed, as its publisher signs it.

use std::fmt;

use semver::Version;
use serde::{Deserialize, Serialize};

use crate::Digest;
use crate::capability::Capabilities;
use crate::envelope::Document;
use crate::limits::RELEASE_BYTES_MAX;
use crate::name::ArtifactName;

/// What kind of thing it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Code and manifest: a bundle file of `tidegate build`.
    Function,
    /// An ONNX model with its tests: a `.tar.zst` of `model.onnx` and, if there are any, `model.tests.json`.
    Model,
    /// A folder that functions share: a `.tar.zst` of it.
    Layer,
    /// The interpreter of a language: a component.
    Runtime,
    /// The agent itself: a program for each processor that it was built for.
    Agent,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Function, Self::Model, Self::Layer, Self::Runtime, Self::Agent];

    /// As in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Function => "function",
            Self::Model => "model",
            Self::Layer => "layer",
            Self::Runtime => "runtime",
            Self::Agent => "agent",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Bytes that are fetched: always by their digest, never more than said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    /// Of all of it.
    pub digest: Digest,
    /// Exactly how many.
    pub bytes: u64,
}

/// Machine code for one processor: of a component, which the publisher has compiled for gateways without a compiler, or of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NativeCode {
    /// `aarch64-unknown-linux-gnu`, `pulley32`, ….
    pub target: String,
    /// What the gateway's engine must say of itself for the code to fit; of an agent, which of its builds it is: `full` or `thin`.
    pub compatibility: String,
    /// The code.
    pub blob: Blob,
}

/// An immutable version. The same name and version with other bytes is refused everywhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// What it is.
    pub kind: Kind,
    /// Its name, the same for all its versions.
    pub name: ArtifactName,
    /// Semantic version.
    pub version: Version,
    /// The bundle; of an agent the first of its builds, which are all in `native`.
    pub blob: Blob,
    /// The most that any operator may grant it (functions).
    #[serde(default)]
    pub capabilities: Capabilities,
    /// Names of the models that it works with (functions).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<ArtifactName>,
    /// Once this version was active on a gateway, no version below this one runs there again: a hole that was mended stays mended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum: Option<Version>,
    /// Compiled code (functions), or all builds (agents).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub native: Vec<NativeCode>,
    /// Unix time at which it was signed, by the publisher's clock.
    pub published_ms: u64,
}

impl Document for Release {
    const TYPE: &'static str = "release";
    const BYTES_MAX: usize = RELEASE_BYTES_MAX;
}

impl Release {
    /// What a gateway of any kind needs of it: nothing of an agent, of which it takes the build for its processor only.
    pub fn bundle(&self) -> Option<Blob> {
        (self.kind != Kind::Agent).then_some(self.blob)
    }

    /// `function/oven`: what all its versions have in common.
    pub fn unversioned(&self) -> String {
        format!("{}/{}", self.kind, self.name)
    }
}

/// `function/oven 1.2.0`.
impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} {}", self.kind, self.name, self.version)
    }
}
