//! What happens in one simulation, drawn from its seed before it begins.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;

use crate::broker::Options;
use crate::packet::Message;
use crate::pipe::Standing;
use crate::world::Moment;
use tidegate::limits::Limits;

/// Which broker, or the way to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Local,
    Cloud,
}

#[derive(Clone, Debug)]
pub enum Step {
    /// A device publishes; it goes on trying until its broker has taken it.
    Publish(Event),
    Cut(Side),
    CutAfter(Side, usize),
    Stand(Side, Standing),
    FallSilent(Side),
    Stall(Side, Duration),
    Delay(Side, u64, u64),
    StopBroker(Side),
    StartBroker(Side),
    /// In order.
    Stop,
    Kill,
    /// At the journal's nth turn from now.
    KillAt(u64, Moment),
    Start,
    SetClock(i64),
    Reload,
    /// Microseconds that the disk takes.
    Disk(u64, u64),
}

#[derive(Clone, Debug)]
pub struct Event {
    pub id: String,
    pub topic: String,
    /// Counts the events of one topic.
    pub number: u64,
    pub qos: u8,
    /// What the functions do with it; see the guest.
    pub program: String,
}

impl Event {
    pub fn message(&self) -> Message {
        let Self { id, topic, number, qos, program } = self;
        let payload = format!(r#"{{"do":"{program}","id":"{id}","topic":"{topic}","number":{number}}}"#);
        let payload = Bytes::from(payload);
        Message { topic: topic.clone(), payload, qos: *qos, retain: false, properties: Bytes::new() }
    }
}

/// A function of the gateway under test.
#[derive(Clone, Copy, Debug)]
pub struct Function {
    pub name: &'static str,
    /// Topics begin with this.
    pub topics: &'static str,
    pub qos: u8,
    /// Further keys of its `[[function]]`.
    pub keys: &'static str,
}

pub const FUNCTIONS: &[Function] = &[
    Function { name: "plain", topics: "d/plain/", qos: 1, keys: "concurrency = 4" },
    Function { name: "twin", topics: "d/plain/", qos: 1, keys: "concurrency = 1" },
    Function { name: "second", topics: "d/second/", qos: 2, keys: "concurrency = 2\nisolation = \"fresh\"" },
    Function {
        name: "chain",
        topics: "d/chain/",
        qos: 1,
        keys: "concurrency = 2\non_success = [{ function = \"tail\" }]",
    },
    Function { name: "order", topics: "d/order/", qos: 1, keys: "concurrency = 4\norder = \"topic\"" },
    Function {
        name: "once",
        topics: "d/once/",
        qos: 1,
        keys: "concurrency = 4\nidempotency = { key = [\"/id\"], window = \"7d\" }",
    },
    Function { name: "zero", topics: "d/zero/", qos: 0, keys: "concurrency = 1" },
];

/// Attempts that each function has.
pub const ATTEMPTS: u32 = 3;

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub local: Options,
    pub cloud: Options,
    /// MQTT versions that the agent speaks to each.
    pub versions: (u8, u8),
    /// `batch` of the streams.
    pub batch: &'static str,
    pub limits: Limits,
    pub events: BTreeMap<String, Event>,
    pub steps: BTreeMap<(Duration, u64), Step>,
}

impl Plan {
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let options = |rng: &mut Rng| Options {
            persistent: rng.u8(..4) > 0,
            receive_maximum: *rng.choice(&[1, 3, 20, 1_000]).unwrap(),
            bytes_max: None,
            qos_max: 2,
        };
        let mut cloud = options(&mut rng);
        if rng.u8(..3) == 0 {
            // A cloud service: no QoS 2, 128 KiB.
            cloud = Options { qos_max: 1, bytes_max: Some(128 << 10), receive_maximum: 100, persistent: true };
        }
        let mut plan = Self {
            seed,
            local: options(&mut rng),
            cloud,
            versions: (*rng.choice(&[5, 5, 3]).unwrap(), *rng.choice(&[5, 5, 3]).unwrap()),
            limits: limits(&mut rng),
            batch: rng
                .choice(&["{}", "{ max_records = 10, max_wait = \"2s\" }", "{ max_records = 500, max_wait = \"30s\" }"])
                .unwrap(),
            events: BTreeMap::new(),
            steps: BTreeMap::new(),
        };
        let length = Duration::from_secs(rng.u64(20..300));
        plan.add_events(&mut rng, length);
        let hardship = rng.usize(0..8);
        for _ in 0..hardship {
            let at = length.mul_f64(rng.f64());
            plan.add_trouble(&mut rng, at);
        }
        plan
    }

    pub fn add(&mut self, at: Duration, step: Step) {
        let mut n = 0;
        while self.steps.contains_key(&(at, n)) {
            n += 1;
        }
        self.steps.insert((at, n), step);
    }

    fn add_events(&mut self, rng: &mut Rng, length: Duration) {
        let mut numbers: BTreeMap<String, u64> = BTreeMap::new();
        let mut at = Duration::ZERO;
        let (count, topics) = (rng.usize(5..100), rng.usize(1..6));
        let trouble = rng.u8(..5);
        for n in 0..count {
            // Bursts, and pauses between them.
            if rng.u8(..3) == 0 {
                at = length.mul_f64(rng.f64());
            }
            at += Duration::from_micros(rng.u64(0..3_000));
            let prefix = rng.choice(FUNCTIONS).unwrap().topics;
            let topic = format!("{prefix}{}", rng.usize(0..topics));
            let number = numbers.entry(topic.clone()).or_default();
            *number += 1;
            let qos = if prefix == "d/second/" { 2 } else { *rng.choice(&[1, 1, 1, 2, 0]).unwrap() };
            let event = Event { id: format!("e{n}"), topic, number: *number, qos, program: program(rng, trouble) };
            self.events.insert(event.id.clone(), event.clone());
            self.add(at, Step::Publish(event.clone()));
            // A device that heard nothing says it again.
            if prefix == "d/once/" && rng.u8(..3) == 0 {
                self.add(at + length.mul_f64(rng.f64() * rng.f64()), Step::Publish(event));
            }
        }
    }

    fn add_trouble(&mut self, rng: &mut Rng, at: Duration) {
        let side = *rng.choice(&[Side::Local, Side::Local, Side::Cloud]).unwrap();
        let span =
            Duration::from_millis(*rng.choice(&[1, 50, 1_000, 10_000, 60_000, 600_000]).unwrap()).mul_f64(rng.f64());
        match rng.u8(..14) {
            0 => self.add(at, Step::Cut(side)),
            1 | 2 => self.add(at, Step::CutAfter(side, rng.usize(1..2_000))),
            3 => {
                let standing = *rng.choice(&[Standing::Refuses, Standing::Silent]).unwrap();
                self.add(at, Step::Stand(side, standing));
                self.add(at, Step::Cut(side));
                self.add(at + span, Step::Stand(side, Standing::Open));
            }
            4 => self.add(at, Step::FallSilent(side)),
            5 => self.add(at, Step::Stall(side, span)),
            6 => {
                let most = *rng.choice(&[100, 50_000, 2_000_000]).unwrap();
                self.add(at, Step::Delay(side, 0, most));
                self.add(at + span, Step::Delay(side, 50, 2_000));
            }
            7 => {
                self.add(at, Step::StopBroker(side));
                self.add(at + span, Step::StartBroker(side));
            }
            8 => {
                self.add(at, Step::Stop);
                self.add(at + span, Step::Start);
            }
            9 => {
                self.add(at, Step::Kill);
                self.add(at + span, Step::Start);
            }
            10 | 11 => {
                let moment = *rng.choice(&[Moment::BeforeTurn, Moment::AfterTurn]).unwrap();
                self.add(at, Step::KillAt(rng.u64(1..15), moment));
                self.add(at + Duration::from_secs(20) + span, Step::Start);
            }
            12 => {
                let most = *rng.choice(&[10_000, 500_000, 5_000_000]).unwrap();
                self.add(at, Step::Disk(most / 10, most));
                self.add(at + span, Step::Disk(50, 2_000));
            }
            _ => {
                if rng.bool() {
                    let hours = *rng.choice(&[-24, -1, 1, 24, 24 * 365]).unwrap();
                    self.add(at, Step::SetClock(hours * 3_600_000));
                } else {
                    self.add(at, Step::Reload);
                }
            }
        }
    }
}

/// Bounds: often so small that everything is at them.
fn limits(rng: &mut Rng) -> Limits {
    let mut limits = Limits::default();
    if rng.bool() {
        limits.queue_events_max = *rng.choice(&[1, 3, 20]).unwrap();
        limits.mqtt_in_flight_max = *rng.choice(&[1, 2, 10, 1_000]).unwrap();
        limits.mqtt_unconfirmed_max = *rng.choice(&[1, 2, 10, 1_000]).unwrap();
        limits.spill_events = *rng.choice(&[1, 3, 20]).unwrap();
        limits.parked_events_max = *rng.choice(&[3, 20, 10_000]).unwrap();
    }
    limits
}

/// What a function does with an event. `trouble` of 0: it never fails.
fn program(rng: &mut Rng, trouble: u8) -> String {
    let mut letters = Vec::new();
    for (letter, odds) in [("a", 2), ("c", 3), ("b", 5), ("1", 2), ("2", 4), ("0", 6), ("w", 4)] {
        if rng.u8(..odds) == 0 {
            letters.push(letter);
        }
    }
    rng.shuffle(&mut letters);
    if trouble > 0 && rng.u8(..4) == 0 {
        let fault = *rng.choice(&["r1", "r2", "t1", "s1", "r9", "t9", "x"]).unwrap();
        letters.insert(rng.usize(0..=letters.len()), fault);
    }
    letters.concat()
}

/// What becomes of an event by its program.
impl Event {
    /// Whether no attempt can succeed.
    pub fn is_hopeless(&self) -> bool {
        self.program.contains(['x', '9'])
    }

    /// How often a run does what `letter` says.
    pub fn does(&self, letter: char) -> u64 {
        self.program
            .chars()
            .scan(' ', |before, c| Some((std::mem::replace(before, c), c)))
            .filter(|(before, c)| *c == letter && !matches!(before, 'r' | 't' | 's'))
            .count() as u64
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}: MQTT {:?}, batch {}", self.seed, self.versions, self.batch)?;
        let limits = &self.limits;
        let bounds = [limits.queue_events_max, limits.spill_events, limits.parked_events_max];
        let (in_flight, unconfirmed) = (limits.mqtt_in_flight_max, limits.mqtt_unconfirmed_max);
        writeln!(f, "  queue, spill and parked {bounds:?}, in flight {in_flight}, unconfirmed {unconfirmed}")?;
        writeln!(f, "  local {:?}\n  cloud {:?}", self.local, self.cloud)?;
        for ((at, _), step) in &self.steps {
            match step {
                Step::Publish(Event { id, topic, qos, program, .. }) => {
                    writeln!(f, "  {:>12.6}  {id} on {topic} at QoS {qos}: {program}", at.as_secs_f64())?;
                }
                step => writeln!(f, "  {:>12.6}  {step:?}", at.as_secs_f64())?,
            }
        }
        Ok(())
    }
}
