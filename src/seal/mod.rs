//! Sealing: from plaintext to chunks and back.
//!
//! Owns: the names of the codecs.
//! Never: stores or sends anything.
//! Invariant: a codec's number is never used for another one.

mod chunk;

pub use chunk::Codec;
