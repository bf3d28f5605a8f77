//! Asking a device at a rate, and telling what it said.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::ser::SerializeMap as _;
use serde::{Serialize, Serializer};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::line::{Access, Answer, Failure};
use super::plan::{self, Request};
use super::value::{self, Value};
use super::{ModbusSource, When};
use crate::broker::BackOff;
use crate::trigger::source::{Observed, Outlet};

/// CloudEvents `type`.
const KIND: &str = "modbus.values";
/// How soon a unit that does not answer is asked again, at first and at last.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(10);

/// A device among those that a line reaches.
struct Unit {
    id: u8,
    requests: Vec<Request>,
    back_off: BackOff,
    rests_until: Option<Instant>,
}

/// What is known of them.
struct Poll<'a> {
    access: &'a Access<'a>,
    outlet: &'a Outlet,
    /// What each register was when it was told last.
    told: BTreeMap<usize, Value>,
}

/// Asks `units`, until it is dropped.
pub(super) async fn run(access: &Access<'_>, outlet: &Outlet) {
    let mut ticks = interval(access.source.every.0);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let back_off = || BackOff::new(RETRY, RETRY_MAX);
    let units = plan::units(access.source).into_iter();
    let mut units: Vec<_> =
        units.map(|(id, requests)| Unit { id, requests, back_off: back_off(), rests_until: None }).collect();
    let mut poll = Poll { access, outlet, told: BTreeMap::new() };
    loop {
        ticks.tick().await;
        poll.round(&mut units).await;
        // While all rest there is nobody to ask.
        if let Some(Some(until)) = units.iter().map(|unit| unit.rests_until).min() {
            sleep_until(until).await;
        }
    }
}

impl Poll<'_> {
    /// Asks each unit that does not rest, and tells what they said.
    async fn round(&mut self, units: &mut [Unit]) {
        let (mut values, mut troubles) = (BTreeMap::new(), Vec::new());
        for unit in &mut *units {
            if unit.rests_until.is_some_and(|until| self.outlet.clock.instant() < until) {
                continue;
            }
            match self.ask(unit, &mut values, &mut troubles).await {
                Ok(()) => {
                    unit.rests_until = None;
                    unit.back_off.reset();
                }
                Err(why) => {
                    unit.rests_until = Some(self.outlet.clock.instant() + unit.back_off.step());
                    troubles.push(why);
                }
            }
        }
        let mut troubles = troubles.into_iter();
        match troubles.next() {
            Some(first) => self.outlet.trouble(first),
            None if units.iter().all(|unit| unit.rests_until.is_none()) => self.outlet.well(),
            None => {}
        }
        troubles.for_each(|why| self.outlet.count(&why));
        let is_new = |(i, value): (&usize, &Value)| {
            let deadband = self.access.source.registers[*i].deadband;
            self.told.get(i).is_none_or(|told| value.differs(told, deadband))
        };
        if !values.is_empty() && (self.access.source.when == When::Always || values.iter().any(is_new)) {
            self.outlet.tell(observed(self.access.source, &values)).await;
            self.told.append(&mut values);
        }
    }

    /// Reads all of `unit` that can be read; fails when it does not answer.
    async fn ask(
        &self,
        unit: &Unit,
        values: &mut BTreeMap<usize, Value>,
        troubles: &mut Vec<String>,
    ) -> Result<(), String> {
        for request in &unit.requests {
            let told = |why: &str| format!("{request} of unit {}: {why}", unit.id);
            match self.access.read(unit.id, request.from, request.count).await {
                Ok(answer) => self.take(request, &answer, values, |name| {
                    troubles.push(told(&format!("`{name}` has no finite value")));
                }),
                Err(Failure::Exception(why)) => troubles.push(told(&why)),
                Err(Failure::Away(why)) => return Err(why),
                Err(failure) => return Err(told(&failure.to_string())),
            }
        }
        Ok(())
    }

    /// Adds the values of the registers that were read.
    fn take(
        &self,
        request: &Request,
        answer: &Answer,
        values: &mut BTreeMap<usize, Value>,
        mut has_none: impl FnMut(&str),
    ) {
        for i in &request.registers {
            let register = &self.access.source.registers[*i];
            let range = request.range(register);
            let value = match answer {
                Answer::Words(words) => words
                    .get(range)
                    .and_then(|words| value::of_words(register, words, plan::orders(self.access.source, register))),
                Answer::Bits(bits) => bits.get(range.start).copied().map(Value::Bool),
            };
            match value {
                Some(value) => drop(values.insert(*i, value)),
                None => has_none(&register.name),
            }
        }
    }
}

fn observed(source: &ModbusSource, values: &BTreeMap<usize, Value>) -> Observed {
    #[derive(Serialize)]
    struct Entry<'a> {
        value: &'a Value,
        #[serde(skip_serializing_if = "Option::is_none")]
        unit: Option<&'a str>,
    }
    /// In the order of the config.
    struct Payload<'a>(&'a ModbusSource, &'a BTreeMap<usize, Value>);
    impl Serialize for Payload<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut map = serializer.serialize_map(Some(self.1.len()))?;
            for (i, value) in self.1 {
                let register = &self.0.registers[*i];
                map.serialize_entry(&register.name, &Entry { value, unit: register.unit.as_deref() })?;
            }
            map.end()
        }
    }
    Observed {
        kind: KIND,
        content_type: Some("application/json".into()),
        // Texts and finite numbers always have a form in JSON.
        data: serde_json::to_vec(&Payload(source, values)).unwrap_or_default().into(),
        ..Observed::default()
    }
}
