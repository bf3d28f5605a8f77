//! Sessions of people who have shown the token to the console's form, so that their browser need not send it each time.
//! They are known to this process alone: a restart ends them all.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::header::COOKIE;
use axum::http::{HeaderMap, HeaderValue};
use sha2::{Digest, Sha256};
use tokio::time::Instant;
use tracing::field::display;
use tracing::warn;
use uuid::Uuid;

use super::ROOT;
use crate::clock::Clock;
use crate::limits::Limits;

/// A working day.
const LASTS: Duration = Duration::from_secs(12 * 3600);

/// Says which cookies are sessions.
pub(in crate::api) struct Sessions {
    /// The cookie's name. Another start has another: browsers send cookies to all ports of a host, and two gateways behind
    /// `localhost` are not to take each other's away.
    name: String,
    /// The oldest first.
    known: Mutex<VecDeque<Session>>,
    sessions_max: usize,
    clock: Clock,
}

struct Session {
    /// Of what the cookie holds: how long a comparison takes says nothing of the cookie.
    digest: [u8; 32],
    /// Who has shown the token. A server on another port of the gateway is sent the cookie too by a browser that visits it, and
    /// cannot use it from where that server is.
    address: Option<IpAddr>,
    ends: Instant,
}

impl Session {
    /// Whether `address` is that of the same browser, as far as addresses say.
    fn is_of(&self, address: Option<IpAddr>) -> bool {
        self.address == address
            || match (self.address, address) {
                (Some(IpAddr::V6(before)), Some(IpAddr::V6(now))) => are_neighbours(before, now) && !is_ours(now),
                _ => false,
            }
    }
}

/// Whether both are of one network, in which a machine takes another address each day so that it is not known again.
fn are_neighbours(one: Ipv6Addr, other: Ipv6Addr) -> bool {
    // Those of a link stay, and are all of one network.
    one.segments()[..4] == other.segments()[..4] && !other.is_unicast_link_local()
}

/// Whether it is an address of this very machine: another server on it is a neighbour too. Only those can be bound.
fn is_ours(address: Ipv6Addr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

impl Sessions {
    pub(in crate::api) fn new(limits: &Limits, clock: Clock) -> Self {
        let name = format!("tidegate-console-{}", &Uuid::new_v4().simple().to_string()[..8]);
        Self { name, known: Mutex::default(), sessions_max: limits.console_sessions_max, clock }
    }

    /// `Set-Cookie` that begins a session. The browser sends it to the console and nowhere else: functions at `/fn/` never see it.
    pub(in crate::api) fn begin(&self, address: Option<IpAddr>) -> Option<HeaderValue> {
        // 244 bits that nobody can guess.
        let secret = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        let session = Session { digest: digest(&secret), address, ends: self.clock.instant() + LASTS };
        let mut known = self.known();
        while known.len() >= self.sessions_max {
            known.pop_front();
        }
        known.push_back(session);
        drop(known);
        let (name, age) = (&self.name, LASTS.as_secs());
        HeaderValue::from_str(&format!("{name}={secret}; Path={ROOT}; Max-Age={age}; HttpOnly; SameSite=Strict")).ok()
    }

    /// Ends the session of these cookies, also for whoever has a copy of them. `Set-Cookie` that makes the browser forget it.
    pub(in crate::api) fn end(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let given = self.given(headers);
        self.known().retain(|session| !given.contains(&session.digest));
        let name = &self.name;
        HeaderValue::from_str(&format!("{name}=; Path={ROOT}; Max-Age=0; HttpOnly; SameSite=Strict")).ok()
    }

    /// Whether one of the cookies is a session of `address` that goes on.
    pub(in crate::api) fn holds(&self, headers: &HeaderMap, address: Option<IpAddr>) -> bool {
        let given = self.given(headers);
        let known = self.known();
        let Some(session) = known.iter().find(|session| given.contains(&session.digest)) else { return false };
        let is_of = session.is_of(address);
        if !is_of {
            let (began_at, came_from) = (session.address.map(display), address.map(display));
            warn!(began_at, came_from, "a cookie of the console was refused: it came from elsewhere");
        }
        is_of
    }

    /// Those that have not ended.
    fn known(&self) -> MutexGuard<'_, VecDeque<Session>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.instant();
        while known.front().is_some_and(|session| session.ends <= now) {
            known.pop_front();
        }
        known
    }

    fn given(&self, headers: &HeaderMap) -> Vec<[u8; 32]> {
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let values = cookies.flat_map(|all| all.split(';')).filter_map(|pair| {
            let (name, value) = pair.trim().split_once('=')?;
            (name == self.name).then_some(value)
        });
        values.map(digest).collect()
    }
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sessions")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));

    fn sessions() -> Sessions {
        Sessions::new(&Limits { console_sessions_max: 2, ..Limits::default() }, Clock::held_at(0))
    }

    /// What the browser sends from now on.
    fn cookie(set: &Option<HeaderValue>) -> String {
        set.as_ref().unwrap().to_str().unwrap().split(';').next().unwrap().to_owned()
    }

    fn headers(cookies: &str) -> HeaderMap {
        HeaderMap::from_iter([(COOKIE, HeaderValue::from_str(cookies).unwrap())])
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_is_one_that_was_begun_here_and_has_not_ended() {
        let sessions = sessions();
        let holds = |cookies: &str| sessions.holds(&headers(cookies), HERE);
        let set = sessions.begin(HERE);
        let text = set.as_ref().unwrap().to_str().unwrap();
        assert!(text.ends_with("; Path=/console/; Max-Age=43200; HttpOnly; SameSite=Strict"), "{text}");
        let own = cookie(&set);
        assert!(holds(&own) && holds(&format!("a=b; {own}")));
        let (name, secret) = own.split_once('=').unwrap();
        for other in [String::new(), "-".to_owned(), secret[1..].to_owned(), format!("{secret}0")] {
            assert!(!holds(&format!("{name}={other}")), "{other}");
        }
        assert!(!holds(&format!("tidegate-console={secret}")));
        assert!(!sessions.holds(&headers(&own), Some([192, 168, 1, 7].into())), "somebody else has got it");
        assert!(!self::sessions().holds(&headers(&own), HERE), "one of another start");
        tokio::time::advance(LASTS).await;
        assert!(!holds(&own), "it is over");
    }

    /// Addresses for documentation, which no machine has.
    #[test]
    fn a_session_goes_on_at_another_address_of_the_same_network_but_not_at_one_of_the_gateway() {
        let holds = |began: &str, now: &str| {
            let (sessions, [began, now]) = (sessions(), [began, now].map(|address| Some(address.parse().unwrap())));
            sessions.holds(&headers(&cookie(&sessions.begin(began))), now)
        };
        assert!(holds("2001:db8::1", "2001:db8::1") && holds("2001:db8::1", "2001:db8::a:b:c:d"));
        assert!(!holds("2001:db8::1", "2001:db8:0:1::1"), "another network");
        assert!(!holds("2001:db8::1", "192.0.2.1") && !holds("192.0.2.1", "192.0.2.2"));
        assert!(!holds("fe80::1", "fe80::2") && holds("fe80::1", "fe80::1"));
        assert!(!is_ours("2001:db8::1".parse().unwrap()));
        // Where there is no IPv6, nobody comes from it.
        if UdpSocket::bind("[::1]:0").is_ok() {
            assert!(!holds("::2", "::1") && holds("::1", "::1"));
        }
    }

    #[test]
    fn a_session_that_was_ended_is_over_for_all_who_have_its_cookie() {
        let sessions = sessions();
        let (own, other) = (cookie(&sessions.begin(HERE)), cookie(&sessions.begin(HERE)));
        let forgotten = sessions.end(&headers(&own));
        assert!(forgotten.unwrap().to_str().unwrap().contains("=; Path=/console/; Max-Age=0;"));
        assert!(!sessions.holds(&headers(&own), HERE) && sessions.holds(&headers(&other), HERE));
    }

    #[test]
    fn sessions_are_bounded_and_the_oldest_goes() {
        let sessions = sessions();
        let all = [(); 3].map(|()| cookie(&sessions.begin(HERE)));
        assert_eq!(all.map(|cookie| sessions.holds(&headers(&cookie), HERE)), [false, true, true]);
    }

    #[test]
    fn two_gateways_behind_one_name_do_not_take_each_others_sessions() {
        let (one, two) = (sessions(), sessions());
        let both = format!("{}; {}", cookie(&one.begin(HERE)), cookie(&two.begin(HERE)));
        assert!(one.holds(&headers(&both), HERE) && two.holds(&headers(&both), HERE));
        let _ = one.end(&headers(&both));
        assert!(two.holds(&headers(&both), HERE));
    }
}
