//! Hearing and setting lines, as long as their chip is there.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::sleep;

use super::chip::{self, Chip};
use super::lines::{Inputs, Lines, Output};
use super::untold::{Untold, over};
use super::{Direction, GpioSource};
use crate::broker::BackOff;
use crate::config::read::nearest;
use crate::invocation::FieldValue;
use crate::receipt::NotKept;
use crate::trigger::actuators::Order;
use crate::trigger::source::{Left, Outlet};

/// How soon what could not be opened is tried again, at first and at last.
const REOPEN: Duration = Duration::from_secs(1);
const REOPEN_MAX: Duration = Duration::from_secs(10);
/// How often it is looked whether a chip is there. Outputs never tell of one that goes, and inputs not with each kernel.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// Tends the lines of `source` until it is stopped; gives those that are open, and what is not told.
pub(super) async fn run(source: Arc<GpioSource>, mut outlet: Outlet) -> Option<Left> {
    let mut orders = outlet.orders.take();
    let left = outlet.left().await.and_then(|left| left.downcast::<(Lines, Untold)>().ok());
    let (mut lines, mut untold) = left.map(|left| *left).unwrap_or_default();
    let (outlet, mut back_off) = (Arc::new(outlet), BackOff::new(REOPEN, REOPEN_MAX));
    // What is being set. It ends before lines change, so that nothing that is set later can be overtaken.
    let mut setting = None;
    // Why the chip is gone, when it is.
    let mut gone: Option<String> = None;
    loop {
        let missing = match gone.take() {
            Some(why) => {
                lines = Lines::default();
                Some(why)
            }
            None => {
                let result;
                (lines, untold, result) = open(lines, untold, &source, &outlet).await;
                result.err()
            }
        };
        match &missing {
            Some(why) => outlet.trouble(why.as_str()),
            None => outlet.well(),
        }
        let opened_at = outlet.clock.instant();
        let Lines { chip, inputs, outputs } = &mut lines;
        let again = async {
            match &missing {
                Some(_) => sleep(back_off.step()).await,
                None => pending().await,
            }
        };
        // What is being told and set when one of them ends is not cut short: both are tasks.
        let is_stopped = tokio::select! {
            () = outlet.stopped() => true,
            why = hear(inputs.as_mut(), &mut untold, &outlet) => {
                gone = Some(format!("`{}` {why}", source.chip));
                false
            }
            why = watch(chip.as_ref()) => {
                gone = Some(why);
                false
            }
            never = obey(&source, outputs, orders.as_mut(), missing.as_deref(), &mut setting, &outlet) => match never {},
            () = again => false,
        };
        over(&mut setting).await;
        if is_stopped {
            return Some(Box::new((lines, untold)));
        }
        if gone.is_some() && outlet.clock.instant() - opened_at >= REOPEN_MAX {
            back_off.reset();
        }
    }
}

/// Opens what is not open, and tells how that went.
async fn open(
    mut lines: Lines,
    mut untold: Untold,
    source: &Arc<GpioSource>,
    outlet: &Arc<Outlet>,
) -> (Lines, Untold, Result<(), String>) {
    let (source, outlet) = (Arc::clone(source), Arc::clone(outlet));
    // A chip behind a slow bus takes its time.
    let opened = spawn_blocking(move || {
        let result = lines.open(&source, &mut untold, &outlet);
        (lines, untold, result)
    });
    opened.await.unwrap_or_else(|error| (Lines::default(), Untold::default(), Err(error.to_string())))
}

/// Tells what waits, and then what the inputs say; gives why that has ended.
async fn hear(mut inputs: Option<&mut Inputs>, untold: &mut Untold, outlet: &Arc<Outlet>) -> String {
    loop {
        untold.tell(outlet).await;
        let Some(inputs) = &mut inputs else { return pending().await };
        if let Err(error) = inputs.read(untold, outlet).await {
            return format!("cannot be heard: {error}");
        }
    }
}

/// Waits until the chip is gone.
async fn watch(chip: Option<&Arc<Chip>>) -> String {
    let Some(chip) = chip else { return pending().await };
    loop {
        sleep(LOOK_EVERY).await;
        let chip = Arc::clone(chip);
        match spawn_blocking(move || chip.is_there()).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return why,
            Err(error) => return error.to_string(),
        }
    }
}

/// Does what is ordered, one after the other. `missing`: why something is not open.
async fn obey(
    source: &GpioSource,
    outputs: &BTreeMap<String, Output>,
    orders: Option<&mut mpsc::Receiver<Order>>,
    missing: Option<&str>,
    setting: &mut Option<JoinHandle<()>>,
    outlet: &Arc<Outlet>,
) -> Infallible {
    let Some(orders) = orders else { return pending().await };
    loop {
        over(setting).await;
        let Some(order) = orders.recv().await else { return pending().await };
        match (allowed(source, &order.point, order.value), outputs.get(&order.point)) {
            (Err(why), _) => answer(order, Err(NotKept::ForGood(why)), outlet),
            (Ok(active), Some(output)) => {
                let (file, outlet) = (Arc::clone(&output.file), Arc::clone(outlet));
                // A chip behind a slow bus takes its time here too.
                *setting = Some(spawn_blocking(move || {
                    let result = chip::set(&file, active).map_err(|error| NotKept::NotNow(error.to_string()));
                    answer(order, result, &outlet);
                }));
            }
            (Ok(_), None) => {
                let why = missing.unwrap_or("it is not open").to_owned();
                answer(order, Err(NotKept::NotNow(why)), outlet);
            }
        }
    }
}

fn answer(Order { point, value, done }: Order, result: Result<(), NotKept>, outlet: &Outlet) {
    if let Err(why) = &result {
        outlet.count(&format!("`{point}` could not be set to {value}: {why}"));
    }
    // Whoever ordered it may have ended.
    let _ = done.send(result);
}

/// What `point` is to be, when it can be set so.
fn allowed(source: &GpioSource, point: &str, value: FieldValue) -> Result<bool, String> {
    let outputs: Vec<_> = source.lines(Direction::Out).map(|line| line.name.as_str()).collect();
    if source.lines(Direction::In).any(|line| line.name == point) {
        return Err("it is an input, which can only be heard".to_owned());
    }
    if !outputs.contains(&point) {
        let hint = nearest(point, &outputs).map_or_else(String::new, |nearest| format!(": did you mean `{nearest}`?"));
        return Err(format!("the source has no such line{hint}"));
    }
    match value {
        FieldValue::Boolean(active) => Ok(active),
        FieldValue::Integer(_) | FieldValue::Number(_) => Err(format!("{value} is neither true nor false")),
    }
}
