//! Bytes: up, down, and gone.

use crate::support::{Cloud, DAY_MS};
use reqwest::Method;
use serde_json::json;
use sync_protocol::Digest;

const PUBLISHER: (&str, &str) = ("person", "publisher");

/// [cloud-1] What arrived of an upload stays, and the rest is enough.
#[tokio::test]
async fn an_upload_goes_on_where_it_was_cut() {
    let cloud = Cloud::new().await;
    let bytes: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let total = bytes.len();
    let path = format!("/v1/blobs/{}", Digest::of(&bytes).hex());
    let piece = async |from: usize, to: usize| {
        let range = format!("bytes {from}-{}/{total}", to - 1);
        cloud.raw(Method::PUT, &path, &[PUBLISHER, ("content-range", &range)], bytes[from..to].to_vec()).await
    };
    let first = piece(0, 300_000).await;
    assert_eq!((first.status, first.json()), (202, json!({"have": 300_000})));

    // The line breaks in the middle of the second piece: half of what was said comes, and the connection ends.
    cut_in_the_middle(&cloud, &path, &bytes, 300_000, 100_000).await;
    let head = cloud.raw(Method::HEAD, &path, &[PUBLISHER], "").await;
    let have: usize = head.header("tidegate-have").parse().unwrap();
    assert_eq!((head.status, have), (404, 400_000));

    let gap = piece(500_000, total).await.refused(409, "400000 bytes are here");
    assert_eq!(gap.header("tidegate-have"), "400000");
    assert_eq!(piece(have, total).await.status, 201);
    let whole = cloud.raw(Method::GET, &path, &[PUBLISHER], "").await;
    assert_eq!(whole.body, bytes);
    assert_eq!(cloud.raw(Method::HEAD, &path, &[PUBLISHER], "").await.header("content-length"), total.to_string());
}

async fn cut_in_the_middle(cloud: &Cloud, path: &str, bytes: &[u8], from: usize, sent: usize) {
    use tokio::io::AsyncWriteExt as _;
    let address = cloud.url.strip_prefix("http://").unwrap();
    let mut line = tokio::net::TcpStream::connect(address).await.unwrap();
    let (left, total) = (bytes.len() - from, bytes.len());
    let head = format!(
        "PUT {path} HTTP/1.1\r\nhost: x\r\nperson: publisher\r\ncontent-length: {left}\r\ncontent-range: bytes {from}-{}/{total}\r\n\r\n",
        total - 1
    );
    line.write_all(head.as_bytes()).await.unwrap();
    line.write_all(&bytes[from..from + sent]).await.unwrap();
    line.shutdown().await.unwrap();
    // Until the server has noticed.
    let mut rest = Vec::new();
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut line, &mut rest).await;
}

/// [cloud-2] A blob is visible whole and right, or not at all.
#[tokio::test]
async fn bytes_of_another_digest_are_refused_and_never_seen() {
    let cloud = Cloud::new().await;
    let path = format!("/v1/blobs/{}", Digest::of(b"this").hex());
    cloud.raw(Method::PUT, &path, &[PUBLISHER], "that").await.refused(422, ", not sha256:");
    cloud.raw(Method::GET, &path, &[PUBLISHER], "").await.refused(404, "there is no blob");
    assert_eq!(cloud.raw(Method::HEAD, &path, &[PUBLISHER], "").await.header("tidegate-have"), "0");
    assert_eq!(cloud.raw(Method::PUT, &path, &[PUBLISHER], "this").await.status, 201);
    // Once it is there, nothing changes it.
    assert_eq!(cloud.raw(Method::PUT, &path, &[PUBLISHER], "that").await.status, 201);
    assert_eq!(cloud.raw(Method::GET, &path, &[PUBLISHER], "").await.body, b"this");
    let more = [PUBLISHER, ("content-range", "bytes 0-3/99999999999")];
    cloud.raw(Method::PUT, &path, &more, "this").await.refused(413, "more than");
}

/// [cloud-3] A download goes on where it was cut.
#[tokio::test]
async fn a_download_goes_on_where_it_was_cut() {
    let cloud = Cloud::new().await;
    let digest = cloud.upload(b"0123456789").await;
    let path = format!("/v1/blobs/{}", digest.hex());
    let rest = cloud.raw(Method::GET, &path, &[PUBLISHER, ("range", "bytes=4-")], "").await;
    assert_eq!(
        (rest.status, rest.body.as_slice(), rest.header("content-range")),
        (206, &b"456789"[..], "bytes 4-9/10")
    );
    let beyond = cloud.raw(Method::GET, &path, &[PUBLISHER, ("range", "bytes=10-")], "").await;
    assert_eq!(beyond.refused(416, "has 10 bytes").header("content-range"), "bytes */10");
}

/// [cloud-4] A gateway gets the bytes that a deployment for it needs, and no others.
#[tokio::test]
async fn a_gateway_fetches_only_what_is_deployed_to_it() {
    let cloud = Cloud::with_gateways(&["press-1", "press-2"]).await;
    let oven = cloud.publish("oven", "1.0.0", b"oven").await;
    cloud.publish("secret", "1.0.0", b"secret").await;
    cloud.deploy(&cloud.deployment("gateway/press-1", 1, &[oven])).await;
    let fetch = async |gateway: &str, bytes: &[u8]| {
        let path = format!("/v1/blobs/{}", Digest::of(bytes).hex());
        cloud.raw(Method::GET, &path, &[("gateway", gateway)], "").await
    };
    assert_eq!(fetch("press-1", b"oven").await.body, b"oven");
    fetch("press-1", b"secret").await.refused(404, "for gateway `press-1`");
    fetch("press-2", b"oven").await.refused(404, "for gateway `press-2`");
}

/// [cloud-5] Uploads that were given up and blobs that nothing refers to go after a day; what a release refers to stays.
#[tokio::test]
async fn what_nothing_refers_to_goes_after_a_day() {
    let cloud = Cloud::with_gateways(&[]).await;
    cloud.publish("oven", "1.0.0", b"oven").await;
    let forgotten = cloud.upload(b"forgotten").await;
    let half = format!("/v1/blobs/{}", Digest::of(b"half").hex());
    cloud.raw(Method::PUT, &half, &[PUBLISHER, ("content-range", "bytes 0-1/4")], "ha").await.ok();

    assert_eq!(cloud.plane.collect_blobs().await.unwrap(), 0);
    cloud.time.go_ahead(DAY_MS + 60_000);
    assert_eq!(cloud.plane.collect_blobs().await.unwrap(), 1);
    cloud.get(&format!("/v1/blobs/{}", forgotten.hex())).await.refused(404, "there is no blob");
    assert_eq!(cloud.raw(Method::HEAD, &half, &[PUBLISHER], "").await.header("tidegate-have"), "0");
    cloud.get(&format!("/v1/blobs/{}", Digest::of(b"oven").hex())).await.ok();
}

/// [cloud-6] Unfinished uploads do not fill the disk without end.
#[tokio::test]
async fn unfinished_uploads_are_bounded_in_number() {
    let cloud = Cloud::new().await;
    let begin = async |n: usize| {
        let path = format!("/v1/blobs/{}", Digest::of(&n.to_le_bytes()).hex());
        cloud.raw(Method::PUT, &path, &[PUBLISHER, ("content-range", "bytes 0-1/4")], "ha").await
    };
    for n in 0..control_plane::limits::UPLOADS_MAX {
        assert_eq!(begin(n).await.status, 202);
    }
    begin(usize::MAX).await.refused(503, "unfinished");
    assert_eq!(begin(0).await.status, 202, "one that was begun may begin anew");
}
