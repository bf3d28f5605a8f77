//! The command line, and the processes that share the seeds.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write as _};
use std::ops::Range;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::run::{self, Report, VirtualTime};
use crate::site::Shop;
use crate::world;

/// Seeds that found a bug once: they always run. A change of how plans are drawn makes other plans of them.
const KNOWN: &[u64] = &[571, 627, 1058, 1354, 1411, 1423, 1454, 1596, 5039, 5062, 7068];
/// Of the machine's time, for one seed.
const SEED_MAX: Duration = Duration::from_secs(120);
/// Seeds that one process runs: what a killed life leaves behind, its address space above all, goes with the process.
const PIECE: u64 = 200;
/// How often a long run says how far it is.
const TOLD_EVERY: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Wanted {
    seed: Option<u64>,
    seeds: Option<u64>,
    from: u64,
    jobs: Option<usize>,
    /// Run these, and tell the parent on standard output.
    worker: Option<Range<u64>>,
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
            "--worker" => wanted.worker = number().zip(number()).map(|(first, end)| first..end),
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
    if let Some(seeds) = wanted.worker {
        return work(seeds);
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
    left: Range<u64>,
}

impl Worker {
    fn start(seeds: Range<u64>) -> std::io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--worker", &seeds.start.to_string(), &seeds.end.to_string()])
            .stdout(Stdio::piped())
            .spawn()?;
        let (sender, lines) = mpsc::channel();
        let stdout = child.stdout.take().unwrap();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        Ok(Self { child, lines, seed: None, since: Instant::now(), left: seeds })
    }
}

/// Seeds over all cores. Prints each that fails, and how to run it alone.
fn many(wanted: &Wanted) -> ExitCode {
    let seeds = wanted.seeds.unwrap_or(200);
    let jobs = wanted.jobs.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from));
    let (started, end) = (Instant::now(), wanted.from + seeds);
    let pieces = (wanted.from..end).step_by(PIECE as usize).map(|first| first..end.min(first + PIECE));
    let mut pieces: VecDeque<_> = KNOWN.iter().map(|seed| *seed..seed + 1).chain(pieces).collect();
    let (all, mut told) = (seeds as usize + KNOWN.len(), started);
    let mut broken: Vec<(u64, Vec<String>)> = Vec::new();
    let mut done = 0;
    let mut workers: Vec<Worker> = Vec::new();
    loop {
        while workers.len() < jobs.max(1)
            && let Some(piece) = pieces.pop_front()
        {
            workers.push(Worker::start(piece).unwrap());
        }
        if workers.is_empty() {
            break;
        }
        if told.elapsed() > TOLD_EVERY {
            told = Instant::now();
            eprintln!("{done} of {all} seeds, {} failed", broken.len());
        }
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
                            ("begins", Some(seed)) => {
                                (worker.seed, worker.since) = (Some(seed), Instant::now());
                                worker.left.start = seed + 1;
                            }
                            ("broken", Some(seed)) => {
                                let what = words.next().unwrap_or_default().to_owned();
                                println!("seed {seed}: {what}");
                                match broken.last_mut().filter(|(last, _)| *last == seed) {
                                    Some((_, all)) => all.push(what),
                                    None => broken.push((seed, vec![what])),
                                }
                            }
                            ("ends", Some(_)) => {
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
                let (seed, mut child, left) = (worker.seed, worker.child, worker.left);
                let status = child.wait().unwrap();
                if stuck.is_none() && (!status.success() || !left.is_empty() || seed.is_some()) {
                    let seed = seed.unwrap_or(left.start);
                    println!("seed {seed}: the process ended with {status}");
                    broken.push((seed, vec![format!("the process ended with {status}")]));
                }
                // What the process would have run is run by another.
                let rest = if seed.is_some() { left } else { left.start + 1..left.end };
                if !rest.is_empty() {
                    pieces.push_front(rest);
                }
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
