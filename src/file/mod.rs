//! A file's bytes between `write` and the chunks that hold them.
//!
//! Owns: unsealed byte ranges, where a stream is cut, packs of small data, extents and the one
//! rule of how they overlap.
//! Never: seals or stores; a caller cuts here and seals with `seal`.
//! Invariant: the extents of a file never overlap and never cross one of its 1 MiB buckets.

mod dirty;
mod extent;
mod pack;
mod split;

pub use dirty::Dirty;
pub use extent::{BUCKET, Change, Extent, Packed, overlay, split_at_buckets};
pub use pack::{Pack, Place};
pub use split::Cutter;

/// Whether there is nothing in `bytes` but zeros, so that a hole can stand for them.
pub fn all_zero(bytes: &[u8]) -> bool {
    // Blocks let the compiler use wide registers, and most data says no in the first one.
    let (blocks, rest) = bytes.as_chunks::<256>();
    blocks.iter().all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_zero_only_if_every_byte_is() {
        for len in [0, 1, 255, 256, 257, 70_000] {
            let mut bytes = vec![0; len];
            assert!(all_zero(&bytes));
            for at in [0, len / 2, len.saturating_sub(1)] {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = 1;
                    assert!(!all_zero(&bytes), "{at} of {len}");
                    bytes[at] = 0;
                }
            }
        }
    }
}
