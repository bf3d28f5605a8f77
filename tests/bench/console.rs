//! The console in a real browser while events come: how smoothly the page runs, and what it costs the agent. Beside the same page, held
//! still: what else the machine does is in both.

use std::time::Duration;

use anyhow::Context as _;
use e2e::{Agent, Browser, Guest, Mosquitto};
use serde_json::json;

use crate::Options;
use crate::load::Load;
use crate::process::cpu_seconds;
use crate::report::{Figure, Target};
use crate::site::TOPIC;

/// Pages with the most on them that changes, and their figures.
const PAGES: [(&str, &str, [&str; 5]); 2] = [
    ("", "overview", ["console-1", "console-2", "console-3", "console-4", "console-5"]),
    ("log", "log", ["console-6", "console-7", "console-8", "console-9", "console-10"]),
];

const PER_SECOND: u32 = 2_000;
const STILL: &str = "held still";

/// Notes the time between frames, and tasks that hold the page up for more than 50 ms.
const WATCH: &str = "(() => {
    const seen = window.seen = { frames: [], long: [], since: performance.now() };
    new PerformanceObserver((list) => seen.long.push(...list.getEntries().map((e) => e.duration))).observe({ type: 'longtask' });
    let last = performance.now();
    const frame = (now) => { seen.frames.push(now - last); last = now; requestAnimationFrame(frame); };
    requestAnimationFrame(frame);
})()";
/// What was noted, and what the page was sent meanwhile.
const TELL: &str = "(() => {
    const { frames, long, since } = window.seen, sorted = frames.toSorted((a, b) => a - b);
    const asked = performance.getEntriesByType('resource').filter((e) => e.startTime >= since);
    return {
        p99_ms: sorted[Math.floor(sorted.length * 0.99)],
        long: long.length, bytes: asked.reduce((sum, e) => sum + e.transferSize, 0), seconds: (performance.now() - since) / 1000,
    };
})()";

/// How it went with one page.
struct Look {
    p99_ms: f64,
    /// Tasks of more than 50 ms, in a minute.
    long: f64,
    /// Processor time of the thread that all of the page runs on, in a second.
    page_ms: f64,
    bytes_per_second: f64,
    /// Of one core, in hundredths.
    agent_percent: f64,
}

pub(crate) async fn measure(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let (per_second, seconds) = if options.quick { (200, 2) } else { (PER_SECOND, 10) };
    let (broker, api) = (Mosquitto::with("allow_anonymous true\n").await?, e2e::free_port()?);
    let mut agent = Agent::prepare(&config(broker.port(), api))?;
    let say = "(call $say (call $data (local.get $event)) (call $data_bytes (local.get $event)))";
    Guest::forward("results/said").but_on(b'{', say).write(&agent.folder().join("says"), "1.0.0")?;
    agent.resume().await?;
    let mut load = Load::connect(broker.port())?;
    load.until_there(TOPIC)?;
    let mut browser = Browser::start().await?.context("no chromium is installed")?;
    browser.call("Performance.enable", json!({})).await?;
    let pid = agent.pid().context("it runs")?;
    let mut desk = Desk { browser, load: Some(load), pid, per_second, time: Duration::from_secs(seconds) };
    let mut figures = Vec::new();
    for (path, name, ids) in PAGES {
        let (url, mut looks) = (format!("http://127.0.0.1:{api}/console/{path}"), Vec::new());
        for _ in 0..options.rounds() {
            looks.push([desk.look(&url, true).await?, desk.look(&url, false).await?]);
        }
        let pairs = |of: fn(&Look) -> f64| looks.iter().map(|both| (of(&both[0]), of(&both[1]))).collect();
        let live = |of: fn(&Look) -> f64| looks.iter().map(|both| of(&both[0])).collect();
        let what = |what: &str| format!("{name} of the console at {per_second} events/s, {what}");
        figures.extend([
            Figure::beside(ids[0], what("p99 between frames"), "ms", pairs(|look| look.p99_ms), STILL)
                .with(Target::MoreAtMost(17.0)),
            Figure::beside(ids[1], what("tasks of more than 50 ms"), "per min", pairs(|look| look.long), STILL)
                .with(Target::MoreAtMost(0.0)),
            Figure::beside(ids[2], what("CPU of the page"), "ms/s", pairs(|look| look.page_ms), STILL)
                .with(Target::MoreAtMost(50.0)),
            Figure::alone(ids[3], what("sent to it"), "B/s", live(|look| look.bytes_per_second))
                .with(Target::AtMost(65_536.0)),
            Figure::beside(ids[4], what("CPU of the agent"), "% of a core", pairs(|look| look.agent_percent), STILL)
                .with(Target::MoreAtMost(5.0)),
        ]);
    }
    desk.browser.close().await?;
    Ok(figures)
}

/// One function that says each event in the log, and publishes it.
fn config(broker: u16, api: u16) -> String {
    format!(
        "[api]\nlisten = \"127.0.0.1:{api}\"\n[mqtt.local]\nurl = \"mqtt://127.0.0.1:{broker}\"\n[[function]]\nname = \"says\"\n\
         bundle = \"says\"\ncapabilities = [\"mqtt:publish:results/#\"]\n[[function.trigger]]\nmqtt = {{ filter = \"{TOPIC}/+/temp\" }}\n"
    )
}

/// Somebody who looks, and the events that come meanwhile.
struct Desk {
    browser: Browser,
    /// Away while it runs.
    load: Option<Load>,
    pid: u32,
    per_second: u32,
    time: Duration,
}

impl Desk {
    async fn look(&mut self, url: &str, is_live: bool) -> anyhow::Result<Look> {
        self.browser.open(url).await?;
        if !is_live {
            self.browser.ask("document.getElementById('pause').click()").await?;
        }
        // Instances are made, and the page has settled, when the watch begins.
        self.run(Duration::from_secs(1)).await?;
        self.browser.ask(WATCH).await?;
        let before = (cpu_seconds(self.pid)?, self.page_seconds().await?);
        let came = self.run(self.time).await?;
        let (cpu, page) = (cpu_seconds(self.pid)? - before.0, self.page_seconds().await? - before.1);
        let seen = self.browser.ask(TELL).await?;
        let seconds = self.time.as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let share = came as f64 / (f64::from(self.per_second) * seconds);
        let (per_second, percent) = (self.per_second, share * 100.0);
        anyhow::ensure!(
            per_second < PER_SECOND || share > 0.98,
            "of {per_second} events/s {percent:.0} % were handled"
        );
        let number = |key: &str| seen[key].as_f64().with_context(|| format!("no {key} in {seen}"));
        let watched = number("seconds")?;
        Ok(Look {
            p99_ms: number("p99_ms")?,
            long: number("long")? * 60.0 / watched,
            page_ms: page * 1_000.0 / watched,
            bytes_per_second: number("bytes")? / watched,
            agent_percent: cpu * 100.0 / seconds,
        })
    }

    /// Processor time of the page's main thread.
    async fn page_seconds(&mut self) -> anyhow::Result<f64> {
        let told = self.browser.call("Performance.getMetrics", json!({})).await?;
        let metric = told["metrics"].as_array().into_iter().flatten().find(|metric| metric["name"] == "ThreadTime");
        metric.and_then(|metric| metric["value"].as_f64()).with_context(|| format!("no time in {told}"))
    }

    /// Has events come for so long; says how many were handled.
    async fn run(&mut self, time: Duration) -> anyhow::Result<u64> {
        let (mut load, per_second) = (self.load.take().context("it runs already")?, self.per_second);
        let (load, came) = tokio::task::spawn_blocking(move || {
            let came = load.steady(TOPIC, per_second, time);
            (load, came)
        })
        .await?;
        self.load = Some(load);
        came
    }
}
