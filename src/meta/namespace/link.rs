//! link: one more name for an inode that has one.

use super::draft::Draft;
use super::op::Place;
use super::{LINK_MAX, Reply};
use crate::id::Ino;
use crate::meta::error::{FsError, ReadError};
use crate::meta::inode::{FileKind, InodeMerge};
use crate::meta::tag::Fact;
use crate::meta::tree::Read;

pub(super) fn plan(draft: &mut Draft<impl Read>, ino: Ino, to: &Place) -> Result<Reply, ReadError> {
    let mut inode = draft.inode(ino)?;
    draft.living_dir(to.dir)?;
    if draft.dirent(to)?.is_some() {
        return Err(FsError::Exists.into());
    }
    if inode.kind == FileKind::Dir {
        return Err(FsError::NotPermitted.into());
    }
    if inode.nlink == 0 {
        return Err(FsError::NotFound.into());
    }
    if inode.nlink >= LINK_MAX {
        return Err(FsError::TooManyLinks.into());
    }
    draft.facts.write(Fact::Links(ino));
    draft.insert(to, ino, inode.kind)?;
    draft.parent(to.dir, 0);
    let merge = InodeMerge { nlink: 1, ctime: Some(draft.env.now), ..InodeMerge::default() };
    merge.apply(&mut inode);
    draft.change(ino, merge);
    Ok(Reply::Entry { ino, inode })
}
