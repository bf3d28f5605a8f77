//! Files that come into a folder of the gateway.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use e2e::{Guest, Site};
use serde_json::Value;
use tokio::time::sleep;

use super::sources::source;

const GUIDE: &str = include_str!("../../docs/guides/files.md");

/// The config of the guide, for `folder`.
fn of_the_guide(folder: &Path) -> String {
    let config = GUIDE.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap_or_default();
    config.replace("/data/inbox", &folder.display().to_string())
}

/// A source `inbox` that soon settles, with `more` keys behind that, and a function that tells each file.
fn inbox(folder: &Path, more: &str) -> String {
    format!(
        "[source.inbox]\nfile = {{ folder = {folder:?}, settle = \"200ms\"{more} }}\n\
         [[function]]\nname = \"tell\"\nbundle = \"tell\"\ncapabilities = [\"mqtt:publish:results/#\"]\n\
         [[function.trigger]]\nfile = {{ source = \"inbox\" }}\n"
    )
}

async fn with_inbox(folder: &Path, more: &str) -> anyhow::Result<Site> {
    Site::with_guests(&inbox(folder, more), &[("tell", Guest::forward("results/file"))]).await
}

/// The next file that was told, as JSON.
async fn next(site: &Site) -> anyhow::Result<Value> {
    let message = site.device.next().await.with_context(|| site.agent.log())?;
    Ok(serde_json::from_slice(&message.payload)?)
}

/// The next file that was told: what happened, and its path.
async fn told(site: &Site) -> anyhow::Result<(String, String)> {
    let file = next(site).await?;
    let text = |key: &str| file[key].as_str().unwrap_or_default().to_owned();
    Ok((text("change"), text("path")))
}

fn pair(change: &str, path: &str) -> (String, String) {
    (change.to_owned(), path.to_owned())
}

fn sha256(text: &str) -> anyhow::Result<String> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("text"), text)?;
    let output = std::process::Command::new("sha256sum").arg(folder.path().join("text")).output()?;
    Ok(String::from_utf8(output.stdout)?.chars().take(64).collect())
}

/// With the config of the guide: half-written files, other names, and contents that were handled already.
#[tokio::test]
async fn a_file_is_an_event_once_it_is_left_alone() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let file = |name: &str| folder.path().join(name);
    std::fs::write(file("before.csv"), "1")?;
    let import = ("functions/import", Guest::forward("results/import"));
    let site = Site::with_guests(&of_the_guide(folder.path()), &[import]).await?;
    assert_eq!(told(&site).await?, pair("created", "before.csv"));

    let mut written = String::new();
    for n in 0..8 {
        written.push_str(&format!("{n};{n}\n"));
        std::fs::write(file("slow.csv"), &written)?;
        std::fs::write(file("slow.tmp"), &written)?;
        sleep(Duration::from_millis(400)).await;
    }
    assert_eq!(site.device.rest().len(), 0, "a file is not told of while it is written");
    let whole = next(&site).await?;
    assert_eq!((whole["change"].as_str(), whole["path"].as_str()), (Some("created"), Some("slow.csv")));
    assert_eq!((whole["name"].as_str(), whole["file"].as_str()), (Some("slow.csv"), Some("/mnt/inbox/slow.csv")));
    assert_eq!(whole["size"].as_u64(), Some(written.len() as u64));
    assert_eq!(whole["sha256"].as_str(), Some(sha256(&written)?.as_str()));

    // The same content once more is left out by the key, another one is not.
    std::fs::write(file("before.csv"), "1")?;
    std::fs::rename(file("slow.tmp"), file("moved.csv"))?;
    assert_eq!(told(&site).await?, pair("created", "moved.csv"));
    std::fs::write(file("before.csv"), "2")?;
    assert_eq!(told(&site).await?, pair("changed", "before.csv"));
    assert_eq!(site.device.rest().len(), 0);
    Ok(())
}

/// Also those that come while the agent is dead, and none again that was handled.
#[tokio::test]
async fn none_of_10_000_files_is_missed_when_the_agent_is_killed_amid_them() -> anyhow::Result<()> {
    const FILES: usize = 10_000;
    let folder = tempfile::tempdir()?;
    let mut site = with_inbox(folder.path(), "").await?;
    let write = |numbers: std::ops::Range<usize>| {
        numbers.map(|n| format!("{n:05}.bin")).try_for_each(|name| std::fs::write(folder.path().join(&name), &name))
    };
    write(0..FILES - 1_000)?;
    let mut files = BTreeSet::new();
    let mut hear = async |site: &Site, count: usize| -> anyhow::Result<()> {
        while files.len() < count {
            let (change, path) = told(site).await.with_context(|| format!("{} of {count} files", files.len()))?;
            anyhow::ensure!(change == "created", "{path} was {change}");
            files.insert(path);
        }
        Ok(())
    };
    hear(&site, FILES / 3).await?;
    site.agent.kill()?;
    write(FILES - 1_000..FILES)?;
    site.agent.resume().await?;
    hear(&site, FILES).await?;

    // Those that were handled without a trace before the kill come again, and may do so last.
    let mut events = serde_json::Value::Null;
    loop {
        let now = source(&site.agent.status()?, "inbox")["events"].clone();
        if std::mem::replace(&mut events, now.clone()) == now {
            break;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    site.agent.stop()?;
    std::fs::write(folder.path().join("last.bin"), "last")?;
    site.agent.resume().await?;
    while told(&site).await?.1 != "last.bin" {}
    let status = site.agent.status()?;
    assert_eq!(source(&status, "inbox")["events"], 1, "what was handled does not come again: {status}");
    Ok(())
}

#[tokio::test]
async fn a_folder_that_goes_is_waited_for_and_files_that_go_are_told() -> anyhow::Result<()> {
    let parent = tempfile::tempdir()?;
    let [folder, away] = ["inbox", "away"].map(|name| parent.path().join(name));
    std::fs::create_dir(&folder)?;
    std::fs::write(folder.join("old"), "old")?;
    let more = ", from = \"now\", recursive = true, on = [\"created\", \"changed\", \"removed\"]";
    let mut site = with_inbox(&folder, more).await?;
    let is_well = async |well: bool| {
        let is = async || site.agent.status().is_ok_and(|status| source(&status, "inbox")["trouble"].is_null() == well);
        e2e::until("the folder to be missed, or found", is).await
    };
    e2e::until("the folder to be known", async || site.agent.folder().join("state/sources/inbox").exists()).await?;
    std::fs::create_dir_all(folder.join("sub/deep"))?;
    std::fs::write(folder.join("sub/deep/new"), "new")?;
    assert_eq!(told(&site).await?, pair("created", "sub/deep/new"));

    std::fs::rename(&folder, &away)?;
    is_well(false).await?;
    std::fs::write(away.join("sub/deep/new"), "newer")?;
    std::fs::rename(&away, &folder)?;
    is_well(true).await?;
    assert_eq!(told(&site).await?, pair("changed", "sub/deep/new"));
    std::fs::remove_file(folder.join("old"))?;
    assert_eq!(told(&site).await?, pair("removed", "old"));

    // While nobody looks.
    site.agent.stop()?;
    std::fs::remove_dir_all(folder.join("sub"))?;
    site.agent.resume().await?;
    assert_eq!(told(&site).await?, pair("removed", "sub/deep/new"));
    assert_eq!(site.device.rest().len(), 0);
    Ok(())
}

#[tokio::test]
async fn a_file_is_told_as_a_bucket_would() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let config = inbox(folder.path(), "").replace("source = \"inbox\"", "source = \"inbox\", event_shape = \"s3\"");
    let site = Site::with_guests(&config, &[("tell", Guest::forward("results/file"))]).await?;
    std::fs::write(folder.path().join("red flower.jpg"), "red")?;
    let record = next(&site).await?["Records"][0].clone();
    assert_eq!(record["eventName"], "ObjectCreated:Put");
    assert_eq!(record["s3"]["bucket"]["name"], "inbox");
    assert_eq!(record["s3"]["object"]["key"], "red+flower.jpg");
    assert_eq!(record["s3"]["object"]["size"], 3);
    assert_eq!(record["s3"]["object"]["eTag"].as_str(), Some(sha256("red")?.as_str()));
    Ok(())
}

/// What the function answers when it is asked for the file `name`; nothing when it cannot read it.
fn read(site: &Site, function: &str, name: &str) -> anyhow::Result<Option<String>> {
    let event = site.agent.folder().join("event");
    std::fs::write(&event, name)?;
    let output = site.agent.command(&["invoke", function, "--event", &event.display().to_string()])?;
    if output.status.success() {
        return Ok(Some(String::from_utf8(output.stdout)?.trim().to_owned()));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(said.contains("no file"), "{said}");
    Ok(None)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_function_reads_the_folder_that_it_is_granted_and_nothing_else() -> anyhow::Result<()> {
    let parent = tempfile::tempdir()?;
    let [folder, away] = ["inbox", "away"].map(|name| parent.path().join(name));
    std::fs::create_dir_all(folder.join("sub"))?;
    std::fs::write(folder.join("a.csv"), "1;2")?;
    std::fs::write(folder.join("sub/b.csv"), "3;4")?;
    std::fs::write(parent.path().join("secret"), "secret")?;
    let links = [("up", "../secret".into()), ("absolute", parent.path().join("secret")), ("within", "a.csv".into())];
    for (name, to) in links {
        std::os::unix::fs::symlink(to, folder.join(name))?;
    }
    std::os::unix::fs::symlink(parent.path(), folder.join("parent"))?;
    let function = |name: &str, granted: &str| {
        format!("[[function]]\nname = \"{name}\"\nbundle = \"{name}\"\ncapabilities = [{granted}]\n")
    };
    let config = format!(
        "[source.inbox]\nfile = {{ folder = {folder:?} }}\n{}{}",
        function("reader", "\"source:inbox:read\""),
        function("stranger", "")
    );
    let guests = [("reader", Guest::reads("/mnt/inbox")), ("stranger", Guest::reads("/mnt/inbox"))];
    let site = Site::with_guests(&config, &guests).await?;

    for (name, content) in [("a.csv", "1;2"), ("sub/b.csv", "3;4"), ("within", "1;2")] {
        assert_eq!(read(&site, "reader", name)?.as_deref(), Some(content), "{name}");
        assert_eq!(read(&site, "stranger", name)?, None, "{name} without a grant");
    }
    for closed in ["up", "absolute", "parent/secret", "../secret", "sub/../../secret", "!a.csv", "!new"] {
        assert_eq!(read(&site, "reader", closed)?, None, "{closed}");
    }
    assert_eq!(std::fs::read_to_string(folder.join("a.csv"))?, "1;2");

    std::fs::rename(&folder, &away)?;
    assert_eq!(read(&site, "reader", "a.csv")?, None, "a folder that is away");
    std::fs::create_dir(&folder)?;
    std::fs::write(folder.join("a.csv"), "of another folder")?;
    assert_eq!(read(&site, "reader", "a.csv")?.as_deref(), Some("of another folder"));
    Ok(())
}
