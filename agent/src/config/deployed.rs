//! What a deployment brings, by the readers and checks of gateway.toml: its mistakes are told in the same words.

use std::collections::BTreeMap;

use toml::Value;

use super::document::{Document, Problem};
use super::read::{Read, keys};
use super::{Config, ConfigErrors, FunctionConfig, ModelConfig, Names, StreamConfig, check};
use crate::limits::Limits;
use crate::name::StreamName;

/// As much of gateway.toml as a deployment may say.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct DeployedConfig {
    pub(crate) stream: BTreeMap<StreamName, StreamConfig>,
    pub(crate) model: Vec<ModelConfig>,
    pub(crate) function: Vec<FunctionConfig>,
}

keys! { DeployedConfig: stream = section(BTreeMap::new()), model = each(), function = each() }

impl Config {
    /// This gateway.toml, and beside it what `said` brings, which is called `origin` in messages. Where both have one of a name,
    /// gateway.toml wins, and the second value tells so.
    pub(crate) fn with_deployed(
        &self,
        origin: &str,
        said: toml::Table,
        limits: &Limits,
    ) -> Result<(Self, Vec<Problem>), ConfigErrors> {
        let said = Value::Table(said);
        let mut document = Document::of_value(origin);
        let Some(mut deployed) = DeployedConfig::read(&said, "", &mut document) else { return document.finish(None) };
        let mut hidden = Vec::new();
        let mut is_hidden = |kind: &str, name: &str, is_local: bool| {
            if is_local {
                hidden.push(Problem {
                    place: document.place(""),
                    key: format!("{kind}[{name}]"),
                    what: format!("gateway.toml has a {kind} `{name}` of its own, which wins"),
                    hint: "nothing to do, when this is meant; otherwise remove it from gateway.toml".to_owned(),
                });
            }
            is_local
        };
        deployed.stream.retain(|name, _| !is_hidden("stream", name.as_str(), self.stream.contains_key(name)));
        deployed.model.retain(|model| {
            let is_local = self.model.iter().any(|local| local.name == model.name);
            !is_hidden("model", model.name.as_str(), is_local)
        });
        deployed.function.retain(|function| {
            let is_local = self.function.iter().any(|local| local.name == function.name);
            !is_hidden("function", function.name.as_str(), is_local)
        });
        let mut config = self.clone();
        config.stream.extend(deployed.stream.clone());
        config.model.extend(deployed.model.iter().cloned());
        config.function.extend(deployed.function.iter().cloned());
        check::check_deployed(&deployed, &config, &Names::of(&config), limits, &mut document);
        Ok((document.finish(Some(config))?, hidden))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local() -> Config {
        "[mqtt.local]\nurl = \"mqtt://127.0.0.1:1\"\n[stream.readings]\nmax_bytes = \"8 MiB\"\n[[function]]\nname = \"mine\"\nbundle = \"b\"\n"
            .parse()
            .unwrap()
    }

    fn merged(said: &str) -> Result<(Config, Vec<Problem>), String> {
        let said = said.parse::<toml::Table>().unwrap();
        local().with_deployed("deployment 8", said, &Limits::default()).map_err(|errors| errors.to_string())
    }

    #[test]
    fn what_is_deployed_stands_beside_what_is_local() {
        let (config, hidden) = merged(
            "[stream.results]\n[[function]]\nname = \"theirs\"\nbundle = \"c\"\ncapabilities = [\"stream:results\", \"stream:readings\"]\n",
        )
        .unwrap();
        assert_eq!(config.function.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["mine", "theirs"]);
        assert_eq!((config.stream.len(), hidden.len()), (2, 0));
    }

    #[test]
    fn gateway_toml_wins_and_that_is_told() {
        let (config, hidden) =
            merged("[stream.readings]\nmax_bytes = \"9 MiB\"\n[[function]]\nname = \"mine\"\nbundle = \"c\"\n")
                .unwrap();
        assert_eq!(config.function.len(), 1);
        assert_eq!(config.stream["readings"].max_bytes, crate::units::ByteSize::mib(8));
        let told: Vec<_> = hidden.iter().map(ToString::to_string).collect();
        assert_eq!(told[1], "deployment 8: function[mine]: gateway.toml has a function `mine` of its own, which wins");
        assert_eq!(told.len(), 2);
    }

    #[test]
    fn a_mistake_names_the_deployment_the_function_and_the_key() {
        let error = merged("[[function]]\nname = \"theirs\"\nbundle = \"c\"\ntimeout = \"3 hours\"\n").unwrap_err();
        assert!(error.starts_with("deployment 8: function[theirs].timeout: `3 hours` is not a duration"), "{error}");
        let error = merged("[[function]]\nname = \"theirs\"\nbundle = \"c\"\ntimeout = \"0s\"\n").unwrap_err();
        assert!(error.starts_with("deployment 8: function[theirs].timeout: 0s is not between"), "{error}");
        let error =
            merged("[[function]]\nname = \"theirs\"\nbundle = \"c\"\ncapabilities = [\"stream:nix\"]\n").unwrap_err();
        assert!(error.contains("there is no stream `nix`"), "{error}");
    }

    /// A deployment is signed by somebody who may not be the one who keeps this machine's secrets.
    #[test]
    fn a_deployment_reaches_no_file_of_the_gateway() {
        let error =
            merged("[[function]]\nname = \"theirs\"\nbundle = \"c\"\nsecrets = { A = \"/etc/shadow\" }\n").unwrap_err();
        assert!(error.contains("function[theirs].secrets: a deployment may name no file"), "{error}");
        let error =
            merged("[stream.x]\nuplink = { http = \"https://a\", token_file = \"/etc/shadow\" }\n").unwrap_err();
        assert!(error.contains("stream.x.uplink: a deployment may name no file"), "{error}");
        let error = merged("[stream.x]\nuplink = { cloud = true }\n").unwrap_err();
        assert!(error.contains("there is no control plane"), "{error}");
    }
}
