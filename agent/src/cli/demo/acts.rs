//! What people do while events flow: a better model is deployed, then a bad version, then somebody tries a forged one.
//!
//! Each act is done by the very commands that a person types, and says what came of them.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

use super::cloud::Laptop;

/// Something that people do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    BetterModel,
    BadVersion,
    Forged,
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BetterModel => "a better model is published and deployed: it also knows how much each axis moves",
            Self::BadVersion => {
                "a bad version of the function is deployed: its author left it 1 MiB of memory, and no tests"
            }
            Self::Forged => "a stranger signs a version and a deployment with keys of his own",
        })
    }
}

/// The act that is under way, and what is said of it.
#[derive(Debug)]
pub(super) struct Stagehand {
    laptop: Arc<Laptop>,
    say: UnboundedSender<String>,
    said: UnboundedReceiver<String>,
    under_way: Option<(Act, JoinHandle<anyhow::Result<()>>)>,
}

impl Stagehand {
    pub(super) fn new(laptop: Arc<Laptop>) -> Self {
        let (say, said) = unbounded_channel();
        Self { laptop, say, said, under_way: None }
    }

    /// Begins one; the one before is over.
    pub(super) fn begin(&mut self, act: Act) {
        let (laptop, say) = (Arc::clone(&self.laptop), self.say.clone());
        self.under_way = Some((act, tokio::spawn(async move { perform(act, &laptop, &say).await })));
    }

    pub(super) const fn is_busy(&self) -> bool {
        self.under_way.is_some()
    }

    /// What was said since the last time.
    pub(super) fn heard(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.said.try_recv().ok()).collect()
    }

    /// The act that has just ended.
    pub(super) async fn ended(&mut self) -> anyhow::Result<Option<Act>> {
        if !self.under_way.as_ref().is_some_and(|(_, task)| task.is_finished()) {
            return Ok(None);
        }
        let Some((act, task)) = self.under_way.take() else { return Ok(None) };
        task.await.context("an act broke off")?.with_context(|| format!("it did not go as it should: {act}"))?;
        Ok(Some(act))
    }
}

async fn perform(act: Act, laptop: &Laptop, say: &UnboundedSender<String>) -> anyhow::Result<()> {
    // Who does not listen any more is told nothing.
    let tell = |text: &str| drop(say.send(format!("  {text}")));
    match act {
        Act::BetterModel => {
            tell("$ tidegate publish motion.onnx --version 2.0.0 --alias live");
            laptop.publish_model("motion", "2.0.0").await?;
            tell("$ tidegate deploy --wait");
            laptop.tell(&["deploy", "--wait"], tell).await?.success()?;
        }
        Act::BadVersion => {
            laptop.write_bad_version()?;
            tell("$ tidegate publish motion --alias live");
            let model = "motion=models/motion.onnx";
            laptop.run(&["publish", "motion", "--model", model, "--alias", "live"]).await?.success()?;
            tell("$ tidegate deploy --wait");
            let ended = laptop.tell(&["deploy", "--wait"], tell).await?;
            ensure!(
                ended.status == 1,
                "the bad version was not rolled back: status {}, {}",
                ended.status,
                ended.stderr
            );
            ensure!(ended.stdout.contains("rolled back"), "it was not rolled back:\n{}", ended.stdout);
        }
        Act::Forged => {
            laptop.run(&["keygen", "key", "stranger"]).await?.success()?;
            let key = laptop.key("stranger");
            tell("$ tidegate publish motion.onnx --version 3.0.0 --key stranger.pem");
            let model = ["publish", "models/motion.onnx", "--name", "motion", "--version", "3.0.0", "--key", &key];
            refused(&laptop.run(&model).await?, &tell)?;
            tell("$ tidegate deploy --key stranger.pem");
            refused(&laptop.run(&["deploy", "--key", &key]).await?, &tell)?;
            let use_old = "model/motion=1.0.0";
            laptop.run(&["deploy", "--use", use_old, "--out", "forged.tar", "--with-blobs"]).await?.success()?;
            laptop.sign_instead("forged.tar", &key)?;
            tell("$ tidegate apply forged.tar");
            let socket: PathBuf = laptop.socket();
            let apply = ["apply", "forged.tar", "--socket", &socket.display().to_string()];
            refused(&laptop.run(&apply).await?, &tell)?;
        }
    }
    Ok(())
}

/// Something that must not succeed: says why it did not.
fn refused(ended: &super::cloud::Ended, tell: &dyn Fn(&str)) -> anyhow::Result<()> {
    ensure!(ended.status != 0, "what a stranger signed was taken: {}", ended.stdout);
    let why = ended.stderr.lines().find_map(|line| line.strip_prefix("error: "));
    tell(&format!("refused: {}", why.with_context(|| format!("no reason was given: {}", ended.stderr))?));
    Ok(())
}
