//! One chunk from whichever copy is good: drives `cluster::get`, for a mount and for a peer.
//!
//! Owns: how fast each peer answered this process.
//! Invariant: bytes leave here only when they hash to the address that was asked for; a peer that
//! sent others is logged, and the next copy is used.

use super::put::until;
use super::{GetError, lock};
use crate::link::{Link, LinkError, Trouble};
use crate::network::Network;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use mictlan::cluster::get::{Asker, Effect, Event, Failure, GetChunk};
use mictlan::cluster::latency::Latencies;
use mictlan::hash;
use mictlan::id::{ChunkId, PeerId, TimeMs};
use mictlan::wire::Failure as Said;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

pub struct Reader {
    network: Arc<Network>,
    latencies: Mutex<Latencies>,
    started: Instant,
}

/// What one peer is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// What it has.
    Own,
    /// What it has or can fetch.
    Fetch,
}

impl Reader {
    pub fn new(network: Arc<Network>) -> Self {
        Self { network, latencies: Mutex::default(), started: Instant::now() }
    }

    /// Asks those that should have it, then the others in their order, then all that are known.
    pub async fn get(
        &self,
        asker: Asker,
        chunk: ChunkId,
        holders: &[PeerId],
        others: &[PeerId],
        deadline: Duration,
    ) -> Result<Bytes, GetError> {
        let (mut machine, mut effects) = self.start(asker, holders, others, deadline);
        let mut asks = FuturesUnordered::new();
        let mut arrived: Option<(PeerId, Bytes)> = None;
        loop {
            for effect in effects {
                match effect {
                    Effect::Ask(peer) => asks.push(self.ask(peer, Way::Own, chunk)),
                    Effect::Fetch(peer) => asks.push(self.ask(peer, Way::Fetch, chunk)),
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
            let tick = machine.next_tick().map(|time| self.started + after(time));
            let event = tokio::select! {
                Some((peer, way, answer)) = asks.next(), if !asks.is_empty() => match answer {
                    Ok(bytes) => {
                        arrived = Some((peer, bytes));
                        Event::Arrived { peer }
                    }
                    Err(why) if way == Way::Own => Event::Failed { peer, why },
                    Err(why) => Event::NotFetched { peer, why },
                },
                () = until(tick) => Event::Tick,
            };
            effects = machine.on(self.now(), event);
        }
    }

    fn start(
        &self,
        asker: Asker,
        holders: &[PeerId],
        others: &[PeerId],
        deadline: Duration,
    ) -> (GetChunk, Vec<Effect>) {
        let mut others = others.to_vec();
        others.extend(self.network.peers().iter().map(|known| known.info.id));
        let now = self.now();
        let give_up_at = TimeMs(now.0 + deadline.as_millis() as u64);
        GetChunk::start(asker, holders, &others, &lock(&self.latencies), now, give_up_at)
    }

    async fn ask(
        &self,
        peer: PeerId,
        way: Way,
        chunk: ChunkId,
    ) -> (PeerId, Way, Result<Bytes, Failure>) {
        let Some(link) = self.network.link(peer) else {
            return (peer, way, Err(Failure::Unreachable));
        };
        let asked = self.now();
        let answer = one(&link, way, chunk).await;
        let now = self.now();
        match &answer {
            // What others did for it says nothing about how fast a peer is.
            _ if way == Way::Fetch => {}
            Ok(_) => lock(&self.latencies).answered(peer, now.0 - asked.0),
            // Nor does not having it.
            Err(Failure::Missing | Failure::Damaged) => {}
            Err(_) => lock(&self.latencies).failed(peer, now),
        }
        (peer, way, answer)
    }

    /// The machine's clock: only differences count, and it never goes back.
    fn now(&self) -> TimeMs {
        TimeMs(self.started.elapsed().as_millis() as u64)
    }
}

fn after(time: TimeMs) -> Duration {
    Duration::from_millis(time.0)
}

async fn one(link: &Link, way: Way, chunk: ChunkId) -> Result<Bytes, Failure> {
    let answer = match way {
        Way::Own => link.get(chunk).await,
        Way::Fetch => link.fetch(chunk).await,
    };
    match answer {
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
