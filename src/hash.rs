//! Hashes with a domain each, so that no value of one purpose is ever one of another.
//!
//! Owns: BLAKE3 for chunks, keys and tags; SHA-256 for the ledger, as its standard says.
//! Invariant: every keyed hash length-prefixes its parts, so two lists of parts never collide.

use crate::id::ChunkId;
use sha2::{Digest, Sha256};

/// The address of stored bytes; `b3sum` prints the same.
pub fn address(bytes: &[u8]) -> ChunkId {
    ChunkId(*blake3::hash(bytes).as_bytes())
}

/// BLAKE3's key derivation: `context` is a constant of the program, `material` a secret.
pub fn derive(context: &'static str, material: &[u8]) -> [u8; 32] {
    blake3::derive_key(context, material)
}

/// Keyed BLAKE3 over `parts`, each preceded by its length as a little-endian u64.
pub fn keyed(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    *hasher.finalize().as_bytes()
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_apart() {
        let key = [7; 32];
        assert_ne!(keyed(&key, &[b"ab", b"c"]), keyed(&key, &[b"a", b"bc"]));
        assert_ne!(derive("mictlan a", &key), derive("mictlan b", &key));
    }

    #[test]
    fn the_address_is_plain_blake3() {
        let empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262";
        assert_eq!(address(b"").to_hex(), empty);
    }
}
