//! Copies that are owed: of chunks that are durable and have fewer than they should.
//!
//! Owns: which chunks, who has them, and when each is tried again.
//! Never: sends, or reads a clock; the driver does.
//! Invariant: a chunk that was put for several files is owed as many copies as the most that any of
//! them asks for, until it has them.

use crate::id::{ChunkId, PeerId, TimeMs};
use std::collections::BTreeMap;

/// Chunks that are durable but have fewer copies than they should: finished later, oldest first.
///
/// Bounded: what does not fit is left to healing, which finds it in the peers' inventories.
#[derive(Debug, Default)]
pub struct Owed {
    chunks: BTreeMap<ChunkId, Debt>,
}

/// One chunk's debt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Debt {
    pub stored: Vec<PeerId>,
    pub copies: usize,
    pub since: TimeMs,
    again_at: TimeMs,
    wait_ms: u64,
}

/// How many debts are remembered; above it healing alone finds them.
pub const OWED_MAX: usize = 100_000;
const FIRST_WAIT_MS: u64 = 1_000;
pub const LONGEST_WAIT_MS: u64 = 60_000;

impl Owed {
    /// Notes what a put left, or what was made of a debt since. `false` when there is no room for it.
    pub fn note(
        &mut self,
        chunk: ChunkId,
        mut stored: Vec<PeerId>,
        copies: usize,
        now: TimeMs,
    ) -> bool {
        let old = self.chunks.get(&chunk);
        let copies = old.map_or(copies, |old| old.copies.max(copies));
        let had = old.into_iter().flat_map(|old| &old.stored);
        let more: Vec<PeerId> = had.filter(|peer| !stored.contains(peer)).copied().collect();
        stored.extend(more);
        if stored.len() >= copies {
            self.chunks.remove(&chunk);
            return true;
        }
        if self.chunks.len() >= OWED_MAX && old.is_none() {
            return false;
        }
        let wait_ms = old.map_or(FIRST_WAIT_MS, |old| (old.wait_ms * 2).min(LONGEST_WAIT_MS));
        let since = old.map_or(now, |old| old.since);
        let again_at = TimeMs(now.0 + wait_ms);
        self.chunks.insert(chunk, Debt { stored, copies, since, again_at, wait_ms });
        true
    }

    /// Up to `limit` chunks to try again now; each comes back through `note`.
    pub fn due(&mut self, now: TimeMs, limit: usize) -> Vec<(ChunkId, Debt)> {
        let mut due: Vec<_> = self.chunks.iter_mut().filter(|(_, d)| d.again_at <= now).collect();
        due.sort_by_key(|(_, debt)| (debt.stored.len(), debt.since));
        let taken = due.into_iter().take(limit).map(|(chunk, debt)| {
            debt.again_at = TimeMs(now.0 + LONGEST_WAIT_MS); // in case nobody comes back with it
            (*chunk, debt.clone())
        });
        taken.collect()
    }

    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// When something is due, if nothing else happens.
    pub fn next_tick(&self) -> Option<TimeMs> {
        self.chunks.values().map(|debt| debt.again_at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debt_is_tried_again_later_and_later_until_it_is_paid() {
        let (mut owed, chunk) = (Owed::default(), crate::hash::address(b"x"));
        assert!(owed.note(chunk, vec![PeerId(1)], 2, TimeMs(0)));
        assert_eq!((owed.due(TimeMs(999), 9).len(), owed.next_tick()), (0, Some(TimeMs(1_000))));
        assert_eq!(owed.due(TimeMs(1_000), 9).len(), 1);
        assert!(owed.due(TimeMs(1_000), 9).is_empty(), "it is under way");
        assert!(owed.note(chunk, vec![PeerId(1)], 2, TimeMs(1_100)));
        assert_eq!(owed.next_tick(), Some(TimeMs(3_100)), "twice as long");
        assert!(owed.note(chunk, vec![PeerId(1), PeerId(2)], 2, TimeMs(3_200)));
        assert!(owed.is_empty());
    }

    #[test]
    fn what_one_file_is_owed_another_that_asks_for_less_does_not_take_away() {
        let (mut owed, chunk) = (Owed::default(), crate::hash::address(b"x"));
        let peers = |list: &[u64]| list.iter().map(|n| PeerId(*n)).collect::<Vec<_>>();
        assert!(owed.note(chunk, peers(&[1, 2]), 3, TimeMs(0)));
        assert!(owed.note(chunk, peers(&[4]), 2, TimeMs(10)), "a put for two, one of them away");
        let due = owed.due(TimeMs(9_000), 9);
        assert!(due.is_empty(), "three have it: {due:?}");
        assert!(owed.note(chunk, peers(&[1]), 2, TimeMs(20)));
        assert!(owed.note(chunk, peers(&[1]), 4, TimeMs(30)), "more is owed than before");
        assert!(owed.note(chunk, peers(&[1, 2]), 2, TimeMs(40)), "made while that was noted");
        let due = owed.due(TimeMs(9_000), 9);
        assert_eq!((due[0].1.copies, due[0].1.stored.len()), (4, 2));
        assert!(owed.note(chunk, peers(&[3, 4]), 2, TimeMs(50)));
        assert!(owed.is_empty());
    }
}
