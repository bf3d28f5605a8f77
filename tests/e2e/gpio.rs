//! Lines of a chip: what the agent hears of them, and what it does to them.

mod chip;
mod simulator;

use std::time::Duration;

use anyhow::Context as _;
use e2e::site::guest;
use e2e::{Guest, Site};
use serde_json::{Value, json};

use self::chip::Chip;
use self::simulator::Simulated;
use super::sources::{hears, source};

const GUIDE: &str = include_str!("../../docs/guides/gpio.md");

/// The config of the guide, for `chip`.
fn of_the_guide(chip: &Chip) -> String {
    let config = GUIDE.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap_or_default();
    config.replace("/dev/gpiochip0", &chip.path().display().to_string())
}

/// `[source.hall]` with these lines.
fn hall(chip: &str, lines: &str) -> String {
    format!("[source.hall]\ngpio = {{ chip = \"{chip}\", lines = [{lines}] }}\n")
}

async fn site(chip: &Chip, config: &str, guests: &[(&str, Guest)]) -> anyhow::Result<Site> {
    Site::in_environment(config, guests, &[("LD_PRELOAD", &chip.preload().display().to_string())]).await
}

/// A function that tells what it hears of `hall`, one after the other.
fn tells() -> (String, (&'static str, Guest)) {
    let config = "[[function]]\nname = \"tell\"\nbundle = \"tell\"\ncapabilities = [\"mqtt:publish:results/#\"]\nconcurrency = 1\n\
                  [[function.trigger]]\ngpio = { source = \"hall\" }\n";
    (config.to_owned(), ("tell", Guest::forward("results/hall")))
}

/// A function that sets `point` of `hall` to whether the payload is `1`.
fn sets(point: &str) -> Guest {
    let body = format!(
        "(call $control_write (i32.const 2048) (i32.const 4) (i32.const 2052) (i32.const {}) (i32.const 0)
           (i64.extend_i32_u (i32.sub (i32.load8_u (call $data (local.get $event))) (i32.const 48))) (i32.const 1100))
         (if (i32.load8_u (i32.const 1100)) (then (return (call $fail_with_refusal (i32.const 1)))))
         (call $answer (i32.const 2048) (i32.const 4))",
        point.len()
    );
    Guest::raw(&body, &format!("hall{point}"))
}

const MAY_SET: &str = "capabilities = [\"source:hall:write\"]";

async fn heard(site: &Site) -> anyhow::Result<Value> {
    let message = site.device.next().await.with_context(|| site.agent.log())?;
    Ok(serde_json::from_slice(&message.payload)?)
}

async fn is_in_trouble(site: &Site, name: &str, why: &str) -> anyhow::Result<()> {
    let told = async || {
        let status = site.agent.status().unwrap_or_default();
        source(&status, name)["trouble"].as_str().is_some_and(|trouble| trouble.contains(why))
    };
    e2e::until("the trouble", told).await.with_context(|| format!("{why}; {}", site.agent.log()))
}

async fn is_well(site: &Site, name: &str) -> anyhow::Result<()> {
    let is_well = async || source(&site.agent.status().unwrap_or_default(), name)["trouble"].is_null();
    e2e::until("the source to be well", is_well).await.with_context(|| site.agent.log())
}

/// With the config of the guide.
#[tokio::test]
async fn levels_and_edges_of_a_line_are_told_in_order_and_what_is_lost_is_counted() -> anyhow::Result<()> {
    let names: Vec<String> = (0..28).map(|n| format!("GPIO{n}")).collect();
    let chip = Chip::new(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
    chip.pull(17, true)?;
    let site = site(&chip, &of_the_guide(&chip), &[("functions/gate", Guest::forward("results/gate"))]).await?;
    let mut levels = [heard(&site).await?, heard(&site).await?];
    levels.sort_by_key(|level| level["name"].to_string());
    assert_eq!(levels, [json!({ "name": "door", "active": false }), json!({ "name": "light", "active": false })]);
    let door = chip.line(17);
    assert_eq!((door.flags & chip::PULL_UP, door.debounce_us), (chip::PULL_UP, 20_000));
    assert_eq!((chip.line(27).was, chip.line(27).consumer), (vec!["low"], "tidegate:gate".to_owned()));

    chip.pull(17, false)?;
    let expected = json!({ "name": "door", "active": true, "edge": "rising", "time_ns": 1_000_000_000, "sequence": 1 });
    assert_eq!(heard(&site).await?, expected);
    // Of this line only edges to active are asked for.
    chip.pull(22, true)?;
    chip.pull(22, false)?;
    chip.pull(17, true)?;
    let light =
        json!({ "name": "light", "active": true, "edge": "rising", "time_ns": 2_000_000_000_u64, "sequence": 1 });
    let door =
        json!({ "name": "door", "active": false, "edge": "falling", "time_ns": 3_000_000_000_u64, "sequence": 2 });
    // Several instances may handle them.
    let told = [heard(&site).await?, heard(&site).await?];
    assert!(told.contains(&light) && told.contains(&door), "{told:?}");

    chip.lose(17, 5);
    chip.pull(17, false)?;
    assert_eq!(heard(&site).await?["sequence"], 8);
    let status = site.agent.status()?;
    assert_eq!(source(&status, "gate")["troubles"], 1, "{status}");
    assert!(site.agent.log().contains("5 edges are lost"), "{}", site.agent.log());
    Ok(())
}

#[tokio::test]
async fn an_output_is_set_by_functions_and_left_alone_by_reloads() -> anyhow::Result<()> {
    let chip = Chip::new(&["", "pump", "door", "", "lamp"])?;
    let path = chip.path().display().to_string();
    let (tell, tells) = tells();
    let set = guest("set", "set", MAY_SET);
    let pump = "{ name = \"pump\", line = 1, direction = \"out\", active_low = true }";
    let guests = [("set", sets("pump")), tells];
    let mut site = site(&chip, &format!("{}{set}", hall(&path, pump)), &guests).await?;
    chip.is_open(1).await?;
    site.device.publish("set", "1", 1).await?;
    e2e::until("the pump to run", async || chip.line(1).was == ["high", "low"])
        .await
        .with_context(|| site.agent.log())?;

    // Somebody hears the source now, it has more lines, and what this one is at first has changed.
    let pump = pump.replace(" }", ", initial = true }");
    let door =
        "{ name = \"door\", line = \"door\" }, { name = \"lamp\", line = 4, direction = \"out\", initial = true }";
    site.configure(&format!("{}{set}{tell}", hall(&path, &format!("{pump}, {door}"))))?;
    site.agent.tell(&["reload"])?;
    assert_eq!(heard(&site).await?, json!({ "name": "door", "active": false }));
    assert_eq!(chip.line(4).was, ["high"]);
    // The door stays as it is, and the lamp goes.
    let door = "{ name = \"door\", line = \"door\" }";
    site.configure(&format!("{}{set}{tell}", hall(&path, &format!("{pump}, {door}"))))?;
    site.agent.tell(&["reload"])?;
    e2e::until("the lamp to be let go", async || chip.line(4).was == ["high", "free"]).await?;
    chip.pull(2, true)?;
    assert_eq!(heard(&site).await?["sequence"], 1, "and no level before it");
    assert_eq!(chip.line(1).was, ["high", "low"], "the pump was touched");
    site.device.publish("set", "0", 1).await?;
    e2e::until("the pump to stop", async || chip.line(1).was == ["high", "low", "high"]).await?;
    site.agent.stop()?;
    e2e::until("the lines to be let go", async || chip.line(1).was.ends_with(&["high", "free"])).await
}

/// What is being set holds up the next look at the lines, so that edges wait in the kernel when the reload comes.
#[tokio::test]
async fn what_is_under_way_is_told_and_set_once_while_a_line_is_missing_and_over_a_reload() -> anyhow::Result<()> {
    const EDGES: usize = 6;
    let chip = Chip::new(&["door", "pump", "lamp", "gate"])?;
    chip.takes(2, "hall-light");
    chip.hold();
    let lines = "{ name = \"pump\", line = 1, direction = \"out\" }, { name = \"lamp\", line = 2, direction = \"out\" }, \
                 { name = \"door\", line = 0 }";
    let (tell, tells) = tells();
    let set = hears("set", "gpio", "hall", "source:hall:write");
    let config = |lines| format!("{}{tell}{set}", hall(&chip.path().display().to_string(), lines));
    let mut site = site(&chip, &config(lines), &[tells, ("set", sets("pump"))]).await?;
    assert_eq!(heard(&site).await?, json!({ "name": "door", "active": false }));
    chip.is_setting().await?;
    for edge in 0..EDGES {
        chip.pull(0, edge % 2 == 0)?;
        // All in all longer than until the lamp is tried again.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    site.configure(&config(&format!("{lines}, {{ name = \"gate\", line = 3 }}")))?;
    site.agent.tell(&["reload"])?;
    chip.release();
    for edge in 1..=EDGES {
        assert_eq!(heard(&site).await?["sequence"], edge);
    }
    for name in ["door", "gate"] {
        assert_eq!(heard(&site).await?, json!({ "name": name, "active": false }));
    }
    let told = 1 + EDGES + 2;
    e2e::until("all to be set", async || chip.line(1).was.len() > told).await.with_context(|| site.agent.log())?;
    site.agent.stop()?;
    e2e::until("the lines to be let go", async || chip.line(1).was.ends_with(&["free"])).await?;
    assert_eq!(chip.line(1).was.iter().filter(|was| **was == "high").count(), told, "{}", site.agent.log());
    Ok(())
}

#[tokio::test]
async fn an_output_can_be_kept_as_it_is() -> anyhow::Result<()> {
    let chip = Chip::new(&["pump", "lamp"])?;
    // Some chips go on to drive what nobody has.
    chip.pull(0, true)?;
    let lines = "{ name = \"pump\", line = 0, direction = \"out\", initial = \"keep\" }, \
                 { name = \"lamp\", line = 1, direction = \"out\", initial = \"keep\", active_low = true, drive = \"open-drain\" }";
    let config = format!("{}{}", hall(&chip.path().display().to_string(), lines), guest("set", "set", MAY_SET));
    let site = site(&chip, &config, &[("set", sets("pump"))]).await?;
    let are_kept = async || [0, 1].map(|line| chip.line(line).was.last().copied()) == [Some("high"), Some("low")];
    e2e::until("the lines to be driven", are_kept).await.with_context(|| site.agent.log())?;
    assert_eq!((chip.line(0).was, chip.line(1).was), (vec!["high"], vec!["low"]));
    Ok(())
}

#[tokio::test]
async fn a_line_that_another_has_is_named_with_its_user_and_had_once_it_is_free() -> anyhow::Result<()> {
    let chip = Chip::new(&["door", "pump", "lamp"])?;
    chip.takes(2, "hall-light");
    let lines =
        "{ name = \"pump\", line = 1, direction = \"out\" }, { name = \"lamp\", line = 2, direction = \"out\" }";
    let config = hall(&chip.path().display().to_string(), lines);
    let config = format!("{config}{}{}", guest("set", "set", MAY_SET), guest("light", "light", MAY_SET));
    let site = site(&chip, &config, &[("set", sets("pump")), ("light", sets("lamp"))]).await?;
    is_in_trouble(&site, "hall", "`lamp`, line 2 of `").await?;
    is_in_trouble(&site, "hall", "is in use by `hall-light`").await?;
    site.device.publish("set", "1", 1).await?;
    e2e::until("the pump to run", async || chip.line(1).was == ["low", "high"])
        .await
        .with_context(|| site.agent.log())?;
    chip.takes(2, "");
    is_well(&site, "hall").await?;
    site.device.publish("light", "1", 1).await?;
    e2e::until("the lamp to shine", async || chip.line(2).was == ["low", "high"])
        .await
        .with_context(|| site.agent.log())
}

#[tokio::test]
async fn a_chip_that_goes_is_found_again() -> anyhow::Result<()> {
    let mut chip = Chip::new(&["door", "pump"])?;
    let lines = "{ name = \"door\", line = 0 }, { name = \"pump\", line = 1, direction = \"out\", initial = true }";
    let (tell, tells) = tells();
    let config = format!("{}{tell}", hall(&chip.path().display().to_string(), lines));
    let site = site(&chip, &config, &[tells]).await?;
    assert_eq!(heard(&site).await?, json!({ "name": "door", "active": false }));
    chip.unplug()?;
    is_in_trouble(&site, "hall", "gpiochip0`").await?;
    e2e::until("the chip to be let go", async || chip.line(0).consumer.is_empty()).await?;
    chip.pull(0, true)?;
    chip.plug()?;
    assert_eq!(heard(&site).await?, json!({ "name": "door", "active": true }));
    is_well(&site, "hall").await?;
    chip.pull(0, false)?;
    assert_eq!(heard(&site).await?["edge"], "falling");
    assert_eq!(chip.line(1).was, ["high", "free", "high"]);
    Ok(())
}

#[tokio::test]
async fn names_that_are_nearly_right_are_hinted_at() -> anyhow::Result<()> {
    let chip = Chip::new(&["GPIO17", "GPIO27"])?;
    let path = chip.path().display().to_string();
    let lines = "{ name = \"door\", line = \"GPIO17\" }, { name = \"relay\", line = \"GPIO27\", direction = \"out\" }";
    let others = format!(
        "[source.wrong]\ngpio = {{ chip = \"{path}\", lines = [{{ name = \"x\", line = \"GPI017\", direction = \"out\" }}] }}\n\
         [source.twice]\ngpio = {{ chip = \"{path}\", lines = [{{ name = \"x\", line = 0 }}, {{ name = \"y\", line = \"GPIO17\", direction = \"out\" }}] }}\n\
         [source.far]\ngpio = {{ chip = \"{path}\", lines = [{{ name = \"x\", line = 2, direction = \"out\" }}] }}\n"
    );
    let may = "capabilities = [\"source:hall:write\", \"source:wrong:write\", \"source:twice:write\", \"source:far:write\"]\nretry = { attempts = 2 }";
    let guests = ["relai", "door", "elsewhere"].map(|point| (point, sets(point)));
    let functions = guests.iter().map(|(name, _)| guest(name, name, may)).collect::<String>();
    let site = site(&chip, &format!("{}{others}{functions}", hall(&path, lines)), &guests).await?;
    is_in_trouble(&site, "wrong", "has no line `GPI017`: did you mean `GPIO17`?").await?;
    is_in_trouble(&site, "twice", "`x` and `y` are both line 0 of `").await?;
    is_in_trouble(&site, "far", "has no line 2, but 2 from 0 on").await?;
    for (n, (point, why)) in (1..).zip([
        ("relai", "`relai` of source `hall` could not be set: the source has no such line: did you mean `relay`?"),
        ("door", "`door` of source `hall` could not be set: it is an input, which can only be heard"),
        ("elsewhere", "`elsewhere` of source `hall` could not be set: the source has no such line"),
    ]) {
        site.device.publish(point, "1", 1).await?;
        // It counts before it is on disk, and is shown only then.
        let shown = async || site.agent.tell(&["dead-letters", "show", &n.to_string()]);
        e2e::until("the dead letter", async || shown().await.is_ok()).await.with_context(|| site.agent.log())?;
        let letter = shown().await?;
        assert!(letter.contains(why), "{letter}");
    }
    assert_eq!(chip.line(1).was, ["low"]);
    Ok(())
}

/// The same as with the chip of the tests, by the kernel itself.
#[tokio::test]
async fn lines_of_the_kernels_simulator_are_heard_and_set() -> anyhow::Result<()> {
    let label = format!("tidegate-{}", std::process::id());
    let Some(chip) = Simulated::new(&label)? else {
        eprintln!("not tried: this kernel has no gpio-sim, or this user may not set it up or does not see its chips");
        return Ok(());
    };
    let lines = "{ name = \"door\", line = \"door\" }, { name = \"pump\", line = 5, direction = \"out\" }";
    let (tell, tells) = tells();
    let config = format!("{}{tell}{}", hall(&label, lines), guest("set", "set", MAY_SET));
    let site = Site::with_guests(&config, &[tells, ("set", sets("pump"))]).await?;
    assert_eq!(heard(&site).await?, json!({ "name": "door", "active": false }));
    chip.pull(3, true)?;
    let edge = heard(&site).await?;
    assert_eq!((&edge["name"], &edge["edge"], &edge["sequence"]), (&json!("door"), &json!("rising"), &json!(1)));
    site.device.publish("set", "1", 1).await?;
    e2e::until("the pump to run", async || chip.is_high(5)).await.with_context(|| site.agent.log())
}
