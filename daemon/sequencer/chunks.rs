//! The voter's chunk store, as far as the sequencer needs it.
//!
//! Owns: the seam that the store of this machine and the tests' one in memory stand behind.
//! Invariant: after `put` returned, the chunks outlive a power cut.

use crate::store::{Checked, Store};
use bytes::Bytes;
use futures::future::BoxFuture;
use mictlan::hash;
use mictlan::id::ChunkId;

/// Payloads that travel inside entries become chunks of every voter.
pub trait Chunks: Send + Sync + 'static {
    /// Stores chunks durably.
    fn put(&self, chunks: Vec<Bytes>) -> BoxFuture<'_, Result<(), ChunksError>>;
    /// A chunk that this voter has.
    fn get(&self, chunk: ChunkId) -> BoxFuture<'_, Option<Bytes>>;
}

/// Why chunks were not stored.
#[derive(Debug, thiserror::Error)]
#[error("the voter's chunk store failed: {0}")]
pub struct ChunksError(pub String);

impl Chunks for Store {
    fn put(&self, chunks: Vec<Bytes>) -> BoxFuture<'_, Result<(), ChunksError>> {
        Box::pin(async move {
            let failed = |e: crate::store::WriteError| ChunksError(e.to_string());
            let checked = chunks.into_iter().map(|c| Checked::new(hash::address(&c), c));
            let checked = checked.collect::<Result<Vec<_>, _>>().map_err(failed)?;
            Store::put_ordered(self, checked).await.map_err(failed)?;
            Ok(())
        })
    }

    fn get(&self, chunk: ChunkId) -> BoxFuture<'_, Option<Bytes>> {
        // What cannot be read here is fetched from its peers by who needs it.
        Box::pin(async move { Store::get(self, chunk).await.ok().flatten() })
    }
}
