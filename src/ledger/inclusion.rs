//! What was applied from the log before a checkpoint vouched for it, and when to believe no more.
//!
//! Owns: which applied records no verified checkpoint covers yet, and the judgement of those that
//! come.
//! Never: fetches or verifies anything: the caller brings leaves of a verified tree, and times of
//! cosignatures that its policy accepted.
//! Invariant: a record counts as included by its leaf alone. Each record names the hash of the one
//! before it, so the last record of a run without gaps speaks for the run.
//!
//! Absence alone proves nothing: a voter that is away may hold up every checkpoint. What breaks
//! the promise is a quorum that signs, again and again, a tree without the record.

use crate::id::{LedgerHash, Position};
use std::collections::BTreeMap;

/// Within this a record that was shown is under a cosigned checkpoint, or it is reported.
pub const INCLUDED_WITHIN_MS: u64 = 10_000;
/// A run is closed after this, so that a log that never rests is still compared in time.
const RUN_MS: u64 = 1_000;
/// So many runs wait at most (5 MiB); without any checkpoint for hours the oldest go unjudged.
const RUNS_MAX: usize = 1 << 16;
/// How many quorums must have signed without a late record. One may have been on its way.
const SIGNED_WITHOUT: u32 = 2;

/// Why what was applied is believed no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    #[error("record {at} was shown with the leaf {shown}, and the cosigned log has {signed} there")]
    Another { at: Position, shown: LedgerHash, signed: LedgerHash },
    #[error(
        "record {at} was shown, and the voters go on cosigning a log of {size} records without it"
    )]
    Omitted { at: Position, size: u64 },
}

#[derive(Debug, Clone, Copy)]
struct Run {
    first: Position,
    /// Of its last record.
    leaf: LedgerHash,
    /// When its first record was applied, on the caller's clock.
    since_ms: u64,
}

/// A record that is late, and the quorums that were seen to sign without it since.
#[derive(Debug, Clone, Copy)]
struct Late {
    at: Position,
    /// Unix seconds by the voters' clocks: only a note that is newer as a whole counts.
    after: u64,
    without: u32,
}

/// A checkpoint as it is judged: what the policy accepted of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signed {
    pub size: u64,
    /// Unix seconds of the oldest and of the newest cosignature.
    pub oldest: u64,
    pub newest: u64,
}

#[derive(Debug, Default)]
pub struct Inclusion {
    /// Runs by the position of their last record.
    runs: BTreeMap<Position, Run>,
    late: Option<Late>,
}

impl Inclusion {
    /// A record was applied. `follows`: it names the one before it, which was applied as well.
    pub fn applied(&mut self, now_ms: u64, at: Position, leaf: LedgerHash, follows: bool) {
        let last = self.runs.last_key_value().map(|(at, run)| (*at, *run));
        let (mut first, mut since_ms) = (at, now_ms);
        if let Some((end, run)) = last
            && follows
            && end.0 + 1 == at.0
            && now_ms.saturating_sub(run.since_ms) < RUN_MS
        {
            self.runs.remove(&end);
            (first, since_ms) = (run.first, run.since_ms);
        }
        self.runs.insert(at, Run { first, leaf, since_ms });
        while self.runs.len() > RUNS_MAX {
            self.runs.pop_first();
        }
    }

    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The oldest record that no checkpoint covers; every one before it was compared.
    pub fn oldest(&self) -> Option<Position> {
        self.runs.first_key_value().map(|(_, run)| run.first)
    }

    /// The records whose leaves in a tree of this size are to be compared.
    pub fn below(&self, size: u64) -> Vec<Position> {
        self.runs.range(..Position(size)).map(|(at, _)| *at).collect()
    }

    /// The leaf that a verified tree has at a place.
    pub fn compare(&mut self, at: Position, signed: LedgerHash) -> Result<(), Broken> {
        match self.runs.get(&at) {
            Some(run) if run.leaf != signed => Err(Broken::Another { at, shown: run.leaf, signed }),
            // The leaf of a run that grew meanwhile is asked for the next time.
            _ => {
                self.runs.remove(&at);
                Ok(())
            }
        }
    }

    /// A checkpoint was accepted, and what lies below it compared.
    pub fn signed(&mut self, now_ms: u64, note: Signed) -> Result<(), Broken> {
        let Some(at) = self.late_at(now_ms).filter(|at| at.0 >= note.size) else {
            self.late = None;
            return Ok(());
        };
        match &mut self.late {
            Some(late) if late.at == at => {
                if note.oldest > late.after {
                    late.after = note.newest;
                    late.without += 1;
                }
                match late.without >= SIGNED_WITHOUT {
                    true => Err(Broken::Omitted { at, size: note.size }),
                    false => Ok(()),
                }
            }
            // Whatever was signed before now may have been signed before the record was there.
            _ => {
                self.late = Some(Late { at, after: note.newest, without: 0 });
                Ok(())
            }
        }
    }

    /// The oldest record that waits for longer than was promised.
    pub fn late_at(&self, now_ms: u64) -> Option<Position> {
        let (at, run) = self.runs.first_key_value()?;
        (now_ms.saturating_sub(run.since_ms) >= INCLUDED_WITHIN_MS).then_some(*at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(n: u8) -> LedgerHash {
        LedgerHash([n; 32])
    }

    fn note(size: u64, time: u64) -> Signed {
        Signed { size, oldest: time, newest: time + 1 }
    }

    /// Record 5 was applied at 0 s.
    fn five() -> Inclusion {
        let mut inclusion = Inclusion::default();
        inclusion.applied(0, Position(5), leaf(5), false);
        inclusion
    }

    #[test]
    fn a_record_is_included_by_its_leaf_and_by_nothing_else() {
        let mut inclusion = five();
        assert_eq!(inclusion.below(5), [], "the tree has the records before it");
        assert_eq!(inclusion.below(6), [Position(5)]);
        assert_eq!(inclusion.compare(Position(5), leaf(5)), Ok(()));
        assert!(inclusion.is_empty());
        let broken = five().compare(Position(5), leaf(6));
        let another = Broken::Another { at: Position(5), shown: leaf(5), signed: leaf(6) };
        assert_eq!(broken, Err(another));
    }

    #[test]
    fn the_last_record_of_a_run_speaks_for_it_and_a_run_ends() {
        let mut inclusion = five();
        inclusion.applied(1, Position(6), leaf(6), true);
        inclusion.applied(2, Position(9), leaf(9), false);
        assert_eq!(inclusion.below(100), [Position(6), Position(9)], "7 and 8 were not shown");
        assert_eq!(inclusion.oldest(), Some(Position(5)), "6 speaks for it");
        inclusion.applied(RUN_MS + 2, Position(10), leaf(10), true);
        assert_eq!(inclusion.below(10), [Position(6), Position(9)], "9 waits no longer for others");
        inclusion.applied(RUN_MS + 3, Position(11), leaf(11), false);
        assert_eq!(inclusion.below(12).len(), 4, "11 did not name 10");
    }

    #[test]
    fn no_checkpoint_for_long_is_late_and_breaks_nothing() {
        let mut inclusion = five();
        assert_eq!(inclusion.late_at(INCLUDED_WITHIN_MS - 1), None);
        assert_eq!(inclusion.late_at(INCLUDED_WITHIN_MS), Some(Position(5)));
        for now in (0..10).map(|n| n * INCLUDED_WITHIN_MS) {
            assert_eq!(inclusion.signed(now, note(5, 1_000)), Ok(()), "the same old note");
        }
        assert_eq!(inclusion.compare(Position(5), leaf(5)), Ok(()), "publication went on");
        assert_eq!(inclusion.signed(1 << 30, note(6, 9_000)), Ok(()));
    }

    #[test]
    fn quorums_that_go_on_signing_without_a_record_break_the_promise() {
        let mut inclusion = five();
        assert_eq!(inclusion.signed(1, note(5, 1_000)), Ok(()), "it is not late");
        assert_eq!(inclusion.signed(10_000, note(5, 1_010)), Ok(()), "signed who knows when");
        assert_eq!(inclusion.signed(13_000, note(5, 1_011)), Ok(()), "not newer as a whole");
        assert_eq!(inclusion.signed(20_000, note(5, 1_020)), Ok(()), "one may be on its way");
        assert_eq!(inclusion.signed(23_000, note(5, 1_020)), Ok(()), "the same again");
        let omitted = Broken::Omitted { at: Position(5), size: 5 };
        assert_eq!(inclusion.signed(30_000, note(5, 1_030)), Err(omitted));
    }

    #[test]
    fn what_is_included_late_is_forgiven_and_the_next_is_judged_by_itself() {
        let mut inclusion = five();
        inclusion.applied(9_000, Position(6), leaf(6), true);
        assert_eq!(inclusion.signed(10_000, note(5, 1_000)), Ok(()));
        assert_eq!(inclusion.signed(20_000, note(5, 1_010)), Ok(()));
        assert_eq!(inclusion.compare(Position(5), leaf(5)), Ok(()));
        assert_eq!(inclusion.signed(30_000, note(6, 1_020)), Ok(()));
        assert_eq!(inclusion.signed(40_000, note(6, 1_030)), Ok(()));
        assert!(inclusion.signed(50_000, note(6, 1_040)).is_err());
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut inclusion = Inclusion::default();
        for n in 0..RUNS_MAX as u64 + 10 {
            inclusion.applied(0, Position(2 * n), leaf(1), false);
        }
        assert_eq!(inclusion.below(u64::MAX).len(), RUNS_MAX);
        assert_eq!(inclusion.below(u64::MAX)[0], Position(20));
    }
}
