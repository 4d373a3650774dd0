//! chmod, chown, truncate, utimens: every attribute that a caller may set.

use super::acl::{self, Acl};
use super::draft::Draft;
use super::op::{SetAttr, SetTime};
use super::place::clear;
use super::{Reply, SIZE_MAX, file, xattr};
use crate::meta::error::{FsError, ReadError};
use crate::meta::inode::{
    FileKind, Inode, InodeMerge, MODE_MASK, ModeChange, SET_GID, SizeChange, Stamp,
};
use crate::meta::tag::Fact;
use crate::meta::tree::Read;

pub(super) fn plan(draft: &mut Draft<impl Read>, set: &SetAttr) -> Result<Reply, ReadError> {
    let mut inode = draft.inode(set.ino)?;
    let mut merge = InodeMerge { ctime: Some(draft.env.now), ..InodeMerge::default() };
    if let Some(size) = set.size {
        truncate(draft, set, &mut merge, size)?;
    }
    let owned = set.uid.is_some() || set.gid.is_some();
    let times = set.atime.is_some() || set.mtime.is_some();
    let nothing = !owned && !times && set.mode.is_none() && set.size.is_none();
    if owned || times || set.mode.is_some() || nothing {
        draft.facts.write(Fact::Attr(set.ino));
    }
    if inode.kind != FileKind::Dir {
        // A new owner, even the same one again, starts without the old one's privileges; so does
        // a file that a caller without CAP_FSETID cut.
        if owned || nothing || set.size.is_some() && set.kill_priv {
            merge.then(&kill_privileges());
        }
        if owned || nothing || set.size.is_some() {
            xattr::drop_capability(draft, set.ino)?;
        }
    }
    (merge.uid, merge.gid) = (set.uid, set.gid);
    if let Some(mode) = set.mode {
        merge.then(&chmod(draft, set, &inode, mode)?);
    }
    let time = |t: SetTime, now: Stamp| match t {
        SetTime::Now => now,
        SetTime::At(stamp) => stamp,
    };
    merge.atime = set.atime.map(|t| time(t, draft.env.now));
    merge.mtime = set.mtime.map(|t| time(t, draft.env.now)).or(merge.mtime);
    merge.apply(&mut inode);
    draft.change(set.ino, merge);
    Ok(Reply::Attr(inode))
}

pub(super) fn kill_privileges() -> InodeMerge {
    InodeMerge { mode: Some(ModeChange::KillPrivileges), ..InodeMerge::default() }
}

/// A shorter file loses what lies behind; a longer one gains a hole.
fn truncate(
    draft: &mut Draft<impl Read>,
    set: &SetAttr,
    merge: &mut InodeMerge,
    size: u64,
) -> Result<(), ReadError> {
    let inode = file(draft, set.ino)?;
    if size > SIZE_MAX {
        return Err(FsError::FileTooBig.into());
    }
    draft.facts.write(Fact::Data(set.ino));
    if size < inode.size {
        merge.bytes = clear(draft, set.ino, &inode, size..SIZE_MAX)?;
        draft.count_bytes(merge.bytes);
    }
    merge.size = Some(SizeChange::Set(size));
    merge.mtime = Some(draft.env.now);
    Ok(())
}

/// The new mode, and the access list that follows it.
fn chmod(
    draft: &mut Draft<impl Read>,
    set: &SetAttr,
    inode: &Inode,
    mode: u32,
) -> Result<InodeMerge, ReadError> {
    let mut mode = mode & MODE_MASK;
    if set.kill_sgid && inode.kind != FileKind::Dir {
        mode &= !SET_GID;
    }
    if inode.kind == FileKind::Symlink {
        return Err(FsError::NotSupported.into());
    }
    if let Some(list) = draft.xattr(set.ino, acl::ACCESS)? {
        let list = Acl::decode(&list)?.ok_or(FsError::Io)?.with_permissions(mode);
        draft.put_xattr(set.ino, acl::ACCESS, list.encode().into());
    }
    Ok(InodeMerge { mode: Some(ModeChange::Set(mode)), ..InodeMerge::default() })
}
