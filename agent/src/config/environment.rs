//! The environment variables that the agent knows, read here and nowhere else.

use std::path::PathBuf;

use super::{Config, InferenceConfig};

/// What the process's environment says; it wins over gateway.toml.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `TIDEGATE_LOG`: `log.level`.
    pub log: Option<String>,
    /// `TIDEGATE_ONNXRUNTIME`: `inference.library`.
    pub onnxruntime: Option<PathBuf>,
}

impl Environment {
    /// What this process was started with.
    #[expect(clippy::disallowed_methods, reason = "the one place that may")]
    pub fn of_process() -> Self {
        Self {
            log: std::env::var("TIDEGATE_LOG").ok().filter(|level| !level.is_empty()),
            onnxruntime: std::env::var_os("TIDEGATE_ONNXRUNTIME").filter(|path| !path.is_empty()).map(PathBuf::from),
        }
    }

    /// How models run where there is no gateway.toml.
    pub fn inference(&self) -> InferenceConfig {
        InferenceConfig { library: self.onnxruntime.clone(), ..InferenceConfig::default() }
    }

    pub(super) fn apply(&self, config: &mut Config) {
        if let Some(level) = &self.log {
            config.log.level.clone_from(level);
        }
        if let Some(library) = &self.onnxruntime {
            config.inference.library = std::path::absolute(library).ok();
        }
    }
}
