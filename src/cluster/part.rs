//! Whether a read takes a chunk whole, or only the frames that hold its bytes.
//!
//! Owns: that one decision, before anything of the chunk is known and again with its header.
//! Never: sees bytes, asks anybody, or decides whether an answer is right.
//! Invariant: it only chooses what is asked for; the bytes that a reader gets are the same.

use crate::file::{BUCKET, Extent};
use crate::seal::FRAME_BYTES;
use std::ops::Range;

/// A chunk of up to so many frames costs little more than one of them. Every other is longer than
/// what a file is packed with.
const FEW_FRAMES: usize = 4;
/// From this part of a chunk on the rest is fetched as well: so much of the cache belongs to it
/// already, and each frame by itself costs a round trip.
const QUARTER: usize = 4;
/// Whoever reads so many places of a pack reads a directory.
const PLACES_IN_A_PACK: usize = 2;

/// How the bytes of one file are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reading {
    /// In their order: what follows is wanted next.
    Onward,
    /// Here and there in a long file.
    Scattered,
    /// A file so small that it may share a chunk with others, which may be wanted next.
    Small,
}

/// What a read wants of one chunk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Want {
    /// Bytes of the chunk's plaintext; at least one.
    pub range: Range<u32>,
    reading: Reading,
    /// Nothing says that the chunk has more than this.
    alone: bool,
}

impl Want {
    /// The bytes `range` of a file, which lie in `extent`. Of a packed member all is needed.
    pub fn of(extent: &Extent, range: Range<u64>, reading: Reading) -> Self {
        let part = extent.part(range);
        let len = extent.packed.map_or(part.len, |packed| packed.stored_len);
        // The first piece of a longer chunk ends where its file's bucket does.
        let cut = extent.end().is_multiple_of(BUCKET);
        let short = (extent.len as usize) <= FEW_FRAMES * FRAME_BYTES;
        let alone = extent.at == 0 && extent.packed.is_none() && short && !cut;
        Self { range: part.at..part.at.saturating_add(len), reading, alone }
    }

    /// What can be told without knowing the chunk.
    pub fn is_whole(&self) -> bool {
        let long = self.range.len() > FEW_FRAMES * FRAME_BYTES;
        self.reading == Reading::Onward || self.alone || long
    }

    /// The frames that hold it.
    pub fn frames(&self) -> Range<usize> {
        self.range.start as usize / FRAME_BYTES..(self.range.end as usize).div_ceil(FRAME_BYTES)
    }

    /// The same with the header known: a chunk of `count` frames, of which some are `held`.
    pub fn is_whole_of(&self, count: usize, held: impl Fn(usize) -> bool) -> bool {
        let wanted = self.frames();
        if self.is_whole() || count <= FEW_FRAMES || wanted.len() * QUARTER >= count {
            return true;
        }
        let places = (0..count).filter(|frame| held(*frame)).count();
        let follows = wanted.start.checked_sub(1).is_some_and(&held);
        match self.reading {
            Reading::Onward => true,
            Reading::Scattered => places * QUARTER >= count,
            Reading::Small => follows || places >= PLACES_IN_A_PACK,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::Packed;
    use crate::id::ChunkId;
    use crate::seal::{Codec, PLAINTEXT_BYTES_MAX};
    use proptest::prelude::*;

    const MIB: u32 = 1 << 20;

    fn extent(offset: u64, at: u32, len: u32) -> Extent {
        Extent { offset, len, chunk: ChunkId([1; 32]), at, packed: None }
    }

    /// 4 KiB at the beginning of `extent`.
    fn want(extent: &Extent, reading: Reading) -> Want {
        Want::of(extent, extent.offset..extent.offset + 4096, reading)
    }

    fn scattered(frame: u32) -> Want {
        want(&extent(0, frame * FRAME_BYTES as u32, 8192), Reading::Scattered)
    }

    #[test]
    fn who_reads_onward_takes_whole_chunks() {
        let want = want(&extent(0, 500_000, 8192), Reading::Onward);
        assert!(want.is_whole() && want.is_whole_of(16, |_| false));
    }

    #[test]
    fn a_scattered_read_takes_its_frame_until_a_quarter_of_the_chunk_is_here() {
        let want = scattered(9);
        assert_eq!((want.frames(), want.is_whole()), (9..10, false));
        assert!(!want.is_whole_of(16, |_| false));
        assert!(!want.is_whole_of(16, |frame| frame < 3));
        assert!(want.is_whole_of(16, |frame| frame < 4));
        assert!(!want.is_whole_of(64, |frame| frame == 8), "a neighbour alone says nothing");
    }

    #[test]
    fn what_a_quarter_of_a_chunk_holds_is_read_whole() {
        let range = |len| Want::of(&extent(0, 0, MIB), 0..len, Reading::Scattered);
        assert!(!range(3 * 65_536).is_whole_of(16, |_| false));
        assert!(range(3 * 65_536 + 1).is_whole_of(16, |_| false));
        assert!(range(4 * 65_536 + 1).is_whole(), "however long the chunk");
        assert!(scattered(3).is_whole_of(4, |_| false), "a short chunk");
    }

    #[test]
    fn the_third_place_in_a_pack_or_the_next_one_brings_the_rest() {
        let want = want(&extent(0, 9 * 65_536, 8192), Reading::Small);
        assert!(!want.is_whole() && !want.is_whole_of(64, |_| false));
        assert!(!want.is_whole_of(64, |frame| frame == 30));
        assert!(want.is_whole_of(64, |frame| frame == 8), "the files are read in their order");
        assert!(want.is_whole_of(64, |frame| frame == 30 || frame == 50));
    }

    #[test]
    fn a_short_extent_at_the_beginning_of_its_chunk_is_taken_for_all_of_it() {
        assert!(want(&extent(8192, 0, 4096), Reading::Scattered).is_whole());
        let cut = extent(u64::from(MIB - 4096), 0, 4096);
        assert!(!want(&cut, Reading::Scattered).is_whole(), "its bucket ends there");
        let long = extent(0, 0, 300_000);
        assert!(!want(&long, Reading::Scattered).is_whole());
    }

    #[test]
    fn a_packed_member_is_wanted_whole() {
        let packed = Some(Packed { stored_len: 70_000, codec: Codec::Zstd, skip: 0 });
        let extent = Extent { packed, ..extent(0, 60_000, 100_000) };
        let want = Want::of(&extent, 90_000..90_001, Reading::Small);
        assert_eq!((want.range.clone(), want.frames()), (60_000..130_000, 0..2));
    }

    proptest! {
        #[test]
        fn the_frames_hold_the_bytes_and_no_other_frame_does(
            at in 0..PLAINTEXT_BYTES_MAX as u32 - MIB, from in 0u64..1 << 20, len in 1u64..1 << 20,
        ) {
            let to = (from + len).min(1 << 20);
            let Want { range, .. } = Want::of(&extent(0, at, MIB), from..to, Reading::Scattered);
            prop_assert_eq!(range.clone(), at + from as u32..at + to as u32);
            let frames = Want { range: range.clone(), ..scattered(0) }.frames();
            let (first, last) = (frames.start * FRAME_BYTES, (frames.end - 1) * FRAME_BYTES);
            let holds = |frame: usize, byte: u32| {
                (frame..frame + FRAME_BYTES).contains(&(byte as usize))
            };
            prop_assert!(holds(first, range.start) && holds(last, range.end - 1));
        }

        /// However a chunk is read, at most a quarter of it is asked for frame by frame.
        #[test]
        fn a_chunk_costs_at_most_a_quarter_more_than_itself(
            count in 1usize..65, reads in prop::collection::vec(0.0..1.0, 0..200),
            reading in prop::sample::select(vec![Reading::Scattered, Reading::Small]),
        ) {
            let mut held = std::collections::BTreeSet::new();
            for read in reads {
                let frame = (read * count as f64) as u32;
                let want = want(&extent(0, frame * FRAME_BYTES as u32 + 1, 8192), reading);
                if held.contains(&(frame as usize)) {
                    continue;
                }
                if want.is_whole_of(count, |frame| held.contains(&frame)) {
                    break;
                }
                held.insert(frame as usize);
            }
            prop_assert!(held.len() * QUARTER <= count.next_multiple_of(QUARTER));
        }
    }
}
