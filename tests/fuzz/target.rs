//! Each target of the fuzzer: the parser whose name the binary has.
#![no_main]

use std::sync::LazyLock;

use tidegate::parsers::{Parser, named};

static PARSER: LazyLock<&Parser> = LazyLock::new(|| named(env!("CARGO_BIN_NAME")).expect("a target is a parser"));

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (PARSER.run)(bytes));
