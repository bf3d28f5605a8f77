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
    /// `CREDENTIALS_DIRECTORY`: where systemd puts what `LoadCredential` of the unit names.
    pub credentials: Option<PathBuf>,
    /// `TIDEGATE_BOOT`: what the packaged agent says to a deployed one that it has chosen; not for people.
    pub boot: Option<String>,
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
            credentials: folder("CREDENTIALS_DIRECTORY"),
            boot: std::env::var("TIDEGATE_BOOT").ok(),
            config_home: folder("XDG_CONFIG_HOME").or_else(|| folder("HOME").map(|home| home.join(".config"))),
        }
    }

    /// How models run where there is no gateway.toml.
    pub fn inference(&self) -> InferenceConfig {
        InferenceConfig { library: self.onnxruntime.clone(), ..InferenceConfig::default() }
    }

    /// Where credentials are: those of the packaged service for who is none, such as `tidegate check`.
    pub(super) fn credentials(&self) -> PathBuf {
        self.credentials.clone().unwrap_or_else(|| "/run/credentials/tidegate.service".into())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_a_file_that_systemd_gave() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("local"), "secret").unwrap();
        let environment = Environment { credentials: Some(folder.path().to_owned()), ..Environment::default() };
        let text = "[mqtt.local]\nurl = \"mqtt://a\"\nusername = \"b\"\npassword_file = \"credential:local\"\n";
        let config = Config::parse(text, "/etc/tidegate/gateway.toml".as_ref(), &environment).unwrap();
        let broker = config.mqtt.values().next().unwrap();
        assert_eq!(broker.password_file, Some(folder.path().join("local")));
    }
}
