//! One invocation of `fahrenheit`, in process: warm and fresh; and what it takes to have its code.

use std::hint::black_box;
use std::sync::Arc;

use tidegate::clock::Clock;
use tidegate::runtime::Function;

use crate::Options;
use crate::lab::{self, Lab};
use crate::report::{Figure, Target, median};

const PAYLOAD: &[u8] = br#"{"device":"press-1","ts":1790000000000,"seq":7,"temperature":21.5}"#;
const NATIVE: &str = "native Rust";

pub(crate) async fn measure(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let config = format!(
        "[[function]]\nname = \"fahrenheit\"\nbundle = \"{}\"\ncapabilities = [\"mqtt:publish:results/#\"]\n",
        e2e::example("fahrenheit").display()
    );
    let lab = Lab::start(&config).await?;
    let times = if options.quick { 500 } else { 20_000 };

    let (mut loads, mut warm, mut fresh) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds() {
        // No digest is wanted: all compiled code goes.
        lab.runtime.retain(&[]);
        let compiled = timed_load(&lab).await?.1;
        let (function, mapped) = timed_load(&lab).await?;
        loads.push((mapped, compiled));
        let (clock, copy) = (lab.clock.clone(), function.clone());
        let ours = lab.there(async move { warm_us(&copy, &clock, times).await }).await?;
        warm.push((ours, native_us(&lab.clock, times)?));
        let clock = lab.clock.clone();
        let ours = lab.there(async move { fresh_us(&function, &clock, times / 4).await }).await?;
        fresh.push((ours, native_us(&lab.clock, times)?));
    }
    Ok(vec![
        Figure::beside("invoke-1", "warm invocation, event to outcome", "µs", warm, NATIVE).with(Target::AtMost(15.0)),
        Figure::beside("invoke-2", "the same in a fresh instance", "µs", fresh, NATIVE).with(Target::AtMost(100.0)),
        Figure::beside("invoke-3", "ready from compiled code on disk", "ms", loads, "compiled anew"),
    ])
}

/// A function that can make instances, and the milliseconds until it could.
async fn timed_load(lab: &Lab) -> anyhow::Result<(Function, f64)> {
    let started = lab.clock.instant();
    let function = lab.runtime.load(Arc::clone(&lab.specs[0])).await?;
    Ok((function, (lab.clock.instant() - started).as_secs_f64() * 1e3))
}

async fn warm_us(function: &Function, clock: &Clock, times: usize) -> anyhow::Result<f64> {
    let mut instance = function.instantiate().await.map_err(|outcome| anyhow::anyhow!("{outcome}"))?;
    let mut micros = Vec::with_capacity(times);
    for _ in 0..times {
        let event = lab::event("sensors/press-1/temp", PAYLOAD);
        let started = clock.instant();
        black_box(lab::invoke(&mut instance, function, &event, clock).await?);
        micros.push((clock.instant() - started).as_secs_f64() * 1e6);
    }
    Ok(median(micros))
}

async fn fresh_us(function: &Function, clock: &Clock, times: usize) -> anyhow::Result<f64> {
    let mut micros = Vec::with_capacity(times);
    for _ in 0..times {
        let event = lab::event("sensors/press-1/temp", PAYLOAD);
        let started = clock.instant();
        let mut instance = function.instantiate().await.map_err(|outcome| anyhow::anyhow!("{outcome}"))?;
        black_box(lab::invoke(&mut instance, function, &event, clock).await?);
        drop(instance);
        micros.push((clock.instant() - started).as_secs_f64() * 1e6);
    }
    Ok(median(micros))
}

/// The same conversion without a function around it.
fn native_us(clock: &Clock, times: usize) -> anyhow::Result<f64> {
    let mut micros = Vec::with_capacity(times);
    for _ in 0..times {
        let started = clock.instant();
        black_box(crate::bare::convert(black_box(PAYLOAD))?);
        micros.push((clock.instant() - started).as_secs_f64() * 1e6);
    }
    Ok(median(micros))
}
