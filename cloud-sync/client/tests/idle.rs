//! What following costs in memory while nothing happens.

#![allow(clippy::unwrap_used, reason = "a test may")]
#![allow(clippy::disallowed_methods, reason = "it measures how long things take")]
#![allow(clippy::cast_possible_truncation, reason = "small numbers")]
#![allow(missing_docs, reason = "nobody else uses it")]
#![allow(dead_code, reason = "parts of the server are for other tests")]

#[path = "sync/relay.rs"]
mod relay;
#[path = "sync/server.rs"]
mod server;
#[path = "sync/site.rs"]
mod site;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use sync_client::{Follower, Link};
use tokio_util::sync::CancellationToken;

use crate::site::{Site, eventually};

thread_local! {
    /// Bytes that this thread took, less those that it gave back.
    static HELD: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

#[expect(unsafe_code, reason = "an allocator is unsafe; it only counts what the system's does")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn count(bytes: isize) {
    let _ = HELD.try_with(|held| held.set(held.get() + bytes));
}

/// The follower has a thread of its own, so that what it holds is told from what the server does.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_gateway_costs_less_than_a_mebibyte_of_memory() {
    let site = Site::new().await;
    site.server.wants(site.server.fleet.answer(1, 1, &site.server.fleet.operator));
    let (config, now, reports) = (site.config(), site.now(), site.reports.subscribe());
    let (held, idle) = (std::sync::mpsc::channel(), CancellationToken::new());
    let (tell, is_idle) = (held.0, idle.clone());
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let before = HELD.get();
        runtime.block_on(async {
            let (follower, cloud) = Follower::open(config, now).unwrap();
            let cancel = CancellationToken::new();
            let task = tokio::spawn(follower.run(reports, cancel.clone()));
            is_idle.cancelled().await;
            assert_eq!(*cloud.link().borrow(), Link::Connected);
            tell.send(HELD.get() - before).unwrap();
            cancel.cancel();
            task.await.unwrap();
        });
    });
    eventually("it asks again", || site.server.calls("/desired").len() >= 2 && !site.server.book().reports.is_empty())
        .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    idle.cancel();
    thread.join().unwrap();
    let held = held.1.recv().unwrap();
    println!("{held} B held while idle");
    assert!(held < 1 << 20, "{held} B");
}
