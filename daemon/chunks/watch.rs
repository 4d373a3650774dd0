//! What the peers say of themselves, asked for now and then: room, and whether they are there.
//!
//! Owns: when they are asked, so that `df` need not wait for the network; and the completion of
//! copies that are owed.

use super::{Chunks, lock};
use crate::link::LinkError;
use bytes::Bytes;
use mictlan::cluster::owed::LONGEST_WAIT_MS;
use mictlan::cluster::put::Failure;
use mictlan::id::{ChunkId, PeerId, TimeMs};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often peers are asked.
const EVERY: Duration = Duration::from_secs(10);
/// A writer that is refused again and again has them asked no sooner than this.
const SOONEST: Duration = Duration::from_secs(1);
/// Owed copies made in one round, so that they never crowd out a user's chunks.
const OWED_PER_ROUND: usize = 64;
const DEADLINE: Duration = Duration::from_secs(30);
/// At the end of a mount: how long owed copies are tried without one being made, and how often. A
/// peer that has just started needs about a second until it knows whom to listen to.
const HOPE: Duration = Duration::from_secs(3);
const BETWEEN_TRIES: Duration = Duration::from_millis(200);

impl Chunks {
    /// Asks the peers, and completes what is owed, until the mount ends.
    pub async fn watch(self: Arc<Self>) {
        loop {
            let asked = Instant::now();
            self.ask_peers().await;
            // Round after round while copies are made, so that a peer that was away is soon whole.
            while self.complete_owed(self.now()).await > 0 {}
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = self.look.notified() => tokio::time::sleep_until(asked + SOONEST).await,
            }
        }
    }

    pub async fn ask_peers(&self) {
        let peers = self.network.peers();
        self.presence.only(|peer| peers.iter().any(|known| known.info.id == peer));
        for known in peers.iter().filter(|known| known.info.storage) {
            let asked = tokio::time::timeout(EVERY, known.link.status()).await;
            match asked {
                Ok(Ok(status)) => {
                    self.presence.heard(known.info.id);
                    if let Some(store) = status.store {
                        lock(&self.rooms).heard(known.info.id, &store);
                    }
                }
                Ok(Err(error)) => {
                    self.presence.missed(known.info.id, error);
                    lock(&self.rooms).missed(known.info.id);
                }
                Err(_) => {
                    let why = format!("no answer within {} s", EVERY.as_secs());
                    self.presence.missed(known.info.id, why);
                    lock(&self.rooms).missed(known.info.id);
                }
            }
        }
    }

    /// How many peers say that they have each of `chunks` on disk, and why one could not be asked:
    /// it may have what the others lack.
    pub async fn have(&self, chunks: &[ChunkId]) -> (HashMap<ChunkId, usize>, Option<LinkError>) {
        let mut found = HashMap::new();
        let mut failed = None;
        for known in self.network.peers().iter().filter(|known| known.info.storage) {
            for part in chunks.chunks(10_000) {
                match known.link.have(part.to_vec()).await {
                    Ok(receipts) => {
                        for receipt in receipts.into_iter().flatten() {
                            *found.entry(receipt.chunk).or_default() += 1;
                        }
                    }
                    Err(error) => failed = Some(error),
                }
            }
        }
        (found, failed)
    }

    /// Ends what is on the way, and makes copies that are owed as long as some can be made, but for
    /// `most` at the longest: the peers look after what is left, but not at once.
    pub async fn settle(self: &Arc<Self>, most: Duration) {
        let settled = async {
            let mut running = self.running.subscribe();
            let _ = running.wait_for(|running| *running == 0).await;
            let mut progress = Instant::now();
            while self.owed() > 0 && progress.elapsed() < HOPE {
                // A pause that a debt still has is not worth waiting for.
                if self.complete_owed(TimeMs(self.now().0 + LONGEST_WAIT_MS)).await > 0 {
                    progress = Instant::now();
                } else {
                    tokio::time::sleep(BETWEEN_TRIES).await;
                }
            }
        };
        let late = tokio::time::timeout(most, settled).await.is_err();
        let (on_the_way, owed) = (*self.running.borrow(), self.owed());
        if late || owed > 0 {
            tracing::warn!(
                on_the_way,
                owed,
                "some chunks are durable and have fewer copies than they should, because a peer \
                 did not take them in time; the peers that have them make the rest"
            );
        }
    }

    /// Makes copies that are owed and due `now`, because a peer was away: how many chunks are whole
    /// after it.
    async fn complete_owed(self: &Arc<Self>, now: TimeMs) -> usize {
        let (mut whole, mut away) = (0, HashSet::new());
        let due = lock(&self.owed).due(now, OWED_PER_ROUND);
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
            match sender.send(chunk, bytes.clone(), None).await {
                Ok(()) => {
                    lock(&self.silent).remove(&place.peer);
                    stored.push(place.peer);
                }
                Err(why) => {
                    if why == Failure::Lied {
                        self.reader.liars().report(place.peer, chunk);
                    }
                    away.insert(place.peer);
                }
            }
        }
    }
}
