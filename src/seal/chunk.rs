//! Sealing a plaintext into a chunk, and opening it again: whole, or by frames.
//!
//! Owns: how pieces are laid out and compressed, the order of the checks on the way back.
//! Never: returns a byte of a frame that failed a check.
//! Invariant: `open` gives what `seal` was given by a holder of the key, complete and in order.

use crate::codec::DecodeError;
use crate::hash;
use crate::id::{ChunkId, Epoch};
use crate::seal::frame::{Cipher, SivHasher};
use crate::seal::header::{self, SIV, frame_count, piece_len};
use crate::seal::key::FamilyKeys;
use crate::seal::squeeze::{Expander, Squeezer, worth};
use crate::seal::{
    Codec, EpochKeys, FRAME_BYTES, Header, KeyRing, Kind, LINKS_MAX, PLAINTEXT_BYTES_MAX, TAG_BYTES,
};
use bytes::Bytes;
use std::ops::Range;

/// After so many pieces that gained nothing, the rest is not tried: noise costs little then.
const PIECES_TRIED: usize = 4;

/// A chunk and its address.
#[derive(Clone, Debug)]
pub struct Sealed {
    pub address: ChunkId,
    pub bytes: Bytes,
}

/// A chunk that passed every check.
#[derive(Clone, Debug)]
pub struct Opened {
    pub header: Header,
    pub plaintext: Vec<u8>,
}

/// Why a chunk cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    #[error("a plaintext of {0} bytes is more than a chunk holds")]
    TooLarge(usize),
    #[error("{0} links are more than a chunk holds")]
    TooManyLinks(usize),
    #[error("a data chunk refers to nothing")]
    LinksInData,
    #[error("there is no data secret of epoch {0} here, so file bytes cannot be sealed")]
    NoDataSecret(Epoch),
}

/// Why a chunk is not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("chunk {0}: the bytes do not hash to this address")]
    WrongAddress(ChunkId),
    #[error("chunk {chunk}: malformed: {why}")]
    Malformed { chunk: ChunkId, why: DecodeError },
    #[error("chunk {chunk}: there is no secret of epoch {epoch} here")]
    NoSecret { chunk: ChunkId, epoch: Epoch },
    #[error("chunk {chunk}: there is no data secret of epoch {epoch} here")]
    NoDataSecret { chunk: ChunkId, epoch: Epoch },
    #[error("chunk {0}: its bytes fail authentication")]
    Tampered(ChunkId),
}

/// Seals `plaintext` under the keys of one epoch. The same plaintext, links and kind give the
/// same chunk. Links are sorted, and each is kept once.
pub fn seal(
    keys: &EpochKeys,
    kind: Kind,
    codec: Codec,
    links: &[ChunkId],
    plaintext: &[u8],
) -> Result<Sealed, SealError> {
    if plaintext.len() > PLAINTEXT_BYTES_MAX {
        return Err(SealError::TooLarge(plaintext.len()));
    }
    if kind.is_data_family() && !links.is_empty() {
        return Err(SealError::LinksInData);
    }
    let mut links = links.to_vec();
    links.sort_unstable();
    links.dedup();
    if links.len() > LINKS_MAX {
        return Err(SealError::TooManyLinks(links.len()));
    }
    let family = if kind.is_data_family() { keys.data() } else { Some(keys.meta()) };
    let family = family.ok_or(SealError::NoDataSecret(keys.epoch()))?;
    let squeezed = match codec {
        Codec::Stored => None,
        Codec::Zstd => Laid::squeezed(links.len(), plaintext),
    };
    let laid = squeezed.unwrap_or_else(|| Laid::stored(links.len(), plaintext));
    let header = header::encode(
        kind,
        laid.codec,
        keys.epoch(),
        &[0; 32],
        &links,
        plaintext.len() as u32,
        &laid.table,
    );
    Ok(laid.seal(family, header, plaintext))
}

/// The pieces at the places of their frames in the one buffer that becomes the chunk.
struct Laid {
    codec: Codec,
    table: Vec<u32>,
    bytes: Vec<u8>,
}

impl Laid {
    fn stored(links: usize, plaintext: &[u8]) -> Self {
        let frames = frame_count(plaintext.len());
        let len = header::header_len(links, 0) + plaintext.len() + frames * TAG_BYTES;
        let mut bytes = Vec::with_capacity(len);
        bytes.resize(header::header_len(links, 0), 0);
        for piece in plaintext.chunks(FRAME_BYTES) {
            bytes.extend_from_slice(piece);
            bytes.extend_from_slice(&[0; TAG_BYTES]);
        }
        bytes.resize(len, 0);
        Self { codec: Codec::Stored, table: Vec::new(), bytes }
    }

    /// `None` where compression gains less than 5 %, in all or in the first pieces.
    fn squeezed(links: usize, plaintext: &[u8]) -> Option<Self> {
        let frames = frame_count(plaintext.len());
        let first = header::header_len(links, frames);
        let mut bytes = vec![0; first + plaintext.len() + frames * TAG_BYTES];
        let mut table = Vec::with_capacity(frames);
        let mut at = first;
        let mut zstd = Squeezer::new();
        for (i, piece) in plaintext.chunks(FRAME_BYTES).enumerate() {
            if i == PIECES_TRIED && !worth(i * FRAME_BYTES, at - first) {
                return None;
            }
            let room = &mut bytes[at..at + piece.len()];
            // One byte less than the piece: a compressed piece is shorter, or it is stored.
            let shorter = piece.len() - 1;
            let len = zstd.squeeze_into(piece, &mut room[..shorter]).unwrap_or_else(|| {
                room.copy_from_slice(piece);
                piece.len()
            });
            at += len + TAG_BYTES;
            table.push((len + TAG_BYTES) as u32);
        }
        if !worth(plaintext.len(), at - first) {
            return None;
        }
        bytes.truncate(at);
        // What was saved goes back at once: sealed chunks wait in memory for their peers.
        bytes.shrink_to_fit();
        Some(Self { codec: Codec::Zstd, table, bytes })
    }

    fn seal(mut self, family: &FamilyKeys, mut header: Vec<u8>, plaintext: &[u8]) -> Sealed {
        let lens: Vec<usize> = match self.codec {
            Codec::Stored => {
                (0..frame_count(plaintext.len())).map(|i| piece_len(plaintext.len(), i)).collect()
            }
            Codec::Zstd => self.table.iter().map(|len| *len as usize - TAG_BYTES).collect(),
        };
        let mut siv = SivHasher::new(family, &header, lens.iter().sum());
        let (head, mut frames) = self.bytes.split_at_mut(header.len());
        match self.codec {
            // One run of contiguous bytes hashes faster than frames with gaps between them.
            Codec::Stored => siv.update(plaintext),
            Codec::Zstd => {
                let mut rest = &*frames;
                for len in &lens {
                    siv.update(&rest[..*len]);
                    rest = &rest[len + TAG_BYTES..];
                }
            }
        }
        let siv = siv.finish();
        header[SIV].copy_from_slice(&siv);
        head.copy_from_slice(&header);
        let cipher = Cipher::new(family, &siv, *blake3::hash(&header).as_bytes());
        for (i, len) in lens.iter().enumerate() {
            let (frame, rest) = frames.split_at_mut(len + TAG_BYTES);
            cipher.seal(i, i + 1 == lens.len(), frame);
            frames = rest;
        }
        debug_assert!(frames.is_empty(), "the frames fill the chunk");
        Sealed { address: hash::address(&self.bytes), bytes: Bytes::from(self.bytes) }
    }
}

/// Opens a whole chunk: its address first, then every rule of the format, then every frame, then
/// the siv over what was decrypted.
pub fn open(ring: &KeyRing, address: ChunkId, bytes: &[u8]) -> Result<Opened, OpenError> {
    if hash::address(bytes) != address {
        return Err(OpenError::WrongAddress(address));
    }
    let malformed = |why| OpenError::Malformed { chunk: address, why };
    let header = Header::of_chunk(bytes).map_err(malformed)?;
    let family = family(ring, address, &header)?;
    let all = 0..header.frame_count();
    let body_len = header.chunk_len() - header.header_len() - (all.len() * TAG_BYTES) as u64;
    let mut siv = SivHasher::new(family, &bytes[..header.header_len as usize], body_len as usize);
    let stored = &bytes[header.header_len as usize..];
    let plaintext = decrypt(family, address, &header, all, stored, |piece| siv.update(piece))?;
    if header.codec == Codec::Stored {
        // As in sealing: hashed in one run, and so not piece by piece in `decrypt`.
        siv.update(&plaintext);
    }
    // The address was checked, so nothing is told apart by time here; the comparison of
    // `blake3::Hash` takes constant time all the same.
    if blake3::Hash::from(siv.finish()) != blake3::Hash::from(header.siv) {
        return Err(OpenError::Tampered(address));
    }
    Ok(Opened { header, plaintext })
}

/// The stored bytes of the frames that hold `range` of the plaintext, for a ranged read.
pub fn frame_range(header: &Header, range: Range<u32>) -> Range<u64> {
    let frames = frames_of(header, &range);
    header.frame(frames.start).start as u64..header.frame(frames.end - 1).end as u64
}

/// Opens `range` of the plaintext out of `stored`, the bytes of `frame_range(header, range)`.
/// The caller has checked both the header and `stored` against `address` (see `check`): GCM
/// alone tells nothing against another holder of the key, and the siv covers whole chunks only.
pub fn open_frames(
    ring: &KeyRing,
    address: ChunkId,
    header: &Header,
    range: Range<u32>,
    stored: &[u8],
) -> Result<Vec<u8>, OpenError> {
    let frames = frames_of(header, &range);
    let expected = frame_range(header, range.clone());
    assert_eq!(stored.len() as u64, expected.end - expected.start, "bytes of `frame_range`");
    let family = family(ring, address, header)?;
    let first = (frames.start * FRAME_BYTES) as u32;
    let mut plaintext = decrypt(family, address, header, frames, stored, |_| {})?;
    plaintext.truncate((range.end - first) as usize);
    plaintext.drain(..(range.start - first) as usize);
    Ok(plaintext)
}

fn frames_of(header: &Header, range: &Range<u32>) -> Range<usize> {
    assert!(range.start < range.end && range.end <= header.plaintext_len, "inside the plaintext");
    range.start as usize / FRAME_BYTES..(range.end as usize).div_ceil(FRAME_BYTES)
}

fn family<'a>(
    ring: &'a KeyRing,
    chunk: ChunkId,
    header: &Header,
) -> Result<&'a FamilyKeys, OpenError> {
    let epoch = header.epoch;
    let keys = ring.epoch(epoch).ok_or(OpenError::NoSecret { chunk, epoch })?;
    if header.kind.is_data_family() {
        keys.data().ok_or(OpenError::NoDataSecret { chunk, epoch })
    } else {
        Ok(keys.meta())
    }
}

/// Decrypts and expands `frames`, whose bytes are `stored`. `squeezed` sees each stored piece of
/// a compressed chunk, in order.
fn decrypt(
    family: &FamilyKeys,
    chunk: ChunkId,
    header: &Header,
    frames: Range<usize>,
    mut stored: &[u8],
    mut squeezed: impl FnMut(&[u8]),
) -> Result<Vec<u8>, OpenError> {
    let cipher = Cipher::new(family, &header.siv, header.aad);
    let last = header.frame_count() - 1;
    let len = frames.clone().map(|i| header.piece_len(i)).sum();
    let mut plaintext = Vec::with_capacity(len);
    let mut zstd = (header.codec == Codec::Zstd).then(|| (Expander::new(), Vec::new()));
    for i in frames {
        let (frame, rest) = stored.split_at(header.frame(i).len());
        stored = rest;
        let (body, tag) = frame.split_at(frame.len() - TAG_BYTES);
        let start = plaintext.len();
        let Some((expander, piece)) = &mut zstd else {
            plaintext.extend_from_slice(body);
            cipher
                .open(i, i == last, &mut plaintext[start..], tag)
                .map_err(|_| OpenError::Tampered(chunk))?;
            continue;
        };
        piece.clear();
        piece.extend_from_slice(body);
        cipher.open(i, i == last, piece, tag).map_err(|_| OpenError::Tampered(chunk))?;
        squeezed(piece);
        if piece.len() == header.piece_len(i) {
            plaintext.extend_from_slice(piece);
        } else {
            plaintext.resize(start + header.piece_len(i), 0);
            expander
                .expand_into(piece, &mut plaintext[start..])
                .map_err(|why| OpenError::Malformed { chunk, why })?;
        }
    }
    Ok(plaintext)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::{EpochSecrets, Secret};

    fn ring() -> KeyRing {
        let secret = |n| Secret::from_bytes([n; 32]);
        let data = Some(secret(2));
        KeyRing::new(secret(9), EpochSecrets { epoch: Epoch(1), meta: secret(1), data })
    }

    fn sealed(codec: Codec, plaintext: &[u8]) -> Sealed {
        seal(ring().current(), Kind::Data, codec, &[], plaintext).expect("good input")
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    fn text(len: usize) -> Vec<u8> {
        let words = (0..).flat_map(|i: u32| format!("line {} of it\n", i % 977).into_bytes());
        words.take(len).collect()
    }

    #[test]
    fn what_was_sealed_opens_to_the_same_bytes() {
        for len in [0, 1, 65_535, 65_536, 65_537, 200_000, 400_000, PLAINTEXT_BYTES_MAX] {
            for (codec, plaintext) in
                [(Codec::Stored, text(len)), (Codec::Zstd, text(len)), (Codec::Zstd, noise(len))]
            {
                let chunk = sealed(codec, &plaintext);
                let opened = open(&ring(), chunk.address, &chunk.bytes).expect("own chunk");
                assert!(opened.plaintext == plaintext, "{codec:?} {len}");
                assert_eq!(opened.header.chunk_len(), chunk.bytes.len() as u64);
            }
        }
    }

    #[test]
    fn compression_is_given_up_where_it_gains_too_little() {
        let codec = |plaintext: &[u8]| {
            Header::parse(&sealed(Codec::Zstd, plaintext).bytes).expect("own chunk").codec
        };
        assert_eq!(codec(&text(300_000)), Codec::Zstd);
        assert_eq!(codec(&noise(1 << 20)), Codec::Stored);
        assert_eq!(codec(b""), Codec::Stored);
        // One piece of noise among text is stored as it is, inside a compressed chunk.
        let mut mixed = text(300_000);
        mixed[70_000..140_000].copy_from_slice(&noise(70_000));
        assert_eq!(codec(&mixed), Codec::Zstd);
        let chunk = sealed(Codec::Zstd, &mixed);
        assert_eq!(open(&ring(), chunk.address, &chunk.bytes).expect("own").plaintext, mixed);
    }

    #[test]
    fn the_same_content_gives_the_same_chunk_and_any_other_another_key() {
        let one = sealed(Codec::Stored, b"content");
        assert_eq!(one.address, sealed(Codec::Stored, b"content").address);
        let links = [ChunkId([1; 32])];
        let ring = ring();
        let node = |links: &[ChunkId]| {
            seal(ring.current(), Kind::Node, Codec::Stored, links, b"content").expect("good").bytes
        };
        let (bare, linked) = (node(&[]), node(&links));
        assert_ne!(bare[SIV], linked[SIV], "the siv covers the links");
        let payload = seal(ring.current(), Kind::Payload, Codec::Stored, &[], b"content");
        assert_ne!(payload.expect("good").bytes[SIV], bare[SIV], "and the kind");
    }

    #[test]
    fn links_are_sorted_and_only_meta_chunks_have_them() {
        let ring = ring();
        let (a, b) = (ChunkId([1; 32]), ChunkId([2; 32]));
        let node = seal(ring.current(), Kind::Node, Codec::Stored, &[b, a, b], b"node");
        let node = node.expect("good input");
        assert_eq!(Header::parse(&node.bytes).expect("own chunk").links, [a, b]);
        let data = seal(ring.current(), Kind::Data, Codec::Stored, &[a], b"data");
        assert_eq!(data.err(), Some(SealError::LinksInData));
        let large = seal(ring.current(), Kind::Data, Codec::Stored, &[], &noise((4 << 20) + 1));
        assert_eq!(large.err(), Some(SealError::TooLarge((4 << 20) + 1)));
    }

    #[test]
    fn an_auditor_opens_metadata_and_no_content() {
        let auditor = ring().without_data();
        let node = seal(ring().current(), Kind::Node, Codec::Stored, &[], b"node").expect("good");
        assert!(open(&auditor, node.address, &node.bytes).is_ok());
        let data = sealed(Codec::Stored, b"content");
        let refused = open(&auditor, data.address, &data.bytes).err();
        let (chunk, epoch) = (data.address, Epoch(1));
        assert_eq!(refused, Some(OpenError::NoDataSecret { chunk, epoch }));
        let refused = seal(auditor.current(), Kind::Data, Codec::Stored, &[], b"content").err();
        assert_eq!(refused, Some(SealError::NoDataSecret(Epoch(1))));
    }

    #[test]
    fn a_bent_byte_is_noticed_even_by_one_who_makes_the_address_fit() {
        for (codec, plaintext) in [(Codec::Stored, noise(70_000)), (Codec::Zstd, text(70_000))] {
            let chunk = sealed(codec, &plaintext);
            for at in (0..70).chain((70..chunk.bytes.len()).step_by(997)) {
                let mut bent = chunk.bytes.to_vec();
                bent[at] ^= 1;
                let refused = open(&ring(), chunk.address, &bent).err();
                assert_eq!(refused, Some(OpenError::WrongAddress(chunk.address)));
                assert!(open(&ring(), hash::address(&bent), &bent).is_err(), "{codec:?} {at}");
            }
        }
    }

    #[test]
    fn frames_are_not_cut_off_swapped_or_added() {
        let chunk = sealed(Codec::Stored, &noise(3 * FRAME_BYTES)).bytes;
        let header = Header::parse(&chunk).expect("own chunk");
        let refused = |bytes: &[u8]| open(&ring(), hash::address(bytes), bytes).is_err();
        assert!(refused(&chunk[..header.frame(1).end]));
        assert!(refused(&[&chunk[..], &[0]].concat()));
        let mut swapped = chunk.to_vec();
        swapped[header.frame(0)].copy_from_slice(&chunk[header.frame(1)]);
        swapped[header.frame(1)].copy_from_slice(&chunk[header.frame(0)]);
        assert!(refused(&swapped));
    }

    #[test]
    fn a_key_holder_cannot_put_other_content_under_a_siv() {
        // Frames that authenticate, under a siv that is not theirs: only the siv tells.
        let (ring, plaintext) = (ring(), noise(100));
        let family = ring.current().data().expect("held");
        let encode = |siv| header::encode(Kind::Data, Codec::Stored, Epoch(1), siv, &[], 100, &[]);
        let header = encode(&[7; 32]);
        let cipher = Cipher::new(family, &[7; 32], *blake3::hash(&header).as_bytes());
        let mut chunk = Laid::stored(0, &plaintext).bytes;
        chunk[..header.len()].copy_from_slice(&header);
        cipher.seal(0, true, &mut chunk[header.len()..]);
        let address = hash::address(&chunk);
        assert_eq!(open(&ring, address, &chunk).err(), Some(OpenError::Tampered(address)));
    }

    #[test]
    fn a_range_opens_from_its_frames_alone() {
        let plaintext = text(300_001);
        for codec in [Codec::Stored, Codec::Zstd] {
            let chunk = sealed(codec, &plaintext);
            let header = Header::parse(&chunk.bytes).expect("own chunk");
            for range in [0..1, 65_535..65_537, 100_000..300_001, 300_000..300_001, 0..300_001] {
                let stored = frame_range(&header, range.clone());
                let stored = &chunk.bytes[stored.start as usize..stored.end as usize];
                let got = open_frames(&ring(), chunk.address, &header, range.clone(), stored);
                let expected = &plaintext[range.start as usize..range.end as usize];
                assert_eq!(got.as_deref(), Ok(expected), "{codec:?} {range:?}");
            }
        }
    }

    #[test]
    fn a_frame_read_alone_opens_at_its_place_in_its_chunk_and_nowhere_else() {
        let (one, two) = (sealed(Codec::Stored, &noise(200_000)), text(200_000));
        let two = sealed(Codec::Stored, &two);
        let header = Header::parse(&one.bytes).expect("own chunk");
        let of_two = Header::parse(&two.bytes).expect("own chunk");
        let opens = |header: &Header, frame: usize, stored: &[u8]| {
            let first = (frame * FRAME_BYTES) as u32;
            open_frames(&ring(), one.address, header, first..first + 1, stored).is_ok()
        };
        let frame = |of: &Sealed, i| of.bytes[header.frame(i)].to_vec();
        assert!(opens(&header, 1, &frame(&one, 1)));
        assert!(!opens(&header, 1, &frame(&one, 2)), "another place");
        assert!(!opens(&header, 1, &frame(&two, 1)), "another chunk");
        assert!(!opens(&of_two, 1, &frame(&one, 1)), "under another header");
        let longer = Header { plaintext_len: 3 * FRAME_BYTES as u32, ..header.clone() };
        let shorter = Header { plaintext_len: 2 * FRAME_BYTES as u32, ..header.clone() };
        assert!(opens(&longer, 1, &frame(&one, 1)) && !opens(&shorter, 1, &frame(&one, 1)), "last");
        for aad in [[0; 32], of_two.aad] {
            assert!(!opens(&Header { aad, ..header.clone() }, 1, &frame(&one, 1)), "kind or epoch");
        }
    }
}
