//! Native code that a publisher compiled and signed is run as it is; whatever is wrong with it, the gateway compiles by itself.

use e2e::{Guest, Signers, Site};
use sync_protocol::report::Phase;
use tidegate::runtime::{precompile, target};

use super::deployment::{FILTER, apply, comes_to, refused, served, site};

/// A processor that this machine has not.
const OTHER: &str = if cfg!(target_arch = "x86_64") { "aarch64-unknown-linux-gnu" } else { "x86_64-unknown-linux-gnu" };

/// How many components the agent has compiled, and for how many it took native code.
async fn counts(site: &Site) -> anyhow::Result<[u64; 2]> {
    let of = async |from: &str| site.agent.metric(&format!("tidegate_native_code_total{{from=\"{from}\"}}")).await;
    Ok([of("compiler").await?, of("publisher").await?])
}

/// Of two processors the gateway takes the code of its own, compiles nothing, and keeps the other's bytes out.
#[tokio::test]
async fn a_gateway_runs_the_native_code_of_its_processor_and_compiles_nothing() -> anyhow::Result<()> {
    let signers = Signers::new()?;
    let mut site = site(&signers).await?;
    let guest = Guest::forward("results/native");
    let [mine, other] = [&target(), OTHER].map(|target| precompile(&guest.component(), target));
    let (mine, other) = (mine?, other?);
    let own = mine.code.len();
    let draft = signers.deployment(1).native(OTHER, &other.compatibility, other.code);
    let draft = draft.native(&target(), &mine.compatibility, mine.code).function("hall", "1.0.0", &guest, FILTER)?;
    let file = draft.file()?;

    let taken = apply(&site, &file).await?;
    let bundle = draft.blobs().map(Vec::len).min().unwrap_or_default();
    assert_eq!(taken, (own + bundle) as u64, "the bundle and one of two native codes");
    comes_to(&site, 1, Phase::Active, true).await?;
    assert_eq!(counts(&site).await?, [0, 1], "{}", site.agent.log());
    assert_eq!(served(&site).await?, "results/native");
    assert!(site.agent.log().contains("native code of its publisher taken"), "{}", site.agent.log());

    site.agent.kill()?;
    site.agent.resume().await?;
    assert_eq!(served(&site).await?, "results/native");
    assert_eq!(counts(&site).await?, [0, 0], "it is there after a restart");
    Ok(())
}

/// For another engine, not in the file, no code at all, another processor's, not wanted: in each case it is said, and the gateway compiles.
#[tokio::test]
async fn what_has_no_native_code_that_fits_is_compiled() -> anyhow::Result<()> {
    let signers = Signers::new()?;
    let site = site(&signers).await?;
    let check = async |number: u64, native: (&str, Vec<u8>), is_carried: bool, said: &str| {
        let guest = Guest::forward(&format!("results/v{number}"));
        let (compatibility, code) = native;
        let draft = signers.deployment(number).native(&target(), compatibility, code.clone());
        let draft = draft.function("hall", &format!("1.{number}.0"), &guest, FILTER)?;
        let draft = draft.carrying(|bytes| {
            if !is_carried && *bytes == code {
                bytes.clear()
            }
        });
        let [before, _] = counts(&site).await?;
        apply(&site, &draft.file()?).await?;
        comes_to(&site, number, Phase::Active, true).await?;
        assert_eq!(counts(&site).await?[0], before + 1, "{said}");
        assert_eq!(served(&site).await?, format!("results/v{number}"));
        let log = site.agent.log();
        anyhow::ensure!(log.contains(said), "`{said}` is not in {log}");
        anyhow::Ok(())
    };
    let engine = precompile(&Guest::echo().component(), &target())?.compatibility;
    check(1, ("wasmtime-of-another-time", b"code".to_vec()), true, "native code of its publisher does not fit").await?;
    check(2, (&engine, b"that is missing".to_vec()), false, "native code of its publisher is not here").await?;
    check(3, (&engine, b"no code at all".to_vec()), true, "compiled code does not fit, and is removed").await?;
    let others = precompile(&Guest::forward("results/v4").component(), OTHER)?.code;
    check(4, (&engine, others), true, "compiled code does not fit, and is removed").await?;

    let config = format!("{}native_code = false\n", signers.cloud());
    let own = Site::with(&config).await?;
    let guest = Guest::forward("results/compiled");
    let compiled = precompile(&guest.component(), &target())?;
    let draft = signers.deployment(1).native(&target(), &compiled.compatibility, compiled.code);
    apply(&own, &draft.function("hall", "1.0.0", &guest, FILTER)?.file()?).await?;
    comes_to(&own, 1, Phase::Active, true).await?;
    assert_eq!(counts(&own).await?, [1, 0]);
    Ok(())
}

/// Machine code that no publisher signed is refused with its file; beside what was signed it is not even written.
#[tokio::test]
async fn native_code_that_no_release_names_is_refused() -> anyhow::Result<()> {
    let (signers, strangers) = (Signers::new()?, Signers::new()?);
    let site = site(&signers).await?;
    let guest = Guest::forward("results/good");
    let compiled = precompile(&guest.component(), &target())?;
    let evil = precompile(&Guest::forward("results/evil").component(), &target())?;
    let draft = || -> anyhow::Result<_> {
        let draft = signers.deployment(1).native(&target(), &compiled.compatibility, compiled.code.clone());
        draft.function("hall", "1.0.0", &guest, FILTER)
    };
    // In the place of what was signed.
    let swapped = draft()?.carrying(|bytes| {
        if *bytes == compiled.code {
            bytes.clone_from(&evil.code);
            bytes.resize(compiled.code.len(), 0);
        }
    });
    let why = refused(&site, &swapped.file()?).await?;
    assert!(why.contains("has the digest"), "{why}");
    assert_eq!(site.agent.deployment().await?.progress, None);

    // Put into the release, by somebody who cannot sign it.
    let (_, mut answer) = draft()?.sign()?;
    let forged = strangers.deployment(1).native(&target(), &evil.compatibility, evil.code.clone());
    let forged = forged.function("hall", "1.0.0", &guest, FILTER)?;
    answer.releases = forged.sign()?.1.releases;
    let why = refused(&site, &forged.file_of(&answer)?).await?;
    assert!(why.contains("release"), "{why}");

    // Beside it.
    let file = draft()?.native(&target(), &evil.compatibility, evil.code).file()?;
    apply(&site, &file).await?;
    comes_to(&site, 1, Phase::Active, true).await?;
    assert_eq!(served(&site).await?, "results/good");
    assert_eq!(std::fs::read_dir(site.agent.folder().join("state/blobs"))?.count(), 2);
    Ok(())
}
