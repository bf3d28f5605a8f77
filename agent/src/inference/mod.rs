//! Models: ONNX files that functions run through wasi:nn.
//!
//! # Promises
//! - A model is loaded once, however many functions and instances use it.
//! - A model replaces another only after it was loaded and passed its tests; until then, and if it fails, the other one
//!   runs. A run that has begun ends on the model that it began on.
//! - No run blocks the thread of another function for longer than a fraction of a millisecond: what is not measured to be
//!   quicker has a thread of its own.
//! - An error in a run names the input that was wrong, and how.
//! - Without a model, no engine is loaded and none of its memory is touched.

mod checks;
mod engine;
mod error;
mod library;
mod meter;
mod model;
mod onnx;
mod onnxruntime;
mod signature;
mod tensor;
#[cfg(feature = "tract")]
mod tract;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use tracing::info;

use self::engine::Engine;
pub use self::error::InferenceError;
pub use self::meter::Latency;
use self::model::ModelFiles;
pub use self::model::{Model, ModelStatus};
pub use self::tensor::{Tensor, TensorType};
use crate::config::{InferenceConfig, InferenceRuntime, ModelConfig};
use crate::limits::Limits;
use crate::name::ModelName;

/// All models of this gateway, by name. The default has none, and the default configuration.
#[derive(Debug, Default)]
pub struct Models {
    config: InferenceConfig,
    limits: Arc<Limits>,
    engine: Arc<OnceLock<Engine>>,
    loaded: RwLock<Arc<Loaded>>,
    /// One at a time: loading takes memory, and two of the same name would race for it.
    loading: tokio::sync::Mutex<()>,
}

/// The models at one moment: what replaces one of them later is not seen through this.
#[derive(Clone, Debug, Default)]
pub struct Loaded(BTreeMap<ModelName, Arc<Model>>);

impl Loaded {
    /// The model of that name.
    pub fn get(&self, name: &str) -> Option<&Arc<Model>> {
        self.0.get(name)
    }

    /// Runs the model of that name.
    ///
    /// # Errors
    /// When there is none, or as [`Model::run`].
    pub async fn run(
        &self,
        name: &str,
        inputs: Vec<(String, Tensor)>,
    ) -> Result<Vec<(String, Tensor)>, InferenceError> {
        match self.get(name) {
            Some(model) => model.run(inputs).await,
            None => Err(self.no_model(name)),
        }
    }

    /// The error for a name that is none of a model, with those that are.
    pub fn no_model(&self, name: &str) -> InferenceError {
        let loaded = self.0.keys().map(ToString::to_string).collect();
        InferenceError::NoModel { model: name.to_owned(), loaded }
    }
}

/// Reads `file` as a model's file, without an engine.
pub(crate) fn check_model(file: &[u8]) {
    if let Ok(description) = onnx::Description::read(file)
        && let Ok(signature) = description.signature
    {
        assert!(format!("{signature:?}").len() < 64 * file.len() + 64, "a description larger than what it describes");
    }
}

/// Reads `text` as the tests of a model: a test that is taken has inputs that a model can be given.
pub(crate) fn check_tests(text: &[u8]) {
    for check in checks::Checks::read(text).into_iter().flat_map(|checks| checks.tests) {
        for (name, tensor) in check.inputs() {
            let bytes = Tensor::bytes_of(tensor.kind, &tensor.dimensions);
            assert_eq!(bytes, Some(tensor.data.len()), "input `{name}`");
        }
    }
}

/// A model that passed its tests and waits to take over.
#[derive(Debug)]
pub struct Prepared {
    name: ModelName,
    model: Arc<Model>,
}

impl Models {
    /// No models yet; the engine is picked when the first is loaded.
    ///
    /// # Errors
    /// When the configuration names a library of ONNX Runtime that is not there, or an engine that this build does not have.
    pub fn open(config: &InferenceConfig, limits: Arc<Limits>) -> Result<Self, InferenceError> {
        if let Some(library) = config.library.as_ref().filter(|library| !library.exists()) {
            return Err(InferenceError::BadLibrary { reasons: vec![format!("{}: no such file", library.display())] });
        }
        if config.runtime == InferenceRuntime::Tract && !Engine::IS_BUILT_IN {
            return Err(InferenceError::NotBuiltIn);
        }
        Ok(Self {
            config: config.clone(),
            limits,
            engine: Arc::default(),
            loaded: RwLock::default(),
            loading: tokio::sync::Mutex::default(),
        })
    }

    /// Loads a model and runs its tests, off the async threads; then it takes over from the one of the same name. Does
    /// nothing when its files are the same as before.
    ///
    /// # Errors
    /// When a file cannot be read or is malformed, the engine refuses it, or a test fails. The model that was there stays.
    pub async fn load(self: &Arc<Self>, config: &ModelConfig) -> Result<(), InferenceError> {
        if let Some(prepared) = self.prepare(config).await? {
            self.install(prepared);
        }
        Ok(())
    }

    /// The first half of [`load`](Self::load): loaded and tested, but not in use yet. `None` when it runs already.
    ///
    /// # Errors
    /// As `load`.
    pub async fn prepare(self: &Arc<Self>, config: &ModelConfig) -> Result<Option<Prepared>, InferenceError> {
        let _one_at_a_time = self.loading.lock().await;
        let (models, config) = (Arc::clone(self), config.clone());
        let work = tokio::task::spawn_blocking(move || models.prepare_now(&config));
        work.await.unwrap_or_else(|error| match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The process is ending.
            Err(_) => Ok(None),
        })
    }

    fn prepare_now(&self, config: &ModelConfig) -> Result<Option<Prepared>, InferenceError> {
        let files = ModelFiles::read(config, &self.limits)?;
        if self.get(config.name.as_str()).is_some_and(|model| files.made(&model)) {
            return Ok(None);
        }
        let model = Arc::new(files.load(self.engine()?, &self.limits)?);
        Ok(Some(Prepared { name: config.name.clone(), model }))
    }

    /// Has a prepared model take over.
    pub fn install(&self, prepared: Prepared) {
        self.replace(vec![prepared], &[]);
    }

    /// Has `prepared` models take over and forgets those that are `gone`, all in one moment. Runs that have begun end first.
    pub fn replace(&self, prepared: Vec<Prepared>, gone: &[ModelName]) {
        let mut loaded = self.write();
        let models = &mut Arc::make_mut(&mut loaded).0;
        for Prepared { name, model } in prepared {
            let status = model.status();
            let what = if models.insert(name.clone(), model).is_some() { "model replaced" } else { "model loaded" };
            info!(model = %name, digest = &status.digest[..12], engine = %status.engine, "{what}");
        }
        for name in gone {
            if models.remove(name).is_some() {
                info!(model = %name, "model removed");
            }
        }
    }

    /// These models with `prepared` ones in the place of those of the same name, for a runtime of its own.
    #[must_use]
    pub fn beside(&self, prepared: &[Prepared]) -> Self {
        let mut loaded = Loaded::clone(&self.current());
        loaded.0.extend(prepared.iter().map(|prepared| (prepared.name.clone(), Arc::clone(&prepared.model))));
        Self {
            config: self.config.clone(),
            limits: Arc::clone(&self.limits),
            engine: Arc::clone(&self.engine),
            loaded: RwLock::new(Arc::new(loaded)),
            loading: tokio::sync::Mutex::default(),
        }
    }

    /// The engine of all models, picked now if no model was loaded yet: `ONNX Runtime 1.24.1`.
    ///
    /// # Errors
    /// When the configuration asks for ONNX Runtime, and it cannot be used.
    pub fn engine_name(&self) -> Result<Arc<str>, InferenceError> {
        Ok(self.engine()?.name())
    }

    fn engine(&self) -> Result<&Engine, InferenceError> {
        if let Some(engine) = self.engine.get() {
            return Ok(engine);
        }
        // Only `load` comes here, one at a time.
        let picked = Engine::pick(&self.config)?;
        Ok(self.engine.get_or_init(|| picked))
    }

    /// Forgets a model; runs that have begun end first.
    pub fn remove(&self, name: &ModelName) {
        self.replace(Vec::new(), std::slice::from_ref(name));
    }

    /// The models as they are now.
    pub fn current(&self) -> Arc<Loaded> {
        Arc::clone(&self.loaded.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The model of that name, as it is now.
    pub fn get(&self, name: &str) -> Option<Arc<Model>> {
        self.current().get(name).map(Arc::clone)
    }

    /// Runs the model of that name, as it is now.
    ///
    /// # Errors
    /// As [`Loaded::run`].
    pub async fn run(
        &self,
        name: &str,
        inputs: Vec<(String, Tensor)>,
    ) -> Result<Vec<(String, Tensor)>, InferenceError> {
        self.current().run(name, inputs).await
    }

    /// All models, by name.
    pub fn status(&self) -> Vec<ModelStatus> {
        self.current().0.values().map(|model| model.status()).collect()
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Arc<Loaded>> {
        self.loaded.write().unwrap_or_else(PoisonError::into_inner)
    }
}
