//! The chunk format.

use serde::{Deserialize, Serialize};

/// How the pieces of a chunk, or a file in a pack, are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Codec {
    Stored = 0,
    Zstd = 1,
}
