//! What `df` shows.
//!
//! Invariant: answered from what is known here, never from the network.

use super::Volume;
use mictlan::meta::error::FsError;
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
        let free_bytes = self.free_bytes().unwrap_or(UNKNOWN_FREE);
        Space {
            total_bytes: usage.bytes.saturating_add(free_bytes),
            free_bytes,
            inodes_used: usage.inodes,
            inodes_free: INODES_FREE,
        }
    }

    /// What the peers last said, without what is on its way to them.
    fn free_bytes(&self) -> Option<u64> {
        self.chunks.free_bytes().map(|free| free.saturating_sub(self.budget.used_bytes()))
    }

    /// Nothing is reserved, but what can never fit is refused at once. A file that holds `held`
    /// bytes already needs no more room for as many.
    pub(super) fn room_for(&self, held: u64, len: u64) -> Result<(), FsError> {
        match self.free_bytes() {
            Some(free) if len > free.saturating_add(held) => Err(FsError::NoSpace),
            _ => Ok(()),
        }
    }
}
