//! The ledger: one append-only log a network, in a format that foreign software verifies.
//!
//! Owns: records, the Merkle tree over them, tiles, checkpoints, proofs, the `/ledger` tree as a
//! pure lookup, and verification from the bytes alone.
//! Never: orders records (the sequencer does), reads files, or knows a secret: who signs passes
//! the signature, or a function that makes one.
//! Invariant: nothing here is read from a second place; every view is computed from the records.

pub mod checkpoint;
pub mod files;
pub mod inclusion;
pub mod merkle;
pub mod proof;
pub mod record;
pub mod roots;
pub mod roster;
pub mod tile;
pub mod verify;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};

/// Whether `signature` is Ed25519 by `key` over `message`.
pub fn signed_by(key: &[u8; 32], message: &[u8], signature: &[u8; 64]) -> bool {
    UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok()
}
