//! copy_file_range: the destination shares the source's extents; no byte is moved.

use super::draft::Draft;
use super::op::Copy;
use super::place::{buckets, clear, placed, put, ranged};
use super::write::changed;
use super::{Reply, SIZE_MAX, file, read};
use crate::meta::error::{FsError, ReadError};
use crate::meta::inode::{InodeMerge, SizeChange};
use crate::meta::tag::Fact;
use crate::meta::tree::Read;

/// Extents shared by one call, so that a write set stays small; the answer is a shorter length,
/// and the caller asks for the rest.
const EXTENTS_MAX: usize = 2_048;

pub(super) fn plan(draft: &mut Draft<impl Read>, op: &Copy) -> Result<Reply, ReadError> {
    let source = file(draft, op.from)?;
    let inode = file(draft, op.to)?;
    let mut len = op.len.min(source.size.saturating_sub(op.from_offset));
    if len == 0 {
        return Ok(Reply::Copied { len, inode });
    }
    let far = op.to_offset.checked_add(len).filter(|end| *end <= SIZE_MAX);
    far.ok_or(FsError::FileTooBig)?;
    if op.from == op.to && op.from_offset.abs_diff(op.to_offset) < len {
        return Err(FsError::Invalid.into());
    }
    let range = op.from_offset..op.from_offset + len;
    let mut extents = read::extents(draft.read, op.from, range, EXTENTS_MAX + 1)?;
    if extents.len() > EXTENTS_MAX {
        len = extents[EXTENTS_MAX].offset - op.from_offset;
        extents.truncate(EXTENTS_MAX);
    }
    let range = op.from_offset..op.from_offset + len;
    let target = op.to_offset..op.to_offset + len;
    draft.facts.read(Fact::Data(op.from));
    ranged(&mut draft.facts, op.to, &buckets(target.clone()));
    let mut merge = InodeMerge {
        size: Some(SizeChange::Max(target.end)),
        bytes: clear(draft, op.to, &inode, target)?,
        ..InodeMerge::default()
    };
    for extent in &extents {
        let part = extent.part(range.clone());
        merge.bytes += i64::from(part.len);
        for placed in placed(&part, part.offset - op.from_offset + op.to_offset) {
            put(draft, op.to, placed);
        }
    }
    let now = draft.env.now;
    let inode = changed(draft, op.to, inode, merge, now, op.kill_priv)?;
    Ok(Reply::Copied { len, inode })
}
