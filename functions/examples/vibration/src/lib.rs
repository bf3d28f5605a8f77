//! How much a machine shakes, from the samples of a second or so.

use function_sdk::{Event, Failure, Message, handler, publish};
use serde::{Deserialize, Serialize};

/// One event of a window.
#[derive(Deserialize)]
struct Item {
    data: Sample,
}

#[derive(Deserialize)]
struct Sample {
    g: f64,
}

#[derive(Debug, PartialEq, Serialize)]
struct Shaking {
    samples: u32,
    rms: f64,
    peak: f64,
}

/// The trigger has samples come in windows, so there is nothing to remember from one event to the next.
#[handler]
fn handle(event: Event) -> Result<Shaking, Failure> {
    let window: Vec<Item> = event.json()?;
    let machine = event.topic()?.trim_start_matches("vibration/");
    let (mut samples, mut squares, mut peak) = (0, 0.0, 0.0_f64);
    for Item { data: Sample { g } } in window {
        samples += 1;
        squares += g * g;
        peak = peak.max(g.abs());
    }
    if samples == 0 {
        return Err(Failure::reject("a window without samples"));
    }
    let shaking = Shaking { samples, rms: (squares / f64::from(samples)).sqrt(), peak };
    publish(Message::json(format!("shaking/{machine}"), &shaking)?)?;
    Ok(shaking)
}

#[cfg(test)]
mod tests {
    use function_sdk::testing::{Host, message};

    use super::*;

    #[test]
    fn a_window_tells_how_much_a_machine_shakes() {
        let mut host = Host::new();
        let window = r#"[{"id":"1","data":{"g":3.0}},{"id":"2","data":{"g":-4.0}}]"#;
        let shaking = host.run(|| handle(message("vibration/press-1", window))).unwrap();
        assert_eq!(shaking, Shaking { samples: 2, rms: 12.5_f64.sqrt(), peak: 4.0 });
        assert_eq!(host.published(), [Message::json("shaking/press-1", &shaking).unwrap()]);
    }

    #[test]
    fn what_is_no_window_is_rejected() {
        for (payload, why) in [
            ("[]", "a window without samples"),
            (r#"{"g":1.0}"#, "the payload"),
            (r#"[{"data":{"g":1.0}},{"data":{"g":"1"}}]"#, "field `[1].data.g` of the payload"),
        ] {
            let mut host = Host::new();
            let failure = host.run(|| handle(message("vibration/press-1", payload))).unwrap_err();
            assert!(format!("{failure:?}").contains(why), "{payload}: {failure:?}");
            assert!(host.published().is_empty());
        }
    }
}
