//! What most tests begin with: a broker, an agent beside it, a device that hears what comes of its messages.

use std::path::PathBuf;

use crate::{Agent, Device, Guest, Mosquitto};

/// A gateway with its surroundings. The broker is `mqtt.local`.
#[derive(Debug)]
pub struct Site {
    /// What devices and agent are connected to.
    pub broker: Mosquitto,
    /// The agent.
    pub agent: Agent,
    /// Subscribed to `results/#`.
    pub device: Device,
}

impl Site {
    /// An agent with this gateway.toml, to which `[mqtt.local]` is added.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn with(config: &str) -> anyhow::Result<Self> {
        Self::with_guests(config, &[]).await
    }

    /// The same; `guests` are bundles beside gateway.toml.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn with_guests(config: &str, guests: &[(&str, Guest)]) -> anyhow::Result<Self> {
        Self::in_environment(config, guests, &[]).await
    }

    /// The same, with these variables in the agent's environment.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn in_environment(
        config: &str,
        guests: &[(&str, Guest)],
        variables: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let broker = Mosquitto::start().await?;
        let device = Device::connect(broker.port()).await?;
        device.subscribe("results/#", 2).await?;
        let mut agent = Agent::prepare("")?;
        variables.iter().for_each(|(name, value)| agent.set_environment(name, value));
        let mut site = Self { broker, agent, device };
        for (name, guest) in guests {
            guest.write(&site.bundle(name), "1.0.0")?;
        }
        site.configure(config)?;
        site.agent.resume().await?;
        site.agent.hears("local").await?;
        Ok(site)
    }

    /// Changes gateway.toml; `reload` makes the agent read it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn configure(&self, config: &str) -> anyhow::Result<()> {
        self.agent.configure(&format!("[mqtt.local]\nurl = \"{}\"\n{config}", self.broker.url()))
    }

    /// Where the guest's bundle is.
    pub fn bundle(&self, name: &str) -> PathBuf {
        self.agent.folder().join(name)
    }
}

/// `[[function]]` with the example `fahrenheit`, and `more` keys of it.
pub fn fahrenheit(more: &str) -> String {
    let bundle = crate::example("fahrenheit");
    let capabilities = "capabilities = [\"mqtt:publish:results/#\"]";
    format!("[[function]]\nname = \"fahrenheit\"\nbundle = \"{}\"\n{capabilities}\n{more}\n", bundle.display())
}

/// `[[function]]` with a guest, triggered by `filter` at QoS 1, and `more` keys of it.
pub fn guest(name: &str, filter: &str, more: &str) -> String {
    format!(
        "[[function]]\nname = \"{name}\"\nbundle = \"{name}\"\n{more}\n[[function.trigger]]\nmqtt = {{ filter = \"{filter}\" }}\n"
    )
}

/// A reading as `fahrenheit` takes it.
pub fn reading(device: &str, seq: u64) -> String {
    let temperature = 20.0 + f64::from(u32::try_from(seq % 20).unwrap_or_default());
    format!(r#"{{"device":"{device}","ts":1790000000000,"seq":{seq},"temperature":{temperature:.1}}}"#)
}
