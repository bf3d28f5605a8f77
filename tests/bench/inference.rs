//! A model through a function, beside ONNX Runtime alone in a process of its own.

use std::hint::black_box;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::Context as _;
use ort::environment::Environment;
use ort::session::Session;
use ort::value::TensorRef;
use tidegate::clock::Clock;

use crate::Options;
use crate::lab::{self, Lab};
use crate::report::{Figure, Target, median};

const ALONE: &str = "ONNX Runtime alone";
/// For making the models; and ONNX Runtime, of which only the library is used.
const PACKAGES: [&str; 6] = [
    "ml_dtypes==0.6.0",
    "numpy==2.4.6",
    "onnx==1.23.2",
    "onnxruntime==1.32.0",
    "protobuf==7.36.2",
    "typing_extensions==4.16.0",
];

/// A model of `make-models.py`.
struct Model {
    name: &'static str,
    input: &'static str,
    shape: &'static [i64],
    runs: usize,
}

const MODELS: [Model; 2] = [
    Model { name: "mlp", input: "x", shape: &[1, 600], runs: 5_000 },
    Model { name: "mobilenet", input: "image", shape: &[1, 3, 160, 160], runs: 200 },
];

impl Model {
    fn floats(&self) -> anyhow::Result<Vec<f32>> {
        let count = usize::try_from(self.shape.iter().product::<i64>())?;
        Ok((0..count).map(|i| (i % 17) as f32 / 17.0).collect())
    }
}

pub(crate) async fn measure(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let folder = lab::beside()?.join("bench-inference");
    let library = prepare(&folder)?;
    let models = MODELS.iter().map(|Model { name, .. }| {
        format!("[[model]]\nname = \"{name}\"\nfile = \"{}\"\n", folder.join(format!("{name}.onnx")).display())
    });
    let config = format!(
        "[inference]\nlibrary = \"{}\"\nthreads = 1\n{}[[function]]\nname = \"infer\"\nbundle = \"{}\"\n\
         capabilities = [\"model:mlp\", \"model:mobilenet\"]\n",
        library.display(),
        models.collect::<String>(),
        folder.display()
    );
    let lab = Lab::start(&config).await?;
    let mut alone = Alone::start(&library, &folder)?;
    let function = lab.runtime.load(std::sync::Arc::clone(&lab.specs[0])).await?;

    let mut rounds = [Vec::new(), Vec::new()];
    for _ in 0..options.rounds() {
        for (model, rounds) in MODELS.iter().zip(&mut rounds) {
            let runs = if options.quick { model.runs / 20 } else { model.runs };
            let data: Vec<u8> = model.floats()?.iter().flat_map(|value| value.to_le_bytes()).collect();
            let (clock, function) = (lab.clock.clone(), function.clone());
            let ours = lab.there(async move {
                let mut instance = function.instantiate().await.map_err(|outcome| anyhow::anyhow!("{outcome}"))?;
                let mut micros = Vec::with_capacity(runs);
                for _ in 0..runs {
                    let event = lab::event("images/1", data.clone());
                    let started = clock.instant();
                    black_box(lab::invoke(&mut instance, &function, &event, &clock).await?);
                    micros.push((clock.instant() - started).as_secs_f64() * 1e6);
                }
                Ok(median(micros))
            });
            rounds.push((ours.await?, alone.median_us(model.name, runs)?));
        }
    }
    let [mlp, mobilenet] = rounds;
    let what = "inference through a function, small MLP";
    let small = Figure::beside("model-1", what, "µs", mlp, ALONE).with(Target::MoreAtMost(30.0));
    let what = "inference through a function, MobileNet of some ms";
    Ok(vec![small, Figure::beside("model-2", what, "µs", mobilenet, ALONE).with(Target::TimesAtMost(1.05))])
}

/// Makes models, library and guest once, in `folder`; gives the library.
fn prepare(folder: &Path) -> anyhow::Result<PathBuf> {
    let (venv, bench) = (folder.join("venv"), e2e::repository().join("tests/bench"));
    if !venv.join("complete").exists() {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
        run(Command::new(venv.join("bin/pip")).args(["install", "--quiet", "--no-deps"]).args(PACKAGES))?;
        std::fs::write(venv.join("complete"), "")?;
    }
    run(Command::new(venv.join("bin/python")).arg(bench.join("make-models.py")).arg(folder))?;
    let target = folder.join("guest");
    let build = ["build", "--release", "--quiet", "--package", "infer", "--target-dir"];
    run(Command::new(e2e::repository().join("cross/guest/cargo-wasm")).args(build).arg(&target))?;
    let core = std::fs::read(target.join("wasm32-unknown-unknown/release/infer.wasm"))?;
    std::fs::write(folder.join("infer.wasm"), tidegate::componentize::componentize(&core)?)?;
    std::fs::copy(bench.join("guest/function.toml"), folder.join("function.toml"))?;
    let capi = std::fs::read_dir(venv.join("lib"))?.next().context("no python in the venv")??;
    let capi = capi.path().join("site-packages/onnxruntime/capi");
    let files = std::fs::read_dir(&capi)?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_library = |path: &PathBuf| path.to_string_lossy().contains("libonnxruntime.so");
    files.into_iter().find(is_library).with_context(|| format!("no ONNX Runtime in {}", capi.display()))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.current_dir(e2e::repository()).stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    anyhow::ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

/// ONNX Runtime in a process of its own, which has nothing else to do.
struct Alone {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Alone {
    fn start(library: &Path, models: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(crate::REFERENCE_INFERENCE).arg(library).arg(models);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let ask = child.stdin.take().context("no stdin")?;
        let answers = BufReader::new(child.stdout.take().context("no stdout")?);
        Ok(Self { child, ask, answers })
    }

    fn median_us(&mut self, model: &str, runs: usize) -> anyhow::Result<f64> {
        writeln!(self.ask, "{model} {runs}")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        line.trim().parse().with_context(|| format!("the reference answers `{line}`"))
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The reference's process: `MODEL RUNS` on a line in, the median in µs out. One thread, as the agent has it.
pub(crate) fn alone(library: &Path, models: &Path) -> anyhow::Result<()> {
    let environment = ort::init_from(library)?.with_telemetry(false).build()?;
    let clock = Clock::system();
    let mut sessions = Vec::new();
    for model in &MODELS {
        sessions.push((model, open(&environment, &models.join(format!("{}.onnx", model.name)))?));
    }
    for line in std::io::stdin().lines() {
        let line = line?;
        let (name, runs) = line.split_once(' ').context("not `MODEL RUNS`")?;
        let (model, session) = sessions.iter_mut().find(|(model, _)| model.name == name).context("no such model")?;
        let (floats, runs) = (model.floats()?, runs.parse()?);
        let mut micros = Vec::with_capacity(runs);
        for _ in 0..runs {
            let started = clock.instant();
            let input = TensorRef::from_array_view((model.shape.to_vec(), &floats[..]))?;
            let outputs = session.run(ort::inputs![model.input => input])?;
            black_box(outputs["y"].try_extract_tensor::<f32>()?.1.to_vec());
            micros.push((clock.instant() - started).as_secs_f64() * 1e6);
        }
        writeln!(std::io::stdout(), "{}", median(micros))?;
    }
    Ok(())
}

fn open(environment: &Environment, file: &Path) -> anyhow::Result<Session> {
    let open = || -> ort::Result<Session> {
        let builder = Session::builder(environment)?.with_intra_threads(1)?;
        builder.with_intra_op_spinning(false)?.commit_from_file(file)
    };
    // The error itself holds what cannot leave its thread.
    open().map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))
}
