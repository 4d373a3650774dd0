//! The content of files: where its bytes are.
//!
//! Owns: the extent.
//! Never: seals or stores.
//! Invariant: an extent never crosses one of its file's 1 MiB buckets.

mod extent;

pub use extent::{BUCKET, Extent, Packed};
