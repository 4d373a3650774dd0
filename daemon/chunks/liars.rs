//! Which peers gave what cannot be true: bytes that are not the chunk, receipts for another one.
//!
//! Owns: how often each did so, and the lines of the log that name it.
//! Never: decides what becomes of a chunk; the machines go on to the next copy.
//! Invariant: each is told by name, and a thousand lies of one peer are a dozen lines.

use crate::counts::COUNTS;
use crate::host;
use mictlan::id::{ChunkId, PeerId, TimeMs};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

/// What one peer did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lies {
    pub count: u64,
    pub last: TimeMs,
}

#[derive(Default)]
pub struct Liars(Mutex<BTreeMap<PeerId, Lies>>);

impl Liars {
    /// It answered for `chunk` with something else.
    pub fn report(&self, peer: PeerId, chunk: ChunkId) {
        let mut all = self.locked();
        let lies = all.entry(peer).or_insert(Lies { count: 0, last: TimeMs(0) });
        *lies = Lies { count: lies.count + 1, last: host::now() };
        let count = lies.count;
        drop(all);
        COUNTS.lie();
        // Each line stands for as many as there were before it.
        if count.is_power_of_two() {
            tracing::error!(%peer, %chunk, count,
                "a peer sent bytes that are not this chunk, or a receipt that is not for it: other \
                 copies are used; find out what runs there");
        }
    }

    pub fn all(&self) -> BTreeMap<PeerId, Lies> {
        self.locked().clone()
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<PeerId, Lies>> {
        self.0.lock().expect("nothing panics while it is locked")
    }
}
