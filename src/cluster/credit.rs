//! Space credit: how many bytes a session may still write before it must ask.
//!
//! Owns: the leader's soft account of free space and of what is promised to whom.
//! Never: counts exactly what is stored; peers do. Credit keeps a full network from being
//! discovered after a write was acknowledged.
//! Invariant: what is promised in all never exceeds what is free, so every promised byte fits.

use crate::cluster::lease::Moment;
use crate::id::{PeerId, SessionId};
use std::collections::{BTreeMap, VecDeque};

/// What a session holds at most, unwritten or on its way to its peers. A heartbeat names what is
/// missing to it, which says what is held; 0 says nothing about credit.
pub const HELD_MAX: u64 = 4 << 30;

/// What one grant brings at most: a fraction of a second of fast writing.
const GRANT_MAX: u64 = 64 << 20;

/// A session that asks again gets at most this part of what is left, so that others get some.
const SHARE: u64 = 4;

/// A peer's report of free bytes, and a session's word of what it holds, count for so long.
pub const REPORT_MS: u64 = 60_000;

/// Commits, tree nodes and the ledger need room too, and no credit is asked for them: a
/// thirty-second part of a store, within bounds.
const OTHERS_SHARE: u64 = 32;
const OTHERS_MIN: u64 = 4 << 20;
const OTHERS_MAX: u64 = 1 << 30;

/// The smallest grant that is worth a round trip; less is full.
pub const GRANT_MIN: u64 = 1 << 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Said {
    bytes: u64,
    heard: Moment,
}

impl Said {
    fn counts(&self, now: Moment) -> bool {
        now < self.heard.after_ms(REPORT_MS)
    }
}

/// One network's account. A new leader begins with an empty one: sessions tell what they hold with
/// their next heartbeat (`claim`), peers what is free.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Credits {
    free: BTreeMap<PeerId, Said>,
    promised: BTreeMap<SessionId, Said>,
    /// What sessions hold no more, and a report from before may not show as stored yet.
    settled: VecDeque<Said>,
}

impl Credits {
    /// `peer` had room for `free` bytes of chunks, its reserve apart, at some time after `asked`.
    pub fn reported(&mut self, asked: Moment, peer: PeerId, free: u64) {
        self.free.insert(peer, Said { bytes: free, heard: asked });
    }

    /// What the session holds: not written yet, or not on its peers.
    pub fn claim(&mut self, now: Moment, session: SessionId, held: u64) {
        let before = self.promised.insert(session, Said { bytes: held, heard: now });
        let settled = before.map_or(0, |before| before.bytes.saturating_sub(held));
        if settled > 0 {
            self.settled.push_back(Said { bytes: settled, heard: now });
        }
    }

    pub fn ended(&mut self, now: Moment, session: SessionId) {
        self.claim(now, session, 0);
        self.promised.remove(&session);
    }

    /// How many bytes the session may write more: 0 says that the network is full.
    pub fn grant(&mut self, now: Moment, session: SessionId, wish: u64, copies: u32) -> u64 {
        let left = self.left(now, copies);
        let share = if left >= SHARE * GRANT_MIN { left / SHARE } else { left };
        let granted = wish.min(share).min(GRANT_MAX);
        if granted < GRANT_MIN.min(wish) {
            return 0;
        }
        let held = self.promised.entry(session).or_insert(Said { bytes: 0, heard: now });
        held.bytes = held.bytes.saturating_add(granted);
        granted
    }

    /// Bytes of content that still fit, `copies` of each, and are promised to nobody.
    pub fn left(&mut self, now: Moment, copies: u32) -> u64 {
        self.free.retain(|_, report| report.counts(now));
        self.promised.retain(|_, held| held.counts(now));
        let oldest = self.free.values().map(|report| report.heard).min().unwrap_or(now);
        // What was settled before the question was asked is stored in the answer.
        while self.settled.front().is_some_and(|settled| settled.heard < oldest) {
            self.settled.pop_front();
        }
        let free: Vec<u64> = self.free.values().map(|report| report.bytes).collect();
        let gone = self.promised.values().chain(&self.settled);
        let gone = gone.fold(0u64, |sum, said| sum.saturating_add(said.bytes));
        room(&free, copies).saturating_sub(gone)
    }
}

/// What a store of `capacity` bytes, its reserve apart, still has for content with `used` of them
/// taken.
pub fn for_content(capacity: u64, used: u64) -> u64 {
    let others = (capacity / OTHERS_SHARE).clamp(OTHERS_MIN, OTHERS_MAX);
    capacity.saturating_sub(used.saturating_add(others))
}

/// How much content fits on peers with so much room, each copy on another peer: the most `x` such
/// that each peer's part, at most `x`, sums up to `copies` times `x`.
pub fn room(free: &[u64], copies: u32) -> u64 {
    let copies = u64::from(copies).clamp(1, free.len().max(1) as u64);
    let mut ascending = free.to_vec();
    ascending.sort_unstable();
    // With the `large` greatest peers filled to `x` each, the others give all that they have.
    let mut best = 0;
    for large in 0..copies.min(ascending.len() as u64) {
        let rest = &ascending[..ascending.len() - large as usize];
        let sum = rest.iter().fold(0u64, |sum, n| sum.saturating_add(*n));
        let x = sum / (copies - large);
        let fits = rest.last().is_none_or(|greatest| *greatest <= x);
        if fits || large + 1 == copies {
            best = x;
            break;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn promises_never_exceed_what_is_free() {
        let mut credits = Credits::default();
        for peer in 1..4 {
            credits.reported(Moment(0), PeerId(peer), 100 * MIB);
        }
        let mut sum = 0;
        for session in 1..200 {
            sum += credits.grant(Moment(1), SessionId(session), 50 * MIB, 3);
        }
        assert!((98 * MIB..=100 * MIB).contains(&sum), "{sum}");
        assert_eq!(credits.grant(Moment(1), SessionId(9), MIB * 2, 3), 0, "full says 0");
        credits.ended(Moment(2), SessionId(1));
        assert_eq!(credits.left(Moment(2), 3), 100 * MIB - sum, "it may be stored by now");
        for peer in 1..4 {
            credits.reported(Moment(3), PeerId(peer), 100 * MIB);
        }
        assert!(credits.grant(Moment(3), SessionId(9), MIB, 3) > 0, "but it was not");
        assert_eq!(credits.left(Moment(3 + REPORT_MS), 3), 0, "old reports promise nothing");
    }

    #[test]
    fn what_a_silent_session_held_is_free_again() {
        let mut credits = Credits::default();
        credits.reported(Moment(0), PeerId(1), 10 * MIB);
        credits.claim(Moment(0), SessionId(1), 10 * MIB);
        assert_eq!(credits.grant(Moment(1), SessionId(2), MIB, 1), 0);
        credits.reported(Moment(REPORT_MS), PeerId(1), 10 * MIB);
        assert_eq!(credits.grant(Moment(REPORT_MS), SessionId(2), MIB, 1), MIB);
    }

    proptest! {
        #[test]
        fn room_is_what_copies_on_different_peers_can_fill(
            free in prop::collection::vec(0..40u64, 1..6), copies in 1..5u32,
        ) {
            let x = room(&free, copies);
            let n = u64::from(copies).min(free.len() as u64);
            let fits = |x: u64| free.iter().map(|f| (*f).min(x)).sum::<u64>() >= n * x;
            prop_assert!(fits(x) && !fits(x + 1), "{x}");
        }
    }
}
