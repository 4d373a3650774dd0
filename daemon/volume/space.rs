//! What `df` shows.
//!
//! Invariant: answered from what is known here, never from the network.

use super::Volume;
use mictlan::meta::namespace::read;
use mictlan_mount::vfs::Space;

/// What is shown as free while no peer's capacity is known.
const UNKNOWN_FREE: u64 = 1 << 40;
/// Inode numbers are never used up; programs want to see that some are left.
const INODES_FREE: u64 = 1 << 32;

impl Volume {
    pub(super) fn space(&self) -> Space {
        // The counters' node may not be in memory; then the volume is shown as empty until it is.
        let usage = read::usage(&self.core().view).unwrap_or_default();
        let free_bytes = self.chunks.free_bytes().unwrap_or(UNKNOWN_FREE);
        Space {
            total_bytes: usage.bytes.saturating_add(free_bytes),
            free_bytes,
            inodes_used: usage.inodes,
            inodes_free: INODES_FREE,
        }
    }
}
