//! Peers, voters, the layout and the log's keys.
//!
//! Owns: what `net.peer`, `net.layout` and `net.key` records add up to.
//! Invariant: a peer's number is granted once and never another's; the layout's version and the
//! log key's serial grow by one.

use crate::cluster::layout::Layout;
use crate::id::{Label, PeerId, Position};
use crate::ledger::record::body::{Genesis, LogWrap, Peer, PeerState};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LogKey {
    pub key: [u8; 32],
    /// The record that began it.
    pub since: Position,
    /// 0 for the key of genesis.
    pub serial: u32,
    /// Its secret, wrapped for each voter of that time.
    pub wraps: Vec<LogWrap>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Network {
    pub(super) peers: BTreeMap<PeerId, Peer>,
    pub(super) layout: Layout,
    /// The number of lying voters that publication withstands, when it was set.
    pub(super) faults: Option<u32>,
    /// The oldest first; the last one signs.
    pub(super) log_keys: Vec<LogKey>,
}

impl Network {
    /// The network of one peer that genesis describes; the peer itself is set by `State`.
    pub(super) fn found(body: &Genesis) -> Self {
        let wraps = vec![LogWrap { peer: body.peer.peer, wrap: body.log_wrap.clone() }];
        let first = LogKey { key: body.log_key, since: Position(0), serial: 0, wraps };
        Self {
            peers: BTreeMap::new(),
            layout: Layout::new(),
            faults: body.faults,
            log_keys: vec![first],
        }
    }

    /// Every peer there ever was.
    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.peers.values()
    }

    pub fn peer(&self, id: PeerId) -> Option<&Peer> {
        self.peers.get(&id)
    }

    pub fn peer_named(&self, name: &Label) -> Option<&Peer> {
        self.peers.values().find(|peer| peer.name == *name)
    }

    pub fn is_voter(&self, name: &Label) -> bool {
        self.peer_named(name).is_some_and(votes)
    }

    pub fn is_storage(&self, name: &Label) -> bool {
        self.peer_named(name).is_some_and(|p| p.storage && p.state != PeerState::Removed)
    }

    /// Who orders the ledger and cosigns it, by number.
    pub fn voters(&self) -> impl Iterator<Item = &Peer> {
        self.peers.values().filter(|peer| votes(peer))
    }

    pub fn faults(&self) -> Option<u32> {
        self.faults
    }

    /// The newest layout, in which a peer that is not active is placed nothing.
    pub fn layout(&self) -> Layout {
        let stores = |p: &Peer| p.storage && p.state == PeerState::Active;
        self.layout.without_weight(|id| !self.peer(id).is_some_and(stores))
    }

    pub fn log_keys(&self) -> &[LogKey] {
        &self.log_keys
    }

    pub fn log_key(&self) -> &LogKey {
        self.log_keys.last().expect("genesis brings the first log key")
    }

    pub fn next_peer(&self) -> PeerId {
        PeerId(self.peers.last_key_value().map_or(1, |(last, _)| last.0 + 1))
    }

    pub(super) fn set_peer(&mut self, peer: Peer) {
        self.peers.insert(peer.peer, peer);
    }
}

fn votes(peer: &Peer) -> bool {
    peer.voter && peer.state != PeerState::Removed
}
