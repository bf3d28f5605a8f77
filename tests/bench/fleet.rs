//! What being managed costs, and how soon a new version serves.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use e2e::{Agent, ControlPlane, Mosquitto};
use tidegate::clock::Clock;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::Options;
use crate::disk::Disk;
use crate::process::pss_mib;
use crate::report::{Figure, Target};

/// Bytes of the function that is pushed.
const FUNCTION_BYTES: usize = 100 << 10;
/// After this long a gateway that has taken a version has settled.
const SETTLE: Duration = Duration::from_secs(5);
/// Looks at the memory of an idle gateway.
const SAMPLES: u32 = 24;
/// What the gateway is to run.
const DEPLOYMENT: &str = r#"gateway = "test"
[[function]]
name = "fahrenheit"
version = "live"
capabilities = ["mqtt:publish:results/#"]
[policy]
probation = "1s"
"#;

/// A control plane, and a gateway that it manages.
struct Fleet {
    plane: ControlPlane,
    gateway: Agent,
    wire: Wire,
    broker: Mosquitto,
}

/// A forwarder that counts what passes, both ways.
struct Wire {
    address: SocketAddr,
    bytes: Arc<AtomicU64>,
}

impl Wire {
    async fn to(target: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let (address, bytes) = (listener.local_addr()?, Arc::new(AtomicU64::new(0)));
        let counted = Arc::clone(&bytes);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(target).await else { continue };
                let (near_in, near_out) = near.into_split();
                let (far_in, far_out) = far.into_split();
                tokio::spawn(pass(near_in, far_out, Arc::clone(&counted)));
                tokio::spawn(pass(far_in, near_out, Arc::clone(&counted)));
            }
        });
        Ok(Self { address, bytes })
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    counted: Arc<AtomicU64>,
) {
    let mut piece = vec![0; 16 << 10];
    while let Ok(bytes @ 1..) = from.read(&mut piece).await {
        counted.fetch_add(bytes as u64, Ordering::Relaxed);
        if to.write_all(&piece[..bytes]).await.is_err() {
            break;
        }
    }
}

impl Fleet {
    async fn start(mut gateway: Agent) -> anyhow::Result<Self> {
        let plane = ControlPlane::start().await?;
        let broker = Mosquitto::with("allow_anonymous true\n").await?;
        let wire = Wire::to(plane.address()).await?;
        gateway.configure(&config(&broker, &plane.claim(&gateway, wire.address)?))?;
        gateway.resume().await?;
        plane.hears("test").await?;
        Ok(Self { plane, gateway, wire, broker })
    }

    /// Publishes `fahrenheit` as `version`, in code that no gateway has compiled before.
    fn publish(&self, version: u32) -> anyhow::Result<()> {
        let (example, bundle) = (e2e::example("fahrenheit"), self.plane.laptop().join("fahrenheit"));
        std::fs::create_dir_all(bundle.join("events"))?;
        for event in std::fs::read_dir(example.join("events"))? {
            let event = event?;
            std::fs::copy(event.path(), bundle.join("events").join(event.file_name()))?;
        }
        let manifest = std::fs::read_to_string(example.join("function.toml"))?;
        let numbered = manifest.lines().map(|line| match line.starts_with("version") {
            true => format!("version = \"1.0.{version}\""),
            false => line.to_owned(),
        });
        std::fs::write(bundle.join("function.toml"), numbered.collect::<Vec<_>>().join("\n"))?;
        let component = std::fs::read(example.join("fahrenheit.wasm"))?;
        std::fs::write(bundle.join("fahrenheit.wasm"), grown(component, version))?;
        self.plane.tell(&["publish", "fahrenheit", "--alias", "live"]).map(drop)
    }

    /// Milliseconds from the order to deploy to the first event that the new version has handled.
    async fn push(&self, version: u32) -> anyhow::Result<f64> {
        self.publish(version)?;
        let clock = Clock::system();
        let begun = clock.instant();
        self.plane.deploy(DEPLOYMENT, &[])?;
        let function = format!("fahrenheit:1.0.{version}");
        let event = e2e::example("fahrenheit").join("events/reading.json").display().to_string();
        let serves = || self.gateway.tell(&["invoke", &function, "--event", &event]).is_ok();
        e2e::until("the new version", async || serves()).await?;
        Ok((clock.instant() - begun).as_secs_f64() * 1e3)
    }
}

fn config(broker: &Mosquitto, sections: &str) -> String {
    format!("[mqtt.local]\nurl = \"{}\"\n{sections}", broker.url())
}

/// The component with a section at its end that no other has: by it the digest is new, and the bundle as large as it should be.
fn grown(mut component: Vec<u8>, seed: u32) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    let padding = FUNCTION_BYTES.saturating_sub(component.len()).max(64);
    let content: Vec<u8> =
        [b"\x03pad".as_slice(), &std::iter::repeat_with(&mut noise).take(padding).collect::<Vec<_>>()].concat();
    component.push(0);
    // LEB128.
    let mut length = content.len();
    loop {
        let [low, ..] = (length & 0x7f).to_le_bytes();
        length >>= 7;
        component.push(if length > 0 { low | 0x80 } else { low });
        if length == 0 {
            break;
        }
    }
    component.extend(content);
    component
}

pub(crate) async fn measure(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let mut fleet = Fleet::start(Agent::prepare("")?).await?;
    fleet.push(0).await.context("the first version")?;
    let mut pushes = Vec::new();
    for version in 1..=u32::try_from(options.rounds())? {
        // What comes while the last one is still watched would be another matter.
        tokio::time::sleep(Duration::from_secs(2)).await;
        pushes.push(fleet.push(version).await?);
    }

    // The same gateway, which nobody manages.
    let bundle: PathBuf = fleet.plane.laptop().join("fahrenheit");
    let function = format!(
        "[[function]]\nname = \"fahrenheit\"\nbundle = \"{}\"\ncapabilities = [\"mqtt:publish:results/#\"]\n",
        bundle.display()
    );
    let mut alone = Agent::prepare(&config(&fleet.broker, &function))?;
    alone.resume().await?;
    // Both anew, with compiled code at hand.
    for gateway in [&mut alone, &mut fleet.gateway] {
        gateway.stop()?;
        gateway.resume().await?;
    }
    tokio::time::sleep(SETTLE).await;
    let idle = Duration::from_secs(if options.quick { 10 } else { 120 });
    let before = fleet.wire.bytes.load(Ordering::Relaxed);
    // What it holds goes up and down with each poll.
    let mut memory = Vec::new();
    for _ in 0..SAMPLES {
        tokio::time::sleep(idle / SAMPLES).await;
        let of = |gateway: &Agent| pss_mib(gateway.pid().context("a gateway has ended")?);
        memory.push((of(&fleet.gateway)?, of(&alone)?));
    }
    let bytes = (fleet.wire.bytes.load(Ordering::Relaxed) - before) as f64;
    let mut figures = vec![
        Figure::alone("fleet-1", "push of a function of 100 KiB until it serves events", "ms", pushes)
            .with(Target::AtMost(1_000.0)),
        Figure::alone(
            "fleet-2",
            "being managed, idle: on the wire",
            "bytes/min",
            vec![bytes / idle.as_secs_f64() * 60.0],
        )
        .with(Target::AtMost(1_024.0)),
        Figure::beside("fleet-3", "being managed, idle: memory (PSS)", "MiB", memory, "not managed")
            .with(Target::MoreAtMost(1.0)),
    ];
    figures.extend(flash(options).await?);
    Ok(figures)
}

/// What a deployment costs in flash, from the order until the version before it is cleared away.
async fn flash(options: &Options) -> anyhow::Result<Option<Figure>> {
    if !Disk::can_be_made("fleet-4") {
        return Ok(None);
    }
    let gateway = Agent::prepare("")?;
    let disk = Disk::make(Some(gateway.folder().join("state")))?;
    let mut fleet = Fleet::start(gateway).await?;
    let mut written = Vec::new();
    for version in 0..=u32::try_from(options.rounds())? {
        tokio::time::sleep(SETTLE).await;
        disk.settle()?;
        let before = disk.written_bytes()?;
        fleet.push(version).await?;
        tokio::time::sleep(SETTLE).await;
        disk.settle()?;
        written.push((disk.written_bytes()? - before) as f64 / 1024.0);
    }
    // The first one makes the function itself.
    written.remove(0);
    fleet.gateway.stop()?;
    drop(disk);
    let what = "bytes at the block device per deployment of a function of 100 KiB";
    Ok(Some(Figure::alone("fleet-4", what, "KiB", written).with(Target::AtMost(1_024.0))))
}
