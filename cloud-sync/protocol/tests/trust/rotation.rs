//! Roots that follow each other, keys that are lost or stolen, and what a gateway remembers across all of it.

use sync_protocol::{Desired, DesiredAnswer, Envelope, Refused, Role, Trust};

use crate::support::*;

fn rooted(signers: &Signers, version: u64, change: impl FnOnce(&mut sync_protocol::Root)) -> Envelope {
    let mut root = signers.root(version);
    change(&mut root);
    sign(&root, &signers.roots[..2])
}

#[test]
fn a_gateway_that_was_off_for_years_follows_all_roots() {
    let mut site = Site::new();
    let first = site.answer(1);
    site.run(&first);
    let mut roots = vec![site.signers.signed_root(1)];
    for version in 2..=9 {
        // Each has expired by now but the last: only that is judged by time.
        roots.push(rooted(&site.signers, version, |root| root.expires_ms = NOW - DAY + version));
    }
    site.signers.operators = vec![key(11), key(12)];
    site.signers.online = vec![key(13)];
    roots.push(site.signers.signed_root(10));
    site.trust.update_roots(&roots).unwrap();
    assert_eq!(site.trust.root_version(), 10);
    site.restart();
    assert_eq!(site.trust.root_version(), 10);
    let answer = site.answer(2);
    site.run(&answer);
}

#[test]
fn an_expired_root_begins_nothing_until_the_next_one_comes() {
    let mut site = Site::new();
    site.trust.update_roots(&[rooted(&site.signers, 2, |root| root.expires_ms = NOW)]).unwrap();
    let answer = site.answer(1);
    assert!(site.refuses(&answer).to_string().starts_with("root 2 expired"));
    site.trust.update_roots(&[site.signers.signed_root(3)]).unwrap();
    site.run(&answer);
}

#[test]
fn a_root_never_goes_back_and_none_is_left_out() {
    let mut site = Site::new();
    let (second, third) = (site.signers.signed_root(2), site.signers.signed_root(3));
    assert_eq!(site.refuses_roots(std::slice::from_ref(&third)), Refused::RootVersion { trusted: 1, offered: 3 });
    assert_eq!(
        site.refuses_roots(&[second.clone(), site.signers.signed_root(4)]),
        Refused::RootVersion { trusted: 2, offered: 4 }
    );
    site.trust.update_roots(&[second.clone(), third]).unwrap();
    // An older one, as a file with all of them has, is passed over.
    site.trust.update_roots(&[site.signers.signed_root(1), second]).unwrap();
    assert_eq!(site.trust.root_version(), 3);
    let other = rooted(&site.signers, 3, |root| root.expires_ms += 1);
    assert_eq!(site.refuses_roots(&[other]), Refused::RootVersion { trusted: 3, offered: 3 });
}

#[test]
fn a_root_needs_the_old_holders_and_the_new() {
    let mut site = Site::new();
    let old = site.signers.roots.clone();
    site.signers.roots = vec![key(31), key(32), key(33)];
    let root = site.signers.root(2);
    let by = |keys: &[&sync_protocol::SecretKey]| Envelope::sign(&root, keys).unwrap();
    let new = &site.signers.roots;
    for keys in [
        vec![&new[0], &new[1]],
        vec![&old[0], &old[1]],
        vec![&old[0], &new[0], &new[1]],
        vec![&old[0], &old[1], &new[0]],
    ] {
        let mut site = Site::new();
        assert_reason(&site.refuses_roots(&[by(&keys)]), "Signatures");
    }
    let handed_over = by(&[&old[0], &old[2], &new[0], &new[1]]);
    site.trust.update_roots(&[handed_over]).unwrap();
    let taken_back = sign(&site.signers.root(3), &old);
    assert_reason(&site.refuses_roots(&[taken_back]), "Signatures");
}

#[test]
fn a_lost_root_key_is_replaced_by_the_others() {
    let mut site = Site::new();
    site.signers.roots[2] = key(33);
    site.trust.update_roots(&[site.signers.signed_root(2)]).unwrap();
    site.signers.roots.swap(0, 2);
    site.trust.update_roots(&[site.signers.signed_root(3)]).unwrap();
}

#[test]
fn a_root_that_could_not_be_followed_is_refused() {
    let mut site = Site::new();
    let online = site.signers.online[0].public();
    let changes: [&dyn Fn(&mut sync_protocol::Root); 5] = [
        &|root| drop(root.roles.remove(&Role::Operator)),
        &|root| root.roles.get_mut(&Role::Publisher).unwrap().threshold = 0,
        &|root| root.roles.get_mut(&Role::Operator).unwrap().threshold = 3,
        &|root| root.roles.get_mut(&Role::Operator).unwrap().keys.extend([(online.id(), online)]),
        &|root| {
            let keys = &mut root.roles.get_mut(&Role::Operator).unwrap().keys;
            let (_, key) = keys.pop_first().unwrap();
            keys.insert(key_id(), key);
        },
    ];
    for change in changes {
        assert_reason(&site.refuses_roots(&[rooted(&site.signers, 2, change)]), "Malformed");
        let first = rooted(&site.signers, 1, change);
        assert_reason(&Trust::anchor(&first, &first.digest().unwrap()).unwrap_err(), "Malformed");
    }
}

fn key_id() -> sync_protocol::KeyId {
    key(98).public().id()
}

#[test]
fn the_first_root_is_the_one_of_the_claim_token() {
    let signers = Signers::of_fleet(0);
    let root = signers.signed_root(1);
    assert!(Trust::anchor(&root, &root.digest().unwrap()).is_ok());
    let other = rooted(&signers, 1, |root| root.expires_ms += 1);
    assert_reason(&Trust::anchor(&other, &root.digest().unwrap()).unwrap_err(), "NotTheAnchor");
    let unsigned = sign(&signers.root(1), &signers.roots[..1]);
    assert_reason(&Trust::anchor(&unsigned, &unsigned.digest().unwrap()).unwrap_err(), "Signatures");
}

/// Fast-forward: who had the on-line key has counted as high as there are numbers.
#[test]
fn a_stolen_online_key_leaves_no_lock_behind() {
    let mut site = Site::new();
    let answer = site.answer(1);
    site.run(&answer);
    let last = site.desired(Some(reference(answer.deployment.as_ref().unwrap())));
    let last = Desired { sequence: (1 << 53) - 1, ..last };
    let last = DesiredAnswer { desired: Some(site.signers.desired(&last)), ..answer };
    site.run(&last);
    let answer = site.answer(2);
    assert_reason(&site.refuses(&answer), "Older");

    site.signers.online = vec![key(13)];
    site.trust.update_roots(&[site.signers.signed_root(2)]).unwrap();
    assert_reason(&site.refuses(&last), "Signatures");
    let answer = site.answer(2);
    site.run(&answer);
}

/// The same of an operator and a publisher, whose floors and minimums go with their keys.
#[test]
fn stolen_offline_keys_leave_no_lock_behind() {
    let mut site = Site::new();
    let highest = (1 << 53) - 1;
    let mut locking = function("oven", "999.0.0");
    locking.minimum = Some("999.0.0".parse().unwrap());
    let answer = site.answer_with(highest, &[locking], |d| d.floor = highest);
    site.run(&answer);
    let running = site.running;
    let mended = site.answer(2);
    assert_reason(&site.refuses(&mended), "Superseded");

    site.signers.operators = vec![key(11), key(12)];
    site.trust.update_roots(&[site.signers.signed_root(2)]).unwrap();
    let mended = site.answer(2);
    assert_reason(&site.refuses(&mended), "BelowMinimum");
    let stored = site.trust.reverify(&answer).unwrap();
    assert_eq!(Some(stored.reference()), running, "what runs goes on");

    site.signers.publishers = vec![key(14)];
    site.trust.update_roots(&[site.signers.signed_root(3)]).unwrap();
    let mended = site.answer(2);
    let on_a_stick = DesiredAnswer { desired: None, ..mended };
    site.run(&on_a_stick);
}

/// A key that is added, or one of several that goes, does not undo what the others have said.
#[test]
fn floors_outlive_a_change_of_keys_that_still_stand_for_them() {
    let mut site = Site::new();
    let old = site.answer(1);
    site.run(&old);
    let mut mended = function("oven", "2.0.0");
    mended.minimum = Some("2.0.0".parse().unwrap());
    let floored = site.answer_with(2, &[mended], |d| d.floor = 2);
    site.run(&floored);

    site.signers.operators.push(key(11));
    site.signers.publishers.push(key(14));
    site.signers.online = vec![key(13)];
    site.trust.update_roots(&[site.signers.signed_root(2)]).unwrap();
    site.restart();
    let back = site.answer_for(old.deployment.unwrap(), old.releases);
    assert_reason(&site.refuses(&back), "Superseded");
    let low = site.answer_with(3, &[function("oven", "1.9.0")], |_| ());
    assert_reason(&site.refuses(&low), "BelowMinimum");
}

#[test]
fn probation_that_ends_after_a_restart_still_counts() {
    let mut site = Site::new();
    let mut mended = function("oven", "2.0.0");
    mended.minimum = Some("2.0.0".parse().unwrap());
    let answer = site.answer_with(2, &[mended], |_| ());
    let verified = site.verify(&answer).unwrap();
    site.trust.accept(&verified);
    let stored = verified.deployment.unwrap().to_answer();
    site.restart();
    let again = site.trust.reverify(&stored).unwrap();
    site.trust.keep(&again);
    let low = site.answer_with(3, &[function("oven", "1.9.0")], |_| ());
    assert_reason(&site.refuses(&low), "BelowMinimum");
}

#[test]
fn what_is_kept_on_the_gateway_is_read_back_whole_or_not_at_all() {
    let mut site = Site::new();
    let answer = site.answer_with(1, &[function("oven", "1.0.0"), model("motion", "1.0.0")], |_| ());
    let verified = site.run(&answer).deployment.unwrap();
    let stored = verified.to_answer();
    assert_eq!(site.trust.reverify(&stored).unwrap(), verified);

    let deployment = tampered(stored.deployment.as_ref().unwrap(), |signed| signed["comment"] = "other".into());
    let changed = DesiredAnswer { deployment: Some(deployment), ..stored.clone() };
    assert_reason(&site.trust.reverify(&changed).unwrap_err(), "Changed");
    let release = tampered(&stored.releases[0], |signed| signed["blob"]["bytes"] = 1.into());
    let changed = DesiredAnswer { releases: vec![release, stored.releases[1].clone()], ..stored.clone() };
    assert_reason(&site.trust.reverify(&changed).unwrap_err(), "Missing");
    assert_reason(&site.trust.reverify(&DesiredAnswer::default()).unwrap_err(), "Missing");

    let text = serde_json::to_string(&site.trust).unwrap();
    let signature = text.find("\"sig\":\"").unwrap() + 10;
    let damaged = format!(
        "{}{}{}",
        &text[..signature],
        if &text[signature..=signature] == "0" { "1" } else { "0" },
        &text[signature + 1..]
    );
    assert!(serde_json::from_str::<Trust>(&damaged).is_err(), "its root is not signed any more");
}

/// Under a new name a gateway is counted for anew; its groups are those of the newest word.
#[test]
fn a_gateway_that_got_a_new_name_is_counted_for_anew() {
    let mut site = Site::new();
    for number in 1..=5 {
        let answer = site.answer(number);
        site.run(&answer);
    }
    assert_eq!(site.trust.desired_sequence(), 5);
    site.trust.provisioned(&[group("ovens")]);
    assert_eq!(site.trust.groups(), [group("presses")], "the control plane's word is newer");
    let answer = site.answer(6);
    let desired = site.desired(Some(reference(answer.deployment.as_ref().unwrap())));
    let desired = Desired { gateway: gateway("press-7"), sequence: 1, ..desired };
    let answer = DesiredAnswer { desired: Some(site.signers.desired(&desired)), ..answer };
    let verified = site.trust.verify(&gateway("press-7"), &answer, site.now_ms, None).unwrap();
    site.trust.accept(&verified);
    assert_eq!(site.trust.desired_sequence(), 1);
}
