//! Which entries of a journal are to be done again.
//!
//! Owns: the rule, over the entries of which each operation counts once (`counting`).
//! Never: asks the network or changes anything; `recover` does.
//! Invariant: an entry that is in no accepted commit, of its session or of an heir, is done again,
//! its bytes once, unless it was never acknowledged.

use crate::volume::journal::{Entry, Holds, Origin, Seq};
use mictlan::file::Extent;
use mictlan::id::{Attempt, ChunkId, Ino, Position, SessionId};
use mictlan::meta::inode::Stamp;
use mictlan::meta::namespace::{Op, Write};
use std::collections::{HashMap, HashSet};

/// What is to be done again, in order.
pub(super) enum Again {
    Op {
        now: Stamp,
        /// Where the log stood when it was planned.
        base: Position,
        op: Op,
        /// Of a copy, where its chunks are there.
        copied: Option<Copied>,
    },
    Data(Bytes),
}

/// What a copy placed in its target: `len` bytes, those of the extents and else zeros.
pub(super) struct Copied {
    pub len: u64,
    pub write: Write,
}

/// Bytes that are in the journal as they were written.
pub(super) struct Bytes {
    /// Where the log stood when they were written, if that is known.
    pub base: Option<Position>,
    pub ino: Ino,
    /// Without one they were appended.
    pub place: Option<u64>,
    pub mtime: Stamp,
    pub kill_priv: bool,
    pub bytes: Vec<u8>,
}

/// What was found out about a journal and those beside it.
pub(super) struct Known<'a> {
    pub session: SessionId,
    /// The session's last accepted request.
    pub last: Option<(Attempt, u64)>,
    /// Chunks that are on the peers.
    pub durable: &'a HashSet<ChunkId>,
    /// What heirs committed.
    pub done: &'a HashSet<Origin>,
}

/// Whose bytes, and whether they were appended.
type Whose = (Ino, bool);

/// What is done of a journal, and by which of its entries.
struct Progress<'a> {
    known: &'a Known<'a>,
    /// The session committed every operation before this.
    committed: Seq,
    /// The sealings of bytes, but those that count for nothing.
    sealed: HashMap<Whose, Vec<Seal>>,
    /// Up to which entry heirs took bytes as they are in the journal. One stands for those before.
    by_heirs: HashMap<Whose, Seq>,
    /// Sealings that an heir did without, because it did not find their chunks.
    unused: HashSet<Seq>,
}

impl<'a> Progress<'a> {
    fn of(entries: &[(Seq, Entry)], own: &[&(Seq, Entry)], known: &'a Known<'a>) -> Self {
        let committed = committed_until(entries, known.last);
        let (by_heirs, unused) = Default::default();
        let sealed = seals(own);
        let mut progress = Self { known, committed, sealed, by_heirs, unused };
        let data = || entries.iter().filter_map(|(seq, entry)| Some((*seq, data_of(entry)?)));
        let done = data().filter(|(seq, _)| progress.is_by_heir(*seq));
        progress.by_heirs = done.map(|(seq, of)| (of, seq)).collect();
        let done = data().filter(|(seq, of)| progress.is_taken_as_bytes(*seq, of));
        progress.unused = done.filter_map(|(seq, of)| Some(progress.seal(seq, &of)?.seq)).collect();
        progress
    }

    fn is_by_heir(&self, seq: Seq) -> bool {
        self.known.done.contains(&Origin { session: self.known.session, seq })
    }

    /// Of an operation: whether it is in a commit.
    fn is_done(&self, seq: Seq) -> bool {
        seq < self.committed || self.is_by_heir(seq)
    }

    fn is_taken_as_bytes(&self, seq: Seq, of: &Whose) -> bool {
        self.by_heirs.get(of).is_some_and(|until| seq <= *until)
    }

    /// The first sealing that has the bytes of entry `seq`.
    fn seal(&self, seq: Seq, of: &Whose) -> Option<&Seal> {
        self.sealed.get(of)?.iter().find(|seal| seal.covers > seq)
    }

    /// Of bytes in the journal: whether they are in a commit, or come from chunks.
    fn has_no_use(&self, seq: Seq, of: &Whose) -> bool {
        let durable = |chunk: &ChunkId| self.known.durable.contains(chunk);
        let sealed = self.seal(seq, of).is_some_and(|seal| {
            let used = !self.unused.contains(&seal.seq);
            self.is_done(seal.seq) || used && seal.chunks.iter().all(durable)
        });
        sealed || self.is_taken_as_bytes(seq, of)
    }
}

/// The entries that are to be done again: those that neither the session nor an heir committed, each
/// byte once.
pub(super) fn choose(entries: &[(Seq, Entry)], known: &Known) -> Vec<(Seq, Again)> {
    // What was taken over is done again from where it was taken: that journal is there until all of
    // it is committed.
    let own: Vec<_> = entries.iter().filter(|(_, entry)| entry.origin().is_none()).collect();
    let progress = Progress::of(entries, &own, known);
    // An operation whose chunks never became durable was not acknowledged by `close`; what came
    // after it on the same inode was not either.
    let mut broken: HashSet<Ino> = HashSet::new();
    let reaped = reaped(own.iter().filter(|(seq, _)| progress.is_done(*seq)));
    let mut again = Vec::new();
    for (seq, entry) in own {
        match entry {
            Entry::Op { .. } if progress.is_done(*seq) || progress.unused.contains(seq) => {}
            Entry::Op { now, base, op, holds } => {
                let whole = chunks_of(entry).all(|chunk| known.durable.contains(&chunk));
                match bytes_of(op) {
                    Some((ino, _, _)) if !whole => {
                        // With `covers` its bytes are in the journal as data and come from there.
                        if holds.covers.is_none() {
                            tracing::warn!(
                                inode = ino.0,
                                entry = seq.0,
                                "bytes that no close had acknowledged were lost with the daemon"
                            );
                            broken.insert(ino);
                        }
                    }
                    Some((ino, _, _)) if broken.contains(&ino) => {}
                    _ => {
                        let copied = copied(entries, *seq, known.durable);
                        let (now, base, op) = (*now, *base, op.clone());
                        again.push((*seq, Again::Op { now, base, op, copied }));
                    }
                }
            }
            Entry::Data { ino, mtime, kill_priv, bytes, .. }
            | Entry::Appended { ino, mtime, kill_priv, bytes } => {
                let (place, base) = match entry {
                    Entry::Data { offset, base, .. } => (Some(*offset), *base),
                    _ => (None, None),
                };
                let done = progress.has_no_use(*seq, &(*ino, place.is_none()));
                if !done && !broken.contains(ino) && !reaped.contains(ino) {
                    let (ino, mtime, kill_priv, bytes) = (*ino, *mtime, *kill_priv, bytes.clone());
                    let bytes = Bytes { base, ino, place, mtime, kill_priv, bytes };
                    again.push((*seq, Again::Data(bytes)));
                }
            }
            Entry::Copied { .. } | Entry::Proposed { .. } | Entry::Dropped { .. } => {}
        }
    }
    again
}

/// What the copy of entry `seq` placed: that stands not far behind it.
fn copied(entries: &[(Seq, Entry)], seq: Seq, durable: &HashSet<ChunkId>) -> Option<Copied> {
    let next = entries.partition_point(|(other, _)| *other <= seq);
    let behind = entries[next..].iter().take_while(|(_, entry)| !matches!(entry, Entry::Op { .. }));
    let (len, write) = behind.into_iter().find_map(|(_, entry)| match entry {
        Entry::Copied { copy, len, write } if *copy == seq => Some((*len, write.clone())),
        _ => None,
    })?;
    let there = write.extents.iter().all(|extent| durable.contains(&extent.chunk));
    there.then_some(Copied { len, write })
}

/// What an heir's journal says that it committed of the journals that it took over.
pub(super) fn done(
    entries: &[(Seq, Entry)],
    last: Option<(Attempt, u64)>,
) -> impl Iterator<Item = Origin> + '_ {
    let committed = committed_until(entries, last);
    let held = entries.iter().filter(move |(seq, _)| *seq < committed);
    held.filter_map(|(_, entry)| entry.origin())
}

/// Of bytes in the journal: whose they are.
fn data_of(entry: &Entry) -> Option<Whose> {
    match entry {
        Entry::Data { ino, .. } => Some((*ino, false)),
        Entry::Appended { ino, .. } => Some((*ino, true)),
        _ => None,
    }
}

/// Files that were removed by whoever wrote them: their bytes are not to be brought back.
fn reaped<'a>(done: impl Iterator<Item = &'a &'a (Seq, Entry)>) -> HashSet<Ino> {
    let ends = done.filter_map(|(_, entry)| match entry {
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

fn seals(entries: &[&(Seq, Entry)]) -> HashMap<Whose, Vec<Seal>> {
    let mut seals: HashMap<Whose, Vec<Seal>> = HashMap::new();
    for (seq, entry) in entries {
        if let Entry::Op { holds: Holds { covers: Some(covers), .. }, op, .. } = entry
            && let Some((ino, appended, extents)) = bytes_of(op)
        {
            let chunks = extents.iter().map(|extent| extent.chunk).collect();
            let seal = Seal { seq: *seq, covers: *covers, chunks };
            seals.entry((ino, appended)).or_default().push(seal);
        }
    }
    seals
}

/// The chunks of an operation whose bytes no journal here has.
pub(super) fn only_on_peers(entry: &Entry) -> impl Iterator<Item = ChunkId> + '_ {
    let only = matches!(entry, Entry::Op { holds: Holds { covers: None, origin: None }, .. });
    chunks_of(entry).filter(move |_| only)
}

pub(super) fn chunks_of(entry: &Entry) -> impl Iterator<Item = ChunkId> + '_ {
    let extents = match entry {
        Entry::Op { op, .. } => bytes_of(op).map_or(&[][..], |(_, _, extents)| extents),
        Entry::Copied { write, .. } => &write.extents,
        _ => &[],
    };
    extents.iter().map(|extent| extent.chunk)
}

#[cfg(test)]
mod tests {
    use super::super::plans::counting;
    use super::*;
    use mictlan::meta::namespace::Append;

    const OLD: SessionId = SessionId(3);

    fn chunk(n: u8) -> ChunkId {
        ChunkId([n; 32])
    }

    fn write(n: u8, covers: Option<Seq>) -> Entry {
        let extent = Extent { offset: 0, len: 1, chunk: chunk(n), at: 0, packed: None };
        let mtime = Stamp::default();
        let op = Write { ino: Ino(7), extents: vec![extent], end: 1, mtime, kill_priv: false };
        let holds = Holds { covers, origin: None };
        Entry::Op { now: mtime, base: Position(0), holds, op: Op::Write(op) }
    }

    fn append(n: u8, covers: Option<Seq>) -> Entry {
        let extent = Extent { offset: 0, len: 1, chunk: chunk(n), at: 0, packed: None };
        let mtime = Stamp::default();
        let op = Append { ino: Ino(7), extents: vec![extent], mtime, kill_priv: false };
        let holds = Holds { covers, origin: None };
        Entry::Op { now: mtime, base: Position(0), holds, op: Op::Append(op) }
    }

    fn appended() -> Entry {
        let (mtime, bytes) = (Stamp::default(), b"x".to_vec());
        Entry::Appended { ino: Ino(7), mtime, kill_priv: false, bytes }
    }

    fn data() -> Entry {
        let (mtime, bytes) = (Stamp::default(), b"x".to_vec());
        Entry::Data { base: None, ino: Ino(7), offset: 0, mtime, kill_priv: false, bytes }
    }

    fn proposed(n: u64, until: u64) -> Entry {
        Entry::Proposed { attempt: Attempt(1), n, until: Seq(until) }
    }

    /// As they are numbered.
    fn numbered(entries: &[Entry]) -> Vec<(Seq, Entry)> {
        (1..).map(Seq).zip(entries.iter().cloned()).collect()
    }

    fn chosen(entries: &[Entry], known: &Known) -> String {
        let again = choose(&counting(numbered(entries), known.session), known);
        let letter =
            |(_, again): &(Seq, Again)| if matches!(again, Again::Op { .. }) { 'o' } else { 'd' };
        again.iter().map(letter).collect()
    }

    fn check(entries: &[Entry], accepted: u64, durable: &[u8]) -> String {
        let durable = durable.iter().map(|n| chunk(*n)).collect();
        let last = (accepted > 0).then_some((Attempt(1), accepted));
        let done = HashSet::new();
        let known = Known { session: OLD, last, durable: &durable, done: &done };
        chosen(entries, &known)
    }

    /// The same when an heir has committed what stands for these entries.
    fn check_with_heir(entries: &[Entry], by_heir: &[u64], durable: &[u8]) -> String {
        let durable = durable.iter().map(|n| chunk(*n)).collect();
        let origin = |n: &u64| Origin { session: OLD, seq: Seq(*n) };
        let done = by_heir.iter().map(origin).collect();
        let known = Known { session: OLD, last: None, durable: &durable, done: &done };
        chosen(entries, &known)
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
    fn what_an_heir_committed_is_not_done_again() {
        let entries = [append(1, None), append(2, None), append(3, None)];
        assert_eq!(check_with_heir(&entries, &[1, 3], &[1, 2, 3]), "o");
        let entries = [appended(), appended(), data(), appended()];
        assert_eq!(check_with_heir(&entries, &[2], &[]), "dd", "with the bytes before them");
        assert_eq!(check_with_heir(&entries, &[2, 3], &[]), "d");
    }

    #[test]
    fn what_an_heir_took_as_bytes_is_not_taken_as_a_chunk_and_the_other_way_round() {
        let entries = [appended(), appended(), append(1, Some(Seq(3)))];
        assert_eq!(check_with_heir(&entries, &[], &[1]), "o");
        assert_eq!(check_with_heir(&entries, &[1], &[1]), "d", "the chunk has both");
        assert_eq!(check_with_heir(&entries, &[2], &[1]), "");
        assert_eq!(check_with_heir(&entries, &[3], &[]), "", "the bytes are in what is done");
    }

    #[test]
    fn what_an_heir_took_over_is_done_again_from_where_it_took_it() {
        let origin = |n| Some(Origin { session: OLD, seq: Seq(n) });
        let with = |entry: Entry, n: u64| match entry {
            Entry::Op { now, base, holds: Holds { covers, .. }, op } => {
                Entry::Op { now, base, holds: Holds { covers, origin: origin(n) }, op }
            }
            entry => entry,
        };
        let dropped = Entry::Dropped { from: Seq(2), until: Seq(3) };
        let entries = [with(append(1, None), 7), with(append(2, None), 8), proposed(1, 2)];
        let entries =
            [&entries[..], &[dropped, with(append(3, None), 9), append(4, None)]].concat();
        let counted = counting(numbered(&entries), SessionId(4));
        let noted: Vec<_> = done(&counted, Some((Attempt(1), 1))).collect();
        assert_eq!(noted, [origin(7).expect("one")], "one of three was accepted");
        let durable = (1..5).map(chunk).collect();
        let (last, done) = (Some((Attempt(1), 1)), HashSet::new());
        let known = Known { session: SessionId(4), last, durable: &durable, done: &done };
        assert_eq!(chosen(&entries, &known), "o", "the one of its own");
    }

    #[test]
    fn bytes_between_operations_that_were_planned_again_are_still_there() {
        let dropped = Entry::Dropped { from: Seq(1), until: Seq(4) };
        let entries = [append(1, None), data(), append(2, None), append(1, None), dropped];
        assert_eq!(check(&entries, 0, &[1, 2]), "do");
    }

    #[test]
    fn bytes_that_close_never_acknowledged_leave_no_hole_behind_later_ones() {
        let entries = [write(1, None), write(2, None)];
        assert_eq!(check(&entries, 0, &[2]), "", "the second rests on the first");
        assert_eq!(check(&entries, 0, &[1]), "o");
    }
}
