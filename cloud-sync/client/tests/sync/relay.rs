//! A line between the gateway and the server, which counts, cuts and slows down what goes through it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub(crate) struct Relay {
    pub(crate) port: u16,
    line: Arc<Line>,
    _task: JoinSet<()>,
}

#[derive(Default)]
struct Line {
    up: AtomicU64,
    down: AtomicU64,
    connections: AtomicU64,
    /// Each connection is cut after as many bytes to the gateway; 0: never.
    cut_after: AtomicU64,
    /// Bytes a second to the gateway; 0: no limit.
    rate: AtomicU64,
    /// Changes when all connections are to be cut.
    cuts: watch::Sender<u64>,
}

impl Relay {
    pub(crate) async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let line = Arc::new(Line::default());
        let (mut task, shared) = (JoinSet::new(), Arc::clone(&line));
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                shared.connections.fetch_add(1, SeqCst);
                let (line, mut cuts) = (Arc::clone(&shared), shared.cuts.subscribe());
                connections.spawn(async move {
                    let Ok(far) = TcpStream::connect(("127.0.0.1", server)).await else { return };
                    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                    tokio::select! {
                        () = up(near_in, far_out, &line) => {}
                        () = down(far_in, near_out, &line) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { port, line, _task: task }
    }

    pub(crate) fn cut_after(&self, bytes: u64) {
        self.line.cut_after.store(bytes, SeqCst);
    }

    pub(crate) fn cut(&self) {
        self.line.cuts.send_modify(|count| *count += 1);
    }

    pub(crate) fn slow_down(&self, bytes_per_second: u64) {
        self.line.rate.store(bytes_per_second, SeqCst);
    }

    pub(crate) fn bytes_down(&self) -> u64 {
        self.line.down.load(SeqCst)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes_down() + self.line.up.load(SeqCst)
    }

    pub(crate) fn connections(&self) -> u64 {
        self.line.connections.load(SeqCst)
    }
}

async fn up(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, line: &Line) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        line.up.fetch_add(count as u64, SeqCst);
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

async fn down(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, line: &Line) {
    let (mut buffer, mut sent) = (vec![0; 16 << 10], 0);
    while let Ok(mut count @ 1..) = from.read(&mut buffer).await {
        let cut_after = line.cut_after.load(SeqCst);
        if cut_after > 0 {
            count = count.min((cut_after - sent) as usize);
        }
        sent += count as u64;
        line.down.fetch_add(count as u64, SeqCst);
        if to.write_all(&buffer[..count]).await.is_err() || (cut_after > 0 && sent >= cut_after) {
            return;
        }
        let rate = line.rate.load(SeqCst);
        if rate > 0 {
            tokio::time::sleep(Duration::from_secs_f64(count as f64 / rate as f64)).await;
        }
    }
}
