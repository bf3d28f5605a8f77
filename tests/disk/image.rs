//! What a disk holds, and what a power cut may leave of it. No I/O: a state, the operations that change it, and a draw.
//!
//! The model is weaker than ext4 in its default mode, so that nothing relies on what only one file system does:
//!
//! - What was `fsync`ed or `fdatasync`ed of a file is there: content and size. Not its name: that takes an `fsync` of the
//!   folder (fsync(2): "calling fsync() does not necessarily ensure that the entry in the directory containing the file
//!   has also reached disk").
//! - Of what was written since, anything may be there: nothing, all, the first writes, or any sectors of 512 bytes or
//!   blocks of 4 KiB, in any order; a sector is whole (Pillai and others, "All File Systems Are Not Created Equal", OSDI
//!   2014). The size may be ahead of the content, which then reads as zeros (delayed allocation), or behind.
//! - Names made, changed and removed in a folder since its last `fsync` survive up to some point, in order (jbd2 commits
//!   them in order); folders are independent of each other. A rename is whole. Nothing orders a name after the content of
//!   its file.
//! - `sync_file_range` makes nothing durable (sync_file_range(2), "Warning").
//! - A failed `fsync` drops what it should have written: any sectors of it may be on the disk, and the next `fsync` does
//!   not bring the rest, although reads still show it (Rebello and others, "Can Applications Recover from fsync
//!   Failures?", ATC 2020).

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;

/// Number of a file or folder; never used twice.
pub(crate) type Ino = u64;
/// The top folder.
pub(crate) const ROOT: Ino = 1;
static NEXT: AtomicU64 = AtomicU64::new(ROOT + 1);

/// A number for a new file or folder, on whichever disk: the kernel may remember one of a disk that was taken out.
pub(crate) fn new_ino() -> Ino {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

const SECTOR_BYTES: usize = 512;
const BLOCK_BYTES: usize = 4096;

/// What can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Folder,
    Socket,
}

/// One thing that was done to the disk.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Create {
        parent: Ino,
        name: OsString,
        ino: Ino,
        kind: Kind,
    },
    Remove {
        parent: Ino,
        name: OsString,
    },
    Rename {
        parent: Ino,
        name: OsString,
        to: Ino,
        to_name: OsString,
    },
    Write {
        ino: Ino,
        at: usize,
        data: Arc<[u8]>,
    },
    Resize {
        ino: Ino,
        bytes: usize,
    },
    /// `fsync` of a file or folder.
    Sync {
        ino: Ino,
    },
    /// An `fsync` that failed; `seed` draws what reached the disk nevertheless.
    SyncFailed {
        ino: Ino,
        seed: u64,
    },
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Arc<[u8]>),
    Resize(usize),
}

#[derive(Clone, Debug, Default)]
pub(crate) struct File {
    /// As programs see it.
    pub(crate) now: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Naming {
    Add(OsString, Ino),
    Remove(OsString),
    Rename(OsString, OsString),
    /// One half of a rename between folders: what goes, what comes, and the number that both halves share.
    Move {
        gone: Option<OsString>,
        come: Option<(OsString, Ino)>,
        pair: u64,
    },
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Folder {
    /// As programs see it.
    pub(crate) now: BTreeMap<OsString, Ino>,
    durable: BTreeMap<OsString, Ino>,
    pending: Vec<Naming>,
}

#[derive(Clone, Debug)]
pub(crate) enum Node {
    File(File),
    Folder(Folder),
    /// Where a process listens.
    Socket,
}

/// Content of a disk: what programs see, what is durable, and what came between.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    pub(crate) nodes: BTreeMap<Ino, Node>,
    moves: u64,
}

impl Default for Image {
    fn default() -> Self {
        Self { nodes: BTreeMap::from([(ROOT, Node::Folder(Folder::default()))]), moves: 0 }
    }
}

impl Image {
    pub(crate) fn file(&self, ino: Ino) -> Option<&File> {
        match self.nodes.get(&ino) {
            Some(Node::File(file)) => Some(file),
            _ => None,
        }
    }

    pub(crate) fn folder(&self, ino: Ino) -> Option<&Folder> {
        match self.nodes.get(&ino) {
            Some(Node::Folder(folder)) => Some(folder),
            _ => None,
        }
    }

    pub(crate) fn child(&self, parent: Ino, name: &OsStr) -> Option<Ino> {
        self.folder(parent)?.now.get(name).copied()
    }

    fn file_mut(&mut self, ino: Ino) -> &mut File {
        match self.nodes.get_mut(&ino) {
            Some(Node::File(file)) => file,
            other => panic!("{ino} is no file: {other:?}"),
        }
    }

    fn name(&mut self, parent: Ino, naming: Naming) {
        let Some(Node::Folder(folder)) = self.nodes.get_mut(&parent) else { panic!("{parent} is no folder") };
        naming.apply(&mut folder.now);
        folder.pending.push(naming);
    }

    /// Does `op`, which was checked before.
    pub(crate) fn apply(&mut self, op: &Op) {
        match op {
            Op::Create { parent, name, ino, kind } => {
                let node = match kind {
                    Kind::Folder => Node::Folder(Folder::default()),
                    Kind::File => Node::File(File::default()),
                    Kind::Socket => Node::Socket,
                };
                self.nodes.insert(*ino, node);
                self.name(*parent, Naming::Add(name.clone(), *ino));
            }
            Op::Remove { parent, name } => self.name(*parent, Naming::Remove(name.clone())),
            Op::Rename { parent, name, to, to_name } if parent == to => {
                self.name(*parent, Naming::Rename(name.clone(), to_name.clone()));
            }
            Op::Rename { parent, name, to, to_name } => {
                let ino = self.child(*parent, name).expect("it was looked up");
                self.moves += 1;
                let pair = self.moves;
                self.name(*parent, Naming::Move { gone: Some(name.clone()), come: None, pair });
                self.name(*to, Naming::Move { gone: None, come: Some((to_name.clone(), ino)), pair });
            }
            Op::Write { ino, at, data } => {
                let file = self.file_mut(*ino);
                let change = Change::Write(*at, Arc::clone(data));
                change.apply(&mut file.now);
                file.pending.push(change);
            }
            Op::Resize { ino, bytes } => {
                let file = self.file_mut(*ino);
                file.now.resize(*bytes, 0);
                file.pending.push(Change::Resize(*bytes));
            }
            Op::Sync { ino } => match self.nodes.get_mut(ino) {
                Some(Node::File(file)) => {
                    let pending = std::mem::take(&mut file.pending);
                    pending.iter().for_each(|change| change.apply(&mut file.durable));
                }
                Some(Node::Folder(folder)) => {
                    folder.durable.clone_from(&folder.now);
                    folder.pending.clear();
                }
                Some(Node::Socket) | None => {}
            },
            Op::SyncFailed { ino, seed } => {
                // Names are still in the file system's journal, which would go read-only; content is dropped.
                if let Some(Node::File(file)) = self.nodes.get_mut(ino) {
                    let pending = std::mem::take(&mut file.pending);
                    let scatter = Survival::Scatter(SECTOR_BYTES);
                    file.durable = scatter.of(std::mem::take(&mut file.durable), &pending, &mut Rng::with_seed(*seed));
                }
            }
        }
    }

    /// What a power cut at this moment may leave, drawn by `rng`: all of it durable, with new numbers.
    pub(crate) fn cut(&self, rng: &mut Rng) -> Self {
        // A rename between folders is in both or in neither.
        let mut kept: BTreeMap<Ino, usize> = BTreeMap::new();
        let mut halves: BTreeMap<u64, Vec<(Ino, usize)>> = BTreeMap::new();
        for (ino, node) in &self.nodes {
            let Node::Folder(folder) = node else { continue };
            kept.insert(*ino, if rng.bool() { folder.pending.len() } else { rng.usize(..=folder.pending.len()) });
            for (at, naming) in folder.pending.iter().enumerate() {
                if let Naming::Move { pair, .. } = naming {
                    halves.entry(*pair).or_default().push((*ino, at));
                }
            }
        }
        for half in halves.values().filter(|half| half.len() == 2) {
            if half.iter().any(|(ino, at)| kept[ino] <= *at) {
                for (ino, at) in half {
                    kept.entry(*ino).and_modify(|kept| *kept = (*kept).min(*at));
                }
            }
        }
        let mut image = Self::default();
        self.cut_folder(ROOT, ROOT, &kept, rng, &mut image);
        image
    }

    fn cut_folder(&self, from: Ino, to: Ino, kept: &BTreeMap<Ino, usize>, rng: &mut Rng, image: &mut Self) {
        let Some(folder) = self.folder(from) else { return };
        let mut names = folder.durable.clone();
        folder.pending[..kept[&from]].iter().for_each(|naming| naming.apply(&mut names));
        let mut copies = BTreeMap::new();
        for (name, child) in names {
            let copy = new_ino();
            match &self.nodes[&child] {
                Node::File(file) => {
                    let content = Survival::draw(rng).of(file.durable.clone(), &file.pending, rng);
                    image
                        .nodes
                        .insert(copy, Node::File(File { durable: content.clone(), now: content, ..File::default() }));
                }
                Node::Folder(_) => self.cut_folder(child, copy, kept, rng, image),
                Node::Socket => drop(image.nodes.insert(copy, Node::Socket)),
            }
            copies.insert(name, copy);
        }
        let folder = Folder { durable: copies.clone(), now: copies, pending: Vec::new() };
        image.nodes.insert(to, Node::Folder(folder));
    }

    /// Bytes of all files that have a name or are open.
    pub(crate) fn bytes(&self) -> usize {
        let bytes = self.nodes.values().map(|node| match node {
            Node::File(file) => file.now.len(),
            Node::Folder(_) | Node::Socket => 0,
        });
        bytes.sum()
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write(at, data) => write(content, *at, data),
            Self::Resize(bytes) => content.resize(*bytes, 0),
        }
    }
}

fn write(content: &mut Vec<u8>, at: usize, data: &[u8]) {
    if content.len() < at + data.len() {
        content.resize(at + data.len(), 0);
    }
    content[at..at + data.len()].copy_from_slice(data);
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<OsString, Ino>) {
        match self {
            Self::Add(name, ino) => drop(names.insert(name.clone(), *ino)),
            Self::Remove(name) => drop(names.remove(name)),
            Self::Rename(from, to) => {
                if let Some(ino) = names.remove(from) {
                    names.insert(to.clone(), ino);
                }
            }
            Self::Move { gone, come, .. } => {
                if let Some(name) = gone {
                    names.remove(name);
                }
                if let Some((name, ino)) = come {
                    names.insert(name.clone(), *ino);
                }
            }
        }
    }
}

/// Which of a file's unsynced changes a cut leaves.
#[derive(Clone, Copy, Debug)]
enum Survival {
    Nothing,
    All,
    /// The first ones, the last of those in part.
    Prefix,
    /// Any parts of this size.
    Scatter(usize),
}

impl Survival {
    fn draw(rng: &mut Rng) -> Self {
        match rng.u8(..8) {
            0 | 1 => Self::Nothing,
            2 => Self::All,
            3 | 4 => Self::Prefix,
            5 | 6 => Self::Scatter(BLOCK_BYTES),
            _ => Self::Scatter(SECTOR_BYTES),
        }
    }

    fn of(self, mut content: Vec<u8>, pending: &[Change], rng: &mut Rng) -> Vec<u8> {
        let kept = match self {
            Self::Nothing => return content,
            Self::All | Self::Scatter(_) => pending.len(),
            Self::Prefix => rng.usize(..=pending.len()),
        };
        let before = content.len();
        let after = pending.iter().fold(before, |bytes, change| match change {
            Change::Write(at, data) => bytes.max(at + data.len()),
            Change::Resize(bytes) => *bytes,
        });
        for (n, change) in pending[..kept].iter().enumerate() {
            match (self, change) {
                (Self::Scatter(part), Change::Write(at, data)) => scatter(&mut content, *at, data, part, rng),
                (Self::Prefix, Change::Write(at, data)) if n + 1 == kept => {
                    scatter(&mut content, *at, data, SECTOR_BYTES, rng);
                }
                (Self::Scatter(_), Change::Resize(_)) if rng.bool() => {}
                _ => change.apply(&mut content),
            }
        }
        if matches!(self, Self::Scatter(_)) && content.len() > before {
            match rng.u8(..4) {
                0 => content.truncate(rng.usize(before..=content.len())),
                1 => content.resize(content.len().max(after), 0),
                _ => {}
            }
        }
        content
    }
}

fn scatter(content: &mut Vec<u8>, at: usize, data: &[u8], part: usize, rng: &mut Rng) {
    let mut done = 0;
    while done < data.len() {
        let bytes = (part - (at + done) % part).min(data.len() - done);
        if rng.bool() {
            write(content, at + done, &data[done..done + bytes]);
        }
        done += bytes;
    }
}
