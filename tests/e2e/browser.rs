//! The console in a real browser: what the pages do by themselves, and what people do on them, by keyboard, by ear and by eye.

use anyhow::Context as _;
use e2e::{Browser, http};
use serde_json::{Value, json};

use super::console::{Console, MISCHIEF};

/// What can have the focus, in the order of the page.
const FOCUSABLE: &str = "[...document.querySelectorAll('a[href],button,input,select,textarea,summary,[tabindex=\"0\"]')]\
     .filter(e => e.checkVisibility())";

/// Texts that do not stand out from what is behind them, by WCAG 2.2: 4.5 to 1.
const FAINT: &str = "(() => {
    const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    const rgba = (color) => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const over = (under, top) => under.map((c, i) => top[i] * top[3] / 255 + c * (1 - top[3] / 255));
    const ground = (e) => {
        const layers = [];
        for (; e; e = e.parentElement) layers.unshift(rgba(getComputedStyle(e).backgroundColor));
        return layers.reduce(over, [255, 255, 255]);
    };
    const part = (c) => c <= 10 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
    const faint = [];
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const text = texts.currentNode.data.trim(), e = texts.currentNode.parentElement;
        if (!text || !e.checkVisibility() || e.closest('.sr, .skip')) continue;
        const under = ground(e), both = [light(over(under, rgba(getComputedStyle(e).color))), light(under)];
        const contrast = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
        if (contrast < 4.5) faint.push(`${text}: ${contrast.toFixed(2)}`);
    }
    return faint;
})()";

/// Presses Tab until what has the focus matches.
async fn tab_to(browser: &mut Browser, selector: &str) -> anyhow::Result<()> {
    for _ in 0..60 {
        browser.press("Tab").await?;
        if browser.ask(&format!("document.activeElement.matches('{selector}')")).await? == true {
            return Ok(());
        }
    }
    anyhow::bail!("Tab does not come to `{selector}`")
}

/// Tab goes through all that can be used, in the order of the page, and each shows that it has the focus.
async fn all_can_be_reached(browser: &mut Browser) -> anyhow::Result<()> {
    let count = browser.ask(&format!("{FOCUSABLE}.length")).await?.as_u64().context("no number")?;
    for n in 0..count {
        browser.press("Tab").await?;
        let focused = format!(
            "(() => {{ const e = document.activeElement, s = getComputedStyle(e); return {{
                is: {FOCUSABLE}.indexOf(e), what: e.outerHTML.slice(0, 200),
                shows: e.matches(':focus-visible') && s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) >= 2 }}; }})()"
        );
        let focused = browser.ask(&focused).await?;
        anyhow::ensure!(focused["is"] == n && focused["shows"] == true, "after {} × Tab: {focused}", n + 1);
    }
    Ok(())
}

/// Whoever does not see the page is told the name of all that can be used, and where they are.
async fn all_is_said(browser: &mut Browser, more: &[(&str, &str)]) -> anyhow::Result<()> {
    let spoken = browser.spoken().await?;
    for (role, name) in &spoken {
        let needs = ["link", "button", "textbox", "combobox", "DisclosureTriangle", "heading", "region", "image"];
        anyhow::ensure!(!needs.contains(&&**role) || !name.is_empty(), "a {role} has no name: {spoken:?}");
    }
    let common = [("navigation", "Console"), ("main", ""), ("link", "Skip to content"), ("link", "Dead letters")];
    for (role, name) in common.iter().chain(more) {
        anyhow::ensure!(
            spoken.iter().any(|(r, n)| r == role && n == name),
            "no {role} `{name}` is told of: {spoken:?}"
        );
    }
    Ok(())
}

/// Each text can be read, light and dark.
async fn all_can_be_read(browser: &mut Browser) -> anyhow::Result<()> {
    let mut grounds = Vec::new();
    for scheme in ["dark", "light"] {
        let features = json!([
            { "name": "prefers-color-scheme", "value": scheme }, { "name": "prefers-reduced-motion", "value": "reduce" }
        ]);
        browser.call("Emulation.setEmulatedMedia", json!({ "features": features })).await?;
        let faint = browser.ask(FAINT).await?;
        anyhow::ensure!(faint == json!([]), "{scheme}: {faint}");
        grounds.push(browser.ask("getComputedStyle(document.body).backgroundColor").await?);
    }
    anyhow::ensure!(grounds[0] != grounds[1], "light and dark are the same");
    Ok(())
}

/// The scripts run under the policy, and the page asks for itself again, unless it is held still.
#[tokio::test]
async fn a_browser_keeps_the_console_fresh() -> anyhow::Result<()> {
    let console = Console::start("").await?;
    console.give_up_on(MISCHIEF).await?;
    let Some(mut browser) = Browser::start().await? else { return Ok(()) };
    browser.open(&format!("http://{}/console/", console.address)).await?;
    // A rate takes two looks, and the first has none.
    browser.until("document.querySelector('.figures .value').textContent.endsWith('/s')").await?;
    // Only the script shows the button.
    browser.until("document.getElementById('pause').checkVisibility()").await?;
    browser.ask("document.getElementById('pause').click()").await?;
    let asked = "performance.getEntriesByType('resource').filter(e => e.initiatorType === 'fetch').length";
    // One may be under way still.
    browser.until("document.getElementById('pause').ariaPressed === 'true'").await?;
    let paused_at = browser.ask(asked).await?.as_u64().context("no number")?;
    anyhow::ensure!(paused_at >= 1);
    browser.ask("new Promise(done => setTimeout(done, 2500))").await?;
    let since = browser.ask(asked).await?.as_u64().context("no number")? - paused_at;
    assert!(since <= 1, "it asked {since} times while it was held still");
    browser.ask("document.getElementById('pause').click()").await?;
    browser.until(&format!("{asked} > {}", paused_at + since)).await?;
    assert_eq!(browser.complaints(), [""; 0]);
    browser.close().await
}

#[tokio::test]
async fn people_use_the_console_by_keyboard_by_ear_and_by_eye() -> anyhow::Result<()> {
    let console = Console::start("").await?;
    console.give_up_on("<no").await?;
    let Some(mut browser) = Browser::start().await? else { return Ok(()) };
    let url = |path: &str| format!("http://{}/console/{path}", console.address);
    let pages: [(&str, &[(&str, &str)]); 5] = [
        ("", &[("link", "echo"), ("region", "Last errors"), ("button", "Pause")]),
        ("functions/echo", &[("textbox", "Payload"), ("button", "Invoke echo"), ("region", "Last runs")]),
        ("dead-letters", &[("button", "Replay dead letter 1"), ("DisclosureTriangle", "Drop… dead letter 1")]),
        ("dead-letters/1", &[("heading", "Dead letter 1"), ("link", "Dead letters")]),
        ("log", &[("combobox", "Level"), ("combobox", "Of"), ("button", "Show")]),
    ];
    for (path, said) in pages {
        browser.open(&url(path)).await?;
        all_is_said(&mut browser, said).await.with_context(|| url(path))?;
        all_can_be_read(&mut browser).await.with_context(|| url(path))?;
        all_can_be_reached(&mut browser).await.with_context(|| url(path))?;
    }

    // A test event: Enter in the line below the payload sends it, and so does the button.
    let succeeded =
        || console.agent.status().map(|status| super::function(&status, "echo")["invocations"]["succeeded"].clone());
    browser.open(&url("functions/echo")).await?;
    tab_to(&mut browser, "#payload").await?;
    browser.write("by hand").await?;
    tab_to(&mut browser, "#subject").await?;
    browser.write("oven/1").await?;
    browser.press("Enter").await?;
    browser.until("document.querySelector('#answer pre')?.textContent === 'by hand'").await?;
    browser.until("!document.querySelector('.try button').disabled").await?;
    tab_to(&mut browser, ".try button").await?;
    browser.press("Enter").await?;
    e2e::until("the second run", async || succeeded().is_ok_and(|runs| runs == 2)).await?;
    browser.until("document.querySelector('#answer .tag').textContent === 'succeeded'").await?;
    let stays =
        "location.pathname === '/console/functions/echo' && document.getElementById('payload').value === 'by hand'";
    assert_eq!(browser.ask(stays).await?, true, "the form goes on with what was written");
    assert!(browser.spoken().await?.iter().any(|(_, name)| name == "by hand"), "the answer is told");

    // The function gives up on what is tried again.
    browser.open(&url("dead-letters")).await?;
    tab_to(&mut browser, "form[action$=\"/1/replay\"] button").await?;
    browser.press("Enter").await?;
    browser.until("document.querySelector('.done')?.textContent === 'Dead letter 1 is being tried again.'").await?;
    let again = async || console.get("/console/dead-letters/2").await.is_ok_and(|reply| reply.status == 200);
    e2e::until("the letter of the second try", again).await?;
    browser.open(&url("dead-letters")).await?;
    tab_to(&mut browser, "summary").await?;
    browser.press("Enter").await?;
    browser.until("document.querySelector('details').open").await?;
    tab_to(&mut browser, "form[action$=\"/2/drop\"] button").await?;
    browser.press("Enter").await?;
    browser.until("document.querySelector('.done')?.textContent === 'Dead letter 2 was dropped.'").await?;
    console.holds_letters(0).await?;
    assert_eq!(browser.complaints(), [""; 0]);
    browser.close().await
}

#[tokio::test]
async fn people_sign_in_and_out_of_the_console_in_a_browser() -> anyhow::Result<()> {
    let console = Console::start("token_file = \"api.token\"").await?;
    let Some(mut browser) = Browser::start().await? else { return Ok(()) };
    browser.open(&format!("http://{}/console/log", console.address)).await?;
    let asked = "location.pathname === '/console/sign-in' && document.activeElement.id === 'token'";
    browser.until(asked).await?;
    browser.write("for nobody").await?;
    browser.press("Enter").await?;
    browser.until(&format!("document.getElementById('wrong') !== null && {asked}")).await?;
    let spoken = browser.spoken().await?;
    assert!(spoken.iter().any(|(role, _)| role == "alert"), "{spoken:?}");
    assert!(spoken.contains(&("textbox".to_owned(), "Token of this gateway".to_owned())), "{spoken:?}");
    browser.write("for operators").await?;
    browser.press("Enter").await?;
    browser.until("location.pathname === '/console/' && document.querySelector('#live') !== null").await?;

    let cookies = async |browser: &mut Browser| {
        anyhow::Ok(browser.call("Network.getCookies", json!({})).await?["cookies"].take())
    };
    let kept = cookies(&mut browser).await?;
    let text = |key: &str| kept[0][key].as_str().unwrap_or_default().to_owned();
    let copy = format!("Cookie: {}={}", text("name"), text("value"));
    let look = async || http::request(console.address, "GET /console/", &[&copy], "").await;
    assert_eq!(look().await?.status, 200, "{kept}");
    tab_to(&mut browser, "form[action=\"/console/sign-out\"] button").await?;
    browser.press("Enter").await?;
    browser.until(asked).await?;
    assert_eq!(look().await?.status, 303, "a copy of the cookie is of no use");
    assert_eq!(cookies(&mut browser).await?, Value::Array(Vec::new()));

    // Where people may only look, there is nothing to press, and what is sent all the same is refused.
    let console = Console::start("console = \"read-only\"").await?;
    console.give_up_on("<no").await?;
    for path in ["functions/echo", "dead-letters", "dead-letters/1"] {
        browser.open(&format!("http://{}/console/{path}", console.address)).await?;
        assert_eq!(browser.ask("document.querySelectorAll('form[method=post], textarea').length").await?, 0, "{path}");
    }
    for path in ["functions/echo/invoke", "dead-letters/1/replay", "dead-letters/1/drop"] {
        let send = format!(
            "fetch('/console/{path}', {{ method: 'POST', body: new URLSearchParams({{ payload: 1 }}) }}).then(r => r.status)"
        );
        assert_eq!(browser.ask(&send).await?, 403, "{path}");
    }
    console.holds_letters(1).await?;
    browser.close().await
}
