//! Calls: what is asked, what is answered, and what is made of refusals.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use sync_client::{Answer, SessionError, Verdict};
use sync_protocol::limits::ANSWER_BYTES_MAX;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use crate::server::{Fleet, NOW_MS, Server, url};
use crate::site::{Site, report};

#[tokio::test]
async fn a_question_is_held_until_there_is_something_new() {
    let site = Site::new().await;
    let session = site.session().await;
    let Answer::Changed { etag, .. } = session.desired(None, 1, Duration::ZERO).await.unwrap() else { panic!() };
    let etag = etag.unwrap();
    assert_eq!(session.desired(Some(&etag), 1, Duration::from_secs(1)).await.unwrap(), Answer::Unchanged);
    let wanted = site.server.fleet.answer(1, 1, &site.server.fleet.operator);
    let held = tokio::spawn(async move { session.desired(Some(&etag), 1, Duration::from_secs(60)).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    site.server.wants(wanted.clone());
    let Answer::Changed { answer, .. } = held.await.unwrap().unwrap() else { panic!() };
    assert_eq!(*answer, wanted);
}

#[tokio::test]
async fn one_connection_serves_calls_one_after_the_other() {
    let site = Site::new().await;
    let session = site.session().await;
    let before = site.relay.connections();
    for _ in 0..10 {
        session.report(&report()).await.unwrap();
    }
    assert_eq!(site.relay.connections(), before + 1);
}

#[tokio::test]
async fn refusals_say_whose_fault_it_is() {
    let site = Site::new().await;
    let session = site.session().await;
    let blank = report();
    let ask = || session.report(&blank);
    // What the gateway asked while it was provisioned has come to its end: else that is refused instead.
    tokio::time::sleep(Duration::from_millis(500)).await;
    site.server.book().refusals.extend([(429, Some("7")), (503, None), (403, None), (418, None)]);
    let error = ask().await.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
    assert_eq!(error.to_string(), "the control plane is busy (429): not now");
    assert_eq!(ask().await.unwrap_err().retry_after(), None);
    assert!(matches!(ask().await.unwrap_err(), SessionError::NotLetIn { status: 403, .. }));
    assert!(matches!(ask().await.unwrap_err(), SessionError::Status { status: 418, .. }));

    site.server.book().answers_lost = 1;
    assert!(matches!(ask().await.unwrap_err(), SessionError::Cut { .. }));

    // Another control plane at the same address.
    let other = Site::of(Server::of(Fleet::new()).await).await;
    let identity = site.identity().unwrap();
    let config = sync_client::SessionConfig {
        url: url(other.relay.port),
        ca: Vec::new(),
        sign_requests: false,
        limits: site.limits,
    };
    let astray = sync_client::Session::new(identity.into(), &config, site.now()).unwrap();
    let error = astray.report(&report()).await.unwrap_err();
    assert!(matches!(error, SessionError::Stranger { .. }) && error.hint().is_some(), "{error}");
    assert!(other.server.book().seen.is_empty());

    let nowhere = sync_client::SessionConfig { url: "https://localhost:1".to_owned(), ..config.clone() };
    let nowhere = sync_client::Session::new(site.identity().unwrap().into(), &nowhere, site.now()).unwrap();
    let error = nowhere.report(&report()).await.unwrap_err();
    assert!(matches!(error, SessionError::Unreachable { .. }), "{error}");
    let plain = sync_client::SessionConfig { url: "http://localhost:1".to_owned(), ..config };
    let error = sync_client::Session::new(site.identity().unwrap().into(), &plain, site.now()).unwrap_err();
    assert!(error.to_string().contains("must start with `https://`"), "{error}");
}

#[tokio::test]
async fn an_answer_without_end_is_not_read_to_the_end() {
    let site = Site::new().await;
    let session = site.session().await;
    site.server.book().delta = Some("x".repeat(1 << 20).into());
    let error = session.report(&report()).await.unwrap_err();
    assert!(matches!(&error, SessionError::Answer(why) if why.contains("longer than")), "{error}");

    site.server.book().endless = true;
    let before = site.relay.bytes_down();
    let error = session.desired(None, 1, Duration::ZERO).await.unwrap_err();
    assert!(matches!(&error, SessionError::Answer(why) if why.contains("longer than")), "{error}");
    // What the system's buffers hold may be on its way.
    let came = usize::try_from(site.relay.bytes_down() - before).unwrap();
    assert!(came < ANSWER_BYTES_MAX + (16 << 20), "{came}");
}

#[tokio::test]
async fn an_answer_that_drips_is_left() {
    let mut site = Site::new().await;
    site.limits.answer = Duration::from_secs(2);
    let session = site.session().await;
    site.server.book().delta = Some("x".repeat(60_000).into());
    site.relay.slow_down(10_000);
    let error = session.report(&report()).await.unwrap_err();
    assert!(matches!(error, SessionError::TimedOut { .. }), "{error}");
    site.relay.slow_down(0);
    assert!(session.report(&report()).await.unwrap().is_some());
}

/// What a proxy passes that opens TLS: the certificate of the connection is not the gateway's, its signature is.
#[tokio::test]
async fn signed_requests_need_no_certificate_in_the_handshake() {
    let mut site = Site::new().await;
    site.sign_requests = true;
    let session = site.session().await;
    session.report(&report()).await.unwrap();
    let seen = site.server.calls("/reported").pop().unwrap();
    assert_eq!(seen.gateway.as_deref(), Some("press-hall-3"));
    assert!(seen.headers.contains_key("signature"));
}

#[tokio::test]
async fn a_gateway_without_a_clock_signs_by_that_of_the_control_plane() {
    let mut site = Site::new().await;
    site.sign_requests = true;
    let session = site.session().await;
    for clock in [0, NOW_MS + 3_600_000] {
        site.clock.store(clock, SeqCst);
        session.report(&report()).await.unwrap();
    }
    let calls = site.server.calls("/reported");
    assert!(calls.iter().any(|seen| seen.gateway.is_none()));
    // Once it knows by how much it is wrong, it asks once.
    let before = calls.len();
    session.report(&report()).await.unwrap();
    assert_eq!(site.server.calls("/reported").len(), before + 1);
}

/// The certificates of both sides are believed for their names; there is no time to hold them to.
#[tokio::test]
async fn a_clock_that_was_never_set_does_not_end_the_conversation() {
    let site = Site::new().await;
    let session = site.session().await;
    for clock in [0, 1_000] {
        site.clock.store(clock, SeqCst);
        session.report(&report()).await.unwrap();
    }
}

/// In a process of its own, since a process has one environment.
#[tokio::test]
async fn a_proxy_of_the_environment_is_used() {
    let site = Site::new().await;
    site.provision().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    let server = site.server.port;
    let proxied = tokio::spawn(async move {
        let (mut near, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(near.read_u8().await.unwrap());
        }
        near.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let mut far = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        String::from_utf8(head).unwrap()
    });
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "session::behind_a_proxy", "--ignored"])
        .env("HTTPS_PROXY", proxy)
        .env("SYNC_STATE", site.state.path())
        .output();
    let child = child.await.unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    assert!(proxied.await.unwrap().starts_with("CONNECT cloud.example:8443 "));
    assert_eq!(site.server.calls("/reported").last().unwrap().gateway.as_deref(), Some("press-hall-3"));
}

#[tokio::test]
#[ignore = "run by the test above"]
async fn behind_a_proxy() {
    let folder = std::path::PathBuf::from(std::env::var("SYNC_STATE").unwrap()).join("identity");
    let identity = sync_client::Identity::open(&folder).unwrap().unwrap();
    let config = sync_client::SessionConfig {
        url: "https://cloud.example:8443".to_owned(),
        ca: Vec::new(),
        sign_requests: false,
        limits: crate::site::LIMITS,
    };
    let now: sync_client::Now = std::sync::Arc::new(|| Some(NOW_MS));
    sync_client::Session::new(identity.into(), &config, now).unwrap().report(&report()).await.unwrap();
}

#[tokio::test]
async fn records_that_are_sent_twice_are_there_once() {
    let site = Site::new().await;
    let session = site.session().await;
    let lines = (0..100).map(|n| format!("{{\"id\":\"press-hall-3/readings/{n}\",\"sequence\":{n},\"data\":{n}}}\n"));
    let body = zstd::bulk::compress(lines.collect::<String>().as_bytes(), 3).unwrap();
    site.server.book().answers_lost = 1;
    let lost = session.records("press-hall-3/readings/0-99/100", body.clone().into()).await;
    assert!(matches!(lost, Verdict::Later { .. }), "{lost:?}");
    let taken = session.records("press-hall-3/readings/0-99/100", body.clone().into()).await;
    assert_eq!(taken, Verdict::TakenUpTo(99));
    assert_eq!(site.server.book().records.len(), 100);
    site.server.book().refusals.push_back((429, Some("3")));
    let busy = session.records("k", body.into()).await;
    assert!(matches!(busy, Verdict::Later { after: Some(after), .. } if after == Duration::from_secs(3)), "{busy:?}");
}
