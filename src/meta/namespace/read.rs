//! The questions: lookup, attributes, listings, links, extents, holes, usage.
//!
//! Owns: the answers that need no plan, over anything that can be read; each may be `Missing` a
//! node and is then asked again.
//! Invariant: a listing from any cookie shows once whatever is there throughout, however the
//! directory changes meanwhile, because a cookie is the hash that an entry keeps for its life.

use super::xattr::{REPLICAS, copies};
use super::{COUNTER_BYTES, COUNTER_INODES, DEPTH_MAX};
use crate::file::{BUCKET, Extent};
use crate::id::{Ino, Name};
use crate::meta::error::{FsError, ReadError};
use crate::meta::inode::{FileKind, Inode};
use crate::meta::key::{HASH_FIRST, Key, Span, dirent_hash};
use crate::meta::tree::Read;
use crate::meta::value::Value;
use std::ops::Range;

/// Names whose hashes differ in the last bits only: where a name is looked for.
const GROUP: u64 = 4;
/// More names than this share a group only where someone searched for collisions.
const GROUP_NAMES_MAX: usize = 64;
/// Entries read at a time while a hole is searched.
const PAGE: usize = 256;
/// The cookie after `.`.
const AFTER_SELF: u64 = 1;
/// The cookie after `..`.
const AFTER_PARENT: u64 = 2;

/// A dirent with the hash under which it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    pub hash: u64,
    pub ino: Ino,
    pub kind: FileKind,
}

/// One line of a listing. `cookie` continues after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: Box<[u8]>,
    pub ino: Ino,
    pub kind: FileKind,
    pub cookie: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seek {
    Data,
    Hole,
}

/// Where the number of copies of an inode's bytes is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Here: so many.
    Copies(u8),
    /// Not here; by the directory that it lives in, or one above that.
    Above(Ino),
    /// Nowhere: the volume's number counts.
    Nowhere,
}

/// What a volume holds, orphans included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

/// `NotFound` when the name is not there.
pub fn lookup(
    read: &impl Read,
    dirent_key: &[u8; 32],
    dir: Ino,
    name: &Name,
) -> Result<(Ino, Inode), ReadError> {
    directory(read, dir)?;
    let found = find(read, dirent_key, dir, name)?.ok_or(FsError::NotFound)?;
    Ok((found.ino, getattr(read, found.ino)?))
}

/// `Stale` when the inode is gone.
pub fn getattr(read: &impl Read, ino: Ino) -> Result<Inode, ReadError> {
    match read.get(&Key::Inode(ino))? {
        Some(Value::Inode(inode)) => Ok(inode),
        _ => Err(FsError::Stale.into()),
    }
}

/// At most about `limit` entries after `cookie`; 0 begins, and no entries are the end.
pub fn readdir(
    read: &impl Read,
    dir: Ino,
    cookie: u64,
    limit: usize,
) -> Result<Vec<Entry>, ReadError> {
    let inode = directory(read, dir)?;
    let mut entries = Vec::new();
    let mut dots = |name: &[u8], ino, after| {
        let (name, kind) = (name.into(), FileKind::Dir);
        entries.push(Entry { name, ino, kind, cookie: after });
    };
    if cookie < AFTER_SELF {
        dots(b".", dir, AFTER_SELF);
    }
    if cookie < AFTER_PARENT {
        dots(b"..", inode.home, AFTER_PARENT);
    }
    let span = Span::children_from(dir, cookie.max(AFTER_PARENT).saturating_add(1));
    // Names that collided share a hash; a page always reaches past them.
    let limit = limit.max(GROUP_NAMES_MAX);
    let page = range(read, &span, limit + 1)?;
    let more = page.len() > limit;
    let mut listed = page.into_iter().filter_map(dirent).peekable();
    while let Some((name, found)) = listed.next() {
        let next = listed.peek();
        if next.is_none() && more {
            break;
        }
        // Within a collision the cookie repeats rather than skips.
        let collides = next.is_some_and(|(_, next)| next.hash == found.hash);
        let cookie = if collides { found.hash - 1 } else { found.hash };
        let (name, ino, kind) = (name.as_bytes().into(), found.ino, found.kind);
        entries.push(Entry { name, ino, kind, cookie });
    }
    Ok(entries)
}

pub fn readlink(read: &impl Read, ino: Ino) -> Result<Box<[u8]>, ReadError> {
    let inode = getattr(read, ino)?;
    match inode.kind {
        FileKind::Symlink => Ok(inode.target),
        _ => Err(FsError::Invalid.into()),
    }
}

/// `trusted.` attributes are there for privileged callers only.
pub fn getxattr(
    read: &impl Read,
    ino: Ino,
    name: &[u8],
    privileged: bool,
) -> Result<Box<[u8]>, ReadError> {
    getattr(read, ino)?;
    if !visible(name, privileged) || !matches!(name.len(), 1..=255) || name.contains(&0) {
        return Err(FsError::NoXattr.into());
    }
    match read.get(&Key::Xattr { ino, name: name.into() })? {
        Some(Value::Xattr(value)) => Ok(value),
        _ => Err(FsError::NoXattr.into()),
    }
}

/// The names of the attributes, sorted.
pub fn listxattr(
    read: &impl Read,
    ino: Ino,
    privileged: bool,
) -> Result<Vec<Box<[u8]>>, ReadError> {
    getattr(read, ino)?;
    let mut names = stored_xattrs(read, ino)?;
    // The number of copies is answered by name, also where it is not stored; never listed.
    names.retain(|name| visible(name, privileged) && **name != *REPLICAS);
    Ok(names)
}

/// How many copies of its bytes the inode itself asks for.
pub fn copies_asked(read: &impl Read, ino: Ino) -> Result<Asked, ReadError> {
    let inode = match read.get(&Key::Inode(ino))? {
        Some(Value::Inode(inode)) => inode,
        // A file outlives its home where it has another name: then nobody says it.
        _ => return Ok(Asked::Nowhere),
    };
    let own = match read.get(&Key::Xattr { ino, name: REPLICAS.into() })? {
        Some(Value::Xattr(value)) => copies(&value),
        _ => None,
    };
    Ok(match own {
        Some(copies) => Asked::Copies(copies),
        None if ino == Ino::ROOT => Asked::Nowhere,
        None => Asked::Above(inode.home),
    })
}

/// The same of the nearest that asks for a number: the inode, its home, or a directory above that.
pub fn copies_wanted(read: &impl Read, ino: Ino) -> Result<Option<u8>, ReadError> {
    let mut at = ino;
    for _ in 0..DEPTH_MAX {
        match copies_asked(read, at)? {
            Asked::Copies(copies) => return Ok(Some(copies)),
            Asked::Above(home) => at = home,
            Asked::Nowhere => return Ok(None),
        }
    }
    // Deeper than any path can lead: a hostile writer's cycle, in which nobody asks for anything.
    Ok(None)
}

pub(super) fn stored_xattrs(read: &impl Read, ino: Ino) -> Result<Vec<Box<[u8]>>, ReadError> {
    let entries = range(read, &Span::xattrs(ino), super::xattr::LIST_MAX)?;
    let name = |(key, _)| match key {
        Key::Xattr { name, .. } => Some(name),
        _ => None,
    };
    Ok(entries.into_iter().filter_map(name).collect())
}

fn visible(name: &[u8], privileged: bool) -> bool {
    privileged || !name.starts_with(b"trusted.")
}

/// At most `limit` extents that meet `bytes`, whole, in order. What lies between them is zero.
pub fn extents(
    read: &impl Read,
    ino: Ino,
    bytes: Range<u64>,
    limit: usize,
) -> Result<Vec<Extent>, ReadError> {
    if bytes.is_empty() {
        return Ok(vec![]);
    }
    // An extent that reaches into the range begins in the bucket where the range does.
    let mut from = bytes.start / BUCKET * BUCKET;
    let mut out = Vec::new();
    while out.len() < limit {
        let want = (limit - out.len()).clamp(1, PAGE);
        let page = range(read, &Span::extents(ino, from, bytes.end), want)?;
        let full = page.len() == want;
        for (_, value) in page {
            let Value::Extent(extent) = value else { continue };
            from = extent.offset + 1;
            if extent.offset + u64::from(extent.len) > bytes.start {
                out.push(extent);
            }
        }
        if !full || from >= bytes.end {
            break;
        }
    }
    Ok(out)
}

/// `lseek` for data or a hole; `NoDevice` where there is none before the end of the file.
pub fn seek(read: &impl Read, ino: Ino, offset: u64, what: Seek) -> Result<u64, ReadError> {
    let inode = getattr(read, ino)?;
    if offset >= inode.size {
        return Err(FsError::NoDevice.into());
    }
    let mut at = offset;
    loop {
        let page = extents(read, ino, at..inode.size, PAGE)?;
        if what == Seek::Data {
            let first = page.first().ok_or(FsError::NoDevice)?;
            return Ok(first.offset.max(offset));
        }
        for extent in &page {
            if extent.offset > at {
                return Ok(at);
            }
            at = (extent.offset + u64::from(extent.len)).min(inode.size);
        }
        if page.len() < PAGE || at == inode.size {
            return Ok(at);
        }
    }
}

pub fn usage(read: &impl Read) -> Result<Usage, ReadError> {
    let counter = |n| -> Result<u64, ReadError> {
        match read.get(&Key::Counter(n))? {
            Some(Value::Counter(count)) => Ok(u64::try_from(count).unwrap_or(0)),
            _ => Ok(0),
        }
    };
    Ok(Usage { bytes: counter(COUNTER_BYTES)?, inodes: counter(COUNTER_INODES)? })
}

/// At most `limit` inodes without a name, after `after`: what a reaper goes through.
pub fn orphans(read: &impl Read, after: Ino, limit: usize) -> Result<Vec<Ino>, ReadError> {
    let span = Span::orphans().after(&Key::Orphan(after).encode());
    let ino = |(key, _)| match key {
        Key::Orphan(ino) => Some(ino),
        _ => None,
    };
    Ok(range(read, &span, limit)?.into_iter().filter_map(ino).collect())
}

pub(super) fn find(
    read: &impl Read,
    dirent_key: &[u8; 32],
    dir: Ino,
    name: &Name,
) -> Result<Option<Found>, ReadError> {
    let group = group(read, dir, dirent_hash(dirent_key, dir, name))?;
    Ok(group.into_iter().find(|(there, _)| there == name).map(|(_, found)| found))
}

/// The hash that a new name gets: its own, or the next of its group that no other name has. If
/// all are taken it shares one, which listings allow for.
pub(super) fn free_hash(
    read: &impl Read,
    dirent_key: &[u8; 32],
    dir: Ino,
    name: &Name,
) -> Result<u64, ReadError> {
    let own = dirent_hash(dirent_key, dir, name);
    let group = group(read, dir, own)?;
    let others = (own - own % GROUP..own).chain(own..own - own % GROUP + GROUP);
    let free = |hash: &u64| *hash >= HASH_FIRST && group.iter().all(|(_, f)| f.hash != *hash);
    Ok(std::iter::once(own).chain(others).find(free).unwrap_or(own))
}

fn group(read: &impl Read, dir: Ino, hash: u64) -> Result<Vec<(Name, Found)>, ReadError> {
    let from = hash - hash % GROUP;
    let from = Span::children_from(dir, from.max(HASH_FIRST));
    let to = Span::children_from(dir, hash - hash % GROUP + GROUP);
    let names = read.range(from.from(), to.from(), GROUP_NAMES_MAX)?;
    Ok(names.into_iter().filter_map(dirent).collect())
}

fn dirent((key, value): (Key, Value)) -> Option<(Name, Found)> {
    match (key, value) {
        (Key::Dirent { hash, name, .. }, Value::Dirent { ino, kind }) => {
            Some((name, Found { hash, ino, kind }))
        }
        _ => None,
    }
}

fn directory(read: &impl Read, dir: Ino) -> Result<Inode, ReadError> {
    let inode = getattr(read, dir)?;
    if inode.kind == FileKind::Dir { Ok(inode) } else { Err(FsError::NotDir.into()) }
}

fn range(read: &impl Read, span: &Span, limit: usize) -> Result<Vec<(Key, Value)>, ReadError> {
    Ok(read.range(span.from(), span.to(), limit)?)
}
