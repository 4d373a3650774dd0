//! The adapter between `/dev/fuse` and a `Vfs`: decode, call, reply.
//!
//! Owns: flags and structures of the FUSE protocol, and which of the kernel's abilities are used.
//! Never: decides anything about files. A decision found here belongs behind `Vfs`.
//! Invariant: every request is answered exactly once, by the one closure that owns its reply.

use crate::errno::errno;
use crate::vfs::{
    Allocate, Attr, Caller, CopyRange, Found, Make, OpenHow, Opened, RenameHow, Seek, SetAttr,
    SetTime, Vfs, WriteAt, XattrFlags,
};
use bytes::Bytes;
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};
use mictlan::id::{Ino, Name, NameError};
use mictlan::meta::error::FsError;
use mictlan::meta::inode::{FileKind, Stamp};
use std::ffi::OsStr;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Inode numbers are never used twice, so their generation never changes.
const GENERATION: Generation = Generation(0);

/// A full page of names for one readdir buffer of 4 KiB to 128 KiB; what does not fit is asked
/// for again, so more would only be work thrown away.
const LISTED_MAX: usize = 512;
const LISTED_WITH_ATTR_MAX: usize = 128;

/// What the kernel may have in flight; the rest waits in the kernel, which costs us no memory.
const BACKGROUND_MAX: u16 = 64;

pub struct Fuse<V> {
    vfs: Arc<V>,
    runtime: tokio::runtime::Handle,
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

    fn name(&self, name: &OsStr) -> Result<Name, FsError> {
        Name::parse(name.as_bytes()).map_err(|error| match error {
            NameError::TooLong => FsError::NameTooLong,
            NameError::Empty | NameError::Forbidden => FsError::Invalid,
        })
    }
}

fn ino(ino: INodeNo) -> Ino {
    Ino(ino.0)
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

fn system_time(stamp: Stamp) -> SystemTime {
    let whole = Duration::from_secs(stamp.secs.unsigned_abs());
    let base =
        if stamp.secs < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    base.and_then(|t| t.checked_add(Duration::from_nanos(u64::from(stamp.nanos))))
        .unwrap_or(UNIX_EPOCH)
}

fn stamp(time: SystemTime) -> Stamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Stamp { secs: after.as_secs() as i64, nanos: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            let (secs, nanos) = (before.as_secs() as i64, before.subsec_nanos());
            match nanos {
                0 => Stamp { secs: -secs, nanos: 0 },
                _ => Stamp { secs: -secs - 1, nanos: 1_000_000_000 - nanos },
            }
        }
    }
}

fn set_time(time: Option<TimeOrNow>) -> Option<SetTime> {
    time.map(|time| match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(stamp(time)),
    })
}

fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Dir => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

fn file_attr(attr: &Attr) -> FileAttr {
    let inode = &attr.inode;
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: inode.size,
        blocks: attr.blocks,
        atime: system_time(inode.atime),
        mtime: system_time(inode.mtime),
        ctime: system_time(inode.ctime),
        crtime: system_time(inode.btime),
        kind: file_type(inode.kind),
        perm: inode.mode as u16,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev as u32,
        blksize: 1 << 20,
        flags: 0,
    }
}

fn reply_entry(reply: ReplyEntry, found: Result<Found, FsError>) {
    match found {
        Ok(Found::Here { attr, entry_lifetime }) => {
            reply.entry_with_ttls(&attr.lifetime, &entry_lifetime, &file_attr(&attr), GENERATION);
        }
        // Inode 0 tells the kernel to remember that the name is not there; without a lifetime
        // to give, the plain errno is cheaper for it.
        Ok(Found::Nothing { entry_lifetime }) if !entry_lifetime.is_zero() => {
            let nothing = FileAttr { ino: INodeNo(0), ..nothing_attr() };
            reply.entry_with_ttls(&Duration::ZERO, &entry_lifetime, &nothing, GENERATION);
        }
        Ok(Found::Nothing { .. }) => reply.error(Errno::ENOENT),
        Err(error) => reply.error(errno(&error)),
    }
}

fn nothing_attr() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

fn reply_attr(reply: ReplyAttr, attr: Result<Attr, FsError>) {
    match attr {
        Ok(attr) => reply.attr(&attr.lifetime, &file_attr(&attr)),
        Err(error) => reply.error(errno(&error)),
    }
}

fn reply_empty(reply: ReplyEmpty, done: Result<(), FsError>) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(&error)),
    }
}

fn open_flags(opened: &Opened) -> FopenFlags {
    let mut flags = FopenFlags::empty();
    if opened.keep_cache {
        flags |= FopenFlags::FOPEN_KEEP_CACHE;
    }
    if opened.direct {
        flags |= FopenFlags::FOPEN_DIRECT_IO;
    }
    flags
}

fn open_how(flags: i32) -> OpenHow {
    let access = flags & libc::O_ACCMODE;
    OpenHow {
        read: access != libc::O_WRONLY,
        write: access != libc::O_RDONLY,
        truncate: flags & libc::O_TRUNC != 0,
        append: flags & libc::O_APPEND != 0,
    }
}

/// The kind and permission bits of a `mode_t`; `None` for a kind that no filesystem makes.
fn kind_of(mode: u32) -> Option<FileKind> {
    Some(match mode & libc::S_IFMT {
        0 | libc::S_IFREG => FileKind::File,
        libc::S_IFDIR => FileKind::Dir,
        libc::S_IFLNK => FileKind::Symlink,
        libc::S_IFIFO => FileKind::Fifo,
        libc::S_IFSOCK => FileKind::Socket,
        libc::S_IFCHR => FileKind::CharDevice,
        libc::S_IFBLK => FileKind::BlockDevice,
        _ => return None,
    })
}

fn make(kind: FileKind, mode: u32, umask: u32) -> Make {
    Make { kind, mode: mode & 0o7777, umask, rdev: 0, target: Box::default() }
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
        // Each is asked for alone, so that an old kernel that lacks one still gives the others.
        // The write-back cache is not among them: the kernel would own size and times, and lose
        // another host's appends. Neither are the lock flags: the kernel keeps locks of one host.
        // Nor O_TRUNC as a part of open: the kernel would look only afterwards whether the file is
        // a program that runs (ETXTBSY), and have dropped its pages by then.
        for ability in [
            InitFlags::FUSE_BIG_WRITES,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_DONT_MASK,
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
        ] {
            if config.add_capabilities(ability).is_err() {
                tracing::debug!(?ability, "this kernel's FUSE does not have it");
            }
        }
        // The nearest allowed value comes back as the error; both are fine.
        let _ = config.set_max_write(1 << 20).or_else(|nearest| config.set_max_write(nearest));
        let _ = config.set_max_background(BACKGROUND_MAX);
        let _ = config.set_time_granularity(Duration::from_nanos(1));
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = parsed!(self.name(name), reply);
        let work = self.vfs.clone().lookup(caller(request), ino(parent), name);
        self.answer(work, |found| reply_entry(reply, found));
    }

    fn forget(&self, _request: &Request, inode: INodeNo, count: u64) {
        self.vfs.forget(ino(inode), count);
    }

    fn getattr(&self, _: &Request, inode: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        let work = self.vfs.clone().getattr(ino(inode), handle.map(|h| h.0));
        self.answer(work, |attr| reply_attr(reply, attr));
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
            atime: set_time(atime),
            mtime: set_time(mtime),
            ctime: ctime.map(stamp),
        };
        let handle = handle.map(|h| h.0);
        let work = self.vfs.clone().setattr(caller(request), ino(inode), handle, set);
        self.answer(work, |attr| reply_attr(reply, attr));
    }

    fn readlink(&self, _request: &Request, inode: INodeNo, reply: ReplyData) {
        self.answer(self.vfs.clone().readlink(ino(inode)), |target| match target {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(&error)),
        });
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
        let name = parsed!(self.name(name), reply);
        let kind = parsed!(kind_of(mode).ok_or(FsError::Invalid), reply);
        let made = Make { rdev: u64::from(rdev), ..make(kind, mode, umask) };
        let work = self.vfs.clone().make(caller(request), ino(parent), name, made);
        self.answer(work, |found| reply_entry(reply, found));
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
        let name = parsed!(self.name(name), reply);
        let made = make(FileKind::Dir, mode, umask);
        let work = self.vfs.clone().make(caller(request), ino(parent), name, made);
        self.answer(work, |found| reply_entry(reply, found));
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let name = parsed!(self.name(name), reply);
        let target = target.as_os_str().as_bytes().into();
        let made = Make { target, ..make(FileKind::Symlink, 0o777, 0) };
        let work = self.vfs.clone().make(caller(request), ino(parent), name, made);
        self.answer(work, |found| reply_entry(reply, found));
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
        let name = parsed!(self.name(name), reply);
        let made = make(FileKind::File, mode, umask);
        let exclusive = flags & libc::O_EXCL != 0;
        let vfs = self.vfs.clone();
        let work = vfs.create(caller(request), ino(parent), name, made, open_how(flags), exclusive);
        self.answer(work, |created| match created {
            Ok((attr, lifetime, opened)) => {
                // One lifetime serves name and attributes in this reply: the shorter is safe.
                let lifetime = lifetime.min(attr.lifetime);
                let handle = FileHandle(opened.handle);
                let flags = open_flags(&opened);
                reply.created(&lifetime, &file_attr(&attr), GENERATION, handle, flags);
            }
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = parsed!(self.name(name), reply);
        let work = self.vfs.clone().unlink(caller(request), ino(parent), name);
        self.answer(work, |done| reply_empty(reply, done));
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = parsed!(self.name(name), reply);
        let work = self.vfs.clone().rmdir(caller(request), ino(parent), name);
        self.answer(work, |done| reply_empty(reply, done));
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
        let from = (ino(parent), parsed!(self.name(name), reply));
        let to = (ino(new_parent), parsed!(self.name(new_name), reply));
        let how = match flags {
            f if f.is_empty() => RenameHow::Replace,
            f if f == RenameFlags::RENAME_NOREPLACE => RenameHow::NoReplace,
            f if f == RenameFlags::RENAME_EXCHANGE => RenameHow::Exchange,
            // A whiteout serves overlay filesystems as an upper layer, which this is not.
            _ => return reply.error(Errno::EINVAL),
        };
        let work = self.vfs.clone().rename(caller(request), from, to, how);
        self.answer(work, |done| reply_empty(reply, done));
    }

    fn link(
        &self,
        request: &Request,
        inode: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let name = parsed!(self.name(new_name), reply);
        let work = self.vfs.clone().link(caller(request), ino(inode), ino(new_parent), name);
        self.answer(work, |found| reply_entry(reply, found));
    }

    fn open(&self, request: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let work = self.vfs.clone().open(caller(request), ino(inode), open_how(flags.0));
        self.answer(work, |opened| match opened {
            Ok(opened) => reply.opened(FileHandle(opened.handle), open_flags(&opened)),
            Err(error) => reply.error(errno(&error)),
        });
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
        self.answer(work, |data| match data {
            Ok(data) => reply.data(&data),
            Err(error) => reply.error(errno(&error)),
        });
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
        self.answer(work, |written| match written {
            Ok(written) => reply.written(written),
            Err(error) => reply.error(errno(&error)),
        });
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
        self.answer(work, |done| reply_empty(reply, done));
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
        self.answer(work, |done| reply_empty(reply, done));
    }

    fn fsync(
        &self,
        _request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let work = self.vfs.clone().fsync(ino(inode), Some(handle.0));
        self.answer(work, |done| reply_empty(reply, done));
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
        mut reply: ReplyDirectory,
    ) {
        let work = self.vfs.clone().list(ino(inode), offset, LISTED_MAX, false);
        self.answer(work, move |listed| match listed {
            Ok(listed) => {
                for line in listed {
                    let name = OsStr::from_bytes(&line.name);
                    if reply.add(INodeNo(line.ino.0), line.cookie, file_type(line.kind), name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn readdirplus(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let vfs = self.vfs.clone();
        let work = vfs.clone().list(ino(inode), offset, LISTED_WITH_ATTR_MAX, true);
        self.answer(work, move |listed| match listed {
            Ok(listed) => {
                let mut full = false;
                for line in listed {
                    let Some(attr) = &line.attr else { continue };
                    let name = OsStr::from_bytes(&line.name);
                    let (file, ino) = (file_attr(attr), INodeNo(line.ino.0));
                    full = full
                        || reply.add(ino, line.cookie, name, &attr.lifetime, &file, GENERATION);
                    if full && line.holds() {
                        // The kernel never heard of it, so it will never forget it.
                        vfs.forget(line.ino, 1);
                    }
                }
                reply.ok();
            }
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let work = self.vfs.clone().fsync(ino(inode), None);
        self.answer(work, |done| reply_empty(reply, done));
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        const BLOCK: u64 = 4096;
        self.answer(self.vfs.clone().statfs(), |space| match space {
            Ok(space) => reply.statfs(
                space.total_bytes / BLOCK,
                space.free_bytes / BLOCK,
                space.free_bytes / BLOCK,
                space.inodes_used.saturating_add(space.inodes_free),
                space.inodes_free,
                BLOCK as u32,
                255,
                BLOCK as u32,
            ),
            Err(error) => reply.error(errno(&error)),
        });
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
        self.answer(work, |done| reply_empty(reply, done));
    }

    fn getxattr(&self, _: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let work = self.vfs.clone().getxattr(ino(inode), name.as_bytes().into());
        self.answer(work, move |value| reply_sized(reply, size, value.map(|v| v.to_vec())));
    }

    fn listxattr(&self, request: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        let work = self.vfs.clone().listxattr(caller(request), ino(inode));
        self.answer(work, move |names| {
            let joined = names.map(|names| {
                names.iter().flat_map(|name| name.iter().copied().chain([0])).collect::<Vec<u8>>()
            });
            reply_sized(reply, size, joined);
        });
    }

    fn removexattr(&self, request: &Request, inode: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.as_bytes().into();
        let work = self.vfs.clone().removexattr(caller(request), ino(inode), name);
        self.answer(work, |done| reply_empty(reply, done));
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
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let how = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 if keep_size => Allocate::KeepSize,
            0 => Allocate::Extend,
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => Allocate::Punch,
            libc::FALLOC_FL_ZERO_RANGE => Allocate::Zero { keep_size },
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        let vfs = self.vfs.clone();
        let work = vfs.allocate(caller(request), ino(inode), handle.0, offset, length, how);
        self.answer(work, |done| reply_empty(reply, done));
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
        let seek = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let work = self.vfs.clone().seek(ino(inode), handle.0, offset, seek);
        self.answer(work, |offset| match offset {
            Ok(offset) => reply.offset(offset as i64),
            Err(error) => reply.error(errno(&error)),
        });
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
        self.answer(work, |copied| match copied {
            Ok(copied) => reply.written(copied),
            Err(error) => reply.error(errno(&error)),
        });
    }
}

/// getxattr's protocol: size 0 asks how much there is, a size that is too small is ERANGE.
fn reply_sized(reply: ReplyXattr, size: u32, value: Result<Vec<u8>, FsError>) {
    match value {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(errno(&error)),
    }
}
