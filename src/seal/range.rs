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
use bao_tree::io::sync::{DecodeResponseIter, encode_ranges};
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

/// A reply for `range` of the stored `bytes` of a chunk.
pub fn prove(bytes: &[u8], range: Range<u64>) -> Result<Vec<u8>, RangeError> {
    let len = bytes.len() as u64;
    let ranges = inside(&range, len)?;
    let tree = PreOrderMemOutboard::create(bytes, GROUP);
    let mut out = Vec::with_capacity((range.end - range.start) as usize + 34 * 1024);
    out.extend_from_slice(&len.to_le_bytes());
    encode_ranges(bytes, &tree, &ranges, &mut out).expect("reading and writing memory succeeds");
    Ok(out)
}

/// The bytes of `range`, if `reply` proves that they are the chunk's.
pub fn check(chunk: &ChunkId, range: Range<u64>, reply: &[u8]) -> Result<Vec<u8>, RangeError> {
    let (len, mut encoded) = reply.split_first_chunk::<8>().ok_or(RangeError::Length(*chunk))?;
    let len = u64::from_le_bytes(*len);
    let ranges = inside(&range, len)?;
    let mut out = vec![0; (range.end - range.start) as usize];
    let mut filled = 0;
    let tree = BaoTree::new(len, GROUP);
    for item in DecodeResponseIter::new(chunk.0.into(), tree, &mut encoded, &ranges) {
        let BaoContentItem::Leaf(leaf) = item.map_err(|error| refusal(*chunk, &error))? else {
            continue;
        };
        let from = range.start.max(leaf.offset);
        let to = range.end.min(leaf.offset + leaf.data.len() as u64);
        if from < to {
            let part = &leaf.data[(from - leaf.offset) as usize..(to - leaf.offset) as usize];
            out[(from - range.start) as usize..][..part.len()].copy_from_slice(part);
            filled += part.len();
        }
    }
    if filled != out.len() || !encoded.is_empty() {
        return Err(RangeError::Length(*chunk));
    }
    Ok(out)
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
