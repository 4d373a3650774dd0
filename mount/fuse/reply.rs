//! Answers in the kernel's words: attributes, entries, listings, sizes and errnos.
//!
//! Owns: the structures of the protocol in a reply. Never: decides what the answer is.
//! Invariant: each function answers its request exactly once.

use crate::errno::errno;
use crate::vfs::{Attr, Found, Listed, Opened, Space, Vfs};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr,
};
use mictlan::meta::error::FsError;
use mictlan::meta::inode::{FileKind, Stamp};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Inode numbers are never used twice, so their generation never changes.
const GENERATION: Generation = Generation(0);

fn system_time(stamp: Stamp) -> SystemTime {
    let whole = Duration::from_secs(stamp.secs.unsigned_abs());
    let base =
        if stamp.secs < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    base.and_then(|t| t.checked_add(Duration::from_nanos(u64::from(stamp.nanos))))
        .unwrap_or(UNIX_EPOCH)
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

pub(super) fn entry(reply: ReplyEntry, found: Result<Found, FsError>) {
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

pub(super) fn attr(reply: ReplyAttr, attr: Result<Attr, FsError>) {
    match attr {
        Ok(attr) => reply.attr(&attr.lifetime, &file_attr(&attr)),
        Err(error) => reply.error(errno(&error)),
    }
}

pub(super) fn empty(reply: ReplyEmpty, done: Result<(), FsError>) {
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

pub(super) fn opened(reply: ReplyOpen, opened: Result<Opened, FsError>) {
    match opened {
        Ok(opened) => reply.opened(FileHandle(opened.handle), open_flags(&opened)),
        Err(error) => reply.error(errno(&error)),
    }
}

pub(super) fn created(reply: ReplyCreate, created: Result<(Attr, Duration, Opened), FsError>) {
    match created {
        Ok((attr, lifetime, opened)) => {
            // One lifetime serves name and attributes in this reply: the shorter is safe.
            let lifetime = lifetime.min(attr.lifetime);
            let handle = FileHandle(opened.handle);
            let flags = open_flags(&opened);
            reply.created(&lifetime, &file_attr(&attr), GENERATION, handle, flags);
        }
        Err(error) => reply.error(errno(&error)),
    }
}

pub(super) fn data(reply: ReplyData, data: Result<impl AsRef<[u8]>, FsError>) {
    match data {
        Ok(data) => reply.data(data.as_ref()),
        Err(error) => reply.error(errno(&error)),
    }
}

pub(super) fn written(reply: ReplyWrite, written: Result<u32, FsError>) {
    match written {
        Ok(written) => reply.written(written),
        Err(error) => reply.error(errno(&error)),
    }
}

pub(super) fn offset(reply: ReplyLseek, offset: Result<u64, FsError>) {
    match offset {
        Ok(offset) => reply.offset(offset as i64),
        Err(error) => reply.error(errno(&error)),
    }
}

pub(super) fn names(mut reply: ReplyDirectory, listed: Result<Vec<Listed>, FsError>) {
    match listed {
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
    }
}

pub(super) fn names_with_attr(
    mut reply: ReplyDirectoryPlus,
    listed: Result<Vec<Listed>, FsError>,
    vfs: &impl Vfs,
) {
    match listed {
        Ok(listed) => {
            let mut full = false;
            for line in listed {
                let Some(attr) = &line.attr else { continue };
                let name = OsStr::from_bytes(&line.name);
                let (file, ino) = (file_attr(attr), INodeNo(line.ino.0));
                full = full || reply.add(ino, line.cookie, name, &attr.lifetime, &file, GENERATION);
                if full && line.holds() {
                    // The kernel never heard of it, so it will never forget it.
                    vfs.forget(line.ino, 1);
                }
            }
            reply.ok();
        }
        Err(error) => reply.error(errno(&error)),
    }
}

pub(super) fn space(reply: ReplyStatfs, space: Result<Space, FsError>) {
    const BLOCK: u64 = 4096;
    match space {
        Ok(space) => reply.statfs(
            space.total_bytes / BLOCK,
            space.free_bytes / BLOCK,
            space.available_bytes / BLOCK,
            space.inodes_used.saturating_add(space.inodes_free),
            space.inodes_free,
            BLOCK as u32,
            255,
            BLOCK as u32,
        ),
        Err(error) => reply.error(errno(&error)),
    }
}

/// getxattr's protocol: size 0 asks how much there is, a size that is too small is ERANGE.
pub(super) fn sized(reply: ReplyXattr, size: u32, value: Result<Vec<u8>, FsError>) {
    match value {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(errno(&error)),
    }
}
