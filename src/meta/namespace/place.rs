//! Where extents go in a file: the part of writing, cutting and sharing that is the same.
//!
//! Invariant: extents of a file never overlap, and the count of bytes that a plan returns is the
//! exact change of what they hold.

use super::draft::Draft;
use super::read;
use crate::file::{self, BUCKET, Extent};
use crate::id::Ino;
use crate::meta::error::ReadError;
use crate::meta::inode::Inode;
use crate::meta::key::{Key, Span};
use crate::meta::tag::{Fact, Facts};
use crate::meta::tree::Read;
use crate::meta::value::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Beyond as many buckets an operation names the whole file, to leave tags for others.
const BUCKETS_MAX: usize = 1_024;
/// Beyond as many extents a range delete is shorter than naming each.
const DELETES_MAX: usize = 16;
/// Extents read at a time while a long range is cleared, so that memory stays bounded.
const PAGE: usize = 1_024;

/// The facts of a write to these buckets of a file.
pub(super) fn ranged(facts: &mut Facts, ino: Ino, buckets: &BTreeSet<u64>) {
    if buckets.len() > BUCKETS_MAX {
        facts.write(Fact::Data(ino));
        return;
    }
    facts.add(Fact::Data(ino));
    for bucket in buckets {
        facts.write(Fact::Bucket(ino, *bucket));
    }
}

/// The buckets of a range; of a long one only as many as `ranged` needs to see that it is long.
pub(super) fn buckets(range: Range<u64>) -> BTreeSet<u64> {
    (range.start / BUCKET..range.end.div_ceil(BUCKET)).take(BUCKETS_MAX + 1).collect()
}

/// Makes `range` of the file a hole. The change of its bytes, never above 0.
pub(super) fn clear(
    draft: &mut Draft<impl Read>,
    ino: Ino,
    inode: &Inode,
    range: Range<u64>,
) -> Result<i64, ReadError> {
    // Only whoever writes the whole of `data` knows that nothing came behind the end meanwhile.
    let whole = draft.facts.writes.contains(&Fact::Data(ino));
    if whole && range.start == 0 && range.end >= inode.size {
        draft.delete_span(Span::extents_from(ino, 0));
        return Ok(0i64.wrapping_sub_unsigned(inode.bytes));
    }
    let (mut removed, mut inside, mut edges) = (0, vec![], vec![]);
    let mut from = range.start;
    loop {
        let page = read::extents(draft.read, ino, from..range.end, PAGE)?;
        for extent in &page {
            let (start, end) = (extent.offset, extent.end());
            removed += end.min(range.end) - start.max(range.start);
            if range.start <= start && end <= range.end {
                inside.truncate(DELETES_MAX);
                inside.push(start);
            } else {
                edges.push(*extent);
            }
            from = end;
        }
        if page.len() < PAGE {
            break;
        }
    }
    if inside.len() > DELETES_MAX {
        draft.delete_span(Span::extents(ino, range.start, range.end));
    } else {
        inside.iter().for_each(|offset| draft.delete(Key::Extent { ino, offset: *offset }));
    }
    for change in file::overlay(&edges, range) {
        match change {
            file::Change::Delete(offset) => draft.delete(Key::Extent { ino, offset }),
            file::Change::Put(extent) => put(draft, ino, extent),
        }
    }
    Ok(0i64.wrapping_sub_unsigned(removed))
}

/// Lays sorted extents over what is there. The change of the file's bytes.
pub(super) fn lay(
    draft: &mut Draft<impl Read>,
    ino: Ino,
    extents: &[Extent],
) -> Result<i64, ReadError> {
    let mut delta = 0;
    for group in extents.chunk_by(|a, b| a.offset / BUCKET == b.offset / BUCKET) {
        let bucket = group[0].offset / BUCKET * BUCKET;
        let there = read::extents(draft.read, ino, bucket..bucket + BUCKET, usize::MAX)?;
        let before: BTreeMap<u64, Extent> = there.into_iter().map(|e| (e.offset, e)).collect();
        let mut after = before.clone();
        for extent in group {
            lay_one(&mut after, extent);
        }
        for offset in before.keys().filter(|offset| !after.contains_key(offset)) {
            draft.delete(Key::Extent { ino, offset: *offset });
        }
        for (offset, extent) in &after {
            if before.get(offset) != Some(extent) {
                put(draft, ino, *extent);
            }
        }
        let held =
            |map: &BTreeMap<u64, Extent>| map.values().map(|e| i64::from(e.len)).sum::<i64>();
        delta += held(&after) - held(&before);
    }
    Ok(delta)
}

fn lay_one(map: &mut BTreeMap<u64, Extent>, extent: &Extent) {
    let (start, end) = (extent.offset, extent.end());
    let meets = |e: &&Extent| e.end() > start;
    let mut met: Vec<Extent> =
        map.range(..end).rev().map(|(_, e)| e).take_while(meets).copied().collect();
    met.reverse();
    for change in file::overlay(&met, start..end) {
        match change {
            file::Change::Delete(offset) => drop(map.remove(&offset)),
            file::Change::Put(extent) => drop(map.insert(extent.offset, extent)),
        }
    }
    map.insert(start, *extent);
}

pub(super) fn put(draft: &mut Draft<impl Read>, ino: Ino, extent: Extent) {
    draft.put(Key::Extent { ino, offset: extent.offset }, Value::Extent(extent));
}

/// The same stored bytes at another place of a file, cut where buckets meet.
pub(super) fn placed(extent: &Extent, offset: u64) -> Vec<Extent> {
    file::split_at_buckets(Extent { offset, ..*extent })
}
