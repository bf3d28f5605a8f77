//! The connection to a device, or to the line that it hangs at: one request after the other.

use std::io::ErrorKind;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_modbus::client::{Client as _, Context, rtu, tcp};
use tokio_modbus::slave::{Slave, SlaveContext as _};
use tokio_modbus::{Error, ExceptionCode, Request, Response};

use super::{Link, ModbusSource, Place};
use crate::clock::Clock;
use crate::trigger::port::PortConfig;

/// What separates frames of a serial line, at the least.
const SILENCE_MIN: Duration = Duration::from_micros(1_750);

/// What was read.
#[derive(Debug)]
pub(super) enum Answer {
    Words(Vec<u16>),
    Bits(Vec<bool>),
}

/// Why something was not done, as far as is known.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The device says so, and goes on.
    #[error("{}", named(.0))]
    Exception(ExceptionCode),
    /// The other side has ended the connection, perhaps long ago.
    #[error("the connection was closed")]
    Closed,
    /// It did not answer, or what came means nothing: what comes next may belong to the past.
    #[error("{0}")]
    Broken(String),
    /// There is no connection.
    #[error("{0}")]
    Away(String),
}

impl Failure {
    /// Whether the device says so each time: it has no such function or address. A value that it does not take now, as many say while a drive
    /// runs or a panel is locked, it may take later.
    pub(super) const fn is_for_good(&self) -> bool {
        matches!(self, Self::Exception(ExceptionCode::IllegalFunction | ExceptionCode::IllegalDataAddress))
    }
}

/// The way to a device, for all that want something of it: one after the other, over one connection that is made when it is needed.
pub(super) struct Access<'a> {
    pub(super) source: &'a ModbusSource,
    clock: &'a Clock,
    line: Mutex<Option<Line>>,
}

impl<'a> Access<'a> {
    pub(super) fn new(source: &'a ModbusSource, clock: &'a Clock) -> Self {
        Self { source, clock, line: Mutex::new(None) }
    }

    /// Reads `count` registers or bits of a unit.
    ///
    /// # Errors
    /// With why there are none.
    pub(super) async fn read(&self, unit_id: u8, from: Place, count: u16) -> Result<Answer, Failure> {
        let request = match from {
            Place::Holding(address) => Request::ReadHoldingRegisters(address, count),
            Place::Input(address) => Request::ReadInputRegisters(address, count),
            Place::Coil(address) => Request::ReadCoils(address, count),
            Place::Discrete(address) => Request::ReadDiscreteInputs(address, count),
        };
        let count = usize::from(count);
        let take = |answer| match answer {
            Response::ReadHoldingRegisters(words) | Response::ReadInputRegisters(words) if words.len() == count => {
                Some(Answer::Words(words))
            }
            // Filled up to whole bytes.
            Response::ReadCoils(bits) | Response::ReadDiscreteInputs(bits)
                if bits.len() == count.next_multiple_of(8) =>
            {
                Some(Answer::Bits(bits))
            }
            _ => None,
        };
        self.call(unit_id, &request, take).await
    }

    /// Sets registers of a unit.
    ///
    /// # Errors
    /// With why they are perhaps not set.
    pub(super) async fn write_registers(&self, unit_id: u8, address: u16, words: Vec<u16>) -> Result<(), Failure> {
        let count = words.len();
        let (request, word) = match words[..] {
            [word] => (Request::WriteSingleRegister(address, word), word),
            _ => (Request::WriteMultipleRegisters(address, words.into()), 0),
        };
        let take = |answer| match answer {
            Response::WriteSingleRegister(set, to) => (count == 1 && set == address && to == word).then_some(()),
            Response::WriteMultipleRegisters(set, of) => (usize::from(of) == count && set == address).then_some(()),
            _ => None,
        };
        self.call(unit_id, &request, take).await
    }

    /// Sets a coil of a unit.
    ///
    /// # Errors
    /// With why it is perhaps not set.
    pub(super) async fn write_coil(&self, unit_id: u8, address: u16, on: bool) -> Result<(), Failure> {
        let take = |answer| match answer {
            Response::WriteSingleCoil(set, to) => (set == address && to == on).then_some(()),
            _ => None,
        };
        self.call(unit_id, &Request::WriteSingleCoil(address, on), take).await
    }

    /// `take` has what it wants of the answer to `request`, or finds that it is the answer to something else.
    async fn call<T>(
        &self,
        unit_id: u8,
        request: &Request<'static>,
        take: impl FnOnce(Response) -> Option<T>,
    ) -> Result<T, Failure> {
        let mut line = self.line.lock().await;
        let mut answer = self.once(&mut line, unit_id, request).await;
        if matches!(answer, Err(Failure::Closed)) {
            // Many devices close a connection that nobody used for a while.
            *line = None;
            answer = self.once(&mut line, unit_id, request).await;
        }
        let answer = answer.and_then(|answer| {
            take(answer).ok_or_else(|| Failure::Broken("it answers something else than was asked".to_owned()))
        });
        if matches!(answer, Err(Failure::Closed | Failure::Broken(_))) {
            // What comes late must not be taken for the answer to something else.
            *line = None;
        }
        answer
    }

    async fn once(
        &self,
        line: &mut Option<Line>,
        unit_id: u8,
        request: &Request<'static>,
    ) -> Result<Response, Failure> {
        let patience = self.source.timeout.0;
        let line = match line {
            Some(line) => line,
            None => {
                let opened = Line::open(&self.source.link, patience, self.clock).await;
                line.insert(opened.map_err(Failure::Away)?)
            }
        };
        line.call(unit_id, request.clone(), patience).await
    }
}

/// A connection that is there.
struct Line {
    context: Context,
    clock: Clock,
    /// Between frames.
    silence: Duration,
    free_at: Instant,
}

impl Line {
    async fn open(link: &Link, patience: Duration, clock: &Clock) -> Result<Self, String> {
        let unreachable = |why: String| format!("`{link}` cannot be reached: {why}");
        let (context, silence) = match link {
            Link::Tcp(address) => {
                let connected = timeout(patience, TcpStream::connect(address)).await;
                let stream = connected.map_err(|_| unreachable("it does not answer".to_owned()))?;
                let stream = stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
                (tcp::attach(stream.map_err(|error| unreachable(error.to_string()))?), Duration::ZERO)
            }
            Link::Rtu(port) => {
                let opened = port.open()?;
                // Nobody was asked yet.
                opened.discard_input_buffer().map_err(|error| unreachable(error.to_string()))?;
                (rtu::attach(opened), silence(port))
            }
        };
        Ok(Self { context, clock: clock.clone(), silence, free_at: clock.instant() })
    }

    async fn call(&mut self, unit_id: u8, request: Request<'_>, patience: Duration) -> Result<Response, Failure> {
        if !self.silence.is_zero() {
            sleep_until(self.free_at).await;
        }
        self.context.set_slave(Slave(unit_id));
        let answer = timeout(patience, self.context.call(request)).await;
        self.free_at = self.clock.instant() + self.silence;
        match answer {
            Ok(Ok(Ok(response))) => Ok(response),
            Ok(Ok(Err(exception))) => Err(Failure::Exception(exception)),
            Ok(Err(error)) => Err(failure(error)),
            Err(_) => Err(Failure::Broken(format!("it did not answer within {patience:?}"))),
        }
    }
}

/// As troubles call it.
impl std::fmt::Display for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Rtu(port) => write!(f, "{}", port.device.display()),
        }
    }
}

/// Three and a half characters of 11 bits, as the protocol wants between frames.
fn silence(port: &PortConfig) -> Duration {
    Duration::from_secs_f64(3.5 * 11.0 / f64::from(port.baud)).max(SILENCE_MIN)
}

/// As the protocol calls it.
fn named(exception: &ExceptionCode) -> String {
    let name = match exception {
        ExceptionCode::IllegalFunction => "illegal function",
        ExceptionCode::IllegalDataAddress => "illegal data address",
        ExceptionCode::IllegalDataValue => "illegal data value",
        ExceptionCode::ServerDeviceFailure => "server device failure",
        ExceptionCode::Acknowledge => "acknowledge",
        ExceptionCode::ServerDeviceBusy => "server device busy",
        ExceptionCode::MemoryParityError => "memory parity error",
        ExceptionCode::GatewayPathUnavailable => "gateway path unavailable",
        ExceptionCode::GatewayTargetDevice => "gateway target device failed to respond",
        ExceptionCode::Custom(code) => return format!("exception {code}"),
    };
    name.to_owned()
}

fn failure(error: Error) -> Failure {
    match error {
        Error::Protocol(_) => Failure::Broken("what came is no answer to what was asked".to_owned()),
        Error::Transport(error) => match error.kind() {
            ErrorKind::InvalidData | ErrorKind::InvalidInput => {
                Failure::Broken(format!("what came is not Modbus: {error}"))
            }
            // The library tells of an end by whichever error happened last.
            _ => Failure::Closed,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_device_never_has_is_refused_for_good() {
        for code in 1..=11 {
            let failure = Failure::Exception(ExceptionCode::new(code));
            assert_eq!(failure.is_for_good(), code <= 2, "{failure}");
        }
        assert!(!Failure::Closed.is_for_good());
    }
}
