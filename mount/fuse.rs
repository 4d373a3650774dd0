//! The adapter between `/dev/fuse` and a `Vfs`: decode, call, reply.
//!
//! Owns: the callbacks of the FUSE protocol; `convert` has its arguments, `reply` its answers, and
//! `abilities` what is asked of the kernel.
//! Never: decides anything about files. A decision found here belongs behind `Vfs`.
//! Invariant: every request is answered exactly once, by the one closure that owns its reply.

mod abilities;
mod convert;
mod reply;

use crate::errno::errno;
use crate::vfs::{CopyRange, Make, SetAttr, Vfs, WriteAt, XattrFlags};
use bytes::Bytes;
use convert::{caller, ino};
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, INodeNo, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};
use mictlan::meta::error::FsError;
use mictlan::meta::inode::FileKind;
use std::ffi::OsStr;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::SystemTime;

/// A full page of names for one readdir buffer of 4 KiB to 128 KiB; what does not fit is asked
/// for again, so more would only be work thrown away.
const LISTED_MAX: usize = 512;
const LISTED_WITH_ATTR_MAX: usize = 128;

pub struct Fuse<V> {
    vfs: Arc<V>,
    runtime: tokio::runtime::Handle,
}

impl<V> Clone for Fuse<V> {
    fn clone(&self) -> Self {
        Self { vfs: self.vfs.clone(), runtime: self.runtime.clone() }
    }
}

impl<V: Vfs> Fuse<V> {
    pub fn new(vfs: Arc<V>, runtime: tokio::runtime::Handle) -> Self {
        Self { vfs, runtime }
    }

    /// Runs `work` until it is answered. It is polled here first: what memory can answer costs no
    /// switch of threads. What must wait goes on in the runtime, and this thread serves others.
    fn answer<T, F>(&self, work: F, reply: impl FnOnce(Result<T, FsError>) + Send + 'static)
    where
        F: Future<Output = Result<T, FsError>> + Send + 'static,
        T: Send + 'static,
    {
        let mut work = Box::pin(async move { reply(work.await) });
        let _guard = self.runtime.enter();
        let mut context = Context::from_waker(Waker::noop());
        if work.as_mut().poll(&mut context).is_pending() {
            self.runtime.spawn(work);
        }
    }
}

/// Answers with the errno at once when an argument is not what a filesystem can be asked.
macro_rules! parsed {
    ($value:expr, $reply:expr) => {
        match $value {
            Ok(value) => value,
            Err(error) => return $reply.error(errno(&error)),
        }
    };
}

impl<V: Vfs> Filesystem for Fuse<V> {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        abilities::ask(config);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = parsed!(convert::name(name), reply);
        let work = self.vfs.clone().lookup(caller(request), ino(parent), name);
        self.answer(work, |found| reply::entry(reply, found));
    }

    fn forget(&self, _request: &Request, inode: INodeNo, count: u64) {
        self.vfs.forget(ino(inode), count);
    }

    fn getattr(&self, _: &Request, inode: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        let work = self.vfs.clone().getattr(ino(inode), handle.map(|h| h.0));
        self.answer(work, |attr| reply::attr(reply, attr));
    }

    fn setattr(
        &self,
        request: &Request,
        inode: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: convert::set_time(atime),
            mtime: convert::set_time(mtime),
            ctime: ctime.map(convert::stamp),
        };
        let handle = handle.map(|h| h.0);
        let work = self.vfs.clone().setattr(caller(request), ino(inode), handle, set);
        self.answer(work, |attr| reply::attr(reply, attr));
    }

    fn readlink(&self, _request: &Request, inode: INodeNo, reply: ReplyData) {
        let work = self.vfs.clone().readlink(ino(inode));
        self.answer(work, |target| reply::data(reply, target));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let name = parsed!(convert::name(name), reply);
        let kind = parsed!(convert::kind_of(mode).ok_or(FsError::Invalid), reply);
        let made = Make { rdev: u64::from(rdev), ..convert::make(kind, mode, umask) };
        let work = self.vfs.clone().make(caller(request), ino(parent), name, made);
        self.answer(work, |found| reply::entry(reply, found));
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let name = parsed!(convert::name(name), reply);
        let made = convert::make(FileKind::Dir, mode, umask);
        let work = self.vfs.clone().make(caller(request), ino(parent), name, made);
        self.answer(work, |found| reply::entry(reply, found));
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let name = parsed!(convert::name(name), reply);
        let target = target.as_os_str().as_bytes().into();
        let made = Make { target, ..convert::make(FileKind::Symlink, 0o777, 0) };
        let work = self.vfs.clone().make(caller(request), ino(parent), name, made);
        self.answer(work, |found| reply::entry(reply, found));
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let name = parsed!(convert::name(name), reply);
        let made = convert::make(FileKind::File, mode, umask);
        let exclusive = flags & libc::O_EXCL != 0;
        let vfs = self.vfs.clone();
        let work = vfs.create(
            caller(request),
            ino(parent),
            name,
            made,
            convert::open_how(flags),
            exclusive,
        );
        self.answer(work, |created| reply::created(reply, created));
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = parsed!(convert::name(name), reply);
        let work = self.vfs.clone().unlink(caller(request), ino(parent), name);
        self.answer(work, |done| reply::empty(reply, done));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = parsed!(convert::name(name), reply);
        let work = self.vfs.clone().rmdir(caller(request), ino(parent), name);
        self.answer(work, |done| reply::empty(reply, done));
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let from = (ino(parent), parsed!(convert::name(name), reply));
        let to = (ino(new_parent), parsed!(convert::name(new_name), reply));
        let how = parsed!(convert::rename_how(flags), reply);
        let work = self.vfs.clone().rename(caller(request), from, to, how);
        self.answer(work, |done| reply::empty(reply, done));
    }

    fn link(
        &self,
        request: &Request,
        inode: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let name = parsed!(convert::name(new_name), reply);
        let work = self.vfs.clone().link(caller(request), ino(inode), ino(new_parent), name);
        self.answer(work, |found| reply::entry(reply, found));
    }

    fn open(&self, request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let work = self.vfs.clone().open(caller(request), ino(inode), convert::open_how(flags.0));
        self.answer(work, |opened| reply::opened(reply, opened));
    }

    fn read(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let work = self.vfs.clone().read(ino(inode), handle.0, offset, size);
        self.answer(work, |data| reply::data(reply, data));
    }

    fn write(
        &self,
        request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let write = WriteAt {
            offset,
            append: flags.0 & libc::O_APPEND != 0,
            kill_privileges: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
            data: Bytes::copy_from_slice(data),
        };
        let work = self.vfs.clone().write(caller(request), ino(inode), handle.0, write);
        self.answer(work, |written| reply::written(reply, written));
    }

    fn flush(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let work = self.vfs.clone().flush(ino(inode), handle.0);
        self.answer(work, |done| reply::empty(reply, done));
    }

    fn release(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let work = self.vfs.clone().release(ino(inode), handle.0);
        self.answer(work, |done| reply::empty(reply, done));
    }

    fn fsync(&self, _: &Request, inode: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        let work = self.vfs.clone().fsync(ino(inode), Some(fh.0));
        self.answer(work, |done| reply::empty(reply, done));
    }

    fn opendir(&self, _: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // A listing is right from any cookie without a handle, so the kernel need not ask again.
        reply.error(Errno::ENOSYS);
    }

    fn readdir(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let work = self.vfs.clone().list(ino(inode), offset, LISTED_MAX, false);
        self.answer(work, |listed| reply::names(reply, listed));
    }

    fn readdirplus(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let vfs = self.vfs.clone();
        let work = vfs.clone().list(ino(inode), offset, LISTED_WITH_ATTR_MAX, true);
        self.answer(work, move |listed| reply::names_with_attr(reply, listed, &*vfs));
    }

    fn fsyncdir(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let work = self.vfs.clone().fsync(ino(inode), None);
        self.answer(work, |done| reply::empty(reply, done));
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        self.answer(self.vfs.clone().statfs(), |space| reply::space(reply, space));
    }

    fn setxattr(
        &self,
        request: &Request,
        inode: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let flags = XattrFlags {
            create: flags & libc::XATTR_CREATE != 0,
            replace: flags & libc::XATTR_REPLACE != 0,
        };
        let (name, value) = (name.as_bytes().into(), Bytes::copy_from_slice(value));
        let work = self.vfs.clone().setxattr(caller(request), ino(inode), name, value, flags);
        self.answer(work, |done| reply::empty(reply, done));
    }

    fn getxattr(&self, _: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let work = self.vfs.clone().getxattr(ino(inode), name.as_bytes().into());
        self.answer(work, move |value| reply::sized(reply, size, value.map(|v| v.to_vec())));
    }

    fn listxattr(&self, request: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        let work = self.vfs.clone().listxattr(caller(request), ino(inode));
        self.answer(work, move |names| {
            let joined = names.map(|names| {
                names.iter().flat_map(|name| name.iter().copied().chain([0])).collect::<Vec<u8>>()
            });
            reply::sized(reply, size, joined);
        });
    }

    fn removexattr(&self, request: &Request, inode: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().into();
        let work = self.vfs.clone().removexattr(caller(request), ino(inode), name);
        self.answer(work, |done| reply::empty(reply, done));
    }

    fn fallocate(
        &self,
        request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let how = parsed!(convert::allocate_how(mode), reply);
        let vfs = self.vfs.clone();
        let work = vfs.allocate(caller(request), ino(inode), handle.0, offset, length, how);
        self.answer(work, |done| reply::empty(reply, done));
    }

    fn lseek(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let (offset, seek) = parsed!(convert::seek(offset, whence), reply);
        let work = self.vfs.clone().seek(ino(inode), handle.0, offset, seek);
        self.answer(work, |offset| reply::offset(reply, offset));
    }

    fn ioctl(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        // Programs ask every descriptor whether it is a terminal; that is not worth a line.
        reply.error(Errno::ENOTTY);
    }

    fn poll(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // The kernel asks once, and from then on answers as for a local disk: always ready.
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        request: &Request,
        ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let copy = CopyRange {
            from: ino(ino_in),
            from_handle: fh_in.0,
            from_offset: offset_in,
            to: ino(ino_out),
            to_handle: fh_out.0,
            to_offset: offset_out,
            len,
        };
        let work = self.vfs.clone().copy_range(caller(request), copy);
        self.answer(work, |copied| reply::written(reply, copied));
    }
}
