//! What can be set: sources that run and take orders. Dispatch gives them when a handler has succeeded, and nobody else does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::invocation::{FieldValue, FieldWrite};
use crate::name::SourceName;
use crate::receipt::NotKept;

/// How long a source may take to run: after a start, or while a reload changes it.
const STARTS_WITHIN: Duration = Duration::from_secs(2);

/// One thing to be set.
#[derive(Debug)]
#[cfg_attr(not(any(feature = "modbus", feature = "gpio")), expect(dead_code, reason = "no other kind takes orders"))]
pub(crate) struct Order {
    pub(super) point: String,
    pub(super) value: FieldValue,
    pub(super) done: oneshot::Sender<Result<(), NotKept>>,
}

/// How an order went.
enum Ordered {
    /// The source has tried.
    Done(Result<(), NotKept>),
    /// It ended meanwhile.
    Gone,
    /// It does not run.
    Nowhere,
}

/// The sources that take orders, by name.
#[derive(Clone, Debug, Default)]
pub struct Actuators(Arc<watch::Sender<BTreeMap<SourceName, mpsc::Sender<Order>>>>);

impl Actuators {
    /// From now on `source` takes them, so many of which may wait.
    pub(super) fn add(&self, source: SourceName, waiting_max: usize) -> mpsc::Receiver<Order> {
        let (give, orders) = mpsc::channel(waiting_max);
        self.0.send_modify(|sources| drop(sources.insert(source, give)));
        orders
    }

    /// It takes no more.
    pub(super) fn remove(&self, source: &SourceName) {
        self.0.send_modify(|sources| drop(sources.remove(source)));
    }

    /// Does `writes` in their order.
    ///
    /// # Errors
    /// With the first that could not be done. Those behind it are not tried.
    pub(crate) async fn write(&self, writes: Vec<FieldWrite>) -> Result<(), NotKept> {
        for write in writes {
            let result = match self.order(&write).await {
                // A reload had it begin anew. What may have been set is set once more.
                Ordered::Gone => self.order(&write).await,
                ordered => ordered,
            };
            let FieldWrite { source, point, .. } = &write;
            let told = |why: &str| format!("`{point}` of source `{source}` could not be set: {why}");
            match result {
                Ordered::Done(result) => result.map_err(|why| why.told(|why| told(&why)))?,
                Ordered::Gone => return Err(NotKept::NotNow(told("the source is being stopped"))),
                Ordered::Nowhere => return Err(NotKept::NotNow(told("no such source runs here"))),
            }
        }
        Ok(())
    }

    async fn order(&self, FieldWrite { source, point, value }: &FieldWrite) -> Ordered {
        let Some(give) = self.way_to(source).await else { return Ordered::Nowhere };
        let (done, is_done) = oneshot::channel();
        if give.send(Order { point: point.clone(), value: *value, done }).await.is_err() {
            return Ordered::Gone;
        }
        is_done.await.map_or(Ordered::Gone, Ordered::Done)
    }

    /// Where orders for `source` go, once it runs.
    async fn way_to(&self, source: &SourceName) -> Option<mpsc::Sender<Order>> {
        let mut sources = self.0.subscribe();
        let runs = timeout(STARTS_WITHIN, sources.wait_for(|sources| sources.contains_key(source))).await;
        runs.ok()?.ok()?.get(source).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reload replaced it behind the order: nobody knows whether it was done.
    #[tokio::test]
    async fn a_write_goes_to_the_source_that_takes_the_place_of_its_own() {
        let (actuators, plc) = (Actuators::default(), SourceName::parse("plc").unwrap());
        let mut before = actuators.add(plc.clone(), 1);
        let write = FieldWrite { source: plc.clone(), point: "speed".into(), value: FieldValue::Integer(7) };
        let mut writing = tokio::spawn({
            let actuators = actuators.clone();
            async move { actuators.write(vec![write]).await }
        });
        let order = before.recv().await.unwrap();
        actuators.remove(&plc);
        drop((order, before));
        let mut after = actuators.add(plc, 1);
        let again = tokio::select! {
            again = after.recv() => again.unwrap(),
            ended = &mut writing => panic!("it was given up on: {ended:?}"),
        };
        assert_eq!((again.point.as_str(), again.value), ("speed", FieldValue::Integer(7)));
        again.done.send(Ok(())).unwrap();
        assert_eq!(writing.await.unwrap(), Ok(()));
    }
}
