//! Code that was compiled elsewhere.

use super::*;

const ECHO: &str = "(call $answer (call $data (local.get $event)) (call $data_bytes (local.get $event)))";

fn digest(code: &[u8]) -> String {
    load::hex(&Sha256::digest(code))
}

#[tokio::test]
async fn code_that_its_publisher_compiled_runs_here() {
    let site = Site::new();
    let component = guest::component(ECHO, "");
    let made = precompile(&component, &target()).unwrap();
    // A machine with less memory plans otherwise, and compiles by itself.
    let fitting = Fitting { target: target(), compatibility: made.compatibility.clone() };
    assert_eq!(site.runtime.fitting(), fitting);

    let spec = site.spec(&component, |_| {});
    assert!(!site.runtime.has_code(&spec.digest));
    site.runtime.adopt(&spec.digest, made.code.as_slice(), &digest(&made.code)).unwrap();
    assert!(site.runtime.has_code(&spec.digest));
    let before = site.code();
    let function = site.runtime.load(spec).await.unwrap();
    assert_eq!(site.code(), before, "nothing was compiled");
    assert_eq!(site.runtime.code_counts(), CodeCounts { compiled: 0, adopted: 1 });
    assert_eq!(text(&invoke(&mut function.instantiate().await.unwrap(), "hello").await.outcome), "hello");
}

/// Even if somebody signed that it fits.
#[tokio::test]
async fn code_that_does_not_fit_is_compiled_again() {
    let site = Site::new();
    let component = guest::component(ECHO, "");
    let spec = site.spec(&component, |_| {});
    let code = b"no code at all";
    site.runtime.adopt(&spec.digest, code.as_slice(), &digest(code)).unwrap();
    let before = site.code();
    site.runtime.load(spec).await.unwrap();
    assert_ne!(site.code(), before);
    assert_eq!(site.runtime.code_counts(), CodeCounts { compiled: 1, adopted: 1 });
}

/// Machine code that would run, and is not what was signed.
#[tokio::test]
async fn native_code_of_another_digest_than_the_signed_one_is_refused() {
    let site = Site::new();
    let component = guest::component(ECHO, "");
    let made = precompile(&component, &target()).unwrap();
    let spec = site.spec(&component, |_| {});
    let mut signed = made.code.clone();
    signed[0] ^= 1;
    let error = site.runtime.adopt(&spec.digest, made.code.as_slice(), &digest(&signed)).unwrap_err();
    assert!(error.to_string().contains("was signed"), "{error}");
    assert!(site.code().is_empty(), "nothing of it stays");
    site.runtime.load(spec).await.unwrap();
    assert_eq!(site.runtime.code_counts(), CodeCounts { compiled: 1, adopted: 0 });
}

#[cfg(feature = "control-plane")]
#[test]
fn a_publisher_compiles_for_processors_other_than_its_own() {
    let component = guest::component(ECHO, "");
    let made = ["aarch64-unknown-linux-gnu", "x86_64-unknown-linux-gnu", "pulley32"]
        .map(|target| precompile(&component, target).unwrap());
    assert!(made.iter().all(|one| made.iter().filter(|other| other.code == one.code).count() == 1));
    assert!(made.iter().all(|one| made.iter().filter(|other| other.compatibility == one.compatibility).count() == 1));
}

#[test]
fn an_unknown_target_is_refused_with_those_that_are_known() {
    let error = precompile(b"", "toaster").unwrap_err().to_string();
    assert!(error.starts_with("cannot compile for `toaster`; hint: a target is"), "{error}");
}
