//! What the kernel asks, in this project's words: names, callers, times, flags and modes.
//!
//! Owns: the numbers of the protocol in a request. Never: calls the filesystem, or answers.
//! Invariant: what has no meaning here is refused with the errno that the caller gets.

use crate::vfs::{Allocate, Caller, Make, OpenHow, RenameHow, Seek, SetTime};
use fuser::{INodeNo, RenameFlags, Request, TimeOrNow};
use mictlan::id::{Ino, Name, NameError};
use mictlan::meta::error::FsError;
use mictlan::meta::inode::{FileKind, Stamp};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{SystemTime, UNIX_EPOCH};

pub(super) fn name(name: &OsStr) -> Result<Name, FsError> {
    Name::parse(name.as_bytes()).map_err(|error| match error {
        NameError::TooLong => FsError::NameTooLong,
        NameError::Empty | NameError::Forbidden => FsError::Invalid,
    })
}

pub(super) fn ino(ino: INodeNo) -> Ino {
    Ino(ino.0)
}

pub(super) fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

/// A time out of a request. Of one before 1970 the library makes the distance of its seconds and
/// adds its nanoseconds to that (`system_time_from_time` of fuser 0.18), so that what comes here is
/// further back than what was meant: each part is taken from where it was put.
pub(super) fn stamp(time: SystemTime) -> Stamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Stamp { secs: after.as_secs() as i64, nanos: after.subsec_nanos() },
        Err(before) => {
            let before = before.duration();
            let secs = (before.as_secs() as i64).wrapping_neg();
            Stamp { secs, nanos: before.subsec_nanos() }
        }
    }
}

pub(super) fn set_time(time: Option<TimeOrNow>) -> Option<SetTime> {
    time.map(|time| match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(stamp(time)),
    })
}

pub(super) fn open_how(flags: i32) -> OpenHow {
    let access = flags & libc::O_ACCMODE;
    OpenHow {
        read: access != libc::O_WRONLY,
        write: access != libc::O_RDONLY,
        truncate: flags & libc::O_TRUNC != 0,
        append: flags & libc::O_APPEND != 0,
    }
}

/// The kind and permission bits of a `mode_t`; `None` for a kind that no filesystem makes.
pub(super) fn kind_of(mode: u32) -> Option<FileKind> {
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

pub(super) fn make(kind: FileKind, mode: u32, umask: u32) -> Make {
    Make { kind, mode: mode & 0o7777, umask, rdev: 0, target: Box::default() }
}

pub(super) fn rename_how(flags: RenameFlags) -> Result<RenameHow, FsError> {
    match flags {
        f if f.is_empty() => Ok(RenameHow::Replace),
        f if f == RenameFlags::RENAME_NOREPLACE => Ok(RenameHow::NoReplace),
        f if f == RenameFlags::RENAME_EXCHANGE => Ok(RenameHow::Exchange),
        // A whiteout serves overlay filesystems as an upper layer, which this is not.
        _ => Err(FsError::Invalid),
    }
}

pub(super) fn allocate_how(mode: i32) -> Result<Allocate, FsError> {
    let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
    Ok(match mode & !libc::FALLOC_FL_KEEP_SIZE {
        0 if keep_size => Allocate::KeepSize,
        0 => Allocate::Extend,
        libc::FALLOC_FL_PUNCH_HOLE if keep_size => Allocate::Punch,
        libc::FALLOC_FL_ZERO_RANGE => Allocate::Zero { keep_size },
        _ => return Err(FsError::NotSupported),
    })
}

/// Only these two come here: the kernel knows where the others lead.
pub(super) fn seek(offset: i64, whence: i32) -> Result<(u64, Seek), FsError> {
    let seek = match whence {
        libc::SEEK_DATA => Seek::Data,
        libc::SEEK_HOLE => Seek::Hole,
        _ => return Err(FsError::Invalid),
    };
    Ok((u64::try_from(offset).map_err(|_| FsError::NoDevice)?, seek))
}
