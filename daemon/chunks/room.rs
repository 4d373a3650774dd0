//! How much room the storage peers have, as far as is known here.
//!
//! Owns: the last word of each about its store, and what this mount has stored there since.
//! Never: asks them; `watch` does.
//! Invariant: once a write was refused for want of room, none is available until a peer is heard.

use mictlan::cluster::credit::{GRANT_MIN, for_content, room};
use mictlan::cluster::place::Copies;
use mictlan::id::PeerId;
use mictlan::wire::StoreStatus;
use std::collections::HashMap;

/// Bytes of content, each kept as often as asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// What the stores hold in all.
    pub total_bytes: u64,
    /// What nothing is stored on: metadata needs some of it.
    pub free_bytes: u64,
    /// What a write may take.
    pub available_bytes: u64,
}

#[derive(Default)]
pub struct Rooms(HashMap<PeerId, Said>);

struct Said {
    capacity_bytes: u64,
    used_bytes: u64,
    /// A writer was refused after it had said so.
    refused: bool,
}

impl Rooms {
    pub fn heard(&mut self, peer: PeerId, store: &StoreStatus) {
        let capacity_bytes = store.capacity_bytes;
        let used_bytes = match &store.out_of_service {
            Some(_) => capacity_bytes, // it takes nothing more
            None => store.used_bytes.min(capacity_bytes),
        };
        self.0.insert(peer, Said { capacity_bytes, used_bytes, refused: false });
    }

    pub fn missed(&mut self, peer: PeerId) {
        self.0.remove(&peer);
    }

    /// A peer took a chunk. One that had it already did not need the room: that is known when it is
    /// heard again.
    pub fn stored(&mut self, peer: PeerId, bytes: u64) {
        if let Some(said) = self.0.get_mut(&peer) {
            said.used_bytes = said.used_bytes.saturating_add(bytes).min(said.capacity_bytes);
        }
    }

    /// What they said last has no room for a write.
    pub fn refused(&mut self) {
        self.0.values_mut().for_each(|said| said.refused = true);
    }

    /// `None` while nobody has been heard.
    pub fn room(&self, copies: Copies) -> Option<Room> {
        if self.0.is_empty() {
            return None;
        }
        let of = |bytes: fn(&Said) -> u64| {
            let each: Vec<u64> = self.0.values().map(bytes).collect();
            room(&each, copies.count() as u32)
        };
        let available = of(|said| match said.refused {
            true => 0,
            false => for_content(said.capacity_bytes, said.used_bytes),
        });
        Some(Room {
            total_bytes: of(|said| said.capacity_bytes),
            free_bytes: of(|said| said.capacity_bytes - said.used_bytes),
            // Less is not granted to anybody.
            available_bytes: if available < GRANT_MIN { 0 } else { available },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn store(capacity: u64, used: u64) -> StoreStatus {
        let (capacity_bytes, used_bytes) = (capacity * MIB, used * MIB);
        StoreStatus {
            capacity_bytes,
            used_bytes,
            chunks: 0,
            damaged_chunks: 0,
            is_new: false,
            out_of_service: None,
        }
    }

    /// Total, free and available MiB.
    fn shown(rooms: &Rooms, copies: u8) -> (u64, u64, u64) {
        let room = rooms.room(Copies::new(copies).expect("a number")).expect("somebody was heard");
        (room.total_bytes / MIB, room.free_bytes / MIB, room.available_bytes / MIB)
    }

    #[test]
    fn a_write_that_was_refused_is_promised_nothing_until_the_peers_are_heard() {
        let mut rooms = Rooms::default();
        assert_eq!(rooms.room(Copies::new(1).expect("a number")), None);
        rooms.heard(PeerId(1), &store(192, 10));
        assert_eq!(shown(&rooms, 1), (192, 182, 176), "6 are for metadata");
        rooms.refused();
        assert_eq!(shown(&rooms, 1), (192, 182, 0));
        rooms.heard(PeerId(1), &store(192, 180));
        assert_eq!(shown(&rooms, 1), (192, 12, 6));
        rooms.heard(PeerId(1), &store(192, 186));
        assert_eq!(shown(&rooms, 1), (192, 6, 0), "the rest is for metadata");
    }

    #[test]
    fn what_was_stored_since_is_gone_and_never_more_than_there_is() {
        let mut rooms = Rooms::default();
        rooms.heard(PeerId(1), &store(192, 10));
        rooms.stored(PeerId(1), 100 * MIB);
        rooms.stored(PeerId(2), 100 * MIB);
        assert_eq!(shown(&rooms, 1), (192, 82, 76));
        rooms.stored(PeerId(1), 100 * MIB);
        assert_eq!(shown(&rooms, 1), (192, 0, 0));
    }

    #[test]
    fn what_only_one_peer_has_room_for_has_no_room_for_two_copies() {
        let mut rooms = Rooms::default();
        rooms.heard(PeerId(1), &store(1024, 0));
        rooms.heard(PeerId(2), &store(128, 28));
        assert_eq!(shown(&rooms, 2), (128, 100, 96));
        assert_eq!(shown(&rooms, 1), (1152, 1124, 1088));
        let broken = StoreStatus { out_of_service: Some("its disk".into()), ..store(128, 28) };
        rooms.heard(PeerId(2), &broken);
        assert_eq!(shown(&rooms, 2), (128, 0, 0));
        rooms.missed(PeerId(2));
        assert_eq!(shown(&rooms, 2), (1024, 1024, 992), "as many copies as there are peers");
    }
}
