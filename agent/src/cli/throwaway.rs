//! What `tidegate build`, `tidegate invoke --bundle` and `tidegate replay` share: the models of a function that runs by itself, and what it did, in words.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use super::Failure;
use crate::capability::Capability;
use crate::config::{Environment, ModelConfig};
use crate::function::FunctionSpec;
use crate::inference::Models;
use crate::invocation::Effects;
use crate::limits::Limits;
use crate::name::ModelName;
use crate::store::Resolved;
use crate::throwaway::Throwaway;

/// `NAME=FILE` of `--model`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ModelArg {
    name: ModelName,
    file: PathBuf,
}

impl FromStr for ModelArg {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, file) = text.split_once('=').ok_or_else(|| format!("`{text}` is not NAME=FILE"))?;
        Ok(Self { name: ModelName::parse(name).map_err(|error| error.to_string())?, file: file.into() })
    }
}

/// Loads the function, granted what its manifest asks for, and the models that it asks for.
pub(super) async fn start(resolved: Resolved, models: &[ModelArg]) -> anyhow::Result<Throwaway> {
    super::needs_compiler("a function that runs by itself is compiled first")?;
    let models = self::models(&resolved.spec, models).await?;
    Throwaway::alone(resolved.spec, models).await
}

/// Loads the models that the function asks for.
pub(super) async fn models(spec: &FunctionSpec, models: &[ModelArg]) -> anyhow::Result<Arc<Models>> {
    let loaded = Arc::new(Models::open(&Environment::of_process().inference(), Arc::new(Limits::default()))?);
    for name in spec.capabilities.0.iter().filter_map(model_of) {
        loaded.load(&model_config(name, models, &spec.root)?).await?;
    }
    Ok(loaded)
}

/// A payload as people read it.
pub(super) fn text(data: &[u8]) -> String {
    match std::str::from_utf8(data) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("{} bytes", data.len()),
    }
}

/// What the function wanted sent and kept, in words.
pub(super) fn describe(effects: &Effects) -> Vec<String> {
    let publishes = effects.publishes.iter().map(|publish| {
        let broker = publish.broker.as_ref().map_or("local", |name| name.as_str());
        let retained = if publish.retain { ", retained" } else { "" };
        format!(
            "would publish on `{}` of {broker} (QoS {}{retained}): {}",
            publish.topic,
            publish.qos,
            text(&publish.data)
        )
    });
    let records =
        effects.records.iter().map(|(stream, data)| format!("would append to stream `{stream}`: {}", text(data)));
    let writes = effects.key_values.iter().map(|write| match &write.value {
        Some(value) => format!("would keep `{}` in bucket `{}`: {}", write.key, write.bucket, text(value)),
        None => format!("would delete `{}` from bucket `{}`", write.key, write.bucket),
    });
    let field = effects.field_writes.iter();
    let field =
        field.map(|write| format!("would set `{}` of source `{}` to {}", write.point, write.source, write.value));
    field.chain(publishes).chain(records).chain(writes).collect()
}

const fn model_of(capability: &Capability) -> Option<&ModelName> {
    match capability {
        Capability::Model(name) => Some(name),
        _ => None,
    }
}

/// The model that was named on the command line, or the one that lies in the bundle.
fn model_config(name: &ModelName, models: &[ModelArg], root: &Path) -> Result<ModelConfig, Failure> {
    let named = models.iter().find(|model| model.name == *name).map(|model| model.file.clone());
    let file = named.unwrap_or_else(|| root.join("models").join(format!("{name}.onnx")));
    if !file.is_file() {
        let what = format!("the function runs model `{name}`, but there is no file `{}`", file.display());
        return Err(Failure::wrong(what, format!("name one: `--model {name}=FILE.onnx`")));
    }
    Ok(ModelConfig { name: name.clone(), file, tests: None, concurrency: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_given_as_name_and_file() {
        let parsed: ModelArg = "motion=a/b.onnx".parse().unwrap();
        assert_eq!((parsed.name.as_str(), parsed.file.as_path()), ("motion", Path::new("a/b.onnx")));
        assert_eq!("motion".parse::<ModelArg>().unwrap_err(), "`motion` is not NAME=FILE");
    }
}
