//! The lines of a source that are open. They outlive the source that a reload has changed, as far as the next one has the same.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::Arc;

use tokio::io::unix::AsyncFd;
use tokio::runtime::Handle;

use super::chip::{self, Chip, EDGES_MAX};
use super::edges::{self, Edges};
use super::untold::Untold;
use super::{Direction, GpioSource, LineConfig};
use crate::trigger::source::Outlet;

/// Edges that are read at once, of six words each.
const EDGES_WORDS: usize = 64 * 6;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Lines {
    pub(super) chip: Option<Arc<Chip>>,
    pub(super) inputs: Option<Inputs>,
    /// By name.
    pub(super) outputs: BTreeMap<String, Output>,
}

impl Drop for Lines {
    /// A chip behind a slow bus takes its time to let go, for which no other task is to wait.
    fn drop(&mut self) {
        let open = (self.inputs.take(), std::mem::take(&mut self.outputs), self.chip.take());
        if let (Some(_), Ok(runtime)) = (&open.2, Handle::try_current()) {
            drop(runtime.spawn_blocking(move || drop(open)));
        }
    }
}

/// All inputs, by one request: they have one buffer, and one file to wait for.
#[derive(Debug)]
pub(super) struct Inputs {
    lines: Vec<LineConfig>,
    file: AsyncFd<File>,
    edges: Edges,
}

/// One output, by a request of its own: another one that changes does not touch it.
#[derive(Debug)]
pub(super) struct Output {
    line: LineConfig,
    pub(super) file: Arc<File>,
}

impl Lines {
    /// Lets go of what `source` does not have, and opens what it has and is not open; inputs only if it is heard. What inputs say of themselves is `untold`.
    /// Waits for slow chips.
    ///
    /// # Errors
    /// With what is told of the first thing that cannot be opened. The others are.
    pub(super) fn open(&mut self, source: &GpioSource, untold: &mut Untold, outlet: &Outlet) -> Result<(), String> {
        let is_heard = outlet.is_heard(|_| true);
        let inputs: Vec<&LineConfig> = source.lines(Direction::In).filter(|_| is_heard).collect();
        let is_other = self.chip.as_ref().is_some_and(|chip| chip.called != source.chip || chip.is_there().is_err());
        if let Some(open) = self.inputs.take_if(|open| is_other || !open.are(&inputs)) {
            open.end(untold, outlet);
        }
        if is_other {
            self.outputs.clear();
            self.chip = None;
        }
        self.outputs.retain(|_, open| source.lines(Direction::Out).any(|line| open.is_for(line)));
        let chip = match &self.chip {
            Some(chip) => chip,
            None => self.chip.insert(Arc::new(Chip::open(&source.chip)?)),
        };
        let consumer = format!("tidegate:{}", outlet.name());
        let mut result = chip.are_distinct(&source.lines);
        for line in source.lines(Direction::Out) {
            if self.outputs.contains_key(&line.name) {
                continue;
            }
            match chip.find(&line.line).and_then(|offset| chip.output(offset, line, &consumer)) {
                Ok(file) => {
                    let output = Output { line: line.clone(), file: Arc::new(file) };
                    self.outputs.insert(line.name.clone(), output);
                }
                Err(why) => result = result.and(Err(why)),
            }
        }
        if self.inputs.is_none() && !inputs.is_empty() {
            match Inputs::open(chip, inputs, &consumer, untold) {
                Ok(inputs) => self.inputs = Some(inputs),
                Err(why) => result = result.and(Err(why)),
            }
        }
        result
    }
}

impl Inputs {
    /// What they are then is `untold`.
    fn open(chip: &Chip, lines: Vec<&LineConfig>, consumer: &str, untold: &mut Untold) -> Result<Self, String> {
        let offsets = lines.iter().map(|line| chip.find(&line.line)).collect::<Result<Vec<u32>, String>>()?;
        let found: Vec<_> = offsets.into_iter().zip(lines).collect();
        let file = chip.inputs(&found, consumer)?;
        let levels = chip::levels(&file, found.len()).map_err(|error| format!("lines cannot be read: {error}"))?;
        #[expect(unsafe_code, reason = "a file has one descriptor, which is open as long as it lives")]
        // SAFETY: as above, and nothing takes the file out.
        let file = unsafe { AsyncFd::register(file) };
        let file = file.map_err(|error| format!("lines cannot be waited for: {error}"))?;
        let edges = Edges::of(found.iter().map(|(offset, line)| (*offset, line.name.clone())));
        let lines: Vec<_> = found.into_iter().map(|(_, line)| line.clone()).collect();
        untold.add(lines.iter().zip(levels).map(|(line, active)| edges::level(&line.name, active)));
        Ok(Self { lines, file, edges })
    }

    /// Whether they are these, in any order.
    fn are(&self, lines: &[&LineConfig]) -> bool {
        self.lines.len() == lines.len() && lines.iter().all(|line| self.lines.contains(line))
    }

    /// Waits for edges, and reads some.
    ///
    /// # Errors
    /// When the chip is gone.
    pub(super) async fn read(&mut self, untold: &mut Untold, outlet: &Outlet) -> io::Result<()> {
        let mut ready = self.file.readable().await?;
        match ready.try_io(|file| read(file.get_ref(), &mut self.edges, untold, outlet)) {
            Ok(Ok(0)) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(result) => result.map(drop),
            // Another has read them, or there never were any.
            Err(_) => Ok(()),
        }
    }

    /// Reads what waits in the kernel, which forgets it with them.
    fn end(mut self, untold: &mut Untold, outlet: &Outlet) {
        while untold.count() < usize::from(EDGES_MAX)
            && read(self.file.get_ref(), &mut self.edges, untold, outlet).is_ok_and(|words| words > 0)
        {}
    }
}

/// Reads some edges; gives how many words they are.
fn read(file: &File, edges: &mut Edges, untold: &mut Untold, outlet: &Outlet) -> io::Result<usize> {
    let mut words = [0; EDGES_WORDS];
    let count = chip::read(file, &mut words)?;
    let (told, lost) = edges.take(&words[..count]);
    untold.add(told);
    if let Some(lost) = lost {
        outlet.count(&format!("{lost} edges are lost: they came faster than functions took them"));
    }
    Ok(count)
}

impl Output {
    /// Whether it is `line`. What that is to be at first no longer counts.
    fn is_for(&self, line: &LineConfig) -> bool {
        self.line == LineConfig { initial: self.line.initial, ..line.clone() }
    }
}
