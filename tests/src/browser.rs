//! A real browser: a headless chromium, told what to do over its debugging pipe (the Chrome DevTools Protocol).

use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::PATIENCE;

/// What it is told goes in at 3, what it says comes out at 4.
const WITH_PIPES: &str = "exec chromium \"$@\" 3<&0 4>&1 </dev/null >&2";

/// Status of a shell that does not know the command.
const NOT_FOUND: i32 = 127;

/// Keys, with their codes and what they write.
const KEYS: [(&str, u32, &str); 2] = [("Tab", 9, ""), ("Enter", 13, "\r")];

/// A browser with one page. Ends with this value.
#[derive(Debug)]
pub struct Browser {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    session: Value,
    calls: u64,
    complaints: Vec<String>,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts one, with an empty page; `None` where none is installed: tests/run installs it, whoever runs one test may have none.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn start() -> anyhow::Result<Option<Self>> {
        let profile = tempfile::tempdir()?;
        let mut process = Command::new("sh")
            .args(["-c", WITH_PIPES, "sh", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
            .args(["--no-first-run", "--remote-debugging-pipe"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .env("HOME", profile.path())
            .env("TMPDIR", profile.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(profile.path().join("chromium.log"))?)
            .kill_on_drop(true)
            .spawn()?;
        let (to, from) = (process.stdin.take().context("no pipe")?, process.stdout.take().context("no pipe")?);
        let mut browser = Self {
            process,
            to,
            from: BufReader::new(from),
            session: Value::Null,
            calls: 0,
            complaints: Vec::new(),
            _profile: profile,
        };
        let page = match browser.call("Target.createTarget", json!({ "url": "about:blank" })).await {
            Ok(mut page) => page["targetId"].take(),
            Err(error) => {
                let ended = tokio::time::timeout(PATIENCE, browser.process.wait()).await;
                let is_there = !ended.is_ok_and(|status| status.is_ok_and(|status| status.code() == Some(NOT_FOUND)));
                return if is_there { Err(error) } else { Ok(None) };
            }
        };
        let attach = json!({ "targetId": page, "flatten": true });
        browser.session = browser.call("Target.attachToTarget", attach).await?["sessionId"].take();
        for domain in ["Page", "Runtime", "Log", "Network", "Accessibility"] {
            browser.call(&format!("{domain}.enable"), json!({})).await?;
        }
        // As a window that somebody looks at.
        browser.call("Emulation.setFocusEmulationEnabled", json!({ "enabled": true })).await?;
        Ok(Some(browser))
    }

    /// Has it do something, and gives its answer.
    ///
    /// # Errors
    /// When it refuses, or is gone.
    pub async fn call(&mut self, method: &str, parameters: Value) -> anyhow::Result<Value> {
        self.calls += 1;
        let mut message = json!({ "id": self.calls, "method": method, "params": parameters });
        if self.session.is_string() {
            message["sessionId"] = self.session.clone();
        }
        let answer = tokio::time::timeout(PATIENCE, async {
            self.to.write_all(format!("{message}\0").as_bytes()).await?;
            loop {
                let mut told = self.next().await?;
                if told["id"] == self.calls {
                    return anyhow::Ok(told);
                }
                self.hear(&mut told);
            }
        });
        let mut answer = answer.await.with_context(|| format!("the browser does not answer to {method}"))??;
        anyhow::ensure!(answer["error"].is_null(), "{method}: {}", answer["error"]);
        Ok(answer["result"].take())
    }

    async fn next(&mut self) -> anyhow::Result<Value> {
        let mut message = Vec::new();
        self.from.read_until(0, &mut message).await?;
        anyhow::ensure!(message.pop() == Some(0), "the browser ended");
        Ok(serde_json::from_slice(&message)?)
    }

    /// Keeps what is wrong with a page.
    fn hear(&mut self, event: &mut Value) {
        let wrong = match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => event["params"]["exceptionDetails"].take(),
            Some("Log.entryAdded") if event["params"]["entry"]["level"] == "error" => event["params"]["entry"].take(),
            _ => return,
        };
        self.complaints.push(wrong.to_string());
    }

    /// What was wrong since the last time somebody asked: scripts that threw, what the policy refused, what could not be loaded.
    pub fn complaints(&mut self) -> Vec<String> {
        std::mem::take(&mut self.complaints)
    }

    /// Goes to `url`, and waits until all of it is there.
    ///
    /// # Errors
    /// When it does not come.
    pub async fn open(&mut self, url: &str) -> anyhow::Result<()> {
        let gone = self.call("Page.navigate", json!({ "url": url })).await?;
        anyhow::ensure!(gone["errorText"].is_null(), "{url}: {}", gone["errorText"]);
        self.until("document.readyState === 'complete'").await
    }

    /// What a script says in the page.
    ///
    /// # Errors
    /// When it throws, or the page goes away meanwhile.
    pub async fn ask(&mut self, script: &str) -> anyhow::Result<Value> {
        let asked = json!({ "expression": script, "awaitPromise": true, "returnByValue": true });
        let mut said = self.call("Runtime.evaluate", asked).await?;
        anyhow::ensure!(said["exceptionDetails"].is_null(), "{script}: {}", said["exceptionDetails"]);
        Ok(said["result"]["value"].take())
    }

    /// Waits until a script says `true`, over pages that come and go.
    ///
    /// # Errors
    /// When it does not; with what the page shows.
    pub async fn until(&mut self, script: &str) -> anyhow::Result<()> {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !self.ask(script).await.is_ok_and(|said| said == true) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        if waited.await.is_err() {
            let shown = self.ask("location.href + '\\n' + document.body.innerText").await.unwrap_or_default();
            anyhow::bail!("waited {PATIENCE:?} for `{script}` on {}", shown.as_str().unwrap_or("no page"));
        }
        Ok(())
    }

    /// Presses a key and lets it go.
    ///
    /// # Errors
    /// When it is none of those that are known here.
    pub async fn press(&mut self, key: &str) -> anyhow::Result<()> {
        let (_, code, text) = KEYS.iter().find(|(name, ..)| *name == key).context("an unknown key")?;
        let known = json!({ "key": key, "code": key, "windowsVirtualKeyCode": code });
        let (mut down, mut up) = (known.clone(), known);
        down["type"] = if text.is_empty() { "rawKeyDown" } else { "keyDown" }.into();
        down["text"] = (*text).into();
        up["type"] = "keyUp".into();
        self.call("Input.dispatchKeyEvent", down).await?;
        self.call("Input.dispatchKeyEvent", up).await?;
        Ok(())
    }

    /// Writes where the cursor is, in place of what stands there.
    ///
    /// # Errors
    /// When the browser is gone.
    pub async fn write(&mut self, text: &str) -> anyhow::Result<()> {
        let all = json!({ "type": "rawKeyDown", "key": "a", "modifiers": 2, "commands": ["selectAll"] });
        self.call("Input.dispatchKeyEvent", all).await?;
        self.call("Input.insertText", json!({ "text": text })).await.map(drop)
    }

    /// What a screen reader is told of the page: role and name of each node that it is told of.
    ///
    /// # Errors
    /// When the browser is gone.
    pub async fn spoken(&mut self) -> anyhow::Result<Vec<(String, String)>> {
        let tree = self.call("Accessibility.getFullAXTree", json!({})).await?;
        let text = |value: &Value| value["value"].as_str().unwrap_or_default().trim().to_owned();
        let nodes = tree["nodes"].as_array().context("no tree")?.iter().filter(|node| node["ignored"] == false);
        Ok(nodes.map(|node| (text(&node["role"]), text(&node["name"]))).collect())
    }

    /// Has it end in order.
    ///
    /// # Errors
    /// When it does not.
    pub async fn close(mut self) -> anyhow::Result<()> {
        self.session = Value::Null;
        self.call("Browser.close", json!({})).await?;
        tokio::time::timeout(PATIENCE, self.process.wait()).await.context("the browser did not end")??;
        Ok(())
    }
}
