//! What a claim grants: decided here, purely; `store/` looks up and keeps.

use sync_protocol::name::{GatewayName, NAME_BYTES_MAX};

use crate::secret;
use crate::store::{ClaimRow, NotGranted, Wish};

/// Most numbers that are tried behind a name that is taken.
pub const NUMBERS_MAX: u32 = 10_000;

/// Whether the wish may be granted by the claim at all. `again`: this very request was granted before, which costs nothing.
///
/// # Errors
/// With the reason.
pub fn may(claim: Option<&ClaimRow>, wish: &Wish<'_>, again: bool) -> Result<(), NotGranted> {
    let claim = claim.filter(|claim| secret::same(claim.secret, wish.secret)).ok_or(NotGranted::Unknown)?;
    if claim.revoked_ms.is_some() {
        return Err(NotGranted::Revoked(claim.id.clone()));
    }
    if again {
        return Ok(());
    }
    if claim.expires_ms <= wish.now_ms {
        return Err(NotGranted::Expired(claim.id.clone()));
    }
    if claim.uses >= claim.uses_max {
        return Err(NotGranted::UsedUp(claim.id.clone(), claim.uses_max));
    }
    Ok(())
}

/// The names that a gateway may get, best first: that of the one that it replaces; else the wanted one; with a prefix, that in front when it is missing, then with `-2`, `-3`, … behind.
pub fn names(claim: &ClaimRow, wanted: &GatewayName) -> impl Iterator<Item = GatewayName> {
    let prefix = claim.name_prefix.as_deref();
    let first = match (&claim.replaces, prefix) {
        (Some(replaced), _) => replaced.as_str().to_owned(),
        (None, Some(prefix)) if !wanted.as_str().starts_with(prefix) => format!("{prefix}{wanted}"),
        _ => wanted.as_str().to_owned(),
    };
    let last = if prefix.is_some() && claim.replaces.is_none() { NUMBERS_MAX } else { 1 };
    (1..=last).filter_map(move |number| {
        let end = if number == 1 { String::new() } else { format!("-{number}") };
        // Names are ASCII, so any place is a boundary of characters.
        let room = NAME_BYTES_MAX.saturating_sub(end.len()).min(first.len());
        GatewayName::parse(&format!("{}{end}", first.get(..room)?)).ok()
    })
}

#[cfg(test)]
mod tests {
    use sync_protocol::Digest;

    use super::*;

    fn claim(name_prefix: Option<&str>) -> ClaimRow {
        ClaimRow {
            id: "c1".to_owned(),
            secret: Digest::of(b"secret"),
            uses_max: 2,
            uses: 0,
            groups: Vec::new(),
            name_prefix: name_prefix.map(str::to_owned),
            replaces: None,
            created_ms: 0,
            expires_ms: 1_000,
            revoked_ms: None,
        }
    }

    #[track_caller]
    fn check(claim: &ClaimRow, secret: &[u8], now_ms: u64, again: bool, expected: Result<(), NotGranted>) {
        let name = GatewayName::parse("hall-3").unwrap();
        let (nonce, key) = (Digest::of(b"n"), Digest::of(b"k"));
        let wish = Wish { claim: "c1", secret: Digest::of(secret), nonce, key, name: &name, now_ms };
        assert_eq!(may(Some(claim), &wish, again), expected);
    }

    #[test]
    fn a_claim_is_limited_in_number_and_time() {
        let fresh = claim(None);
        check(&fresh, b"secret", 999, false, Ok(()));
        check(&fresh, b"secret", 1_000, false, Err(NotGranted::Expired("c1".to_owned())));
        check(&fresh, b"guess", 0, false, Err(NotGranted::Unknown));
        let used = ClaimRow { uses: 2, ..claim(None) };
        check(&used, b"secret", 0, false, Err(NotGranted::UsedUp("c1".to_owned(), 2)));
        check(&used, b"secret", 2_000, true, Ok(()));
        let revoked = ClaimRow { revoked_ms: Some(1), ..claim(None) };
        check(&revoked, b"secret", 0, true, Err(NotGranted::Revoked("c1".to_owned())));
    }

    #[test]
    fn a_prefix_makes_names_that_do_not_collide() {
        let of = |claim: &ClaimRow, wanted: &str| -> Vec<String> {
            let wanted = GatewayName::parse(wanted).unwrap();
            names(claim, &wanted).take(3).map(String::from).collect()
        };
        assert_eq!(of(&claim(None), "hall-3"), ["hall-3"]);
        assert_eq!(of(&claim(Some("press-")), "press-3"), ["press-3", "press-3-2", "press-3-3"]);
        assert_eq!(of(&claim(Some("press-")), "raspberrypi")[..2], ["press-raspberrypi", "press-raspberrypi-2"]);
        let replaces = ClaimRow { replaces: GatewayName::parse("hall-1").ok(), ..claim(Some("press-")) };
        assert_eq!(of(&replaces, "hall-3"), ["hall-1"]);
        let long = "x".repeat(64);
        assert_eq!(of(&claim(Some("x")), &long)[1], format!("{}-2", "x".repeat(62)));
    }
}
