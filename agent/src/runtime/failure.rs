//! Says in words for a function's author why wasm code ended without an answer.

use std::fmt::Write as _;

use wasmtime::{PoolConcurrencyLimitError, Trap, WasmBacktrace};
use wasmtime_wasi::I32Exit;

use crate::invocation::Outcome;

/// Frames of a backtrace that are shown: enough to find the place, few enough for one line of a log.
const FRAMES_MAX: usize = 8;
/// What the panic's own words have already said.
const MACHINERY: &[&str] = &["panic", "rust_begin_unwind", "abort", "unwrap_failed", "expect_failed", "__rust_"];

/// The outcome of code that ended with `error`. `refused_memory`: the limit, when it asked for more than that; `last_words`: what it
/// said on standard error.
pub(crate) fn outcome(error: &wasmtime::Error, refused_memory: Option<u64>, last_words: Option<String>) -> Outcome {
    if let Some(limit_bytes) = refused_memory {
        return Outcome::OutOfMemory { limit_bytes };
    }
    if error.is::<PoolConcurrencyLimitError>() {
        return Outcome::Unavailable(format!("{error}; hint: lower `concurrency` of the functions of this gateway"));
    }
    let mut text = match (error.downcast_ref::<I32Exit>(), error.downcast_ref::<Trap>()) {
        (Some(exit), _) => format!("it exited with status {}", exit.0),
        (_, Some(Trap::UnreachableCodeReached)) if last_words.is_some() => "it panicked".to_owned(),
        (_, Some(Trap::UnreachableCodeReached)) => "it reached unreachable code (a panic or an abort)".to_owned(),
        (_, Some(trap)) => trap.to_string().trim_start_matches("wasm trap: ").to_owned(),
        _ => error.root_cause().to_string(),
    };
    if let Some(words) = last_words {
        let _ = write!(text, ": {words}");
    }
    if let Some(place) = place(error) {
        let _ = write!(text, "; in {place}");
    }
    Outcome::Trapped(text)
}

/// Whether the code was stopped because its time was up.
pub(crate) fn is_interrupt(error: &wasmtime::Error) -> bool {
    error.downcast_ref::<Trap>() == Some(&Trap::Interrupt)
}

/// Names of the innermost functions, without what only carries out a panic. `None` when the component has no names.
pub(crate) fn place(error: &wasmtime::Error) -> Option<String> {
    let backtrace = error.downcast_ref::<WasmBacktrace>()?;
    let named = backtrace.frames().iter().filter(|frame| frame.func_name().is_some()).count();
    // wasmtime demangles only as it shows; a line is `  0:  0x1f2 - module!name`.
    let shown = backtrace.to_string();
    let names =
        shown.lines().filter_map(|line| line.split_once(" - ")?.1.split_once('!').map(|(_, name)| without_hash(name)));
    let told =
        names.filter(|name| !MACHINERY.iter().any(|word| name.contains(word)) && !name.starts_with("<wasm function"));
    let told: Vec<&str> = told.take(FRAMES_MAX).collect();
    (named > 0 && !told.is_empty()).then(|| told.join(" < "))
}

/// Rust's older mangling ends in `::h` and 16 digits that mean nothing to people.
fn without_hash(name: &str) -> &str {
    match name.rsplit_once("::h") {
        Some((start, hash)) if hash.len() == 16 && hash.bytes().all(|b| b.is_ascii_hexdigit()) => start,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rust_name_is_shown_without_its_hash() {
        assert_eq!(without_hash("fahrenheit::handle::h0123456789abcdef"), "fahrenheit::handle");
        assert_eq!(without_hash("std::hash::handle"), "std::hash::handle");
    }

    #[test]
    fn memory_that_was_refused_explains_the_trap() {
        let error = wasmtime::Error::from(Trap::UnreachableCodeReached);
        assert_eq!(outcome(&error, Some(64), Some("alloc error".into())), Outcome::OutOfMemory { limit_bytes: 64 });
    }
}
