//! Parts of chunks with the path from them to the address.
//!
//! Owns: the outlines of chunks that parts were read of, bounded in bytes.
//! Never: sends a part that is not the chunk's: what is read is checked on the way out.
//! Invariant: a copy that a part shows to be bad is read whole, and so found and taken out of service.

use super::Store;
use super::read::{ReadError, run};
use bytes::Bytes;
use mictlan::id::ChunkId;
use mictlan::seal::Outline;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use std::ops::Range;
use std::sync::Arc;

/// Outlines of chunks of 2 GiB in all. Without one a part costs its whole chunk.
const OUTLINES_BYTES: u64 = 8 << 20;
/// Of a chunk of 1 MiB, for the cache's own tables.
const USUAL_BYTES: u64 = 4 << 10;

#[derive(Clone)]
pub struct Weight;

impl Weighter<ChunkId, Arc<Outline>> for Weight {
    fn weight(&self, _: &ChunkId, outline: &Arc<Outline>) -> u64 {
        outline.weight() as u64 + 64
    }
}

pub type Outlines = Cache<ChunkId, Arc<Outline>, Weight>;

pub fn outlines() -> Outlines {
    Cache::with_weighter((OUTLINES_BYTES / USUAL_BYTES) as usize, OUTLINES_BYTES, Weight)
}

impl Store {
    /// Bytes of a chunk with their path to its address (`seal::range`); `None` when it is not here.
    pub async fn prove(
        &self,
        chunk: ChunkId,
        range: Range<u64>,
    ) -> Result<Option<Bytes>, ReadError> {
        if let Some(outline) = self.outlines.get(&chunk) {
            let around = outline.around(&range)?;
            let around = around.start as u32..around.end as u32;
            let Some(bytes) = self.get_range(chunk, around).await? else { return Ok(None) };
            match outline.prove(&chunk, &range, &bytes) {
                Ok(reply) => return Ok(Some(reply.into())),
                Err(why) => tracing::debug!(%why, "a part of a copy is bad; all of it is read"),
            }
        }
        let Some(bytes) = self.get(chunk).await? else { return Ok(None) };
        let proved = run(move || {
            let outline = Outline::of(&bytes);
            let around = outline.around(&range)?;
            let around = &bytes[around.start as usize..around.end as usize];
            let reply = outline.prove(&chunk, &range, around)?;
            Ok((outline, reply))
        });
        let (outline, reply) = proved.await?;
        self.outlines.insert(chunk, Arc::new(outline));
        Ok(Some(reply.into()))
    }
}
