//! Room that a journal keeps for the commits of what is in it.
//!
//! Owns: how much that is.
//! Invariant: who changes something is refused while there is still room for the entries by which
//! all that was taken in before is committed.

use super::entry::Entry;

/// Kept whatever is in the journal: for notes of requests, and for the sealing of what was written
/// and is in no entry yet.
pub const RESERVE_BYTES: u64 = 1 << 20;
/// What an entry takes on the disk besides its bytes: length, tag.
pub const ENTRY_BYTES: u64 = 20;
/// The sealing of a file's bytes, as an entry: an operation with one extent has about 150.
const SEALING_BYTES: u64 = 256;

/// What the commit of `entry`, of `bytes`, may append: an operation is planned once more after a
/// conflict; data is sealed, some extents for each MiB, and that operation planned once more.
pub fn owed(entry: &Entry, bytes: u64) -> u64 {
    match entry {
        Entry::Op { .. } | Entry::Copied { .. } => bytes + ENTRY_BYTES,
        Entry::Data { .. } | Entry::Appended { .. } => 2 * SEALING_BYTES + bytes / 512,
        Entry::Proposed { .. } | Entry::Dropped { .. } => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::journal::Holds;
    use mictlan::file::{Extent, split_at_buckets};
    use mictlan::id::{ChunkId, Ino, Position};
    use mictlan::meta::inode::Stamp;
    use mictlan::meta::namespace::{Op, Write};

    #[test]
    fn what_is_owed_for_bytes_is_enough_for_their_sealing_and_once_more() {
        let (ino, mtime, kill_priv) = (Ino(u64::MAX), Stamp::default(), true);
        for len in [1, 4096, 300 << 10, (1 << 20) - 1] {
            let bytes = vec![7; len as usize];
            let data = Entry::Data { base: None, ino, offset: 0, mtime, kill_priv, bytes };
            // The smallest chunks that content can be cut into, none at the edge of a bucket.
            let chunk = ChunkId([7; 32]);
            let pieces = (0..len).step_by(256 << 10).map(|at| Extent {
                offset: 900_000 + u64::from(at),
                len: (len - at).min(256 << 10),
                chunk,
                at: 0,
                packed: None,
            });
            let extents = pieces.flat_map(split_at_buckets).collect();
            let op = Op::Write(Write { ino, extents, end: u64::MAX >> 1, mtime, kill_priv });
            let (base, holds) = (Position(u64::MAX), Holds::default());
            let sealing = Entry::Op { now: mtime, base, holds, op }.encode().len() as u64;
            let owed = owed(&data, data.encode().len() as u64);
            assert!(owed >= 2 * (sealing + ENTRY_BYTES), "{owed} for {sealing}, {len} bytes");
        }
    }
}
