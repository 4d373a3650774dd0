//! The clear part of a chunk: what it is, what it refers to, where its frames lie.
//!
//! Owns: the header's bytes, its strict parsing, the arithmetic of frames.
//! Never: needs a key; peers parse headers to trace links.
//! Invariant: a parsed header encodes to the same bytes, and its frames fill the rest exactly.
//!
//! ```text
//!   0  magic "MCT4"
//!   4  kind u8 (1 data, 16 node, 17 payload, 18 manifest; below 16: data family)
//!   5  codec u8 (0 stored, 1 zstd)
//!   6  reserved u16 = 0
//!   8  key epoch u32
//!  12  siv [32]
//!  44  number of links n u32
//!  48  links n × [32], strictly ascending; a data chunk has none
//!   …  plaintext length u32, at most 4 MiB
//!   …  codec ≠ 0: table of max(1, ⌈length / 65,536⌉) u32: each frame's length with its tag
//! ```

use crate::codec::{DecodeError, Reader, Writer};
use crate::id::{ChunkId, Epoch};
use serde::{Deserialize, Serialize};
use std::ops::Range;

pub const PLAINTEXT_BYTES_MAX: usize = 4 << 20;
/// The plaintext of every frame but the last.
pub const FRAME_BYTES: usize = 64 << 10;
pub const TAG_BYTES: usize = 16;
/// Twice the most that a 1 MiB write set of plain extents can refer to.
pub const LINKS_MAX: usize = 1 << 16;
const FRAMES_MAX: usize = PLAINTEXT_BYTES_MAX / FRAME_BYTES;
/// No valid chunk is longer: bounds what is read from a disk or a peer.
pub const CHUNK_BYTES_MAX: usize =
    52 + LINKS_MAX * 32 + FRAMES_MAX * (4 + TAG_BYTES) + PLAINTEXT_BYTES_MAX;

const MAGIC: [u8; 4] = *b"MCT4";
pub(super) const SIV: Range<usize> = 12..44;

/// What a chunk holds. Data chunks are sealed under the data secret, the others under meta.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Kind {
    /// File bytes: a piece of one file, a pack of small ones, or a commit's inline chunk.
    Data = 1,
    /// A node of the metadata tree.
    Node = 16,
    /// The write set of a commit.
    Payload = 17,
    /// What a record about many chunks refers to.
    Manifest = 18,
}

impl Kind {
    pub fn is_data_family(self) -> bool {
        (self as u8) < 16
    }

    pub fn from_u8(byte: u8) -> Option<Self> {
        [Kind::Data, Kind::Node, Kind::Payload, Kind::Manifest]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// How the pieces of a plaintext are stored.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Codec {
    Stored = 0,
    Zstd = 1,
}

impl Codec {
    pub fn from_u8(byte: u8) -> Option<Self> {
        [Codec::Stored, Codec::Zstd].into_iter().find(|codec| *codec as u8 == byte)
    }
}

/// A chunk's header, parsed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Header {
    pub kind: Kind,
    /// `Stored` also where compression was asked for and gained too little.
    pub codec: Codec,
    pub epoch: Epoch,
    pub links: Vec<ChunkId>,
    pub plaintext_len: u32,
    pub(super) siv: [u8; 32],
    /// Where each frame ends, counted from the first frame; empty when `Stored`.
    pub(super) ends: Vec<u32>,
    pub(super) header_len: u32,
    /// BLAKE3 of the header's bytes: the associated data of every frame.
    pub(super) aad: [u8; 32],
}

/// How many frames a plaintext has; the empty one has an empty frame.
pub(super) fn frame_count(plaintext_len: usize) -> usize {
    plaintext_len.div_ceil(FRAME_BYTES).max(1)
}

/// The length of piece `i`.
pub(super) fn piece_len(plaintext_len: usize, i: usize) -> usize {
    (plaintext_len - i * FRAME_BYTES).min(FRAME_BYTES)
}

/// A header's bytes. `table` holds the frames' lengths with their tags, and is empty when stored.
pub(super) fn encode(
    kind: Kind,
    codec: Codec,
    epoch: Epoch,
    siv: &[u8; 32],
    links: &[ChunkId],
    plaintext_len: u32,
    table: &[u32],
) -> Vec<u8> {
    let mut w = Writer::new();
    w.raw(&MAGIC).u8(kind as u8).u8(codec as u8).u16(0).u32(epoch.0).raw(siv);
    w.u32(links.len() as u32);
    for link in links {
        w.raw(&link.0);
    }
    w.u32(plaintext_len);
    for len in table {
        w.u32(*len);
    }
    w.finish()
}

/// The length of a header with so many links and table entries.
pub(super) fn header_len(links: usize, table: usize) -> usize {
    52 + links * 32 + table * 4
}

impl Header {
    /// Parses the header at the beginning of `bytes`, which may end anywhere behind it.
    /// `Short` means that the header goes on behind the end.
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        if r.array("magic")? != MAGIC {
            return Err(DecodeError::Unknown("magic"));
        }
        let kind = Kind::from_u8(r.u8("kind")?).ok_or(DecodeError::Unknown("chunk kind"))?;
        let codec = Codec::from_u8(r.u8("codec")?).ok_or(DecodeError::Unknown("codec"))?;
        if r.u16("reserved bytes")? != 0 {
            return Err(DecodeError::NotCanonical("reserved field"));
        }
        let epoch = Epoch(r.u32("epoch")?);
        let siv = r.array("siv")?;
        let links = parse_links(&mut r, kind)?;
        let plaintext_len = r.u32("plaintext length")?;
        if plaintext_len as usize > PLAINTEXT_BYTES_MAX {
            return Err(DecodeError::TooLarge("plaintext length"));
        }
        let ends = match codec {
            Codec::Stored => Vec::new(),
            Codec::Zstd => parse_table(&mut r, plaintext_len as usize)?,
        };
        let header_len = bytes.len() - r.rest().len();
        let aad = *blake3::hash(&bytes[..header_len]).as_bytes();
        let header_len = header_len as u32;
        Ok(Self { kind, codec, epoch, links, plaintext_len, siv, ends, header_len, aad })
    }

    /// Parses the header of a whole chunk, whose frames must end where `bytes` end.
    pub fn of_chunk(bytes: &[u8]) -> Result<Self, DecodeError> {
        let header = Self::parse(bytes)?;
        match (bytes.len() as u64).cmp(&header.chunk_len()) {
            std::cmp::Ordering::Less => Err(DecodeError::Short("last frame")),
            std::cmp::Ordering::Equal => Ok(header),
            std::cmp::Ordering::Greater => Err(DecodeError::LeftOver),
        }
    }

    /// The length that the whole chunk must have.
    pub fn chunk_len(&self) -> u64 {
        let last = self.frame_count() - 1;
        self.frame(last).end as u64
    }

    /// The length of the header itself.
    pub fn header_len(&self) -> u64 {
        u64::from(self.header_len)
    }

    /// How many frames the chunk has.
    pub fn frame_count(&self) -> usize {
        frame_count(self.plaintext_len as usize)
    }

    pub(super) fn piece_len(&self, i: usize) -> usize {
        piece_len(self.plaintext_len as usize, i)
    }

    /// Where frame `i`, tag included, lies in the chunk.
    pub(super) fn frame(&self, i: usize) -> Range<usize> {
        let first = self.header_len as usize;
        match self.codec {
            Codec::Stored => {
                let start = first + i * (FRAME_BYTES + TAG_BYTES);
                start..start + self.piece_len(i) + TAG_BYTES
            }
            Codec::Zstd => {
                let start = if i == 0 { 0 } else { self.ends[i - 1] as usize };
                first + start..first + self.ends[i] as usize
            }
        }
    }
}

fn parse_links(r: &mut Reader<'_>, kind: Kind) -> Result<Vec<ChunkId>, DecodeError> {
    let count = r.u32("number of links")? as usize;
    if count > LINKS_MAX || count > 0 && kind.is_data_family() {
        return Err(DecodeError::TooLarge("number of links"));
    }
    let (links, rest) = r.raw(count * 32, "links")?.as_chunks::<32>();
    debug_assert!(rest.is_empty());
    let links: Vec<ChunkId> = links.iter().map(|link| ChunkId(*link)).collect();
    if !links.is_sorted_by(|a, b| a < b) {
        return Err(DecodeError::NotCanonical("list of links"));
    }
    Ok(links)
}

fn parse_table(r: &mut Reader<'_>, plaintext_len: usize) -> Result<Vec<u32>, DecodeError> {
    let mut end = 0;
    let mut ends = Vec::with_capacity(frame_count(plaintext_len));
    for i in 0..frame_count(plaintext_len) {
        let len = r.u32("frame table")?;
        // Exactly piece + tag means stored, less means compressed, and no compressed form of
        // anything is empty.
        let stored = piece_len(plaintext_len, i) + TAG_BYTES;
        let least = stored.min(TAG_BYTES + 1);
        if !(least..=stored).contains(&(len as usize)) {
            return Err(DecodeError::NotCanonical("frame table"));
        }
        end += len;
        ends.push(end);
    }
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(kind: Kind, codec: Codec, links: &[ChunkId], len: u32, table: &[u32]) -> Vec<u8> {
        encode(kind, codec, Epoch(1), &[5; 32], links, len, table)
    }

    #[test]
    fn a_header_tells_where_frames_lie() {
        let links = [ChunkId([1; 32]), ChunkId([2; 32])];
        let stored = Header::parse(&bytes(Kind::Node, Codec::Stored, &links, 65_537, &[]));
        let stored = stored.expect("good");
        assert_eq!(stored.links, links);
        assert_eq!(stored.frame(0), 116..116 + 65_552);
        assert_eq!(stored.frame(1), 116 + 65_552..116 + 65_552 + 17);
        let zstd = Header::parse(&bytes(Kind::Data, Codec::Zstd, &[], 65_537, &[100, 17]));
        let zstd = zstd.expect("good");
        assert_eq!((zstd.frame(0), zstd.frame(1)), (60..160, 160..177));
        assert_eq!(zstd.chunk_len(), 177);
    }

    #[test]
    fn a_header_in_another_form_is_refused() {
        let (one, two) = (ChunkId([1; 32]), ChunkId([2; 32]));
        let bad = [
            bytes(Kind::Data, Codec::Stored, &[one], 0, &[]),
            bytes(Kind::Node, Codec::Stored, &[two, one], 0, &[]),
            bytes(Kind::Node, Codec::Stored, &[one, one], 0, &[]),
            bytes(Kind::Data, Codec::Stored, &[], (4 << 20) + 1, &[]),
            bytes(Kind::Data, Codec::Zstd, &[], 10, &[27]),
            bytes(Kind::Data, Codec::Zstd, &[], 10, &[16]),
            bytes(Kind::Data, Codec::Zstd, &[], 0, &[17]),
            bytes(Kind::Data, Codec::Zstd, &[], 65_537, &[100]),
        ];
        for (i, bytes) in bad.iter().enumerate() {
            assert!(Header::parse(bytes).is_err(), "case {i}");
        }
        let good = bytes(Kind::Data, Codec::Stored, &[], 0, &[]);
        assert!(Header::parse(&good).is_ok());
        for (at, value) in [(0, b'm'), (4, 2), (4, 0), (5, 2), (6, 1), (7, 1)] {
            let mut bent = good.clone();
            bent[at] = value;
            assert!(Header::parse(&bent).is_err(), "byte {at} = {value}");
        }
        for len in 0..good.len() {
            assert!(matches!(Header::parse(&good[..len]), Err(DecodeError::Short(_))));
        }
    }

    #[test]
    fn a_whole_chunk_ends_with_its_last_frame() {
        let mut chunk = bytes(Kind::Data, Codec::Stored, &[], 3, &[]);
        chunk.resize(chunk.len() + 18, 0);
        assert_eq!(Header::of_chunk(&chunk), Err(DecodeError::Short("last frame")));
        chunk.push(0);
        assert!(Header::of_chunk(&chunk).is_ok());
        chunk.push(0);
        assert_eq!(Header::of_chunk(&chunk), Err(DecodeError::LeftOver));
    }
}
