//! One chunk, or a piece of it, from whichever copy is good: drives `cluster::get`, for a mount and
//! for a peer.
//!
//! Owns: how fast each peer answered this process.
//! Invariant: bytes leave here only when they hash to the address that was asked for, or, a piece,
//! come with their path to it; a peer that sent others is logged, and the next copy is used.

use super::liars::Liars;
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
use mictlan::seal::{self, HEAD, HEAD_BYTES};
use mictlan::wire::Failure as Said;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

pub struct Reader {
    network: Arc<Network>,
    latencies: Mutex<Latencies>,
    /// The same of pieces: they are small, and say little about how long a whole chunk takes.
    latencies_of_pieces: Mutex<Latencies>,
    liars: Liars,
    started: Instant,
}

/// What of a chunk is wanted.
#[derive(Clone, Debug)]
pub enum Piece {
    Whole,
    /// Enough of its beginning to hold the header of a data chunk.
    Head,
    /// Some of its stored bytes.
    Bytes(Range<u64>),
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
        Self {
            network,
            latencies: Mutex::default(),
            latencies_of_pieces: Mutex::default(),
            liars: Liars::default(),
            started: Instant::now(),
        }
    }

    /// Who was found out, here or by receipts.
    pub fn liars(&self) -> &Liars {
        &self.liars
    }

    /// Asks those that should have it, then the others in their order, then all that are known.
    pub async fn get(
        &self,
        asker: Asker,
        chunk: ChunkId,
        piece: &Piece,
        holders: &[PeerId],
        others: &[PeerId],
        deadline: Duration,
    ) -> Result<Bytes, GetError> {
        let (mut machine, mut effects) = self.start(asker, piece, holders, others, deadline);
        let mut asks = FuturesUnordered::new();
        let mut arrived: Option<(PeerId, Bytes)> = None;
        loop {
            for effect in effects {
                match effect {
                    Effect::Ask(peer) => asks.push(self.ask(peer, Way::Own, chunk, piece)),
                    Effect::Fetch(peer) => asks.push(self.ask(peer, Way::Fetch, chunk, piece)),
                    Effect::Report { liar } => {
                        self.liars.report(liar, chunk);
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
        piece: &Piece,
        holders: &[PeerId],
        others: &[PeerId],
        deadline: Duration,
    ) -> (GetChunk, Vec<Effect>) {
        let mut others = others.to_vec();
        others.extend(self.network.peers().iter().map(|known| known.info.id));
        let now = self.now();
        let give_up_at = TimeMs(now.0 + deadline.as_millis() as u64);
        let latencies = lock(self.latencies(piece));
        GetChunk::start(asker, holders, &others, &latencies, now, give_up_at)
    }

    fn latencies(&self, piece: &Piece) -> &Mutex<Latencies> {
        match piece {
            Piece::Whole => &self.latencies,
            Piece::Head | Piece::Bytes(_) => &self.latencies_of_pieces,
        }
    }

    async fn ask(
        &self,
        peer: PeerId,
        way: Way,
        chunk: ChunkId,
        piece: &Piece,
    ) -> (PeerId, Way, Result<Bytes, Failure>) {
        let Some(link) = self.network.link(peer) else {
            return (peer, way, Err(Failure::Unreachable));
        };
        let asked = self.now();
        let answer = one(&link, way, chunk, piece).await;
        let now = self.now();
        match &answer {
            // What others did for it says nothing about how fast a peer is.
            _ if way == Way::Fetch => {}
            Ok(_) => lock(self.latencies(piece)).answered(peer, now.0 - asked.0),
            // Nor does not having it.
            Err(Failure::Missing | Failure::Damaged) => {}
            Err(_) => {
                lock(&self.latencies).failed(peer, now);
                lock(&self.latencies_of_pieces).failed(peer, now);
            }
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

async fn one(link: &Link, way: Way, chunk: ChunkId, piece: &Piece) -> Result<Bytes, Failure> {
    let answer = match (way, piece) {
        (Way::Fetch, _) => link.fetch(chunk).await,
        (Way::Own, Piece::Whole) => link.get(chunk).await,
        (Way::Own, Piece::Head) => link.get_range(chunk, HEAD).await,
        (Way::Own, Piece::Bytes(range)) => link.get_range(chunk, range.clone()).await,
    };
    match answer {
        Ok(Some(bytes)) => match way {
            Way::Own => checked(chunk, piece, bytes),
            Way::Fetch => checked(chunk, &Piece::Whole, bytes).and_then(|all| cut(&all, piece)),
        },
        Ok(None) => Err(Failure::Missing),
        Err(LinkError::FailedHere { why: Trouble::Said(Said::ChunkDamaged(_)), .. }) => {
            Err(Failure::Damaged)
        }
        // The chunk is shorter than its header says: no copy of it has these bytes.
        Err(LinkError::Refused { why: Said::Malformed(_), .. })
            if matches!(piece, Piece::Bytes(_)) =>
        {
            Err(Failure::Missing)
        }
        Err(error) => {
            tracing::debug!(%chunk, %error, "a copy could not be had");
            Err(Failure::Unreachable)
        }
    }
}

/// What was asked for, if `reply` proves it by the chunk's address.
fn checked(chunk: ChunkId, piece: &Piece, reply: Bytes) -> Result<Bytes, Failure> {
    let proved = match piece {
        Piece::Whole => {
            return match hash::address(&reply) == chunk {
                true => Ok(reply),
                false => Err(Failure::Lied),
            };
        }
        Piece::Head => seal::check_head(&chunk, &reply),
        Piece::Bytes(range) => seal::check(&chunk, range.clone(), &reply),
    };
    proved.map(Bytes::from).map_err(|_| Failure::Lied)
}

/// The piece, out of all bytes of the chunk.
fn cut(all: &Bytes, piece: &Piece) -> Result<Bytes, Failure> {
    match piece {
        Piece::Whole => Ok(all.clone()),
        Piece::Head => Ok(all.slice(..all.len().min(HEAD_BYTES))),
        Piece::Bytes(range) if range.end <= all.len() as u64 => {
            Ok(all.slice(range.start as usize..range.end as usize))
        }
        Piece::Bytes(_) => Err(Failure::Missing),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_that_is_not_proved_is_a_lie_like_a_chunk_that_is_another() {
        let chunk = Bytes::from((0..100_000u32).map(|n| (n / 7) as u8).collect::<Vec<u8>>());
        let address = hash::address(&chunk);
        let proof = |bytes: &[u8], range| Bytes::from(seal::prove(bytes, range).expect("inside"));
        let mut other = chunk.to_vec();
        other[70_000] ^= 1;
        let some = Piece::Bytes(65_000..90_000);
        for (piece, good, bad) in [
            (Piece::Whole, chunk.clone(), Bytes::from(other.clone())),
            (Piece::Head, proof(&chunk, HEAD), proof(&other, HEAD)),
            (some.clone(), proof(&chunk, 65_000..90_000), proof(&other, 65_000..90_000)),
            (some.clone(), proof(&chunk, 65_000..90_000), proof(&chunk, 60_000..90_000)),
            (some, proof(&chunk, 65_000..90_000), Bytes::new()),
        ] {
            let whole = cut(&chunk, &piece).expect("inside");
            assert_eq!(checked(address, &piece, good), Ok(whole), "{piece:?}");
            assert_eq!(checked(address, &piece, bad), Err(Failure::Lied), "{piece:?}");
        }
        let beyond = Piece::Bytes(99_999..100_001);
        assert_eq!(cut(&chunk, &beyond), Err(Failure::Missing));
    }
}
