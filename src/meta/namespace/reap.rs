//! The end of an orphan: an inode that lost its last name and that nobody holds open.

use super::Reply;
use super::draft::Draft;
use crate::id::Ino;
use crate::meta::error::{FsError, ReadError};
use crate::meta::key::{Key, Span};
use crate::meta::tag::Fact;
use crate::meta::tree::Read;

pub(super) fn plan(draft: &mut Draft<impl Read>, ino: Ino) -> Result<Reply, ReadError> {
    let inode = draft.inode(ino)?;
    if inode.nlink > 0 || ino == Ino::ROOT {
        return Err(FsError::Busy.into());
    }
    for fact in [Fact::Exists(ino), Fact::Attr(ino), Fact::Links(ino), Fact::Data(ino)] {
        draft.facts.write(fact);
    }
    draft.delete_span(Span::extents_from(ino, 0));
    draft.delete_span(Span::xattrs(ino));
    draft.delete(Key::Inode(ino));
    draft.delete(Key::Orphan(ino));
    draft.count_bytes(0i64.wrapping_sub_unsigned(inode.bytes));
    draft.count_inodes(-1);
    Ok(Reply::Done)
}
