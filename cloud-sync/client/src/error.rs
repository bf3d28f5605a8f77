//! What goes wrong between a gateway and the control plane, and whose fault it is.

use std::error::Error as _;
use std::time::Duration;

/// Why a call came to nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// No connection.
    #[error("cannot reach the control plane at {url}: {why}")]
    Unreachable {
        /// Where it should be.
        url: String,
        /// Why not.
        why: String,
    },
    /// The connection ended before the answer did.
    #[error("the connection to the control plane at {url} was cut: {why}")]
    Cut {
        /// Where it is.
        url: String,
        /// How.
        why: String,
    },
    /// It did not answer in time, or something on the way gave up.
    #[error("the control plane at {url} does not answer: {why}")]
    TimedOut {
        /// Where it should be.
        url: String,
        /// How that was noticed.
        why: String,
    },
    /// Whoever is there is not the control plane that this gateway believes.
    #[error("whoever answers at {url} is not trusted as the control plane: {why}")]
    Stranger {
        /// Where it should be.
        url: String,
        /// What is wrong with its certificate.
        why: String,
    },
    /// It does not take our certificate.
    #[error("the control plane at {url} refuses the certificate of this gateway: {why}")]
    Certificate {
        /// Where it is.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// 401 or 403.
    #[error("the control plane does not let this gateway in ({status}): {said}")]
    NotLetIn {
        /// The status.
        status: u16,
        /// Its words.
        said: String,
    },
    /// 429 or 503.
    #[error("the control plane is busy ({status}): {said}")]
    Busy {
        /// The status.
        status: u16,
        /// How long it wants to be left alone.
        after: Option<Duration>,
        /// Its words.
        said: String,
    },
    /// Any other status that is no success.
    #[error("the control plane answers {status}: {said}")]
    Status {
        /// The status.
        status: u16,
        /// Its words.
        said: String,
    },
    /// An answer that makes no sense.
    #[error("the control plane's answer is of no use: {0}")]
    Answer(String),
    /// Our own side is not in order.
    #[error("cannot open a session: {0}")]
    Own(String),
}

impl SessionError {
    /// Says whose fault it is that a request failed.
    pub(crate) fn of(url: &str, error: &reqwest::Error) -> Self {
        let (url, why) = (url.to_owned(), causes(error));
        match tls_error(error) {
            Some(rustls::Error::AlertReceived(_)) => Self::Certificate { url, why },
            Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
                Self::Stranger { url, why }
            }
            _ if error.is_timeout() => Self::TimedOut { url, why },
            _ if error.is_connect() => Self::Unreachable { url, why },
            _ => Self::Cut { url, why },
        }
    }

    /// What to do about it.
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Unreachable { .. } => {
                Some("check `url` of `[cloud]`, the network, and HTTPS_PROXY of the agent's environment")
            }
            Self::Stranger { .. } => Some(
                "is a proxy in between that opens TLS? then name its authority in `ca` of `[cloud]`, and set `sign_requests = true`",
            ),
            Self::Certificate { .. } => Some(
                "`tidegate fleet gateways` says whether it was revoked; behind a proxy that opens TLS, set `sign_requests = true`",
            ),
            _ => None,
        }
    }

    /// How long the other side wants to be left alone.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Busy { after, .. } => *after,
            _ => None,
        }
    }

    /// Whether something between us cut a request that was only held.
    pub(crate) const fn is_cut(&self) -> bool {
        matches!(self, Self::TimedOut { .. } | Self::Cut { .. } | Self::Status { status: 408 | 502 | 504, .. })
    }
}

/// What TLS has to say about it. Its errors travel within those of I/O, which do not count them among their causes.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    let within = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    error
        .downcast_ref()
        .or_else(|| within.and_then(|within| tls_error(within)))
        .or_else(|| error.source().and_then(tls_error))
}

/// An error with its causes, none told twice.
pub(crate) fn causes(error: &reqwest::Error) -> String {
    let mut told = Vec::<String>::new();
    let mut cause: Option<&dyn std::error::Error> = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !told.last().is_some_and(|said| said.contains(&text)) {
            told.push(text);
        }
        cause = error.source();
    }
    if told.is_empty() { error.to_string() } else { told.join(": ") }
}
