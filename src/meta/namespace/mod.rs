//! POSIX: an operation on a namespace becomes a write set, its facts, and a reply.
//!
//! Owns: every rule of the filesystem that the kernel does not keep by itself, one file a call.
//! Under `default_permissions` the kernel checks mode bits, ACLs and sticky directories before it
//! asks; what is inherited, cleared, counted, refused or kept in step is decided here.
//! Never: touches anything but a `Read`; a `Missing` node means that the caller asks again.
//! Invariant: whatever a plan relied on is in its facts, and whatever it changes is covered by a
//! fact that it writes or adds, so that a plan that is certified is as good as one made last.

mod acl;
mod allocate;
mod copy;
mod draft;
mod journal;
mod link;
mod make;
mod op;
mod place;
pub mod read;
mod reap;
mod rename;
mod setattr;
mod unlink;
mod write;
mod xattr;

use crate::id::Ino;
use crate::meta::error::{FsError, ReadError};
use crate::meta::inode::{FileKind, Inode, Stamp};
use crate::meta::key::Key;
use crate::meta::tag::Facts;
use crate::meta::tree::Read;
use crate::meta::value::Value;
use crate::meta::write::{Merge, WriteSet};
use draft::Draft;
pub use op::*;
pub use xattr::COPIES_MAX;

/// Far above what anyone links on purpose, far below where a count would wrap.
pub const LINK_MAX: u32 = 1 << 30;
/// A file's size is an `off_t`.
pub const SIZE_MAX: u64 = i64::MAX as u64;
/// As many directories as a walk to the root may meet before it is taken for a cycle.
const DEPTH_MAX: usize = 1 << 16;

/// Bytes that extents hold, in all files, orphans included: [`Key::Counter`].
pub const COUNTER_BYTES: u8 = 0;
/// Inodes, orphans included.
pub const COUNTER_INODES: u8 = 1;

/// What an operation is planned with, besides what it says itself.
pub struct Env<'a> {
    /// The time of the call; a replay from the journal passes the time that was then.
    pub now: Stamp,
    /// [`crate::seal::key::KeyRing::dirent_key`].
    pub dirent_key: &'a [u8; 32],
}

/// An operation that may be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Empty where the operation changes nothing; then there is nothing to commit.
    pub writes: WriteSet,
    pub facts: Facts,
    pub reply: Reply,
}

/// What the caller hears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Done,
    /// Of make and link.
    Entry {
        ino: Ino,
        inode: Inode,
    },
    /// Of setattr, allocate and write: the attributes afterwards.
    Attr(Inode),
    /// Of unlink and rmdir; `last` when `ino` became an orphan.
    Removed {
        ino: Ino,
        last: bool,
    },
    /// The inode that lost its last name to the rename.
    Renamed {
        replaced: Option<Ino>,
    },
    /// Where the first byte landed, and the attributes afterwards.
    Appended {
        offset: u64,
        inode: Inode,
    },
    /// May be fewer bytes than were asked for; 0 is the end of the source.
    Copied {
        len: u64,
        inode: Inode,
    },
}

/// What `op` would change in the namespace that `read` shows.
pub fn plan(read: &impl Read, env: &Env, op: &Op) -> Result<Planned, ReadError> {
    let mut draft = Draft::new(read, env);
    let reply = match op {
        Op::Make(make) => make::plan(&mut draft, make),
        Op::Link { ino, to } => link::plan(&mut draft, *ino, to),
        Op::Unlink(place) => unlink::unlink(&mut draft, place),
        Op::Rmdir(place) => unlink::rmdir(&mut draft, place),
        Op::Rename { from, to, mode } => rename::plan(&mut draft, from, to, *mode),
        Op::SetAttr(set) => setattr::plan(&mut draft, set),
        Op::SetXattr(set) => xattr::set(&mut draft, set),
        Op::RemoveXattr { ino, name, privileged } => {
            xattr::remove(&mut draft, *ino, name, *privileged)
        }
        Op::Write(write) => write::write(&mut draft, write),
        Op::Append(append) => write::append(&mut draft, append),
        Op::Allocate(allocate) => allocate::plan(&mut draft, allocate),
        Op::Copy(copy) => copy::plan(&mut draft, copy),
        Op::Reap { ino } => reap::plan(&mut draft, *ino),
    }?;
    let (writes, facts) = draft.finish();
    Ok(Planned { writes, facts, reply })
}

/// The first write set of a volume: its root directory, counted.
pub fn founding(now: Stamp, uid: u32, gid: u32, mode: u32) -> WriteSet {
    let root = Inode {
        kind: FileKind::Dir,
        mode,
        uid,
        gid,
        nlink: 2,
        size: 0,
        bytes: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        rdev: 0,
        home: Ino::ROOT,
        target: [].into(),
    };
    let mut writes = WriteSet::default();
    writes.put(Key::Inode(Ino::ROOT), Value::Inode(root));
    writes.merge(Key::Counter(COUNTER_INODES), Merge::Counter(1));
    writes
}

/// The regular file behind `ino`, or why its bytes cannot be changed.
fn file(draft: &Draft<impl Read>, ino: Ino) -> Result<Inode, ReadError> {
    let inode = draft.inode(ino)?;
    match inode.kind {
        FileKind::File => Ok(inode),
        FileKind::Dir => Err(FsError::IsDir.into()),
        _ => Err(FsError::Invalid.into()),
    }
}
