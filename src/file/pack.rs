//! Packs: small pieces of many files in one data chunk, each compressed alone.
//!
//! Owns: the plaintext of a pack while it fills, and where each member lies in it.
//! Never: knows whose bytes a member is; the caller keeps that and makes the extents.
//! Invariant: a member can be read with the pack's frames that hold it, and no others.

use crate::file::{Extent, Packed};
use crate::id::ChunkId;
use crate::seal::{Codec, MEMBER_BYTES_MAX, PLAINTEXT_BYTES_MAX, squeeze};

/// A pack that fills. It is sealed with codec `Stored`: what compresses is compressed in it.
pub struct Pack {
    plaintext: Vec<u8>,
    codec: Codec,
    limit: usize,
}

/// Where a member lies in its pack, before the pack has an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    pub at: u32,
    /// The member's own length, decompressed.
    pub len: u32,
    packed: Option<Packed>,
}

impl Pack {
    /// An empty pack of at most `limit` bytes, whose members are compressed by `codec`.
    pub fn new(limit: usize, codec: Codec) -> Self {
        assert!(limit <= PLAINTEXT_BYTES_MAX, "a pack is a chunk");
        Self { plaintext: Vec::new(), codec, limit }
    }

    pub fn is_empty(&self) -> bool {
        self.plaintext.is_empty()
    }

    pub fn len(&self) -> usize {
        self.plaintext.len()
    }

    /// Adds one member of at least one byte and at most 1 MiB. `None` when the pack is too full
    /// for it: seal this pack and add it to the next.
    pub fn add(&mut self, member: &[u8]) -> Option<Place> {
        assert!((1..=MEMBER_BYTES_MAX).contains(&member.len()), "a member is small, not empty");
        let squeezed = match self.codec {
            Codec::Stored => None,
            Codec::Zstd => squeeze(member),
        };
        let stored = squeezed.as_deref().unwrap_or(member);
        // One member that is larger than the limit still makes a pack of its own.
        if self.plaintext.len() + stored.len() > self.limit && !self.is_empty() {
            return None;
        }
        let at = self.plaintext.len() as u32;
        self.plaintext.extend_from_slice(stored);
        let packed = squeezed.is_some().then_some(Packed {
            stored_len: stored.len() as u32,
            codec: Codec::Zstd,
            skip: 0,
        });
        Some(Place { at, len: member.len() as u32, packed })
    }

    /// The plaintext to seal as one data chunk with codec `Stored`.
    pub fn finish(self) -> Vec<u8> {
        self.plaintext
    }
}

impl Place {
    /// The extent of a member that is a file's bytes from `offset` on, once the pack is sealed
    /// as `chunk`. It still has to be cut at the file's buckets. A member that did not compress
    /// is a plain extent, as if it had a chunk of its own.
    pub fn extent(&self, offset: u64, chunk: ChunkId) -> Extent {
        Extent { offset, len: self.len, chunk, at: self.at, packed: self.packed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::split_at_buckets;
    use crate::seal::expand;

    #[test]
    fn every_member_is_read_back_through_its_extents() {
        let mut noise = vec![0; 3000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let members = [b"words and words and words ".repeat(90), noise, b"x".to_vec()];
        let mut pack = Pack::new(64 << 10, Codec::Zstd);
        let places: Vec<Place> = members.iter().map(|m| pack.add(m).expect("room")).collect();
        let plaintext = pack.finish();
        assert!(plaintext.len() < 4000);
        for (member, place) in members.iter().zip(places) {
            // Begins 100 bytes before a bucket's end, so that it is cut there.
            let mut back = Vec::new();
            for e in split_at_buckets(place.extent((1 << 20) - 100, ChunkId([0; 32]))) {
                assert_eq!(Extent::decode(e.offset, &e.encode()), Ok(e));
                let (at, len) = (e.at as usize, e.len as usize);
                match e.packed {
                    None => back.extend_from_slice(&plaintext[at..at + len]),
                    Some(p) => {
                        let (stored, skip) = (&plaintext[at..at + p.stored_len as usize], p.skip);
                        let range = skip as usize..skip as usize + len;
                        back.extend(expand(p.codec, stored, range).expect("own member"));
                    }
                }
            }
            assert_eq!(&back, member);
        }
    }

    #[test]
    fn a_full_pack_takes_no_more() {
        let mut pack = Pack::new(10, Codec::Stored);
        assert!(pack.add(&[1; 20]).is_some(), "the first member always fits");
        assert!(pack.add(&[1]).is_none());
    }
}
