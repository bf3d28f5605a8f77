//! What functions set in the field: when they have succeeded, at least once, and never when somebody only tries them.

use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use e2e::site::guest;
use e2e::{Guest, Site};

use super::field::{BAUD, Port};
use super::modbus::{Plc, Server, answers, frame};
use super::sources::{hears, source};

/// Handler that sets `point` of `plc` to what the first byte of the payload is behind `0`, and does `then`.
fn sets(point: &str, then: &str) -> Guest {
    let body = format!(
        "(if (call $set_point (i32.const 2048) (i32.const 3) (i32.const 2051) (i32.const {})
           (i64.extend_i32_u (i32.sub (i32.load8_u (call $data (local.get $event))) (i32.const 48))))
           (then (return (call $fail_with_refusal (i32.const 1)))))
         {then}",
        point.len()
    );
    Guest::raw(&body, &format!("plc{point}"))
}

const SUCCEED: &str = "(call $answer (i32.const 2048) (i32.const 3))";

/// A device with `speed` and `ramp`, and its source; `missing` is not there, and `level` can only be read.
async fn plc() -> anyhow::Result<(Plc, Server, String)> {
    let plc = Plc::default().with("holding", 5, &[0, 0, 0]).with("input", 0, &[40]);
    let server = Server::tcp(&plc, 0).await?;
    let registers = "{ name = \"speed\", holding = 5, scale = 0.5 }, { name = \"ramp\", holding = 6, type = \"u32\" }, \
                     { name = \"missing\", holding = 500 }, { name = \"level\", input = 0 }";
    let config = format!(
        "[source.plc]\nmodbus = {{ tcp = \"{}\", every = \"50ms\", timeout = \"5s\", registers = [{registers}] }}\n",
        server.address
    );
    Ok((plc, server, config))
}

fn word(plc: &Plc, address: u16) -> u16 {
    plc.state().words.get(&("holding", address)).copied().unwrap_or_default()
}

/// What it was asked, but for reading.
fn writes(plc: &Plc) -> Vec<String> {
    plc.state().asked.iter().filter(|asked| asked.contains("Write")).cloned().collect()
}

async fn letters(site: &Site, n: u64) -> anyhow::Result<()> {
    let are_there =
        async || site.agent.status().is_ok_and(|status| super::stream(&status, "dead-letters")["records"] == n);
    e2e::until("the dead letters", are_there).await.with_context(|| site.agent.log())
}

/// Without a trigger that hears it, the device is asked for nothing else.
#[tokio::test]
async fn what_a_function_sets_is_set_when_it_has_succeeded() -> anyhow::Result<()> {
    let (plc, _server, config) = plc().await?;
    let granted = "capabilities = [\"source:plc:write\"]";
    let config = format!(
        "{config}{}{}{}",
        guest("speed", "speed", granted),
        guest("ramp", "ramp", granted),
        guest("fail", "fail", granted)
    );
    let fail = "(call $fail (i32.const 1) (i32.const 2048) (i32.const 3))";
    let guests = [("speed", sets("speed", SUCCEED)), ("ramp", sets("ramp", SUCCEED)), ("fail", sets("speed", fail))];
    let site = Site::with_guests(&config, &guests).await?;
    site.device.publish("fail", "9", 1).await?;
    letters(&site, 1).await?;
    site.device.publish("speed", "7", 1).await?;
    // 7 in steps of 0.5.
    e2e::until("the speed to be set", async || word(&plc, 5) == 14).await.with_context(|| site.agent.log())?;
    site.device.publish("ramp", "3", 1).await?;
    e2e::until("the ramp to be set", async || word(&plc, 7) == 3).await.with_context(|| site.agent.log())?;
    let asked = plc.state().asked.clone();
    assert_eq!(asked, ["1: WriteSingleRegister(5, 14)", "1: WriteMultipleRegisters(6, [0, 3])"]);
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_set_comes_again_and_is_given_up_on() -> anyhow::Result<()> {
    let (plc, _server, config) = plc().await?;
    plc.state().busy = true;
    let keys = "capabilities = [\"source:plc:write\"]\nretry = { attempts = 2 }";
    let config = format!("{config}{}", guest("speed", "speed", keys));
    let site = Site::with_guests(&config, &[("speed", sets("speed", SUCCEED))]).await?;
    site.device.publish("speed", "1", 1).await?;
    letters(&site, 1).await?;
    let letter = site.agent.tell(&["dead-letters", "show", "1"])?;
    assert!(letter.contains("`speed` of source `plc` could not be set: server device busy"), "{letter}");
    assert_eq!(writes(&plc), ["1: WriteSingleRegister(5, 2)"; 2]);
    Ok(())
}

#[tokio::test]
async fn what_can_never_be_set_is_a_dead_letter_at_once() -> anyhow::Result<()> {
    let (plc, _server, config) = plc().await?;
    let keys = |name: &str| format!("capabilities = [\"source:{name}:write\"]");
    let config = format!(
        "{config}[source.other]\nmodbus = {{ tcp = \"127.0.0.1:1\", registers = [{{ name = \"x\", coil = 0 }}] }}\n{}{}{}",
        guest("missing", "missing", &keys("plc")),
        guest("level", "level", &keys("plc")),
        guest("denied", "denied", &keys("other"))
    );
    let guests =
        [("missing", sets("missing", SUCCEED)), ("level", sets("level", SUCCEED)), ("denied", sets("speed", SUCCEED))];
    let site = Site::with_guests(&config, &guests).await?;
    for (n, (topic, why)) in (1..).zip([
        ("missing", "`missing` of source `plc` could not be set: illegal data address"),
        ("level", "`level` of source `plc` could not be set: a register of the kind `input` can only be read"),
        ("denied", "capability `source:plc:write` is not granted"),
    ]) {
        site.device.publish(topic, "1", 1).await?;
        // It counts before it is on disk, and is shown only then.
        let shown = async || site.agent.tell(&["dead-letters", "show", &n.to_string()]);
        e2e::until("the dead letter", async || shown().await.is_ok()).await.with_context(|| site.agent.log())?;
        let letter = shown().await?;
        assert!(letter.contains(why), "{letter}");
    }
    assert_eq!(writes(&plc), ["1: WriteSingleRegister(500, 1)"], "the device is asked once");
    assert_eq!(source(&site.agent.status()?, "plc")["troubles"], 2);
    Ok(())
}

#[tokio::test]
async fn a_function_sets_what_it_hears() -> anyhow::Result<()> {
    let (plc, _server, config) = plc().await?;
    let hears = hears("follow", "modbus", "plc", "source:plc:write");
    let site = Site::with_guests(&format!("{config}{hears}"), &[("follow", sets("ramp", SUCCEED))]).await?;
    // Its events begin with a brace.
    let ramp = u16::from(b'{' - b'0');
    e2e::until("the ramp to be set", async || word(&plc, 7) == ramp).await.with_context(|| site.agent.log())
}

/// `tidegate invoke --bundle` has the same runtime without the world that tests of bundles, and of what is deployed, have.
#[tokio::test]
async fn nothing_is_set_by_those_who_only_try() -> anyhow::Result<()> {
    let (plc, _server, config) = plc().await?;
    let granted = guest("speed", "speed", "capabilities = [\"source:plc:write\"]");
    let site = Site::with_guests(&format!("{config}{granted}"), &[("speed", sets("speed", SUCCEED))]).await?;
    let bundle = site.bundle("speed");
    let manifest = std::fs::read_to_string(bundle.join("function.toml"))?;
    let test = "[[test]]\nevent = \"7\"\nexpect = { result = \"plc\" }\n";
    std::fs::write(bundle.join("function.toml"), format!("{manifest}capabilities = [\"source:plc:write\"]\n{test}"))?;
    std::fs::write(bundle.join("7"), "7")?;
    std::fs::write(bundle.join("plc"), "plc")?;
    let run = |arguments: &[&str]| -> anyhow::Result<String> {
        let output = Command::new(e2e::tidegate()?).args(arguments).current_dir(&bundle).output()?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        anyhow::ensure!(output.status.success(), "{arguments:?}: {said}");
        Ok(said)
    };
    let said = run(&["invoke", "--bundle", ".", "--event", "7"])?;
    assert!(said.contains("would set `speed` of source `plc` to 7"), "{said}");
    run(&["build", ".", "--output", "speed.tar.zst"])?;
    assert_eq!(writes(&plc), [""; 0]);
    // The same event in earnest.
    site.device.publish("speed", "7", 1).await?;
    e2e::until("the speed to be set", async || word(&plc, 5) == 14).await.with_context(|| site.agent.log())
}

/// The handler runs when the agent is told to stop, and ends a second later. The device is served by other threads than the one that waits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_under_way_at_a_stop_is_still_set() -> anyhow::Result<()> {
    let (plc, _server, config) = plc().await?;
    let keys = "capabilities = [\"source:plc:write\"]\ntimeout = \"1m\"";
    let slow = sets("speed", SUCCEED).but_on(b'9', "(call $block (call $after (i64.const 1000000000)))");
    let mut site = Site::with_guests(&format!("{config}{}", guest("speed", "speed", keys)), &[("speed", slow)]).await?;
    site.device.publish("speed", "9", 1).await?;
    let runs = async || site.agent.status().is_ok_and(|status| super::function(&status, "speed")["busy"] == 1);
    e2e::until("the handler to run", runs).await?;
    site.agent.stop()?;
    assert_eq!((word(&plc, 5), writes(&plc).len()), (18, 1), "{}", site.agent.log());
    Ok(())
}

/// As when that is late which was given up on.
#[tokio::test]
async fn the_confirmation_of_another_write_is_not_taken() -> anyhow::Result<()> {
    let (port, asked) = (Port::new()?, Arc::<Mutex<Vec<Vec<u8>>>>::default());
    let seen = Arc::clone(&asked);
    let _device = answers(&port, move |request| {
        let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.push(request.to_vec());
        if asked.len() == 1 { frame(&[1, 6, 0, 5, 0, 99]) } else { request.to_vec() }
    })?;
    let config = format!(
        "[source.plc.modbus]\nrtu = {{ device = {:?}, baud = {BAUD} }}\ntimeout = \"10s\"\nregisters = [{{ name = \"speed\", holding = 5 }}]\n{}",
        port.path(),
        guest("speed", "speed", "capabilities = [\"source:plc:write\"]\nretry = { attempts = 2 }")
    );
    let site = Site::with_guests(&config, &[("speed", sets("speed", SUCCEED))]).await?;
    site.device.publish("speed", "7", 1).await?;
    let asked = || seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    e2e::until("the write to come again", async || asked().len() == 2).await.with_context(|| site.agent.log())?;
    let is_over = async || site.agent.status().is_ok_and(|status| super::function(&status, "speed")["parked"] == 0);
    e2e::until("the event to be dealt with", is_over).await?;
    assert_eq!(asked(), vec![frame(&[1, 6, 0, 5, 0, 7]); 2]);
    let letters = super::stream(&site.agent.status()?, "dead-letters")["records"].as_u64();
    assert_eq!(letters.unwrap_or(0), 0, "{}", site.agent.log());
    Ok(())
}
