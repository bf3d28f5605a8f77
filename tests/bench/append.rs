//! Records that are on disk when `commit` returns, beside bare writes with the same number of records per fdatasync.

use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use tidegate::journal::{Batch, Journal, RecordMeta};
use tidegate::name::StreamName;

use crate::Options;
use crate::lab::Lab;
use crate::report::Figure;

/// A small JSON reading.
const RECORD_BYTES: usize = 200;
const WRITES: &str = "write + fdatasync";

pub(crate) async fn measure(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let lab = Lab::start("[stream.readings]\nmax_bytes = \"256 MiB\"\n").await?;
    let mut bare = std::fs::File::create(lab.folder.path().join("bare"))?;
    let mut figures = Vec::new();
    for (id, writers, each) in [("append-1", 1, 200), ("append-2", 64, 100)] {
        let each = if options.quick { each / 10 } else { each };
        let mut rounds = Vec::new();
        let mut groups = Vec::new();
        for _ in 0..options.rounds() {
            let before = lab.journal.journal_status();
            let started = lab.clock.instant();
            append(&lab, writers, each).await?;
            let ours = (writers * each) as f64 / (lab.clock.instant() - started).as_secs_f64();
            let after = lab.journal.journal_status();
            let group = (after.commits - before.commits).div_ceil((after.syncs - before.syncs).max(1));
            groups.push(group as f64);
            let group = usize::try_from(group)?;
            let started = lab.clock.instant();
            let times = (writers * each).div_ceil(group);
            for _ in 0..times {
                bare.write_all(&vec![b'x'; RECORD_BYTES * group])?;
                bare.sync_data()?;
            }
            rounds.push((ours, (times * group) as f64 / (lab.clock.instant() - started).as_secs_f64()));
        }
        let together = crate::report::median(groups);
        let what = format!("durable appends, {writers} at a time, {together} per fdatasync");
        figures.push(Figure::beside(id, what, "records/s", rounds, WRITES));
    }
    Ok(figures)
}

/// `writers` that append `each` records, one after the other.
async fn append(lab: &Lab, writers: usize, each: usize) -> anyhow::Result<()> {
    let stream = StreamName::parse("readings")?;
    let work: Vec<_> = (0..writers)
        .map(|_| {
            let (journal, stream) = (Arc::clone(&lab.journal), stream.clone());
            lab.runtime.spawn(async move {
                for _ in 0..each {
                    append_one(&journal, &stream).await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for writer in work {
        writer.await??;
    }
    Ok(())
}

async fn append_one(journal: &Journal, stream: &StreamName) -> anyhow::Result<()> {
    let data = Bytes::from_static(&[b'x'; RECORD_BYTES]);
    let record = (stream.clone(), data, RecordMeta { time_ms: 1, trace_parent: None });
    Ok(journal.commit(Batch { records: vec![record], key_values: Vec::new() }).await?)
}
