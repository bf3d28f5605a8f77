//! The bench: each speed that `docs/spec/figures.md` promises, beside its reference in the same run.
//!
//! `cargo build --release -p tidegate -p e2e --bins && target/release/bench [--quick] [--only NAME] [--json]`. The two take turns, round
//! by round, and the median of five rounds counts. Ends with status 1 when a target is missed.

mod append;
mod backlog;
mod bare;
mod block;
mod console;
mod disk;
mod fleet;
mod footprint;
mod inference;
mod invoke;
mod lab;
mod load;
mod mqtt;
mod process;
mod replay;
mod report;
mod site;
mod soak;
mod urls;

use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};

use self::report::Figure;
use self::site::Site;

/// First arguments of the processes that the bench starts of itself.
const REFERENCE_LOOP: &str = "reference-loop";
const REFERENCE_INFERENCE: &str = "reference-inference";
const REFERENCE_HTTP: &str = "reference-http";

/// Measures the agent beside its references
#[derive(Debug, Parser)]
struct Options {
    /// Print JSON, with each round
    #[arg(long)]
    json: bool,
    /// Measure these only
    #[arg(long, value_name = "NAME")]
    only: Vec<Part>,
    /// A fraction of the work, and one round: shows that the bench works, and nothing else
    #[arg(long)]
    quick: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Throughput and CPU, with mosquitto between
    Mqtt,
    /// Time from event to result at low rates
    Latency,
    /// Memory idle and after load
    Memory,
    /// Start to first result
    Start,
    /// Invocations in process
    Invoke,
    /// Models through a function
    Inference,
    /// Requests to a function URL
    Url,
    /// Recorded events through a version
    Replay,
    /// The console in a browser while events come; needs chromium
    Console,
    /// Durable records
    Append,
    /// Bytes that reach the block device; needs root, for a loop device
    Block,
    /// A version that is pushed by a control plane, and what being managed costs
    Fleet,
    /// A start, and a drain, with much on disk
    Backlog,
    /// Ten million events; only when it is named
    Soak,
}

impl Options {
    const fn rounds(&self) -> usize {
        if self.quick { 1 } else { 5 }
    }

    fn wants(&self, part: Part) -> bool {
        (self.only.is_empty() && part != Part::Soak) || self.only.contains(&part)
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<_> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        // One thread, and no more: the reference is to be cheap.
        [_, REFERENCE_LOOP, port] => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(bare::run(port.parse()?))?;
            Ok(ExitCode::SUCCESS)
        }
        [_, REFERENCE_INFERENCE, library, models] => {
            inference::alone(Path::new(library), Path::new(models))?;
            Ok(ExitCode::SUCCESS)
        }
        [_, REFERENCE_HTTP, address] => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(urls::bare(address.parse()?))?;
            Ok(ExitCode::SUCCESS)
        }
        _ => {
            let options = Options::parse();
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            let figures = runtime.block_on(measure(&options))?;
            report::print(&figures, &process::machine(), options.json)?;
            let met = options.quick || figures.iter().all(Figure::is_met);
            Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

async fn measure(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    if options.wants(Part::Invoke) {
        figures.extend(invoke::measure(options).await?);
    }
    if options.wants(Part::Inference) {
        figures.extend(inference::measure(options).await?);
    }
    if options.wants(Part::Url) {
        figures.extend(urls::measure(options).await?);
    }
    if options.wants(Part::Replay) {
        figures.extend(replay::measure(options).await?);
    }
    if options.wants(Part::Console) {
        figures.extend(console::measure(options).await?);
    }
    if options.wants(Part::Append) {
        figures.extend(append::measure(options).await?);
    }
    if options.wants(Part::Block) {
        figures.extend(block::measure(options).await?);
    }
    if options.wants(Part::Fleet) {
        figures.extend(fleet::measure(options).await?);
    }
    if options.wants(Part::Backlog) {
        figures.extend(backlog::measure(options).await?);
    }
    if options.wants(Part::Soak) {
        figures.extend(soak::measure(options).await?);
    }
    if [Part::Mqtt, Part::Latency, Part::Start, Part::Memory].into_iter().any(|part| options.wants(part)) {
        let mut site = Site::start().await?;
        if options.wants(Part::Mqtt) {
            figures.extend(mqtt::measure(&mut site, options)?);
        }
        if options.wants(Part::Latency) {
            figures.extend(mqtt::latency(&mut site, options)?);
        }
        if options.wants(Part::Start) {
            figures.extend(footprint::start(&mut site, options)?);
        }
        if options.wants(Part::Memory) {
            figures.extend(footprint::memory(&mut site, options)?);
        }
    }
    Ok(figures)
}
