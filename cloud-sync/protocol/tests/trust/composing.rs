//! What an operator's laptop believes of what a control plane shows.

use sync_protocol::trust::Latest;
use sync_protocol::{Refused, Trust};

use crate::support::*;

fn laptop(signers: &Signers) -> Trust {
    let root = signers.signed_root(1);
    Trust::anchor(&root, &root.digest().unwrap()).unwrap()
}

#[test]
fn a_laptop_believes_what_was_signed_and_nothing_else() {
    let (ours, theirs) = (Signers::of_fleet(0), Signers::of_fleet(1));
    let mut trust = laptop(&ours);
    let oven = function("oven", "1.2.0");
    let before = trust.clone();
    assert!(matches!(trust.see_release(&theirs.release(&oven)), Err(Refused::Signatures { valid: 0, .. })));
    let (next, _) = deployment(&ours, presses(), 7, std::slice::from_ref(&oven));
    let forged = theirs.deployment(&next);
    let (half, whole) = (sign(&next, &ours.operators[..1]), ours.deployment(&next));
    for envelope in [forged, half] {
        assert!(matches!(trust.see_deployment(&envelope), Err(Refused::Signatures { .. })));
    }
    assert_eq!((trust.latest(&presses()), &trust), (None, &before), "what was refused leaves nothing behind");
    assert_eq!(trust.see_release(&ours.release(&oven)).unwrap(), oven);
    assert_eq!(trust.see_deployment(&whole).unwrap(), next);
    assert_eq!(trust.latest(&presses()).map(|Latest { number, floor, .. }| (number, floor)), Some((7, 1)));
}

#[test]
fn a_laptop_that_is_shown_less_forgets_nothing() {
    let signers = Signers::of_fleet(0);
    let mut trust = laptop(&signers);
    let oven = function("oven", "1.2.0");
    for number in [5, 2, 9, 3] {
        let (mut next, _) = deployment(&signers, presses(), number, std::slice::from_ref(&oven));
        next.floor = number.min(4);
        trust.see_deployment(&signers.deployment(&next)).unwrap();
    }
    let kept: Trust = serde_json::from_str(&serde_json::to_string(&trust).unwrap()).unwrap();
    assert_eq!(kept.latest(&presses()).map(|Latest { number, floor, .. }| (number, floor)), Some((9, 4)));
    let (mut other, _) = deployment(&signers, presses(), 9, &[]);
    other.floor = 1;
    assert!(matches!(trust.see_deployment(&signers.deployment(&other)), Err(Refused::Changed { .. })));
    trust.see_release(&signers.release(&oven)).unwrap();
    let mut changed = oven;
    changed.published_ms += 1;
    assert!(matches!(trust.see_release(&signers.release(&changed)), Err(Refused::Changed { .. })));
}

#[test]
fn what_a_lost_key_has_signed_counts_no_more_on_a_laptop() {
    let mut signers = Signers::of_fleet(0);
    let mut trust = laptop(&signers);
    let (highest, _) = deployment(&signers, presses(), (1 << 53) - 1, &[]);
    let stolen = signers.deployment(&highest);
    trust.see_deployment(&stolen).unwrap();
    signers.operators = vec![key(11), key(12)];
    trust.update_roots(&[signers.signed_root(2)]).unwrap();
    assert_eq!(trust.latest(&presses()), None);
    assert!(trust.see_deployment(&stolen).is_err());
}
