//! The network of a simulation: connections in memory that are late, stall, end in the middle of a packet, or go silent.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tidegate::net::{Connecting, Network, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::broker::Broker;

/// Bytes under way in one direction before the sender has to wait.
const ROOM: usize = 64 << 10;

/// How a link treats who wants to connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Open,
    /// Nobody listens.
    Refuses,
    /// Nothing comes back.
    Silent,
}

/// The way between the agent and one broker, over all of its connections.
pub struct Link {
    pub broker: Arc<Broker>,
    state: Mutex<State>,
}

struct State {
    standing: Standing,
    delay_us: (u64, u64),
    /// Nothing arrives before.
    stalled_until: Option<Instant>,
    /// Bytes after which the connection is cut.
    fuse: Option<usize>,
    pipes: Vec<Arc<Pipe>>,
    rng: fastrand::Rng,
}

impl Link {
    pub fn new(broker: Arc<Broker>, seed: u64) -> Self {
        let state = State {
            standing: Standing::Open,
            delay_us: (50, 2_000),
            stalled_until: None,
            fuse: None,
            pipes: Vec::new(),
            rng: fastrand::Rng::with_seed(seed),
        };
        Self { broker, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn stand(&self, standing: Standing) {
        self.state().standing = standing;
    }

    /// How long bytes take from now on, in microseconds: between these.
    pub fn delay(&self, least: u64, most: u64) {
        self.state().delay_us = (least, most);
    }

    /// Nothing arrives within `span`; afterwards all of it does.
    pub fn stall(&self, span: Duration) {
        let mut state = self.state();
        let until = Instant::now() + span;
        state.stalled_until = Some(until);
        for pipe in &state.pipes {
            for way in &pipe.ways {
                let mut way = way.lock().unwrap();
                way.chunks.iter_mut().for_each(|(due, _)| *due = (*due).max(until));
                way.wake_reader();
            }
        }
    }

    /// Ends all connections, now; of what is under way some bytes still arrive.
    pub fn cut(&self) {
        let mut state = self.state();
        let pipes = std::mem::take(&mut state.pipes);
        for pipe in pipes {
            for way in &pipe.ways {
                let mut way = way.lock().unwrap();
                let under_way: usize = way.chunks.iter().map(|(_, bytes)| bytes.len()).sum();
                way.truncate(state.rng.usize(0..=under_way));
                let reset = state.rng.bool();
                way.end(if reset { End::Reset } else { End::Closed });
            }
        }
    }

    /// Ends the connection once so many bytes more have been sent over it.
    pub fn cut_after(&self, bytes: usize) {
        self.state().fuse = Some(bytes);
    }

    /// What is sent over the connections that stand is lost, and neither side hears of it.
    pub fn fall_silent(&self) {
        let mut state = self.state();
        for pipe in state.pipes.drain(..) {
            for way in &pipe.ways {
                let mut way = way.lock().unwrap();
                way.silent = true;
                way.chunks.clear();
                way.bytes = 0;
            }
        }
    }

    /// Good weather.
    pub fn calm(&self) {
        let mut state = self.state();
        (state.standing, state.delay_us, state.fuse) = (Standing::Open, (50, 2_000), None);
    }

    async fn connect(self: &Arc<Self>) -> io::Result<Box<dyn Stream>> {
        let wait = {
            let mut state = self.state();
            let (least, most) = state.delay_us;
            Duration::from_micros(state.rng.u64(least..=most))
        };
        sleep(wait).await;
        let standing = self.state().standing;
        match standing {
            Standing::Silent => std::future::pending().await,
            Standing::Open if self.broker.is_up() => {}
            _ => return Err(io::ErrorKind::ConnectionRefused.into()),
        }
        let way = || Mutex::new(Way::new());
        let pipe = Arc::new(Pipe { ways: [way(), way()] });
        self.state().pipes.push(Arc::clone(&pipe));
        let end = |side| Socket { link: Arc::clone(self), pipe: Arc::clone(&pipe), side, timer: None };
        tokio::spawn(Arc::clone(&self.broker).serve(end(1)));
        Ok(Box::new(end(0)))
    }
}

struct Pipe {
    /// What side 0 writes, and what side 1 does.
    ways: [Mutex<Way>; 2],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Closed,
    Reset,
}

struct Way {
    chunks: VecDeque<(Instant, Bytes)>,
    bytes: usize,
    last_due: Instant,
    end: Option<End>,
    silent: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Way {
    fn new() -> Self {
        let (chunks, last_due) = (VecDeque::new(), Instant::now());
        Self { chunks, bytes: 0, last_due, end: None, silent: false, reader: None, writer: None }
    }

    fn wake_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    fn wake_writer(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    fn end(&mut self, end: End) {
        self.end.get_or_insert(end);
        self.wake_reader();
        self.wake_writer();
    }

    /// Leaves only the first `bytes` of what is under way.
    fn truncate(&mut self, mut bytes: usize) {
        let mut left = VecDeque::new();
        for (due, mut chunk) in std::mem::take(&mut self.chunks) {
            chunk.truncate(bytes);
            bytes -= chunk.len();
            if !chunk.is_empty() {
                left.push_back((due, chunk));
            }
        }
        self.bytes = left.iter().map(|(_, chunk)| chunk.len()).sum();
        self.chunks = left;
    }
}

/// One end of a connection.
pub struct Socket {
    link: Arc<Link>,
    pipe: Arc<Pipe>,
    side: usize,
    timer: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let mut way = this.pipe.ways[1 - this.side].lock().unwrap();
        while let Some((due, chunk)) = way.chunks.front_mut() {
            let due = *due;
            if due > Instant::now() {
                let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
                if timer.deadline() != due {
                    timer.as_mut().reset(due);
                }
                if timer.as_mut().poll(cx).is_pending() {
                    way.reader = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                continue;
            }
            let bytes = chunk.split_to(chunk.len().min(buf.remaining()));
            buf.put_slice(&bytes);
            if chunk.is_empty() {
                way.chunks.pop_front();
            }
            way.bytes -= bytes.len();
            way.wake_writer();
            return Poll::Ready(Ok(()));
        }
        match way.end {
            Some(End::Closed) => Poll::Ready(Ok(())),
            Some(End::Reset) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            None => {
                way.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let (due, taken, burnt) = {
            let mut state = self.link.state();
            let (least, most) = state.delay_us;
            let due = Instant::now() + Duration::from_micros(state.rng.u64(least..=most));
            let due = state.stalled_until.map_or(due, |until| due.max(until));
            let way = self.pipe.ways[self.side].lock().unwrap();
            let mut taken = bytes.len().min(ROOM.saturating_sub(way.bytes));
            let burnt = state.fuse.is_some_and(|left| left <= taken);
            if let Some(left) = &mut state.fuse {
                taken = taken.min(*left);
                *left -= taken;
            }
            (due, taken, burnt)
        };
        let mut way = self.pipe.ways[self.side].lock().unwrap();
        if way.end.is_some() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if way.silent {
            return Poll::Ready(Ok(bytes.len()));
        }
        if taken > 0 {
            let due = due.max(way.last_due);
            way.last_due = due;
            way.chunks.push_back((due, Bytes::copy_from_slice(&bytes[..taken])));
            way.bytes += taken;
            way.wake_reader();
        }
        if burnt {
            drop(way);
            self.link.state().fuse = None;
            self.link.cut();
            return Poll::Ready(if taken > 0 { Ok(taken) } else { Err(io::ErrorKind::BrokenPipe.into()) });
        }
        if taken == 0 {
            way.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pipe.ways[self.side].lock().unwrap().end(End::Closed);
        Poll::Ready(Ok(()))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.pipe.ways[self.side].lock().unwrap().end(End::Closed);
        self.pipe.ways[1 - self.side].lock().unwrap().end(End::Reset);
        self.link.state().pipes.retain(|pipe| !Arc::ptr_eq(pipe, &self.pipe));
    }
}

/// All links, by the host name that gateway.toml has.
pub struct Links(pub Vec<Arc<Link>>);

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links").finish_non_exhaustive()
    }
}

impl Network for Links {
    fn connect<'a>(&'a self, host: &'a str, _port: u16) -> Connecting<'a> {
        Box::pin(async move {
            let link = self.0.iter().find(|link| link.broker.name == host);
            link.ok_or(io::ErrorKind::NotFound)?.connect().await
        })
    }
}
