//! The agent as its users run it: a process, a broker, devices. One module per promise.

mod actuation;
mod agents;
mod brokers;
mod browser;
mod calls;
mod cold_store;
mod compiling;
mod console;
mod counters;
mod crash;
mod dead_letters;
mod demo;
mod deployment;
mod doctor;
mod effects;
mod embedded;
mod fahrenheit;
mod failures;
mod field;
mod files;
mod filters;
mod fleet;
mod gpio;
mod layers;
mod managed;
mod modbus;
mod native;
mod outage;
mod parked;
mod people;
mod records;
mod reload;
mod replay;
mod schedule;
mod seeing;
mod sensors;
mod sources;
mod together;
mod uplink;
mod url_components;
mod urls;
mod windows;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use e2e::{Device, seq};
use serde_json::Value;

/// How often each `seq` was heard, until all of `0..events` were, or nothing new came for `e2e::PATIENCE`.
async fn hear(device: &Device, events: u64) -> anyhow::Result<BTreeMap<u64, u64>> {
    let mut heard = BTreeMap::new();
    while (heard.len() as u64) < events {
        let message = device.next().await.with_context(|| {
            let missing: Vec<_> = (0..events).filter(|seq| !heard.contains_key(seq)).take(20).collect();
            format!("{} of {events} events came; lost: {missing:?} …", heard.len())
        })?;
        *heard.entry(seq(&message.payload)?).or_insert(0) += 1;
    }
    Ok(heard)
}

/// Publishes readings `events`, `per_second` of them, at QoS 1.
async fn send(device: &Device, topic: &str, events: std::ops::Range<u64>, per_second: u64) -> anyhow::Result<()> {
    let at_once = (per_second / 100).max(1);
    let mut ticks = tokio::time::interval(Duration::from_nanos(1_000_000_000 * at_once / per_second));
    for seq in events {
        if seq % at_once == 0 {
            ticks.tick().await;
        }
        device.publish(topic, e2e::site::reading("press-1", seq), 1).await?;
    }
    Ok(())
}

/// The numbers of one function in `tidegate status --json`.
fn function<'a>(status: &'a Value, name: &str) -> &'a Value {
    let functions = status["functions"].as_array().map(Vec::as_slice).unwrap_or_default();
    functions.iter().find(|function| function["name"] == name).unwrap_or(&Value::Null)
}

/// The numbers of one stream.
fn stream<'a>(status: &'a Value, name: &str) -> &'a Value {
    let streams = status["streams"].as_array().map(Vec::as_slice).unwrap_or_default();
    streams.iter().find(|stream| stream["name"] == name).unwrap_or(&Value::Null)
}
