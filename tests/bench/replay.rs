//! A recording of readings through `fahrenheit`, by the command that people use: from its start to its end.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::Context as _;
use serde_json::Value;
use tidegate::clock::Clock;
use tidegate::event::Event;
use tidegate::recording::tap::Heard;
use tidegate::recording::{Came, Recorded, Run, line};

use crate::Options;
use crate::lab::{self, Lab};
use crate::report::{Figure, Target};

pub(crate) async fn measure(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let events: u32 = if options.quick { 2_000 } else { 100_000 };
    let bundle = e2e::example("fahrenheit");
    let config = format!(
        "[[function]]\nname = \"fahrenheit\"\nbundle = \"{}\"\ncapabilities = [\"mqtt:publish:results/#\"]\n",
        bundle.display()
    );
    let lab = Lab::start(&config).await?;
    let file = lab.folder.path().join("events.jsonl");
    record(&lab, events, &file).await?;

    let (mut rounds, mut outcomes) = (Vec::new(), None);
    for _ in 0..options.rounds() {
        let started = lab.clock.instant();
        let report = replay(&bundle, &file)?;
        rounds.push(f64::from(events) / (lab.clock.instant() - started).as_secs_f64());
        anyhow::ensure!(report["same"] == events, "a replay of the same version differs: {report}");
        let came = report["digest"].clone();
        anyhow::ensure!(*outcomes.get_or_insert_with(|| came.clone()) == came, "two replays differ");
    }
    let what = format!("replay of {events} recorded events, the command's start included");
    Ok(vec![Figure::alone("replay-1", what, "events/s", rounds).with(Target::AtLeast(10_000.0))])
}

/// Writes what an agent would have recorded.
async fn record(lab: &Lab, events: u32, file: &Path) -> anyhow::Result<()> {
    let function = lab.runtime.load(Arc::clone(&lab.specs[0])).await?;
    let (clock, mut file) = (lab.clock.clone(), std::io::BufWriter::new(std::fs::File::create(file)?));
    lab.there(async move {
        let mut instance = function.instantiate().await.map_err(|outcome| anyhow::anyhow!("{outcome}"))?;
        for seq in 0..events {
            let payload = e2e::site::reading("press-1", seq.into());
            let event =
                Event { time_ms: clock.now_ms(), ..Event::clone(&*lab::event("sensors/press-1/temp", payload)) };
            let event = Arc::new(event);
            let run = run(&mut instance, &function, &event, &clock).await;
            let recorded = Recorded { event, run: Some(run) };
            writeln!(file, "{}", line::write(&Heard::Run(Arc::new(recorded))).context("no line")?)?;
        }
        Ok(file.flush()?)
    })
    .await
}

async fn run(
    instance: &mut tidegate::runtime::Instance,
    function: &tidegate::runtime::Function,
    event: &Arc<Event>,
    clock: &Clock,
) -> Run {
    let started_ms = clock.now_ms();
    let invoked = lab::run(instance, function, event, clock).await;
    Run {
        function: function.spec.name.clone(),
        version: Arc::clone(&function.spec.version),
        invocation: Arc::clone(&event.id),
        attempt: 1,
        started_ms,
        handler: invoked.timings.handler,
        publish_qos: 1,
        reads: Vec::new(),
        came: Came::of(&invoked.outcome, &invoked.effects),
    }
}

fn replay(bundle: &Path, file: &Path) -> anyhow::Result<Value> {
    let mut command = Command::new(e2e::tidegate()?);
    let output = command.args(["replay", "--json", "--bundle"]).args([bundle, file]).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).with_context(|| format!("a replay failed: {said}"))
}
