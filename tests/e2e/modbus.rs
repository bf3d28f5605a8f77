//! Devices that speak Modbus: a server of the library's own, over TCP and at a serial line.

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Ready, ready};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use e2e::{Guest, Site};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_modbus::server::{Service, rtu_over_tcp, tcp};
use tokio_modbus::{ExceptionCode, Request, Response, SlaveRequest};

use super::field::{BAUD, Port};
use super::sources::{hears, source};

const GUIDE: &str = include_str!("../../docs/guides/modbus.md");

/// What a device has, and what it was asked.
#[derive(Debug, Default)]
pub(super) struct State {
    /// By the key of the config.
    pub(super) words: BTreeMap<(&'static str, u16), u16>,
    bits: BTreeMap<(&'static str, u16), bool>,
    /// Units that do not answer.
    silent: BTreeSet<u8>,
    /// Whether nothing can be written now.
    pub(super) busy: bool,
    pub(super) asked: Vec<String>,
}

/// A device that the test can change while it is asked.
#[derive(Clone, Debug, Default)]
pub(super) struct Plc(Arc<Mutex<State>>);

impl Plc {
    pub(super) fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One with `words` from `address` on.
    pub(super) fn with(self, place: &'static str, address: u16, words: &[u16]) -> Self {
        self.state().words.extend((address..).zip(words).map(|(address, word)| ((place, address), *word)));
        self
    }

    pub(super) fn with_bit(self, place: &'static str, address: u16, bit: bool) -> Self {
        self.state().bits.insert((place, address), bit);
        self
    }

    /// Waits until it was asked so often again.
    async fn is_asked(&self, times: usize) -> anyhow::Result<()> {
        let before = self.state().asked.len();
        e2e::until("the device to be asked", async || self.state().asked.len() >= before + times).await
    }
}

fn all<T: Copy>(
    of: &BTreeMap<(&'static str, u16), T>,
    place: &'static str,
    address: u16,
    count: u16,
) -> Result<Vec<T>, ExceptionCode> {
    let each = (address..address + count).map(|address| of.get(&(place, address)).copied());
    each.collect::<Option<_>>().ok_or(ExceptionCode::IllegalDataAddress)
}

fn set<T: Copy>(
    of: &mut BTreeMap<(&'static str, u16), T>,
    place: &'static str,
    address: u16,
    values: &[T],
) -> Result<(), ExceptionCode> {
    for (address, value) in (address..).zip(values) {
        *of.get_mut(&(place, address)).ok_or(ExceptionCode::IllegalDataAddress)? = *value;
    }
    Ok(())
}

impl Service for Plc {
    type Request = SlaveRequest<'static>;
    type Response = Option<Response>;
    type Exception = ExceptionCode;
    type Future = Ready<Result<Option<Response>, ExceptionCode>>;

    fn call(&self, SlaveRequest { slave, request }: Self::Request) -> Self::Future {
        use Request::{
            ReadCoils, ReadDiscreteInputs, ReadHoldingRegisters, ReadInputRegisters, WriteMultipleRegisters,
            WriteSingleCoil, WriteSingleRegister,
        };
        let mut state = self.state();
        state.asked.push(format!("{slave}: {request:?}"));
        if state.silent.contains(&slave) {
            return ready(Ok(None));
        }
        let answer = match request {
            ReadHoldingRegisters(address, count) => {
                all(&state.words, "holding", address, count).map(Response::ReadHoldingRegisters)
            }
            ReadInputRegisters(address, count) => {
                all(&state.words, "input", address, count).map(Response::ReadInputRegisters)
            }
            ReadCoils(address, count) => all(&state.bits, "coil", address, count).map(Response::ReadCoils),
            ReadDiscreteInputs(address, count) => {
                all(&state.bits, "discrete", address, count).map(Response::ReadDiscreteInputs)
            }
            WriteMultipleRegisters(..) | WriteSingleRegister(..) if state.busy => Err(ExceptionCode::ServerDeviceBusy),
            WriteSingleRegister(address, word) => set(&mut state.words, "holding", address, &[word])
                .map(|()| Response::WriteSingleRegister(address, word)),
            WriteMultipleRegisters(address, words) => set(&mut state.words, "holding", address, &words)
                .map(|()| Response::WriteMultipleRegisters(address, u16::try_from(words.len()).unwrap_or(0))),
            WriteSingleCoil(address, on) => {
                set(&mut state.bits, "coil", address, &[on]).map(|()| Response::WriteSingleCoil(address, on))
            }
            _ => Err(ExceptionCode::IllegalFunction),
        };
        ready(answer.map(Some))
    }
}

/// A server of the library. Ends with this value.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// One that speaks TCP, at `port` or any.
    pub(super) async fn tcp(plc: &Plc, port: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let (address, plc) = (listener.local_addr()?, plc.clone());
        let task = tokio::spawn(async move {
            let accept = |stream, address| {
                let plc = plc.clone();
                async move { tcp::accept_tcp_connection(stream, address, |_| Ok(Some(plc.clone()))) }
            };
            // It ends with the test.
            let _ = tcp::Server::new(listener).serve(&accept, |_| {}).await;
        });
        Ok(Self { address, task })
    }

    /// One at the other end of `port`, which carries what the line does.
    async fn rtu(plc: &Plc, port: &Port) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, plc) = (listener.local_addr()?, plc.clone());
        let task = tokio::spawn(async move {
            let accept = |stream, address| {
                let plc = plc.clone();
                async move { rtu_over_tcp::accept_tcp_connection(stream, address, |_| Ok(Some(plc.clone()))) }
            };
            // It ends with the test.
            let _ = rtu_over_tcp::Server::new(listener).serve(&accept, |_| {}).await;
        });
        let carrier = TcpStream::connect(address).await?.into_std()?;
        carrier.set_nonblocking(false)?;
        carrier.set_nodelay(true)?;
        carry(carrier, port.device()?.try_clone()?)?;
        Ok(Self { address, task })
    }
}

/// Carries bytes both ways, until the server is gone.
fn carry(mut server: std::net::TcpStream, mut line: serial2::SerialPort) -> anyhow::Result<()> {
    let (mut answers, device) = (server.try_clone()?, line.try_clone()?);
    line.set_read_timeout(Duration::from_millis(100))?;
    let (ended, has_ended) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        let mut chunk = [0; 256];
        while has_ended.try_recv() != Err(std::sync::mpsc::TryRecvError::Disconnected) {
            match line.read(&mut chunk) {
                Ok(bytes) if server.write_all(&chunk[..bytes]).is_ok() => {}
                Err(error) if error.kind() == ErrorKind::TimedOut => {}
                // Nobody has the other end open.
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
                Ok(_) => break,
            }
        }
    });
    std::thread::spawn(move || {
        let mut chunk = [0; 256];
        while let Ok(bytes @ 1..) = answers.read(&mut chunk) {
            // A line that nobody listens at loses it.
            let _ = device.write_all(&chunk[..bytes]);
        }
        drop(ended);
    });
    Ok(())
}

/// `bytes` as they are at a serial line: with their checksum.
pub(super) fn frame(bytes: &[u8]) -> Vec<u8> {
    let bit = |crc: u16| if crc & 1 == 1 { (crc >> 1) ^ 0xA001 } else { crc >> 1 };
    let crc = bytes.iter().fold(0xFFFF, |crc, byte| (0..8).fold(crc ^ u16::from(*byte), |crc, _| bit(crc)));
    [bytes, &crc.to_le_bytes()].concat()
}

/// Has whatever hangs at `port` give the answers of `answer` to requests of eight bytes, until what comes back is dropped.
pub(super) fn answers(
    port: &Port,
    mut answer: impl FnMut(&[u8]) -> Vec<u8> + Send + 'static,
) -> anyhow::Result<std::sync::mpsc::Sender<()>> {
    let mut line = port.device()?.try_clone()?;
    line.set_read_timeout(Duration::from_millis(100))?;
    let (ends, has_ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (mut request, mut chunk) = (Vec::new(), [0; 8]);
        while has_ended.try_recv() != Err(std::sync::mpsc::TryRecvError::Disconnected) {
            match line.read(&mut chunk[request.len()..]) {
                Ok(bytes) => request.extend(chunk[request.len()..][..bytes].to_vec()),
                Err(error) if error.kind() == ErrorKind::TimedOut => {}
                // Nobody has the other end open.
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
            if request.len() == chunk.len() {
                let _ = line.write_all(&answer(&request));
                request.clear();
            }
        }
    });
    Ok(ends)
}

/// The next values that were told.
async fn next(site: &Site) -> anyhow::Result<Value> {
    let message = site.device.next().await.with_context(|| site.agent.log())?;
    Ok(serde_json::from_slice(&message.payload)?)
}

/// Waits until these are told.
async fn until_told(site: &Site, values: &Value) -> anyhow::Result<()> {
    while next(site).await? != *values {}
    Ok(())
}

/// Waits until the trouble of `plc` says so.
async fn until_trouble(site: &Site, says: &str) -> anyhow::Result<()> {
    let trouble = || site.agent.status().map(|status| source(&status, "plc")["trouble"].to_string());
    let has_come = async || trouble().is_ok_and(|trouble| trouble.contains(says));
    e2e::until("a trouble", has_come).await.with_context(|| format!("{says}: {}", site.agent.log()))
}

/// A source `plc` with `keys`, asked often, and a function that tells what it says.
async fn site(keys: &str) -> anyhow::Result<Site> {
    let every = if keys.contains("every") { "" } else { "every = \"50ms\"\n" };
    let hears = hears("tell", "modbus", "plc", "mqtt:publish:results/#");
    let config = format!("[source.plc.modbus]\n{every}{keys}\n{hears}");
    Site::with_guests(&config, &[("tell", Guest::forward("results/values"))]).await
}

/// With the config of the guide; the registers by hand: -125 is 0xFF83, 20.5 in binary32 0x41A40000, `P` 0x50.
#[tokio::test]
async fn registers_come_typed_scaled_and_with_their_neighbours() -> anyhow::Result<()> {
    let plc = Plc::default()
        .with("input", 0, &[0xFF83])
        .with("holding", 100, &[0x41A4, 0x0000, 0x1234, 0x5678, 0x502D, 0x3137, 0x0000, 0x0000])
        .with_bit("coil", 0, true)
        .with_bit("discrete", 3, false);
    let server = Server::tcp(&plc, 0).await?;
    let config = GUIDE.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap_or_default();
    let config = config.replace("192.168.1.20:502", &server.address.to_string()).replace("\"1s\"", "\"100ms\"");
    let site = Site::with_guests(&config, &[("functions/watch", Guest::forward("results/press"))]).await?;
    let expected = json!({
        "temperature": { "value": -12.5, "unit": "°C" },
        "pressure": { "value": 20.5, "unit": "bar" },
        "strokes": { "value": 305_419_896 },
        "program": { "value": "P-17" },
        "running": { "value": true },
        "door": { "value": false },
    });
    assert_eq!(next(&site).await?, expected);
    assert_eq!(next(&site).await?, expected, "each poll is an event");
    let asked: BTreeSet<String> = plc.state().asked.iter().cloned().collect();
    let requests =
        ["ReadCoils(0, 1)", "ReadDiscreteInputs(3, 1)", "ReadHoldingRegisters(100, 8)", "ReadInputRegisters(0, 1)"];
    assert_eq!(asked, requests.map(|request| format!("1: {request}")).into());
    Ok(())
}

#[tokio::test]
async fn only_what_has_changed_by_more_than_its_deadband_is_told() -> anyhow::Result<()> {
    let plc = Plc::default().with("holding", 0, &[200, 0x0001, 0x0000]);
    let server = Server::tcp(&plc, 0).await?;
    let keys = format!(
        "tcp = \"{}\"\nwhen = \"change\"\nword_order = \"little\"\nregisters = [\n\
         {{ name = \"celsius\", holding = 0, scale = 0.1, deadband = 0.5 }},\n{{ name = \"count\", holding = 1, type = \"u32\" }}]",
        server.address
    );
    let site = site(&keys).await?;
    let values = |celsius: f64, count: u32| json!({ "celsius": { "value": celsius }, "count": { "value": count } });
    assert_eq!(next(&site).await?, values(20.0, 1), "the first is told");
    for (words, told) in [
        ([204, 1], None),
        ([206, 1], Some(values(20.6, 1))),
        ([202, 1], None),
        ([202, 2], Some(values(20.2, 2))),
        ([206, 2], None),
        ([208, 2], Some(values(20.8, 2))),
    ] {
        let events = source(&site.agent.status()?, "plc")["events"].clone();
        plc.clone().with("holding", 0, &words);
        if let Some(told) = told {
            assert_eq!(next(&site).await?, told);
        } else {
            plc.is_asked(4).await?;
            assert_eq!(source(&site.agent.status()?, "plc")["events"], events, "{words:?} is not told");
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_exception_costs_its_own_registers_only() -> anyhow::Result<()> {
    let plc = Plc::default().with("holding", 7, &[42]);
    let server = Server::tcp(&plc, 0).await?;
    let keys = format!(
        "tcp = \"{}\"\nregisters = [{{ name = \"bad\", holding = 0, type = \"u64\" }}, {{ name = \"good\", holding = 7 }}]",
        server.address
    );
    let site = site(&keys).await?;
    for _ in 0..3 {
        assert_eq!(next(&site).await?, json!({ "good": { "value": 42 } }));
    }
    until_trouble(&site, "holding 0 to 3 of unit 1: illegal data address").await?;
    assert_eq!(site.agent.log().matches("illegal data address").count(), 1, "logged once a minute");
    plc.clone().with("holding", 0, &[0, 0, 0, 5]);
    until_told(&site, &json!({ "bad": { "value": 5 }, "good": { "value": 42 } })).await?;
    let status = site.agent.status()?;
    assert!(source(&status, "plc")["trouble"].is_null(), "{status}");
    assert!(source(&status, "plc")["troubles"].as_u64() >= Some(3), "{status}");
    Ok(())
}

/// It stalls, it goes, something else takes its port and says garbage without end: each time it is found again.
#[tokio::test]
async fn a_device_that_stalls_goes_or_says_garbage_is_found_again() -> anyhow::Result<()> {
    let plc = Plc::default().with("input", 0, &[1]);
    let server = Server::tcp(&plc, 0).await?;
    let port = server.address.port();
    let keys =
        format!("tcp = \"{}\"\ntimeout = \"200ms\"\nregisters = [{{ name = \"x\", input = 0 }}]", server.address);
    let site = site(&keys).await?;
    let value = |x: u16| json!({ "x": { "value": x } });
    until_told(&site, &value(1)).await?;

    plc.state().silent.insert(1);
    until_trouble(&site, "input 0 of unit 1: it did not answer within 200ms").await?;
    plc.state().silent.clear();
    plc.clone().with("input", 0, &[2]);
    until_told(&site, &value(2)).await?;

    drop(server);
    until_trouble(&site, "cannot be reached").await?;

    let garbage = TcpListener::bind(("127.0.0.1", port)).await?;
    let babble = tokio::spawn(async move {
        while let Ok((stream, _)) = garbage.accept().await {
            let noise = vec![0xA5; 64 << 10];
            while stream.writable().await.is_ok() {
                match stream.try_write(&noise) {
                    Err(error) if error.kind() != ErrorKind::WouldBlock => break,
                    _ => {}
                }
            }
        }
    });
    until_trouble(&site, "what came is not Modbus").await?;
    babble.abort();
    // Its socket goes with it.
    let _ = babble.await;

    plc.clone().with("input", 0, &[3]);
    let _server = Server::tcp(&plc, port).await?;
    until_told(&site, &value(3)).await?;
    until_trouble(&site, "null").await?;
    let told = site.agent.log().lines().filter(|line| line.contains("modbus")).count();
    assert!(told <= 4, "troubles are logged once a minute: {}", site.agent.log());
    Ok(())
}

/// Of two units at one line the other does not answer; and there is noise.
#[tokio::test]
async fn units_at_a_serial_line_are_asked_one_after_the_other() -> anyhow::Result<()> {
    let port = Port::new()?;
    let plc = Plc::default().with("holding", 0, &[7]).with_bit("coil", 0, true);
    plc.state().silent.insert(9);
    let _server = Server::rtu(&plc, &port).await?;
    let keys = format!(
        "every = \"200ms\"\nrtu = {{ device = {:?}, baud = {BAUD} }}\nunit_id = 3\ntimeout = \"2s\"\nregisters = [\
         {{ name = \"x\", holding = 0 }}, {{ name = \"on\", coil = 0 }}, {{ name = \"far\", holding = 0, unit_id = 9 }}]",
        port.path()
    );
    let site = site(&keys).await?;
    let value = |x: u16| json!({ "x": { "value": x }, "on": { "value": true } });
    until_told(&site, &value(7)).await?;
    until_trouble(&site, "holding 0 of unit 9: it did not answer within 2s").await?;

    // What it said before it was asked.
    port.say(b"\xff\x55\xaa noise").await?;
    plc.clone().with("holding", 0, &[8]);
    until_told(&site, &value(8)).await?;
    port.say(&[0xA5; 1_000]).await?;
    plc.clone().with("holding", 0, &[9]);
    until_told(&site, &value(9)).await?;

    plc.state().silent.clear();
    until_told(&site, &json!({ "x": { "value": 9 }, "on": { "value": true }, "far": { "value": 9 } })).await?;
    assert!(!site.agent.log().contains("tokio_modbus"), "its source tells of noise: {}", site.agent.log());
    Ok(())
}

/// Whatever is asked, what comes is the answer to the first request.
#[tokio::test]
async fn an_answer_of_another_unit_or_to_another_request_is_not_taken() -> anyhow::Result<()> {
    let port = Port::new()?;
    let _device = answers(&port, |_| frame(&[3, 3, 2, 0, 7]))?;
    let keys = format!(
        "rtu = {{ device = {:?}, baud = {BAUD} }}\nunit_id = 3\ntimeout = \"10s\"\nregisters = [\
         {{ name = \"x\", holding = 0 }}, {{ name = \"wide\", holding = 100, type = \"u32\" }}, {{ name = \"far\", holding = 0, unit_id = 9 }}]",
        port.path()
    );
    let site = site(&keys).await?;
    for _ in 0..2 {
        assert_eq!(next(&site).await?, json!({ "x": { "value": 7 } }));
    }
    let log = site.agent.log();
    assert!(log.contains("holding 100 to 101 of unit 3: it answers something else than was asked"), "{log}");
    assert!(source(&site.agent.status()?, "plc")["troubles"].as_u64() >= Some(2), "{log}");
    Ok(())
}
