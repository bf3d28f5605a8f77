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
use crate::trigger::source::{Handed, Observed, Outlet};

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
    /// What each register was when it was told last, with `when = "change"`.
    told: BTreeMap<usize, Value>,
    /// What was told and is not known to be kept.
    under_way: Handed,
}

/// Asks `units`, until it is dropped.
pub(super) async fn run(access: &Access<'_>, outlet: &Outlet) {
    let mut ticks = interval(access.source.every.0);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let back_off = || BackOff::new(RETRY, RETRY_MAX);
    let units = plan::units(access.source).into_iter();
    let mut units: Vec<_> =
        units.map(|(id, requests)| Unit { id, requests, back_off: back_off(), rests_until: None }).collect();
    let mut poll = Poll { access, outlet, told: BTreeMap::new(), under_way: Handed::default() };
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
        if !values.is_empty() {
            self.tell(values).await;
        }
    }

    /// Tells `values`, or with `when = "change"` does so when one of them differs from what was told and is kept.
    async fn tell(&mut self, mut values: BTreeMap<usize, Value>) {
        let source = self.access.source;
        if source.when == When::Always {
            // The next poll tells what this one does, so that nothing is lost with it.
            return drop(self.outlet.tell(observed(source, &values)).await);
        }
        if let Some(why) = self.under_way.failure() {
            self.outlet.count(&format!("what has changed is told again: {why}"));
            (self.told, self.under_way) = Default::default();
        }
        let is_new = |(i, value): (&usize, &Value)| {
            self.told.get(i).is_none_or(|told| value.differs(told, source.registers[*i].deadband))
        };
        if values.iter().any(is_new) {
            // Not kept, it is told again as it is then. So what a filter leaves out need not wait for that, and takes no room from what comes.
            self.under_way.add(self.outlet.tell(observed(source, &values)).await);
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
                Err(failure @ Failure::Exception(_)) => troubles.push(told(&failure.to_string())),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::trigger::source::tests::outlet;

    #[tokio::test]
    async fn a_change_that_was_not_kept_is_told_again() {
        let keys = "tcp = \"plc:502\"\nwhen = \"change\"\nregisters = [{ name = \"x\", input = 0 }]";
        let source: ModbusSource = toml::from_str(keys).unwrap();
        let (outlet, function) = outlet("modbus = { source = \"plc\" }", &Metrics::new());
        let access = Access::new(&source, &outlet.clock);
        let mut poll = Poll { access: &access, outlet: &outlet, told: BTreeMap::new(), under_way: Handed::default() };
        let poll_gives = async |poll: &mut Poll<'_>, x| {
            poll.tell(BTreeMap::from([(0, Value::Unsigned(x))])).await;
            function.taken().pop().map(|(_, receipt)| receipt)
        };
        let told = poll_gives(&mut poll, 1).await.unwrap();
        assert!(poll_gives(&mut poll, 1).await.is_none(), "it is under way");
        told.fail("the disk is full");
        poll_gives(&mut poll, 1).await.unwrap().keep();
        assert!(poll_gives(&mut poll, 1).await.is_none());
        assert!(poll_gives(&mut poll, 2).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_filter_leaves_out_stops_no_polls_and_is_told_again_when_that_before_it_was_not_kept() {
        let keys = "tcp = \"plc:502\"\nwhen = \"change\"\nregisters = [{ name = \"x\", input = 0 }]";
        let source: ModbusSource = toml::from_str(keys).unwrap();
        let trigger = "modbus = { source = \"plc\" }\nonly = { at_most = \"1/h\" }";
        let (outlet, function) = outlet(trigger, &Metrics::new());
        let access = Access::new(&source, &outlet.clock);
        let mut poll = Poll { access: &access, outlet: &outlet, told: BTreeMap::new(), under_way: Handed::default() };
        // Far more than a source may have under way, while the function is still at the first.
        for x in 0..10_000 {
            let told = poll.tell(BTreeMap::from([(0, Value::Unsigned(x))]));
            tokio::time::timeout(Duration::from_secs(3_600), told).await.unwrap();
        }
        let mut taken = function.taken();
        assert_eq!(taken.len(), 1);
        taken.remove(0).1.fail("the disk is full");
        poll.tell(BTreeMap::from([(0, Value::Unsigned(9_999))])).await;
        let again = function.taken().remove(0).0;
        assert!(String::from_utf8_lossy(&again.data).contains("9999"), "{again:?}");
    }
}
