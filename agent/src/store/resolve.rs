//! Merges what gateway.toml says of a function over what its bundle declares.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::bundle::{Bundle, BundleError};
use super::layers::{self, View};
use crate::capability::{Capabilities, Capability};
use crate::config::{
    Config, ConfigErrors, FunctionConfig, FunctionSettings, Names, Place, Problem, SourceConfig, check_specs,
    environment_bytes,
};
use crate::function::FunctionSpec;
use crate::limits::Limits;
use crate::name::SourceName;
use crate::units::ByteSize;

/// A function that can run, and what is doubtful about it.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// How it runs.
    pub spec: FunctionSpec,
    /// The bundle that it comes from.
    pub bundle: Bundle,
    /// What `check` should tell, but nothing stops for.
    pub warnings: Vec<Problem>,
}

/// Opens and merges all functions of `config`, and checks them together.
///
/// # Errors
/// With all that is wrong with any of them.
pub fn resolve_all(config: &Config, limits: &Limits) -> Result<Vec<Resolved>, ConfigErrors> {
    let mut resolved = Vec::new();
    let mut problems = Vec::new();
    for function in &config.function {
        match resolve(function, config, limits) {
            Ok(function) => resolved.push(function),
            Err(ConfigErrors(more)) => problems.extend(more),
        }
    }
    let placed: Vec<(&FunctionSpec, &Place)> = resolved
        .iter()
        .filter_map(|r| Some((&r.spec, &config.function.iter().find(|f| f.name == r.spec.name)?.place)))
        .collect();
    problems.extend(check_specs(&placed, &Names::of(config), &config.gateway_name()));
    if problems.is_empty() { Ok(resolved) } else { Err(ConfigErrors(problems)) }
}

/// Opens the bundle of one `[[function]]` and merges the two. What gateway.toml says wins; capabilities are only granted there.
///
/// # Errors
/// With all that is wrong with the bundle, or with the secrets.
pub fn resolve(function: &FunctionConfig, config: &Config, limits: &Limits) -> Result<Resolved, ConfigErrors> {
    let state_dir = &config.gateway.state_dir;
    let bundle = Bundle::open_for(&function.bundle, state_dir, limits, &function.settings, &Names::of(config))
        .map_err(|error| as_problems(error, function))?;
    let environment = environment(function, &bundle, limits)?;
    let layers = layers::view(&function.layers, state_dir, limits).map_err(|error| {
        let hint = error.hint();
        ConfigErrors(vec![problem(function, "layers", with_causes(&error), hint)])
    })?;
    let mut warnings = Vec::new();
    if bundle.manifest.name != function.name {
        let what = format!("the bundle calls itself `{}`", bundle.manifest.name);
        warnings.push(problem(function, "name", what, "nothing to do, when this is meant"));
    }
    let missing: Vec<String> = bundle
        .manifest
        .capabilities
        .iter()
        .filter(|asked| !function.capabilities.iter().any(|granted| granted.covers(asked)))
        .map(|asked| format!("\"{asked}\""))
        .collect();
    if !missing.is_empty() {
        let missing = missing.join(", ");
        let what = format!("the bundle asks for {missing}, which is not granted");
        warnings.push(problem(
            function,
            "capabilities",
            what,
            format!("add {missing} to `capabilities` of this function in gateway.toml, if it may"),
        ));
    }
    let mut spec = merge(function, &bundle, environment, layers, limits);
    spec.folders = folders(function, config);
    Ok(Resolved { spec, bundle, warnings })
}

/// The function of a bundle by itself over `layers`, as `tidegate build` and `tidegate invoke --bundle` run it: granted is what it asks for.
///
/// # Errors
/// With all that is wrong with the bundle or the layers.
pub fn resolve_alone(
    path: &Path,
    layers: &[PathBuf],
    state_dir: &Path,
    limits: &Limits,
) -> Result<Resolved, BundleError> {
    let view = layers::view(layers, state_dir, limits).map_err(BundleError::Layers)?;
    let bundle = Bundle::open(path, state_dir, limits)?;
    let function = FunctionConfig {
        name: bundle.manifest.name.clone(),
        bundle: path.to_owned(),
        capabilities: bundle.manifest.capabilities.clone(),
        secrets: BTreeMap::new(),
        layers: layers.to_vec(),
        settings: FunctionSettings::default(),
        place: Place::default(),
    };
    let environment = bundle.manifest.settings.environment.clone();
    Ok(Resolved { spec: merge(&function, &bundle, environment, view, limits), bundle, warnings: Vec::new() })
}

fn merge(
    function: &FunctionConfig,
    bundle: &Bundle,
    environment: BTreeMap<String, String>,
    layers: Option<Arc<View>>,
    limits: &Limits,
) -> FunctionSpec {
    let (first, second) = (&function.settings, &bundle.manifest.settings);
    FunctionSpec {
        name: function.name.clone(),
        version: Arc::from(bundle.manifest.version.to_string()),
        component: bundle.component.clone(),
        digest: Arc::clone(&bundle.digest),
        root: bundle.root.clone(),
        layers,
        folders: BTreeMap::new(),
        timeout: first.timeout.or(second.timeout).unwrap_or(limits.timeout_default),
        memory: first.memory.or(second.memory).unwrap_or(limits.memory_default),
        concurrency: first.concurrency.or(second.concurrency).unwrap_or(limits.concurrency_default),
        isolation: first.isolation.or(second.isolation).unwrap_or_default(),
        environment,
        capabilities: Capabilities(function.capabilities.clone()),
        retry: first.retry.or(second.retry).unwrap_or_default(),
        idempotency: first.idempotency.as_ref().or(second.idempotency.as_ref()).cloned(),
        order: first.order.or(second.order).unwrap_or_default(),
        on_success: first.on_success.as_ref().or(second.on_success.as_ref()).cloned().unwrap_or_default(),
        on_failure: first.on_failure.as_ref().or(second.on_failure.as_ref()).cloned().unwrap_or_default(),
        triggers: first.trigger.as_ref().or(second.trigger.as_ref()).cloned().unwrap_or_default(),
    }
}

/// The folders that it was granted to read.
fn folders(function: &FunctionConfig, config: &Config) -> BTreeMap<SourceName, PathBuf> {
    let granted = function.capabilities.iter().filter_map(|capability| match capability {
        Capability::SourceRead(name) => Some(name),
        _ => None,
    });
    let folders = granted.filter_map(|name| match config.source.get(name) {
        Some(SourceConfig::File(file)) => Some((name.clone(), file.folder.clone())),
        _ => None,
    });
    folders.collect()
}

/// The bundle's variables, those of gateway.toml over them, and the secrets over both.
fn environment(
    function: &FunctionConfig,
    bundle: &Bundle,
    limits: &Limits,
) -> Result<BTreeMap<String, String>, ConfigErrors> {
    let mut environment = bundle.manifest.settings.environment.clone();
    environment.extend(function.settings.environment.clone());
    let mut problems = Vec::new();
    for (name, file) in &function.secrets {
        match std::fs::read_to_string(file) {
            // Editors and `echo` end a file with a line break that is no part of the secret.
            Ok(secret) => drop(environment.insert(name.clone(), secret.trim_end_matches(['\r', '\n']).to_owned())),
            Err(error) => {
                let what = format!("`{}` cannot be read: {error}", file.display());
                problems.push(problem(
                    function,
                    &format!("secrets.{name}"),
                    what,
                    "let the agent's user read it, as text in UTF-8",
                ));
            }
        }
    }
    let bytes = environment_bytes(&environment);
    if bytes > limits.environment_bytes_max.0 {
        let what =
            format!("environment and secrets have {}, more than {}", ByteSize(bytes), limits.environment_bytes_max);
        problems.push(problem(function, "environment", what, "keep large settings in a file of the bundle"));
    }
    if problems.is_empty() { Ok(environment) } else { Err(ConfigErrors(problems)) }
}

fn problem(function: &FunctionConfig, key: &str, what: String, hint: impl Into<String>) -> Problem {
    Problem {
        place: function.place.clone(),
        key: format!("function[{}].{key}", function.name),
        what,
        hint: hint.into(),
    }
}

fn as_problems(error: BundleError, function: &FunctionConfig) -> ConfigErrors {
    let hint = error.hint();
    match error {
        BundleError::Manifest(errors) => errors,
        BundleError::Unpack(path, error) => {
            let what = format!("cannot unpack bundle `{}`: {}", path.display(), with_causes(&error));
            ConfigErrors(vec![problem(function, "bundle", what, hint)])
        }
        error => ConfigErrors(vec![problem(function, "bundle", error.to_string(), hint)]),
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut what = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        what = format!("{what}: {error}");
        cause = error.source();
    }
    what
}
