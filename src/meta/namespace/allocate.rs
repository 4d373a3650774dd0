//! fallocate: reserve, punch, zero.
//!
//! Nothing is stored for bytes that read as zero, so reserving is a matter of the session's space
//! credit; here it can only lengthen the file, and zeroing is punching.

use super::draft::Draft;
use super::op::{Allocate, AllocateMode};
use super::place::clear;
use super::write::changed;
use super::{Reply, SIZE_MAX, file};
use crate::meta::error::{FsError, ReadError};
use crate::meta::inode::{InodeMerge, SizeChange};
use crate::meta::tag::Fact;
use crate::meta::tree::Read;

pub(super) fn plan(draft: &mut Draft<impl Read>, op: &Allocate) -> Result<Reply, ReadError> {
    let inode = file(draft, op.ino)?;
    if op.len == 0 {
        return Err(FsError::Invalid.into());
    }
    let end = op.offset.checked_add(op.len).filter(|end| *end <= SIZE_MAX);
    let end = end.ok_or(FsError::FileTooBig)?;
    draft.facts.write(Fact::Data(op.ino));
    let (hole, grows) = match op.mode {
        AllocateMode::Reserve => (false, true),
        AllocateMode::ReserveKeepSize => (false, false),
        AllocateMode::Punch | AllocateMode::ZeroKeepSize => (true, false),
        AllocateMode::Zero => (true, true),
    };
    let mut merge = InodeMerge::default();
    if hole {
        merge.bytes = clear(draft, op.ino, &inode, op.offset..end)?;
    }
    if grows {
        merge.size = Some(SizeChange::Max(end));
    }
    let now = draft.env.now;
    Ok(Reply::Attr(changed(draft, op.ino, inode, merge, now, op.kill_priv)?))
}
