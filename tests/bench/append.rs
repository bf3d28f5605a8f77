//! Records that are on disk when `commit` returns, beside bare writes with the same number of records per fdatasync.

use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use tidegate::journal::{Batch, Journal, RecordMeta};
use tidegate::name::StreamName;

use crate::Options;
use crate::lab::Lab;
use crate::report::{Figure, Target};

/// A small JSON reading.
pub(crate) const RECORD_BYTES: usize = 200;
const WRITES: &str = "write + fdatasync";

pub(crate) async fn measure(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let lab = Lab::start("[stream.readings]\nmax_bytes = \"256 MiB\"\n").await?;
    let mut bare = std::fs::File::create(lab.folder.path().join("bare"))?;
    let mut figures = Vec::new();
    let parts = [
        ("append-1", 1, 200, Some(Target::TimesAtLeast(0.5))),
        ("append-2", 64, 100, None),
        ("append-3", 1_000, 40, Some(Target::AtLeast(20_000.0))),
    ];
    for (id, writers, each, target) in parts {
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
        let figure = Figure::beside(id, what, "records/s", rounds, WRITES);
        figures.push(target.into_iter().fold(figure, Figure::with));
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

pub(crate) async fn append_one(journal: &Journal, stream: &StreamName) -> anyhow::Result<()> {
    let data = Bytes::from_static(&[b'x'; RECORD_BYTES]);
    let record = (stream.clone(), data, RecordMeta { time_ms: 1, trace_parent: None });
    journal.commit(Batch { records: vec![record], ..Batch::default() }).await?;
    Ok(())
}
