//! write and append: sealed extents take their place.

use super::draft::Draft;
use super::op::{Append, Write};
use super::place::{lay, placed, ranged};
use super::setattr::kill_privileges;
use super::{Reply, SIZE_MAX, file, xattr};
use crate::file::{BUCKET, Extent};
use crate::id::Ino;
use crate::meta::error::{FsError, ReadError};
use crate::meta::inode::{Inode, InodeMerge, SizeChange, Stamp};
use crate::meta::tag::Fact;
use crate::meta::tree::Read;

pub(super) fn write(draft: &mut Draft<impl Read>, write: &Write) -> Result<Reply, ReadError> {
    let inode = file(draft, write.ino)?;
    let ends = write.extents.last().map_or(0, |last| last.end());
    let sorted = write.extents.windows(2).all(|pair| pair[0].end() <= pair[1].offset);
    let within = |e: &Extent| e.len > 0 && e.offset / BUCKET == (e.end() - 1) / BUCKET;
    if !sorted || ends > write.end || !write.extents.iter().all(within) {
        return Err(FsError::Invalid.into());
    }
    if write.end > SIZE_MAX {
        return Err(FsError::FileTooBig.into());
    }
    let touched = write.extents.iter().map(|e| e.offset / BUCKET).collect();
    ranged(&mut draft.facts, write.ino, &touched);
    let merge = InodeMerge {
        size: Some(SizeChange::Max(write.end)),
        bytes: lay(draft, write.ino, &write.extents)?,
        ..InodeMerge::default()
    };
    let inode = changed(draft, write.ino, inode, merge, write.mtime, write.kill_priv)?;
    Ok(Reply::Attr(inode))
}

pub(super) fn append(draft: &mut Draft<impl Read>, append: &Append) -> Result<Reply, ReadError> {
    let inode = file(draft, append.ino)?;
    let (offset, mut end) = (inode.size, inode.size);
    let mut extents = Vec::with_capacity(append.extents.len() + 1);
    for extent in &append.extents {
        if extent.len == 0 || extent.offset != end - offset {
            return Err(FsError::Invalid.into());
        }
        if SIZE_MAX - end < u64::from(extent.len) {
            return Err(FsError::FileTooBig.into());
        }
        extents.extend(placed(extent, end));
        end += u64::from(extent.len);
    }
    if extents.is_empty() {
        return Ok(Reply::Appended { offset, inode });
    }
    draft.facts.write(Fact::Data(append.ino));
    let merge = InodeMerge {
        size: Some(SizeChange::Set(end)),
        bytes: lay(draft, append.ino, &extents)?,
        ..InodeMerge::default()
    };
    let inode = changed(draft, append.ino, inode, merge, append.mtime, append.kill_priv)?;
    Ok(Reply::Appended { offset, inode })
}

/// What every change of a file's bytes does to its inode; the attributes afterwards.
pub(super) fn changed(
    draft: &mut Draft<impl Read>,
    ino: Ino,
    mut inode: Inode,
    mut merge: InodeMerge,
    at: Stamp,
    kill_priv: bool,
) -> Result<Inode, ReadError> {
    // Bytes may be placed later than they were written, and carry a time that was set since.
    (merge.mtime, merge.ctime) = (Some(at), Some(inode.ctime.max(draft.env.now)));
    if kill_priv {
        merge.then(&kill_privileges());
    }
    xattr::drop_capability(draft, ino)?;
    draft.count_bytes(merge.bytes);
    merge.apply(&mut inode);
    draft.change(ino, merge);
    Ok(inode)
}
