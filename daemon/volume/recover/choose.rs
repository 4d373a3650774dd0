//! Which entries of a journal are to be done again.
//!
//! Owns: the rule, over the entries as they were read.
//! Never: asks the network or changes anything; `recover` does.
//! Invariant: an entry that is in no accepted commit is done again, its bytes once, unless it was
//! never acknowledged.

use crate::volume::journal::{Entry, Seq};
use mictlan::file::Extent;
use mictlan::id::{Attempt, ChunkId, Ino};
use mictlan::meta::inode::Stamp;
use mictlan::meta::namespace::Op;
use std::collections::{HashMap, HashSet};

/// What is to be done again, in order.
pub(super) enum Again {
    Op(Stamp, Op),
    /// Without a place they were appended.
    Data {
        ino: Ino,
        place: Option<u64>,
        mtime: Stamp,
        kill_priv: bool,
        bytes: Vec<u8>,
    },
}

/// The entries that are to be done again: those after the last accepted request, each byte once.
pub(super) fn choose(
    entries: &[(Seq, Entry)],
    last: Option<(Attempt, u64)>,
    durable: &HashSet<ChunkId>,
) -> Vec<Again> {
    let committed = committed_until(entries, last);
    let sealed = seals(entries);
    // An operation whose chunks never became durable was not acknowledged by `close`; what came
    // after it on the same inode was not either.
    let mut broken: HashSet<Ino> = HashSet::new();
    let gone: Vec<(Seq, Seq)> = entries.iter().filter_map(|(_, entry)| entry.dropped()).collect();
    let dropped = |seq: Seq| gone.iter().any(|(from, until)| (*from..*until).contains(&seq));
    let reaped = reaped(entries, |seq| seq < committed && !dropped(seq));
    let mut again = Vec::new();
    for (seq, entry) in entries {
        match entry {
            Entry::Op { now, op, covers, .. } if *seq >= committed && !dropped(*seq) => {
                let whole = chunks_of(entry).all(|chunk| durable.contains(&chunk));
                match bytes_of(op) {
                    Some((ino, _, _)) if !whole => {
                        // With `covers` its bytes are in the journal as data and come from there.
                        if covers.is_none() {
                            tracing::warn!(
                                inode = ino.0,
                                entry = seq.0,
                                "bytes that no close had acknowledged were lost with the daemon"
                            );
                            broken.insert(ino);
                        }
                    }
                    Some((ino, _, _)) if broken.contains(&ino) => {}
                    _ => again.push(Again::Op(*now, op.clone())),
                }
            }
            Entry::Data { ino, mtime, kill_priv, bytes, .. }
            | Entry::Appended { ino, mtime, kill_priv, bytes } => {
                let place = match entry {
                    Entry::Data { offset, .. } => Some(*offset),
                    _ => None,
                };
                let covering = |seal: &&Seal| seal.covers > *seq && !dropped(seal.seq);
                let seals = sealed.get(&(*ino, place.is_none()));
                let by = seals.and_then(|seals| seals.iter().find(covering));
                let done = by.is_some_and(|seal| {
                    seal.seq < committed || seal.chunks.iter().all(|chunk| durable.contains(chunk))
                });
                if !done && !broken.contains(ino) && !reaped.contains(ino) {
                    let (ino, mtime, kill_priv, bytes) = (*ino, *mtime, *kill_priv, bytes.clone());
                    again.push(Again::Data { ino, place, mtime, kill_priv, bytes });
                }
            }
            Entry::Op { .. } | Entry::Proposed { .. } | Entry::Dropped { .. } => {}
        }
    }
    again
}

/// Files that were removed by whoever wrote them: their bytes are not to be brought back.
fn reaped(entries: &[(Seq, Entry)], is_committed: impl Fn(Seq) -> bool) -> HashSet<Ino> {
    let ends = entries.iter().filter(|(seq, _)| is_committed(*seq));
    let ends = ends.filter_map(|(_, entry)| match entry {
        Entry::Op { op: Op::Reap { ino }, .. } => Some(*ino),
        _ => None,
    });
    ends.collect()
}

/// Of an operation that places bytes: the file, whether they were appended, and where they are.
fn bytes_of(op: &Op) -> Option<(Ino, bool, &[Extent])> {
    match op {
        Op::Write(write) => Some((write.ino, false, &write.extents)),
        Op::Append(append) => Some((append.ino, true, &append.extents)),
        _ => None,
    }
}

/// Every operation before this is in an accepted commit.
pub(super) fn committed_until(entries: &[(Seq, Entry)], last: Option<(Attempt, u64)>) -> Seq {
    let Some(last) = last else { return Seq(0) };
    let held = entries.iter().filter_map(|(_, entry)| match entry {
        Entry::Proposed { attempt, n, until } if (*attempt, *n) <= last => Some(*until),
        _ => None,
    });
    held.max().unwrap_or(Seq(0))
}

/// The sealing of an inode's journaled bytes: `Data` before `covers` is in `chunks`.
struct Seal {
    seq: Seq,
    covers: Seq,
    chunks: Vec<ChunkId>,
}

/// By file, and whether the bytes were appended.
fn seals(entries: &[(Seq, Entry)]) -> HashMap<(Ino, bool), Vec<Seal>> {
    let mut seals: HashMap<(Ino, bool), Vec<Seal>> = HashMap::new();
    for (seq, entry) in entries {
        if let Entry::Op { covers: Some(covers), op, .. } = entry
            && let Some((ino, appended, extents)) = bytes_of(op)
        {
            let chunks = extents.iter().map(|extent| extent.chunk).collect();
            let seal = Seal { seq: *seq, covers: *covers, chunks };
            seals.entry((ino, appended)).or_default().push(seal);
        }
    }
    seals
}

/// The chunks of an operation whose bytes the journal does not have.
pub(super) fn only_on_peers(entry: &Entry) -> impl Iterator<Item = ChunkId> + '_ {
    let covered = matches!(entry, Entry::Op { covers: Some(_), .. });
    chunks_of(entry).filter(move |_| !covered)
}

pub(super) fn chunks_of(entry: &Entry) -> impl Iterator<Item = ChunkId> + '_ {
    let op = match entry {
        Entry::Op { op, .. } => bytes_of(op),
        _ => None,
    };
    op.map_or(&[][..], |(_, _, extents)| extents).iter().map(|extent| extent.chunk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mictlan::id::Position;
    use mictlan::meta::namespace::{Append, Write};

    fn chunk(n: u8) -> ChunkId {
        ChunkId([n; 32])
    }

    fn write(n: u8, covers: Option<Seq>) -> Entry {
        let extent = Extent { offset: 0, len: 1, chunk: chunk(n), at: 0, packed: None };
        let mtime = Stamp::default();
        let op = Write { ino: Ino(7), extents: vec![extent], end: 1, mtime, kill_priv: false };
        Entry::Op { now: mtime, base: Position(0), covers, op: Op::Write(op) }
    }

    fn append(n: u8, covers: Option<Seq>) -> Entry {
        let extent = Extent { offset: 0, len: 1, chunk: chunk(n), at: 0, packed: None };
        let mtime = Stamp::default();
        let op = Append { ino: Ino(7), extents: vec![extent], mtime, kill_priv: false };
        Entry::Op { now: mtime, base: Position(0), covers, op: Op::Append(op) }
    }

    fn appended() -> Entry {
        let (mtime, bytes) = (Stamp::default(), b"x".to_vec());
        Entry::Appended { ino: Ino(7), mtime, kill_priv: false, bytes }
    }

    fn data() -> Entry {
        let (mtime, bytes) = (Stamp::default(), b"x".to_vec());
        Entry::Data { ino: Ino(7), offset: 0, mtime, kill_priv: false, bytes }
    }

    fn proposed(n: u64, until: u64) -> Entry {
        Entry::Proposed { attempt: Attempt(1), n, until: Seq(until) }
    }

    fn check(entries: &[Entry], accepted: u64, durable: &[u8]) -> String {
        let entries: Vec<(Seq, Entry)> =
            entries.iter().enumerate().map(|(i, e)| (Seq(i as u64 + 1), e.clone())).collect();
        let durable = durable.iter().map(|n| chunk(*n)).collect();
        let last = (accepted > 0).then_some((Attempt(1), accepted));
        let again = choose(&entries, last, &durable);
        let letter = |again: &Again| if matches!(again, Again::Op(..)) { 'o' } else { 'd' };
        again.iter().map(letter).collect()
    }

    #[test]
    fn what_was_committed_is_not_done_again() {
        let entries = [write(1, None), proposed(1, 2), write(2, None)];
        assert_eq!(check(&entries, 1, &[1, 2]), "o");
        assert_eq!(check(&entries, 0, &[1, 2]), "oo", "proposed and never accepted");
    }

    #[test]
    fn journaled_bytes_come_back_once() {
        let entries = [data(), write(1, Some(Seq(2)))];
        assert_eq!(check(&entries, 0, &[]), "d", "their chunk was lost with the daemon");
        assert_eq!(check(&entries, 0, &[1]), "o", "their chunk is on its peers");
        let entries = [data(), write(1, Some(Seq(2))), proposed(1, 3), data()];
        assert_eq!(check(&entries, 1, &[1]), "d", "only what came after the commit");
    }

    #[test]
    fn appended_bytes_come_back_once_and_apart_from_others() {
        let entries = [appended(), append(1, Some(Seq(2)))];
        assert_eq!(check(&entries, 0, &[]), "d", "their chunk was lost with the daemon");
        assert_eq!(check(&entries, 0, &[1]), "o", "their chunk is on its peers");
        let entries = [data(), appended(), write(1, Some(Seq(3))), proposed(1, 4)];
        assert_eq!(check(&entries, 1, &[1]), "d", "only what was appended is not committed");
        let entries = [append(1, None), append(2, None)];
        assert_eq!(check(&entries, 0, &[2]), "", "no close had acknowledged the first");
    }

    #[test]
    fn bytes_that_close_never_acknowledged_leave_no_hole_behind_later_ones() {
        let entries = [write(1, None), write(2, None)];
        assert_eq!(check(&entries, 0, &[2]), "", "the second rests on the first");
        assert_eq!(check(&entries, 0, &[1]), "o");
    }
}
