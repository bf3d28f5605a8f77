//! deployment.toml: what an operator writes, from which `tidegate deploy` composes a deployment.
//!
//! Its keys are those of gateway.toml; the settings go into the deployment as they are written, once they were checked.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value as Json;
use sync_protocol::deployment::Policy;
use toml::Value;

use super::check::{Names, check_layers, check_settings};
use super::document::{ConfigErrors, Document};
use super::function::FunctionSettings;
use super::read::{Read, keys};
use super::stream::StreamConfig;
use crate::capability::Capability;
use crate::limits::Limits;
use crate::name::{ArtifactName, GatewayName, GroupName, StreamName};
use crate::units::Span;

/// The whole file.
#[derive(Clone, Debug, PartialEq)]
pub struct DeploymentFile {
    /// Whom it is for, unless the command line says.
    pub group: Option<GroupName>,
    /// As `group`, for one gateway.
    pub gateway: Option<GatewayName>,
    /// Why, for those who read it.
    pub comment: String,
    /// Until when a gateway that does not run it yet may take it.
    pub expires: Span,
    /// `[[function]]`.
    pub function: Vec<FunctionItem>,
    /// `[[model]]`.
    pub model: Vec<ModelItem>,
    /// `[[layer]]`.
    pub layer: Vec<Item>,
    /// `[[runtime]]`.
    pub runtime: Vec<Item>,
    /// `[agent]`: what all of it runs on; the packaged agent without it.
    pub agent: Option<Item>,
    /// `[stream.NAME]`.
    pub stream: BTreeMap<StreamName, StreamConfig>,
    /// `[policy]`.
    pub policy: PolicyFile,
    /// Settings by `function.NAME`, `model.NAME` and `stream.NAME`, as they go into the deployment.
    settings: BTreeMap<String, BTreeMap<String, Json>>,
}

keys! { DeploymentFile:
    group = optional(),
    gateway = optional(),
    comment = or(String::new()),
    expires = or(Span::from_secs(90 * 86_400)),
    function = each(),
    model = each(),
    layer = each(),
    runtime = each(),
    agent = setting(),
    stream = section(BTreeMap::new()),
    policy = or(PolicyFile::default());
    with settings = |_table| BTreeMap::new()
}

/// `[[function]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct FunctionItem {
    /// Its name in the registry, and on the gateway.
    pub name: ArtifactName,
    /// A version, or an alias.
    pub version: String,
    /// What is granted.
    pub capabilities: Vec<Capability>,
    /// Layers of this deployment that it sees over each other at `/opt`; the last one on top.
    pub layers: Vec<ArtifactName>,
    /// What replaces the bundle's own.
    pub settings: FunctionSettings,
}

keys! { FunctionItem:
    name = required("\"fahrenheit\""),
    version = required("\"live\""),
    capabilities = section(Vec::new()),
    layers = section(Vec::new());
    flatten settings: FunctionSettings
}

/// `[[model]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelItem {
    /// Its name in the registry, and on the gateway.
    pub name: ArtifactName,
    /// A version, or an alias.
    pub version: String,
    /// Runs of it at the same time.
    pub concurrency: Option<u16>,
}

keys! { ModelItem: name = required("\"motion\""), version = required("\"live\""), concurrency = optional() }

/// `[[layer]]`, `[[runtime]]` and `[agent]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its name in the registry.
    pub name: ArtifactName,
    /// A version, or an alias.
    pub version: String,
}

keys! { Item: name = required("\"common\""), version = required("\"live\"") }

/// `[policy]`: how a gateway judges it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyFile {
    /// Longest that fetching may take while there is a link.
    pub download_deadline: Option<Span>,
    /// Longest that verifying, compiling and testing may take.
    pub stage_deadline: Option<Span>,
    /// How long it is watched before it is kept.
    pub probation: Option<Span>,
    /// Share of failed invocations above which it is rolled back, in per cent.
    pub failed_percent_max: Option<u8>,
    /// Fewest invocations from which that share is judged.
    pub invocations_min: Option<u32>,
    /// How many times slower than before it may be; 0: not judged.
    pub slower_times_max: Option<u32>,
}

keys! { PolicyFile:
    download_deadline = optional(),
    stage_deadline = optional(),
    probation = optional(),
    failed_percent_max = optional(),
    invocations_min = optional(),
    slower_times_max = optional(),
}

impl PolicyFile {
    /// With the defaults for what it does not say.
    pub fn policy(&self) -> Policy {
        let or = |span: Option<Span>, ms| span.map_or(ms, |span| u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX));
        let default = Policy::default();
        Policy {
            download_deadline_ms: or(self.download_deadline, default.download_deadline_ms),
            stage_deadline_ms: or(self.stage_deadline, default.stage_deadline_ms),
            probation_ms: or(self.probation, default.probation_ms),
            failed_percent_max: self.failed_percent_max.unwrap_or(default.failed_percent_max),
            invocations_min: self.invocations_min.map_or(default.invocations_min, u64::from),
            slower_times_max: self.slower_times_max.map_or(default.slower_times_max, u64::from),
        }
    }
}

impl DeploymentFile {
    /// Reads and checks `file`.
    ///
    /// # Errors
    /// With all that is wrong, each with its place and what to do about it.
    pub fn load(file: &Path) -> Result<Self, ConfigErrors> {
        let mut document = Document::open(file, "name the deployment.toml; the guide on fleets has one to copy")?;
        if document.has_problems() {
            return document.finish(None);
        }
        let root = std::mem::replace(&mut document.root, Value::Boolean(false));
        let mut read = Self::read(&root, "", &mut document);
        if let Some(read) = &mut read {
            for function in &read.function {
                let path = format!("function[{}]", function.name);
                check_settings(&function.settings, &path, &Names::any(), &Limits::default(), &mut document);
                check_layers(function.layers.len(), &path, &Limits::default(), &mut document);
                for (i, name) in function.layers.iter().enumerate() {
                    if !read.layer.iter().any(|layer| layer.name == *name) {
                        let hint = format!("add `[[layer]]` with `name = \"{name}\"` and its version");
                        document.refuse(&format!("{path}.layers[{i}]"), format!("there is no layer `{name}`"), hint);
                    }
                }
            }
            read.settings = settings(&root);
        }
        document.finish(read)
    }

    /// What the file sets for an artifact: the keys beside its name, version and capabilities.
    pub fn settings(&self, table: &str, name: &str) -> BTreeMap<String, Json> {
        self.settings.get(&format!("{table}.{name}")).cloned().unwrap_or_default()
    }

    /// `[stream.NAME]` as it goes into the deployment.
    pub fn streams(&self) -> BTreeMap<String, Json> {
        let table = |name: &StreamName| Json::Object(self.settings("stream", name.as_str()).into_iter().collect());
        self.stream.keys().map(|name| (name.to_string(), table(name))).collect()
    }
}

/// The settings of each table, by its kind and name.
fn settings(root: &Value) -> BTreeMap<String, BTreeMap<String, Json>> {
    let keep = |table: &Value, without: &[&str]| -> BTreeMap<String, Json> {
        let values = table.as_table().into_iter().flatten();
        let values = values.filter(|(key, _)| !without.contains(&key.as_str()));
        values.map(|(key, value)| (key.clone(), json(value))).collect()
    };
    let mut settings = BTreeMap::new();
    for kind in ["function", "model"] {
        for table in root.get(kind).and_then(Value::as_array).into_iter().flatten() {
            let name = table.get("name").and_then(Value::as_str).unwrap_or_default();
            settings.insert(format!("{kind}.{name}"), keep(table, &["name", "version", "capabilities"]));
        }
    }
    for (name, table) in root.get("stream").and_then(Value::as_table).into_iter().flatten() {
        settings.insert(format!("stream.{name}"), keep(table, &[]));
    }
    settings
}

fn json(value: &Value) -> Json {
    match value {
        Value::Array(values) => values.iter().map(json).collect(),
        Value::Table(values) => Json::Object(values.iter().map(|(key, value)| (key.clone(), json(value))).collect()),
        Value::String(text) => text.as_str().into(),
        Value::Integer(number) => (*number).into(),
        Value::Float(number) => (*number).into(),
        Value::Boolean(value) => (*value).into(),
        Value::Datetime(time) => time.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn load(text: &str) -> Result<DeploymentFile, ConfigErrors> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("deployment.toml");
        std::fs::write(&file, text).unwrap();
        DeploymentFile::load(&file)
    }

    #[test]
    fn settings_go_in_as_they_are_written() {
        let file = load(
            "group = \"presses\"\n[[function]]\nname = \"motion\"\nversion = \"live\"\ntimeout = \"3s\"\n\
             capabilities = [\"keyvalue\"]\nretry = { attempts = 5 }\n[stream.activities]\nmax_bytes = \"8 MiB\"\n\
             [policy]\nprobation = \"30s\"\n",
        )
        .unwrap();
        let settings = file.settings("function", "motion");
        assert_eq!(serde_json::to_value(settings).unwrap(), json!({"timeout": "3s", "retry": {"attempts": 5}}));
        assert_eq!(file.streams()["activities"], json!({"max_bytes": "8 MiB"}));
        assert_eq!((file.policy.policy().probation_ms, file.policy.policy().failed_percent_max), (30_000, 10));
    }

    #[test]
    fn a_mistake_is_told_with_its_place() {
        let errors = load("[[function]]\nname = \"motion\"\nversion = \"1.0.0\"\ntimout = \"3s\"\n").unwrap_err();
        assert_eq!(errors.0[0].key, "function[motion].timout");
        assert_eq!((errors.0[0].place.line, errors.0[0].hint.as_str()), (4, "did you mean `timeout`?"));
        let function = "[[function]]\nname = \"motion\"\nversion = \"1.0.0\"\nlayers = [\"common\"]\n";
        let errors = load(function).unwrap_err();
        assert_eq!(errors.0[0].key, "function[motion].layers[0]");
        assert_eq!(errors.0[0].hint, "add `[[layer]]` with `name = \"common\"` and its version");
        let file = load(&format!("{function}[[layer]]\nname = \"common\"\nversion = \"live\"\n")).unwrap();
        assert_eq!(serde_json::to_value(file.settings("function", "motion")).unwrap(), json!({"layers": ["common"]}));
    }
}
