//! One frame of a chunk: its cipher, and the hash that the chunk's key comes from.
//!
//! Owns: nonces, the key of one chunk, the siv.
//! Never: knows where a frame lies, or what a piece was before it was compressed.
//! Invariant: one key is used for one message under one header: the key comes from the siv, and
//! the siv from the header and the exact bytes that the frames encrypt.
//!
//! Behind the header (see `header.rs`) lie the frames and nothing else. Frame `i`, of the piece
//! `i` as it is stored: AES-256-GCM, 16-byte tag behind the ciphertext, with
//!
//! ```text
//! key    keyed BLAKE3 (the family's chunk key) of the siv
//! nonce  i u32 little-endian | 0 [7] | 1 in the last frame, else 0
//! aad    BLAKE3 of the header [32]
//! siv    keyed BLAKE3 (the family's siv key) of: header before the siv, header behind it,
//!        all stored pieces one after the other; before each of the three its length u64
//! ```

use crate::hash;
use crate::seal::TAG_BYTES;
use crate::seal::header::SIV;
use crate::seal::key::FamilyKeys;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

/// The keyed hash over header and stored pieces, fed as they come.
pub(super) struct SivHasher(blake3::Hasher);

impl SivHasher {
    pub fn new(family: &FamilyKeys, header: &[u8], body_len: usize) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(&family.siv);
        for part in [&header[..SIV.start], &header[SIV.end..]] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.update(&(body_len as u64).to_le_bytes());
        Self(hasher)
    }

    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    pub fn finish(self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

/// The key of one chunk, bound to its header.
pub(super) struct Cipher {
    key: LessSafeKey,
    aad: [u8; 32],
}

impl Cipher {
    pub fn new(family: &FamilyKeys, siv: &[u8; 32], aad: [u8; 32]) -> Self {
        let key = zeroize::Zeroizing::new(hash::keyed(&family.chunk, &[siv]));
        let key = UnboundKey::new(&AES_256_GCM, &*key).expect("an AES-256 key has 32 bytes");
        Self { key: LessSafeKey::new(key), aad }
    }

    fn nonce(i: usize, last: bool) -> Nonce {
        // Frame and final bit make it unique under a key that seals this one message only.
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&(i as u32).to_le_bytes());
        nonce[11] = last.into();
        Nonce::assume_unique_for_key(nonce)
    }

    /// Encrypts a frame in place; its last 16 bytes are room for the tag.
    pub fn seal(&self, i: usize, last: bool, frame: &mut [u8]) {
        let (piece, room) = frame.split_at_mut(frame.len() - TAG_BYTES);
        let tag = self
            .key
            .seal_in_place_separate_tag(Self::nonce(i, last), Aad::from(&self.aad), piece)
            .expect("64 KiB are far below the limit of AES-GCM");
        room.copy_from_slice(tag.as_ref());
    }

    pub fn open(
        &self,
        i: usize,
        last: bool,
        piece: &mut [u8],
        tag: &[u8],
    ) -> Result<(), aws_lc_rs::error::Unspecified> {
        let nonce = Self::nonce(i, last);
        self.key.open_in_place_separate_tag(nonce, Aad::from(&self.aad), tag, piece).map(|_| ())
    }
}
