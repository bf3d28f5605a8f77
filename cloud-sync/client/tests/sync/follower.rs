//! The loop: from what the control plane wants to what is handed over, and back.

use std::time::Duration;

use serde_json::json;
use sync_client::Link;
use sync_protocol::SecretKey;
use sync_protocol::desired::{DeploymentRef, Request};
use sync_protocol::report::{Phase, Progress};

use crate::server::{DAY_MS, NOW_MS};
use crate::site::{Site, eventually};

#[tokio::test]
async fn what_is_wanted_is_handed_over_at_once() {
    let site = Site::new().await;
    let running = site.follow();
    running.connected().await;
    // A question is held for minutes: who asks anew only then is too late for this.
    site.server.wants(site.server.fleet.answer(1, 1, &site.server.fleet.operator));
    running.deployed(1).await;
    assert_eq!(running.cloud.trust().desired_sequence(), 1);
    // Again after a restart, for nobody knows how far it was.
    running.stop().await;
    let running = site.follow();
    running.deployed(1).await;
    running.stop().await;
}

/// What was handed over is remembered, whatever happens in the moment after.
#[tokio::test]
async fn what_is_trusted_is_on_disk_before_it_is_handed_over() {
    let site = Site::new().await;
    let running = site.follow();
    let fleet = &site.server.fleet;
    let mut accepted = running.cloud.accepted();
    for number in 1..=5 {
        site.server.wants(fleet.answer(number, number, &fleet.operator));
        running.deployed(number).await;
        accepted.borrow_and_update();
        let trust = sync_client::TrustStore::open(&site.state.path().join("trust")).unwrap();
        assert_eq!(trust.desired_sequence(), number);
        let kept = accepted.borrow().clone().unwrap();
        assert_eq!(trust.reverify(&kept.answer).unwrap().reference().number, number);
    }
    running.stop().await;
}

#[tokio::test]
async fn what_is_refused_is_not_handed_over_and_is_reported() {
    let site = Site::new().await;
    let fleet = &site.server.fleet;
    let running = site.follow();
    site.server.wants(fleet.answer(7, 3, &fleet.operator));
    running.deployed(3).await;
    // Forged, and an old one again.
    for wrong in [fleet.answer(8, 4, &SecretKey::generate().unwrap()), fleet.answer(6, 2, &fleet.operator)] {
        let reported = site.server.book().reports.len();
        site.server.wants(wrong);
        eventually("it is reported", || {
            site.server.book().reports.iter().skip(reported).any(|report| !report.refused.is_empty())
        })
        .await;
        running.deployed(3).await;
        assert_eq!(running.cloud.trust().desired_sequence(), 7);
    }
    site.server.wants(fleet.answer(9, 4, &fleet.operator));
    running.deployed(4).await;
    eventually("it is over", || site.server.book().reports.last().is_some_and(|report| report.refused.is_empty()))
        .await;
    running.stop().await;
}

/// Just then somebody wants to see the log.
#[tokio::test]
async fn a_refused_deployment_does_not_refuse_what_is_asked_beside_it() {
    let site = Site::new().await;
    let fleet = &site.server.fleet;
    let running = site.follow();
    let stranger = SecretKey::generate().unwrap();
    let logs = Request::Logs { until_ms: fleet.now_ms() + 60_000, level: "info".to_owned() };
    site.server.wants(fleet.answer_with(1, 1, &stranger, vec![logs.clone()]));
    eventually("it is heard", || *running.cloud.requests().borrow() == [logs.clone()]).await;
    eventually("its deployment is refused", || running.cloud.refused().borrow().contains("signed by 0")).await;
    // What the on-line key has not signed is not heard.
    let mut forged = fleet.answer_with(2, 1, &stranger, Vec::new());
    forged.desired = fleet.answer(2, 1, &stranger).deployment;
    site.server.wants(forged);
    eventually("it is refused", || running.cloud.refused().borrow().contains("the desired document")).await;
    assert_eq!(*running.cloud.requests().borrow(), [logs]);
    running.stop().await;
}

#[tokio::test]
async fn a_line_that_comes_and_goes_is_followed() {
    let site = Site::new().await;
    let fleet = &site.server.fleet;
    let running = site.follow();
    for number in 1..=5 {
        running.connected().await;
        site.relay.cut();
        site.server.wants(fleet.answer(number, number, &fleet.operator));
        running.deployed(number).await;
    }
    running.stop().await;
}

/// Proxies and address translation end what is silent for long.
#[tokio::test]
async fn a_question_that_is_cut_while_it_is_held_is_held_shorter() {
    let site = Site::new().await;
    let running = site.follow();
    running.connected().await;
    let waits = || -> Vec<u64> {
        let calls = site.server.calls("/desired").into_iter();
        calls.map(|seen| seen.path.split("wait=").nth(1).unwrap().split('&').next().unwrap().parse().unwrap()).collect()
    };
    for count in 2..8 {
        eventually("it is held", || waits().len() >= count && waits().last() != Some(&0)).await;
        site.relay.cut();
    }
    eventually("it is held shorter", || waits().last().is_some_and(|wait| (1..=20).contains(wait))).await;
    assert_eq!(waits()[..2], [0, 300]);
    running.stop().await;
}

#[tokio::test]
async fn a_server_that_is_busy_is_left_alone_for_as_long_as_it_says() {
    let site = Site::new().await;
    site.provision().await;
    let before = site.server.book().seen.len();
    site.server.book().refusals.extend([(429, Some("2")); 2]);
    let running = site.follow();
    running.connected().await;
    // A question of the first follower may still have been on its way: this one begins by one that is not held.
    let after = site.server.book().seen[before..].to_vec();
    let seen = &after[after.iter().position(|seen| seen.path.contains("wait=0&")).unwrap()..];
    assert!(seen.iter().any(|seen| seen.refused));
    for (nth, refused) in seen.iter().enumerate().filter(|(_, seen)| seen.refused) {
        let part = if refused.path.contains("/desired") { "/desired" } else { "/reported" };
        if let Some(again) = seen[nth + 1..].iter().find(|seen| seen.path.contains(part)) {
            assert!(again.at - refused.at >= Duration::from_secs(2), "{part} {:?}", again.at - refused.at);
        }
    }
    running.stop().await;
}

#[tokio::test]
async fn failures_are_not_hammered_at() {
    let mut site = Site::new().await;
    site.provision().await;
    site.limits.back_off = Duration::from_millis(100);
    site.server.book().refusals.extend([(500, None); 1000]);
    let before = site.server.book().seen.len();
    let running = site.follow();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let asked = site.server.book().seen.len() - before;
    assert!((4..=16).contains(&asked), "{asked}");
    let link = running.link(|link| matches!(link, Link::Offline(_))).await;
    assert!(link.to_string().contains("answers 500"), "{link}");
    running.stop().await;
}

#[tokio::test]
async fn a_clock_that_was_never_set_does_not_keep_a_deployment_away() {
    let site = Site::new().await;
    let fleet = &site.server.fleet;
    site.clock.store(0, std::sync::atomic::Ordering::SeqCst);
    let running = site.follow();
    site.server.wants(fleet.answer(1, 1, &fleet.operator));
    running.deployed(1).await;
    running.stop().await;
}

/// Refused for its date, and good once there is a newer date on it; nobody touched the gateway.
#[tokio::test]
async fn what_was_refused_for_its_date_is_taken_with_a_new_one() {
    let mut site = Site::new().await;
    site.limits.wait = Duration::from_secs(1);
    let fleet = &site.server.fleet;
    let old = fleet.answer(1, 1, &fleet.operator);
    site.server.book().life_ms = 900 * DAY_MS;
    let running = site.follow();
    running.connected().await;
    site.set_clocks(NOW_MS + 100 * DAY_MS);
    site.server.wants(old);
    eventually("refused", || {
        site.server.book().reports.last().is_some_and(|report| report.refused.contains("expired"))
    })
    .await;
    site.server.wants(fleet.answer(2, 1, &fleet.operator));
    running.deployed(1).await;
    running.stop().await;
}

#[tokio::test]
async fn a_change_of_phase_is_reported_at_once_and_one_report_is_sent_at_a_time() {
    let site = Site::new().await;
    site.server.book().report_takes = Duration::from_millis(100);
    let running = site.follow();
    eventually("the first report", || !site.server.book().reports.is_empty()).await;

    let deployment = DeploymentRef { number: 1, digest: sync_protocol::Digest::of(b"d") };
    for (fetched, phase) in (0..200).map(|n| (n, Phase::Downloading)).chain([(200, Phase::Active)]) {
        site.reports.send_modify(|report| {
            let (kept, reason, since_ms) = (false, String::new(), 0);
            report.progress =
                Some(Progress { deployment, phase, kept, reason, fetched: Some((fetched, 200)), since_ms });
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let active = || {
        let book = site.server.book();
        book.reports
            .last()
            .and_then(|report| report.progress.clone())
            .is_some_and(|progress| progress.phase == Phase::Active)
    };
    eventually("it is reported", active).await;
    let most = site.server.book().reports_at_once_most;
    let reports = site.server.book().reports.clone();
    assert_eq!(most, 1);
    assert!(reports.len() <= 4, "{}", reports.len());
    assert!(reports.iter().map(|report| report.sequence).is_sorted());
    assert!(reports.iter().all(|report| report.boot == reports[0].boot && report.root == 1));
    running.stop().await;
}

#[tokio::test]
async fn a_report_that_was_not_taken_comes_again_with_its_log_lines() {
    let site = Site::new().await;
    site.provision().await;
    let running = site.follow();
    running.connected().await;
    eventually("the first report", || !site.server.book().reports.is_empty()).await;
    site.server.book().answers_lost = 1;
    running.cloud.log([json!({"message": "one"}), json!({"message": "two"})]);
    eventually("the lines arrive", || {
        let book = site.server.book();
        book.reports.iter().filter(|report| report.logs.len() == 2).count() == 2
    })
    .await;
    running.stop().await;
}

#[tokio::test]
async fn the_shadows_delta_comes_back_with_a_report() {
    let site = Site::new().await;
    site.server.book().delta = Some(json!({"valve": "open"}));
    let running = site.follow();
    let mut delta = running.cloud.delta();
    let found = delta.wait_for(Option::is_some);
    let found = tokio::time::timeout(Duration::from_secs(30), found).await.unwrap().unwrap().clone();
    assert_eq!(found, Some(json!({"valve": "open"})));
    running.stop().await;
}

/// One question is held for five minutes; what a cycle of it takes on the wire, TLS included.
#[tokio::test]
async fn an_idle_gateway_costs_less_than_a_kibibyte_a_minute() {
    for sign_requests in [false, true] {
        let mut site = Site::new().await;
        (site.limits.wait, site.sign_requests) = (Duration::from_secs(1), sign_requests);
        let running = site.follow();
        let calls = || site.server.calls("/desired").len();
        eventually("it is idle", || calls() >= 3 && !site.server.book().reports.is_empty()).await;
        let (bytes, cycles, connections) = (site.relay.bytes(), calls(), site.relay.connections());
        eventually("five cycles", || calls() >= cycles + 5).await;
        let a_cycle = (site.relay.bytes() - bytes) / 5;
        assert_eq!(site.relay.connections(), connections);
        // The hold is really five minutes; 132 bytes a minute and connection keep it open; IP and TCP take 52 a packet, four packets.
        let a_minute = (a_cycle + 4 * 52) / 5 + 2 * 132;
        assert!(a_minute < 1024, "{a_minute} B/min, {a_cycle} B a cycle");
        println!("signed {sign_requests}: {a_cycle} B a cycle, {a_minute} B/min");
        running.stop().await;
    }
}

#[tokio::test]
async fn a_server_that_is_gone_is_said_and_all_goes_on_when_it_is_back() {
    let site = Site::new().await;
    let running = site.follow();
    running.connected().await;
    let Site { server, relay, .. } = site;
    server.stop().await;
    relay.cut();
    let link = running.link(|link| matches!(link, Link::Offline(_))).await;
    assert!(link.to_string().contains("control plane"), "{link}");
    running.stop().await;
}
