//! What the agent connects to, and the agent itself.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use super::Finding;
use crate::api::status::Status;
use crate::broker;
use crate::config::{ApiListen, Config};
use crate::inference::Models;
use crate::limits::Limits;
use crate::net::Net;
use crate::readable::duration;

/// How long who is asked may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which engine runs models here.
pub(super) fn engine(config: &Config) -> Finding {
    let picked = Models::open(&config.inference, Arc::new(Limits::default())).and_then(|models| models.engine_name());
    match picked {
        Ok(name) => Finding::ok("models", format!("run in {name}")),
        Err(error) => {
            let hint = error.hint().unwrap_or_else(|| "the guide on models says what a gateway can run".to_owned());
            Finding::error("models", error.to_string(), hint)
        }
    }
}

/// Whether the agent runs, or could: nobody else may have its ports.
pub(super) fn agent(config: &Config, running: Option<&Status>) -> Finding {
    if let Some(status) = running {
        let what = format!("{} runs here since {}", status.version, duration(Duration::from_millis(status.uptime_ms)));
        return Finding::ok("agent", what);
    }
    let api = match config.api.listen {
        ApiListen::At(address) => Some(("listen", "[api]", address)),
        ApiListen::Off => None,
    };
    let broker = config.embedded_broker.as_ref().map(|broker| ("listen", "[embedded_broker]", broker.listen));
    for (key, table, address) in api.into_iter().chain(broker) {
        if let Err(error) = could_listen(address) {
            let what = format!("it does not run, and cannot: `{key}` of {table} is {address}: {error}");
            let hint = format!(
                "another program may have the port (`ss -ltnp 'sport = :{}'`): choose another one",
                address.port()
            );
            return Finding::error("agent", what, hint);
        }
    }
    let hint = "`systemctl start tidegate`, or `tidegate run`; `journalctl -u tidegate` says why it ended. As another user than the agent's, try `sudo`";
    Finding::warning("agent", format!("none answers at {}", config.socket().display()), hint)
}

fn could_listen(address: SocketAddr) -> std::io::Result<()> {
    TcpListener::bind(address).map(drop)
}

/// Whether the brokers let the agent in: what it says itself, and when it does not run, by a session that leaves nothing behind.
pub(super) async fn brokers(config: &Config, running: Option<&Status>) -> Vec<Finding> {
    let mut found = Vec::new();
    for (name, broker) in &config.mqtt {
        let about = format!("broker {name}");
        let known = running.and_then(|status| status.brokers.iter().find(|known| known.name == *name));
        let reached = match known {
            Some(known) if known.connected => Ok(format!("the agent is connected to {}", known.url)),
            Some(known) => Err(known.last_error.clone().unwrap_or_else(|| "the agent is not connected".to_owned())),
            None => match tokio::time::timeout(PATIENCE, broker::greet(name, broker, &config.gateway_name())).await {
                Ok(Ok(())) => Ok(format!("{} lets this gateway in", broker.url)),
                Ok(Err(why)) => Err(why),
                Err(_) => Err(format!("{} does not answer within {}", broker.url, duration(PATIENCE))),
            },
        };
        found.push(match reached {
            Ok(what) => Finding::ok(about, what),
            Err(why) => {
                let hint = "is the broker running, the address right, the port open, and are user and password its own? Meanwhile what functions publish is kept";
                Finding::error(about, why, hint)
            }
        });
    }
    found
}

/// Whether the control plane is in reach: what the agent says itself, and when it does not run, whether anybody listens there.
pub(super) async fn control_plane(config: &Config, running: Option<&Status>) -> Option<Finding> {
    let url = config.cloud.as_ref()?.url.as_ref()?;
    const ABOUT: &str = "control plane";
    let hint = "is it running, is its address right, and does a firewall let this gateway out? What was deployed goes on meanwhile";
    if let Some(link) = running.and_then(|status| status.deployment.as_ref()?.link.as_ref()) {
        let what = format!("{url}: {link}");
        return Some(if link == "connected" { Finding::ok(ABOUT, what) } else { Finding::error(ABOUT, what, hint) });
    }
    let Ok(parsed) = url.parse::<hyper::Uri>() else {
        return Some(Finding::error(ABOUT, format!("`{url}` is no URL"), "write `https://HOST:PORT`"));
    };
    let default = if parsed.scheme_str() == Some("http") { 80 } else { 443 };
    let (host, port) =
        (parsed.host().unwrap_or_default().trim_matches(['[', ']']), parsed.port_u16().unwrap_or(default));
    Some(match tokio::time::timeout(PATIENCE, Net::real().connect(host, port)).await {
        Ok(Ok(_)) => Finding::ok(
            ABOUT,
            format!("somebody listens at {url}; whether it lets this gateway in, the agent finds out"),
        ),
        Ok(Err(error)) => Finding::error(ABOUT, format!("{url}: {error}"), hint),
        Err(_) => Finding::error(ABOUT, format!("{url} does not answer within {}", duration(PATIENCE)), hint),
    })
}
