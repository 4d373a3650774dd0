//! One chunk from whichever copy is good: drives `cluster::get`.
//!
//! Invariant: bytes leave here only when they hash to the address that was asked for; a peer that
//! sent others is logged, and the next copy is used.

use super::put::until;
use super::{Chunks, lock};
use crate::counts::COUNTS;
use crate::link::{LinkError, Trouble};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use mictlan::cluster::get::{Effect, Event, Failure, GetChunk};
use mictlan::cluster::place::place;
use mictlan::hash;
use mictlan::id::{ChunkId, PeerId, TimeMs};
use mictlan::seal::{self, KeyRing, OpenError};
use mictlan::wire::Failure as Said;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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
        COUNTS.chunk_read(!asked.load(Ordering::Relaxed));
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
        let (mut machine, mut effects) = self.start_get(chunk, deadline);
        let mut asks = FuturesUnordered::new();
        let mut arrived: Option<(PeerId, Bytes)> = None;
        loop {
            for effect in effects {
                match effect {
                    Effect::Ask(peer) => asks.push(self.ask(peer, chunk)),
                    Effect::Report { liar } => {
                        tracing::error!(%chunk, peer = %liar, "a peer sent bytes that are not this chunk");
                    }
                    Effect::Done { from } => {
                        if let Some((_, bytes)) = arrived.take().filter(|(peer, _)| *peer == from) {
                            return Ok(bytes);
                        }
                    }
                    Effect::GaveUp { failed } => {
                        return Err(gave_up(chunk, &failed));
                    }
                }
            }
            let tick = machine.next_tick().map(|time| self.at(time));
            let event = tokio::select! {
                Some((peer, answer)) = asks.next(), if !asks.is_empty() => match answer {
                    Ok(bytes) => {
                        arrived = Some((peer, bytes));
                        Event::Arrived { peer }
                    }
                    Err(why) => Event::Failed { peer, why },
                },
                () = until(tick) => Event::Tick,
            };
            effects = machine.on(self.now(), event);
        }
    }

    fn start_get(&self, chunk: ChunkId, deadline: Duration) -> (GetChunk, Vec<Effect>) {
        let placement = self.placement();
        let order: Vec<PeerId> =
            place(chunk, &placement.layout).into_iter().map(|place| place.peer).collect();
        let (holders, rest) = order.split_at(placement.copies.count().min(order.len()));
        let mut others = rest.to_vec();
        others.extend(self.network.peers().iter().map(|known| known.info.id));
        let now = self.now();
        let give_up_at = TimeMs(now.0 + deadline.as_millis() as u64);
        GetChunk::start(holders, &others, &lock(&self.latencies), now, give_up_at)
    }

    async fn ask(&self, peer: PeerId, chunk: ChunkId) -> (PeerId, Result<Bytes, Failure>) {
        let Some(link) = self.network.link(peer) else {
            return (peer, Err(Failure::Unreachable));
        };
        let asked = self.now();
        let answer = match link.get(chunk).await {
            Ok(Some(bytes)) if hash::address(&bytes) == chunk => Ok(bytes),
            Ok(Some(_)) => Err(Failure::Lied),
            Ok(None) => Err(Failure::Missing),
            Err(LinkError::FailedHere { why: Trouble::Said(Said::ChunkDamaged(_)), .. }) => {
                Err(Failure::Damaged)
            }
            Err(error) => {
                tracing::debug!(%chunk, %error, "a copy could not be had");
                Err(Failure::Unreachable)
            }
        };
        let now = self.now();
        match &answer {
            Ok(_) => lock(&self.latencies).answered(peer, now.0 - asked.0),
            // Not having it says nothing about how fast a peer is.
            Err(Failure::Missing | Failure::Damaged) => {}
            Err(_) => lock(&self.latencies).failed(peer, now),
        }
        (peer, answer)
    }
}

fn gave_up(chunk: ChunkId, failed: &[(PeerId, Failure)]) -> GetError {
    let silent = failed.iter().any(|(_, why)| *why == Failure::Unreachable);
    let failed: Vec<String> =
        failed.iter().map(|(peer, why)| format!("peer {peer} {why}")).collect();
    let failed = failed.join(", ");
    match silent {
        true => GetError::NotInTime { chunk, failed },
        false => GetError::NoGoodCopy { chunk, failed },
    }
}
