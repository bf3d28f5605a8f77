//! A line to a server on which goes wrong what does in the field, whatever is spoken on it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How the line is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weather {
    /// As a good one.
    #[default]
    Fair,
    /// What is connected ends, and nobody can connect.
    Cut,
    /// Each piece takes this much longer.
    Slow(Duration),
    /// Who sends sees its connection end; what it has sent arrives all the same, so much later, behind what it sends anew meanwhile.
    Late(Duration),
}

/// Most that is passed on at once.
const PIECE_BYTES: usize = 64 << 10;
/// A request is whole when nothing more of it comes for so long.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a server may take with what came late.
const LATE_ANSWER: Duration = Duration::from_secs(2);

/// A forwarder on a free port. Dropping it cuts the line for good.
#[derive(Debug)]
pub struct Line {
    address: SocketAddr,
    weather: watch::Sender<Weather>,
    task: JoinHandle<()>,
}

impl Line {
    /// To a server on this machine.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn to(server: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (weather, now) = watch::channel(Weather::Fair);
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                if *now.borrow() != Weather::Cut {
                    tokio::spawn(carry(near, server, now.clone()));
                }
            }
        });
        Ok(Self { address, weather, task })
    }

    /// Where the server is found.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on it is so.
    pub fn becomes(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.becomes(Weather::Cut);
        self.task.abort();
    }
}

async fn carry(near: TcpStream, server: SocketAddr, weather: watch::Receiver<Weather>) {
    let Ok(far) = TcpStream::connect(server).await else { return };
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let (near_in, near_out) = near.into_split();
    let (far_in, far_out) = far.into_split();
    let back = tokio::spawn(pass(far_in, near_out, weather.clone()));
    let mut cut = weather.clone();
    let late = tokio::select! {
        late = there(near_in, far_out, weather) => late,
        _ = cut.wait_for(|weather| *weather == Weather::Cut) => None,
    };
    back.abort();
    // Both halves of the near side are gone then.
    let _ = back.await;
    if let Some(Late { piece, mut to, by }) = late {
        tokio::time::sleep(by).await;
        let _ = to.write_all(&piece).await;
        tokio::time::sleep(LATE_ANSWER).await;
    }
}

/// What goes on alone.
struct Late {
    piece: Vec<u8>,
    to: OwnedWriteHalf,
    by: Duration,
}

/// Passes on what is sent to the server, until either side ends or the rest is to come late.
async fn there(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, weather: watch::Receiver<Weather>) -> Option<Late> {
    let mut piece = Vec::with_capacity(PIECE_BYTES);
    loop {
        piece.clear();
        from.read_buf(&mut piece).await.ok().filter(|bytes| *bytes > 0)?;
        let now = *weather.borrow();
        match now {
            Weather::Fair | Weather::Cut => {}
            Weather::Slow(by) => tokio::time::sleep(by).await,
            Weather::Late(by) => {
                while let Ok(Ok(1..)) = tokio::time::timeout(PAUSE, from.read_buf(&mut piece)).await {}
                return Some(Late { piece, to, by });
            }
        }
        to.write_all(&piece).await.ok()?;
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, weather: watch::Receiver<Weather>) {
    let mut piece = vec![0; PIECE_BYTES];
    while let Ok(bytes @ 1..) = from.read(&mut piece).await {
        let now = *weather.borrow();
        if let Weather::Slow(by) = now {
            tokio::time::sleep(by).await;
        }
        if to.write_all(&piece[..bytes]).await.is_err() {
            return;
        }
    }
}
