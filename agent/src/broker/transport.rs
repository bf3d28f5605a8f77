//! How a broker is reached: address, TLS, the socket.

use std::sync::Arc;
use std::time::Duration;

use rumqttc::tokio_rustls::TlsConnector;
use rumqttc::tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::{BrokerError, FileError, files};
use crate::config::MqttConfig;
use crate::name::BrokerName;

/// A TCP or TLS connection.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Where a broker is, and how to get there.
#[derive(Clone)]
pub(super) struct Transport {
    host: String,
    port: u16,
    tls: Option<TlsConnector>,
}

impl Transport {
    /// Reads the URL and the TLS files.
    pub(super) fn new(name: &BrokerName, config: &MqttConfig) -> Result<Self, BrokerError> {
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
        Ok(Self { host, port, tls })
    }

    /// Opens a connection.
    pub(super) async fn open(&self) -> Result<Box<dyn Stream>, String> {
        let Self { host, port, .. } = self;
        let tcp = TcpStream::connect((host.as_str(), *port)).await.map_err(|e| format!("{host}:{port}: {e}"))?;
        // Nagle's algorithm holds a result back until the PUBACK before it is acknowledged: 40 ms at low rates.
        tcp.set_nodelay(true).map_err(|e| format!("cannot set TCP_NODELAY: {e}"))?;
        let Some(tls) = &self.tls else { return Ok(Box::new(tcp)) };
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
    let tls_error = |why: String| BrokerError::Tls { broker: name.clone(), why };
    let file_error = |file: FileError| BrokerError::File { broker: name.clone(), file };
    let mut roots = RootCertStore::empty();
    match &config.ca {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(file) => {
            for certificate in files::certificates("ca", file).map_err(file_error)? {
                roots.add(certificate).map_err(|e| tls_error(format!("{}: {e}", file.display())))?;
            }
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| tls_error(e.to_string()))?
        .with_root_certificates(roots);
    match (&config.cert, &config.key) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(cert), Some(key)) => {
            let chain = files::certificates("cert", cert).map_err(file_error)?;
            let key = files::private_key("key", key).map_err(file_error)?;
            builder.with_client_auth_cert(chain, key).map_err(|e| tls_error(format!("cert and key: {e}")))
        }
        _ => Err(tls_error("`cert` and `key` go together".to_owned())),
    }
}

/// Time between tries to connect: doubled each time, with jitter so that a fleet does not return at once.
#[derive(Debug)]
pub(super) struct BackOff {
    next: Duration,
    first: Duration,
    last: Duration,
}

impl BackOff {
    pub(super) const fn new(first: Duration, last: Duration) -> Self {
        Self { next: first, first, last }
    }

    /// How long to wait now: between half of the step and all of it.
    pub(super) fn step(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.last);
        step.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    pub(super) fn reset(&mut self) {
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
