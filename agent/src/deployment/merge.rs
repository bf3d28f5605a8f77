//! What a deployment says, as more of gateway.toml.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use sync_protocol::desired::DeploymentRef;
use sync_protocol::verified::VerifiedDeployment;
use sync_protocol::{Blob, Kind};
use toml::{Table, Value};

use crate::config::{Config, ConfigErrors, Place, Problem};
use crate::limits::Limits;

/// The model within its bundle.
const MODEL: &str = "model.onnx";
/// Its tests.
const MODEL_TESTS: &str = "model.tests.json";

/// A verified deployment whose bundles are unpacked: ready to stand beside any gateway.toml.
#[derive(Clone, Debug)]
pub(crate) struct Deployed {
    /// Signed by those who may.
    pub(crate) verified: VerifiedDeployment,
    /// As gateway.toml would say it.
    said: Table,
}

impl Deployed {
    /// Reads what `verified` says; its bundles are unpacked below `bundles`.
    ///
    /// # Errors
    /// With what this version of the agent has no way to run.
    pub(crate) fn new(verified: VerifiedDeployment, bundles: &Path) -> Result<Self, ConfigErrors> {
        let origin = origin(verified.reference());
        let mut problems = Vec::new();
        let (mut functions, mut models) = (Vec::new(), Vec::new());
        for (artifact, release) in verified.artifacts() {
            let root = folder(bundles, &release.blob);
            let mut table = Table::new();
            table.insert("name".to_owned(), artifact.name.as_str().into());
            for (key, value) in &artifact.settings {
                let value = match (artifact.kind, key.as_str()) {
                    (Kind::Function, "layers") => layers(value, &verified, bundles).unwrap_or_else(|what| {
                        problems.push(Problem {
                            place: place(&origin),
                            key: format!("function[{}].layers", artifact.name),
                            what,
                            hint: "name layers of the same deployment: `layers = [\"common\"]`".to_owned(),
                        });
                        Value::Array(Vec::new())
                    }),
                    _ => toml_of(value),
                };
                table.insert(key.clone(), value);
            }
            match artifact.kind {
                Kind::Function => {
                    let granted = artifact.capabilities.0.iter().map(|capability| capability.to_string().into());
                    table.insert("capabilities".to_owned(), Value::Array(granted.collect()));
                    table.insert("bundle".to_owned(), text(&root));
                    functions.push(Value::Table(table));
                }
                Kind::Model => {
                    table.insert("file".to_owned(), text(&root.join(MODEL)));
                    if root.join(MODEL_TESTS).is_file() {
                        table.insert("tests".to_owned(), text(&root.join(MODEL_TESTS)));
                    }
                    models.push(Value::Table(table));
                }
                // Mounted by the functions that name it; and what all of this runs on.
                Kind::Layer | Kind::Agent => {}
                Kind::Runtime => problems.push(Problem {
                    place: place(&origin),
                    key: format!("runtime[{}]", artifact.name),
                    what: "this version of the agent can do nothing with a runtime".to_owned(),
                    hint: "deploy it to gateways of a newer version".to_owned(),
                }),
            }
        }
        if !problems.is_empty() {
            return Err(ConfigErrors(problems));
        }
        let streams = verified.deployment().streams.iter().map(|(name, value)| (name.clone(), toml_of(value)));
        let said = Table::from_iter([
            ("stream".to_owned(), Value::Table(streams.collect())),
            ("model".to_owned(), Value::Array(models)),
            ("function".to_owned(), Value::Array(functions)),
        ]);
        Ok(Self { verified, said })
    }

    /// Which one it is.
    pub(crate) fn reference(&self) -> DeploymentRef {
        self.verified.reference()
    }

    /// What gateway.toml (`base`) and this make together, and what of this gateway.toml hides.
    ///
    /// # Errors
    /// With all that is wrong, by the names of deployment, function and key.
    pub(crate) fn beside(&self, base: &Config, limits: &Limits) -> Result<(Config, Vec<Problem>), ConfigErrors> {
        base.with_deployed(&origin(self.reference()), self.said.clone(), limits)
    }
}

/// The folders of the layers that a function names. Never another folder: a deployment reaches no file of the gateway.
fn layers(named: &Json, verified: &VerifiedDeployment, bundles: &Path) -> Result<Value, String> {
    let names = named.as_array().ok_or("they are no list of names")?;
    let folder = |name: &Json| -> Result<Value, String> {
        let name = name.as_str().ok_or_else(|| format!("`{name}` is no name of a layer"))?;
        let layer =
            verified.artifacts().find(|(artifact, _)| artifact.kind == Kind::Layer && artifact.name.as_str() == name);
        let (_, release) = layer.ok_or_else(|| format!("there is no layer `{name}` in this deployment"))?;
        Ok(text(&folder(bundles, &release.blob)))
    };
    Ok(Value::Array(names.iter().map(folder).collect::<Result<_, _>>()?))
}

/// Where the bundle that is `blob` is unpacked.
pub(crate) fn folder(bundles: &Path, blob: &Blob) -> PathBuf {
    bundles.join(blob.digest.hex())
}

/// What a deployment is called in messages.
pub(crate) fn origin(deployment: DeploymentRef) -> String {
    format!("deployment {}", deployment.number)
}

fn place(origin: &str) -> Place {
    Place { file: origin.into(), ..Place::default() }
}

fn text(path: &Path) -> Value {
    path.display().to_string().into()
}

/// JSON as TOML. What TOML has no word for becomes text, which whoever reads it refuses by name.
fn toml_of(json: &Json) -> Value {
    match json {
        Json::Null => "null".into(),
        Json::Bool(value) => (*value).into(),
        Json::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => whole.into(),
            (None, Some(float)) if number.is_f64() => float.into(),
            _ => number.to_string().into(),
        },
        Json::String(text) => text.as_str().into(),
        Json::Array(values) => Value::Array(values.iter().map(toml_of).collect()),
        Json::Object(members) => {
            Value::Table(members.iter().map(|(name, value)| (name.clone(), toml_of(value))).collect())
        }
    }
}
