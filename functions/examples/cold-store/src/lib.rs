//! One cold store: its doors tell by MQTT, its machine is asked by Modbus, deliveries come as files, a report is made by the clock, and who
//! wants to know calls a URL.

use std::collections::{BTreeMap, VecDeque};

use function_sdk::{Event, Failure, Message, append, config, fs, handler, info, kv, publish};
use serde::{Deserialize, Serialize};

/// Above this it is too warm, unless `LIMIT_CELSIUS` says otherwise.
const LIMIT_CELSIUS: f64 = -15.0;
/// Deliveries that are recognised when their file is told again.
const DELIVERIES_MAX: usize = 100;
/// Doors of one store, and articles in it: more are a mistake of whoever sends.
const NAMES_MAX: usize = 1_000;

/// What is known of the store. One key, so that all of it changes at once.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Store {
    celsius: Option<f64>,
    watts: Option<f64>,
    cooling: Option<bool>,
    /// Doors that are open, with the time in milliseconds of Unix time since when.
    open: BTreeMap<String, u64>,
    too_warm: bool,
    /// Pallets by article.
    stock: BTreeMap<String, u64>,
    /// Digests of the latest deliveries, old ones first.
    deliveries: VecDeque<String>,
}

#[handler]
fn handle(event: Event) -> Result<Store, Failure> {
    let bucket = kv::open("store")?;
    let mut store: Store = bucket.get_json("now")?.unwrap_or_default();
    match event.kind.as_str() {
        "mqtt.message" => store.door(&event)?,
        "modbus.values" => store.machine(&event)?,
        "file.created" | "file.changed" => store.delivery(&event)?,
        "schedule.tick" => {
            append("reports", &Report { time_ms: event.time_ms, store: &store })?;
            return Ok(store);
        }
        "http.request" => return Ok(store),
        other => return Err(Failure::reject(format_args!("a cold store has no use for a `{other}`"))),
    }
    bucket.set_json("now", &store)?;
    Ok(store)
}

#[derive(Serialize)]
struct Report<'a> {
    time_ms: u64,
    #[serde(flatten)]
    store: &'a Store,
}

impl Store {
    fn door(&mut self, event: &Event) -> Result<(), Failure> {
        #[derive(Deserialize)]
        struct Door {
            open: bool,
        }
        let name = event.topic()?.rsplit('/').next().unwrap_or_default();
        if event.json::<Door>()?.open {
            self.open.entry(name.to_owned()).or_insert(event.time_ms);
        } else {
            self.open.remove(name);
        }
        bounded("doors", self.open.len())
    }

    fn machine(&mut self, event: &Event) -> Result<(), Failure> {
        #[derive(Deserialize)]
        struct Machine {
            temperature: Option<Reading<f64>>,
            power: Option<Reading<f64>>,
            cooling: Option<Reading<bool>>,
        }
        #[derive(Deserialize)]
        struct Reading<T> {
            value: T,
        }
        // A register that could not be read is not there.
        let Machine { temperature, power, cooling } = event.json()?;
        self.celsius = temperature.map(|reading| reading.value);
        self.watts = power.map(|reading| reading.value);
        self.cooling = cooling.map(|reading| reading.value);

        let limit = match config::get("LIMIT_CELSIUS")? {
            Some(text) => text.parse().map_err(|error| Failure::reject(format_args!("LIMIT_CELSIUS: {error}")))?,
            None => LIMIT_CELSIUS,
        };
        let Some(celsius) = self.celsius else { return Ok(()) };
        let too_warm = celsius > limit;
        if too_warm != self.too_warm {
            self.too_warm = too_warm;
            let alarm = Alarm { too_warm, celsius, open: self.open.keys().collect() };
            publish(Message::json("alarms/cold-store", &alarm)?.retained())?;
        }
        Ok(())
    }

    /// A file with a line `article,pallets` for each article.
    fn delivery(&mut self, event: &Event) -> Result<(), Failure> {
        #[derive(Deserialize)]
        struct File {
            file: String,
            sha256: String,
        }
        let File { file, sha256 } = event.json()?;
        if self.deliveries.contains(&sha256) {
            info!("{file} was delivered before");
            return Ok(());
        }
        let text = fs::read_to_string(&file)?;
        for (n, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let row = line.split_once(',').and_then(|(article, pallets)| Some((article, pallets.trim().parse().ok()?)));
            let Some((article, pallets)) = row else {
                let why = format_args!("line {} of {file} is not `article,pallets`: {line}", n + 1);
                return Err(Failure::reject(why));
            };
            let stock: &mut u64 = self.stock.entry(article.trim().to_owned()).or_default();
            *stock = stock.saturating_add(pallets);
        }
        self.deliveries.push_back(sha256);
        if self.deliveries.len() > DELIVERIES_MAX {
            self.deliveries.pop_front();
        }
        bounded("articles", self.stock.len())
    }
}

#[derive(Serialize)]
struct Alarm<'a> {
    too_warm: bool,
    celsius: f64,
    open: Vec<&'a String>,
}

fn bounded(what: &str, count: usize) -> Result<(), Failure> {
    if count > NAMES_MAX {
        return Err(Failure::reject(format_args!("more than {NAMES_MAX} {what}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use function_sdk::testing::{Host, message};

    use super::*;

    fn event(kind: &str, data: &str) -> Event {
        Event { kind: kind.to_owned(), time_ms: 5, ..message("", data) }
    }

    fn machine(celsius: f64) -> Event {
        event(
            "modbus.values",
            &format!(r#"{{"temperature":{{"value":{celsius},"unit":"°C"}},"cooling":{{"value":true}}}}"#),
        )
    }

    #[test]
    fn an_alarm_comes_when_it_gets_too_warm_and_when_it_is_over() {
        let mut host = Host::new().with_config("LIMIT_CELSIUS", "-18");
        let door = Event { time_ms: 7, ..message("doors/south", r#"{"open":true}"#) };
        assert_eq!(host.run(|| handle(door)).unwrap().open["south"], 7);
        for celsius in [-20.0, -17.5, -17.0, -18.0] {
            let store = host.run(|| handle(machine(celsius))).unwrap();
            assert_eq!((store.celsius, store.watts, store.cooling), (Some(celsius), None, Some(true)));
        }
        let alarm = |json: &str| Message::new("alarms/cold-store", json).retained();
        assert_eq!(
            host.published(),
            [
                alarm(r#"{"too_warm":true,"celsius":-17.5,"open":["south"]}"#),
                alarm(r#"{"too_warm":false,"celsius":-18.0,"open":["south"]}"#)
            ]
        );
    }

    #[test]
    fn a_delivery_counts_once_and_whole_or_not_at_all() {
        let mut host = Host::new()
            .with_file("/mnt/deliveries/1.csv", "fish, 4\npeas,2\n\n")
            .with_file("/mnt/deliveries/2.csv", "fish,1\npeas,many\n");
        let told = |n: u32| event("file.created", &format!(r#"{{"file":"/mnt/deliveries/{n}.csv","sha256":"{n}"}}"#));
        for _ in 0..2 {
            let stock = host.run(|| handle(told(1))).unwrap().stock;
            assert_eq!(stock, BTreeMap::from([("fish".to_owned(), 4), ("peas".to_owned(), 2)]));
        }
        let why = "line 2 of /mnt/deliveries/2.csv is not `article,pallets`: peas,many";
        assert_eq!(host.run(|| handle(told(2))), Err(Failure::reject(why)));
        assert_eq!(host.run(|| handle(event("http.request", ""))).unwrap().stock["fish"], 4);
    }

    #[test]
    fn a_tick_makes_a_report_and_changes_nothing() {
        let mut host = Host::new();
        host.run(|| handle(machine(-20.0))).unwrap();
        host.run(|| handle(event("schedule.tick", ""))).unwrap();
        let report: serde_json::Value = serde_json::from_slice(host.appended("reports")[0]).unwrap();
        assert_eq!((&report["time_ms"], &report["celsius"]), (&5.into(), &serde_json::json!(-20.0)));
        assert_eq!(host.key_count(), 1);
    }
}
