//! Turns a temperature into degrees Fahrenheit, and says when it is too hot.

use function_sdk::{Event, Failure, Message, handler, publish};
use serde::{Deserialize, Serialize};
use serde_json::Number;

/// Above this a reading is an anomaly.
const LIMIT_CELSIUS: f64 = 30.0;

#[derive(Deserialize)]
struct Reading {
    device: String,
    seq: u64,
    /// Handed on as the device wrote it.
    ts: Number,
    temperature: f64,
}

#[derive(Debug, PartialEq, Serialize)]
struct Converted {
    device: String,
    seq: u64,
    ts: Number,
    temperature_f: f64,
    anomaly: bool,
}

#[handler]
fn handle(event: Event) -> Result<Converted, Failure> {
    let Reading { device, seq, ts, temperature } = event.json()?;
    let topic = format!("results/{device}");
    let temperature_f = temperature * 9.0 / 5.0 + 32.0;
    let converted = Converted { device, seq, ts, temperature_f, anomaly: temperature > LIMIT_CELSIUS };
    publish(Message::json(topic, &converted)?)?;
    Ok(converted)
}

#[cfg(test)]
mod tests {
    use function_sdk::testing::{Host, message};

    use super::*;

    #[track_caller]
    fn check(payload: &str, converted: &str) {
        let mut host = Host::new();
        let result = host.run(|| handle(message("sensors/press-1/temp", payload))).unwrap();
        assert_eq!(serde_json::to_string(&result).unwrap(), converted);
        assert_eq!(host.published(), [Message::new("results/press-1", converted)]);
    }

    #[test]
    fn a_reading_is_converted_and_published() {
        check(
            r#"{"device":"press-1","ts":1790000000000,"seq":7,"temperature":21.5}"#,
            r#"{"device":"press-1","seq":7,"ts":1790000000000,"temperature_f":70.7,"anomaly":false}"#,
        );
    }

    #[test]
    fn above_thirty_degrees_it_is_an_anomaly() {
        check(
            r#"{"device":"press-1","ts":1790000000.25,"seq":8,"temperature":30}"#,
            r#"{"device":"press-1","seq":8,"ts":1790000000.25,"temperature_f":86.0,"anomaly":false}"#,
        );
        check(
            r#"{"device":"press-1","ts":1790000000.5,"seq":9,"temperature":30.5}"#,
            r#"{"device":"press-1","seq":9,"ts":1790000000.5,"temperature_f":86.9,"anomaly":true}"#,
        );
    }

    #[test]
    fn a_reading_without_a_temperature_is_rejected_and_nothing_published() {
        let mut host = Host::new();
        let failure = host.run(|| handle(message("sensors/press-1/temp", r#"{"device":"press-1","ts":1,"seq":7}"#)));
        assert_eq!(failure, Err(Failure::reject("the payload: missing field `temperature` at line 1 column 35")));
        assert!(host.published().is_empty());
    }
}
