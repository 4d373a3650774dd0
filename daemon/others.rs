//! The other peers, as a peer asks them for a chunk that it lacks.
//!
//! Owns: the ways to them as the ledger names them, where chunks are placed, how many chunks are fetched at a time and for
//! how long.
//! Never: decides who may read; `peer` did, before. Never has another peer fetch: each is asked
//! for what it has itself, so that no two ever wait for each other.
//! Invariant: what is brought hashes to the address that was asked for.

use crate::chunks::{self, GetError, Piece, Reader};
use crate::http::transport::Transport;
use crate::link::Link;
use crate::network::{Known, Network};
use crate::peer::Sequencing;
use bytes::Bytes;
use mictlan::cluster::get::Asker;
use mictlan::cluster::layout::Layout;
use mictlan::cluster::place::{Copies, place};
use mictlan::id::{ChunkId, PeerId};
use mictlan::wire::{Answer, Failure, PeerInfo, Query};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

/// Shorter than the asker's own deadline (`link::CHUNKS_DEADLINE`), so that he hears why.
const WITHIN: Duration = Duration::from_secs(20);
/// A stored chunk has at most 8 MiB: with four, 32 MiB are on their way.
const AT_ONCE: usize = 4;

pub struct Others {
    transport: Transport,
    network: Arc<Network>,
    reader: Reader,
    at_once: Semaphore,
    /// Whom the links lead to; covered by no other lock.
    known: Mutex<Vec<PeerInfo>>,
}

/// A chunk that was not here.
pub struct Fetched {
    pub bytes: Bytes,
    /// This peer is one of those that should have it.
    pub belongs_here: bool,
}

impl Others {
    pub fn new(transport: Transport) -> Self {
        let network = Arc::new(Network::new(Vec::new()));
        let reader = Reader::new(network.clone());
        let at_once = Semaphore::new(AT_ONCE);
        Self { transport, network, reader, at_once, known: Mutex::default() }
    }

    /// `None`: every other peer was heard, and none has it.
    pub async fn fetch(
        &self,
        chunk: ChunkId,
        ledger: &dyn Sequencing,
    ) -> Result<Option<Fetched>, Failure> {
        let found = async {
            let _turn = self.at_once.acquire().await.expect("it is never closed");
            let (placed, rest) = self.placed(chunk, ledger)?;
            let me = ledger.id();
            let not_me = |peers: &[PeerId]| -> Vec<PeerId> {
                peers.iter().copied().filter(|peer| Some(*peer) != me).collect()
            };
            let (holders, others) = (not_me(&placed), not_me(&rest));
            let belongs_here = holders.len() < placed.len();
            match self
                .reader
                .get(Asker::Peer, chunk, &Piece::Whole, &holders, &others, WITHIN)
                .await
            {
                Ok(bytes) => Ok(Some(Fetched { bytes, belongs_here })),
                Err(GetError::NoGoodCopy { .. }) => Ok(None),
                Err(error) => {
                    tracing::debug!(%error, "a chunk that is not here was not fetched");
                    Err(Failure::NotFetched(chunk))
                }
            }
        };
        let late = |_| Err(Failure::NotFetched(chunk));
        tokio::time::timeout(WITHIN, found).await.unwrap_or_else(late)
    }

    /// The peers that should have it, then the others that store. How many should is a matter of
    /// the volume, which a chunk does not name: the most that any volume wants. What a directory
    /// asks for beyond that no peer can know; those peers come next in the order.
    fn placed(
        &self,
        chunk: ChunkId,
        ledger: &dyn Sequencing,
    ) -> Result<(Vec<PeerId>, Vec<PeerId>), Failure> {
        let me = self.transport.principal().id();
        let Answer::Volumes(volumes) = ledger.answer(me, Query::Volumes)? else {
            return Err(another_answer());
        };
        let wanted = volumes.iter().filter_map(|volume| Copies::new(volume.copies)).max();
        let layout = self.layout(ledger)?;
        let mut order: Vec<PeerId> =
            place(chunk, &layout).into_iter().map(|place| place.peer).collect();
        let rest = order.split_off(wanted.unwrap_or(Copies::DEFAULT).count().min(order.len()));
        Ok((order, rest))
    }

    /// Where chunks are placed now; the links follow it.
    pub fn layout(&self, ledger: &dyn Sequencing) -> Result<Layout, Failure> {
        let me = self.transport.principal().id();
        let Answer::Peers { peers, .. } = ledger.answer(me, Query::Peers)? else {
            return Err(another_answer());
        };
        let layout = chunks::layout(&peers).map_err(|why| Failure::Busy(why.to_string()))?;
        self.know(peers);
        Ok(layout)
    }

    /// To another peer that has an address.
    pub fn link(&self, peer: PeerId) -> Option<Link> {
        self.network.link(peer)
    }

    /// Brings the links to what the ledger says.
    fn know(&self, peers: Vec<PeerInfo>) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if *known == peers {
            return;
        }
        let me = self.transport.principal().id();
        let others = peers.iter().filter(|info| info.principal != me && !info.addresses.is_empty());
        let link = |info: &PeerInfo| Known {
            info: info.clone(),
            link: self.transport.link(info.principal, &info.addresses),
        };
        self.network.replace(others.map(link).collect());
        *known = peers;
    }
}

fn another_answer() -> Failure {
    Failure::Busy("the ledger answers another question".to_owned())
}
