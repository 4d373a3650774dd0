//! What can be asked of a namespace, and the bytes by which the journal remembers it.
//!
//! Owns: the operations with all that their callers knew, and their strict versioned form.
//! Never: what an operation does; the file of its name holds that.
//! Invariant: an operation decoded from the journal plans exactly as the one that was encoded.

use crate::file::Extent;
use crate::id::{Ino, Name};
use crate::meta::inode::{FileKind, Stamp};

/// A change that a caller wants. What is optional is left alone when absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Make(Make),
    Link {
        ino: Ino,
        to: Place,
    },
    Unlink(Place),
    Rmdir(Place),
    Rename {
        from: Place,
        to: Place,
        mode: RenameMode,
    },
    SetAttr(SetAttr),
    SetXattr(SetXattr),
    RemoveXattr {
        ino: Ino,
        name: Box<[u8]>,
        privileged: bool,
    },
    Write(Write),
    /// `extents` count from 0; they land at the size that the file has in certified order.
    Append(Append),
    Allocate(Allocate),
    Copy(Copy),
    /// The end of an unlinked inode that nobody holds open any more.
    Reap {
        ino: Ino,
    },
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub dir: Ino,
    pub name: Name,
}

/// mknod, create, mkdir and symlink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Make {
    pub at: Place,
    /// A number of the session's own block that was never used.
    pub ino: Ino,
    pub kind: FileKind,
    /// As the caller asked; `umask` arrives apart because a default ACL takes its place.
    pub mode: u32,
    pub umask: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    /// Of a symlink only.
    pub target: Box<[u8]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    Replace = 0,
    NoReplace = 1,
    Exchange = 2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    Now,
    At(Stamp),
}

/// chmod, chown, truncate and utimens in any mixture. With nothing set it is the kernel's wish
/// that setuid, setgid and capabilities go (a chown to no one, a write of its own).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAttr {
    pub ino: Ino,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    /// Truncation by a caller without CAP_FSETID.
    pub kill_priv: bool,
    /// chmod by a caller who is neither in the file's group nor privileged.
    pub kill_sgid: bool,
}

impl SetAttr {
    /// Nothing set yet.
    pub fn of(ino: Ino) -> Self {
        let (mode, uid, gid, size, atime, mtime) = (None, None, None, None, None, None);
        SetAttr { ino, mode, uid, gid, size, atime, mtime, kill_priv: false, kill_sgid: false }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrMode {
    Any = 0,
    Create = 1,
    Replace = 2,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetXattr {
    pub ino: Ino,
    pub name: Box<[u8]>,
    pub value: Box<[u8]>,
    pub mode: XattrMode,
    /// The caller has CAP_SYS_ADMIN, which `trusted.` asks for.
    pub privileged: bool,
    /// An ACL set by a caller who is neither in the file's group nor privileged.
    pub kill_sgid: bool,
}

/// Sealed bytes take their place in a file; what they cover goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Write {
    pub ino: Ino,
    /// Sorted, disjoint, none across a bucket boundary.
    pub extents: Vec<Extent>,
    /// The size is at least this afterwards.
    pub end: u64,
    /// Of the last `write` among them.
    pub mtime: Stamp,
    /// A caller without CAP_FSETID wrote.
    pub kill_priv: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Append {
    pub ino: Ino,
    /// From offset 0, without a gap, cut as if they were written there; placing cuts them anew.
    pub extents: Vec<Extent>,
    pub mtime: Stamp,
    pub kill_priv: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AllocateMode {
    /// Room is a matter of the session's space credit; here only the size may grow.
    Reserve = 0,
    ReserveKeepSize = 1,
    Punch = 2,
    Zero = 3,
    ZeroKeepSize = 4,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocate {
    pub ino: Ino,
    pub mode: AllocateMode,
    pub offset: u64,
    pub len: u64,
    pub kill_priv: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    pub from: Ino,
    pub from_offset: u64,
    pub to: Ino,
    pub to_offset: u64,
    pub len: u64,
    pub kill_priv: bool,
}
