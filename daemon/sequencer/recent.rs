//! The newest applied records with all that travelled beside them, for those who follow closely.
//!
//! Owns: a bounded queue in memory. Older records are read from the files.
//! Invariant: its records are consecutive and end at the applied end, or it is empty.

use bytes::Bytes;
use mictlan::id::Position;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

const RECENT_BYTES_MAX: usize = 16 << 20;

/// One applied record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    pub position: Position,
    /// The record's line, LF included.
    pub line: Bytes,
    /// The tag list of a commit.
    pub tags: Option<Bytes>,
    /// Sealed chunks that travelled inside the entry; absent where they were put on peers.
    pub payload: Option<Bytes>,
    pub inline: Option<Bytes>,
}

impl Kept {
    pub fn size_bytes(&self) -> usize {
        let parts = [&self.tags, &self.payload, &self.inline];
        self.line.len() + parts.into_iter().flatten().map(Bytes::len).sum::<usize>()
    }
}

#[derive(Default)]
pub struct Recent {
    /// Covers the queue; held for a push or a copy.
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    records: VecDeque<Kept>,
    bytes: usize,
}

impl Recent {
    pub fn extend(&self, records: Vec<Kept>) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        for kept in records {
            queue.bytes += kept.size_bytes();
            queue.records.push_back(kept);
        }
        while queue.bytes > RECENT_BYTES_MAX {
            let Some(old) = queue.records.pop_front() else { break };
            queue.bytes -= old.size_bytes();
        }
    }

    /// After a snapshot took the place of what was applied.
    pub fn clear(&self) {
        *self.queue.lock().unwrap_or_else(PoisonError::into_inner) = Queue::default();
    }

    /// Records from `from` on, up to about `max_bytes`; none when it begins before the queue does.
    pub fn page(&self, from: Position, max_bytes: usize) -> Option<Vec<Kept>> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let first = queue.records.front()?.position.0;
        let skip = from.0.checked_sub(first)? as usize;
        let mut room = max_bytes;
        let fits = |kept: &&Kept| {
            let fits = room > 0;
            room = room.saturating_sub(kept.size_bytes());
            fits
        };
        Some(queue.records.iter().skip(skip).take_while(fits).cloned().collect())
    }
}
