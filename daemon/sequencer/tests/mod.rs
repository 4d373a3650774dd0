//! The sequencer's promises: what the log keeps, what voters agree on, what a crash leaves.

mod bench;
mod gone;
mod log;
mod older;
mod voters;
mod wal;
mod world;

use super::{Chunks, ChunksError, WallClock};
use bytes::Bytes;
use futures::future::BoxFuture;
use mictlan::hash;
use mictlan::id::{ChunkId, TimeMs};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// A chunk store in memory.
#[derive(Default)]
pub struct MemoryChunks(Mutex<HashMap<ChunkId, Bytes>>);

impl Chunks for MemoryChunks {
    fn put(&self, chunks: Vec<Bytes>) -> BoxFuture<'_, Result<(), ChunksError>> {
        let mut kept = self.0.lock().expect("no panic while it is held");
        kept.extend(chunks.into_iter().map(|c| (hash::address(&c), c)));
        Box::pin(async { Ok(()) })
    }

    fn get(&self, chunk: ChunkId) -> BoxFuture<'_, Option<Bytes>> {
        let found = self.0.lock().expect("no panic while it is held").get(&chunk).cloned();
        Box::pin(async { found })
    }
}

/// 2026-11-21T00:00:00Z, for ever.
pub fn fixed_clock() -> WallClock {
    Arc::new(|| TimeMs(1_795_219_200_000))
}
