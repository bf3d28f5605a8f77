//! A loaded model: its sessions, and where its runs happen.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::checks::Checks;
use super::engine::{Engine, Session, Stop};
use super::error::InferenceError;
use super::meter::{Latency, Meter};
use super::onnx::Description;
use super::signature::Signature;
use super::tensor::Tensor;
use crate::clock::Clock;
use crate::config::ModelConfig;
use crate::limits::Limits;
use crate::units::ByteSize;

/// A model that passed its tests. Shared by all instances of all functions.
pub struct Model {
    name: Arc<str>,
    engine: Arc<str>,
    source: Source,
    signature: Arc<Signature>,
    pool: Arc<Pool>,
    meter: Arc<Meter>,
    clock: Clock,
    tensor_bytes_max: ByteSize,
}

/// What a model was made of. Equal sources make equal models.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    file_digest: String,
    tests_digest: Option<String>,
    concurrency: u16,
}

/// How a model is and was.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelStatus {
    /// What functions call it.
    pub name: Arc<str>,
    /// SHA-256 of the file, lower-case hexadecimal.
    pub digest: String,
    /// `ONNX Runtime 1.24.1` or `tract`.
    pub engine: Arc<str>,
    /// Runs at the same time.
    pub concurrency: u16,
    /// `x: f32 [1, 6, batch]`, in the model's order.
    pub inputs: Vec<String>,
    /// As `inputs`.
    pub outputs: Vec<String>,
    /// Whether it runs on its function's thread, having been measured to be quick.
    pub inline: bool,
    /// What its runs took. Its tests are not counted.
    pub latency: Latency,
}

/// The files of a model, read and checked as far as that goes without an engine.
pub(super) struct ModelFiles {
    name: Arc<str>,
    path: PathBuf,
    file: Vec<u8>,
    signature: Arc<Signature>,
    tests: Option<(PathBuf, Checks)>,
    source: Source,
}

impl ModelFiles {
    /// Reads them.
    ///
    /// # Errors
    /// When one cannot be read, is over its bound or malformed, or the model takes or gives what functions cannot exchange.
    pub(super) fn read(config: &ModelConfig, limits: &Limits) -> Result<Self, InferenceError> {
        let model = config.name.to_string();
        let file = read(&model, "the file", &config.file, limits.model_bytes_max)?;
        let not_onnx = |reason| InferenceError::NotOnnx { model: model.clone(), path: config.file.clone(), reason };
        let description = Description::read(&file).map_err(not_onnx)?;
        if description.external_weights {
            return Err(not_onnx("it keeps weights in other files".to_owned()));
        }
        let signature = description.signature.map_err(|(port, found)| InferenceError::UnsupportedPort {
            model: model.clone(),
            port,
            found,
        })?;
        let mut tests = None;
        let mut tests_digest = None;
        if let Some(path) = &config.tests {
            let text = read(&model, "the tests", path, limits.model_bytes_max)?;
            let bad = |reason| InferenceError::BadTests { model: model.clone(), path: path.clone(), reason };
            tests = Some((path.clone(), Checks::read(&text).map_err(bad)?));
            tests_digest = Some(hex_digest(&text));
        }
        let concurrency = config.concurrency.unwrap_or(1).max(1);
        let source = Source { file_digest: hex_digest(&file), tests_digest, concurrency };
        let (name, path) = (config.name.as_str().into(), config.file.clone());
        Ok(Self { name, path, file, signature: Arc::new(signature), tests, source })
    }

    /// Whether `model` was made of the same.
    pub(super) fn made(&self, model: &Model) -> bool {
        self.source == model.source
    }

    /// Loads the model, and runs its tests. Takes as long as the engine does.
    ///
    /// # Errors
    /// When the engine refuses it, or a test fails.
    pub(super) fn load(self, engine: &Engine, limits: &Limits) -> Result<Model, InferenceError> {
        let not_loaded = |reason| InferenceError::NotLoaded {
            model: self.name.to_string(),
            path: self.path.clone(),
            engine: engine.name(),
            reason,
            other_may: engine.is_built_in(),
        };
        let sessions = engine.open(&self.file, &self.signature, self.source.concurrency).map_err(not_loaded)?;
        let model = Model {
            engine: engine.name(),
            pool: Arc::new(Pool::new(sessions)),
            meter: Arc::new(Meter::new()),
            clock: Clock::system(),
            tensor_bytes_max: limits.tensor_bytes_max,
            name: self.name,
            source: self.source,
            signature: self.signature,
        };
        if let Some((path, checks)) = self.tests {
            model.check(&path, &checks)?;
        }
        Ok(model)
    }
}

fn read(model: &str, what: &'static str, path: &Path, max: ByteSize) -> Result<Vec<u8>, InferenceError> {
    let unreadable =
        |source| InferenceError::Unreadable { model: model.to_owned(), what, path: path.to_path_buf(), source };
    let bytes = ByteSize(std::fs::metadata(path).map_err(unreadable)?.len());
    if bytes > max {
        let (model, path) = (model.to_owned(), path.to_path_buf());
        return Err(InferenceError::TooLarge { model, what, path, bytes, max });
    }
    std::fs::read(path).map_err(unreadable)
}

fn hex_digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Model {
    /// What functions call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How it is and was.
    pub fn status(&self) -> ModelStatus {
        ModelStatus {
            name: Arc::clone(&self.name),
            digest: self.source.file_digest.clone(),
            engine: Arc::clone(&self.engine),
            concurrency: self.source.concurrency,
            inputs: self.signature.inputs.iter().map(ToString::to_string).collect(),
            outputs: self.signature.outputs.iter().map(ToString::to_string).collect(),
            inline: self.meter.is_quick(),
            latency: self.meter.latency(),
        }
    }

    /// Runs it, after waiting for a free session. Inputs are found by name, or by number (`"0"`); outputs have names. A run
    /// that is dropped is stopped where the engine can.
    ///
    /// # Errors
    /// When the inputs do not fit, with which and why; when the engine fails; when an output is over its bound.
    pub async fn run(&self, inputs: Vec<(String, Tensor)>) -> Result<Vec<(String, Tensor)>, InferenceError> {
        let inputs = self.signature.bind(&self.name, inputs, self.tensor_bytes_max)?;
        let lease = Pool::take(&self.pool).await;
        let result = if self.meter.is_quick() {
            self.work(lease, inputs, None)()
        } else {
            let stop = lease.stop();
            let guard = StopOnDrop(Some(stop.clone()));
            let result = tokio::task::spawn_blocking(self.work(lease, inputs, Some(stop))).await;
            guard.defuse();
            result.unwrap_or_else(|error| Err(format!("its thread ended: {error}")))
        };
        result.map_err(|reason| self.run_failed(reason))
    }

    /// The run itself, measured, to be called on the thread that does it.
    fn work(
        &self,
        mut lease: Lease,
        inputs: Vec<Tensor>,
        stop: Option<Stop>,
    ) -> impl FnOnce() -> Result<Vec<(String, Tensor)>, String> + Send + use<> {
        let (meter, clock, max) = (Arc::clone(&self.meter), self.clock.clone(), self.tensor_bytes_max);
        move || {
            let start = clock.instant();
            let result = lease.session().and_then(|session| session.run(&inputs, stop.as_ref(), max));
            match &result {
                Ok(_) => meter.record(clock.instant() - start),
                Err(_) => meter.record_failure(),
            }
            result
        }
    }

    fn run_failed(&self, reason: String) -> InferenceError {
        InferenceError::RunFailed { model: self.name.to_string(), engine: Arc::clone(&self.engine), reason }
    }

    fn check(&self, path: &Path, checks: &Checks) -> Result<(), InferenceError> {
        let run = |check: &super::checks::Check| {
            let inputs = self.signature.bind(&self.name, check.inputs(), self.tensor_bytes_max)?;
            self.pool
                .first(|session| session.run(&inputs, None, self.tensor_bytes_max))
                .map_err(|error| self.run_failed(error))
        };
        for (at, check) in checks.tests.iter().enumerate() {
            let outcome = match run(check) {
                Ok(outputs) => check.compare(&outputs),
                Err(error) => Err(error.to_string()),
            };
            outcome.map_err(|reason| InferenceError::TestFailed {
                model: self.name.to_string(),
                test: check.name(at),
                path: path.to_path_buf(),
                reason,
            })?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("name", &self.name).field("source", &self.source).finish_non_exhaustive()
    }
}

/// Stops a run when the one who waits for it goes away, such as a function at its timeout.
struct StopOnDrop(Option<Stop>);

impl StopOnDrop {
    fn defuse(mut self) {
        self.0 = None;
    }
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        if let Some(stop) = &self.0 {
            stop.now();
        }
    }
}

/// The sessions of one model; each run has one to itself.
struct Pool {
    idle: Mutex<Vec<Session>>,
    permits: Arc<Semaphore>,
}

impl Pool {
    fn new(sessions: Vec<Session>) -> Self {
        let permits = Arc::new(Semaphore::new(sessions.len()));
        Self { idle: Mutex::new(sessions), permits }
    }

    async fn take(pool: &Arc<Self>) -> Lease {
        // The semaphore is never closed; without a permit the lease would find no session and say so.
        let permit = Arc::clone(&pool.permits).acquire_owned().await.ok();
        let session = pool.idle().pop();
        Lease { pool: Arc::clone(pool), session, _permit: permit }
    }

    /// Uses a session while nobody else knows of the pool.
    fn first<T>(&self, work: impl FnOnce(&mut Session) -> Result<T, String>) -> Result<T, String> {
        self.idle().first_mut().ok_or_else(no_session).and_then(work)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Session>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn no_session() -> String {
    "no session is free".to_owned()
}

/// A session for one run. It goes back when the run has ended, even one that nobody waits for any more.
struct Lease {
    pool: Arc<Pool>,
    session: Option<Session>,
    // Given back after the session, which `drop` does: whoever gets the permit next must find a session.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Lease {
    fn session(&mut self) -> Result<&mut Session, String> {
        self.session.as_mut().ok_or_else(no_session)
    }

    fn stop(&self) -> Stop {
        self.session.as_ref().map_or(Stop::NONE, Session::stop)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            self.pool.idle().push(session);
        }
    }
}
