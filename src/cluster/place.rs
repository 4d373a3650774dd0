//! Where a chunk's copies lie: weighted rendezvous order, spread over failure domains.
//!
//! Owns: the order of all peers for a chunk, and how many copies `fsync` waits for.
//! Never: knows which peers are up; whoever sends takes the next in the order instead.
//! Invariants: every machine computes the same order (integers only, no floating point); when a
//! peer comes or goes, each chunk's first R peers change by at most one; a domain is used a second
//! time only after every domain was used once.

use super::layout::{Layout, Weight};
use crate::id::{ChunkId, Label, PeerId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Fraction bits of the logarithm below.
const LOG_BITS: u32 = 48;

/// How many copies of a chunk there shall be: 1 and up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Copies(u8);

impl Copies {
    /// DESIGN: three, where a network has three peers.
    pub const DEFAULT: Copies = Copies(3);

    /// `None` for 0: a chunk without a copy is not kept.
    pub fn new(copies: u8) -> Option<Self> {
        (copies > 0).then_some(Self(copies))
    }

    pub fn count(self) -> usize {
        usize::from(self.0)
    }
}

/// A peer in a chunk's order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    pub peer: PeerId,
    pub domain: Label,
}

/// All peers with a weight, in the order in which `chunk`'s copies are placed on them: the first R
/// hold the copies, the next replace those that fail, heat uses those after R.
///
/// Each domain's best peer comes first, domains in the order of their best; then each domain's
/// second best, and so on. So a domain of large weight is drawn as often as its weight says, and a
/// peer that comes or goes moves only what it holds.
pub fn place(chunk: ChunkId, layout: &Layout) -> Vec<Place> {
    let mut scored: Vec<(Score, PeerId, &Label)> = layout
        .members()
        .filter(|(_, member)| member.weight > Weight(0))
        .map(|(peer, member)| (Score::of(chunk, peer, member.weight), peer, &member.domain))
        .collect();
    scored.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut used: BTreeMap<&Label, usize> = BTreeMap::new();
    let mut order: Vec<(usize, PeerId, &Label)> = scored
        .into_iter()
        .map(|(_, peer, domain)| {
            let round = used.entry(domain).or_default();
            *round += 1;
            (*round, peer, domain)
        })
        .collect();
    order.sort_by_key(|(round, ..)| *round); // stable: within a round the scores decide
    let place = |(_, peer, domain): (usize, PeerId, &Label)| Place { peer, domain: domain.clone() };
    order.into_iter().map(place).collect()
}

/// How many durable copies `fsync` waits for: min(R, ⌊V/2⌋ + 1), and no more than there are peers.
/// So the copies survive as many lost machines as the ledger's order does, and no fewer are waited
/// for than the loss of this machine needs.
pub fn durable_need(copies: Copies, voters: usize, storage_peers: usize) -> usize {
    copies.count().min(voters / 2 + 1).min(storage_peers)
}

/// −log₂(u) / weight for a uniform u: the smallest wins, with a chance in proportion to weight.
#[derive(Clone, Copy, Debug)]
struct Score {
    log: u64,
    weight: u64,
}

impl Score {
    fn of(chunk: ChunkId, peer: PeerId, weight: Weight) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("mictlan 2026 chunk placement");
        hasher.update(&chunk.0).update(&peer.0.to_le_bytes());
        let mut draw = [0; 8];
        hasher.finalize_xof().fill(&mut draw);
        Self { log: minus_log2(u64::from_le_bytes(draw)), weight: weight.0 }
    }

    /// a/v < b/w as a·w < b·v: exact.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let ours = u128::from(self.log) * u128::from(other.weight);
        ours.cmp(&(u128::from(other.log) * u128::from(self.weight)))
    }
}

/// −log₂((draw + 1) / 2⁶⁴) with `LOG_BITS` fraction bits, by squaring a 63-bit mantissa: integers
/// only, because the libraries of two machines may round a logarithm differently.
fn minus_log2(draw: u64) -> u64 {
    let Some(u) = draw.checked_add(1) else { return 0 }; // u = 1: the logarithm is 0
    let whole = u.ilog2();
    let mut mantissa = u << (63 - whole); // in [2⁶³, 2⁶⁴), that is [1, 2)
    let mut fraction = 0u64;
    for _ in 0..LOG_BITS {
        let square = u128::from(mantissa) * u128::from(mantissa); // in [1, 4) at 126 bits
        let carry = (square >> 127) as u64;
        fraction = fraction << 1 | carry;
        mantissa = (square >> (63 + carry)) as u64;
    }
    (64 << LOG_BITS) - ((u64::from(whole) << LOG_BITS) + fraction)
}

#[cfg(test)]
mod tests {
    use super::super::layout::{Delta, Member};
    use super::*;
    use crate::hash;
    use proptest::prelude::*;

    fn layout(peers: &[(u64, u64, u8)]) -> Layout {
        let member = |(peer, weight, domain): &(u64, u64, u8)| {
            let domain = Label::parse(&format!("d{domain}")).expect("a label");
            (PeerId(*peer), Member { weight: Weight(*weight), domain })
        };
        let delta = Delta { put: peers.iter().map(member).collect(), remove: vec![] };
        Layout::new().change(1, &delta).expect("a layout")
    }

    fn chunk(n: u64) -> ChunkId {
        hash::address(&n.to_le_bytes())
    }

    fn peers(places: &[Place]) -> Vec<u64> {
        places.iter().map(|place| place.peer.0).collect()
    }

    /// How many of `chunks` chunks have each peer among their first `copies`.
    fn shares(layout: &Layout, copies: usize, chunks: u64) -> BTreeMap<u64, u64> {
        let mut shares = BTreeMap::new();
        for n in 0..chunks {
            for place in place(chunk(n), layout).into_iter().take(copies) {
                *shares.entry(place.peer.0).or_default() += 1;
            }
        }
        shares
    }

    #[test]
    fn the_order_is_frozen() {
        let five = layout(&[(1, 10, 1), (2, 20, 1), (3, 10, 2), (4, 40, 3), (5, 0, 4)]);
        let orders: Vec<_> = (0..4).map(|n| peers(&place(chunk(n), &five))).collect();
        let frozen = [[4, 3, 1, 2], [4, 3, 2, 1], [1, 4, 3, 2], [3, 4, 2, 1]];
        assert_eq!(orders, frozen);
    }

    #[test]
    fn the_logarithm_is_right_to_its_last_bits() {
        for draw in [0, 1, 2, 1 << 20, (1 << 63) - 1, 1 << 63, u64::MAX - 1, 0x1234_5678_9abc_def0]
        {
            let exact = 64.0 - ((draw as f64) + 1.0).log2();
            let ours = minus_log2(draw) as f64 / (1u64 << LOG_BITS) as f64;
            assert!((exact - ours).abs() < 1e-9, "{draw}: {exact} {ours}");
        }
        assert_eq!((minus_log2(0), minus_log2(u64::MAX)), (64 << LOG_BITS, 0));
    }

    #[test]
    fn peers_get_chunks_in_proportion_to_their_weights() {
        let shares = shares(&layout(&[(1, 10, 1), (2, 20, 2), (3, 70, 3)]), 1, 20_000);
        for (peer, percent) in [(1, 10.0), (2, 20.0), (3, 70.0)] {
            let share = shares[&peer] as f64 / 200.0;
            assert!((share - percent).abs() < 1.5, "peer {peer}: {share} %");
        }
    }

    #[test]
    fn fsync_waits_for_as_many_copies_as_the_ledger_waits_for_voters() {
        let need = |r, v, peers| durable_need(Copies::new(r).expect("some"), v, peers);
        assert_eq!((need(3, 1, 1), need(3, 2, 2), need(3, 3, 3)), (1, 2, 2));
        assert_eq!((need(1, 5, 5), need(2, 5, 5), need(5, 5, 5)), (1, 2, 3));
        assert_eq!(need(3, 5, 2), 2, "on fewer peers: as many as there are");
    }

    fn any_peers() -> impl Strategy<Value = Vec<(u64, u64, u8)>> {
        let peer = (0u64..50, 0u8..4);
        prop::collection::vec(peer, 1..9).prop_map(|list| {
            list.into_iter().zip(1..).map(|((w, d), n)| (n, w, d)).collect::<Vec<_>>()
        })
    }

    proptest! {
        #[test]
        fn a_domain_is_used_again_only_after_all_others(list in any_peers(), n: u64) {
            let layout = layout(&list);
            let order = place(chunk(n), &layout);
            prop_assert_eq!(order.len(), layout.placed_peers());
            let mut left: BTreeMap<&Label, usize> = BTreeMap::new();
            order.iter().for_each(|p| *left.entry(&p.domain).or_default() += 1);
            let mut used: BTreeMap<&Label, usize> = BTreeMap::new();
            for here in &order {
                let times = used.get(&here.domain).copied().unwrap_or(0);
                let open = left.iter().filter(|(_, left)| **left > 0);
                let least = open.map(|(d, _)| used.get(d).copied().unwrap_or(0)).min();
                prop_assert_eq!(Some(times), least);
                *used.entry(&here.domain).or_default() += 1;
                *left.entry(&here.domain).or_default() -= 1;
            }
        }

        #[test]
        fn a_peer_that_goes_or_comes_moves_only_one_copy(
            list in any_peers(), gone in 0usize..9, copies in 1usize..5, n: u64,
        ) {
            let gone = list[gone % list.len()].0;
            let fewer: Vec<_> = list.iter().filter(|p| p.0 != gone).copied().collect();
            prop_assume!(!fewer.is_empty());
            let first = |list: &[_]| -> Vec<u64> {
                peers(&place(chunk(n), &layout(list))).into_iter().take(copies).collect()
            };
            let (before, after) = (first(&list), first(&fewer));
            let fresh = after.iter().filter(|peer| !before.contains(peer)).count();
            prop_assert!(fresh <= usize::from(before.contains(&gone)), "{before:?} {after:?}");
        }
    }
}
