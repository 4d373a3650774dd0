//! The questions of the kernel, in plain types.
//!
//! Owns: what a filesystem must answer to be mounted here, and nothing of how.
//! Never: names `fuser`; another transport (FUSE over io_uring, `put` and `get` without a mount)
//! asks the same questions.
//! Invariant: an answer is one `Result`; the errno is chosen in `errno`, nowhere else.

use bytes::Bytes;
use mictlan::id::{Ino, Name};
use mictlan::meta::error::FsError;
use mictlan::meta::inode::{FileKind, Inode, Stamp};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// Who asks. `pid` is 0 when the kernel itself asks (write-back, for one).
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
}

/// What `stat` shows of an inode. `blocks` are of 512 bytes and count what is not a hole.
#[derive(Clone, Debug)]
pub struct Attr {
    pub ino: Ino,
    pub inode: Inode,
    pub blocks: u64,
    /// How long the kernel may believe this without asking again.
    pub lifetime: Duration,
}

/// The answer of a lookup: an inode, or that there is none and for how long that holds.
#[derive(Clone, Debug)]
pub enum Found {
    Here { attr: Attr, entry_lifetime: Duration },
    Nothing { entry_lifetime: Duration },
}

/// An open file: `handle` comes back with every call on it.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    pub handle: u64,
    /// The kernel's cached pages of this inode are still those of the current version.
    pub keep_cache: bool,
    /// The kernel should neither cache nor read ahead.
    pub direct: bool,
}

/// One line of a listing. `cookie` resumes after it.
#[derive(Clone, Debug)]
pub struct Listed {
    pub cookie: u64,
    pub ino: Ino,
    pub kind: FileKind,
    pub name: Box<[u8]>,
    /// Present when the question was for names with attributes.
    pub attr: Option<Attr>,
}

impl Listed {
    /// Whether the kernel holds a reference to the inode once it has seen this line.
    pub fn holds(&self) -> bool {
        self.attr.is_some() && !matches!(&*self.name, b"." | b"..")
    }
}

/// `statfs` in bytes and inodes; `block` is the unit that the kernel reports in.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    pub total_bytes: u64,
    pub free_bytes: u64,
    /// What a program may write of it.
    pub available_bytes: u64,
    pub inodes_used: u64,
    pub inodes_free: u64,
}

/// A time to set: the caller's, or the moment of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    Now,
    At(Stamp),
}

/// `setattr`: what is `Some` changes.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    pub ctime: Option<Stamp>,
}

/// What `mknod`, `mkdir`, `symlink` and `create` make. `mode` has the 12 permission bits as the
/// caller gave them; the umask is applied by the filesystem, because a default ACL replaces it.
#[derive(Clone, Debug)]
pub struct Make {
    pub kind: FileKind,
    pub mode: u32,
    pub umask: u32,
    pub rdev: u64,
    pub target: Box<[u8]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameHow {
    Replace,
    NoReplace,
    Exchange,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    /// Grow the size if the range ends behind it.
    Extend,
    /// Reserve without a change of size.
    KeepSize,
    /// Make the range a hole, size unchanged.
    Punch,
    /// Make the range read as zeros; `keep_size` as in fallocate(2).
    Zero { keep_size: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    Data,
    Hole,
}

/// How a file is opened, of open(2)'s flags what a filesystem must know.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenHow {
    pub read: bool,
    pub write: bool,
    pub truncate: bool,
    pub append: bool,
}

/// One write. `append` asks to be placed at the end, wherever that is by then.
#[derive(Clone, Debug)]
pub struct WriteAt {
    pub offset: u64,
    pub append: bool,
    /// The kernel saw a caller who may not keep the setuid and setgid bits.
    pub kill_privileges: bool,
    pub data: Bytes,
}

/// A source and a place for `copy_file_range`.
#[derive(Clone, Copy, Debug)]
pub struct CopyRange {
    pub from: Ino,
    pub from_handle: u64,
    pub from_offset: u64,
    pub to: Ino,
    pub to_handle: u64,
    pub to_offset: u64,
    pub len: u64,
}

type Answer<T> = Result<T, FsError>;

/// A filesystem as the kernel sees it. Each method may take as long as its deadline; one that
/// can answer from memory should be ready at the first poll, which happens on the kernel's thread.
#[rustfmt::skip]
pub trait Vfs: Send + Sync + 'static {
    fn lookup(self: Arc<Self>, who: Caller, dir: Ino, name: Name) -> impl Future<Output = Answer<Found>> + Send;
    /// The kernel drops `count` of its references to an inode.
    fn forget(&self, ino: Ino, count: u64);
    fn getattr(self: Arc<Self>, ino: Ino, handle: Option<u64>) -> impl Future<Output = Answer<Attr>> + Send;
    fn setattr(self: Arc<Self>, who: Caller, ino: Ino, handle: Option<u64>, set: SetAttr) -> impl Future<Output = Answer<Attr>> + Send;
    fn readlink(self: Arc<Self>, ino: Ino) -> impl Future<Output = Answer<Box<[u8]>>> + Send;
    fn make(self: Arc<Self>, who: Caller, dir: Ino, name: Name, make: Make) -> impl Future<Output = Answer<Found>> + Send;
    /// `make` and `open` in one; opens what is there already unless `exclusive`.
    fn create(self: Arc<Self>, who: Caller, dir: Ino, name: Name, make: Make, how: OpenHow, exclusive: bool) -> impl Future<Output = Answer<(Attr, Duration, Opened)>> + Send;
    fn unlink(self: Arc<Self>, who: Caller, dir: Ino, name: Name) -> impl Future<Output = Answer<()>> + Send;
    fn rmdir(self: Arc<Self>, who: Caller, dir: Ino, name: Name) -> impl Future<Output = Answer<()>> + Send;
    fn rename(self: Arc<Self>, who: Caller, from: (Ino, Name), to: (Ino, Name), how: RenameHow) -> impl Future<Output = Answer<()>> + Send;
    fn link(self: Arc<Self>, who: Caller, ino: Ino, dir: Ino, name: Name) -> impl Future<Output = Answer<Found>> + Send;
    fn open(self: Arc<Self>, who: Caller, ino: Ino, how: OpenHow) -> impl Future<Output = Answer<Opened>> + Send;
    /// Fewer bytes than asked for mean the end of the file.
    fn read(self: Arc<Self>, ino: Ino, handle: u64, offset: u64, len: u32) -> impl Future<Output = Answer<Bytes>> + Send;
    fn write(self: Arc<Self>, who: Caller, ino: Ino, handle: u64, write: WriteAt) -> impl Future<Output = Answer<u32>> + Send;
    /// `close` of one descriptor: what it may lose is reported here.
    fn flush(self: Arc<Self>, ino: Ino, handle: u64) -> impl Future<Output = Answer<()>> + Send;
    /// The last descriptor of `handle` is gone.
    fn release(self: Arc<Self>, ino: Ino, handle: u64) -> impl Future<Output = Answer<()>> + Send;
    fn fsync(self: Arc<Self>, ino: Ino, handle: Option<u64>) -> impl Future<Output = Answer<()>> + Send;
    /// Names after `cookie` (0: from the start), at most `limit` of them; empty at the end. Each
    /// line with attributes counts as a lookup; for one that the kernel did not get, `forget`
    /// follows.
    fn list(self: Arc<Self>, dir: Ino, cookie: u64, limit: usize, with_attr: bool) -> impl Future<Output = Answer<Vec<Listed>>> + Send;
    /// Answered without the network.
    fn statfs(self: Arc<Self>) -> impl Future<Output = Answer<Space>> + Send;
    fn getxattr(self: Arc<Self>, ino: Ino, name: Box<[u8]>) -> impl Future<Output = Answer<Bytes>> + Send;
    fn listxattr(self: Arc<Self>, who: Caller, ino: Ino) -> impl Future<Output = Answer<Vec<Box<[u8]>>>> + Send;
    fn setxattr(self: Arc<Self>, who: Caller, ino: Ino, name: Box<[u8]>, value: Bytes, flags: XattrFlags) -> impl Future<Output = Answer<()>> + Send;
    fn removexattr(self: Arc<Self>, who: Caller, ino: Ino, name: Box<[u8]>) -> impl Future<Output = Answer<()>> + Send;
    fn allocate(self: Arc<Self>, who: Caller, ino: Ino, handle: u64, offset: u64, len: u64, how: Allocate) -> impl Future<Output = Answer<()>> + Send;
    fn seek(self: Arc<Self>, ino: Ino, handle: u64, offset: u64, seek: Seek) -> impl Future<Output = Answer<u64>> + Send;
    fn copy_range(self: Arc<Self>, who: Caller, copy: CopyRange) -> impl Future<Output = Answer<u32>> + Send;
}

/// setxattr(2)'s flags, and what FUSE_SETXATTR_EXT would say of the setgid bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XattrFlags {
    pub create: bool,
    pub replace: bool,
}
