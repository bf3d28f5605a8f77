//! Deployments: what is refused, what is foreseen, what is chosen.

use crate::support::{Cloud, report};
use reqwest::Method;
use serde_json::{Value, json};
use sync_protocol::{Deployment, Digest, Envelope, SecretKey};

/// [cloud-20] What every gateway would refuse is refused when it is handed in, with the reason.
#[tokio::test]
async fn what_gateways_would_refuse_is_refused_at_once() {
    let cloud = Cloud::with_gateways(&["press-1"]).await;
    let oven = cloud.publish("oven", "1.0.0", b"oven").await;
    let check = async |key: &SecretKey, change: &dyn Fn(&mut Value), status: u16, words: &str| {
        let mut said = serde_json::to_value(cloud.deployment("group/presses", 5, std::slice::from_ref(&oven))).unwrap();
        change(&mut said);
        let deployment: Deployment = serde_json::from_value(said).unwrap();
        let signed = Envelope::sign(&deployment, &[key]).unwrap();
        cloud.person("operator", Method::POST, "/v1/deployments", &signed).await.refused(status, words);
    };
    let operator = &cloud.signers.operator;
    check(&cloud.signers.publisher, &|_| (), 422, "signed by 0 of the keys").await;
    check(operator, &|said| said["artifacts"][0]["release"] = json!(Digest::of(b"x")), 422, "oven").await;
    check(operator, &|said| said["artifacts"][0]["version"] = json!("1.0.1"), 422, "oven 1.0.").await;
    check(operator, &|said| said["artifacts"][0]["capabilities"] = json!(["keyvalue"]), 422, "keyvalue").await;
    check(operator, &|said| said["artifacts"] = json!([said["artifacts"][0], said["artifacts"][0]]), 422, "oven").await;
    check(operator, &|said| said["floor"] = json!(6), 400, "floor 6").await;
    check(operator, &|said| said["expires_ms"] = json!(1), 422, "expired").await;
    check(operator, &|said| said["target"] = json!({"group": "nobody"}), 422, "no group `nobody`").await;
    check(operator, &|said| said["target"] = json!({"gateway": "nobody"}), 422, "no gateway `nobody`").await;

    let good = cloud.deployment("group/presses", 5, std::slice::from_ref(&oven));
    cloud.deploy(&good).await;
    let again = cloud.person("operator", Method::POST, "/v1/deployments", &cloud.sign(&good)).await;
    assert_eq!(again.status, 200, "the very same again is no mistake");
    check(operator, &|said| said["comment"] = json!("another"), 409, "does not follow 5").await;
    check(operator, &|said| said["number"] = json!(4), 409, "does not follow 5").await;
    cloud.person("publisher", Method::POST, "/v1/deployments", &cloud.sign(&good)).await.refused(403, "operator");
}

/// [cloud-21] A roll-back goes to any older deployment, but never below the floor that an operator has signed.
#[tokio::test]
async fn a_rollback_goes_no_lower_than_the_floor() {
    let cloud = Cloud::with_gateways(&["press-1"]).await;
    let oven = cloud.publish("oven", "1.0.0", b"oven").await;
    for number in 1..=3 {
        cloud.deploy(&cloud.deployment("group/presses", number, std::slice::from_ref(&oven))).await;
    }
    cloud.choose("group/presses", json!(1)).await.ok();
    assert_eq!(cloud.told("press-1").await, Some(1));
    cloud.deploy(&Deployment { floor: 3, ..cloud.deployment("group/presses", 4, &[oven]) }).await;
    cloud.choose("group/presses", json!(2)).await.refused(409, "below 3");
    cloud.choose("group/presses", json!(3)).await.ok();
    assert_eq!(cloud.told("press-1").await, Some(3));
    cloud.choose("group/presses", json!(9)).await.refused(404, "deployment 9");
    let state = cloud.get("/v1/targets/group/presses/desired").await.json();
    assert_eq!((&state["deployment"], &state["floor"], &state["newest"]), (&json!(3), &json!(3), &json!(4)));
}

/// [cloud-22] A preview says what each gateway would fetch, restart, keep and remove, before anything is signed.
#[tokio::test]
async fn a_preview_says_what_each_gateway_would_do() {
    let cloud = Cloud::with_gateways(&["press-1", "press-2"]).await;
    let oven = cloud.publish("oven", "1.0.0", b"oven").await;
    let newer = cloud.publish("oven", "1.1.0", b"newer oven").await;
    let door = cloud.publish("door", "1.0.0", b"door").await;
    let old = cloud.publish("old", "1.0.0", b"old").await;
    let first = cloud.deployment("group/presses", 1, &[oven, door.clone(), old]);
    cloud.deploy(&first).await;
    let mut says = report("boot", 1);
    says.active =
        Some(sync_protocol::desired::DeploymentRef { number: 1, digest: cloud.sign(&first).digest().unwrap() });
    says.compiles = false;
    cloud.report("press-1", &says).await.ok();

    let next = cloud.deployment("group/presses", 2, &[newer, door]);
    let preview = cloud.person("viewer", Method::POST, "/v1/deployments/preview", &next).await.ok().json();
    let of = |n: usize| preview["items"][n].clone();
    assert_eq!(of(0)["gateway"], "press-1");
    assert_eq!(of(0)["fetch_bytes"], b"newer oven".len());
    assert_eq!(of(0)["fetch"], json!([Digest::of(b"newer oven")]));
    assert_eq!(of(0)["restart"], json!(["function/oven 1.1.0"]));
    assert_eq!(of(0)["keep"], json!(["function/door 1.0.0"]));
    assert_eq!(of(0)["remove"], json!(["function/old 1.0.0"]));
    assert_eq!(of(0)["uncompiled"], json!(["function/oven 1.1.0", "function/door 1.0.0"]), "it has no compiler");
    assert_eq!(of(1)["uncompiled"], json!([]), "it has not said so");
    assert_eq!(
        (of(1)["gateway"].clone(), of(1)["add"].clone()),
        (json!("press-2"), json!(["function/oven 1.1.0", "function/door 1.0.0"]))
    );
    assert_eq!(of(1)["fetch_bytes"], b"newer oven".len() + b"door".len());
    let signed = cloud.person("viewer", Method::POST, "/v1/deployments/preview", &cloud.sign(&next)).await.ok();
    assert_eq!(signed.json(), preview);
}

/// [cloud-23] A gateway runs what was deployed to itself, else what the group of it should that was pointed to last.
#[tokio::test]
async fn a_gateways_own_deployment_comes_before_its_groups() {
    let cloud = Cloud::with_gateways(&["press-1"]).await;
    cloud.person("operator", Method::PUT, "/v1/groups/all", &json!({"gateways": ["press-1"]})).await.ok();
    let oven = cloud.publish("oven", "1.0.0", b"oven").await;
    let one = std::slice::from_ref(&oven);
    assert_eq!(cloud.told("press-1").await, None);
    cloud.deploy(&cloud.deployment("group/presses", 10, one)).await;
    cloud.time.go_ahead(1);
    cloud.deploy(&cloud.deployment("group/all", 20, one)).await;
    assert_eq!(cloud.told("press-1").await, Some(20));
    cloud.deploy(&cloud.deployment("gateway/press-1", 1, one)).await;
    assert_eq!(cloud.told("press-1").await, Some(1));
    cloud.choose("gateway/press-1", Value::Null).await.ok();
    assert_eq!(cloud.told("press-1").await, Some(20));
    cloud.person("operator", Method::DELETE, "/v1/groups/all", &json!({})).await.ok();
    assert_eq!(cloud.told("press-1").await, Some(10));
    cloud
        .person("operator", Method::PUT, "/v1/groups/presses", &json!({"gateways": ["who"]}))
        .await
        .refused(404, "`who`");
}
