//! Opened chunks that may be read again, bounded in bytes.
//!
//! Owns: plaintext in memory, and that one chunk is fetched once however many wait for it.

use super::GetError;
use bytes::Bytes;
use mictlan::id::ChunkId;
use quick_cache::sync::{Cache as Quick, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use std::future::Future;

pub struct Cache(Quick<ChunkId, Bytes, Weight>);

#[derive(Clone)]
struct Weight;

/// What a small entry costs besides its bytes.
const ENTRY_BYTES: u64 = 128;
/// Guessed size of an entry, for the cache's own tables.
const USUAL_BYTES: u64 = 256 << 10;
/// A part of the cache that makes its own room: several of the largest chunks, so that one that just
/// came has a place whatever else is in it.
const SHARD_BYTES: u64 = 16 << 20;
/// This share is for what was read again, the rest for what just came. A chunk that is read in order,
/// or ahead, is wanted now: with a small rest it would be gone before it is read, and fetched twice.
const READ_AGAIN: f64 = 0.5;
/// In a cache so small that half of it holds no large chunk.
const READ_AGAIN_AT_MOST: f64 = 0.97;

impl Weighter<ChunkId, Bytes> for Weight {
    fn weight(&self, _: &ChunkId, bytes: &Bytes) -> u64 {
        bytes.len() as u64 + ENTRY_BYTES
    }
}

impl Cache {
    pub fn new(bytes: u64) -> Self {
        let roomy = bytes >= SHARD_BYTES;
        let options = OptionsBuilder::new()
            .estimated_items_capacity((bytes / USUAL_BYTES).max(16) as usize)
            .weight_capacity(bytes)
            .shards((bytes / SHARD_BYTES).max(1) as usize)
            .hot_allocation(if roomy { READ_AGAIN } else { READ_AGAIN_AT_MOST })
            .build()
            .expect("both capacities are given");
        let (hash, cycle) = (DefaultHashBuilder::default(), DefaultLifecycle::default());
        Self(Quick::with_options(options, Weight, hash, cycle))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(n: u64) -> ChunkId {
        ChunkId(*blake3::hash(&n.to_le_bytes()).as_bytes())
    }

    async fn fetch(cache: &Cache, chunk: ChunkId, len: usize) {
        let bytes = Bytes::from(vec![1; len]);
        cache.get_or_fetch(chunk, async { Ok(bytes) }).await.expect("fetched");
    }

    #[tokio::test]
    async fn what_just_came_is_there_whatever_was_read_before() {
        for bytes in [16 << 20, 64 << 20] {
            let cache = Cache::new(bytes);
            for n in 0..200 {
                fetch(&cache, chunk(n), 1 << 20).await;
                for _ in 0..4 {
                    cache.peek(chunk(n));
                }
            }
            for n in 1000..1100 {
                fetch(&cache, chunk(n), 4 << 20).await;
                assert!(cache.peek(chunk(n)).is_some(), "the {n}th in {bytes}");
            }
            assert!(cache.0.weight() <= bytes, "{} of {bytes}", cache.0.weight());
        }
    }
}
