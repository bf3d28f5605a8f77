//! The link between the gateway and the cloud: a TCP forwarder that can be cut, as a bad mobile connection is.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A forwarder on a free port of this machine. Dropping it cuts the link for good.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    up: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Link {
    /// Forwards connections to `target`.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn to(target: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (up, state) = watch::channel(true);
        let task = tokio::spawn(accept(listener, target, state));
        Ok(Self { address, up, task })
    }

    /// Where the gateway finds the cloud.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends what is connected, and lets nobody connect.
    pub fn cut(&self) {
        self.up.send_replace(false);
    }

    /// Lets everybody connect again.
    pub fn restore(&self) {
        self.up.send_replace(true);
    }

    /// Whether it carries anything now.
    pub fn is_up(&self) -> bool {
        *self.up.borrow()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.cut();
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, state: watch::Receiver<bool>) {
    while let Ok((from, _)) = listener.accept().await {
        if *state.borrow() {
            tokio::spawn(forward(from, target, state.clone()));
        }
    }
}

/// Ends when either side does, or when the link is cut; what was under way is then lost, as on a real link.
async fn forward(mut from: TcpStream, target: SocketAddr, mut state: watch::Receiver<bool>) {
    let Ok(mut to) = TcpStream::connect(target).await else { return };
    // Small messages must not wait for each other's acknowledgements, here as on the real link.
    let _ = from.set_nodelay(true);
    let _ = to.set_nodelay(true);
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut from, &mut to) => {}
        _ = state.wait_for(|up| !up) => {}
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn a_cut_ends_what_is_connected_and_a_restore_lets_it_come_back() {
        let server = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let link = Link::to(server.local_addr().unwrap()).await.unwrap();

        let mut client = TcpStream::connect(link.address()).await.unwrap();
        let (mut peer, _) = server.accept().await.unwrap();
        client.write_all(b"hello").await.unwrap();
        let mut bytes = [0; 5];
        peer.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"hello");

        link.cut();
        assert_eq!(peer.read(&mut bytes).await.unwrap_or(0), 0);
        assert!(!link.is_up());

        link.restore();
        let mut client = TcpStream::connect(link.address()).await.unwrap();
        let (mut peer, _) = server.accept().await.unwrap();
        client.write_all(b"again").await.unwrap();
        peer.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"again");
    }
}
