//! setxattr and removexattr, by the rules of each namespace of attributes.
//!
//! Invariant: the names and their NULs fit into one list of 64 KiB, the most that Linux returns.

use super::acl::{self, Acl};
use super::draft::Draft;
use super::op::{SetXattr, XattrMode};
use super::{Reply, read};
use crate::id::Ino;
use crate::meta::error::{FsError, ReadError};
use crate::meta::inode::{FileKind, Inode, InodeMerge, ModeChange, SET_GID, SET_UID};
use crate::meta::key::{Key, XATTR_NAME_MAX};
use crate::meta::tag::Fact;
use crate::meta::tree::Read;
use crate::meta::value::XATTR_VALUE_MAX;

/// What `listxattr` returns at most.
pub const LIST_MAX: usize = 65_536;
const CAPABILITY: &[u8] = b"security.capability";
/// Names that are answered, not stored; only the number of copies can be asked for.
const VIRTUAL: &[u8] = b"user.mictlan.";
pub(super) const REPLICAS: &[u8] = b"user.mictlan.replicas";
/// More copies than anybody has a use for; also the most that a volume is set to.
pub const COPIES_MAX: u8 = 16;

pub(super) fn set(draft: &mut Draft<impl Read>, set: &SetXattr) -> Result<Reply, ReadError> {
    let inode = draft.inode(set.ino)?;
    check_name(&set.name)?;
    if set.value.len() > XATTR_VALUE_MAX {
        return Err(FsError::XattrTooBig.into());
    }
    allow(&inode, &set.name, set.privileged)?;
    if *set.name == *REPLICAS {
        copies(&set.value).filter(|copies| *copies <= COPIES_MAX).ok_or(FsError::Invalid)?;
    }
    let there = draft.xattr(set.ino, &set.name)?.is_some();
    match (set.mode, there) {
        (XattrMode::Create, true) => return Err(FsError::Exists.into()),
        (XattrMode::Replace, false) => return Err(FsError::NoXattr.into()),
        _ => {}
    }
    if *set.name == *acl::ACCESS || *set.name == *acl::DEFAULT {
        return set_acl(draft, set, inode);
    }
    store(draft, set.ino, &set.name, &set.value)?;
    changed(draft, set.ino, InodeMerge::default());
    Ok(Reply::Done)
}

pub(super) fn remove(
    draft: &mut Draft<impl Read>,
    ino: Ino,
    name: &[u8],
    privileged: bool,
) -> Result<Reply, ReadError> {
    let inode = draft.inode(ino)?;
    check_name(name)?;
    allow(&inode, name, privileged)?;
    if draft.xattr(ino, name)?.is_none() {
        // A list that the mode says alone is not stored, yet there for whoever removes it.
        let acl = *name == *acl::ACCESS || *name == *acl::DEFAULT;
        return if acl { Ok(Reply::Done) } else { Err(FsError::NoXattr.into()) };
    }
    draft.delete(Key::Xattr { ino, name: name.into() });
    changed(draft, ino, InodeMerge::default());
    Ok(Reply::Done)
}

/// Bytes or owner changed: what the file was allowed to do as a program goes.
pub(super) fn drop_capability(draft: &mut Draft<impl Read>, ino: Ino) -> Result<(), ReadError> {
    if draft.xattr(ino, CAPABILITY)?.is_some() {
        draft.facts.write(Fact::Attr(ino));
        draft.delete(Key::Xattr { ino, name: CAPABILITY.into() });
    }
    Ok(())
}

fn check_name(name: &[u8]) -> Result<(), FsError> {
    match name.len() {
        1..=XATTR_NAME_MAX if !name.contains(&0) => Ok(()),
        0..=XATTR_NAME_MAX => Err(FsError::Invalid),
        _ => Err(FsError::XattrRange),
    }
}

/// The number of copies that an attribute's value asks for; `None` when it is none.
pub(super) fn copies(value: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(value).ok().filter(|text| !text.starts_with(['0', '+']))?;
    text.parse().ok().filter(|copies| *copies > 0)
}

/// Whether an attribute of this name may be changed on this inode.
fn allow(inode: &Inode, name: &[u8], privileged: bool) -> Result<(), FsError> {
    if name.starts_with(b"user.") {
        let virtual_name = name.starts_with(VIRTUAL) && name != REPLICAS;
        let bears = matches!(inode.kind, FileKind::File | FileKind::Dir);
        return if bears && !virtual_name { Ok(()) } else { Err(FsError::NotPermitted) };
    }
    if name.starts_with(b"trusted.") {
        return if privileged { Ok(()) } else { Err(FsError::NotPermitted) };
    }
    match name {
        acl::ACCESS | acl::DEFAULT if inode.kind != FileKind::Symlink => Ok(()),
        _ if name.starts_with(b"security.") => Ok(()),
        _ => Err(FsError::NotSupported),
    }
}

/// An access list sets the mode's permission bits, and is kept only if it says more than they do.
fn set_acl(draft: &mut Draft<impl Read>, set: &SetXattr, inode: Inode) -> Result<Reply, ReadError> {
    let list = Acl::decode(&set.value)?;
    let access = *set.name == *acl::ACCESS;
    if !access && inode.kind != FileKind::Dir && list.is_some() {
        return Err(FsError::Denied.into());
    }
    let mut merge = InodeMerge::default();
    match &list {
        Some(list) if access => {
            let mut mode = inode.mode & !0o777 | list.permissions();
            if inode.mode & (SET_UID | SET_GID) != 0 {
                // A write that takes these bits away at the same time must not be undone.
                draft.facts.read(Fact::Data(set.ino));
            }
            if set.kill_sgid {
                mode &= !SET_GID;
            }
            merge.mode = Some(ModeChange::Set(mode));
        }
        _ => {}
    }
    match list {
        Some(list) if !(access && list.is_minimal()) => {
            store(draft, set.ino, &set.name, &list.encode())?;
        }
        _ => draft.delete(Key::Xattr { ino: set.ino, name: set.name.clone() }),
    }
    changed(draft, set.ino, merge);
    Ok(Reply::Done)
}

fn store(
    draft: &mut Draft<impl Read>,
    ino: Ino,
    name: &[u8],
    value: &[u8],
) -> Result<(), ReadError> {
    let names = read::stored_xattrs(draft.read, ino)?;
    if !names.iter().any(|there| **there == *name) {
        let listed: usize = names.iter().map(|name| name.len() + 1).sum();
        if listed + name.len() + 1 > LIST_MAX {
            return Err(FsError::NoSpace.into());
        }
    }
    draft.put_xattr(ino, name, value.into());
    Ok(())
}

fn changed(draft: &mut Draft<impl Read>, ino: Ino, mut merge: InodeMerge) {
    draft.facts.write(Fact::Attr(ino));
    merge.ctime = Some(draft.env.now);
    draft.change(ino, merge);
}
