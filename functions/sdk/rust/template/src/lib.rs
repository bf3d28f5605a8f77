//! Raises an alarm when an oven is too hot.

use function_sdk::{Event, Failure, Message, handler};
use serde::{Deserialize, Serialize};

const LIMIT_CELSIUS: f64 = 240.0;

#[derive(Deserialize, Serialize)]
struct Reading {
    oven: String,
    celsius: f64,
}

#[handler]
fn handle(event: Event) -> Result<Vec<Message>, Failure> {
    let reading: Reading = event.json()?;
    if reading.celsius < LIMIT_CELSIUS {
        return Ok(vec![]);
    }
    Ok(vec![Message::json(format!("alarm/{}", reading.oven), &reading)?])
}

#[cfg(test)]
mod tests {
    use function_sdk::testing::{Host, message};

    use super::*;

    fn messages(payload: &str) -> Result<Vec<Message>, Failure> {
        Host::new().run(|| handle(message("ovens/1/celsius", payload)))
    }

    #[test]
    fn only_a_hot_oven_raises_an_alarm() {
        assert_eq!(messages(r#"{"oven":"1","celsius":239.9}"#), Ok(vec![]));
        let hot = r#"{"oven":"1","celsius":240.0}"#;
        assert_eq!(messages(hot), Ok(vec![Message::new("alarm/1", hot)]));
    }

    #[test]
    fn a_reading_without_its_temperature_is_rejected() {
        assert!(matches!(messages(r#"{"oven":"1"}"#), Err(Failure::Reject(_))));
    }
}
