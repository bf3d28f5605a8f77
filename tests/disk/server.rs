//! Hands the kernel's calls on to [`Live`].

use std::ffi::OsStr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite,
    Request, TimeOrNow, WriteFlags,
};

use crate::image::Kind;
use crate::live::Live;

/// The kernel asks each time, so that a disk that was exchanged is seen at once.
const NO_CACHE: Duration = Duration::ZERO;
const GENERATION: Generation = Generation(0);
const HANDLE: FileHandle = FileHandle(0);

pub(crate) struct Server(pub(crate) Arc<Mutex<Live>>);

impl Server {
    fn live(&self) -> MutexGuard<'_, Live> {
        self.0.lock().unwrap()
    }

    fn wait(&self) {
        let delay = self.live().delay;
        std::thread::sleep(delay);
    }
}

/// Sends what came of a call.
macro_rules! answer {
    ($reply:ident, $result:expr, |$value:pat_param| $sent:expr) => {
        match $result {
            Ok($value) => $sent,
            Err(error) => $reply.error(error),
        }
    };
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        answer!(reply, self.live().lookup(parent.0, name), |attr| reply.entry(&NO_CACHE, &attr, GENERATION));
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer!(reply, self.live().getattr(ino.0), |attr| reply.attr(&NO_CACHE, &attr));
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        answer!(reply, self.live().setattr(ino.0, size), |attr| reply.attr(&NO_CACHE, &attr));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _mode: u32, _umask: u32, reply: ReplyEntry) {
        answer!(reply, self.live().make(parent.0, name, Kind::Folder), |attr| reply
            .entry(&NO_CACHE, &attr, GENERATION));
    }

    fn mknod(&self, _: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, _rdev: u32, reply: ReplyEntry) {
        let kind = if mode & libc::S_IFMT == libc::S_IFSOCK { Kind::Socket } else { Kind::File };
        answer!(reply, self.live().make(parent.0, name, kind), |attr| reply.entry(&NO_CACHE, &attr, GENERATION));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let made = self.live().make(parent.0, name, Kind::File);
        answer!(reply, made, |attr| {
            reply.created(&NO_CACHE, &attr, GENERATION, HANDLE, FopenFlags::FOPEN_DIRECT_IO)
        });
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.live().remove(parent.0, name, false), |()| reply.ok());
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer!(reply, self.live().remove(parent.0, name, true), |()| reply.ok());
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        to: INodeNo,
        to_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        answer!(reply, self.live().rename(parent.0, name, to.0, to_name), |()| reply.ok());
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Every read and write reaches the disk as it was asked for, past the page cache.
        answer!(reply, self.live().open(ino.0, false), |()| reply.opened(HANDLE, FopenFlags::FOPEN_DIRECT_IO));
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        answer!(reply, self.live().open(ino.0, true), |()| reply.opened(HANDLE, FopenFlags::empty()));
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        at: u64,
        bytes: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        answer!(reply, self.live().read(ino.0, at, bytes), |data| reply.data(&data));
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        at: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.wait();
        answer!(reply, self.live().write(ino.0, at, data), |bytes| reply.written(bytes));
    }

    fn fsync(&self, _: &Request, ino: INodeNo, _: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        self.wait();
        answer!(reply, self.live().sync(ino.0), |()| reply.ok());
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        self.wait();
        answer!(reply, self.live().sync(ino.0), |()| reply.ok());
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        answer!(reply, self.live().list(ino.0), |entries| {
            let dots = [(1, ino.0, FileType::Directory, ".".into()), (2, ino.0, FileType::Directory, "..".into())];
            // By number, not by place: what is removed between two calls must not hide what comes behind it.
            let entries = entries.into_iter().map(|(child, kind, name)| (child + 2, child, kind, name));
            for (next, child, kind, name) in dots.into_iter().chain(entries) {
                if next > offset && reply.add(INodeNo(child), next, kind, name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        answer!(reply, self.live().space(), |(blocks, free)| reply.statfs(
            blocks,
            free,
            free,
            1 << 20,
            1 << 20,
            4096,
            255,
            4096
        ));
    }
}
