//! The gateway's folder: gateway.toml, the bundles, the state that outlives the agent.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use tidegate::config::Config;

use crate::plan::{ATTEMPTS, FUNCTIONS, Plan};

/// Where simulations keep their files: in memory when the machine has that.
pub fn temporary() -> anyhow::Result<tempfile::TempDir> {
    let memory = Path::new("/dev/shm");
    let builder = || tempfile::Builder::new();
    Ok(if memory.is_dir() {
        builder().prefix("sim-").tempdir_in(memory)?
    } else {
        builder().prefix("sim-").tempdir()?
    })
}

/// What all simulations of a process share: bundles, and their compiled code.
pub struct Shop {
    folder: tempfile::TempDir,
}

impl Shop {
    pub fn open() -> anyhow::Result<Self> {
        let folder = temporary()?;
        for function in FUNCTIONS {
            crate::guest::write(folder.path(), function.name, "1.0.0")?;
        }
        e2e::Guest::append("from-tail").write(&folder.path().join("tail"), "1.0.0")?;
        Ok(Self { folder })
    }

    fn compiled(&self) -> PathBuf {
        self.folder.path().join("compiled")
    }
}

pub struct Site<'a> {
    shop: &'a Shop,
    folder: tempfile::TempDir,
    reloads: u32,
}

impl<'a> Site<'a> {
    pub fn new(shop: &'a Shop, plan: &Plan) -> anyhow::Result<Self> {
        let site = Self { shop, folder: temporary()?, reloads: 0 };
        fs::create_dir_all(site.state())?;
        if shop.compiled().is_dir() {
            copy(&shop.compiled(), &site.state().join("compiled"), true)?;
        }
        site.configure(plan)?;
        Ok(site)
    }

    pub fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    /// Keeps compiled code for the simulations that follow.
    pub fn share_code(&self) -> anyhow::Result<()> {
        if !self.shop.compiled().is_dir() {
            copy(&self.state().join("compiled"), &self.shop.compiled(), true)?;
        }
        Ok(())
    }

    pub fn config(&self) -> anyhow::Result<Config> {
        Config::load(&self.folder.path().join("gateway.toml")).map_err(|errors| anyhow::anyhow!("{errors}"))
    }

    /// Another gateway.toml: each time something that changes nothing of what is promised.
    pub fn reconfigure(&mut self, plan: &Plan) -> anyhow::Result<()> {
        self.reloads += 1;
        self.configure(plan)
    }

    fn configure(&self, plan: &Plan) -> anyhow::Result<()> {
        let bundles = self.shop.folder.path().display();
        let (reloads, (local, cloud), batch) = (self.reloads, plan.versions, plan.batch);
        let mut text = format!(
            "[gateway]\nname = \"sim\"\nstate_dir = \"state\"\n[api]\nlisten = \"off\"\n
             [mqtt.local]\nurl = \"mqtt://local:1883\"\nversion = {local}\n
             [mqtt.cloud]\nurl = \"mqtt://cloud:1883\"\nversion = {cloud}\n"
        );
        let own = FUNCTIONS.iter().map(|function| function.name).chain(["tail"]);
        for stream in own.clone().map(|name| format!("from-{name}")).chain(["shared".to_owned()]) {
            write!(
                text,
                "[stream.{stream}]\nbatch = {batch}\nuplink = {{ mqtt = \"cloud\", topic = \"up/{{stream}}\" }}\n"
            )?;
        }
        for function in FUNCTIONS {
            let (name, topics, qos, keys) = (function.name, function.topics, function.qos, function.keys);
            write!(
                text,
                "[[function]]\nname = \"{name}\"\nbundle = \"{bundles}/{name}\"\ntimeout = \"3s\"
                 environment = {{ RELOADS = \"{reloads}\" }}\nretry = {{ attempts = {ATTEMPTS} }}\n{keys}
                 capabilities = [\"mqtt:publish:out/#\", \"stream:from-{name}\", \"stream:shared\", \"keyvalue\"]
                 [[function.trigger]]\nmqtt = {{ filter = \"{topics}#\", qos = {qos} }}\n"
            )?;
        }
        write!(
            text,
            "[[function]]\nname = \"tail\"\nbundle = \"{bundles}/tail\"\ncapabilities = [\"stream:from-tail\"]\n"
        )?;
        Ok(fs::write(self.folder.path().join("gateway.toml"), text)?)
    }

    /// A copy of the state as the kernel has it now: what a killed process leaves.
    pub fn keep_copy(&self) -> anyhow::Result<()> {
        copy(&self.state(), &self.folder.path().join("copy"), false)
    }

    /// Goes on with the copy; what was written after it is gone.
    pub fn use_copy(&self) -> anyhow::Result<()> {
        fs::remove_dir_all(self.state())?;
        Ok(fs::rename(self.folder.path().join("copy"), self.state())?)
    }
}

fn copy(from: &Path, to: &Path, link: bool) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (kind, to) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            // Compiled code is written once, under another name first.
            copy(&entry.path(), &to, link || entry.file_name() == "compiled")?;
        } else if kind.is_file() {
            if link {
                fs::hard_link(entry.path(), &to)?;
            } else {
                fs::copy(entry.path(), &to)?;
            }
        }
    }
    Ok(())
}
