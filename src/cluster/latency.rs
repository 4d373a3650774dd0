//! How fast each peer answers, as measured by this reader.
//!
//! Owns: a smoothed time a peer takes for a chunk, and the order that follows.
//! Never: decides to give up on anybody.
//! Invariant: one failure puts a peer behind the healthy ones for a while, never for ever.

use crate::id::{PeerId, TimeMs};
use std::collections::BTreeMap;

/// What is assumed of a peer that was never asked: good enough to be tried soon.
const UNKNOWN_MS: u64 = 10;
/// A new measurement counts for 1/4: two or three slow answers change the order, one does not.
const WEIGHT_SHIFT: u32 = 2;
/// A peer that failed comes last for this long, doubled by each further failure.
const FIRST_BAN_MS: u64 = 1_000;
const LONGEST_BAN_MS: u64 = 60_000;
/// Fraction bits, so that the smoothing of small times does not stick.
const FRACTION: u32 = 4;

#[derive(Debug, Clone, Copy)]
struct Peer {
    /// Milliseconds with `FRACTION` bits behind the point.
    smooth: u64,
    ban_ms: u64,
    banned_until: TimeMs,
}

#[derive(Debug, Clone, Default)]
pub struct Latencies {
    peers: BTreeMap<PeerId, Peer>,
}

impl Latencies {
    pub fn new() -> Self {
        Self::default()
    }

    /// A peer answered after `took_ms`.
    pub fn answered(&mut self, peer: PeerId, took_ms: u64) {
        let took = took_ms.min(u64::from(u32::MAX)) << FRACTION;
        let entry = self.entry(peer, took);
        entry.smooth = entry.smooth - (entry.smooth >> WEIGHT_SHIFT) + (took >> WEIGHT_SHIFT);
        entry.ban_ms = 0;
        entry.banned_until = TimeMs(0);
    }

    /// A peer could not be reached, or had nothing good.
    pub fn failed(&mut self, peer: PeerId, now: TimeMs) {
        let entry = self.entry(peer, UNKNOWN_MS << FRACTION);
        entry.ban_ms = (entry.ban_ms * 2).clamp(FIRST_BAN_MS, LONGEST_BAN_MS);
        entry.banned_until = TimeMs(now.0 + entry.ban_ms);
    }

    pub fn usual_ms(&self, peer: PeerId) -> u64 {
        self.peers.get(&peer).map_or(UNKNOWN_MS, |entry| entry.smooth >> FRACTION)
    }

    /// Those that answer, the fastest first, then those that failed lately. Equals keep the order
    /// they came in, which for copies is the rendezvous order: readers of different chunks spread.
    pub fn fastest_first(&self, peers: &[PeerId], now: TimeMs) -> Vec<PeerId> {
        let mut order = peers.to_vec();
        order.sort_by_key(|peer| {
            let banned = self.peers.get(peer).is_some_and(|entry| entry.banned_until > now);
            // In steps of a factor of two, so that noise does not send everybody to one peer.
            (banned, (self.usual_ms(*peer) + 1).ilog2())
        });
        order
    }

    fn entry(&mut self, peer: PeerId, smooth: u64) -> &mut Peer {
        let new = Peer { smooth, ban_ms: 0, banned_until: TimeMs(0) };
        self.peers.entry(peer).or_insert(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PeerId = PeerId(1);
    const B: PeerId = PeerId(2);

    #[test]
    fn a_clearly_faster_peer_comes_first_and_noise_changes_nothing() {
        let mut seen = Latencies::new();
        for _ in 0..20 {
            seen.answered(A, 40);
            seen.answered(B, 4);
        }
        assert_eq!(seen.fastest_first(&[A, B], TimeMs(0)), [B, A]);
        for _ in 0..20 {
            seen.answered(A, 5);
        }
        assert_eq!(seen.fastest_first(&[A, B], TimeMs(0)), [A, B], "within a factor of two");
        assert_eq!(seen.usual_ms(PeerId(9)), UNKNOWN_MS);
    }

    #[test]
    fn a_peer_that_failed_comes_last_for_a_while() {
        let mut seen = Latencies::new();
        seen.failed(A, TimeMs(0));
        assert_eq!(seen.fastest_first(&[A, B], TimeMs(999)), [B, A]);
        assert_eq!(seen.fastest_first(&[A, B], TimeMs(1_000)), [A, B]);
        seen.failed(A, TimeMs(1_000));
        assert_eq!(seen.fastest_first(&[A, B], TimeMs(2_999)), [B, A], "twice as long");
        seen.answered(A, 3);
        assert_eq!(seen.fastest_first(&[A, B], TimeMs(1_001)), [A, B], "an answer forgives");
    }
}
