//! What the peers say of themselves, asked for now and then: room, and whether they are there.
//!
//! Owns: the last word of each storage peer, so that `df` need not wait for the network; and the
//! completion of copies that are owed.

use super::{Chunks, lock};
use crate::link::LinkError;
use bytes::Bytes;
use mictlan::id::{ChunkId, PeerId};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often peers are asked.
const EVERY: Duration = Duration::from_secs(10);
/// Owed copies made in one round, so that they never crowd out a user's chunks.
const OWED_PER_ROUND: usize = 64;
const DEADLINE: Duration = Duration::from_secs(30);

/// What one peer said.
#[derive(Clone, Copy, Debug)]
pub struct Said {
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    pub at: Instant,
}

impl Chunks {
    /// Asks the peers, and completes what is owed, until the mount ends.
    pub async fn watch(self: Arc<Self>) {
        loop {
            self.ask_peers().await;
            // Round after round while copies are made, so that a peer that was away is soon whole.
            while self.complete_owed().await > 0 {}
            tokio::time::sleep(EVERY).await;
        }
    }

    pub async fn ask_peers(&self) {
        for known in self.network.peers().iter().filter(|known| known.info.storage) {
            let asked = tokio::time::timeout(EVERY, known.link.status()).await;
            match asked {
                Ok(Ok(status)) => {
                    if let Some(store) = status.store {
                        let (capacity_bytes, used_bytes) = (store.capacity_bytes, store.used_bytes);
                        let said = Said { capacity_bytes, used_bytes, at: Instant::now() };
                        lock(&self.said).insert(known.info.id, said);
                    }
                }
                Ok(Err(error)) => {
                    tracing::debug!(%error, "a peer does not say how it is");
                    lock(&self.said).remove(&known.info.id);
                }
                Err(_) => {
                    lock(&self.said).remove(&known.info.id);
                }
            }
        }
    }

    pub fn said(&self) -> HashMap<PeerId, Said> {
        lock(&self.said).clone()
    }

    /// Room for a user's bytes: what the fullest of the peers that must take every copy leaves,
    /// summed over the peers and divided by the copies. `None` until somebody was heard.
    pub fn free_bytes(&self) -> Option<u64> {
        let said = lock(&self.said);
        if said.is_empty() {
            return None;
        }
        let free: Vec<u64> =
            said.values().map(|said| said.capacity_bytes.saturating_sub(said.used_bytes)).collect();
        let copies = self.placement().copies.count().min(free.len()).max(1);
        let sum: u64 = free.iter().fold(0, |sum, free| sum.saturating_add(*free));
        let least = free.iter().min().copied().unwrap_or(0);
        // With as many peers as copies each takes everything, so the fullest one decides.
        Some(if free.len() <= copies { least } else { sum / copies as u64 })
    }

    /// Which of `chunks` some peer has on disk.
    ///
    /// # Errors
    /// When a peer could not be asked and some chunk was found nowhere else: it may be there.
    pub async fn have(&self, chunks: Vec<ChunkId>) -> Result<HashSet<ChunkId>, LinkError> {
        let mut found = HashSet::new();
        let mut failed = None;
        for known in self.network.peers().iter().filter(|known| known.info.storage) {
            for part in chunks.chunks(10_000) {
                let missing: Vec<ChunkId> =
                    part.iter().filter(|chunk| !found.contains(*chunk)).copied().collect();
                if missing.is_empty() {
                    continue;
                }
                match known.link.have(missing.clone()).await {
                    Ok(receipts) => {
                        let there = missing.iter().zip(receipts).filter(|(_, r)| r.is_some());
                        found.extend(there.map(|(chunk, _)| *chunk));
                    }
                    Err(error) => failed = Some(error),
                }
            }
        }
        match failed {
            Some(error) if found.len() < chunks.len() => Err(error),
            _ => Ok(found),
        }
    }

    /// Makes copies that were owed because a peer was away: how many chunks are whole now.
    async fn complete_owed(self: &Arc<Self>) -> usize {
        let (mut whole, mut away) = (0, HashSet::new());
        let due = lock(&self.owed).due(self.now(), OWED_PER_ROUND);
        for (chunk, debt) in due {
            let mut stored = debt.stored.clone();
            let bytes = match self.get(chunk, DEADLINE).await {
                Ok(bytes) => bytes,
                Err(error) => {
                    tracing::warn!(%error, "a chunk that lacks copies cannot be read now");
                    lock(&self.owed).note(chunk, stored, debt.copies, self.now());
                    continue;
                }
            };
            self.complete(chunk, bytes, debt.copies, &mut stored, &mut away).await;
            whole += usize::from(stored.len() >= debt.copies);
            lock(&self.owed).note(chunk, stored, debt.copies, self.now());
        }
        whole
    }

    /// Peers that are `away` are not asked again in this round.
    async fn complete(
        &self,
        chunk: ChunkId,
        bytes: Bytes,
        copies: usize,
        stored: &mut Vec<PeerId>,
        away: &mut HashSet<PeerId>,
    ) {
        let order = mictlan::cluster::place::place(chunk, &self.placement().layout);
        for place in order {
            if stored.len() >= copies {
                return;
            }
            if stored.contains(&place.peer) || away.contains(&place.peer) {
                continue;
            }
            let Some(sender) = self.sender(place.peer) else { continue };
            match sender.send(bytes.clone()).await {
                Ok(_) => {
                    lock(&self.silent).remove(&place.peer);
                    stored.push(place.peer);
                }
                Err(_) => {
                    away.insert(place.peer);
                }
            }
        }
    }
}
