//! Records: each exactly once.

use std::collections::HashSet;
use std::time::Instant;

use control_plane::folder::Folder;
use control_plane::records::{Batch, Data, Incoming, Query, Records as _, Retention, SqliteRecords};
use control_plane::{ControlPlane, backup};
use reqwest::StatusCode;
use serde_json::{Value, json};
use sync_protocol::name::{GatewayName, StreamName};

use crate::support::{Caller, Cloud, Gateway, line};

async fn all(person: &Caller, query: &str) -> Vec<Value> {
    let (status, text) = person.get(&format!("/v1/records?{query}")).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    match text {
        Value::String(lines) => lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect(),
        one => vec![one],
    }
}

fn lines(sequences: impl IntoIterator<Item = u64>) -> String {
    sequences.into_iter().map(|n| line(n, &format!("{{\"n\":{n}}}"))).collect()
}

#[tokio::test]
async fn a_record_that_is_sent_again_is_kept_once() {
    let cloud = Cloud::start().await;
    let gateway = cloud.gateway("hall-3").await;
    for sequences in [1..=3, 2..=5, 1..=5] {
        let last = *sequences.end();
        let (status, answer) = gateway.deliver(&lines(sequences)).await;
        assert_eq!((status, answer), (StatusCode::OK, json!({"acked": last})));
    }
    // What came again may say so.
    gateway.deliver(&lines([4]).replace("\"replayed\":false", "\"replayed\":true")).await;
    let kept = all(&cloud.admin(), "").await;
    let sequences: Vec<u64> = kept.iter().map(|record| record["sequence"].as_u64().unwrap()).collect();
    assert_eq!(sequences, [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn what_comes_before_a_wrong_record_is_acknowledged_with_it() {
    let cloud = Cloud::start().await;
    let gateway = cloud.gateway("hall-3").await;
    let (status, answer) = gateway.deliver(&format!("{}{{\"no\": \"record\"}}\n{}", lines([1, 2]), lines([4]))).await;
    assert_eq!((status, &answer["acked"]), (StatusCode::UNPROCESSABLE_ENTITY, &json!(2)), "{answer}");
    assert!(answer["error"].as_str().unwrap().starts_with("line 3: "), "{answer}");
    let (status, answer) = gateway.deliver("no record\n").await;
    assert_eq!((status, answer.get("acked")), (StatusCode::UNPROCESSABLE_ENTITY, None), "{answer}");
    assert_eq!(all(&cloud.admin(), "").await.len(), 2);
}

/// Its disk was lost, its identity was not: sequences begin at 1 again.
#[tokio::test]
async fn records_of_a_journal_that_was_replaced_are_kept_beside_the_old_ones() {
    let cloud = Cloud::start().await;
    let gateway = cloud.gateway("hall-3").await;
    gateway.deliver(&lines(1..=4)).await;
    let newer: String = (1..=6).map(|n| line(n, "\"new\"")).collect();
    for _ in 0..2 {
        assert_eq!(gateway.deliver(&newer).await.1, json!({"acked": 6}));
    }
    let kept = all(&cloud.admin(), "").await;
    let epochs: Vec<(u64, u64)> =
        kept.iter().map(|r| (r["epoch"].as_u64().unwrap(), r["sequence"].as_u64().unwrap())).collect();
    let expected: Vec<(u64, u64)> = (1..=4).map(|n| (1, n)).chain((1..=6).map(|n| (2, n))).collect();
    assert_eq!(epochs, expected);
}

#[tokio::test]
async fn records_are_found_by_gateway_stream_and_time_and_read_on_from_the_last() {
    let cloud = Cloud::start().await;
    let viewer = cloud.person("viewer").await;
    let (one, other) = (cloud.gateway("hall-1").await, cloud.gateway("hall-2").await);
    one.deliver(&lines(1..=3)).await;
    other.deliver(&lines(1..=3)).await;
    one.deliver(&lines(7..=8).replace("readings", "alarms")).await;
    assert_eq!(all(&viewer, "gateway=hall-1").await.len(), 5);
    assert_eq!(all(&viewer, "stream=readings").await.len(), 6);
    assert_eq!(all(&viewer, "gateway=hall-1&stream=alarms").await.len(), 2);
    assert_eq!(all(&viewer, "gateway=hall-9").await.len(), 0);
    let base = 1_795_359_600_000_u64;
    assert_eq!(all(&viewer, &format!("gateway=hall-1&from_ms={}&to_ms={}", base + 2, base + 8)).await.len(), 3);

    let mut read = Vec::new();
    let mut after = 0;
    loop {
        let page = all(&viewer, &format!("limit=3&after={after}")).await;
        let Some(last) = page.last() else { break };
        after = last["arrival"].as_u64().unwrap();
        read.extend(page);
    }
    assert_eq!(read.len(), 8);
    // What arrives late is behind what was read, though it was made earlier.
    one.deliver(&lines([0])).await;
    assert_eq!(all(&viewer, &format!("after={after}")).await.len(), 1);
    assert_eq!(viewer.get("/v1/records?format=xml").await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn an_export_holds_each_record_as_it_was_appended() {
    let cloud = Cloud::start().await;
    let gateway = cloud.gateway("hall-3").await;
    gateway.deliver(&line(1, "{\"celsius\": 20.50, \"text\": \"a,\\\"b\\\"\"}")).await;
    gateway
        .deliver(
            "{\"stream\":\"readings\",\"sequence\":2,\"data_base64\":\"/wA=\",\"time_ms\":5,\"time_unknown\":true}",
        )
        .await;
    let (_, jsonl) = cloud.admin().get("/v1/records").await;
    let jsonl = jsonl.as_str().unwrap();
    assert!(
        jsonl.lines().next().unwrap().ends_with("\"data\":{\"celsius\": 20.50, \"text\": \"a,\\\"b\\\"\"}}"),
        "{jsonl}"
    );
    let (_, csv) = cloud.admin().get("/v1/records?format=csv").await;
    let rows: Vec<&str> = csv.as_str().unwrap().lines().collect();
    assert_eq!(rows.len(), 3);
    assert!(rows[0].starts_with("arrival,gateway,stream,"), "{}", rows[0]);
    assert!(rows[1].ends_with(",\"{\"\"celsius\"\": 20.50, \"\"text\"\": \"\"a,\\\"\"b\\\"\"\"\"}\","), "{}", rows[1]);
    assert!(rows[2].contains(",true,") && rows[2].ends_with(",,/wA="), "{}", rows[2]);
}

fn batch(sequences: impl IntoIterator<Item = u64>) -> Batch {
    let records = sequences.into_iter().map(|sequence| Incoming {
        sequence,
        time_ms: Some(1_000 + sequence),
        data: Data::Json(format!("{{\"n\":{sequence},\"text\":\"{}\"}}", "x".repeat(80))),
    });
    Batch { stream: StreamName::parse("readings").unwrap(), records: records.collect() }
}

async fn open(dir: &tempfile::TempDir, cloud: &Cloud) -> SqliteRecords {
    SqliteRecords::open(&dir.path().join("records.db"), cloud.plane.clock.clone()).await.unwrap()
}

#[tokio::test]
async fn records_go_by_age_and_by_bytes_oldest_first() {
    let cloud = Cloud::start().await;
    let dir = tempfile::tempdir().unwrap();
    let records = open(&dir, &cloud).await;
    let name = GatewayName::parse("hall-3").unwrap();
    let everything = Query { limit: 1_000_000, ..Query::default() };
    records.keep(&name, batch(1..=100)).await.unwrap();
    cloud.pass(10_000);
    records.keep(&name, batch(101..=200)).await.unwrap();
    let by_age = Retention { age_ms_max: 5_000, bytes_max: u64::MAX };
    assert_eq!(records.expire(by_age, cloud.now_ms()).await.unwrap(), 100);
    assert_eq!(records.page(&everything).await.unwrap()[0].sequence, 101);
    records.keep(&name, batch(201..=60_000)).await.unwrap();
    let bytes_max = records.bytes().await.unwrap() / 2;
    records.expire(Retention { age_ms_max: u64::MAX, bytes_max }, cloud.now_ms()).await.unwrap();
    assert!(records.bytes().await.unwrap() <= bytes_max);
    let left = records.page(&everything).await.unwrap();
    assert_eq!(left.last().unwrap().sequence, 60_000);
    assert!(left.len() > 15_000 && left[0].sequence > 20_000, "{} from {}", left.len(), left[0].sequence);
}

#[tokio::test]
async fn a_copy_of_the_records_is_whole_while_others_arrive() {
    let cloud = Cloud::start().await;
    let dir = tempfile::tempdir().unwrap();
    let records = open(&dir, &cloud).await;
    let name = GatewayName::parse("hall-3").unwrap();
    records.keep(&name, batch(1..=500)).await.unwrap();
    let to = dir.path().join("copy.db");
    let (copied, kept) = tokio::join!(records.copy_to(&to), records.keep(&name, batch(501..=900)));
    copied.unwrap();
    kept.unwrap();
    let copy = SqliteRecords::open(&to, cloud.plane.clock.clone()).await.unwrap();
    let there = copy.page(&Query { limit: 10_000, ..Query::default() }).await.unwrap().len();
    assert!(there == 500 || there == 900, "{there}");
}

#[tokio::test]
async fn a_backup_holds_the_records_too() {
    let cloud = Cloud::start().await;
    cloud.gateway("hall-3").await.deliver(&lines(1..=500)).await;
    let dir = tempfile::tempdir().unwrap();
    let (to, restored) = (dir.path().join("backup"), Folder::new(dir.path().join("restored")));
    backup::backup(&cloud.plane.folder, &to).await.unwrap();
    backup::restore(&to, &restored).await.unwrap();
    let plane = ControlPlane::open(&restored, cloud.plane.clock.clone()).await.unwrap();
    assert_eq!(plane.records.page(&Query { limit: 1_000, ..Query::default() }).await.unwrap().len(), 500);
    assert_eq!(plane.authority.digest(), cloud.plane.authority.digest());
}

/// As over a link that loses answers, repeats and reorders: batches overlap, come again, in any order, from several gateways at once.
/// `TIDEGATE_RECORDS` says how many records.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "it measures, and a bigger run is asked for by the environment")]
async fn each_of_many_records_is_kept_exactly_once() {
    let total: u64 = std::env::var("TIDEGATE_RECORDS").map_or(50_000, |text| text.parse().unwrap());
    let cloud = Cloud::start().await;
    let gateways = 4;
    let each = total / gateways;
    let mut senders = Vec::new();
    let began = Instant::now();
    for n in 0..gateways {
        let Gateway { name, caller, .. } = cloud.gateway(&format!("hall-{n}")).await;
        senders.push(tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(n + 1);
            let mut batches = Vec::new();
            let mut first = 1;
            while first <= each {
                let last = (first + random.u64(1..2_000)).min(each);
                // Cut anywhere, and begun again before the cut.
                batches.push((first.saturating_sub(random.u64(0..200)).max(1), last));
                if random.bool() {
                    batches.push((first, last));
                }
                first = last + 1;
            }
            random.shuffle(&mut batches);
            let mut sent = 0;
            for (first, last) in batches {
                let mut sequences: Vec<u64> = (first..=last).collect();
                if random.u8(..) < 64 {
                    random.shuffle(&mut sequences);
                }
                sent += sequences.len() as u64;
                let (status, answer) = caller.deliver(&name, &lines(sequences)).await;
                assert_eq!((status, answer), (StatusCode::OK, json!({"acked": last})));
            }
            sent
        }));
    }
    let mut sent = 0;
    for sender in senders {
        sent += sender.await.unwrap();
    }
    let took = began.elapsed();
    println!("{sent} records sent, {total} of them different, in {took:?}: {:.0}/s", sent as f64 / took.as_secs_f64());
    let mut seen = HashSet::new();
    let mut query = Query { limit: 10_000, ..Query::default() };
    loop {
        let page = cloud.plane.records.page(&query).await.unwrap();
        let Some(last) = page.last() else { break };
        query.after = last.id;
        for record in page {
            assert_eq!(record.epoch, 1);
            assert!(seen.insert((record.gateway, record.sequence)));
        }
    }
    assert_eq!(seen.len() as u64, each * gateways);
}
