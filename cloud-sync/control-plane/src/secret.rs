//! Secrets that are handed out once, and of which only the SHA-256 is kept.

use sync_protocol::Digest;

/// 32 random bytes in hexadecimal.
///
/// # Errors
/// When the system has none.
pub fn generate() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(hex::encode(bytes))
}

/// A short random id, which is no secret.
///
/// # Errors
/// When the system has no random bytes.
pub fn id() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 6];
    getrandom::fill(&mut bytes)?;
    Ok(hex::encode(bytes))
}

/// Whether they are the same, in a time that does not depend on where they differ.
pub fn same(kept: Digest, shown: Digest) -> bool {
    let (kept, shown) = (kept.hex(), shown.hex());
    let differ = kept.bytes().zip(shown.bytes()).fold(0, |differ, (a, b)| std::hint::black_box(differ | (a ^ b)));
    differ == 0
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn secrets_differ_and_are_compared_whole() {
        let made: BTreeSet<String> = (0..100).map(|_| generate().unwrap()).collect();
        assert_eq!(made.len(), 100);
        // Random up to the last byte.
        assert!(made.iter().all(|secret| secret.len() == 64));
        assert!(made.iter().map(|secret| &secret[60..]).collect::<BTreeSet<_>>().len() > 90);

        let kept = Digest::of(b"secret");
        assert!(same(kept, kept));
        for at in 0..64 {
            let mut shown = kept.hex();
            let other = if shown[at..].starts_with('0') { "1" } else { "0" };
            shown.replace_range(at..=at, other);
            assert!(!same(kept, format!("sha256:{shown}").parse().unwrap()), "{at}");
        }
    }
}
