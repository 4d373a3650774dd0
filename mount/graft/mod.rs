//! A read-only tree under one name at the root of a filesystem: `/ledger` in a mount.
//!
//! Owns: the reserved names, the inode numbers with bit 63 set, and what the kernel holds of them.
//! Never: knows what the tree shows, or touches a question about any other inode.
//! Invariant: nothing below the name, and not the name itself, can be written: EROFS.
//!
//! A volume's inode numbers stay below bit 63 (sessions have 31 bits), and so do its cookies.

mod held;
mod vfs;

use crate::vfs::Vfs;
use bytes::Bytes;
use held::Held;
use mictlan::id::{Ino, Name};
use mictlan::meta::error::FsError;
use mictlan::meta::inode::{FileKind, Inode, Stamp};
use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::vfs::Attr;

/// The name at the root.
pub const NAME: &[u8] = b"ledger";
/// The name at the root that past states will be shown under. Nothing is there yet, so what a
/// volume already has under it is the volume's, and can go; nothing new comes there.
const PAST: &[u8] = b".at";
/// What nobody can make at the root.
pub const RESERVED: [&[u8]; 2] = [NAME, PAST];
/// Numbers from here on are the tree's; the first one is its root.
const FIRST: u64 = 1 << 63;
/// The cookie of the name in the root's listing. A volume's cookies are hashes of 62 bits, so this
/// one is behind them all.
const COOKIE: u64 = 1 << 62;
/// The cookies after `.` and `..`; the tree's own come after them.
const AFTER_SELF: u64 = 1;
const AFTER_PARENT: u64 = 2;
/// "For ever": the kernel's clock arithmetic takes any number of seconds of 32 bits.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);
/// A directory that grows stays where it is; only its times change.
const DIR_LIFETIME: Duration = Duration::from_secs(1);

type Answer<T> = Result<T, FsError>;

/// What `stat` shows of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    pub dir: bool,
    /// Exact: as many bytes as reading gives.
    pub size: u64,
    pub time: Stamp,
    /// Its bytes will never change.
    pub settled: bool,
}

/// A name in a listing; `next` resumes after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeLine<N> {
    pub name: String,
    pub node: N,
    pub dir: bool,
    pub next: u64,
}

/// A read-only tree of files, some of which grow.
pub trait Tree: Send + Sync + 'static {
    /// A file or directory: two are the same exactly if they are equal.
    type Node: Copy + Eq + Hash + Send + Sync + 'static;
    /// A file's bytes as they were when it was opened.
    type Open: Send + Sync + 'static;

    fn root(&self) -> Self::Node;
    fn lookup(
        &self,
        dir: Self::Node,
        name: &str,
    ) -> impl Future<Output = Answer<Option<Self::Node>>> + Send;
    fn show(&self, node: Self::Node) -> impl Future<Output = Answer<Shown>> + Send;
    /// At most `limit` names from a cookie on, 0 at first; empty at the end.
    fn list(
        &self,
        dir: Self::Node,
        from: u64,
        limit: usize,
    ) -> impl Future<Output = Answer<Vec<TreeLine<Self::Node>>>> + Send;
    /// Pins what is there now: later reads see it however the tree grows.
    fn open(&self, node: Self::Node) -> impl Future<Output = Answer<(Self::Open, Shown)>> + Send;
    /// Fewer bytes than asked for mean the end.
    fn read(
        &self,
        open: &Self::Open,
        offset: u64,
        len: usize,
    ) -> impl Future<Output = Answer<Bytes>> + Send;
}

/// An open file and what it showed when it was opened.
struct OpenFile<O> {
    open: O,
    shown: Shown,
}

/// Handle to open file; the kernel bounds it by the files that programs have open.
type OpenFiles<O> = HashMap<u64, Arc<OpenFile<O>>>;

/// `V` with `L` under the reserved name.
pub struct Graft<V, L: Tree> {
    inner: Arc<V>,
    tree: Arc<L>,
    /// The name is neither listed nor found; it stays reserved.
    hidden: bool,
    /// Whose the tree's files are shown as.
    uid: u32,
    gid: u32,
    /// Covers which nodes the kernel knows; never held across an await.
    held: Mutex<Held<L::Node>>,
    /// Covers the open files; never held across an await.
    open: Mutex<OpenFiles<L::Open>>,
    last_handle: AtomicU64,
}

impl<V: Vfs, L: Tree> Graft<V, L> {
    pub fn new(inner: Arc<V>, tree: Arc<L>, hidden: bool, owner: (u32, u32)) -> Self {
        let held = Mutex::new(Held::new(FIRST, tree.root()));
        let (uid, gid) = owner;
        let (open, last_handle) = (Mutex::default(), AtomicU64::new(0));
        Self { inner, tree, hidden, uid, gid, held, open, last_handle }
    }

    pub fn inner(&self) -> &Arc<V> {
        &self.inner
    }

    /// Whether the name in this directory is the reserved one.
    fn is_name(&self, dir: Ino, name: &Name) -> bool {
        dir == Ino::ROOT && name.as_bytes() == NAME
    }

    /// Changing this name is changing the tree, or standing in its place.
    fn is_ours(&self, dir: Ino, name: &Name) -> bool {
        is_grafted(dir) || self.is_name(dir, name)
    }

    /// Nothing can come to stand at this name.
    fn is_reserved(&self, dir: Ino, name: &Name) -> bool {
        self.is_ours(dir, name) || (dir == Ino::ROOT && RESERVED.contains(&name.as_bytes()))
    }

    fn held(&self) -> MutexGuard<'_, Held<L::Node>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_files(&self) -> MutexGuard<'_, OpenFiles<L::Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node(&self, ino: Ino) -> Answer<L::Node> {
        self.held().node(ino.0).ok_or(FsError::Stale)
    }

    /// How many nodes the kernel holds, the root apart.
    pub fn held_nodes(&self) -> usize {
        self.held().len()
    }

    fn keep(&self, open: L::Open, shown: Shown) -> u64 {
        let handle = self.last_handle.fetch_add(1, Ordering::Relaxed) + 1;
        self.open_files().insert(handle, Arc::new(OpenFile { open, shown }));
        handle
    }

    fn opened(&self, handle: u64) -> Answer<Arc<OpenFile<L::Open>>> {
        self.open_files().get(&handle).cloned().ok_or(FsError::Stale)
    }

    fn attr(&self, ino: Ino, shown: Shown) -> Attr {
        let Shown { dir, size, time, settled } = shown;
        let (kind, mode, nlink) = match dir {
            true => (FileKind::Dir, 0o555, 2),
            false => (FileKind::File, 0o444, 1),
        };
        let inode = Inode {
            kind,
            mode,
            uid: self.uid,
            gid: self.gid,
            nlink,
            size,
            bytes: size,
            atime: time,
            mtime: time,
            ctime: time,
            btime: time,
            rdev: 0,
            home: Ino::ROOT,
            target: Box::default(),
        };
        let lifetime = match (settled, dir) {
            (true, _) => FOR_EVER,
            (false, true) => DIR_LIFETIME,
            // What grows is asked for each time.
            (false, false) => Duration::ZERO,
        };
        Attr { ino, inode, blocks: size.div_ceil(512), lifetime }
    }
}

/// Whether an inode is the tree's.
fn is_grafted(ino: Ino) -> bool {
    ino.0 & FIRST != 0
}
