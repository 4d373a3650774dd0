//! Where a run of a file's bytes is stored.
//!
//! Owns: the extent and its strict bytes (the value of key `e/ino/offset`).
//! Invariant: an extent never crosses a bucket boundary of its file, so that a write changes only
//! keys of the buckets that it tags.

use crate::codec::{DecodeError, Reader, Writer};
use crate::id::ChunkId;
use crate::seal::Codec;
use serde::{Deserialize, Serialize};

/// Files are certified in buckets of this many bytes.
pub const BUCKET: u64 = 1 << 20;

/// `[offset, offset + len)` of a file is `[at, at + len)` of a chunk's plaintext.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Extent {
    /// In the file; it is part of the key, not of the value.
    pub offset: u64,
    pub len: u32,
    pub chunk: ChunkId,
    /// Offset in the chunk's plaintext.
    pub at: u32,
    pub packed: Option<Packed>,
}

/// The part of a pack, `[at, at + stored_len)`, that was compressed alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Packed {
    pub stored_len: u32,
    pub codec: Codec,
    /// How far into the part's plain form this extent begins.
    pub skip: u32,
}

const VERSION: u8 = 1;

impl Extent {
    /// `version 1 | len | chunk [32] | at | packed 0 or 1 | stored length | codec | skip`
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u8(VERSION).u32(self.len).raw(&self.chunk.0).u32(self.at);
        match self.packed {
            None => out.u8(0),
            Some(p) => out.u8(1).u32(p.stored_len).u8(p.codec as u8).u32(p.skip),
        };
        out.finish()
    }

    /// Strict: an extent of nothing, or one that crosses its bucket, is refused.
    pub fn decode(offset: u64, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Reader::new(bytes);
        match input.u8("extent version")? {
            VERSION => (),
            other => return Err(DecodeError::Version(other)),
        }
        let len = input.u32("extent length")?;
        let chunk = ChunkId(input.array("extent chunk")?);
        let at = input.u32("extent place")?;
        let packed = match input.u8("packed mark")? {
            0 => None,
            1 => Some(Packed {
                stored_len: input.u32("stored length")?,
                codec: match input.u8("codec")? {
                    0 => Codec::Stored,
                    1 => Codec::Zstd,
                    _ => return Err(DecodeError::Unknown("codec")),
                },
                skip: input.u32("skip")?,
            }),
            _ => return Err(DecodeError::NotCanonical("packed mark")),
        };
        input.finish()?;
        let end = offset.checked_add(u64::from(len)).ok_or(DecodeError::TooLarge("extent"))?;
        if len == 0 || offset / BUCKET != (end - 1) / BUCKET {
            return Err(DecodeError::NotCanonical("extent"));
        }
        Ok(Self { offset, len, chunk, at, packed })
    }
}
