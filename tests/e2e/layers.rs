//! Layers: folders that functions share, at `/opt`, read-only, the later over the earlier. From gateway.toml and from a deployment.

use std::path::{Path, PathBuf};

use e2e::site::guest;
use e2e::{Guest, Signers, Site};
use serde_json::json;
use sync_protocol::Kind;
use sync_protocol::report::Phase;

use super::deployment::{apply, comes_to, site};
use super::function;

/// A folder of `below` with these files.
fn folder(below: &Path, name: &str, files: &[(&str, &str)]) -> anyhow::Result<PathBuf> {
    let folder = below.join(name);
    std::fs::create_dir_all(&folder)?;
    for (name, content) in files {
        std::fs::write(folder.join(name), content)?;
    }
    Ok(folder)
}

/// What the function answers when it is asked for the file `name`; the error is what is said instead.
fn read(site: &Site, function: &[&str], name: &str) -> anyhow::Result<Result<String, String>> {
    let event = site.agent.folder().join("event");
    std::fs::write(&event, name)?;
    let event = event.display().to_string();
    let output = site.agent.command(&[&["invoke"][..], function, &["--event", &event]].concat())?;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).map(|text| text.trim().to_owned());
    Ok(if output.status.success() { Ok(text(output.stdout)?) } else { Err(text(output.stderr)?) })
}

/// Two folders over each other: nothing else can be read, nothing written, and a reload brings what has changed in them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_reads_its_layers_and_nothing_else() -> anyhow::Result<()> {
    let layers = tempfile::tempdir()?;
    let first = folder(layers.path(), "first", &[("table", "of the first"), ("only", "in the first")])?;
    let second = folder(layers.path(), "second", &[("table", "of the second")])?;
    let config = guest("reader", "sensors/#", &format!("layers = [{first:?}, {second:?}]"));
    let site = Site::with_guests(&config, &[("reader", Guest::reads_layers())]).await?;
    assert_eq!(read(&site, &["reader"], "table")?, Ok("of the second".to_owned()));
    assert_eq!(read(&site, &["reader"], "only")?, Ok("in the first".to_owned()));
    let gateway = site.agent.config().display().to_string();
    for closed in ["missing", "../first/table", "../../gateway.toml", &gateway, "!table", "!new"] {
        let said = read(&site, &["reader"], closed)?;
        assert!(said.as_ref().is_err_and(|said| said.contains("no file")), "{closed}: {said:?}");
    }
    assert_eq!(std::fs::read_to_string(second.join("table"))?, "of the second");

    folder(layers.path(), "second", &[("table", "changed"), ("new", "too")])?;
    assert_eq!(read(&site, &["reader"], "table")?, Ok("of the second".to_owned()), "as it was taken");
    site.agent.tell(&["reload"])?;
    assert_eq!(read(&site, &["reader"], "table")?, Ok("changed".to_owned()));
    assert_eq!(read(&site, &["reader"], "new")?, Ok("too".to_owned()));

    let (bundle, layer) = (site.bundle("reader").display().to_string(), first.display().to_string());
    let alone = ["--bundle", &bundle, "--layer", &layer];
    assert_eq!(read(&site, &alone, "only")?, Ok("in the first".to_owned()));
    Ok(())
}

/// Published layers come with their deployment, for its functions and their tests. A new version of one touches who mounts it, and nobody else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployed_layer_is_mounted_by_those_who_name_it() -> anyhow::Result<()> {
    let signers = Signers::new()?;
    let site = site(&signers).await?;
    let layers = tempfile::tempdir()?;
    let pack = |name: &str, content: &str| -> anyhow::Result<PathBuf> {
        let layer = folder(layers.path(), name, &[("1", content), (name, content)])?;
        let archive = layers.path().join(format!("{name}.tar.zst"));
        tidegate::store::pack(&layer, &archive)?;
        Ok(archive)
    };
    // Its own test reads `/opt/1`, which only the layer `site` has right.
    let test = "[[test]]\nevent = \"event.json\"\nexpect = { result = \"event.json\" }\n";
    let draft = |number: u64, version: &str, common: &Path, top: &Path, named: serde_json::Value| {
        let draft = signers.deployment(number);
        let draft = draft.bundle(Kind::Layer, "common", version, common, &[], &json!({}))?;
        let draft = draft.bundle(Kind::Layer, "site", "1.0.0", top, &[], &json!({}))?;
        let draft = draft.function_with("alone", "1.0.0", &Guest::echo(), "", &json!({}))?;
        draft.function_with("reader", "1.0.0", &Guest::reads_layers(), test, &json!({ "layers": named }))
    };
    let top = pack("site", "1")?;
    let first = draft(1, "1.0.0", &pack("common", "of 1.0.0")?, &top, json!(["common", "site"]))?;
    apply(&site, &first.file()?).await?;
    comes_to(&site, 1, Phase::Active, true).await?;
    assert_eq!(read(&site, &["reader"], "common")?, Ok("of 1.0.0".to_owned()));
    assert_eq!(read(&site, &["alone"], "warm")?, Ok("warm".to_owned()));

    let newer = pack("common", "of 1.1.0")?;
    apply(&site, &draft(2, "1.1.0", &newer, &top, json!(["common", "site"]))?.file()?).await?;
    let status = comes_to(&site, 2, Phase::Active, true).await?;
    assert_eq!(read(&site, &["reader"], "common")?, Ok("of 1.1.0".to_owned()));
    assert_eq!(read(&site, &["alone"], "warm")?, Ok("warm".to_owned()));
    assert_eq!(function(&site.agent.status()?, "alone")["cold_starts"], 1, "it mounts nothing, and went on");
    let running: Vec<_> = status
        .running
        .iter()
        .filter(|r| r.kind == Kind::Layer)
        .map(|r| (r.name.as_str(), r.version.as_str()))
        .collect();
    assert_eq!(running, [("common", "1.1.0"), ("site", "1.0.0")]);

    // In the wrong order the function's own test fails: nothing changes.
    apply(&site, &draft(3, "1.1.0", &newer, &top, json!(["site", "common"]))?.file()?).await?;
    let reason = comes_to(&site, 3, Phase::Failed, false).await?.progress.unwrap_or_else(|| unreachable!()).reason;
    assert!(reason.contains("function `reader` 1.0.0 fails its test"), "{reason}");
    // A deployment reaches no folder of the gateway, and what it cannot have yet is said.
    for (number, named, why) in [
        (4, json!(["/etc"]), "deployment 4: function[reader].layers: there is no layer `/etc` in this deployment"),
        (5, json!("/etc"), "deployment 5: function[reader].layers: they are no list of names"),
        (6, json!([["common"]]), "is no name of a layer"),
    ] {
        apply(&site, &draft(number, "1.1.0", &newer, &top, named)?.file()?).await?;
        let status = comes_to(&site, number, Phase::Failed, false).await?;
        let reason = status.progress.unwrap_or_else(|| unreachable!()).reason;
        assert!(reason.contains(why), "{reason}");
    }
    let runtime =
        draft(7, "1.1.0", &newer, &top, json!([]))?.bundle(Kind::Runtime, "python", "1.0.0", &top, &[], &json!({}))?;
    apply(&site, &runtime.file()?).await?;
    let reason = comes_to(&site, 7, Phase::Failed, false).await?.progress.unwrap_or_else(|| unreachable!()).reason;
    assert!(reason.contains("this version of the agent can do nothing with a runtime"), "{reason}");
    assert_eq!(read(&site, &["reader"], "common")?, Ok("of 1.1.0".to_owned()));
    let views = std::fs::read_dir(site.agent.folder().join("state/layers"))?.count();
    assert!(views <= 3, "{views} views are kept");
    Ok(())
}
