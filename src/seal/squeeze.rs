//! Compression before sealing: zstd level 1, given up where it gains too little.
//!
//! Owns: when compression is worth it, and the bound on what a compressed piece may become.
//! Never: trusts a length inside compressed bytes; the caller's buffer is the limit.
//! Invariant: `expand` gives exactly the bytes that `squeeze` was given, or an error.

use crate::codec::DecodeError;
use crate::seal::{Codec, PLAINTEXT_BYTES_MAX};
use std::ops::Range;
use zstd::bulk::{Compressor, Decompressor};

/// Measured: 1 costs 0.4 s a GiB of text, 3 twice that for a few percent.
const LEVEL: i32 = 1;
/// The most that one member of a pack may hold: any read of it decompresses it whole.
pub const MEMBER_BYTES_MAX: usize = 1 << 20;

/// Whether `after` bytes in place of `before` are worth the work of decompressing them.
pub(super) fn worth(before: usize, after: usize) -> bool {
    after + before / 20 < before
}

pub(super) struct Squeezer(Compressor<'static>);

impl Squeezer {
    pub fn new() -> Self {
        Self(Compressor::new(LEVEL).expect("level 1 is known to every zstd"))
    }

    /// Compresses `piece` into `out`; `None` when it does not fit there.
    pub fn squeeze_into(&mut self, piece: &[u8], out: &mut [u8]) -> Option<usize> {
        self.0.compress_to_buffer(piece, out).ok()
    }
}

pub(super) struct Expander(Decompressor<'static>);

impl Expander {
    pub fn new() -> Self {
        Self(Decompressor::new().expect("a decompressor needs memory only"))
    }

    /// Fills `out` exactly.
    pub fn expand_into(&mut self, piece: &[u8], out: &mut [u8]) -> Result<(), DecodeError> {
        match self.0.decompress_to_buffer(piece, out) {
            Ok(len) if len == out.len() => Ok(()),
            Ok(_) => Err(DecodeError::Short("end of a compressed piece")),
            Err(_) => Err(DecodeError::NotCanonical("compressed piece")),
        }
    }
}

/// One member of a pack, compressed alone; `None` where it gains less than 5 %.
pub fn squeeze(member: &[u8]) -> Option<Vec<u8>> {
    assert!(member.len() <= MEMBER_BYTES_MAX, "the packer splits larger members");
    let mut out = vec![0; member.len()];
    let len = Squeezer::new().squeeze_into(member, &mut out)?;
    out.truncate(len);
    worth(member.len(), len).then_some(out)
}

/// Bytes `range` of a pack's member that is `stored`.
pub fn expand(codec: Codec, stored: &[u8], range: Range<usize>) -> Result<Vec<u8>, DecodeError> {
    if range.start > range.end || range.end > PLAINTEXT_BYTES_MAX {
        return Err(DecodeError::TooLarge("range of a packed member"));
    }
    let short = DecodeError::Short("end of a packed member");
    match codec {
        Codec::Stored => stored.get(range).map(<[u8]>::to_vec).ok_or(short),
        Codec::Zstd => {
            let mut out = Decompressor::new()
                .and_then(|mut zstd| zstd.decompress(stored, MEMBER_BYTES_MAX))
                .map_err(|_| DecodeError::NotCanonical("compressed member"))?;
            if range.end > out.len() {
                return Err(short);
            }
            out.truncate(range.end);
            out.drain(..range.start);
            Ok(out)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_comes_back_in_any_range() {
        let text = b"the same words again and again, ".repeat(40);
        let stored = squeeze(&text).expect("repetition compresses");
        assert!(stored.len() < text.len() / 4);
        for range in [0..text.len(), 5..9, 7..7, 1000..1280] {
            assert_eq!(expand(Codec::Zstd, &stored, range.clone()).as_deref(), Ok(&text[range]));
        }
        assert!(expand(Codec::Zstd, &stored, 0..text.len() + 1).is_err());
        assert!(expand(Codec::Zstd, &stored[..stored.len() - 1], 0..4).is_err());
        assert_eq!(expand(Codec::Stored, b"plain", 1..3), Ok(b"la".to_vec()));
        assert!(expand(Codec::Stored, b"plain", 1..6).is_err());
    }

    #[test]
    fn a_gain_below_five_percent_is_none() {
        assert!(worth(1000, 949) && !worth(1000, 950) && !worth(0, 0) && !worth(10, 10));
        let mut noise = [0; 4096];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        assert_eq!(squeeze(&noise), None);
        assert_eq!(squeeze(&[]), None);
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let bomb = zstd::bulk::compress(&vec![0; MEMBER_BYTES_MAX + 1], LEVEL).expect("zeros");
        assert!(expand(Codec::Zstd, &bomb, 0..1).is_err());
    }
}
