//! Roots of trust, releases, aliases and tags.

use crate::support::{Cloud, DAY_MS, Signers, release};
use reqwest::Method;
use serde_json::json;
use sync_protocol::{Envelope, PublicKey, SecretKey};

async fn online(cloud: &Cloud) -> PublicKey {
    cloud.get("/v1/roots").await.json()["online"][0].as_str().unwrap().to_owned().try_into().unwrap()
}

/// [cloud-10] The first root is taken once; then each must follow, signed by the root keys of the one before and by its own.
#[tokio::test]
async fn roots_are_a_chain() {
    let cloud = Cloud::new().await;
    let online = online(&cloud).await;
    let (ours, theirs, later) = (&cloud.signers, Signers::new(), cloud.time.now_ms() + DAY_MS);
    let hand_in = async |root: &Envelope| cloud.person("admin", Method::POST, "/v1/roots", root).await;
    let sign = |root, keys: &[&SecretKey]| Envelope::sign(&root, keys).unwrap();

    hand_in(&sign(ours.root(2, online, later), &[&ours.root])).await.refused(409, "root 2 does not follow root 0");
    hand_in(&sign(ours.root(1, online, later), &[&theirs.root])).await.refused(422, "signed by 0");
    let stranger = SecretKey::generate().unwrap().public();
    let wrong = sign(ours.root(1, stranger, later), &[&ours.root]);
    hand_in(&wrong).await.refused(422, "lists no on-line key of this control plane");
    let first = sign(ours.root(1, online, later), &[&ours.root]);
    hand_in(&first).await.ok();
    assert_eq!(hand_in(&first).await.status, 200, "the same again is no mistake");

    hand_in(&sign(theirs.root(2, online, later), &[&theirs.root])).await.refused(422, "signed by 0");
    hand_in(&sign(theirs.root(2, online, later), &[&ours.root])).await.refused(422, "signed by 0");
    hand_in(&sign(theirs.root(3, online, later), &[&ours.root, &theirs.root])).await.refused(409, "does not follow");
    hand_in(&sign(theirs.root(2, online, later), &[&ours.root, &theirs.root])).await.ok();
    assert_eq!(cloud.get("/v1/roots").await.json()["items"].as_array().unwrap().len(), 2);
    cloud.person("operator", Method::POST, "/v1/roots", &first).await.refused(403, "this takes admin");
}

/// [cloud-11] A release is taken only from its publishers, and when its bytes are here.
#[tokio::test]
async fn a_release_needs_its_publishers_and_its_bytes() {
    let cloud = Cloud::new().await;
    let hand_in = async |signed: &Envelope| cloud.person("publisher", Method::POST, "/v1/releases", signed).await;
    let sign = |key: &SecretKey| Envelope::sign(&release("oven", "1.0.0", b"oven"), &[key]).unwrap();
    let good = sign(&cloud.signers.publisher);
    hand_in(&good).await.refused(409, "no root of trust");
    cloud.hand_in_root(1).await;
    hand_in(&sign(&cloud.signers.operator)).await.refused(422, "signed by 0 of the keys");
    hand_in(&good).await.refused(422, "is not here");
    cloud.upload(b"oven").await;
    hand_in(&good).await.ok();
    let path = format!("/v1/releases/{}", good.digest().unwrap());
    assert_eq!(cloud.get(&path).await.json()["version"], "1.0.0");
    let longer = Envelope::sign(
        &sync_protocol::Release {
            blob: sync_protocol::Blob { bytes: 5, ..release("a", "1.0.0", b"oven").blob },
            ..release("a", "1.0.0", b"oven")
        },
        &[&cloud.signers.publisher],
    );
    hand_in(&longer.unwrap()).await.refused(422, "has 4 bytes, not 5");
}

/// [cloud-12] A version never changes; handing in the very same again is no mistake.
#[tokio::test]
async fn a_version_never_changes() {
    let cloud = Cloud::with_gateways(&[]).await;
    cloud.publish("oven", "1.0.0", b"one").await;
    cloud.upload(b"two").await;
    let publisher = &cloud.signers.publisher;
    let same = Envelope::sign(&release("oven", "1.0.0", b"one"), &[publisher]).unwrap();
    let other = Envelope::sign(&release("oven", "1.0.0", b"two"), &[publisher]).unwrap();
    assert_eq!(cloud.person("publisher", Method::POST, "/v1/releases", &same).await.status, 200);
    cloud
        .person("publisher", Method::POST, "/v1/releases", &other)
        .await
        .refused(409, "function/oven 1.0.0 is there already");
    assert_eq!(cloud.get("/v1/releases?kind=function&name=oven").await.json()["items"].as_array().unwrap().len(), 1);
}

/// [cloud-13] Aliases and tags name what is published, and move.
#[tokio::test]
async fn aliases_and_tags_name_what_is_published() {
    let cloud = Cloud::with_gateways(&[]).await;
    cloud.publish("oven", "1.0.0", b"one").await;
    cloud.publish("oven", "2.0.0", b"two").await;
    let point = async |version: &str| {
        cloud.person("publisher", Method::PUT, "/v1/aliases/function/oven/live", &json!({"version": version})).await
    };
    point("1.0.0").await.ok();
    point("2.0.0").await.ok();
    point("3.0.0").await.refused(404, "there is no function/oven 3.0.0");
    let aliases = cloud.get("/v1/aliases").await.json();
    assert_eq!((&aliases["items"][0]["alias"], &aliases["items"][0]["version"]), (&json!("live"), &json!("2.0.0")));

    let tags = json!({"tags": {"commit": "abc", "line": "3"}});
    cloud.person("publisher", Method::PUT, "/v1/tags/function/oven/1.0.0", &tags).await.ok();
    assert_eq!(cloud.get("/v1/tags/function/oven/1.0.0").await.json(), tags);
    cloud.person("publisher", Method::PUT, "/v1/tags/function/oven/9.0.0", &tags).await.refused(404, "9.0.0");
    cloud.person("viewer", Method::PUT, "/v1/tags/function/oven/1.0.0", &tags).await.refused(403, "publisher");
}

/// [cloud-14] Lists come in pages, each item once.
#[tokio::test]
async fn a_list_comes_in_pages() {
    let cloud = Cloud::with_gateways(&["a", "b", "c"]).await;
    for version in ["1.0.0", "1.1.0", "1.2.0"] {
        cloud.publish("oven", version, version.as_bytes()).await;
    }
    for (path, key, all) in
        [("/v1/releases", "version", ["1.0.0", "1.1.0", "1.2.0"]), ("/v1/gateways", "name", ["a", "b", "c"])]
    {
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let page = cloud.get(&format!("{path}?limit=2&after={after}")).await.json();
            seen.extend(page["items"].as_array().unwrap().iter().map(|item| item[key].as_str().unwrap().to_owned()));
            let Some(next) = page["next"].as_str() else { break };
            after = next.to_owned();
        }
        assert_eq!(seen, all, "{path}");
    }
}
