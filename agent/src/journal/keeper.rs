//! The thread that tidies up behind the writer, so that neither deleting nor reading old segments holds up an append.

use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use super::group::blocks_of;
use super::segment::Fault;
use super::state::Shared;
use super::writer::{Job, delete};
use crate::buffer::record::Block;
use crate::buffer::retention::Piece;
use crate::name::StreamName;

/// What the keeper is asked for.
pub(super) enum Task {
    /// A folder that nobody uses any more.
    Delete(PathBuf),
    /// Hand these records of segment `from` to the writer, which puts them into the active segment.
    Carry { from: u64, pieces: Vec<(StreamName, Piece)> },
}

/// A handle; the thread ends with it.
pub(super) struct Keeper(Sender<Task>);

impl Keeper {
    pub(super) fn start(shared: Arc<Shared>, jobs: Sender<Job>) -> io::Result<(Self, JoinHandle<()>)> {
        let (tasks, queue) = mpsc::channel();
        let clock = shared.clock.clone();
        let run = move || {
            while let Ok(task) = shared.clock.receive(&queue, None) {
                match task {
                    Task::Delete(path) => delete(&path),
                    Task::Carry { from, pieces } => carry(&shared, &jobs, from, pieces),
                }
            }
        };
        let thread = clock.thread("journal-keeper", run)?;
        Ok((Self(tasks), thread))
    }

    /// A keeper that is gone leaves its work to the next start.
    pub(super) fn ask(&self, task: Task) {
        let _ = self.0.send(task);
    }
}

fn carry(shared: &Shared, jobs: &Sender<Job>, from: u64, pieces: Vec<(StreamName, Piece)>) {
    for (stream, piece) in pieces {
        match needed_of(shared, from, &stream, piece) {
            Ok(Some(blocks)) => drop(jobs.send(Job::Carry { from, piece, blocks })),
            Ok(None) => {}
            Err(Fault::Machine(why)) => {
                tracing::warn!(segment = from, why, "a sparse segment could not be read, and stays");
                break;
            }
            Err(Fault::Damaged(why)) => {
                drop(jobs.send(Job::Damaged { segment: from, why }));
                break;
            }
        }
    }
    drop(jobs.send(Job::Carried { from }));
}

/// The records of `piece` that are still needed, or `None` when there are none.
fn needed_of(shared: &Shared, from: u64, stream: &StreamName, piece: Piece) -> Result<Option<Vec<Block>>, Fault> {
    let Some(segment) = shared.segment(from)? else { return Ok(None) };
    let mut records = Vec::new();
    let damaged = segment.blocks_from(stream, piece.first, |block| {
        if block.records.first().is_some_and(|record| record.sequence > piece.last) {
            return ControlFlow::Break(());
        }
        let within = block.records.into_iter().filter(|record| (piece.first..=piece.last).contains(&record.sequence));
        records.extend(within.map(|record| (block.age_ms, block.run, record)));
        ControlFlow::Continue(())
    })?;
    {
        let state = shared.state();
        let Some(index) = state.streams.get(stream).map(|stream| &stream.index) else { return Ok(None) };
        records.retain(|(.., record)| index.is_live(record.sequence));
        let mut before = piece.first - 1;
        let mut ends = records.iter().map(|(.., record)| record.sequence).chain([piece.last + 1]);
        let missing = ends.any(|sequence| index.needs_any_between(std::mem::replace(&mut before, sequence), sequence));
        if damaged > 0 || missing {
            return Err(Fault::Damaged("records are missing in it".to_owned()));
        }
    }
    Ok((!records.is_empty()).then(|| blocks_of(stream, records, true)))
}
