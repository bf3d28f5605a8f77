//! How a broker is reached: address, TLS, the socket.

use std::sync::Arc;
use std::time::Duration;

use rumqttc::tokio_rustls::TlsConnector;
use rumqttc::tokio_rustls::rustls::ClientConfig;
use rustls_pki_types::ServerName;

use super::BrokerError;
use crate::config::MqttConfig;
use crate::name::BrokerName;
use crate::net::{Net, Stream};
use crate::tls::{self, TlsError};

/// Where a broker is, and how to get there.
#[derive(Clone)]
pub(super) struct Transport {
    net: Net,
    host: String,
    port: u16,
    tls: Option<TlsConnector>,
}

impl Transport {
    /// Reads the URL and the TLS files.
    pub(super) fn new(name: &BrokerName, config: &MqttConfig, net: Net) -> Result<Self, BrokerError> {
        let (secure, host, port) = parse_url(&config.url).map_err(|why| BrokerError::Url {
            broker: name.clone(),
            url: config.url.clone(),
            why,
        })?;
        let files = [("ca", &config.ca), ("cert", &config.cert), ("key", &config.key)];
        if !secure && let Some((key, _)) = files.iter().find(|(_, path)| path.is_some()) {
            return Err(BrokerError::NotSecure { broker: name.clone(), key });
        }
        let tls = if secure { Some(TlsConnector::from(Arc::new(client_config(name, config)?))) } else { None };
        Ok(Self { net, host, port, tls })
    }

    /// Opens a connection.
    pub(super) async fn open(&self) -> Result<Box<dyn Stream>, String> {
        let Self { host, port, .. } = self;
        let tcp = self.net.connect(host, *port).await.map_err(|e| format!("{host}:{port}: {e}"))?;
        let Some(tls) = &self.tls else { return Ok(tcp) };
        let server =
            ServerName::try_from(host.clone()).map_err(|e| format!("`{host}` cannot be in a certificate: {e}"))?;
        let stream = tls.connect(server, tcp).await.map_err(|e| format!("TLS with {host}:{port}: {e}"))?;
        Ok(Box::new(stream))
    }
}

/// Whether TLS, host and port.
fn parse_url(url: &str) -> Result<(bool, String, u16), &'static str> {
    let (secure, rest) = match url.split_once("://") {
        Some(("mqtt" | "tcp", rest)) => (false, rest),
        Some(("mqtts" | "ssl", rest)) => (true, rest),
        _ => return Err("it must start with `mqtt://` or `mqtts://`"),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains('@') {
        return Err("user and password do not belong into it: use `username` and `password_file`");
    }
    if rest.contains(['/', '?', '#']) {
        return Err("nothing may follow the port");
    }
    let default = if secure { 8883 } else { 1883 };
    let (host, port) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']').ok_or("the `]` is missing")?,
        None => rest.split_once(':').map_or((rest, ""), |(host, _)| (host, &rest[host.len()..])),
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => default,
        Some(port) => port.parse().ok().filter(|port| *port > 0).ok_or("the port must be 1 to 65535")?,
        None => return Err("only `:PORT` may follow the host"),
    };
    if host.is_empty() {
        return Err("the host is missing");
    }
    Ok((secure, host.to_owned(), port))
}

fn client_config(name: &BrokerName, config: &MqttConfig) -> Result<ClientConfig, BrokerError> {
    let (ca, cert, key) = (config.ca.as_deref(), config.cert.as_deref(), config.key.as_deref());
    tls::client_config(ca, cert, key).map_err(|error| match error {
        TlsError::File(file) => BrokerError::File { broker: name.clone(), file },
        TlsError::Unfit(why) => BrokerError::Tls { broker: name.clone(), why },
    })
}

/// Time between tries to connect: doubled each time, with jitter so that a fleet does not return at once.
#[derive(Debug)]
pub(crate) struct BackOff {
    next: Duration,
    first: Duration,
    last: Duration,
}

impl BackOff {
    pub(crate) const fn new(first: Duration, last: Duration) -> Self {
        Self { next: first, first, last }
    }

    /// How long to wait now: between half of the step and all of it.
    pub(crate) fn step(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.last);
        step.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(url: &str, expected: Result<(bool, &str, u16), &str>) {
        let found = parse_url(url);
        assert_eq!(found.as_ref().map(|(s, h, p)| (*s, h.as_str(), *p)).map_err(|e| *e), expected, "{url}");
    }

    #[test]
    fn a_url_names_scheme_host_and_port() {
        check("mqtt://127.0.0.1:1884", Ok((false, "127.0.0.1", 1884)));
        check("mqtts://broker.example", Ok((true, "broker.example", 8883)));
        check("mqtt://[::1]:1883/", Ok((false, "::1", 1883)));
        check("http://a", Err("it must start with `mqtt://` or `mqtts://`"));
        check("mqtt://me:secret@a", Err("user and password do not belong into it: use `username` and `password_file`"));
        check("mqtt://a:0", Err("the port must be 1 to 65535"));
        check("mqtt://", Err("the host is missing"));
    }

    #[test]
    fn waits_grow_to_a_bound_and_differ() {
        let mut back_off = BackOff::new(Duration::from_millis(250), Duration::from_secs(30));
        let steps: Vec<_> = (0..20).map(|_| back_off.step()).collect();
        assert!(steps[0] >= Duration::from_millis(125) && steps[0] <= Duration::from_millis(250));
        assert!(steps[19] >= Duration::from_secs(15) && steps[19] <= Duration::from_secs(30));
        assert!(steps[10..].windows(2).any(|pair| pair[0] != pair[1]));
        back_off.reset();
        assert!(back_off.step() <= Duration::from_millis(250));
    }
}
