//! `gpio` sources: switches, sensors and relays at single lines of a chip.
//!
//! # Promises
//! - Each edge of an input is an event, once, and so is the level of each when the lines are opened. Those of a line come in their order.
//! - Edges that come faster than functions take them wait in the kernel's buffer, which is bounded. Those that it drops are counted.
//! - An output is set when it is opened, and then by functions only, in the order that they did it. A reload that does not change it does not touch it.
//! - A line that cannot be had, and a chip that goes, is tried again: after 1 s, and at most 10 s later each time. Other lines work meanwhile.

#[cfg(feature = "gpio")]
mod chip;
#[cfg(feature = "gpio")]
mod edges;
mod line;
#[cfg(feature = "gpio")]
mod lines;
#[cfg(feature = "gpio")]
mod tend;
#[cfg(feature = "gpio")]
mod untold;

use std::collections::BTreeSet;

pub use self::line::{Bias, Direction, Drive, Edge, Initial, LineConfig, LineId};
use crate::config::document::element;
use crate::config::{Document, join, keys};

/// Lines that one request can have, by the kernel's interface.
const INPUTS_MAX: usize = 64;
/// Ways in which the lines of a request can differ, by the same.
const WAYS_MAX: usize = 10;

/// `gpio = { chip = "/dev/gpiochip0", lines = [{ name = "door", line = 17 }] }`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpioSource {
    /// A device file, or the label of a chip.
    pub chip: String,
    /// What is heard, and set.
    pub lines: Vec<LineConfig>,
}

keys! { GpioSource: chip = required("\"/dev/gpiochip0\""), lines = each() }

impl GpioSource {
    /// The lines of one direction.
    fn lines(&self, direction: Direction) -> impl Iterator<Item = &LineConfig> {
        self.lines.iter().filter(move |line| line.direction == direction)
    }

    pub(crate) fn check(&self, path: &str, document: &mut Document) {
        if self.chip.is_empty() {
            let hint = "write its device file, or its label: `gpiodetect` shows both";
            document.refuse(&join(path, "chip"), "nothing says which chip", hint);
        }
        if self.lines.is_empty() && !document.has_problems() {
            let hint = "write for example `lines = [{ name = \"door\", line = 17 }]`";
            document.refuse_key(path, "there is nothing to hear or to set", hint);
        }
        let (list, mut names, mut places) = (join(path, "lines"), BTreeSet::new(), BTreeSet::new());
        for (i, line) in self.lines.iter().enumerate() {
            let path = element(&list, i, self.lines.iter().map(|line| Some(line.name.as_str())));
            if !names.insert(&line.name) {
                let what = format!("`{}` is already the name of another line", line.name);
                document.refuse_key(&path, what, "give each its own name");
            }
            if !places.insert(&line.line) {
                let what = format!("{} has a name already", line.line);
                document.refuse(&join(&path, "line"), what, "keep one of the two");
            }
            line.check(&path, document);
        }
        let inputs = self.lines(Direction::In).count();
        if inputs > INPUTS_MAX {
            let what = format!("{inputs} inputs are more than the {INPUTS_MAX} that can be heard together");
            document.refuse_key(&list, what, "put some of them into another source");
        }
        let settings: BTreeSet<_> =
            self.lines(Direction::In).map(|line| (line.edge.unwrap_or_default(), line.bias, line.active_low)).collect();
        let debounces: BTreeSet<_> = self.lines(Direction::In).filter_map(|line| line.debounce).collect();
        // The first settings are those of the request itself.
        let ways = settings.len().saturating_sub(1) + debounces.len();
        if ways > WAYS_MAX {
            let what = format!("its inputs differ in {ways} ways, more than the {WAYS_MAX} that can be heard together");
            document.refuse_key(&list, what, "put those that are alike into a source of their own");
        }
    }
}

#[cfg(feature = "gpio")]
impl GpioSource {
    /// Hears its inputs and sets its outputs until the source is stopped; gives what is open then.
    pub(crate) async fn run(self, outlet: super::source::Outlet) -> Option<super::source::Left> {
        tend::run(std::sync::Arc::new(self), outlet).await
    }
}
