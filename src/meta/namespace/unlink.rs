//! unlink and rmdir: a name goes, and with the last one the way to the inode.
//!
//! Invariant: an inode without names keeps its bytes and its `o/ino` key until it is reaped.

use super::Reply;
use super::draft::{Draft, Found};
use super::op::Place;
use crate::meta::error::{FsError, ReadError};
use crate::meta::inode::{FileKind, InodeMerge};
use crate::meta::key::{Key, Span};
use crate::meta::tag::Fact;
use crate::meta::tree::Read;
use crate::meta::value::Value;

pub(super) fn unlink(draft: &mut Draft<impl Read>, place: &Place) -> Result<Reply, ReadError> {
    remove(draft, place, false)
}

pub(super) fn rmdir(draft: &mut Draft<impl Read>, place: &Place) -> Result<Reply, ReadError> {
    remove(draft, place, true)
}

fn remove(draft: &mut Draft<impl Read>, place: &Place, dir: bool) -> Result<Reply, ReadError> {
    draft.dir(place.dir)?;
    let found = draft.dirent(place)?.ok_or(FsError::NotFound)?;
    match (dir, found.kind == FileKind::Dir) {
        (false, true) => return Err(FsError::IsDir.into()),
        (true, false) => return Err(FsError::NotDir.into()),
        _ => {}
    }
    let last = drop_link(draft, &found)?;
    draft.remove(place, found.hash);
    draft.parent(place.dir, if dir { -1 } else { 0 });
    Ok(Reply::Removed { ino: found.ino, last })
}

/// The inode's side of losing one name: true when it was the last. A directory must be empty.
pub(super) fn drop_link(draft: &mut Draft<impl Read>, found: &Found) -> Result<bool, ReadError> {
    let ino = found.ino;
    let inode = draft.inode(ino)?;
    let last = found.kind == FileKind::Dir || inode.nlink <= 1;
    if found.kind == FileKind::Dir {
        draft.facts.read(Fact::Children(ino));
        draft.facts.write(Fact::Exists(ino));
        let children = Span::children(ino);
        if !draft.read.range(children.from(), children.to(), 1)?.is_empty() {
            return Err(FsError::NotEmpty.into());
        }
    }
    draft.facts.write(Fact::Links(ino));
    // A directory's own two links go together; a count that a hostile writer left at 0 stays.
    let gone = if last { inode.nlink } else { 1 };
    let nlink = -i32::try_from(gone).map_err(|_| FsError::Io)?;
    draft.change(ino, InodeMerge { nlink, ctime: Some(draft.env.now), ..InodeMerge::default() });
    if last {
        draft.facts.write(Fact::Attr(ino));
        draft.facts.write(Fact::Data(ino));
        draft.put(Key::Orphan(ino), Value::Orphan);
    }
    Ok(last)
}
