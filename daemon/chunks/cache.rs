//! Opened chunks that may be read again, bounded in bytes.
//!
//! Owns: plaintext in memory, and that one chunk is fetched once however many wait for it.

use super::GetError;
use bytes::Bytes;
use mictlan::id::ChunkId;
use quick_cache::Weighter;
use quick_cache::sync::Cache as Quick;
use std::future::Future;

pub struct Cache(Quick<ChunkId, Bytes, Weight>);

#[derive(Clone)]
struct Weight;

/// What a small entry costs besides its bytes.
const ENTRY_BYTES: u64 = 128;
/// Guessed size of an entry, for the cache's own tables.
const USUAL_BYTES: u64 = 256 << 10;

impl Weighter<ChunkId, Bytes> for Weight {
    fn weight(&self, _: &ChunkId, bytes: &Bytes) -> u64 {
        bytes.len() as u64 + ENTRY_BYTES
    }
}

impl Cache {
    pub fn new(bytes: u64) -> Self {
        let entries = (bytes / USUAL_BYTES).max(16) as usize;
        Self(Quick::with_weighter(entries, bytes, Weight))
    }

    pub fn peek(&self, chunk: ChunkId) -> Option<Bytes> {
        self.0.get(&chunk)
    }

    pub async fn get_or_fetch(
        &self,
        chunk: ChunkId,
        fetch: impl Future<Output = Result<Bytes, GetError>>,
    ) -> Result<Bytes, GetError> {
        self.0.get_or_insert_async(&chunk, fetch).await
    }
}
