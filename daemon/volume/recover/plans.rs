//! Which plan of an operation counts, of a journal that has several.
//!
//! Owns: the rule by which each acknowledged operation is there once, wherever its mount died while
//! it planned again what was refused.
//! Invariant: of the plans of one operation, each of which names the one before it, exactly one
//! counts: the first that is not noted as dropped. Of what is not planned again there is one.

use crate::volume::journal::{Entry, Holds, Origin, Seq};
use mictlan::id::SessionId;

/// The entries of the journal of `session` that count, with the numbers that they had.
pub(super) fn counting(entries: Vec<(Seq, Entry)>, session: SessionId) -> Vec<(Seq, Entry)> {
    let gone: Vec<(Seq, Seq)> = entries.iter().filter_map(|(_, entry)| entry.dropped()).collect();
    let dropped = |seq: Seq| gone.iter().any(|(from, until)| (*from..*until).contains(&seq));
    let counts = |(seq, entry): (Seq, Entry)| match entry {
        Entry::Op { .. } if dropped(seq) => None,
        Entry::Op {
            holds: Holds { origin: Some(Origin { session: own, seq: first }), .. },
            ..
        } if own == session && !dropped(first) => None,
        Entry::Op { now, base, mut holds, op } => {
            holds.origin = holds.origin.filter(|origin| origin.session != session);
            Some((seq, Entry::Op { now, base, holds, op }))
        }
        entry => Some((seq, entry)),
    };
    entries.into_iter().filter_map(counts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mictlan::id::{Ino, Position};
    use mictlan::meta::inode::Stamp;
    use mictlan::meta::namespace::Op;

    const OWN: SessionId = SessionId(3);

    /// An operation that stands for another of its own session, or for one that was taken over.
    fn op(origin: Option<(SessionId, u64)>) -> Entry {
        let origin = origin.map(|(session, seq)| Origin { session, seq: Seq(seq) });
        let (now, base, op) = (Stamp::default(), Position(0), Op::Reap { ino: Ino(7) });
        Entry::Op { now, base, holds: Holds { covers: None, origin }, op }
    }

    fn dropped(from: u64, until: u64) -> Entry {
        Entry::Dropped { from: Seq(from), until: Seq(until) }
    }

    /// The numbers of the operations that count.
    fn check(entries: &[Entry]) -> Vec<u64> {
        let entries = (1..).map(Seq).zip(entries.iter().cloned()).collect();
        let counted = counting(entries, OWN).into_iter();
        let is_op = |entry: &Entry| matches!(entry, Entry::Op { .. });
        counted.filter(|(_, entry)| is_op(entry)).map(|(seq, _)| seq.0).collect()
    }

    #[test]
    fn each_operation_counts_once_wherever_its_mount_died() {
        let (first, again) = (op(None), |seq| op(Some((OWN, seq))));
        let all = [
            (first.clone(), &[1][..]),
            (first, &[1, 2]),
            (again(1), &[1, 2]),
            (again(2), &[1, 2]),
            (dropped(1, 3), &[3, 4]),
            (again(3), &[3, 4]),
            // What was done since the second plan was refused, and not planned again.
            (op(None), &[3, 4, 7]),
            (dropped(3, 6), &[6, 7]),
        ];
        for died in 1..=all.len() {
            let entries: Vec<Entry> = all[..died].iter().map(|(entry, _)| entry.clone()).collect();
            assert_eq!(check(&entries), all[died - 1].1, "after {died} entries");
        }
    }

    #[test]
    fn what_was_taken_over_is_told_apart_from_what_was_planned_again() {
        let elsewhere = Some((SessionId(2), 1));
        assert_eq!(check(&[op(None), op(elsewhere)]), [1, 2]);
        let entries = [op(elsewhere), op(elsewhere), dropped(1, 2)];
        assert_eq!(check(&entries), [2]);
        let own = Holds::default().again_for(Origin { session: OWN, seq: Seq(5) });
        assert_eq!(own.origin, Some(Origin { session: OWN, seq: Seq(5) }));
        let next = Origin { session: OWN, seq: Seq(6) };
        assert_eq!(own.again_for(next).origin, Some(next), "the one before it");
        let Entry::Op { holds, .. } = op(elsewhere) else { unreachable!("it is one") };
        assert_eq!(holds.again_for(next), holds, "where it was taken from");
    }
}
