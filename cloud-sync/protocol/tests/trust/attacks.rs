//! The attacks that the TUF specification names (section 1.5.2), each refused for its own reason. Slow retrieval is the client's:
//! `sync-client` gives up on what comes too slowly.

use sync_protocol::limits::{ACCEPTED_MAX, ANSWER_BYTES_MAX, ARTIFACTS_MAX, ROOTS_MAX, SIGNATURES_MAX};
use sync_protocol::{DesiredAnswer, Envelope, Refused, Target, Trust};

use crate::support::*;

/// Arbitrary installation.
#[test]
fn nothing_runs_that_its_holders_have_not_signed() {
    let mut site = Site::new();
    let oven = [function("oven", "1.0.0")];
    let (document, releases) = deployment(&site.signers, presses(), 1, &oven);
    let strangers = Signers::of_fleet(1);

    let wrong_signers: [Vec<_>; 5] = [
        vec![],
        strangers.operators.clone(),
        site.signers.online.clone(),
        site.signers.publishers.clone(),
        site.signers.roots.clone(),
    ];
    for keys in wrong_signers {
        let answer = site.answer_for(sign(&document, &keys), releases.clone());
        assert_reason(&site.refuses(&answer), "Signatures");
    }

    let signed = site.signers.deployment(&document);
    for keys in [vec![], strangers.publishers.clone(), site.signers.online.clone(), site.signers.operators.clone()] {
        let answer = site.answer_for(signed.clone(), vec![sign(&oven[0], &keys)]);
        assert_reason(&site.refuses(&answer), "Signatures");
    }

    for keys in [vec![], strangers.online.clone(), site.signers.operators.clone()] {
        let desired = site.desired(Some(reference(&signed)));
        let desired = Some(sign(&desired, &keys));
        let answer = DesiredAnswer {
            desired,
            deployment: Some(signed.clone()),
            releases: releases.clone(),
            ..Default::default()
        };
        assert_reason(&site.refuses(&answer), "Signatures");
    }

    let answer = site.answer_for(signed, releases);
    assert!(site.verify(&answer).is_ok());
}

/// A signature under the id of a key that may sign, made by another one.
#[test]
fn a_signature_does_not_count_for_whom_it_names() {
    let mut site = Site::new();
    let mut answer = site.answer(1);
    let mut json = serde_json::to_value(answer.deployment.as_ref().unwrap()).unwrap();
    let other = serde_json::to_value(sign(&site.signers.root(1), &[key(99)])).unwrap();
    json["signatures"][1]["sig"] = other["signatures"][0]["sig"].clone();
    answer.deployment = serde_json::from_value(json).ok();
    assert_eq!(
        site.refuses(&answer),
        Refused::Signatures { document: "the deployment".to_owned(), valid: 1, threshold: 2 }
    );
}

/// One kind of document in the place of another, signed by keys that may sign both.
#[test]
fn a_document_does_not_pass_for_another_kind() {
    let mut site = Site::new();
    let mut answer = site.answer(1);
    answer.deployment = answer.desired.clone();
    assert_reason(&site.refuses(&answer), "Signatures");
    let mut answer = site.answer(1);
    let desired = site.signers.root(2);
    answer.desired = Some(sign(&desired, &site.signers.online));
    assert!(matches!(site.refuses(&answer), Refused::Malformed { why, .. } if why.contains("it is a `root`")));
}

/// Rollback.
#[test]
fn an_older_answer_is_not_taken_again() {
    let mut site = Site::new();
    let first = site.answer(1);
    let second = site.answer(2);
    site.run(&first);
    site.run(&second);
    assert_eq!(site.refuses(&first), Refused::Older { trusted: 2, offered: 1 });
    assert!(site.verify(&second).is_ok(), "the same again is no older one");
    site.restart();
    assert_eq!(site.refuses(&first), Refused::Older { trusted: 2, offered: 1 });
}

/// Rollback, of a deployment on a stick.
#[test]
fn an_older_deployment_needs_the_control_planes_word() {
    let mut site = Site::new();
    let stick = |answer: &DesiredAnswer| DesiredAnswer { desired: None, ..answer.clone() };
    let (first, second, third) = (site.answer(1), site.answer(2), site.answer(3));
    site.run(&first);
    site.run(&stick(&second));
    assert_reason(&site.refuses(&stick(&first)), "Behind");
    assert!(site.verify(&stick(&second)).is_ok(), "the one that runs");
    assert!(site.verify(&stick(&third)).is_ok(), "a newer one");

    // What runs is for this gateway alone; then the newest of the group counts.
    let (own, releases) =
        deployment(&site.signers, Target::Gateway(gateway("press-1")), 9, &[function("oven", "9.0.0")]);
    let own = site.signers.deployment(&own);
    let own = DesiredAnswer { deployment: Some(own), releases, ..Default::default() };
    site.run(&own);
    assert_reason(&site.refuses(&stick(&first)), "Behind");
    assert!(site.verify(&stick(&third)).is_ok());
}

/// Indefinite freeze.
#[test]
fn what_has_expired_begins_nothing_new() {
    let mut site = Site::new();
    let first = site.answer(1);
    let second = site.answer(2);
    site.run(&first);

    site.now_ms = Some(NOW + 14 * DAY);
    assert!(site.refuses(&second).to_string().starts_with("the desired document expired on "));
    site.now_ms = Some(NOW + 30 * DAY);
    let stick = DesiredAnswer { desired: None, ..second };
    assert!(site.refuses(&stick).to_string().starts_with("deployment 2 of group/presses expired on "));
    site.now_ms = Some(NOW + 365 * DAY);
    assert!(site.refuses(&stick).to_string().starts_with("root 1 expired on "));

    let stored = DesiredAnswer { desired: None, ..first };
    assert!(site.trust.reverify(&stored).is_ok(), "what runs goes on, after a restart as well");
}

/// Expiry is for what is new: a gateway can be sent back to what it has had.
#[test]
fn what_was_accepted_once_can_be_gone_back_to_after_it_expired() {
    let mut site = Site::new();
    let first = site.answer(1);
    let second = site.answer_with(2, &[function("oven", "2.0.0")], |d| d.expires_ms = NOW + 300 * DAY);
    site.run(&first);
    site.run(&second);
    site.now_ms = Some(NOW + 100 * DAY);
    let back = site.desired(Some(reference(first.deployment.as_ref().unwrap())));
    let back = sync_protocol::Desired { expires_ms: NOW + 110 * DAY, ..back };
    let back = DesiredAnswer { desired: Some(site.signers.desired(&back)), ..first };
    assert_eq!(site.run(&back).deployment.unwrap().reference().number, 1);
}

/// Endless data.
#[test]
fn more_than_the_bounds_is_not_taken() {
    let mut site = Site::new();
    let endless = vec![b' '; ANSWER_BYTES_MAX + 1];
    assert_reason(&DesiredAnswer::parse(&endless).unwrap_err(), "TooMuch");

    let releases = vec![site.signers.release(&function("oven", "1.0.0")); ARTIFACTS_MAX + 1];
    let mut answer = site.answer(1);
    answer.releases = releases;
    assert_reason(&site.refuses(&answer), "TooMuch");
    let text = serde_json::to_vec(&answer).unwrap();
    assert!(DesiredAnswer::parse(&text).unwrap_err().to_string().contains("a list of more than 256"));

    let mut answer = site.answer(1);
    let many: Vec<_> = (0..=u8::try_from(SIGNATURES_MAX).unwrap()).map(|n| key(100 + n)).collect();
    for key in &many {
        answer.deployment.as_mut().unwrap().add_signature(key).unwrap();
    }
    assert_reason(&site.refuses(&answer), "TooMuch");

    let long = site.answer_with(1, &[function("oven", "1.0.0")], |d| d.comment = "x".repeat(1 << 20));
    assert_reason(&site.refuses(&long), "TooMuch");
    let root = site.signers.signed_root(2);
    assert_reason(&site.refuses_roots(&vec![root; ROOTS_MAX + 1]), "TooMuch");

    let mut huge = function("oven", "1.0.0");
    huge.blob.bytes = u64::from(u32::MAX);
    let answer = site.answer_with(1, &[huge], |_| ());
    assert!(site.refuses(&answer).to_string().contains("a blob of 4294967295 bytes"));
}

/// What a gateway remembers has a bound, however long it is managed.
#[test]
fn memory_does_not_grow_for_ever() {
    let mut site = Site::new();
    let most = u64::try_from(ACCEPTED_MAX).unwrap();
    let size = |site: &Site| serde_json::to_vec(&site.trust).unwrap().len();
    let mut full = 0;
    for number in 1..=most + 20 {
        let releases = [function("oven", &format!("1.0.{}", number % 100))];
        let answer = site.answer_with(number, &releases, |_| ());
        let verified = site.verify(&answer).unwrap();
        site.trust.accept(&verified);
        if number == most {
            full = size(&site);
        }
    }
    assert!(size(&site) < full + 200, "{} of {full} bytes", size(&site));
    assert!(full < 150_000, "{full} bytes");
}

/// Extraneous dependencies.
#[test]
fn a_release_that_nobody_named_is_not_taken() {
    let mut site = Site::new();
    let mut answer = site.answer(1);
    answer.releases.push(site.signers.release(&function("miner", "1.0.0")));
    assert_reason(&site.refuses(&answer), "Extraneous");

    let mut answer = site.answer(1);
    answer.releases.push(answer.releases[0].clone());
    assert_reason(&site.refuses(&answer), "Twice");

    let mut answer = site.answer(1);
    let nothing = site.desired(None);
    answer.desired = Some(site.signers.desired(&nothing));
    assert_reason(&site.refuses(&answer), "Extraneous");
    answer.deployment = None;
    assert_reason(&site.refuses(&answer), "Extraneous");
    answer.releases.clear();
    assert_eq!(site.run(&answer).deployment, None, "nothing was deployed yet");
}

#[test]
fn what_is_named_must_be_there() {
    let mut site = Site::new();
    let mut answer = site.answer(1);
    answer.releases.clear();
    assert_eq!(site.refuses(&answer).to_string(), "the release of function/oven 1.0.0 is missing");
    answer.deployment = None;
    assert_eq!(site.refuses(&answer).to_string(), "deployment 1 is missing");
    answer.desired = None;
    assert_eq!(site.refuses(&answer).to_string(), "a deployment is missing");
}

/// Mix and match.
#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let mut site = Site::new();
    let (first, second) = (site.answer(1), site.answer(2));
    let other_deployment = DesiredAnswer { desired: second.desired.clone(), ..first.clone() };
    assert_reason(&site.refuses(&other_deployment), "Mixed");
    let other_releases = DesiredAnswer { releases: first.releases.clone(), ..second };
    assert_reason(&site.refuses(&other_releases), "Missing");

    // The same number, and another content, by the same operators.
    let again = site.answer_with(1, &[function("oven", "1.5.0")], |_| ());
    let swapped = DesiredAnswer { desired: first.desired, ..again };
    assert_reason(&site.refuses(&swapped), "Mixed");
}

/// Wrong software installation.
#[test]
fn a_release_under_another_name_is_refused() {
    let mut site = Site::new();
    let answer = site.answer_with(1, &[function("miner", "1.0.0")], |d| d.artifacts[0].name = artifact("oven"));
    assert_eq!(
        site.refuses(&answer).to_string(),
        "the deployment says function/oven 1.0.0, and the release that it names is function/miner 1.0.0"
    );
    let answer =
        site.answer_with(1, &[function("oven", "1.0.0")], |d| d.artifacts[0].version = "2.0.0".parse().unwrap());
    assert_reason(&site.refuses(&answer), "WrongSoftware");
    let answer =
        site.answer_with(1, &[model("oven", "1.0.0")], |d| d.artifacts[0].kind = sync_protocol::Kind::Function);
    assert_reason(&site.refuses(&answer), "WrongSoftware");
}

#[test]
fn what_was_signed_once_never_changes() {
    let mut site = Site::new();
    let first = site.answer(1);
    site.run(&first);
    let mut rebuilt = function("oven", "1.0.0");
    rebuilt.blob.bytes += 1;
    let answer = site.answer_with(2, &[rebuilt], |_| ());
    assert!(site.refuses(&answer).to_string().starts_with("function/oven 1.0.0 was sha256:"));
    let answer = site.answer_with(1, &[function("oven", "1.0.0")], |d| d.comment = "again".to_owned());
    assert!(site.refuses(&answer).to_string().starts_with("deployment 1 of group/presses was sha256:"));
}

/// Malicious mirrors: whoever hands it on.
#[test]
fn a_mirror_can_only_hand_on_what_was_signed() {
    let mut site = Site::new();
    let answer = site.answer(1);
    let deployment = answer.deployment.as_ref().unwrap();
    let changes: [fn(&mut serde_json::Value); 4] = [
        |signed| signed["expires_ms"] = (NOW + 999 * DAY).into(),
        |signed| signed["artifacts"][0]["settings"] = serde_json::json!({ "timeout": "9s" }),
        |signed| signed["new"] = "member".into(),
        |signed| drop(signed.as_object_mut().unwrap().remove("comment")),
    ];
    let mut refused = 0;
    for change in changes {
        let changed = tampered(deployment, change);
        if changed != *deployment {
            let answer = DesiredAnswer { deployment: Some(changed), ..answer.clone() };
            assert_reason(&site.refuses(&answer), "Signatures");
            refused += 1;
        }
    }
    assert_eq!(refused, 3, "one changes nothing: there is no comment");

    // A mirror with a root of its own.
    let strangers = Signers::of_fleet(1);
    assert_reason(&site.refuses_roots(&[strangers.signed_root(2)]), "Signatures");
    let (own, pinned) = (strangers.signed_root(1), site.signers.signed_root(1).digest().unwrap());
    assert_reason(&Trust::anchor(&own, &pinned).unwrap_err(), "NotTheAnchor");
}

/// Key compromise, where several must sign.
#[test]
fn one_stolen_key_of_two_signs_nothing() {
    let mut site = Site::new();
    let (document, releases) = deployment(&site.signers, presses(), 1, &[function("oven", "1.0.0")]);
    let stolen = site.signers.operators[0].clone();
    let mut forged = sign(&document, std::slice::from_ref(&stolen));
    let twice = |envelope: &Envelope| {
        let mut json = serde_json::to_value(envelope).unwrap();
        let signature = json["signatures"][0].clone();
        json["signatures"].as_array_mut().unwrap().push(signature);
        serde_json::from_value::<Envelope>(json).unwrap()
    };
    let answer = site.answer_for(twice(&forged), releases.clone());
    assert_reason(&site.refuses(&answer), "Signatures");
    forged.add_signature(&key(99)).unwrap();
    let answer = site.answer_for(forged.clone(), releases.clone());
    assert_eq!(
        site.refuses(&answer),
        Refused::Signatures { document: "the deployment".to_owned(), valid: 1, threshold: 2 }
    );
    forged.add_signature(&site.signers.operators[1]).unwrap();
    let answer = site.answer_for(forged, releases);
    assert!(site.verify(&answer).is_ok(), "a signature too many does no harm");
}

#[test]
fn an_answer_for_another_gateway_is_not_ours() {
    let mut site = Site::new();
    let mut answer = site.answer(1);
    let mut desired = site.desired(Some(reference(answer.deployment.as_ref().unwrap())));
    desired.gateway = gateway("press-2");
    answer.desired = Some(site.signers.desired(&desired));
    assert_eq!(
        site.refuses(&answer).to_string(),
        "the desired document is for gateway `press-2`, and this is `press-1`"
    );
}
