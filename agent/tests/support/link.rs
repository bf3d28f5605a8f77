//! A link to a broker that can be down, or end exactly before or after a given packet.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

/// Types of packets, by the upper half of their first byte.
pub const CONNECT: u8 = 1;
pub const PUBLISH: u8 = 3;
pub const PUBACK: u8 = 4;
pub const PUBREC: u8 = 5;
pub const PUBREL: u8 = 6;
pub const PUBCOMP: u8 = 7;
pub const SUBSCRIBE: u8 = 8;
pub const UNSUBSCRIBE: u8 = 10;

/// Where the link ends next: upon a packet of this type, in either direction, after it was let through or before.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    Before(u8),
    After(u8),
}

#[derive(Default)]
struct State {
    down: bool,
    stalled: bool,
    cut: Option<Cut>,
    /// Types of the packets that the client sent.
    sent: Vec<u8>,
    connections: CancellationToken,
}

pub struct CutLink {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    accept: AbortHandle,
}

impl CutLink {
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let accept = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (down, token) = {
                    let state = shared.lock().unwrap();
                    (state.down, state.connections.clone())
                };
                if !down {
                    tokio::spawn(serve(client, port, Arc::clone(&shared), token));
                }
            }
        });
        Self { address, state, accept: accept.abort_handle() }
    }

    pub fn url(&self) -> String {
        format!("mqtt://{}", self.address)
    }

    /// Ends upon the next packet like this.
    pub fn cut(&self, cut: Cut) {
        self.state.lock().unwrap().cut = Some(cut);
    }

    /// Whether the cut is still to come.
    pub fn is_armed(&self) -> bool {
        self.state.lock().unwrap().cut.is_some()
    }

    /// Ends all connections, and lets none through.
    pub fn down(&self) {
        let mut state = self.state.lock().unwrap();
        state.down = true;
        std::mem::take(&mut state.connections).cancel();
    }

    pub fn up(&self) {
        self.state.lock().unwrap().down = false;
    }

    /// Lets nothing through, and says nothing of it.
    pub fn stall(&self) {
        self.state.lock().unwrap().stalled = true;
    }

    /// Lets connections through that are made from now on; those that were stalled stay so.
    pub fn flow(&self) {
        self.state.lock().unwrap().stalled = false;
    }

    /// How many packets of a type the client has sent.
    pub fn sent(&self, kind: u8) -> usize {
        self.state.lock().unwrap().sent.iter().filter(|sent| **sent == kind).count()
    }
}

impl Drop for CutLink {
    fn drop(&mut self) {
        self.accept.abort();
        self.down();
    }
}

async fn serve(client: TcpStream, port: u16, state: Arc<Mutex<State>>, token: CancellationToken) {
    let Ok(broker) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    client.set_nodelay(true).unwrap();
    broker.set_nodelay(true).unwrap();
    let (from_client, to_client) = client.into_split();
    let (from_broker, to_broker) = broker.into_split();
    // When one of them ends both sockets are closed.
    tokio::select! {
        _ = pump(from_client, to_broker, &state, true) => {}
        _ = pump(from_broker, to_client, &state, false) => {}
        () = token.cancelled() => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    state: &Mutex<State>,
    is_client: bool,
) -> io::Result<()> {
    loop {
        let mut packet = vec![from.read_u8().await?];
        let mut len = 0;
        for shift in [0, 7, 14, 21] {
            let byte = from.read_u8().await?;
            packet.push(byte);
            len |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let start = packet.len();
        packet.resize(start + len, 0);
        from.read_exact(&mut packet[start..]).await?;
        let kind = packet[0] >> 4;
        if state.lock().unwrap().stalled {
            return std::future::pending().await;
        }
        let cut = {
            let mut state = state.lock().unwrap();
            if is_client {
                state.sent.push(kind);
            }
            state.cut.take_if(|cut| matches!(cut, Cut::Before(k) | Cut::After(k) if *k == kind))
        };
        if matches!(cut, Some(Cut::Before(_))) {
            return Ok(());
        }
        to.write_all(&packet).await?;
        if cut.is_some() {
            to.flush().await?;
            // Closing at once could take the packet back from the peer's unread bytes.
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            return Ok(());
        }
    }
}
