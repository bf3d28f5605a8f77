//! No bytes make a parser panic, or break its rule: its seeds as they are, and thousands of mutations of them. `tests/fuzz` has
//! the same parsers under a fuzzer that looks for more.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use fastrand::Rng;
use tidegate::parsers::{PARSERS, Parser};

/// Mutations of each parser's seeds, and the time that they may take: a bundle is written to disk, a frame is not.
const MUTATIONS: u64 = 4_000;
const TIME: Duration = Duration::from_secs(1);
/// No input may take longer: what takes long for a few bytes stops a gateway for more.
const SLOW: Duration = Duration::from_secs(1);

fn fuzz() -> PathBuf {
    e2e::repository().join("tests/fuzz")
}

fn seeds(parser: &Parser) -> Vec<Vec<u8>> {
    let folder = fuzz().join("seeds").join(parser.name);
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// Changes `bytes` in one way of many.
fn mutate(random: &mut Rng, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
    let at = random.usize(..=bytes.len());
    let length = random.usize(..=(bytes.len() - at).min(32));
    match random.u8(..8) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.u8(..8),
        1 if at < bytes.len() => bytes[at] = random.choice([0, 1, 0x7f, 0x80, 0xff, b' ', b'"', b'\n', b'/']).unwrap(),
        2 => bytes.truncate(at),
        3 => drop(bytes.drain(at..at + length)),
        4 => drop(bytes.splice(at..at, std::iter::repeat_with(|| random.u8(..)).take(length).collect::<Vec<_>>())),
        5 => drop(bytes.splice(at..at, bytes[at..at + length].to_vec())),
        6 => {
            let extreme = random.choice([0, 1, u64::from(u32::MAX), u64::MAX, 1 << 31, 0x7fff_ffff_ffff_ffff]).unwrap();
            let text = random.bool().then(|| extreme.to_string().into_bytes());
            let new = text.unwrap_or_else(|| extreme.to_le_bytes()[..1 << random.usize(..4)].to_vec());
            let end = (at + new.len()).min(bytes.len());
            bytes.splice(at..end, new);
        }
        _ => {
            let other = &others[random.usize(..others.len())];
            let from = random.usize(..=other.len());
            let piece = &other[from..(from + random.usize(..=64)).min(other.len())];
            bytes.splice(at..at + length, piece.iter().copied());
        }
    }
}

/// Runs it; a panic says how to have it again.
fn run(parser: &Parser, input: &[u8]) {
    let started = Instant::now();
    let result = std::panic::catch_unwind(|| (parser.run)(input));
    let took = started.elapsed();
    if result.is_err() || took > SLOW {
        let file = fuzz().join("found").join(format!("{}-{:016x}", parser.name, fastrand::u64(..)));
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, input).unwrap();
        panic!(
            "parser `{}` took {took:?} or panicked on {} bytes, kept in {}",
            parser.name,
            input.len(),
            file.display()
        );
    }
}

#[test]
fn no_bytes_make_a_parser_panic() {
    let seed = 7;
    for parser in PARSERS {
        let seeds = seeds(parser);
        assert!(!seeds.is_empty(), "{} has no seeds", parser.name);
        seeds.iter().for_each(|input| run(parser, input));
        run(parser, &[]);
        let (mut random, until) = (Rng::with_seed(seed), Instant::now() + TIME);
        for n in 0..MUTATIONS {
            let mut input = seeds[random.usize(..seeds.len())].clone();
            for _ in 0..random.u8(1..5) {
                mutate(&mut random, &mut input, &seeds);
            }
            run(parser, &input);
            if Instant::now() > until {
                println!("{}: {n} mutations in {TIME:?}", parser.name);
                break;
            }
        }
    }
}

/// The fuzzer's targets are the parsers, all of them.
#[test]
fn each_parser_is_a_fuzz_target() {
    let manifest = std::fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    let targets: Vec<&str> = manifest.lines().filter_map(|line| line.strip_prefix("name = \"")).skip(1).collect();
    let targets: Vec<&str> = targets.iter().map(|line| line.trim_end_matches('"')).collect();
    assert_eq!(targets, PARSERS.iter().map(|parser| parser.name).collect::<Vec<_>>());
}
