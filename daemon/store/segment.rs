//! The bytes of a segment file: a header block, then frames; docs/FORMAT.md has the tables.
//!
//! Owns: what a valid header and a valid frame are, and how long they are.
//! Never: touches a file.
//! Invariant: a frame is valid at one offset of one segment only: its check is keyed with the
//! segment's salt, so neither a recycled file's old frames nor a chunk that holds the bytes of a
//! frame is ever taken for one.

use mictlan::codec::{DecodeError, Reader, Writer};
use mictlan::hash;
use mictlan::id::TimeMs;

/// The first bytes of a segment file; the last is the format's version.
const SEGMENT_MAGIC: [u8; 8] = *b"MCTSEG\0\x01";
const FRAME_MAGIC: [u8; 4] = *b"MCTF";
/// The header has a block of its own, so that frames can be written with O_DIRECT one day.
pub const SEGMENT_HEADER_LEN: u64 = 4096;
const SEGMENT_HEADER_USED: usize = 64;
/// The header stands twice in its block, because without its salt no frame can be recognised.
const SECOND_COPY: usize = 2048;
pub const FRAME_HEADER_LEN: u64 = 72;
/// Frames begin at multiples of this, which makes the search for one after damage eight times faster.
pub const FRAME_ALIGN: u64 = 8;
/// 4 MiB of plaintext, its tags, header and links fit twice; a longer body is damage.
pub const BODY_MAX: usize = 8 << 20;
/// Holes are punched in whole blocks of this size.
const BLOCK: u64 = 4096;

const CHECK_CONTEXT: &str = "mictlan 2026 store frame check";

/// What a segment file says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentHeader {
    pub number: u64,
    pub salt: [u8; 32],
    pub made: TimeMs,
}

impl SegmentHeader {
    /// `magic 8 | number u64 | made u64 | salt 32 | check 8`, at 0 and again at 2,048 of a block
    /// of 4,096 zeros.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.raw(&SEGMENT_MAGIC).u64(self.number).u64(self.made.0).raw(&self.salt);
        let mut out = w.finish();
        let check = hash::address(&out).0;
        out.extend_from_slice(&check[..8]);
        let mut block = vec![0; SEGMENT_HEADER_LEN as usize];
        for at in [0, SECOND_COPY] {
            block[at..at + SEGMENT_HEADER_USED].copy_from_slice(&out);
        }
        block
    }

    /// Reads whichever copy is whole; the first one's error if none is.
    pub fn parse(block: &[u8]) -> Result<Self, DecodeError> {
        let second = block.get(SECOND_COPY..).unwrap_or_default();
        Self::parse_copy(block).or_else(|e| Self::parse_copy(second).map_err(|_| e))
    }

    fn parse_copy(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let used = r.raw(SEGMENT_HEADER_USED, "segment header")?;
        let (body, check) = used.split_at(SEGMENT_HEADER_USED - 8);
        let mut r = Reader::new(body);
        let magic = r.array::<8>("magic")?;
        if magic[..7] != SEGMENT_MAGIC[..7] {
            return Err(DecodeError::Unknown("segment magic"));
        }
        if magic[7] != SEGMENT_MAGIC[7] {
            return Err(DecodeError::Version(magic[7]));
        }
        if hash::address(body).0[..8] != *check {
            return Err(DecodeError::NotCanonical("segment header"));
        }
        let number = r.u64("number")?;
        let made = TimeMs(r.u64("time")?);
        let salt = r.array("salt")?;
        r.finish()?;
        Ok(Self { number, salt, made })
    }

    /// The key of the frames' checks.
    pub fn frame_key(&self) -> FrameKey {
        FrameKey(hash::derive(CHECK_CONTEXT, &self.salt))
    }
}

/// Keys the checks of one segment's frames.
#[derive(Clone)]
pub struct FrameKey([u8; 32]);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// A chunk's bytes; `hash` is its address.
    Chunk = 1,
    /// Addresses that were stamped at `time`; none when the frame only says what was synced.
    Stamp = 2,
    /// Addresses that were removed at `time`.
    Tombstone = 3,
    /// Bytes without a meaning.
    Pad = 4,
}

impl FrameKind {
    fn parse(byte: u8) -> Result<Self, DecodeError> {
        Ok(match byte {
            1 => Self::Chunk,
            2 => Self::Stamp,
            3 => Self::Tombstone,
            4 => Self::Pad,
            _ => return Err(DecodeError::Unknown("frame kind")),
        })
    }
}

/// The header of a frame; the body follows, then zeros up to a multiple of 8.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: FrameKind,
    pub body_len: u32,
    pub time: TimeMs,
    /// All before this offset of the segment was durable before this frame was written. So what
    /// is unreadable below it is damage, and above it may be what a crash tore.
    pub synced: u64,
    /// BLAKE3 of the body.
    pub hash: [u8; 32],
}

impl Frame {
    /// `magic 4 | kind u8 | zero 3 | body length u32 | zero u32 | time u64 | synced u64 | hash 32 | check 8`
    pub fn encode(&self, key: &FrameKey, offset: u64) -> [u8; FRAME_HEADER_LEN as usize] {
        assert!(self.body_len as usize <= BODY_MAX, "a body above the limit");
        assert!(offset.is_multiple_of(FRAME_ALIGN), "a frame off its alignment");
        let mut w = Writer::new();
        w.raw(&FRAME_MAGIC).u8(self.kind as u8).raw(&[0; 3]).u32(self.body_len).u32(0);
        w.u64(self.time.0).u64(self.synced).raw(&self.hash);
        let bytes = w.finish();
        let mut out = [0; FRAME_HEADER_LEN as usize];
        out[..64].copy_from_slice(&bytes);
        out[64..].copy_from_slice(&check(key, &bytes, offset));
        out
    }

    /// The frame at `offset` of the segment, if `bytes` begin with a whole header of one.
    pub fn parse(key: &FrameKey, offset: u64, bytes: &[u8]) -> Result<Self, DecodeError> {
        let header = Reader::new(bytes).raw(FRAME_HEADER_LEN as usize, "frame header")?;
        let mut r = Reader::new(header);
        if r.array("magic")? != FRAME_MAGIC {
            return Err(DecodeError::Unknown("frame magic"));
        }
        if check(key, &header[..64], offset) != header[64..] {
            return Err(DecodeError::NotCanonical("frame header"));
        }
        let kind = FrameKind::parse(r.u8("kind")?)?;
        if r.array("zeros")? != [0; 3] {
            return Err(DecodeError::NotCanonical("frame header"));
        }
        let body_len = r.u32("body length")?;
        if body_len as usize > BODY_MAX {
            return Err(DecodeError::TooLarge("body length"));
        }
        if r.u32("zeros")? != 0 {
            return Err(DecodeError::NotCanonical("frame header"));
        }
        let time = TimeMs(r.u64("time")?);
        let synced = r.u64("synced")?;
        Ok(Self { kind, body_len, time, synced, hash: r.array("hash")? })
    }

    /// Header, body and padding.
    pub fn len(&self) -> u64 {
        frame_len(u64::from(self.body_len))
    }
}

/// True where a search for the next frame should look closer.
pub fn looks_like_a_frame(bytes: &[u8]) -> bool {
    bytes.starts_with(&FRAME_MAGIC)
}

/// What a body of `body_len` bytes takes in a segment.
pub fn frame_len(body_len: u64) -> u64 {
    FRAME_HEADER_LEN + body_len.next_multiple_of(FRAME_ALIGN)
}

/// The whole blocks inside a frame's body, which are given back when its chunk is removed. The
/// header stays, so that the walk over the segment does.
pub fn hole(frame_at: u64, body_len: u64) -> Option<std::ops::Range<u64>> {
    let body = frame_at + FRAME_HEADER_LEN;
    let range = body.next_multiple_of(BLOCK)..(body + body_len) / BLOCK * BLOCK;
    (range.start < range.end).then_some(range)
}

fn check(key: &FrameKey, header: &[u8], offset: u64) -> [u8; 8] {
    let hash = hash::keyed(&key.0, &[header, &offset.to_le_bytes()]);
    let mut out = [0; 8];
    out.copy_from_slice(&hash[..8]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(number: u64) -> SegmentHeader {
        SegmentHeader { number, salt: [7; 32], made: TimeMs(1_700_000_000_000) }
    }

    fn frame() -> Frame {
        let hash = hash::address(b"body").0;
        Frame { kind: FrameKind::Chunk, body_len: 4, time: TimeMs(9), synced: 4096, hash }
    }

    #[test]
    fn a_segment_header_reads_back_and_any_flipped_bit_is_seen() {
        let bytes = header(3).encode();
        assert_eq!(bytes.len() as u64, SEGMENT_HEADER_LEN);
        assert_eq!(SegmentHeader::parse(&bytes), Ok(header(3)));
        for at in 0..SEGMENT_HEADER_USED {
            let mut bad = bytes.clone();
            bad[at] ^= 1;
            assert_eq!(SegmentHeader::parse(&bad), Ok(header(3)), "byte {at}: the other copy");
            bad[at + SECOND_COPY] ^= 1;
            assert!(SegmentHeader::parse(&bad).is_err(), "byte {at} of both");
        }
        let mut newer = bytes;
        newer[7] = 2;
        newer[SECOND_COPY + 7] = 2;
        assert_eq!(SegmentHeader::parse(&newer), Err(DecodeError::Version(2)));
    }

    #[test]
    fn a_frame_is_valid_at_its_place_in_its_segment_only() {
        let key = header(1).frame_key();
        let bytes = frame().encode(&key, 4096);
        assert_eq!(Frame::parse(&key, 4096, &bytes), Ok(frame()));
        assert!(Frame::parse(&key, 4104, &bytes).is_err(), "another offset");
        let other = SegmentHeader { salt: [8; 32], ..header(1) }.frame_key();
        assert!(Frame::parse(&other, 4096, &bytes).is_err(), "another segment");
        for at in 0..bytes.len() {
            let mut bad = bytes;
            bad[at] ^= 1;
            assert!(Frame::parse(&key, 4096, &bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn frames_are_aligned_and_holes_lie_inside_bodies() {
        assert_eq!((frame_len(0), frame_len(1), frame_len(8)), (72, 80, 80));
        assert_eq!(hole(4096, 9000), Some(8192..12288));
        assert_eq!(hole(4096, 8000), None, "no whole block");
    }
}
