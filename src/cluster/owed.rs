//! Copies that are owed: of chunks that are durable and have fewer than they should.
//!
//! Owns: which chunks, who has them, when each is tried again; and whom a peer that has one asks for
//! the others, and brings it to.
//! Never: sends, or reads a clock; the driver does.
//! Invariant: a chunk that was put for several files is owed as many copies as the most that any of
//! them asks for, until it has them.

use crate::id::{ChunkId, PeerId, TimeMs};
use std::collections::{BTreeMap, HashSet};

/// Chunks that are durable but have fewer copies than they should: finished later, oldest first.
///
/// Bounded: what does not fit nobody remembers here.
#[derive(Debug)]
pub struct Owed {
    chunks: BTreeMap<ChunkId, Debt>,
    first_wait_ms: u64,
}

impl Default for Owed {
    fn default() -> Self {
        Self::after(FIRST_WAIT_MS)
    }
}

/// One chunk's debt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Debt {
    pub stored: Vec<PeerId>,
    pub copies: usize,
    pub since: TimeMs,
    again_at: TimeMs,
    wait_ms: u64,
    /// All peers that answer were asked, and not enough have it.
    missing: bool,
}

/// How many debts are remembered.
pub const OWED_MAX: usize = 100_000;
const FIRST_WAIT_MS: u64 = 1_000;
pub const LONGEST_WAIT_MS: u64 = 60_000;

impl Owed {
    /// Each debt is tried `first_wait_ms` after it was noted, and then later and later.
    pub fn after(first_wait_ms: u64) -> Self {
        Self { chunks: BTreeMap::new(), first_wait_ms }
    }

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
        let wait_ms = old.map_or(self.first_wait_ms, |old| (old.wait_ms * 2).min(LONGEST_WAIT_MS));
        let since = old.map_or(now, |old| old.since);
        let missing = old.is_some_and(|old| old.missing);
        let again_at = TimeMs(now.0 + wait_ms);
        self.chunks.insert(chunk, Debt { stored, copies, since, again_at, wait_ms, missing });
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

    /// It has all that it can have, or is not here any more.
    pub fn settled(&mut self, chunk: &ChunkId) {
        self.chunks.remove(chunk);
    }

    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    /// Everybody who answers was asked, these have it, and they are too few.
    pub fn lacks(&mut self, chunk: ChunkId, stored: Vec<PeerId>, now: TimeMs) {
        self.note(chunk, stored, 0, now);
        if let Some(debt) = self.chunks.get_mut(&chunk) {
            debt.missing = true;
        }
    }

    /// Chunks of which copies were looked for in vain.
    pub fn missing(&self) -> usize {
        self.chunks.values().filter(|debt| debt.missing).count()
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// When something is due, if nothing else happens.
    pub fn next_tick(&self) -> Option<TimeMs> {
        self.chunks.values().map(|debt| debt.again_at).min()
    }
}

/// One chunk, while a peer that has it looks for its other copies.
#[derive(Debug)]
pub struct Search {
    pub chunk: ChunkId,
    /// All peers that chunks are placed on, in this one's order.
    order: Vec<PeerId>,
    copies: usize,
    stored: Vec<PeerId>,
    lacks: Vec<PeerId>,
}

impl Search {
    pub fn new(chunk: ChunkId, debt: &Debt, order: Vec<PeerId>) -> Self {
        let copies = debt.copies.min(order.len());
        Self { chunk, order, copies, stored: debt.stored.clone(), lacks: Vec::new() }
    }

    pub fn is_over(&self) -> bool {
        self.stored.len() >= self.copies
    }

    /// Who is known to have it.
    pub fn stored(&self) -> &[PeerId] {
        &self.stored
    }

    /// Whom to ask now: as many peers as there shall be copies, and one more for each that lacks
    /// it, because a copy may lie there in its place.
    pub fn to_ask(&self, away: &HashSet<PeerId>) -> Vec<PeerId> {
        if self.is_over() {
            return Vec::new();
        }
        let there = self.order.iter().filter(|peer| !away.contains(peer));
        let first = there.take(self.copies + self.lacks.len()).copied();
        first.filter(|peer| !self.stored.contains(peer) && !self.lacks.contains(peer)).collect()
    }

    pub fn answered(&mut self, peer: PeerId, has: bool) {
        match has {
            true => self.stored.push(peer),
            false => self.lacks.push(peer),
        }
    }

    /// Who is to get it next, of those that lack it.
    pub fn to_bring(&self, away: &HashSet<PeerId>) -> Option<PeerId> {
        let mut lacks = self.order.iter().filter(|peer| self.lacks.contains(peer));
        lacks.find(|peer| !self.is_over() && !away.contains(peer)).copied()
    }

    pub fn brought(&mut self, peer: PeerId) {
        self.lacks.retain(|lacks| *lacks != peer);
        self.stored.push(peer);
    }

    /// The first of those that have it, so that not all of them bring it at once.
    pub fn is_first(&self, me: PeerId) -> bool {
        let place = |peer: &PeerId| self.order.iter().position(|other| other == peer);
        let before =
            |peer: &PeerId| place(peer).is_some_and(|at| place(&me).is_none_or(|me| at < me));
        !self.stored.iter().any(before)
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
    fn a_copy_is_missing_from_the_first_look_in_vain_until_it_is_found() {
        let (mut owed, chunk) = (Owed::default(), crate::hash::address(b"x"));
        let again = |owed: &mut Owed| owed.note(chunk, vec![PeerId(1)], 3, TimeMs(0));
        assert!(again(&mut owed) && again(&mut owed), "a chunk that is put twice");
        assert_eq!(owed.missing(), 0, "nobody has looked yet");
        owed.lacks(chunk, vec![PeerId(1), PeerId(2)], TimeMs(9));
        assert!(again(&mut owed));
        assert_eq!(owed.missing(), 1);
        owed.lacks(chunk, vec![PeerId(1), PeerId(2), PeerId(3)], TimeMs(20));
        assert_eq!((owed.missing(), owed.len()), (0, 0));
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

    /// Peers 1 to 5 in this order; `stored` have it, and there shall be three.
    fn search(stored: &[u64]) -> Search {
        let debt = Debt {
            stored: stored.iter().map(|n| PeerId(*n)).collect(),
            copies: 3,
            since: TimeMs(0),
            again_at: TimeMs(0),
            wait_ms: 0,
            missing: false,
        };
        Search::new(crate::hash::address(b"x"), &debt, (1..=5).map(PeerId).collect())
    }

    fn away(peers: &[u64]) -> HashSet<PeerId> {
        peers.iter().map(|n| PeerId(*n)).collect()
    }

    #[test]
    fn a_peer_asks_for_the_other_copies_before_it_brings_one() {
        let (mut one, nobody) = (search(&[1]), away(&[]));
        assert_eq!(one.to_ask(&nobody), [PeerId(2), PeerId(3)]);
        one.answered(PeerId(2), true);
        one.answered(PeerId(3), false);
        assert_eq!(one.to_ask(&nobody), [PeerId(4)], "it may lie there in its place");
        one.answered(PeerId(4), false);
        one.answered(PeerId(5), false);
        assert!(one.to_ask(&nobody).is_empty());
        assert_eq!(one.to_bring(&away(&[3])), Some(PeerId(4)), "who is away gets nothing");
        assert_eq!(one.to_bring(&nobody), Some(PeerId(3)));
        one.brought(PeerId(3));
        assert!(one.is_over() && one.to_bring(&nobody).is_none());
        let mut one = search(&[4]);
        assert_eq!(one.to_ask(&away(&[3])), [PeerId(1), PeerId(2)], "with 4, that is three");
        one.answered(PeerId(1), true);
        one.answered(PeerId(2), true);
        assert!(one.is_over() && one.to_ask(&nobody).is_empty());
    }

    #[test]
    fn of_those_that_have_it_one_is_first_to_bring_it() {
        let mut both = search(&[2, 4]);
        assert!(both.is_first(PeerId(2)) && !both.is_first(PeerId(4)));
        assert!(!both.is_first(PeerId(9)), "one that left the layout comes last");
        both.answered(PeerId(1), true);
        assert!(both.is_first(PeerId(1)) && !both.is_first(PeerId(2)));
    }
}
