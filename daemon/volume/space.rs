//! What `df` shows.
//!
//! Invariants: answered from what is known here, never from the network; a write that was just
//! refused is promised nothing.

use super::Volume;
use crate::chunks::Room;
use mictlan::meta::error::FsError;
use mictlan::meta::namespace::read;
use mictlan_mount::vfs::Space;

/// What is shown as free while no peer's capacity is known.
const UNKNOWN_FREE: u64 = 1 << 40;
/// Inode numbers are never used up; programs want to see that some are left.
const INODES_FREE: u64 = 1 << 32;

impl Volume {
    /// Size and use are the stores', not the volume's: what was removed from it still takes room
    /// there, and so do other volumes, and a size that adds up to more than there is helps nobody.
    pub(super) fn space(&self) -> Space {
        // The counters' node may not be in memory; then the volume is shown as empty until it is.
        let usage = read::usage(&self.core().view).unwrap_or_default();
        let room = self.room().unwrap_or(Room {
            total_bytes: usage.bytes.saturating_add(UNKNOWN_FREE),
            free_bytes: UNKNOWN_FREE,
            available_bytes: UNKNOWN_FREE,
        });
        Space {
            total_bytes: room.total_bytes,
            free_bytes: room.free_bytes,
            available_bytes: room.available_bytes,
            inodes_used: usage.inodes,
            inodes_free: INODES_FREE,
        }
    }

    /// What the peers last said, without what is on its way to them.
    fn room(&self) -> Option<Room> {
        let mut room = self.chunks.room()?;
        let flying = self.budget.used_bytes();
        room.free_bytes = room.free_bytes.saturating_sub(flying);
        room.available_bytes = match self.chunks.is_full() {
            true => 0,
            false => room.available_bytes.saturating_sub(flying),
        };
        Some(room)
    }

    /// Nothing is reserved, but what can never fit is refused at once. A file that holds `held`
    /// bytes already needs no more room for as many.
    pub(super) fn room_for(&self, held: u64, len: u64) -> Result<(), FsError> {
        match self.room() {
            Some(room) if len > room.available_bytes.saturating_add(held) => Err(FsError::NoSpace),
            _ => Ok(()),
        }
    }
}
