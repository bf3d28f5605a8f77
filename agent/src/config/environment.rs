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
    /// `XDG_CONFIG_HOME`, else `.config` in `HOME`: where the person at the command line keeps settings.
    pub config_home: Option<PathBuf>,
}

impl Environment {
    /// What this process was started with.
    #[expect(clippy::disallowed_methods, reason = "the one place that may")]
    pub fn of_process() -> Self {
        let folder = |name| std::env::var_os(name).filter(|path| !path.is_empty()).map(PathBuf::from);
        Self {
            log: std::env::var("TIDEGATE_LOG").ok().filter(|level| !level.is_empty()),
            onnxruntime: folder("TIDEGATE_ONNXRUNTIME"),
            config_home: folder("XDG_CONFIG_HOME").or_else(|| folder("HOME").map(|home| home.join(".config"))),
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
