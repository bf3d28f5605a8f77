//! A chip of the kernel's own simulator, gpio-sim, where the kernel has it and this user may set it up.

use std::fs;
use std::path::{Path, PathBuf};

const CONFIG: &str = "/sys/kernel/config/gpio-sim";

/// Gone with this value.
pub(super) struct Simulated {
    config: PathBuf,
    lines: PathBuf,
}

impl Simulated {
    /// One with this label, and eight lines of which the fourth is called `door`; nothing where there can be none.
    pub(super) fn new(label: &str) -> anyhow::Result<Option<Self>> {
        let config = Path::new(CONFIG).join(label);
        if fs::create_dir(&config).is_err() {
            return Ok(None);
        }
        let mut simulated = Self { config, lines: PathBuf::new() };
        let bank = simulated.config.join("bank");
        fs::create_dir_all(bank.join("line3"))?;
        fs::write(bank.join("num_lines"), "8")?;
        fs::write(bank.join("label"), label)?;
        fs::write(bank.join("line3/name"), "door")?;
        fs::write(simulated.config.join("live"), "1")?;
        let name = |file: PathBuf| fs::read_to_string(file).map(|name| name.trim().to_owned());
        let device = name(simulated.config.join("dev_name"))?;
        let chip = name(bank.join("chip_name"))?;
        simulated.lines = Path::new("/sys/devices/platform").join(device).join(&chip);
        // A container may not see the devices of its kernel.
        Ok(Path::new("/dev").join(chip).exists().then_some(simulated))
    }

    /// The voltage of an input.
    pub(super) fn pull(&self, offset: usize, is_high: bool) -> anyhow::Result<()> {
        let file = self.lines.join(format!("sim_gpio{offset}/pull"));
        Ok(fs::write(file, if is_high { "pull-up" } else { "pull-down" })?)
    }

    /// Whether a line is high.
    pub(super) fn is_high(&self, offset: usize) -> bool {
        fs::read_to_string(self.lines.join(format!("sim_gpio{offset}/value"))).is_ok_and(|value| value.trim() == "1")
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        // What is not there needs no end.
        let _ = fs::write(self.config.join("live"), "0");
        for folder in ["bank/line3", "bank", ""] {
            let _ = fs::remove_dir(self.config.join(folder));
        }
    }
}
