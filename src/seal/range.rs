//! Proofs that a range of a stored chunk's bytes belongs to its address.
//!
//! Owns: the bytes of a ranged reply: the BLAKE3 (Bao) path from the range up to the address.
//! Never: opens anything; a peer proves and a reader checks without keys.
//! Invariant: `check` gives the whole range that was asked for, each byte of it under the
//! address, or an error. A false length in a reply can only make it fail: a leaf is bound to its
//! place by its counter, and every parent on the way by its hash.
//!
//! ```text
//! 0  length of the whole chunk u64 little-endian
//! 8  pre-order walk over every subtree that holds a BLAKE3 chunk of the range: one of at most
//!    16 KiB that lies in it whole is its bytes, any other both child hashes [64] and these
//! ```

use crate::id::ChunkId;
use crate::seal::CHUNK_BYTES_MAX;
use bao_tree::io::BaoContentItem;
use bao_tree::io::outboard::PreOrderMemOutboard;
use bao_tree::io::sync::{DecodeResponseIter, ReadAt, encode_ranges_validated};
use bao_tree::{BaoTree, BlockSize, ChunkNum, ChunkRanges};
use std::ops::Range;

/// 2^4 BLAKE3 chunks of 1 KiB: smaller groups would cost the prover SIMD width, larger ones send
/// more bytes around the range.
const GROUP: BlockSize = BlockSize::from_chunk_log(4);

/// Why a range is not proved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    #[error("bytes {}..{} of a chunk of {len}", range.start, range.end)]
    Outside { range: Range<u64>, len: u64 },
    #[error("chunk {0}: the reply ends too early or has bytes left over")]
    Length(ChunkId),
    #[error("chunk {0}: the reply's bytes do not belong to this address")]
    Tampered(ChunkId),
}

fn inside(range: &Range<u64>, len: u64) -> Result<ChunkRanges, RangeError> {
    if range.start >= range.end || range.end > len || len > CHUNK_BYTES_MAX as u64 {
        return Err(RangeError::Outside { range: range.clone(), len });
    }
    Ok(ChunkRanges::from(ChunkNum(range.start / 1024)..ChunkNum(range.end.div_ceil(1024))))
}

/// What a prover keeps of a chunk, so that a reply costs the bytes around its range and not all of
/// them: 64 bytes for each 16 KiB.
pub struct Outline {
    tree: PreOrderMemOutboard,
    len: u64,
}

impl Outline {
    pub fn of(bytes: &[u8]) -> Self {
        let tree = PreOrderMemOutboard::create(bytes, GROUP);
        Self { tree, len: bytes.len() as u64 }
    }

    /// What it takes of memory.
    pub fn weight(&self) -> usize {
        self.tree.data.len() + size_of::<Self>()
    }

    /// The bytes that it takes to prove `range`: whole groups.
    pub fn around(&self, range: &Range<u64>) -> Result<Range<u64>, RangeError> {
        inside(range, self.len)?;
        let group = GROUP.bytes() as u64;
        Ok(range.start / group * group..range.end.next_multiple_of(group).min(self.len))
    }

    /// A reply for `range`, out of `around(range)` of the stored bytes, which are checked.
    pub fn prove(
        &self,
        chunk: &ChunkId,
        range: &Range<u64>,
        around: &[u8],
    ) -> Result<Vec<u8>, RangeError> {
        let ranges = inside(range, self.len)?;
        let place = self.around(range)?;
        if around.len() as u64 != place.end - place.start {
            return Err(RangeError::Length(*chunk));
        }
        let mut out = Vec::with_capacity((range.end - range.start) as usize + 34 * 1024);
        out.extend_from_slice(&self.len.to_le_bytes());
        let around = Around { start: place.start, bytes: around };
        encode_ranges_validated(around, &self.tree, &ranges, &mut out)
            .map_err(|_| RangeError::Tampered(*chunk))?;
        Ok(out)
    }
}

/// Some bytes of a chunk, at their place in it.
struct Around<'a> {
    start: u64,
    bytes: &'a [u8],
}

impl ReadAt for Around<'_> {
    fn read_at(&self, at: u64, out: &mut [u8]) -> std::io::Result<usize> {
        let from = at.checked_sub(self.start).map_or(self.bytes.len(), |from| from as usize);
        let here = self.bytes.get(from..).unwrap_or_default();
        let len = here.len().min(out.len());
        out[..len].copy_from_slice(&here[..len]);
        Ok(len)
    }
}

/// A reply for `range` of the stored `bytes` of a chunk.
pub fn prove(bytes: &[u8], range: Range<u64>) -> Result<Vec<u8>, RangeError> {
    let outline = Outline::of(bytes);
    let place = outline.around(&range)?;
    let around = &bytes[place.start as usize..place.end as usize];
    outline.prove(&ChunkId(*outline.tree.root.as_bytes()), &range, around)
}

/// The bytes of `range`, if `reply` proves that they are the chunk's.
pub fn check(chunk: &ChunkId, range: Range<u64>, reply: &[u8]) -> Result<Vec<u8>, RangeError> {
    let reply = Reply::parse(chunk, &range, reply)?;
    let mut out = vec![0; (range.end - range.start) as usize];
    let mut filled = 0;
    reply.leaves(|offset, data| {
        let from = range.start.max(offset);
        let to = range.end.min(offset + data.len() as u64);
        if from < to {
            let part = &data[(from - offset) as usize..(to - offset) as usize];
            out[(from - range.start) as usize..][..part.len()].copy_from_slice(part);
            filled += part.len();
        }
    })?;
    if filled != out.len() {
        return Err(RangeError::Length(*chunk));
    }
    Ok(out)
}

/// What a reader asks for who knows nothing of a chunk yet.
pub const HEAD: Range<u64> = 0..1;
/// No data chunk has a longer header.
pub const HEAD_BYTES: usize = 1024;

/// The first `HEAD_BYTES` of a chunk, or all of one that is shorter, if `reply`, to `HEAD`, proves
/// that they are the chunk's: the first byte is proved by the hash of so many.
pub fn check_head(chunk: &ChunkId, reply: &[u8]) -> Result<Vec<u8>, RangeError> {
    let mut out = Vec::with_capacity(HEAD_BYTES);
    Reply::parse(chunk, &HEAD, reply)?.leaves(|_, data| out.extend_from_slice(data))?;
    match out.is_empty() {
        true => Err(RangeError::Length(*chunk)),
        false => Ok(out),
    }
}

/// A reply, of which nothing is proved yet.
struct Reply<'a> {
    chunk: ChunkId,
    len: u64,
    ranges: ChunkRanges,
    encoded: &'a [u8],
}

impl<'a> Reply<'a> {
    fn parse(chunk: &ChunkId, range: &Range<u64>, reply: &'a [u8]) -> Result<Self, RangeError> {
        let (len, encoded) = reply.split_first_chunk::<8>().ok_or(RangeError::Length(*chunk))?;
        let len = u64::from_le_bytes(*len);
        let ranges = inside(range, len)?;
        Ok(Self { chunk: *chunk, len, ranges, encoded })
    }

    /// Hands over each proved leaf, with its place.
    fn leaves(mut self, mut each: impl FnMut(u64, &[u8])) -> Result<(), RangeError> {
        let tree = BaoTree::new(self.len, GROUP);
        let root = self.chunk.0.into();
        for item in DecodeResponseIter::new(root, tree, &mut self.encoded, &self.ranges) {
            let item = item.map_err(|error| refusal(self.chunk, &error))?;
            if let BaoContentItem::Leaf(leaf) = item {
                each(leaf.offset, &leaf.data);
            }
        }
        // Whatever is behind the last leaf was proved by nothing.
        if self.encoded.is_empty() { Ok(()) } else { Err(RangeError::Length(self.chunk)) }
    }
}

fn refusal(chunk: ChunkId, error: &bao_tree::io::DecodeError) -> RangeError {
    use bao_tree::io::DecodeError::{LeafHashMismatch, ParentHashMismatch};
    match error {
        ParentHashMismatch(_) | LeafHashMismatch(_) => RangeError::Tampered(chunk),
        _ => RangeError::Length(chunk),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::address;
    use proptest::prelude::*;

    fn stored(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    #[test]
    fn a_proved_range_is_the_chunks_own_bytes() {
        for len in [1, 1024, 16 * 1024, 16 * 1024 + 1, 300_000] {
            let bytes = stored(len);
            let chunk = address(&bytes);
            for range in [0..1, 0..len, len - 1..len, len / 3..len / 2 + 1] {
                let asked = range.start as u64..range.end as u64;
                let reply = prove(&bytes, asked.clone()).expect("inside");
                assert!(reply.len() <= range.len() + 34 * 1024, "{len} {range:?}");
                assert_eq!(check(&chunk, asked, &reply).as_deref(), Ok(&bytes[range]));
            }
        }
    }

    #[test]
    fn a_prover_who_reads_only_around_a_range_sends_the_same_and_finds_a_bad_copy() {
        let bytes = stored(300_000);
        let chunk = address(&bytes);
        let outline = Outline::of(&bytes);
        for range in [0..1, 20_000..20_001, 16_384..32_768, 16_383..32_769, 299_999..300_000] {
            let place = outline.around(&range).expect("inside");
            let mut around = bytes[place.start as usize..place.end as usize].to_vec();
            assert!(around.len() as u64 <= range.end - range.start + 2 * 16_384, "{range:?}");
            let reply = outline.prove(&chunk, &range, &around);
            assert_eq!(reply, prove(&bytes, range.clone()), "{range:?}");
            around[0] ^= 1;
            assert_eq!(outline.prove(&chunk, &range, &around), Err(RangeError::Tampered(chunk)));
        }
        assert!(outline.around(&(0..300_001)).is_err());
        assert!(outline.weight() < bytes.len() / 200);
    }

    #[test]
    fn the_head_of_a_chunk_is_proved_whole_by_its_first_byte() {
        for len in [1, 52, 1024, 1025, 20_000, 300_000] {
            let bytes = stored(len);
            let chunk = address(&bytes);
            let reply = prove(&bytes, HEAD).expect("inside");
            assert!(reply.len() < 3 * HEAD_BYTES, "{len}: {}", reply.len());
            assert_eq!(check_head(&chunk, &reply).as_deref(), Ok(&bytes[..len.min(HEAD_BYTES)]));
            for at in 8..reply.len() {
                let mut bent = reply.clone();
                bent[at] ^= 1;
                assert!(check_head(&chunk, &bent).is_err(), "{len} {at}");
                assert!(check_head(&chunk, &reply[..at]).is_err(), "{len} {at}");
            }
        }
    }

    #[test]
    fn a_range_outside_the_chunk_is_refused() {
        let bytes = stored(5000);
        for range in [0..5001, 5000..5001, 7..7] {
            assert!(prove(&bytes, range).is_err());
        }
    }

    #[test]
    fn a_false_length_never_moves_or_shortens_bytes() {
        let bytes = stored(200_000);
        let chunk = address(&bytes);
        let reply = prove(&bytes, 100_000..150_000).expect("inside");
        for len in [150_000, 199_999, 200_001, 1 << 20, u64::MAX, 0] {
            let mut bent = reply.clone();
            bent[..8].copy_from_slice(&u64::to_le_bytes(len));
            match check(&chunk, 100_000..150_000, &bent) {
                Ok(got) => assert_eq!(got, &bytes[100_000..150_000], "{len}"),
                Err(_) => continue,
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_bent_cut_or_longer_reply_is_never_believed(
            len in 1usize..200_000, a in 0.0..1.0, b in 0.0..1.0, at in 0.0..1.0, cut in any::<bool>(),
        ) {
            let bytes = stored(len);
            let chunk = address(&bytes);
            let (a, b) = ((a * len as f64) as u64, (b * len as f64) as u64);
            let range = a.min(b)..a.max(b) + 1;
            let reply = prove(&bytes, range.clone()).expect("inside");
            let at = 8 + (at * (reply.len() - 8) as f64) as usize;
            let mut bent = reply.clone();
            if cut { bent.truncate(at) } else { bent[at] ^= 1 }
            prop_assert!(check(&chunk, range.clone(), &bent).is_err());
            let mut long = reply;
            long.push(0);
            prop_assert!(check(&chunk, range, &long).is_err());
        }
    }
}
