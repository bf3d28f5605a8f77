//! Setting coils and registers, as functions order it.

use tokio::sync::mpsc;

use super::line::Access;
use super::{Place, plan, value};
use crate::invocation::FieldValue;
use crate::receipt::NotKept;
use crate::trigger::actuators::Order;
use crate::trigger::source::Outlet;

/// Does what is ordered, one after the other, as long as somebody may order.
pub(super) async fn run(access: &Access<'_>, orders: &mut mpsc::Receiver<Order>, outlet: &Outlet) {
    while let Some(Order { point, value, done }) = orders.recv().await {
        let result = set(access, &point, value).await;
        if let Err(why) = &result {
            outlet.count(&format!("`{point}` could not be set to {value}: {why}"));
        }
        // Whoever ordered it may have ended.
        let _ = done.send(result);
    }
}

async fn set(access: &Access<'_>, point: &str, value: FieldValue) -> Result<(), NotKept> {
    let source = access.source;
    let Some(register) = source.registers.iter().find(|register| register.name == point) else {
        return Err(NotKept::ForGood("the source has no such register".to_owned()));
    };
    let unit_id = register.unit_id.unwrap_or(source.unit_id);
    let done = match (register.place, value) {
        (Place::Coil(address), FieldValue::Boolean(on)) => access.write_coil(unit_id, address, on).await,
        (Place::Coil(_), value) => return Err(NotKept::ForGood(format!("{value} is neither true nor false"))),
        (Place::Holding(address), value) => {
            let words = value::to_words(register, value, plan::orders(source, register)).map_err(NotKept::ForGood)?;
            access.write_registers(unit_id, address, words).await
        }
        (Place::Input(_) | Place::Discrete(_), _) => {
            let kind = register.place.kind();
            return Err(NotKept::ForGood(format!("a register of the kind `{kind}` can only be read")));
        }
    };
    done.map_err(|failure| {
        let why = failure.to_string();
        if failure.is_for_good() { NotKept::ForGood(why) } else { NotKept::NotNow(why) }
    })
}
