//! How connections are opened: over TCP from this machine, or in the network that a simulation makes.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A connection: bytes in order both ways, until either side ends it.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection that is being opened.
pub type Connecting<'a> = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send + 'a>>;

/// A network that is not this machine's.
pub trait Network: fmt::Debug + Send + Sync {
    /// Opens a connection to `port` of `host`.
    fn connect<'a>(&'a self, host: &'a str, port: u16) -> Connecting<'a>;
}

/// Opens connections. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Net {
    /// This machine's network when there is none.
    other: Option<Arc<dyn Network>>,
}

impl Net {
    /// This machine's network.
    pub fn real() -> Self {
        Self::default()
    }

    /// Another one.
    pub fn of(network: Arc<dyn Network>) -> Self {
        Self { other: Some(network) }
    }

    /// Opens a connection to `port` of `host`, a name or an address. Waits as long as the network makes it wait.
    ///
    /// # Errors
    /// When nobody is there, or the network does not reach them.
    pub async fn connect(&self, host: &str, port: u16) -> io::Result<Box<dyn Stream>> {
        if let Some(network) = &self.other {
            return network.connect(host, port).await;
        }
        let tcp = TcpStream::connect((host, port)).await?;
        // Nagle's algorithm holds a result back until the PUBACK before it is acknowledged: 40 ms at low rates.
        tcp.set_nodelay(true)?;
        Ok(Box::new(tcp))
    }
}
