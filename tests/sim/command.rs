//! The command line, and the processes that share the seeds.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::run::{self, Report, VirtualTime};
use crate::site::Shop;
use crate::world;

/// Seeds that found a bug once: they always run. A change of how plans are drawn makes other plans of them.
const KNOWN: &[u64] = &[1058, 1354, 1411, 1423, 1454, 1596];
/// Of the machine's time, for one seed.
const SEED_MAX: Duration = Duration::from_secs(120);

#[derive(Default)]
struct Wanted {
    seed: Option<u64>,
    seeds: Option<u64>,
    from: u64,
    jobs: Option<usize>,
    /// Run these, and tell the parent on standard output.
    worker: Option<(u64, u64, u64)>,
    /// cargo's own filters: nothing of ours is meant.
    filtered: bool,
    list: bool,
}

fn wanted() -> Wanted {
    let mut wanted = Wanted { from: 1, ..Wanted::default() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse::<u64>().ok());
        match argument.as_str() {
            "--seed" => wanted.seed = number(),
            "--seeds" => wanted.seeds = number(),
            "--from" => wanted.from = number().unwrap_or(1),
            "--jobs" => wanted.jobs = number().map(|jobs| jobs as usize),
            "--worker" => wanted.worker = number().zip(number()).zip(number()).map(|((a, b), c)| (a, b, c)),
            "--list" => wanted.list = true,
            "--ignored" => wanted.filtered = true,
            "--format" | "--test-threads" | "--skip" => drop(number()),
            option if option.starts_with('-') => {}
            filter => wanted.filtered |= !"simulated_plans".contains(filter),
        }
    }
    wanted
}

pub fn main() -> ExitCode {
    let wanted = wanted();
    if wanted.list {
        if !wanted.filtered {
            println!("simulated_plans: test");
        }
        return ExitCode::SUCCESS;
    }
    if wanted.filtered {
        println!("test result: ok. 0 passed; 0 failed");
        return ExitCode::SUCCESS;
    }
    world::keep_panics();
    if let Some((first, step, count)) = wanted.worker {
        return work((0..count).map(|n| first + n * step));
    }
    match wanted.seed {
        Some(seed) => one(seed),
        None => many(&wanted),
    }
}

/// One seed, with its trace.
fn one(seed: u64) -> ExitCode {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "info,sim=debug,broker=debug,tidegate=debug".to_owned());
    tracing_subscriber::fmt().with_env_filter(filter).with_timer(VirtualTime).with_writer(std::io::stdout).init();
    let started = Instant::now();
    let report = Shop::open().and_then(|shop| run::run(seed, &shop));
    match report {
        Ok(Report { violations, lives, elapsed, digest }) => {
            for violation in &violations {
                println!("BROKEN: {violation}");
            }
            println!(
                "seed {seed}: {} broken, {lives} lives, {elapsed:?} simulated in {:?}, digest {digest:016x}",
                violations.len(),
                started.elapsed()
            );
            if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            println!("seed {seed} cannot be run: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs `seeds` for the parent, which reads what is printed.
fn work(seeds: impl Iterator<Item = u64>) -> ExitCode {
    let shop = match Shop::open() {
        Ok(shop) => shop,
        Err(error) => {
            println!("broken 0 no functions: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    for seed in seeds {
        println!("begins {seed}");
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run::run(seed, &shop)));
        let violations = match result {
            Ok(Ok(report)) => report.violations,
            Ok(Err(error)) => vec![format!("it cannot be run: {error:#}")],
            Err(_) => world::panics(),
        };
        for violation in violations {
            println!("broken {seed} {}", violation.replace('\n', " "));
        }
        println!("ends {seed}");
        let _ = std::io::stdout().flush();
    }
    ExitCode::SUCCESS
}

struct Worker {
    child: Child,
    lines: mpsc::Receiver<String>,
    seed: Option<u64>,
    since: Instant,
    left: Vec<u64>,
}

impl Worker {
    fn start(first: u64, step: u64, count: u64) -> std::io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--worker", &first.to_string(), &step.to_string(), &count.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let (sender, lines) = mpsc::channel();
        let stdout = child.stdout.take().unwrap();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let left = (0..count).map(|n| first + n * step).rev().collect();
        Ok(Self { child, lines, seed: None, since: Instant::now(), left })
    }
}

/// Seeds over all cores. Prints each that fails, and how to run it alone.
fn many(wanted: &Wanted) -> ExitCode {
    let seeds = wanted.seeds.unwrap_or(200);
    let jobs = wanted.jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from)) as u64;
    let started = Instant::now();
    let mut broken: Vec<(u64, Vec<String>)> = Vec::new();
    let mut done = 0;
    let mut workers: Vec<Worker> = (0..jobs)
        .map(|n| Worker::start(wanted.from + n, jobs, seeds / jobs + u64::from(n < seeds % jobs)))
        .chain(KNOWN.iter().map(|seed| Worker::start(*seed, 1, 1)))
        .collect::<Result<_, _>>()
        .unwrap();
    while !workers.is_empty() {
        let mut i = 0;
        while i < workers.len() {
            let worker = &mut workers[i];
            let mut gone = false;
            loop {
                match worker.lines.recv_timeout(Duration::from_millis(20)) {
                    Ok(line) => {
                        let mut words = line.splitn(3, ' ');
                        let (verb, seed) =
                            (words.next().unwrap_or_default(), words.next().and_then(|s| s.parse().ok()));
                        match (verb, seed) {
                            ("begins", seed) => (worker.seed, worker.since) = (seed, Instant::now()),
                            ("broken", Some(seed)) => {
                                let what = words.next().unwrap_or_default().to_owned();
                                println!("seed {seed}: {what}");
                                match broken.last_mut().filter(|(last, _)| *last == seed) {
                                    Some((_, all)) => all.push(what),
                                    None => broken.push((seed, vec![what])),
                                }
                            }
                            ("ends", Some(seed)) => {
                                worker.left.retain(|left| *left != seed);
                                worker.seed = None;
                                done += 1;
                            }
                            _ => println!("{line}"),
                        }
                    }
                    Err(RecvTimeoutError::Timeout) => break,
                    Err(RecvTimeoutError::Disconnected) => {
                        gone = true;
                        break;
                    }
                }
            }
            let stuck = worker.seed.filter(|_| worker.since.elapsed() > SEED_MAX);
            if let Some(seed) = stuck {
                println!("seed {seed}: it does not end");
                broken.push((seed, vec!["it does not end".to_owned()]));
                let _ = worker.child.kill();
                gone = true;
            }
            if gone {
                let worker = workers.swap_remove(i);
                let (seed, mut child) = (worker.seed, worker.child);
                let status = child.wait().unwrap();
                if stuck.is_none() && (!status.success() || !worker.left.is_empty()) {
                    let seed = seed.unwrap_or(0);
                    println!("seed {seed}: the process ended with {status}");
                    broken.push((seed, vec![format!("the process ended with {status}")]));
                }
                // What the process would have run is run by another, one by one.
                let rest = worker.left.into_iter().filter(|left| Some(*left) != seed);
                workers.extend(rest.map(|seed| Worker::start(seed, 1, 1).unwrap()).take(64));
            } else {
                i += 1;
            }
        }
    }
    let mut failed: Vec<u64> = broken.iter().map(|(seed, _)| *seed).collect();
    failed.sort_unstable();
    failed.dedup();
    for seed in &failed {
        println!(
            "test simulated_plans::seed_{seed} ... FAILED\n    rerun: cargo test -p e2e --test sim -- --seed {seed}"
        );
    }
    let verdict = if failed.is_empty() { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {} passed; {} failed; finished in {:.1?}",
        done - failed.len().min(done),
        failed.len(),
        started.elapsed()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
