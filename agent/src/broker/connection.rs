//! One connection: bytes in, packets out, and the other way round.

use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::greeting::{Greeting, Hello};
use super::packet::{Codec, Received, Version};
use super::transport::Transport;
use crate::net::Stream;

/// Until CONNACK.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Read at once. What is read stays in memory as long as an event of it does.
const READ_BYTES: usize = 16 << 10;
/// Written at once; what is beyond waits where it is counted.
const WRITE_BYTES: usize = 256 << 10;

/// A connection that the broker has accepted.
pub(super) struct Wire {
    stream: Box<dyn Stream>,
    pub(super) codec: Codec,
    incoming: BytesMut,
    /// What is to be written.
    pub(super) outgoing: BytesMut,
    flushed: bool,
}

impl Wire {
    /// Connects and says hello.
    pub(super) async fn open(
        transport: &Transport,
        version: Version,
        hello: &Hello,
        incoming_bytes_max: u32,
        outgoing_bytes_max: u32,
    ) -> Result<(Self, Greeting), String> {
        tokio::time::timeout(CONNECT_TIMEOUT, async {
            let stream = transport.open().await?;
            let mut wire = Self {
                stream,
                codec: Codec::new(version, incoming_bytes_max),
                incoming: BytesMut::new(),
                outgoing: BytesMut::new(),
                flushed: true,
            };
            wire.codec.connect(hello, &mut wire.outgoing)?;
            loop {
                std::future::poll_fn(|cx| wire.poll(cx)).await?;
                match wire.next()? {
                    Some(Received::ConnAck(Ok(greeting))) => {
                        wire.codec.set_outgoing_bytes_max(greeting.packet_bytes_max.min(outgoing_bytes_max));
                        return Ok((wire, greeting));
                    }
                    Some(Received::ConnAck(Err(why))) => {
                        return Err(format!("the broker refuses the connection: {why}"));
                    }
                    Some(other) => return Err(format!("the broker answers CONNECT with {other:?}")),
                    None => {}
                }
            }
        })
        .await
        .map_err(|_| format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()))?
    }

    /// Writes what there is, and reads once. Ready when something came, or when there is room to write again.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        let congested = self.is_congested();
        if let Poll::Ready(Err(error)) = self.poll_flush(cx) {
            return Poll::Ready(Err(error));
        }
        let has_room = congested && !self.is_congested();
        if self.incoming.capacity() - self.incoming.len() < READ_BYTES / 4 {
            self.incoming.reserve(READ_BYTES);
        }
        let read = pin!(self.stream.read_buf(&mut self.incoming));
        match read.poll(cx) {
            Poll::Ready(Ok(0)) => Poll::Ready(Err("the broker closed the connection".to_owned())),
            Poll::Ready(Ok(_)) => Poll::Ready(Ok(())),
            Poll::Ready(Err(error)) => Poll::Ready(Err(format!("cannot read: {error}"))),
            Poll::Pending if has_room => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Writes until nothing is left.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        while !self.outgoing.is_empty() {
            let written = pin!(self.stream.write(&self.outgoing));
            match written.poll(cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err("the broker closed the connection".to_owned())),
                Poll::Ready(Ok(written)) => {
                    self.outgoing.advance(written);
                    self.flushed = false;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(format!("cannot write: {error}"))),
                Poll::Pending => return Poll::Pending,
            }
        }
        if !self.flushed {
            // TLS holds records back until then.
            match pin!(self.stream.flush()).poll(cx) {
                Poll::Ready(Ok(())) => self.flushed = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(format!("cannot write: {error}"))),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The next packet that has come.
    pub(super) fn next(&mut self) -> Result<Option<Received>, String> {
        self.codec.read(&mut self.incoming)
    }

    /// Whether enough waits to be written.
    pub(super) fn is_congested(&self) -> bool {
        self.outgoing.len() >= WRITE_BYTES
    }
}
