//! A gateway may not know the time, or have it wrong.

use sync_protocol::{Desired, DesiredAnswer};

use crate::support::*;

#[test]
fn a_gateway_whose_clock_was_never_set_still_takes_deployments() {
    let mut site = Site::new();
    site.now_ms = None;
    let answer = site.answer(1);
    site.run(&answer);
    let answer = site.answer(2);
    site.run(&answer);
}

/// Without a clock the newest time that an operator wrote down is the least that it can be.
#[test]
fn without_a_clock_time_is_what_was_signed_last() {
    let mut site = Site::new();
    site.now_ms = None;
    let held_back = site.answer_with(1, &[function("oven", "1.0.0")], |d| d.expires_ms = NOW);
    let newer = site.answer_with(2, &[function("oven", "2.0.0")], |d| d.created_ms = NOW + DAY);
    site.run(&newer);
    let late =
        DesiredAnswer { desired: site.answer_for(held_back.deployment.clone().unwrap(), vec![]).desired, ..held_back };
    assert!(
        site.refuses(&late).to_string().starts_with("deployment 1 of group/presses expired on 2026-11-22 00:00 UTC")
    );

    let old = site.desired(None);
    let old = Desired { expires_ms: NOW, ..old };
    let old = DesiredAnswer { desired: Some(site.signers.desired(&old)), ..Default::default() };
    assert!(site.refuses(&old).to_string().starts_with("the desired document expired"));
}

/// A battery that ran out, a time server that lies: once the clock is right, everything is as if it had always been.
#[test]
fn a_wrong_clock_locks_no_gateway_out() {
    let mut site = Site::new();
    let answer = site.answer(1);
    let before = site.trust.clone();
    for wrong in [NOW + 36_500 * DAY, u64::MAX] {
        site.now_ms = Some(wrong);
        assert_reason(&site.refuses(&answer), "Expired");
        assert_eq!(site.trust, before);
    }
    site.now_ms = Some(0);
    site.run(&answer);
    site.now_ms = Some(NOW);
    let answer = site.answer(2);
    site.run(&answer);
}

/// What has expired counts again by a clock that was set back; what was superseded does not, and neither does what was mended.
#[test]
fn a_clock_that_is_set_back_brings_back_nothing_superseded() {
    let mut site = Site::new();
    let old = site.answer(1);
    site.run(&old);
    let mut mended = function("oven", "3.0.0");
    mended.minimum = Some("3.0.0".parse().unwrap());
    let newest = site.answer_with(3, &[mended], |d| d.floor = 3);
    site.run(&newest);
    let low = site.answer_with(4, &[function("oven", "2.9.0")], |d| d.expires_ms = NOW);
    for clock in [0, NOW - DAY] {
        site.now_ms = Some(clock);
        assert_reason(&site.refuses(&old), "Older");
        let back = site.answer_for(old.deployment.clone().unwrap(), old.releases.clone());
        assert_reason(&site.refuses(&back), "Superseded");
        assert_reason(&site.refuses(&low), "BelowMinimum");
    }
}

/// An operator's clock that was years ahead does not matter where there is a clock; where there is none, new keys put it right.
#[test]
fn a_wrong_clock_of_an_operator_can_be_put_right() {
    let mut site = Site::new();
    let ahead = site.answer_with(1, &[function("oven", "1.0.0")], |d| {
        d.created_ms = NOW + 9_000 * DAY;
        d.expires_ms = NOW + 9_030 * DAY;
    });
    site.run(&ahead);
    let answer = site.answer(2);
    assert!(site.verify(&answer).is_ok());
    site.now_ms = None;
    assert_reason(&site.refuses(&answer), "Expired");

    site.signers.operators = vec![key(11), key(12)];
    site.trust.update_roots(&[site.signers.signed_root(2)]).unwrap();
    let answer = site.answer(2);
    site.run(&answer);
}
