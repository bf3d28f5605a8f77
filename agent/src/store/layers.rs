//! Layers: folders that functions share, laid over each other into one view, which a function sees read-only at `/opt`.
//!
//! # Promises
//! - A later layer's file takes the place of an earlier one's. Nothing in a view leads out of its layers.
//! - A view is there whole or not at all, also after a power cut, and does not change while a function uses it.
//! - What is laid over each other has a bound. A view goes when nobody uses it.
//!
//! # On disk
//! `STATE/layers/KEY/` is a view: hard links to what the agent has unpacked itself, which never changes, and copies of what lies in folders of
//! others. Its key is made of what the layers are: the digest of one that was unpacked; of a folder, where it is and the size and the last
//! change of each of its files. Whoever uses a view has a shared lock on it, also in another process.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock, syncfs};
use sha2::{Digest as _, Sha256};

use super::unpack::{UnpackError, unpack};
use crate::limits::Limits;
use crate::units::ByteSize;

/// Why there is no view.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// Nothing there.
    #[error("there is no layer `{0}`")]
    Missing(PathBuf),
    /// Neither a folder nor an archive.
    #[error("`{0}` is neither a folder nor a `.tar.zst` file")]
    Kind(PathBuf),
    /// More of them than [`Limits::layers_max`].
    #[error("there are {0} layers, more than {1}")]
    Count(usize, usize),
    /// The archive is malformed, or there is no room for it.
    #[error("cannot unpack layer `{0}`")]
    Unpack(PathBuf, #[source] UnpackError),
    /// Something in a layer that may not be there.
    #[error("`{0}` is {1}")]
    Entry(PathBuf, &'static str),
    /// What one layer has as a folder, and another as a file.
    #[error("`{0}` is a file in one layer and a folder in another")]
    Conflict(PathBuf),
    /// Over [`Limits::layers_bytes_max`].
    #[error("the layers of one function have more than {0}")]
    TooLarge(ByteSize),
    /// Over [`Limits::bundle_entries_max`].
    #[error("the layers of one function have more than {0} files and folders")]
    TooMany(usize),
    /// Reading a layer, or writing the view.
    #[error("cannot {0} `{1}`")]
    Io(&'static str, PathBuf, #[source] io::Error),
}

impl LayerError {
    /// What to do about it.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::Missing(_) => "correct the path: a layer is a folder, or a `.tar.zst` of one",
            Self::Kind(_) => "name a folder, or a `.tar.zst` of one",
            Self::Count(..) => "put together those that go together anyway",
            Self::Unpack(..) => "pack it again: a `.tar.zst` of plain files and folders",
            Self::Entry(..) => "put a copy of the file into the layer",
            Self::Conflict(_) => "rename one of the two",
            Self::TooLarge(_) | Self::TooMany(_) => "leave out what no function reads",
            Self::Io(..) => "the agent's user must be able to read the layer, and to write its state folder",
        }
    }
}

/// Layers over each other, as long as somebody uses them.
#[derive(Debug)]
pub struct View {
    /// The folder.
    pub path: PathBuf,
    /// Locked, so that nobody removes it.
    _in_use: File,
}

impl PartialEq for View {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

/// One file of a layer.
#[derive(Clone, Debug)]
struct Found {
    /// Where its bytes are.
    from: PathBuf,
    /// What it is called in the layer.
    name: PathBuf,
    /// What changes when it does.
    stamp: String,
}

/// What layers may have yet.
struct Room<'a> {
    limits: &'a Limits,
    bytes: u64,
    entries: usize,
}

/// Lays `layers` over each other, the later over the earlier; each is a folder or a `.tar.zst` of one. Of none there is no view.
///
/// # Errors
/// When one is missing, has what no layer may have, or all together have too much.
pub fn view(layers: &[PathBuf], state_dir: &Path, limits: &Limits) -> Result<Option<Arc<View>>, LayerError> {
    if layers.is_empty() {
        return Ok(None);
    }
    if layers.len() > limits.layers_max {
        return Err(LayerError::Count(layers.len(), limits.layers_max));
    }
    let bundles = state_dir.join("bundles");
    let mut room = Room::new(limits);
    let (mut files, mut key) = (BTreeMap::new(), Sha256::new());
    for layer in layers {
        let metadata = fs::metadata(layer).map_err(|_| LayerError::Missing(layer.clone()))?;
        let root = if metadata.is_dir() {
            layer.clone()
        } else if layer.to_string_lossy().ends_with(".tar.zst") {
            unpack(layer, &bundles, limits).map_err(|error| LayerError::Unpack(layer.clone(), error))?
        } else {
            return Err(LayerError::Kind(layer.clone()));
        };
        let is_ours = root.parent() == Some(&*bundles);
        let found = room.files(&root)?;
        key.update(root.as_os_str().as_encoded_bytes());
        for file in found {
            if !is_ours {
                key.update(format!("\n{}\n{}", file.name.display(), file.stamp));
            }
            files.insert(file.name, (file.from, is_ours));
        }
        key.update(b"\n\n");
    }
    if let Some((name, _)) = files.keys().zip(files.keys().skip(1)).find(|(file, next)| next.starts_with(file)) {
        return Err(LayerError::Conflict(name.clone()));
    }
    let key = hex::encode(key.finalize());
    let folder = state_dir.join("layers");
    fs::create_dir_all(&folder).map_err(|error| LayerError::Io("create", folder.clone(), error))?;
    let unusable = |error| LayerError::Io("use", folder.clone(), error);
    // Nothing is cleaned away meanwhile.
    let _making = locked(&folder, FlockOperation::LockShared).map_err(unusable)?;
    let path = folder.join(key);
    if !path.is_dir() {
        make(&path, &folder, &files)?;
    }
    let in_use = locked(&path, FlockOperation::LockShared).map_err(unusable)?;
    Ok(Some(Arc::new(View { path, _in_use: in_use })))
}

/// The files of the layer `folder`, each with its name in there.
///
/// # Errors
/// When it has what no layer may have, or too much.
pub fn files(folder: &Path, limits: &Limits) -> Result<Vec<(PathBuf, PathBuf)>, LayerError> {
    let found = Room::new(limits).files(folder)?;
    Ok(found.into_iter().map(|file| (file.from, file.name)).collect())
}

/// Removes the views that nobody uses.
pub fn clean(state_dir: &Path) {
    let folder = state_dir.join("layers");
    // Somebody makes one, or there are none.
    let Ok(_cleaning) = locked(&folder, FlockOperation::NonBlockingLockExclusive) else { return };
    let Ok(entries) = fs::read_dir(&folder) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let Ok(_unused) = locked(&path, FlockOperation::NonBlockingLockExclusive) else { continue };
        // Half of it must not keep its name.
        let gone = folder.join(format!(".gone-{:016x}", fastrand::u64(..)));
        let removed = fs::rename(&path, &gone).and_then(|()| fs::remove_dir_all(&gone));
        if let Err(error) = removed {
            tracing::warn!(folder = %path.display(), %error, "layers that nobody uses cannot be removed");
        }
    }
}

impl<'a> Room<'a> {
    const fn new(limits: &'a Limits) -> Self {
        Self { limits, bytes: limits.layers_bytes_max.0, entries: limits.bundle_entries_max }
    }

    /// The files of `folder`, in the order of their names.
    fn files(&mut self, folder: &Path) -> Result<Vec<Found>, LayerError> {
        let root = fs::canonicalize(folder).map_err(|error| LayerError::Io("read", folder.to_owned(), error))?;
        let mut found = Vec::new();
        self.collect(&root, Path::new(""), &mut found)?;
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    fn collect(&mut self, root: &Path, below: &Path, found: &mut Vec<Found>) -> Result<(), LayerError> {
        let folder = root.join(below);
        let unreadable = |error| LayerError::Io("read", folder.clone(), error);
        for entry in fs::read_dir(&folder).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            self.entries = self.entries.checked_sub(1).ok_or(LayerError::TooMany(self.limits.bundle_entries_max))?;
            let (path, name) = (entry.path(), below.join(entry.file_name()));
            let kind = entry.file_type().map_err(unreadable)?;
            if kind.is_dir() {
                self.collect(root, &name, found)?;
                continue;
            }
            let from = if kind.is_symlink() { behind(&path, root)? } else { path };
            let metadata = fs::metadata(&from).map_err(|error| LayerError::Io("read", from.clone(), error))?;
            if !metadata.is_file() {
                let what = if metadata.is_dir() { "a link to a folder" } else { "neither a file nor a folder" };
                return Err(LayerError::Entry(folder.join(entry.file_name()), what));
            }
            let over = LayerError::TooLarge(self.limits.layers_bytes_max);
            self.bytes = self.bytes.checked_sub(metadata.len()).ok_or(over)?;
            found.push(Found { from, name, stamp: stamp(&metadata) });
        }
        Ok(())
    }
}

/// What a link leads to, which must be in its layer too.
fn behind(link: &Path, root: &Path) -> Result<PathBuf, LayerError> {
    let target = fs::canonicalize(link).map_err(|_| LayerError::Entry(link.to_owned(), "a link to nothing"))?;
    if !target.starts_with(root) {
        return Err(LayerError::Entry(link.to_owned(), "a link that leads out of its layer"));
    }
    Ok(target)
}

fn stamp(metadata: &Metadata) -> String {
    format!("{} {} {}.{:09}", metadata.len(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec())
}

fn locked(folder: &Path, operation: FlockOperation) -> io::Result<File> {
    let folder = File::open(folder)?;
    flock(&folder, operation)?;
    Ok(folder)
}

/// Makes the view at `path`, unless another is faster.
fn make(path: &Path, folder: &Path, files: &BTreeMap<PathBuf, (PathBuf, bool)>) -> Result<(), LayerError> {
    let unwritable = |error| LayerError::Io("write", folder.to_owned(), error);
    let unfinished = tempfile::Builder::new().prefix(".view-").tempdir_in(folder).map_err(unwritable)?;
    for (name, (from, is_ours)) in files {
        let to = unfinished.path().join(name);
        let parent = to.parent().map_or(Ok(()), fs::create_dir_all);
        let put = parent.and_then(|()| match *is_ours && fs::hard_link(from, &to).is_ok() {
            true => Ok(()),
            false => fs::copy(from, &to).map(drop),
        });
        put.map_err(|error| LayerError::Io("copy", from.clone(), error))?;
    }
    // Before it gets its name, all of it is on disk.
    File::open(unfinished.path()).and_then(|view| Ok(syncfs(&view)?)).map_err(unwritable)?;
    match fs::rename(unfinished.path(), path) {
        Ok(()) => drop(unfinished.keep()),
        Err(_) if path.is_dir() => return Ok(()),
        Err(error) => return Err(unwritable(error)),
    }
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(unwritable)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Site(tempfile::TempDir);

    impl Site {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn layer(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
            let folder = self.0.path().join(name);
            fs::create_dir_all(&folder).unwrap();
            for (name, content) in files {
                fs::create_dir_all(folder.join(name).parent().unwrap()).unwrap();
                fs::write(folder.join(name), content).unwrap();
            }
            folder
        }

        fn view(&self, layers: &[PathBuf]) -> Result<Arc<View>, String> {
            self.within(layers, &Limits::default())
        }

        fn within(&self, layers: &[PathBuf], limits: &Limits) -> Result<Arc<View>, String> {
            view(layers, &self.0.path().join("state"), limits).map(Option::unwrap).map_err(|error| error.to_string())
        }

        fn views(&self) -> usize {
            fs::read_dir(self.0.path().join("state/layers")).unwrap().count()
        }
    }

    fn read(view: &View, name: &str) -> String {
        fs::read_to_string(view.path.join(name)).unwrap()
    }

    #[test]
    fn a_later_layer_lies_over_an_earlier_one() {
        let site = Site::new();
        let first = site.layer("first", &[("table.csv", "first"), ("python/a.py", "first"), (".hidden", "too")]);
        let second = site.layer("second", &[("table.csv", "second"), ("python/b.py", "second")]);
        let both = site.view(&[first.clone(), second.clone()]).unwrap();
        assert_eq!(
            ["table.csv", "python/a.py", "python/b.py", ".hidden"].map(|name| read(&both, name)),
            ["second", "first", "second", "too"]
        );
        let other = site.view(&[second.clone(), first.clone()]).unwrap();
        assert_eq!(read(&other, "table.csv"), "first");
        assert_eq!(site.view(&[first, second]).unwrap(), both, "shared by all who want the same");
        assert_eq!(site.views(), 2);
    }

    #[test]
    fn a_packed_layer_is_unpacked_once_and_linked() {
        let site = Site::new();
        let folder = site.layer("common", &[("table.csv", "1;2"), ("src/kept.py", "3")]);
        let archive = site.0.path().join("common.tar.zst");
        super::super::pack_files(&files(&folder, &Limits::default()).unwrap(), &archive).unwrap();
        let view = site.view(std::slice::from_ref(&archive)).unwrap();
        assert_eq!((read(&view, "table.csv"), read(&view, "src/kept.py")), ("1;2".to_owned(), "3".to_owned()));
        assert_eq!(fs::metadata(view.path.join("table.csv")).unwrap().nlink(), 2, "the same bytes on disk");
        assert_eq!(site.view(&[archive]).unwrap(), view);
    }

    #[test]
    fn a_view_stays_as_it_is_and_goes_with_its_last_user() {
        let site = Site::new();
        let layer = site.layer("common", &[("limit", "30")]);
        let before = site.view(std::slice::from_ref(&layer)).unwrap();
        site.layer("common", &[("limit", "31")]);
        let after = site.view(&[layer]).unwrap();
        assert_eq!((read(&before, "limit"), read(&after, "limit")), ("30".to_owned(), "31".to_owned()));
        let state = site.0.path().join("state");
        clean(&state);
        assert_eq!(site.views(), 2);
        drop(before);
        clean(&state);
        assert_eq!((site.views(), read(&after, "limit")), (1, "31".to_owned()));
    }

    #[test]
    fn what_no_layer_may_have_is_refused_by_name() {
        let site = Site::new();
        let outside = site.layer("outside", &[("secret", "x")]);
        let check = |name: &str, make: &dyn Fn(&Path), why: &str| {
            let layer = site.layer(name, &[("file", "1"), ("folder/file", "2")]);
            make(&layer);
            let error = site.view(&[layer]).unwrap_err();
            assert!(error.contains(why), "{error}");
        };
        let link =
            |target: PathBuf| move |layer: &Path| std::os::unix::fs::symlink(&target, layer.join("link")).unwrap();
        check("a", &link(outside.join("secret")), "link` is a link that leads out of its layer");
        check("b", &link("../outside/secret".into()), "leads out of its layer");
        check("c", &link("folder".into()), "link` is a link to a folder");
        check("d", &link("nowhere".into()), "link` is a link to nothing");
        let pipe = |layer: &Path| {
            let (path, mode) = (layer.join("pipe"), rustix::fs::Mode::RWXU);
            rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        };
        check("e", &pipe, "pipe` is neither a file nor a folder");
        let inside = site.layer("inside", &[("file", "1")]);
        std::os::unix::fs::symlink("file", inside.join("link")).unwrap();
        assert_eq!(read(&site.view(&[inside]).unwrap(), "link"), "1");
        assert!(site.view(&["nowhere".into()]).unwrap_err().contains("there is no layer `nowhere`"));
        assert!(site.view(&[outside.join("secret")]).unwrap_err().contains("neither a folder nor"));
        let (file, folder) = (site.layer("file", &[("a", "1")]), site.layer("folder", &[("a/b", "1")]));
        assert_eq!(site.view(&[file, folder]).unwrap_err(), "`a` is a file in one layer and a folder in another");
    }

    #[test]
    fn layers_have_bounds() {
        let site = Site::new();
        let layer = site.layer("common", &[("a", "12345"), ("b", "12345")]);
        let check = |times: usize, limits: &Limits, why: &str| {
            let error = site.within(&vec![layer.clone(); times], limits).unwrap_err();
            assert!(error.contains(why), "{error}");
        };
        let limits = Limits::default();
        check(6, &limits, "there are 6 layers, more than 5");
        check(2, &Limits { layers_bytes_max: ByteSize(19), ..limits.clone() }, "more than 19");
        check(2, &Limits { bundle_entries_max: 3, ..limits.clone() }, "more than 3 files and folders");
        assert!(
            site.within(&[layer.clone(), layer.clone()], &Limits { layers_bytes_max: ByteSize(20), ..limits }).is_ok()
        );
    }
}
