//! Parsers of what comes from outside, each as one function from bytes, for `tests/fuzz`. They may refuse what they like, and panic, and so are
//! found, when what they take breaks the rule beside them.

use crate::name::GatewayName;
use crate::provision::ClaimToken;
use crate::request::{CONTENT_DIGEST, SIGNATURE, SIGNATURE_INPUT, SignedHeaders};
use crate::{DesiredAnswer, Envelope, Refused, SecretKey, Trust};

/// Keys that everybody knows (RFC 8410, section 10.3, and RFC 8032, section 7.1): the roots of the seeds name them.
const KEYS: [&str; 2] = [
    "MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC",
    "MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g",
];

/// What reads back has the same digest, however it is written.
pub fn envelope(bytes: &[u8]) {
    let Ok(envelope) = Envelope::parse(bytes) else { return };
    let again = Envelope::parse(envelope.to_pretty().as_bytes());
    assert_eq!(again.as_ref(), Ok(&envelope));
    assert!(envelope.digest().is_ok(), "what was read has a canonical form");
    assert_eq!(again.and_then(|again| again.digest()), envelope.digest());
}

/// An answer that a gateway takes, with the first of its roots for an anchor, it takes again after a restart, and runs on with. All of it is
/// signed again first, since chance does not find signatures.
pub fn desired_answer(bytes: &[u8]) {
    let Ok(mut answer) = DesiredAnswer::parse(bytes) else { return };
    let parts = answer.roots.iter_mut().chain(&mut answer.desired).chain(&mut answer.deployment);
    for envelope in parts.chain(&mut answer.releases) {
        for key in KEYS {
            let pem = format!("-----BEGIN PRIVATE KEY-----\n{key}\n-----END PRIVATE KEY-----\n");
            let signed = SecretKey::from_pem(&pem).is_ok_and(|key| envelope.add_signature(&key).is_ok());
            assert!(signed, "what was read can be signed");
        }
    }
    let Some(mut trust) = answer.roots.first().and_then(|root| Trust::anchor(root, &root.digest().ok()?).ok()) else {
        return;
    };
    let Ok(gateway) = GatewayName::parse("press-1") else { return };
    let before = trust.clone();
    if trust.update_roots(&answer.roots).is_err() {
        assert_eq!(trust, before, "a refused root leaves something behind");
    }
    let Ok(verified) = trust.verify(&gateway, &answer, None, None) else { return };
    trust.accept(&verified);
    let Some(deployment) = verified.deployment else { return };
    trust.keep(&deployment);
    let stored = serde_json::to_string(&trust).and_then(|text| serde_json::from_str::<Trust>(&text));
    assert_eq!(stored.as_ref().ok(), Some(&trust), "what is kept reads back");
    let running = deployment.reference();
    match trust.verify(&gateway, &answer, None, Some(&running)) {
        Ok(again) => assert_eq!(again.deployment.as_ref(), Some(&deployment)),
        // Its operator wrote down a time at which the root or the desired document had expired.
        Err(Refused::Expired { .. }) => {}
        Err(refused) => panic!("taken before, and now: {refused}"),
    }
    assert_eq!(trust.reverify(&deployment.to_answer()).as_ref(), Ok(&deployment));
}

/// A line each: a claim token, or the headers `Signature-Input`, `Signature` and `Content-Digest`. What is shown can be pasted back.
pub fn words(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().collect();
    for token in lines.iter().filter_map(|line| line.parse::<ClaimToken>().ok()) {
        assert_eq!(token.to_string().parse::<ClaimToken>().as_ref(), Ok(&token));
    }
    let names = [SIGNATURE_INPUT, SIGNATURE, CONTENT_DIGEST];
    let header = |name| names.iter().position(|known| *known == name).and_then(|n| lines.get(n).copied());
    if let Ok(headers) = SignedHeaders::parse(header) {
        let same =
            lines[0].split(';').skip(1).all(|param| headers.covered("GET", "/", "").signature_input().contains(param));
        assert!(same, "{headers:?}");
    }
}
