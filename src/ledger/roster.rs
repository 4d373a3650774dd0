//! Who may sign what at a point of the log, as the records before it say.
//!
//! Owns: the keys of actors, peers and the log, through registration, change and disabling.
//! Never: judges roles and grants, which change what is allowed, not who spoke.
//! Invariant: built from record 0 on by `apply` alone, so whoever reads the same records agrees.

use super::checkpoint::{Policy, VerifierKey, default_faults, quorum};
use super::record::body::{
    Genesis, KeyRotate, Layout, Peer, PeerState, Principal, PublicKeys, log_key_message,
    principal_message,
};
use super::record::{Body, Origin, Signed, genesis_hash};
use super::signed_by;
use crate::id::{Label, NetworkId, PeerId, PrincipalId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Why a record that speaks of keys cannot be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RosterError {
    #[error("record 0 is not a genesis record")]
    NoGenesis,
    #[error("a second genesis record")]
    SecondGenesis,
    #[error("the first peer must be number 1, active and a voter")]
    FirstPeer,
    #[error("the actor {0} was never registered")]
    UnknownActor(String),
    #[error("the actor {0} is disabled")]
    Disabled(String),
    #[error("the name {0} belongs to another principal")]
    NameTaken(Label),
    #[error("the key {0} is another actor's already")]
    KeyTaken(PrincipalId),
    #[error("the new keys of {0} are not proved by their holder")]
    NotProved(Label),
    #[error("the peer number {0} is not the next one, and no peer has it")]
    PeerNumber(PeerId),
    #[error("the peer {0} is not known")]
    UnknownPeer(PeerId),
    #[error("the log key of rotation {found} is not signed by the key before it")]
    LogKey { found: u32 },
    #[error("rotation {found} of the log key where {expected} is next")]
    Rotation { found: u32, expected: u32 },
    #[error("layout {found} where {expected} is next")]
    LayoutVersion { found: u64, expected: u64 },
    #[error("{faults} lying voters of {voters} cannot be provided for")]
    Faults { faults: u32, voters: usize },
    #[error("the last voter cannot be removed")]
    LastVoter,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Actor {
    signing: PrincipalId,
    agreement: [u8; 32],
    disabled: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roster {
    network: Label,
    genesis: NetworkId,
    random: [u8; 32],
    actors: BTreeMap<Label, Actor>,
    /// Every key that ever signed, and whose it is: a key is never somebody else's later.
    owners: BTreeMap<PrincipalId, Label>,
    peers: BTreeMap<PeerId, PeerEntry>,
    log_key: [u8; 32],
    /// Rotations of the log key so far.
    rotations: u32,
    layout_version: u64,
    faults: Option<u32>,
}

/// What the roster keeps of a peer; its keys are those of the actor of its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerEntry {
    pub name: Label,
    pub signing: PrincipalId,
    pub agreement: [u8; 32],
    pub addresses: Vec<String>,
    pub storage: bool,
    pub voter: bool,
    pub draining: bool,
    pub removed: bool,
}

impl Roster {
    /// From record 0. The caller checks its signature with `key_of`, as for any other record.
    pub fn genesis(p: &Signed<'_>) -> Result<Self, RosterError> {
        let Ok(Body::Genesis(body)) = p.body() else {
            return Err(RosterError::NoGenesis);
        };
        let Genesis { faults, log_key, network, peer, principal, random, .. } = body;
        if peer.peer != PeerId(1) || !peer.voter || peer.state != PeerState::Active {
            return Err(RosterError::FirstPeer);
        }
        let mut roster = Self {
            network,
            genesis: genesis_hash(p.bytes),
            random,
            actors: BTreeMap::new(),
            owners: BTreeMap::new(),
            peers: BTreeMap::new(),
            log_key,
            rotations: 0,
            layout_version: 0,
            faults,
        };
        roster.bind(&p.actor_label(), &principal)?;
        roster.peer(&peer)?;
        Ok(roster)
    }

    pub fn network(&self) -> &Label {
        &self.network
    }

    pub fn id(&self) -> NetworkId {
        self.genesis
    }

    /// The random value of the genesis record, which wraps of the log key are bound to.
    pub fn random(&self) -> &[u8; 32] {
        &self.random
    }

    pub fn origin(&self) -> Origin {
        Origin::new(&self.network, &self.genesis)
    }

    pub fn log_key(&self) -> &[u8; 32] {
        &self.log_key
    }

    /// The next rotation's serial.
    pub fn next_rotation(&self) -> u32 {
        self.rotations + 1
    }

    pub fn peers(&self) -> impl Iterator<Item = (PeerId, &PeerEntry)> {
        self.peers.iter().map(|(id, peer)| (*id, peer))
    }

    pub fn next_peer(&self) -> PeerId {
        PeerId(self.peers.len() as u64 + 1)
    }

    /// The key that an actor signs with now.
    pub fn key_of(&self, actor: &str) -> Result<PrincipalId, RosterError> {
        self.keys_of(actor).map(|keys| keys.signing)
    }

    /// Both keys of an actor.
    pub fn keys_of(&self, actor: &str) -> Result<PublicKeys, RosterError> {
        match self.actors.get(actor) {
            None => Err(RosterError::UnknownActor(actor.to_owned())),
            Some(entry) if entry.disabled => Err(RosterError::Disabled(actor.to_owned())),
            Some(entry) => Ok(PublicKeys { signing: entry.signing, agreement: entry.agreement }),
        }
    }

    /// Whose key this is or was; a disabled actor's key still has its owner.
    pub fn owner_of(&self, key: &PrincipalId) -> Option<&Label> {
        self.owners.get(key)
    }

    /// Every key that an actor signs with or ever signed with.
    pub fn keys_ever_of(&self, actor: &Label) -> impl Iterator<Item = PrincipalId> {
        self.owners.iter().filter(move |(_, owner)| *owner == actor).map(|(key, _)| *key)
    }

    /// Follows one record after genesis. On an error nothing has changed.
    pub fn apply(&mut self, actor: &Label, body: &Body) -> Result<(), RosterError> {
        match body {
            Body::Genesis(_) => Err(RosterError::SecondGenesis),
            Body::KeyRotate(rotate) => self.rotate(rotate),
            Body::Peer(peer) => self.peer(peer),
            Body::Layout(layout) => self.layout(layout),
            Body::Principal(principal) => self.principal(actor, principal),
            Body::Disable(disable) => match self.actors.get_mut(&disable.name) {
                None => Err(RosterError::UnknownActor(disable.name.to_string())),
                Some(entry) => {
                    entry.disabled = true;
                    Ok(())
                }
            },
            _ => Ok(()),
        }
    }

    fn rotate(&mut self, rotate: &KeyRotate) -> Result<(), RosterError> {
        let (found, expected) = (rotate.serial, self.next_rotation());
        if found != expected {
            return Err(RosterError::Rotation { found, expected });
        }
        let message = log_key_message(&self.origin(), found, &rotate.log_key);
        if !signed_by(&self.log_key, &message, &rotate.old_sig) {
            return Err(RosterError::LogKey { found });
        }
        self.log_key = rotate.log_key;
        self.rotations = found;
        Ok(())
    }

    fn peer(&mut self, peer: &Peer) -> Result<(), RosterError> {
        match self.peers.get(&peer.peer) {
            // A peer keeps its name: cosignatures are told apart by it.
            Some(known) if known.name != peer.name => {
                return Err(RosterError::NameTaken(peer.name.clone()));
            }
            None if peer.peer != self.next_peer() => {
                return Err(RosterError::PeerNumber(peer.peer));
            }
            // Who joined as a principal becomes a peer under the same keys, and no others.
            None if self.actors.contains_key(&peer.name)
                && self.keys_of(peer.name.as_str()).as_ref() != Ok(&peer.keys) =>
            {
                return Err(RosterError::NameTaken(peer.name.clone()));
            }
            _ => {}
        }
        let removed = peer.state == PeerState::Removed;
        let voter = peer.voter && !removed;
        let others = self.peers.iter().filter(|(id, p)| **id != peer.peer && p.voter).count();
        let voters = others + usize::from(voter);
        if voters == 0 {
            return Err(RosterError::LastVoter);
        }
        possible(self.faults, voters)?;
        self.bind(&peer.name, &peer.keys)?;
        if let Some(actor) = self.actors.get_mut(&peer.name) {
            actor.disabled = removed;
        }
        let entry = PeerEntry {
            name: peer.name.clone(),
            signing: peer.keys.signing,
            agreement: peer.keys.agreement,
            addresses: peer.addresses.clone(),
            storage: peer.storage && !removed,
            voter,
            draining: peer.state == PeerState::Draining,
            removed,
        };
        self.peers.insert(peer.peer, entry);
        Ok(())
    }

    fn layout(&mut self, layout: &Layout) -> Result<(), RosterError> {
        let (found, expected) = (layout.version, self.layout_version + 1);
        if found != expected {
            return Err(RosterError::LayoutVersion { found, expected });
        }
        let named = layout.set.iter().map(|p| &p.peer).chain(&layout.remove);
        if let Some(unknown) = named.into_iter().find(|id| !self.peers.contains_key(id)) {
            return Err(RosterError::UnknownPeer(*unknown));
        }
        let faults = layout.faults.or(self.faults);
        possible(faults, self.peers.values().filter(|p| p.voter).count())?;
        self.faults = faults;
        self.layout_version = found;
        Ok(())
    }

    fn principal(&mut self, actor: &Label, principal: &Principal) -> Result<(), RosterError> {
        let Principal { keys, name, proof, .. } = principal;
        let known = self.actors.get(name);
        // A name changes its own keys; nobody else does, and a disabled name stays disabled.
        if known.is_some() && actor != name {
            return Err(RosterError::NameTaken(name.clone()));
        }
        if known.is_some_and(|entry| entry.disabled) {
            return Err(RosterError::Disabled(name.to_string()));
        }
        // A peer's keys are those of its `net.peer` record, and nowhere else.
        if self.peers.values().any(|peer| peer.name == *name) {
            return Err(RosterError::NameTaken(name.clone()));
        }
        let message = principal_message(&self.origin(), name, keys);
        if !signed_by(&keys.signing.0, &message, proof) {
            return Err(RosterError::NotProved(name.clone()));
        }
        self.bind(name, keys)
    }

    /// Binds a name to keys, unless the signing key is or was another's.
    fn bind(&mut self, name: &Label, keys: &PublicKeys) -> Result<(), RosterError> {
        if self.owners.get(&keys.signing).is_some_and(|owner| owner != name) {
            return Err(RosterError::KeyTaken(keys.signing));
        }
        let disabled = self.actors.get(name).is_some_and(|entry| entry.disabled);
        let (signing, agreement) = (keys.signing, keys.agreement);
        self.owners.insert(signing, name.clone());
        self.actors.insert(name.clone(), Actor { signing, agreement, disabled });
        Ok(())
    }

    /// Whose signatures make the checkpoint of exactly these records believable.
    pub fn policy(&self) -> Policy {
        let origin = self.origin();
        let voter = |p: &PeerEntry| VerifierKey::voter(&origin, p.name.as_str(), p.signing.0);
        let voters: Vec<_> = self.peers.values().filter(|p| p.voter).map(voter).collect();
        let faults = self.faults.map_or_else(|| default_faults(voters.len()), |f| f as usize);
        Policy { log: VerifierKey::log(&origin, self.log_key), voters, faults }
    }
}

/// A quorum of more than all voters would stop publication for ever.
fn possible(faults: Option<u32>, voters: usize) -> Result<(), RosterError> {
    match faults {
        Some(faults) if quorum(voters, faults as usize) > voters => {
            Err(RosterError::Faults { faults, voters })
        }
        _ => Ok(()),
    }
}
