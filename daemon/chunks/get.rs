//! Chunks as a mount reads them: from memory, else from whichever copy is good, and opened.

use super::{Chunks, Piece, lock};
use crate::counts::COUNTS;
use bytes::Bytes;
use mictlan::cluster::get::Asker;
use mictlan::cluster::place::place;
use mictlan::id::{ChunkId, PeerId};
use mictlan::seal::{self, KeyRing, OpenError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;

#[derive(Debug, Clone, thiserror::Error)]
pub enum GetError {
    /// Every peer was heard, and waiting brings no copy.
    #[error("chunk {chunk} could not be read: {failed}")]
    NoGoodCopy { chunk: ChunkId, failed: String },
    /// A peer that did not answer may have it.
    #[error("chunk {chunk} could not be read within the deadline: {failed}")]
    NotInTime { chunk: ChunkId, failed: String },
    #[error("chunk {chunk}: {error}")]
    NotOpened { chunk: ChunkId, error: Arc<OpenError> },
}

impl Chunks {
    /// The opened plaintext of a chunk, from the cache or from a peer.
    pub async fn open(
        self: &Arc<Self>,
        ring: &KeyRing,
        chunk: ChunkId,
        deadline: Duration,
    ) -> Result<Bytes, GetError> {
        let asked = AtomicBool::new(false);
        let fetch = async {
            asked.store(true, Ordering::Relaxed);
            let sealed = self.get(chunk, deadline).await?;
            let opened = seal::open(ring, chunk, &sealed)
                .map_err(|error| GetError::NotOpened { chunk, error: Arc::new(error) })?;
            Ok(Bytes::from(opened.plaintext))
        };
        let opened = self.opened.get_or_fetch(chunk, fetch).await;
        let asked = asked.load(Ordering::Relaxed);
        COUNTS.chunk_read(!asked);
        if asked && let Ok(whole) = &opened {
            self.opened.forget_parts(chunk, whole.len());
        }
        opened
    }

    /// What the cache has of a chunk, without waiting.
    pub fn opened_already(&self, chunk: ChunkId) -> Option<Bytes> {
        self.opened.peek(chunk)
    }

    /// The sealed bytes of a chunk, checked against its address.
    pub async fn get(
        self: &Arc<Self>,
        chunk: ChunkId,
        deadline: Duration,
    ) -> Result<Bytes, GetError> {
        if let Some(bytes) = lock(&self.on_the_way).get(&chunk) {
            return Ok(bytes.clone());
        }
        self.get_any_copy(chunk, &Piece::Whole, deadline).await
    }

    /// A chunk, or a piece of it, from its peers: checked against its address.
    pub(super) async fn get_any_copy(
        &self,
        chunk: ChunkId,
        piece: &Piece,
        deadline: Duration,
    ) -> Result<Bytes, GetError> {
        if let Some(error) = lock(&self.vain).just_now(chunk, Instant::now()) {
            return Err(error);
        }
        let placement = self.placement();
        let order: Vec<PeerId> =
            place(chunk, &placement.layout).into_iter().map(|place| place.peer).collect();
        let (holders, others) = order.split_at(placement.copies.count().min(order.len()));
        let got = self.reader.get(Asker::Reader, chunk, piece, holders, others, deadline).await;
        if let Err(error) = &got {
            lock(&self.vain).note(chunk, Instant::now(), error);
        }
        got
    }
}
