//! The thread that tidies up behind the writer, so that neither deleting nor reading old segments holds up an append.

use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread;

use super::Shared;
use super::segment::Fault;
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
    pub(super) fn start(shared: Arc<Shared>, jobs: Sender<Job>) -> io::Result<Self> {
        let (tasks, queue) = mpsc::channel();
        let run = move || {
            for task in queue {
                match task {
                    Task::Delete(path) => delete(&path),
                    Task::Carry { from, pieces } => carry(&shared, &jobs, from, pieces),
                }
            }
        };
        thread::Builder::new().name("journal-keeper".to_owned()).spawn(run)?;
        Ok(Self(tasks))
    }

    /// A keeper that is gone leaves its work to the next start.
    pub(super) fn ask(&self, task: Task) {
        let _ = self.0.send(task);
    }
}

fn carry(shared: &Shared, jobs: &Sender<Job>, from: u64, pieces: Vec<(StreamName, Piece)>) {
    for (stream, piece) in pieces {
        match blocks_of(shared, from, &stream, piece) {
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

/// The records of `piece`, or `None` when they went meanwhile.
fn blocks_of(shared: &Shared, from: u64, stream: &StreamName, piece: Piece) -> Result<Option<Vec<Block>>, Fault> {
    let Some(segment) = shared.segment(from)? else { return Ok(None) };
    let mut records = Vec::new();
    let damaged = segment.records_from(stream, piece.first, |record| {
        if record.sequence > piece.last {
            return ControlFlow::Break(());
        }
        records.push(record);
        ControlFlow::Continue(())
    })?;
    if damaged > 0 || records.len() as u64 != piece.last - piece.first + 1 {
        return Err(Fault::Damaged("records are missing in it".to_owned()));
    }
    let blocks = records.chunks(32).map(|records| Block { stream: stream.clone(), records: records.to_vec() });
    Ok(Some(blocks.collect()))
}
