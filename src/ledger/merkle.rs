//! The tree of RFC 6962 over the records: hashes, running root, proofs and their checks.
//!
//! Owns: which hashes a proof consists of, and whether a proof convinces.
//! Never: stores hashes; proofs are planned as spans of leaves and answered by the caller.
//! Invariant: what `check_inclusion` and `check_consistency` accept follows RFC 6962 §2.1 alone,
//! so a proof of any other program is accepted, and ours by any other.

use crate::id::LedgerHash;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The hash of a leaf: `0x00` before the record's bytes.
pub fn leaf(record: &[u8]) -> LedgerHash {
    let mut hasher = Sha256::new();
    hasher.update([0x00]);
    hasher.update(record);
    LedgerHash(hasher.finalize().into())
}

/// The hash of an inner node: `0x01` before its children.
pub fn node(left: &LedgerHash, right: &LedgerHash) -> LedgerHash {
    let mut bytes = [0x01; 65];
    bytes[1..33].copy_from_slice(&left.0);
    bytes[33..].copy_from_slice(&right.0);
    LedgerHash(Sha256::digest(bytes).into())
}

/// The root of a tree without leaves: SHA-256 of nothing.
pub fn empty_root() -> LedgerHash {
    LedgerHash(Sha256::digest([]).into())
}

/// A perfect subtree: the leaves `index << level .. (index + 1) << level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIndex {
    pub level: u8,
    pub index: u64,
}

/// The leaves `start .. end` as one subtree of a tree; not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub start: u64,
    pub end: u64,
}

impl Span {
    /// The perfect subtrees that this span folds from, left to right.
    pub fn nodes(self) -> Vec<NodeIndex> {
        assert!(self.start < self.end, "a subtree has leaves");
        let mut nodes = Vec::new();
        let mut at = self.start;
        while at < self.end {
            let room = (self.end - at).ilog2();
            let level = if at == 0 { room } else { room.min(at.trailing_zeros()) };
            nodes.push(NodeIndex { level: level as u8, index: at >> level });
            at += 1 << level;
        }
        nodes
    }
}

/// Folds the hashes of a span's perfect subtrees, left to right, into the span's hash.
pub fn fold(hashes: &[LedgerHash]) -> LedgerHash {
    let (last, rest) = hashes.split_last().expect("a span has at least one node");
    rest.iter().rev().fold(*last, |right, left| node(left, &right))
}

/// The running tree: its size and the roots of its perfect subtrees, widest first.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CompactRange {
    size: u64,
    peaks: Vec<LedgerHash>,
}

impl CompactRange {
    pub fn new() -> Self {
        Self::default()
    }

    /// From the hashes that `Span { 0, size }.nodes()` names; `None` when their number is wrong.
    pub fn from_peaks(size: u64, peaks: Vec<LedgerHash>) -> Option<Self> {
        (size.count_ones() as usize == peaks.len()).then_some(Self { size, peaks })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn peaks(&self) -> &[LedgerHash] {
        &self.peaks
    }

    pub fn append(&mut self, leaf: LedgerHash) {
        let mut hash = leaf;
        // Each trailing one bit of the size is a full subtree that the new leaf completes a pair of.
        for _ in 0..self.size.trailing_ones() {
            let left = self.peaks.pop().expect("a peak stands for every one bit of the size");
            hash = node(&left, &hash);
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    pub fn root(&self) -> LedgerHash {
        if self.peaks.is_empty() { empty_root() } else { fold(&self.peaks) }
    }
}

/// The subtrees whose hashes prove that leaf `index` is in a tree of `size`, leaf's side first.
pub fn inclusion_spans(index: u64, size: u64) -> Vec<Span> {
    assert!(index < size, "only a leaf of the tree has a proof");
    let (mut start, mut end) = (0, size);
    let mut spans = Vec::new();
    while end - start > 1 {
        let middle = start + split(end - start);
        if index < middle {
            spans.push(Span { start: middle, end });
            end = middle;
        } else {
            spans.push(Span { start, end: middle });
            start = middle;
        }
    }
    spans.reverse();
    spans
}

/// The subtrees whose hashes prove that the tree of `old` leaves is a prefix of that of `new`.
/// Nothing is needed when one of them is empty or both are the same.
pub fn consistency_spans(old: u64, new: u64) -> Vec<Span> {
    assert!(old <= new, "a tree only grows");
    if old == 0 || old == new {
        return Vec::new();
    }
    let (mut start, mut end) = (0, new);
    let mut spans = Vec::new();
    // Whether `start .. old` is still the whole old tree: the checker knows that root already.
    let mut known = true;
    while old != end {
        let middle = start + split(end - start);
        if old <= middle {
            spans.push(Span { start: middle, end });
            end = middle;
        } else {
            spans.push(Span { start, end: middle });
            start = middle;
            known = false;
        }
    }
    if !known {
        spans.push(Span { start, end });
    }
    spans.reverse();
    spans
}

/// Answers the spans of a proof. `read` gives the hash of a perfect subtree, or its own error
/// (say, which tile is missing); the call is then simply made again.
pub fn prove<E>(
    spans: &[Span],
    mut read: impl FnMut(NodeIndex) -> Result<LedgerHash, E>,
) -> Result<Vec<LedgerHash>, E> {
    let mut proof = Vec::with_capacity(spans.len());
    for span in spans {
        let hashes = span.nodes().into_iter().map(&mut read).collect::<Result<Vec<_>, E>>()?;
        proof.push(fold(&hashes));
    }
    Ok(proof)
}

/// Whether `proof` shows that `leaf` is the leaf `index` of the tree of `size` under `root`.
pub fn check_inclusion(
    leaf: &LedgerHash,
    index: u64,
    size: u64,
    proof: &[LedgerHash],
    root: &LedgerHash,
) -> bool {
    if index >= size {
        return false;
    }
    let spans = inclusion_spans(index, size);
    if spans.len() != proof.len() {
        return false;
    }
    let hash = spans.iter().zip(proof).fold(*leaf, |hash, (span, sibling)| {
        if span.start > index { node(&hash, sibling) } else { node(sibling, &hash) }
    });
    hash == *root
}

/// Whether `proof` shows that the tree `(old, old_root)` is a prefix of the tree `(new, new_root)`.
pub fn check_consistency(
    old: u64,
    old_root: &LedgerHash,
    new: u64,
    new_root: &LedgerHash,
    proof: &[LedgerHash],
) -> bool {
    if old > new {
        return false;
    }
    if old == 0 {
        return proof.is_empty() && *old_root == empty_root();
    }
    if old == new {
        return proof.is_empty() && old_root == new_root;
    }
    let spans = consistency_spans(old, new);
    if spans.len() != proof.len() {
        return false;
    }
    // The innermost subtree that ends at `old` is the old root itself, or the first hash given.
    let mut pairs = spans.iter().zip(proof);
    let start = if old.is_power_of_two() {
        *old_root
    } else {
        match pairs.next() {
            Some((_, hash)) => *hash,
            None => return false,
        }
    };
    let (mut was, mut is) = (start, start);
    for (span, hash) in pairs {
        if span.start >= old {
            is = node(&is, hash);
        } else {
            was = node(hash, &was);
            is = node(hash, &is);
        }
    }
    was == *old_root && is == *new_root
}

/// The size of the left subtree of `size` leaves: the greatest power of two below it.
fn split(size: u64) -> u64 {
    1 << (size - 1).ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 6962 §2.1, as written there.
    fn model_root(leaves: &[LedgerHash]) -> LedgerHash {
        match leaves {
            [] => empty_root(),
            [one] => *one,
            _ => {
                let (left, right) = leaves.split_at(split(leaves.len() as u64) as usize);
                node(&model_root(left), &model_root(right))
            }
        }
    }

    fn leaves(n: u64) -> Vec<LedgerHash> {
        (0..n).map(|i| leaf(&i.to_be_bytes())).collect()
    }

    fn proof(leaves: &[LedgerHash], spans: &[Span]) -> Vec<LedgerHash> {
        prove(spans, |at| {
            let start = (at.index << at.level) as usize;
            Ok::<_, ()>(model_root(&leaves[start..start + (1 << at.level)]))
        })
        .expect("every leaf is here")
    }

    #[test]
    fn the_running_root_is_the_root_of_the_rfc() {
        let all = leaves(70);
        let mut range = CompactRange::new();
        for n in 0..70 {
            assert_eq!(range.root(), model_root(&all[..n]));
            let again = CompactRange::from_peaks(range.size(), range.peaks().to_vec());
            assert_eq!(again.as_ref(), Some(&range));
            range.append(all[n]);
        }
    }

    #[test]
    fn every_leaf_is_proved_and_no_other_passes() {
        let all = leaves(35);
        for size in 1..=35u64 {
            let root = model_root(&all[..size as usize]);
            for index in 0..size {
                let proof = proof(&all, &inclusion_spans(index, size));
                let check = |i, leaf| check_inclusion(leaf, i, size, &proof, &root);
                assert!(check(index, &all[index as usize]));
                assert!(!check(index, &all[(index as usize + 1) % 35]));
                assert!(!check(size, &all[index as usize]));
                assert!(!check(index ^ 1, &all[index as usize]), "{index} of {size}");
            }
        }
    }

    #[test]
    fn every_prefix_is_proved_and_no_rewriting_passes() {
        let all = leaves(35);
        for new in 0..=35u64 {
            for old in 0..=new {
                let (was, is) =
                    (model_root(&all[..old as usize]), model_root(&all[..new as usize]));
                let proof = proof(&all, &consistency_spans(old, new));
                assert!(check_consistency(old, &was, new, &is, &proof), "{old} of {new}");
                let other = leaf(b"other");
                assert!(!check_consistency(old, &other, new, &is, &proof), "{old} of {new}");
                if old > 0 {
                    assert!(!check_consistency(old, &was, new, &other, &proof), "{old} of {new}");
                }
                let mut long = proof.clone();
                long.push(other);
                assert!(!check_consistency(old, &was, new, &is, &long));
            }
        }
    }

    proptest! {
        #[test]
        fn a_span_is_the_union_of_its_nodes(start in 0u64..1 << 40, len in 1u64..1 << 40) {
            let span = Span { start, end: start + len };
            let mut at = start;
            for n in span.nodes() {
                prop_assert_eq!(n.index << n.level, at);
                at += 1 << n.level;
            }
            prop_assert_eq!(at, span.end);
        }
    }
}
