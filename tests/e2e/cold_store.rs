//! The example that has five kinds of events.

use std::fs;
use std::net::SocketAddr;

use e2e::{Agent, Device, http};
use serde_json::{Value, json};

use super::modbus::{Plc, Server};

const CONFIG: &str = include_str!("../../functions/examples/cold-store/gateway.toml");

#[tokio::test]
async fn one_function_serves_doors_machine_deliveries_clock_and_callers() -> anyhow::Result<()> {
    let celsius = |tenths: i16| u16::from_be_bytes(tenths.to_be_bytes());
    let plc = Plc::default().with("input", 0, &[celsius(-200), 830]).with_bit("discrete", 0, true);
    let server = Server::tcp(&plc, 0).await?;
    let (broker, api) = (e2e::free_port()?, SocketAddr::from(([127, 0, 0, 1], e2e::free_port()?)));
    let config = CONFIG
        .replace("[gateway]\nname = \"cold-store\"\nstate_dir = \"state\"\n", "")
        .replace("127.0.0.1:18830", &format!("127.0.0.1:{broker}"))
        .replace("127.0.0.1:8470", &api.to_string())
        .replace("127.0.0.1:15020", &server.address.to_string())
        .replace("every = \"10s\"", "every = \"1s\"")
        .replace("bundle = \".\"", &format!("bundle = {:?}", e2e::example("cold-store")));
    let mut agent = Agent::prepare(&config)?;
    let deliveries = agent.folder().join("deliveries");
    fs::create_dir(&deliveries)?;
    agent.resume().await?;
    let device = Device::connect(broker).await?;
    device.subscribe("alarms/#", 1).await?;

    device.publish("doors/south", r#"{"open":true}"#, 1).await?;
    fs::write(deliveries.join("1.csv"), "fish,4\n")?;
    let store = async || -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&http::request(api, "GET /fn/cold-store", &[], "").await?.body)?)
    };
    let is_known = |store: &Value| {
        store["celsius"] == -20.0 && store["watts"] == 830.0 && store["cooling"] == true && store["stock"]["fish"] == 4
    };
    e2e::until("all to be known", async || store().await.is_ok_and(|s| is_known(&s) && s["open"]["south"].is_u64()))
        .await?;
    plc.state().words.insert(("input", 0), celsius(-100));
    let alarm: Value = serde_json::from_slice(&device.next().await?.payload)?;
    assert_eq!(alarm, json!({"too_warm": true, "celsius": -10.0, "open": ["south"]}));

    let reports =
        async || agent.status().is_ok_and(|s| super::stream(&s, "reports")["newest_sequence"].as_u64() > Some(1));
    e2e::until("reports", reports).await
}
