//! rename in all its cases: move, replace, refuse to replace, exchange.
//!
//! Invariant: a directory never becomes its own ancestor. Every move of a directory to another
//! one reads and writes the fact `dirmove`, so that of two sessions' moves one is refused.

use super::draft::{Draft, Found};
use super::op::{Place, RenameMode};
use super::unlink::drop_link;
use super::{DEPTH_MAX, LINK_MAX, Reply};
use crate::id::Ino;
use crate::meta::error::{FsError, ReadError};
use crate::meta::inode::{FileKind, InodeMerge};
use crate::meta::tag::Fact;
use crate::meta::tree::Read;

pub(super) fn plan(
    draft: &mut Draft<impl Read>,
    from: &Place,
    to: &Place,
    mode: RenameMode,
) -> Result<Reply, ReadError> {
    draft.dir(from.dir)?;
    draft.living_dir(to.dir)?;
    let source = draft.dirent(from)?.ok_or(FsError::NotFound)?;
    let target = draft.dirent(to)?;
    match (mode, target) {
        (RenameMode::NoReplace, Some(_)) => Err(FsError::Exists.into()),
        (RenameMode::Exchange, None) => Err(FsError::NotFound.into()),
        // Two names of one inode: POSIX keeps both.
        (_, Some(target)) if target.ino == source.ino => {
            draft.facts.read(Fact::Name(from.dir, from.name.clone()));
            draft.facts.read(Fact::Name(to.dir, to.name.clone()));
            Ok(Reply::Renamed { replaced: None })
        }
        (RenameMode::Exchange, Some(target)) => exchange(draft, (from, source), (to, target)),
        (_, target) => replace(draft, (from, source), to, target),
    }
}

fn replace(
    draft: &mut Draft<impl Read>,
    (from, source): (&Place, Found),
    to: &Place,
    target: Option<Found>,
) -> Result<Reply, ReadError> {
    check_move(draft, &source, from.dir, to.dir)?;
    let source_dir = i32::from(source.kind == FileKind::Dir);
    let mut target_dir = 0;
    let mut replaced = None;
    if let Some(target) = &target {
        target_dir = i32::from(target.kind == FileKind::Dir);
        match (source_dir, target_dir) {
            (1, 0) => return Err(FsError::NotDir.into()),
            (0, 1) => return Err(FsError::IsDir.into()),
            _ => {}
        }
        replaced = drop_link(draft, target)?.then_some(target.ino);
    }
    let gained = if from.dir == to.dir { 0 } else { source_dir } - target_dir;
    if gained > 0 && draft.inode(to.dir)?.nlink >= LINK_MAX {
        return Err(FsError::TooManyLinks.into());
    }
    draft.remove(from, source.hash);
    match target {
        Some(target) => draft.put_dirent(to, target.hash, source.ino, source.kind),
        None => draft.insert(to, source.ino, source.kind)?,
    }
    draft.facts.read(Fact::Exists(to.dir));
    draft.parent(from.dir, -source_dir);
    draft.parent(to.dir, source_dir - target_dir);
    moved(draft, source.ino, from.dir, to.dir);
    Ok(Reply::Renamed { replaced })
}

fn exchange(
    draft: &mut Draft<impl Read>,
    (one, first): (&Place, Found),
    (two, second): (&Place, Found),
) -> Result<Reply, ReadError> {
    draft.living_dir(one.dir)?;
    check_move(draft, &first, one.dir, two.dir)?;
    check_move(draft, &second, two.dir, one.dir)?;
    let first_dir = i32::from(first.kind == FileKind::Dir);
    let second_dir = i32::from(second.kind == FileKind::Dir);
    for (dir, gained) in [(one.dir, second_dir - first_dir), (two.dir, first_dir - second_dir)] {
        if one.dir != two.dir && gained > 0 && draft.inode(dir)?.nlink >= LINK_MAX {
            return Err(FsError::TooManyLinks.into());
        }
        draft.facts.read(Fact::Exists(dir));
        draft.parent(dir, gained);
    }
    draft.put_dirent(one, first.hash, second.ino, second.kind);
    draft.put_dirent(two, second.hash, first.ino, first.kind);
    moved(draft, first.ino, one.dir, two.dir);
    moved(draft, second.ino, two.dir, one.dir);
    Ok(Reply::Renamed { replaced: None })
}

/// Refuses to put a directory below itself.
fn check_move(
    draft: &mut Draft<impl Read>,
    moved: &Found,
    from: Ino,
    to: Ino,
) -> Result<(), ReadError> {
    if moved.kind != FileKind::Dir || from == to {
        return Ok(());
    }
    draft.facts.read(Fact::DirMove);
    draft.facts.write(Fact::DirMove);
    let mut above = to;
    for _ in 0..DEPTH_MAX {
        if above == moved.ino {
            return Err(FsError::Invalid.into());
        }
        if above == Ino::ROOT {
            return Ok(());
        }
        above = draft.inode(above)?.home;
    }
    // Deeper than any path can lead: only a hostile writer's cycle looks like that.
    Err(FsError::Io.into())
}

/// The moved inode's own side. `Links` covers its ctime also when its home stays.
fn moved(draft: &mut Draft<impl Read>, ino: Ino, from: Ino, to: Ino) {
    draft.facts.write(Fact::Links(ino));
    let home = (from != to).then_some(to);
    draft.change(ino, InodeMerge { home, ctime: Some(draft.env.now), ..InodeMerge::default() });
}
