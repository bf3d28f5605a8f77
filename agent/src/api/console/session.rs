//! Sessions of people who have shown the token to the console's form, so that their browser need not send it each time.

use std::time::Duration;

use axum::http::header::COOKIE;
use axum::http::{HeaderMap, HeaderValue};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::ROOT;
use crate::clock::Clock;

/// The cookie's name.
pub(in crate::api) const COOKIE_NAME: &str = "tidegate-console";
/// A working day.
const LASTS: Duration = Duration::from_secs(12 * 3600);

/// Says which cookies are sessions. What makes one is known to this process alone, so a restart ends them all.
pub(in crate::api) struct Sessions {
    key: [u8; 32],
    clock: Clock,
    started: Instant,
}

impl Sessions {
    pub(in crate::api) fn new(clock: Clock) -> Self {
        let mut key = [0; 32];
        // 244 bits that nobody can guess.
        key[..16].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        key[16..].copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        let started = clock.instant();
        Self { key, clock, started }
    }

    fn now(&self) -> u64 {
        (self.clock.instant() - self.started).as_secs()
    }

    /// `Set-Cookie` that begins a session. The browser sends it to the console and nowhere else: functions at `/fn/` never see it.
    pub(in crate::api) fn begin(&self) -> Option<HeaderValue> {
        let ends = self.now() + LASTS.as_secs();
        let (path, age) = (ROOT, LASTS.as_secs());
        let value = format!("{ends:x}-{}", hex::encode(self.proof(ends)));
        cookie(&format!("{COOKIE_NAME}={value}; Path={path}; Max-Age={age}; HttpOnly; SameSite=Strict"))
    }

    /// `Set-Cookie` that ends one.
    pub(in crate::api) fn end() -> Option<HeaderValue> {
        cookie(&format!("{COOKIE_NAME}=; Path={ROOT}; Max-Age=0; HttpOnly; SameSite=Strict"))
    }

    /// Whether one of the cookies is a session that goes on.
    pub(in crate::api) fn holds(&self, headers: &HeaderMap) -> bool {
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut values = cookies.flat_map(|all| all.split(';')).filter_map(|pair| {
            let (name, value) = pair.trim().split_once('=')?;
            (name == COOKIE_NAME).then_some(value)
        });
        values.any(|value| self.is_session(value).unwrap_or(false))
    }

    fn is_session(&self, value: &str) -> Option<bool> {
        let (ends, proof) = value.split_once('-')?;
        let ends = u64::from_str_radix(ends, 16).ok()?;
        let given = hex::decode(proof).ok()?;
        // As with tokens, digests are compared: how long that takes says nothing of the proof.
        let same = Sha256::digest(given) == Sha256::digest(self.proof(ends));
        Some(same && ends > self.now())
    }

    /// Only who knows the key can make it. What is hashed has one length, so that nothing can be added to it.
    fn proof(&self, ends: u64) -> [u8; 32] {
        Sha256::new().chain_update(self.key).chain_update(ends.to_le_bytes()).finalize().into()
    }
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sessions")
    }
}

fn cookie(text: &str) -> Option<HeaderValue> {
    HeaderValue::from_str(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(sessions: &Sessions, cookies: &str) -> bool {
        sessions.holds(&HeaderMap::from_iter([(COOKIE, HeaderValue::from_str(cookies).unwrap())]))
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_is_one_that_was_begun_here_and_has_not_ended() {
        let sessions = Sessions::new(Clock::held_at(0));
        let set = sessions.begin().unwrap();
        let set = set.to_str().unwrap();
        assert!(set.ends_with("; Path=/console/; Max-Age=43200; HttpOnly; SameSite=Strict"), "{set}");
        let own = set.split(';').next().unwrap();
        assert!(holds(&sessions, own) && holds(&sessions, &format!("a=b; {own}")));

        let (ends, proof) = own.split_once('=').unwrap().1.split_once('-').unwrap();
        let flipped = if proof.starts_with('0') { proof.replacen('0', "1", 1) } else { format!("0{}", &proof[1..]) };
        for other in ["", "-", "ffffff-", &format!("{ends}-{flipped}"), &format!("ffffff-{proof}")] {
            assert!(!holds(&sessions, &format!("{COOKIE_NAME}={other}")), "{other}");
        }
        assert!(!holds(&Sessions::new(Clock::held_at(0)), own), "one of another start");
        tokio::time::advance(LASTS).await;
        assert!(!holds(&sessions, own), "it is over");
    }
}
