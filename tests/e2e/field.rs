//! What a gateway hears at its serial ports: pseudo-terminals, whose other ends the tests have.

use std::os::fd::AsRawFd as _;
use std::path::PathBuf;

use anyhow::Context as _;
use e2e::{Guest, Site};
use serial2::SerialPort;

use super::sources::{hears, keeps, source};

const GUIDE: &str = include_str!("../../docs/guides/serial.md");

/// Bits a second of the ports here: not what a new pseudo-terminal has, so that it shows when the agent has set it up.
pub(super) const BAUD: u32 = 9600;

/// A port at a place of its own, whatever hangs there.
pub(super) struct Port {
    folder: tempfile::TempDir,
    /// The end of the device, while there is one.
    device: Option<SerialPort>,
}

impl Port {
    /// One with a device.
    pub(super) fn new() -> anyhow::Result<Self> {
        let mut port = Self { folder: tempfile::Builder::new().prefix("port-").tempdir()?, device: None };
        port.plug()?;
        Ok(port)
    }

    /// What the gateway calls it.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.path().join("ttyUSB0")
    }

    /// The device goes.
    pub(super) fn unplug(&mut self) -> anyhow::Result<()> {
        self.device = None;
        Ok(std::fs::remove_file(self.path())?)
    }

    /// A device comes.
    pub(super) fn plug(&mut self) -> anyhow::Result<()> {
        let (device, gateway) = SerialPort::pair()?;
        let gateway = std::fs::read_link(format!("/proc/self/fd/{}", gateway.as_raw_fd()))?;
        std::os::unix::fs::symlink(gateway, self.path())?;
        self.device = Some(device);
        Ok(())
    }

    pub(super) fn device(&self) -> anyhow::Result<&SerialPort> {
        self.device.as_ref().context("there is no device")
    }

    /// Waits until the gateway listens.
    pub(super) async fn is_open(&self, site: &Site) -> anyhow::Result<()> {
        let is_set_up = async || {
            let settings = self.device().ok().and_then(|device| device.get_configuration().ok());
            settings.is_some_and(|settings| settings.get_baud_rate().is_ok_and(|baud| baud == BAUD))
        };
        e2e::until("the port to be open", is_set_up).await.with_context(|| site.agent.log())
    }

    /// The device says something, however long the gateway holds it up.
    pub(super) async fn say(&self, bytes: &[u8]) -> anyhow::Result<()> {
        let (mut device, bytes) = (self.device()?.try_clone()?, bytes.to_vec());
        device.set_write_timeout(e2e::PATIENCE)?;
        Ok(tokio::task::spawn_blocking(move || device.write_all(&bytes)).await??)
    }
}

/// The config of the guide, for `port`.
fn of_the_guide(port: &Port) -> String {
    let config = GUIDE.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap_or_default();
    config.replace("/dev/ttyUSB0", &port.path().display().to_string())
}

async fn heard(site: &Site) -> anyhow::Result<String> {
    Ok(site.device.next().await.with_context(|| site.agent.log())?.text())
}

/// With the config of the guide.
#[tokio::test]
async fn each_line_at_a_port_is_an_event_and_a_port_that_goes_is_found_again() -> anyhow::Result<()> {
    let mut port = Port::new()?;
    let site = Site::with_guests(&of_the_guide(&port), &[("functions/weigh", Guest::forward("results/line"))]).await?;
    port.is_open(&site).await?;
    port.say(b"12.5 kg\r\n13").await?;
    assert_eq!(heard(&site).await?, "12.5 kg");
    port.say(b".0 kg\r\n").await?;
    assert_eq!(heard(&site).await?, "13.0 kg");

    // A line that was cut off goes with the device.
    port.say(b"14").await?;
    port.unplug()?;
    let trouble = async || site.agent.status().is_ok_and(|status| source(&status, "scale")["trouble"].is_string());
    e2e::until("the port to be missed", trouble).await?;
    port.plug()?;
    port.is_open(&site).await?;
    port.say(b"15.5 kg\r\n").await?;
    assert_eq!(heard(&site).await?, "15.5 kg");
    let status = site.agent.status()?;
    assert!(source(&status, "scale")["trouble"].is_null(), "{status}");
    assert_eq!(source(&status, "scale")["events"], 3, "{status}");
    let told = site.agent.log().lines().filter(|line| line.contains("\"warn\"") && line.contains("ttyUSB0")).count();
    assert_eq!(told, 1, "troubles are logged once a minute: {}", site.agent.log());
    Ok(())
}

fn at(port: &Port, more: &str) -> String {
    format!("[source.wire]\nserial = {{ device = {:?}, baud = {BAUD}{more} }}\n", port.path())
}

#[tokio::test]
async fn what_belongs_to_no_frame_is_left_out_and_counted() -> anyhow::Result<()> {
    let port = Port::new()?;
    let frame = ", frame = { start = [0x42, 0x4D], bytes = 6 }";
    let config = format!("{}{}", at(&port, frame), hears("tell", "serial", "wire", "mqtt:publish:results/#"));
    let site = Site::with_guests(&config, &[("tell", Guest::forward("results/frame"))]).await?;
    port.is_open(&site).await?;
    for (noise, frame) in [(&b"\0\xff\x42"[..], b"BM\0\x01\n\r"), (b"", b"BMBMBM"), (b"noise", b"BM\x03\x11\x13\x04")] {
        port.say(noise).await?;
        port.say(frame).await?;
        let message = site.device.next().await.with_context(|| site.agent.log())?;
        assert_eq!(message.payload, frame, "bytes come as they are");
    }
    let status = site.agent.status()?;
    assert_eq!(source(&status, "wire")["events"], 3, "{status}");
    assert!(source(&status, "wire")["troubles"].as_u64() >= Some(2), "{status}");
    assert_eq!(site.agent.log().matches("belong to no frame").count(), 1, "{}", site.agent.log());
    Ok(())
}

#[tokio::test]
async fn a_frame_ends_when_the_line_is_silent() -> anyhow::Result<()> {
    let port = Port::new()?;
    let frame = ", frame = { pause = \"150ms\" }";
    let config = format!("{}{}", at(&port, frame), hears("tell", "serial", "wire", "mqtt:publish:results/#"));
    let site = Site::with_guests(&config, &[("tell", Guest::forward("results/frame"))]).await?;
    port.is_open(&site).await?;
    for frame in ["first\nframe", "second"] {
        port.say(frame.as_bytes()).await?;
        assert_eq!(heard(&site).await?, frame);
    }
    Ok(())
}

/// Without an end to its lines, and with more of them than functions can take at once.
#[tokio::test]
async fn a_port_that_floods_is_held_up_and_what_is_endless_is_left_out() -> anyhow::Result<()> {
    const LINES: u64 = 20_000;
    let port = Port::new()?;
    let config = format!("{}[stream.kept]\n{}", at(&port, ""), hears("keep", "serial", "wire", "stream:kept"));
    let site = Site::with_guests(&config, &[("keep", Guest::append("kept"))]).await?;
    port.is_open(&site).await?;
    port.say(&vec![b'x'; 1 << 20]).await?;
    port.say(b"\n").await?;
    let lines: String = (0..LINES).map(|n| format!("{n}\n")).collect();
    port.say(lines.as_bytes()).await?;
    keeps(&site, LINES).await?;
    let status = site.agent.status()?;
    assert_eq!(source(&status, "wire")["events"], LINES, "{status}");
    assert_eq!(source(&status, "wire")["troubles"], 1, "{status}");
    Ok(())
}
