//! Everything that turns plaintext into bytes a stranger may keep, and back.
//!
//! Owns: secrets and what is derived from them, the chunk format, proofs of byte ranges, wrapping.
//! Never: draws randomness (callers hand entropy in), stores or sends anything.
//! Invariant: no key and nonce is ever used for two different messages or headers: a chunk's key
//! comes from a keyed hash of all that it encrypts and of its whole header.

mod chunk;
mod frame;
mod header;
mod key;
mod principal;
mod range;
mod squeeze;
mod wrap;

pub use chunk::{OpenError, Opened, SealError, Sealed, frame_range, open, open_frames, seal};
pub use header::{
    CHUNK_BYTES_MAX, Codec, FRAME_BYTES, Header, Kind, LINKS_MAX, PLAINTEXT_BYTES_MAX, TAG_BYTES,
};
pub use key::{EpochKeys, EpochSecrets, KeyRing, Secret};
pub use principal::{Principal, Public, verify};
pub use range::{HEAD, HEAD_BYTES, Outline, RangeError, check, check_head, prove};
pub use squeeze::{MEMBER_BYTES_MAX, expand, squeeze};
pub use wrap::{WrapError, unwrap, wrap};
