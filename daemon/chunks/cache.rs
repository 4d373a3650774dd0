//! Opened chunks, and frames of such as were not fetched whole, that may be read again; bounded in
//! bytes together.
//!
//! Owns: plaintext in memory, and that one chunk is fetched once however many wait for it.

use super::GetError;
use bytes::Bytes;
use mictlan::id::ChunkId;
use mictlan::seal::FRAME_BYTES;
use quick_cache::sync::{Cache as Quick, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use std::collections::HashSet;
use std::future::Future;
use std::sync::{Mutex, MutexGuard};

pub struct Cache {
    kept: Quick<Key, Bytes, Weight>,
    /// Whole chunks that are being fetched.
    coming: Mutex<HashSet<ChunkId>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    chunk: ChunkId,
    part: Part,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Part {
    Whole,
    /// The clear bytes at a chunk's beginning that hold its header.
    Head,
    Frame(usize),
}

#[derive(Clone)]
struct Weight;

/// What a small entry costs besides its bytes.
const ENTRY_BYTES: u64 = 128;
/// The size of the smaller entries, for the cache's own tables.
const USUAL_BYTES: u64 = FRAME_BYTES as u64;
/// A part of the cache that makes its own room: several of the largest chunks, so that one that just
/// came has a place whatever is in it.
const SHARD_BYTES: u64 = 16 << 20;
/// This share is for what was read again; the rest for what just came. A chunk that is read in order,
/// or ahead, is wanted now: with a small share it would be gone before it is read, and fetched twice.
const READ_AGAIN: f64 = 0.5;
/// In a cache so small that half of it holds no large chunk.
const READ_AGAIN_AT_MOST: f64 = 0.97;

impl Weighter<Key, Bytes> for Weight {
    fn weight(&self, _: &Key, bytes: &Bytes) -> u64 {
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
        let kept = Quick::with_options(options, Weight, hash, cycle);
        Self { kept, coming: Mutex::default() }
    }

    /// A whole chunk.
    pub fn peek(&self, chunk: ChunkId) -> Option<Bytes> {
        self.kept.get(&Key { chunk, part: Part::Whole })
    }

    /// Whether a whole chunk is here, or on its way for somebody.
    pub fn has_or_awaits(&self, chunk: ChunkId) -> bool {
        self.kept.contains_key(&Key { chunk, part: Part::Whole }) || self.coming().contains(&chunk)
    }

    pub async fn get_or_fetch(
        &self,
        chunk: ChunkId,
        fetch: impl Future<Output = Result<Bytes, GetError>>,
    ) -> Result<Bytes, GetError> {
        let fetch = async {
            let _coming = Coming::new(self, chunk);
            fetch.await
        };
        self.kept.get_or_insert_async(&Key { chunk, part: Part::Whole }, fetch).await
    }

    fn coming(&self) -> MutexGuard<'_, HashSet<ChunkId>> {
        self.coming.lock().expect("nothing panics while it is locked")
    }

    /// A chunk of `len` bytes came whole: what was read of it alone is kept twice no longer.
    pub fn forget_parts(&self, chunk: ChunkId, len: usize) {
        if self.kept.remove(&Key { chunk, part: Part::Head }).is_some() {
            for frame in 0..len.div_ceil(FRAME_BYTES) {
                self.kept.remove(&Key { chunk, part: Part::Frame(frame) });
            }
        }
    }

    pub async fn head_or_fetch(
        &self,
        chunk: ChunkId,
        fetch: impl Future<Output = Result<Bytes, GetError>>,
    ) -> Result<Bytes, GetError> {
        self.kept.get_or_insert_async(&Key { chunk, part: Part::Head }, fetch).await
    }

    pub fn frame(&self, chunk: ChunkId, frame: usize) -> Option<Bytes> {
        self.kept.get(&Key { chunk, part: Part::Frame(frame) })
    }

    /// To count what is here is not to use it.
    pub fn has_frame(&self, chunk: ChunkId, frame: usize) -> bool {
        self.kept.contains_key(&Key { chunk, part: Part::Frame(frame) })
    }

    pub fn keep_frame(&self, chunk: ChunkId, frame: usize, plaintext: Bytes) {
        self.kept.insert(Key { chunk, part: Part::Frame(frame) }, plaintext);
    }
}

/// A chunk that is being fetched, until this is dropped.
struct Coming<'a> {
    cache: &'a Cache,
    chunk: ChunkId,
}

impl<'a> Coming<'a> {
    fn new(cache: &'a Cache, chunk: ChunkId) -> Self {
        cache.coming().insert(chunk);
        Self { cache, chunk }
    }
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        self.cache.coming().remove(&self.chunk);
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
            assert!(cache.kept.weight() <= bytes, "{} of {bytes}", cache.kept.weight());
        }
    }

    #[tokio::test]
    async fn a_whole_chunk_takes_the_place_of_its_parts() {
        let (cache, one, other) = (Cache::new(64 << 20), chunk(1), chunk(2));
        for chunk in [one, other] {
            let head = Bytes::from_static(b"head");
            cache.head_or_fetch(chunk, async { Ok(head) }).await.expect("fetched");
            cache.keep_frame(chunk, 7, Bytes::from_static(b"frame"));
        }
        fetch(&cache, one, 8 * FRAME_BYTES).await;
        cache.forget_parts(one, 8 * FRAME_BYTES);
        assert!(!cache.has_frame(one, 7) && cache.has_frame(other, 7));
        assert_eq!((cache.has_or_awaits(one), cache.has_or_awaits(other)), (true, false));
    }

    #[tokio::test]
    async fn a_chunk_on_its_way_is_awaited_and_one_that_nobody_waits_for_is_not() {
        let (cache, one) = (Cache::new(64 << 20), chunk(1));
        let never = std::future::pending::<Result<Bytes, GetError>>();
        let mut waiting = Box::pin(cache.get_or_fetch(one, never));
        assert!(futures::poll!(&mut waiting).is_pending());
        assert!(cache.has_or_awaits(one));
        drop(waiting);
        assert!(!cache.has_or_awaits(one));
    }
}
