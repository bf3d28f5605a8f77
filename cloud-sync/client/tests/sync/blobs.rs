//! Downloads over lines that cut, crawl and lie.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use sync_client::{BlobError, BlobStore};
use sync_protocol::{Blob, Digest};

use crate::site::{Site, eventually, names};

fn bytes(count: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(count as u64);
    (0..count).map(|_| random.u8(..)).collect()
}

fn store(site: &Site) -> BlobStore {
    BlobStore::open(&site.state.path().join("blobs"), 0).unwrap()
}

#[tokio::test]
async fn a_blob_comes_with_progress_and_is_fetched_once() {
    let site = Site::new().await;
    let session = site.session().await;
    let (content, store) = (bytes(1_000_000), store(&site));
    let blob = site.server.put(&content);
    let mut told = Vec::new();
    let path = session.blob(&blob, &store, |have| told.push(have)).await.unwrap();
    assert_eq!(fs::read(path).unwrap(), content);
    assert!(told.is_sorted() && told.len() > 5 && told.last() == Some(&1_000_000), "{told:?}");
    session.blob(&blob, &store, |_| {}).await.unwrap();
    assert_eq!(site.server.calls("/blobs/").len(), 1);
}

#[tokio::test]
async fn a_download_that_is_cut_goes_on_where_it_was() {
    let site = Site::new().await;
    site.provision().await;
    let running = site.follow();
    running.connected().await;
    let blob = site.server.put(&bytes(3_000_000));
    let before = site.relay.bytes_down();
    site.relay.cut_after(700_000);
    let mut told = Vec::new();
    running.cloud.fetch(&[blob], |have, of| told.push((have, of))).await.unwrap();
    let path = running.cloud.blobs().get(&blob.digest).unwrap();
    assert_eq!(Digest::of(&fs::read(path).unwrap()), blob.digest);
    let calls = site.server.calls("/blobs/").len();
    assert!((5..=8).contains(&calls), "{calls}");
    // What came before a cut is not sent again, but for what was on its way to the disk, and TLS.
    let sent = site.relay.bytes_down() - before;
    assert!(sent < 3_600_000, "{sent}");
    assert_eq!(told.last(), Some(&(3_000_000, 3_000_000)));
    assert!(told.is_sorted());
    running.stop().await;
}

#[tokio::test]
async fn what_a_kill_left_of_a_download_is_used_if_it_is_right() {
    let site = Site::new().await;
    let session = site.session().await;
    let (content, store) = (bytes(400_000), store(&site));
    let blob = site.server.put(&content);
    let part = site.state.path().join("blobs").join(format!("{}.part", blob.digest.hex()));

    fs::write(&part, &content[..300_000]).unwrap();
    let mut first = None;
    session.blob(&blob, &store, |have| first = first.or(Some(have))).await.unwrap();
    assert!(first.unwrap() > 300_000);
    assert_eq!(site.server.calls("/blobs/")[0].headers["range"], "bytes=300000-");

    // All of it was there, and only its name was not.
    let path = store.get(&blob.digest).unwrap();
    fs::rename(&path, &part).unwrap();
    session.blob(&blob, &store, |_| {}).await.unwrap();
    assert_eq!(site.server.calls("/blobs/").len(), 1);

    // The disk did not keep what was written, or kept too much.
    for left in [vec![0; 300_000], vec![0; 500_000]] {
        fs::remove_file(&path).unwrap();
        fs::write(&part, left).unwrap();
        while session.blob(&blob, &store, |_| {}).await.is_err() {}
        assert_eq!(fs::read(&path).unwrap(), content);
    }
    assert_eq!(names(&site.state.path().join("blobs")), [blob.digest.hex()]);
}

#[tokio::test]
async fn a_server_without_ranges_is_asked_for_all_of_it() {
    let site = Site::new().await;
    let session = site.session().await;
    let (content, store) = (bytes(200_000), store(&site));
    let blob = site.server.put(&content);
    fs::write(site.state.path().join("blobs").join(format!("{}.part", blob.digest.hex())), &content[..9]).unwrap();
    site.server.book().ranges = false;
    let path = session.blob(&blob, &store, |_| {}).await.unwrap();
    assert_eq!(fs::read(path).unwrap(), content);
}

#[tokio::test]
async fn bytes_that_were_not_signed_for_are_never_kept() {
    let site = Site::new().await;
    let session = site.session().await;
    let (content, store) = (bytes(100_000), store(&site));
    let blob = Blob { digest: Digest::of(&content), bytes: 100_000 };
    let serve = |bytes: Vec<u8>| drop(site.server.book().blobs.insert(blob.digest.hex(), bytes.into()));

    serve(content.iter().chain(b"x").copied().collect());
    let error = session.blob(&blob, &store, |_| {}).await.unwrap_err();
    assert!(matches!(error, BlobError::TooLong { bytes: 100_000, .. }), "{error}");

    serve(bytes(100_001)[1..].to_vec());
    let error = session.blob(&blob, &store, |_| {}).await.unwrap_err();
    assert!(matches!(error, BlobError::Digest { .. }) && error.hint().is_some(), "{error}");

    assert!(store.get(&blob.digest).is_none());
    let left: u64 = names(&site.state.path().join("blobs"))
        .iter()
        .map(|name| fs::metadata(site.state.path().join("blobs").join(name)).unwrap().len())
        .sum();
    assert_eq!(left, 0);

    serve(content[..60_000].to_vec());
    let error = session.blob(&blob, &store, |_| {}).await.unwrap_err();
    assert!(matches!(error, BlobError::TooShort { have: 60_000, .. }), "{error}");
    serve(content.clone());
    assert_eq!(fs::read(session.blob(&blob, &store, |_| {}).await.unwrap()).unwrap(), content);
}

/// It does not say how long it is.
#[tokio::test]
async fn a_blob_without_end_is_not_read_to_the_end() {
    let site = Site::new().await;
    let session = site.session().await;
    let (content, store) = (bytes(100_000), store(&site));
    let blob = site.server.put(&content);
    site.server.book().endless = true;
    let before = site.relay.bytes_down();
    let fetched = session.blob(&blob, &store, |_| {});
    let error = tokio::time::timeout(Duration::from_secs(10), fetched).await.expect("it is read on").unwrap_err();
    assert!(matches!(error, BlobError::TooLong { bytes: 100_000, .. }), "{error}");
    let part = site.state.path().join("blobs").join(format!("{}.part", blob.digest.hex()));
    assert!(fs::metadata(part).unwrap().len() <= 100_000);
    // What the system's buffers hold may be on its way.
    let came = site.relay.bytes_down() - before;
    assert!(came < 16 << 20, "{came}");
    site.server.book().endless = false;
    while session.blob(&blob, &store, |_| {}).await.is_err() {}
    assert_eq!(fs::read(store.get(&blob.digest).unwrap()).unwrap(), content);
}

#[tokio::test]
async fn wrong_bytes_are_fetched_again_a_few_times_and_then_said() {
    let site = Site::new().await;
    site.provision().await;
    let running = site.follow();
    running.connected().await;
    let blob = Blob { digest: Digest::of(b"signed"), bytes: 6 };
    site.server.book().blobs.insert(blob.digest.hex(), (&b"others"[..]).into());
    let error = running.cloud.fetch(&[blob], |_, _| {}).await.unwrap_err();
    assert!(matches!(error, BlobError::Digest { .. }), "{error}");
    assert_eq!(site.server.calls("/blobs/").len(), 3);
    running.stop().await;
}

#[tokio::test]
async fn a_server_that_drips_is_left() {
    let mut site = Site::new().await;
    (site.limits.pace, site.limits.pace_bytes) = (Duration::from_millis(500), 50_000);
    let session = site.session().await;
    let (content, store) = (bytes(1_000_000), store(&site));
    let blob = site.server.put(&content);
    site.relay.slow_down(20_000);
    let error = session.blob(&blob, &store, |_| {}).await.unwrap_err();
    assert!(matches!(error, BlobError::TooSlow { .. }), "{error}");
    // What came stays.
    let part = site.state.path().join("blobs").join(format!("{}.part", blob.digest.hex()));
    assert!(fs::metadata(&part).unwrap().len() > 0);
    site.relay.slow_down(0);
    assert_eq!(fs::read(session.blob(&blob, &store, |_| {}).await.unwrap()).unwrap(), content);
}

/// Nobody has to ask for it.
#[tokio::test]
async fn what_a_server_drips_is_asked_for_again() {
    let mut site = Site::new().await;
    (site.limits.pace, site.limits.pace_bytes) = (Duration::from_millis(500), 50_000);
    site.provision().await;
    let running = site.follow();
    running.connected().await;
    let blob = site.server.put(&bytes(300_000));
    site.relay.slow_down(20_000);
    let fetched = tokio::spawn({
        let cloud = running.cloud.clone();
        async move { cloud.fetch(&[blob], |_, _| {}).await }
    });
    eventually("it is left, and asked for again", || site.server.calls("/blobs/").len() >= 3).await;
    site.relay.slow_down(0);
    fetched.await.unwrap().unwrap();
    assert!(running.cloud.blobs().get(&blob.digest).is_some());
    running.stop().await;
}

#[tokio::test]
async fn a_disk_without_room_is_said_before_anything_is_fetched() {
    let site = Site::new().await;
    let session = site.session().await;
    let store = BlobStore::open(&site.state.path().join("blobs"), u64::MAX / 2).unwrap();
    let blob = site.server.put(b"bytes");
    let error = session.blob(&blob, &store, |_| {}).await.unwrap_err();
    assert!(matches!(error, BlobError::DiskFull { .. }), "{error}");
    assert!(error.to_string().contains("are free in"), "{error}");
    assert!(site.server.calls("/blobs/").is_empty());
}

#[tokio::test]
async fn what_nothing_needs_goes() {
    let site = Site::new().await;
    let session = site.session().await;
    let store = store(&site);
    let (needed, other) = (site.server.put(b"needed"), site.server.put(b"other"));
    for blob in [&needed, &other] {
        session.blob(blob, &store, |_| {}).await.unwrap();
    }
    let part = format!("{}.part", Digest::of(b"begun").hex());
    fs::write(site.state.path().join("blobs").join(part), b"beg").unwrap();
    assert_eq!(store.keep_only(BTreeSet::from([needed.digest])).await.unwrap(), 8);
    assert_eq!(names(&site.state.path().join("blobs")), [needed.digest.hex()]);
}

/// Neither cleaning up nor a stick waits for a line that crawls.
#[tokio::test]
async fn a_slow_download_holds_up_nothing_else() {
    let site = Site::new().await;
    let session = site.session().await;
    let (content, store) = (bytes(1_000_000), store(&site));
    let blob = site.server.put(&content);
    site.relay.slow_down(100_000);
    let download = tokio::spawn({
        let store = store.clone();
        async move { session.blob(&blob, &store, |_| {}).await }
    });
    let part = site.state.path().join("blobs").join(format!("{}.part", blob.digest.hex()));
    eventually("it is on its way", || fs::metadata(&part).is_ok_and(|part| part.len() > 0)).await;
    let other = Digest::of(b"other");
    fs::write(site.state.path().join("blobs").join(other.hex()), b"other").unwrap();
    assert_eq!(store.keep_only(BTreeSet::new()).await.unwrap(), 5);
    store.put(blob, std::io::Cursor::new(content.clone())).await.unwrap();
    assert!(!download.is_finished());
    site.relay.slow_down(0);
    assert_eq!(fs::read(download.await.unwrap().unwrap()).unwrap(), content);
    assert_eq!(names(&site.state.path().join("blobs")), [blob.digest.hex()]);
}

#[tokio::test]
async fn a_blob_from_a_stick_is_held_to_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let store = BlobStore::open(folder.path(), 0).unwrap();
    let blob = Blob { digest: Digest::of(b"signed"), bytes: 6 };
    for wrong in [&b"others"[..], b"signed and more", b"sign"] {
        store.put(blob, wrong).await.unwrap_err();
        assert!(store.get(&blob.digest).is_none());
    }
    assert_eq!(fs::read(store.put(blob, &b"signed"[..]).await.unwrap()).unwrap(), b"signed");
}
