//! Extents: which bytes of which chunk a range of a file is; and the one rule of overlap.
//!
//! Owns: an extent's bytes as a value of key `e/ino/offset`, cutting at buckets, `overlay`.
//! Never: knows a file's size; what lies behind it is the caller's to cut away.
//! Invariant: an extent has at least one byte and stays within one 1 MiB bucket of its file.
//!
//! ```text
//!  0  version u8 = 1
//!  1  form u8 (0 plain; 1 packed, member stored; 2 packed, member zstd)
//!  2  len u32
//!  6  chunk [32]
//! 38  at u32: where the bytes, or the packed member, begin in the chunk's plaintext
//! 42  packed only: stored length of the member u32 | bytes to skip in it u32
//! ```

use crate::codec::{DecodeError, Reader, Writer};
use crate::id::ChunkId;
use crate::seal::{Codec, MEMBER_BYTES_MAX, PLAINTEXT_BYTES_MAX};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Writes are tagged by the bucket that they touch, so an extent belongs to one bucket only.
pub const BUCKET: u64 = 1 << 20;

const VERSION: u8 = 1;

/// Bytes `[offset, offset + len)` of a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Extent {
    pub offset: u64,
    pub len: u32,
    pub chunk: ChunkId,
    /// Where they begin in the chunk's plaintext; of a packed extent, where its member begins.
    pub at: u32,
    pub packed: Option<Packed>,
}

/// One member of a pack: `[at, at + stored_len)` of the pack's plaintext, compressed alone.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Packed {
    pub stored_len: u32,
    pub codec: Codec,
    /// So many bytes into the member's decompressed form the extent begins.
    pub skip: u32,
}

/// What to do to a file's extents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    Delete(u64),
    Put(Extent),
}

impl Extent {
    /// One past its last byte in the file.
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.len)
    }

    /// The part of it that lies in `range`, which must meet it.
    pub fn part(&self, range: Range<u64>) -> Extent {
        let (from, to) = (range.start.max(self.offset), range.end.min(self.end()));
        assert!(from < to, "the range meets the extent");
        let step = (from - self.offset) as u32;
        let mut part = Extent { offset: from, len: (to - from) as u32, ..*self };
        match &mut part.packed {
            Some(packed) => packed.skip += step,
            None => part.at += step,
        }
        part
    }

    /// Whether these are numbers that a writer may have meant.
    fn check(&self) -> Result<(), DecodeError> {
        let len = u64::from(self.len);
        let last = self.offset.checked_add(len).ok_or(DecodeError::TooLarge("extent"))?;
        if len == 0 || (last - 1) / BUCKET != self.offset / BUCKET {
            return Err(DecodeError::NotCanonical("extent"));
        }
        let (stored, member) = match self.packed {
            None => (len, 0),
            Some(packed) => {
                let needed = u64::from(packed.skip) + len;
                let limit = match packed.codec {
                    Codec::Stored => u64::from(packed.stored_len),
                    Codec::Zstd => MEMBER_BYTES_MAX as u64,
                };
                if needed > limit || packed.stored_len == 0 {
                    return Err(DecodeError::TooLarge("range of a packed member"));
                }
                (u64::from(packed.stored_len), needed)
            }
        };
        if u64::from(self.at) + stored > PLAINTEXT_BYTES_MAX as u64 || member > BUCKET {
            return Err(DecodeError::TooLarge("extent's place in its chunk"));
        }
        Ok(())
    }

    /// The value; the offset is in the key.
    pub fn encode(&self) -> Vec<u8> {
        assert_eq!(self.check(), Ok(()), "extents are cut at buckets before they are written");
        let mut w = Writer::new();
        let form = match self.packed {
            None => 0,
            Some(packed) => packed.codec as u8 + 1,
        };
        w.u8(VERSION).u8(form).u32(self.len).raw(&self.chunk.0).u32(self.at);
        if let Some(packed) = self.packed {
            w.u32(packed.stored_len).u32(packed.skip);
        }
        w.finish()
    }

    pub fn decode(offset: u64, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        match r.u8("version")? {
            VERSION => {}
            other => return Err(DecodeError::Version(other)),
        }
        let form = r.u8("form of an extent")?;
        let len = r.u32("length of an extent")?;
        let chunk = ChunkId(r.array("chunk address")?);
        let at = r.u32("place in a chunk")?;
        let packed = match form {
            0 => None,
            _ => Some(Packed {
                codec: Codec::from_u8(form - 1).ok_or(DecodeError::Unknown("form of an extent"))?,
                stored_len: r.u32("stored length of a member")?,
                skip: r.u32("bytes to skip in a member")?,
            }),
        };
        r.finish()?;
        let extent = Extent { offset, len, chunk, at, packed };
        extent.check()?;
        Ok(extent)
    }
}

/// Cuts an extent of any length at the bucket boundaries of its file.
pub fn split_at_buckets(extent: Extent) -> Vec<Extent> {
    let mut parts = Vec::new();
    let mut from = extent.offset;
    while from < extent.end() {
        let to = (from / BUCKET + 1) * BUCKET;
        parts.push(extent.part(from..to));
        from = to;
    }
    parts
}

/// Makes room for `range` among the extents that meet it (others change nothing): the one rule
/// of overlap, for writing, punching and truncating. Heads and tails stay, the rest goes.
pub fn overlay(existing: &[Extent], range: Range<u64>) -> Vec<Change> {
    let mut changes = Vec::new();
    let met = |e: &&Extent| e.offset < range.end && e.end() > range.start;
    for extent in existing.iter().filter(met) {
        if extent.offset < range.start {
            changes.push(Change::Put(extent.part(extent.offset..range.start)));
        } else {
            changes.push(Change::Delete(extent.offset));
        }
        if extent.end() > range.end {
            changes.push(Change::Put(extent.part(range.end..extent.end())));
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What a byte of a file comes from: chunk, and the byte of it (or of its member).
    type Byte = Option<(u8, u32)>;

    fn extent(offset: u64, len: u32, chunk: u8, packed: bool) -> Extent {
        let (at, packed) = match packed {
            false => (5, None),
            true => (9, Some(Packed { stored_len: 30, codec: Codec::Zstd, skip: 5 })),
        };
        Extent { offset, len, chunk: ChunkId([chunk; 32]), at, packed }
    }

    fn paint(file: &mut [Byte], extent: &Extent) {
        let from = extent.packed.map_or(extent.at, |packed| packed.skip);
        for i in 0..extent.len {
            let byte = &mut file[extent.offset as usize + i as usize];
            assert_eq!(*byte, None, "extents do not overlap");
            *byte = Some((extent.chunk.0[0], from + i));
        }
    }

    proptest! {
        #[test]
        fn overlay_keeps_all_bytes_but_those_of_the_range(
            ops in prop::collection::vec((0u64..200, 1u32..50, any::<bool>(), 0..3), 1..30),
        ) {
            let mut extents: std::collections::BTreeMap<u64, Extent> = Default::default();
            let mut model: Vec<Byte> = vec![None; 256];
            for (i, (offset, len, packed, op)) in ops.into_iter().enumerate() {
                // 0 and 1 write, 2 punches; a truncation punches to the end.
                let end = if op == 2 && packed { u64::MAX } else { offset + u64::from(len) };
                let existing: Vec<Extent> = extents.values().copied().collect();
                for change in overlay(&existing, offset..end) {
                    match change {
                        Change::Delete(at) => prop_assert!(extents.remove(&at).is_some()),
                        Change::Put(e) => { extents.insert(e.offset, e); }
                    }
                }
                let range = offset as usize..end.min(256) as usize;
                model[range].fill(None);
                if op != 2 {
                    let new = extent(offset, len, i as u8, packed);
                    extents.insert(offset, new);
                    paint(&mut model, &new);
                }
                let mut file = vec![None; 256];
                extents.values().for_each(|e| paint(&mut file, e));
                prop_assert_eq!(&file, &model);
                for e in extents.values() {
                    prop_assert_eq!(Extent::decode(e.offset, &e.encode()), Ok(*e));
                }
            }
        }

        #[test]
        fn parts_at_buckets_are_the_whole(offset in 0u64..3 << 20, len in 1u32..4 << 20) {
            let whole = Extent { at: 0, ..extent(offset, len, 1, false) };
            let parts = split_at_buckets(whole);
            let mut next = offset;
            for part in &parts {
                prop_assert_eq!(part.offset, next);
                prop_assert_eq!(u64::from(part.at), next - offset);
                prop_assert_eq!(Extent::decode(part.offset, &part.encode()), Ok(*part));
                next = part.end();
            }
            prop_assert_eq!(next, whole.end());
        }
    }

    #[test]
    fn an_extent_in_another_form_is_refused() {
        let plain = extent(100, 20, 1, false);
        let packed = extent(100, 20, 1, true);
        let bend = |extent: &Extent, at: usize, value: u8| {
            let mut bytes = extent.encode();
            bytes[at] = value;
            Extent::decode(100, &bytes).is_err()
        };
        assert!(bend(&plain, 0, 2) && bend(&plain, 1, 3) && bend(&plain, 1, 1));
        assert!(bend(&plain, 2, 0), "no bytes");
        assert!(bend(&plain, 4, 0x10), "over a bucket's end");
        assert!(bend(&plain, 40, 0x40), "behind the largest chunk");
        assert!(bend(&packed, 1, 0) && bend(&packed, 42, 0), "left over; an empty member");
        assert!(bend(&packed, 48, 0x10), "skips more than a member holds");
        let stored = |stored_len| Packed { stored_len, codec: Codec::Stored, skip: 5 };
        let member = |len| Extent { packed: Some(stored(len)), ..packed };
        assert_eq!(Extent::decode(100, &member(25).encode()), Ok(member(25)));
        assert!(bend(&member(25), 42, 24), "ends behind its stored member");
        assert!(Extent::decode(u64::MAX, &plain.encode()).is_err());
        assert!(Extent::decode((1 << 20) - 19, &plain.encode()).is_err());
    }
}
