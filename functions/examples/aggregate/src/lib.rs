//! Means of a minute, made of single readings.

use function_sdk::{Event, Failure, Message, handler, info, kv, publish};
use serde::{Deserialize, Serialize};

const MINUTE_MS: u64 = 60_000;

/// A device that sends faster should be averaged before it sends.
const READINGS_MAX: usize = 6_000;

#[derive(Deserialize)]
struct Reading {
    device: String,
    seq: u64,
    /// Unix time in milliseconds.
    ts: u64,
    temperature: f64,
}

/// The minute under way. Readings are kept by their number, so that one that comes again is not counted again.
#[derive(Default, Deserialize, Serialize)]
struct Minute {
    start: u64,
    readings: Vec<(u64, f64)>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Mean {
    device: String,
    /// Unix time in milliseconds at which the minute began.
    minute: u64,
    mean: f64,
    min: f64,
    max: f64,
    count: usize,
}

/// The first reading of a later minute closes the one before it, whose mean is published and returned.
#[handler]
fn handle(event: Event) -> Result<Option<Mean>, Failure> {
    let reading: Reading = event.json()?;
    let minutes = kv::open("minutes")?;
    let mut minute: Minute = minutes.get_json(&reading.device)?.unwrap_or_default();
    let start = reading.ts - reading.ts % MINUTE_MS;

    if start < minute.start {
        info!("reading {} of {} is for a minute that is over", reading.seq, reading.device);
        return Ok(None);
    }
    let mut mean = None;
    if start > minute.start {
        mean = minute.mean(&reading.device);
        minute = Minute { start, readings: Vec::new() };
    }
    if minute.readings.iter().any(|(seq, _)| *seq == reading.seq) {
        return Ok(None);
    }
    if minute.readings.len() == READINGS_MAX {
        return Err(Failure::reject(format_args!(
            "{} sends more than {READINGS_MAX} readings a minute",
            reading.device
        )));
    }
    minute.readings.push((reading.seq, reading.temperature));
    minutes.set_json(&reading.device, &minute)?;

    if let Some(mean) = &mean {
        publish(Message::json(format!("means/{}", mean.device), mean)?)?;
    }
    Ok(mean)
}

impl Minute {
    fn mean(&self, device: &str) -> Option<Mean> {
        let values = || self.readings.iter().map(|(_, temperature)| *temperature);
        let count = self.readings.len();
        #[expect(clippy::cast_precision_loss, reason = "at most READINGS_MAX")]
        let mean = values().sum::<f64>() / count as f64;
        (count > 0).then(|| Mean {
            device: device.to_owned(),
            minute: self.start,
            mean,
            min: values().fold(f64::INFINITY, f64::min),
            max: values().fold(f64::NEG_INFINITY, f64::max),
            count,
        })
    }
}

#[cfg(test)]
mod tests {
    use function_sdk::testing::{Host, message};

    use super::*;

    fn send(host: &mut Host, seq: u64, ts: u64, temperature: f64) -> Option<Mean> {
        let payload = format!(r#"{{"device":"press-1","seq":{seq},"ts":{ts},"temperature":{temperature}}}"#);
        host.run(|| handle(message("sensors/press-1/temp", payload))).unwrap()
    }

    #[test]
    fn a_later_minute_closes_the_one_before() {
        let mut host = Host::new();
        assert_eq!(send(&mut host, 1, 60_000, 20.0), None);
        assert_eq!(send(&mut host, 2, 119_999, 23.0), None);
        let mean = send(&mut host, 3, 120_000, 99.0).unwrap();
        let json = r#"{"device":"press-1","minute":60000,"mean":21.5,"min":20.0,"max":23.0,"count":2}"#;
        assert_eq!(serde_json::to_string(&mean).unwrap(), json);
        assert_eq!(host.published(), [Message::new("means/press-1", json)]);
    }

    #[test]
    fn a_repeat_counts_once_in_its_minute_and_not_after_it() {
        let mut host = Host::new();
        send(&mut host, 1, 60_000, 20.0);
        send(&mut host, 1, 60_000, 20.0);
        send(&mut host, 2, 61_000, 30.0);
        let mean = send(&mut host, 3, 120_000, 40.0).unwrap();
        assert_eq!((mean.count, mean.mean), (2, 25.0));

        assert_eq!(send(&mut host, 3, 120_000, 40.0), None);
        assert_eq!(send(&mut host, 2, 61_000, 30.0), None);
        assert_eq!(host.log(), ["info: reading 2 of press-1 is for a minute that is over"]);
        assert_eq!(host.published().len(), 1);
    }

    #[test]
    fn a_minute_has_a_bound() {
        let mut host = Host::new();
        let full = Minute { start: 0, readings: (0..6_000).map(|seq| (seq, 0.0)).collect() };
        host.run(|| kv::open("minutes")?.set_json("press-1", &full)).unwrap();
        let payload = r#"{"device":"press-1","seq":6000,"ts":1,"temperature":0}"#;
        let failure = host.run(|| handle(message("sensors/press-1/temp", payload))).unwrap_err();
        assert_eq!(failure, Failure::reject("press-1 sends more than 6000 readings a minute"));
    }
}
