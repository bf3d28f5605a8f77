//! The examples of docs/reference/trust-documents.md are genuine: signed, and taken by a gateway.

use std::path::Path;

use sync_protocol::desired::Request;
use sync_protocol::{Blob, Desired, DesiredAnswer, Digest, Envelope, NativeCode, Release, Trust};

use crate::support::*;

/// A root, a release, a deployment and a desired document, with which function `oven` and its model come to gateway `press-1`.
fn examples(site: &mut Site) -> (Envelope, DesiredAnswer) {
    let native = NativeCode {
        target: "aarch64-unknown-linux-gnu".to_owned(),
        compatibility: "8c1d2b3a4f5e6071".to_owned(),
        blob: Blob { digest: Digest::of(b"compiled"), bytes: 181_204 },
    };
    let oven = Release {
        models: vec![artifact("motion")],
        minimum: Some("1.1.0".parse().unwrap()),
        native: vec![native],
        capabilities: capabilities(&["mqtt:publish:results/#", "model:motion"]),
        ..function("oven", "1.2.0")
    };
    let answer = site.answer_with(7, &[oven, model("motion", "3.0.0")], |deployment| {
        deployment.floor = 5;
        deployment.artifacts[0].capabilities = capabilities(&["mqtt:publish:results/oven", "model:motion"]);
        let trigger = serde_json::json!([{ "mqtt": { "filter": "sensors/+/temp", "qos": 1 } }]);
        deployment.artifacts[0].settings.insert("trigger".to_owned(), trigger);
        deployment.streams.insert("readings".to_owned(), serde_json::json!({ "max_bytes": "64 MiB" }));
        deployment.comment = "the winter's model".to_owned();
    });
    let logs = Request::Logs { until_ms: NOW + 600_000, level: "debug".to_owned() };
    let desired = site.desired(Some(reference(answer.deployment.as_ref().unwrap())));
    let desired = site.signers.desired(&Desired { requests: vec![logs], ..desired });
    (site.signers.signed_root(1), DesiredAnswer { desired: Some(desired), ..answer })
}

#[test]
fn the_documented_documents_are_genuine() {
    let mut site = Site::new();
    let (root, answer) = examples(&mut site);
    site.run(&answer);

    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/trust-documents.md");
    let page = std::fs::read_to_string(page).unwrap();
    let blocks = page.split("```json\n").skip(1).map(|block| block.split("```").next().unwrap());
    let shown: Vec<Envelope> = blocks.map(|block| Envelope::parse(block.as_bytes()).unwrap()).collect();
    let genuine = [root, answer.releases[0].clone(), answer.deployment.unwrap(), answer.desired.unwrap()];
    for (n, envelope) in genuine.iter().enumerate() {
        assert!(shown.get(n) == Some(envelope), "example {n} should be\n{}", envelope.to_pretty());
    }
    assert_eq!(shown.len(), genuine.len());
    assert!(page.contains(&genuine[0].digest().unwrap().to_string()), "the digest of the root");
}

/// They get through to what they are there to try.
#[test]
fn the_fuzzers_answers_are_taken() {
    for seed in ["full.json", "stick.json"] {
        let seed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/seeds/desired-answer").join(seed);
        let seed = std::fs::read(seed).unwrap();
        sync_protocol::parsers::desired_answer(&seed);
        let answer = DesiredAnswer::parse(&seed).unwrap();
        let mut trust = Trust::anchor(&answer.roots[0], &answer.roots[0].digest().unwrap()).unwrap();
        trust.update_roots(&answer.roots).unwrap();
        trust.verify(&gateway("press-1"), &answer, None, None).unwrap();
    }
}
