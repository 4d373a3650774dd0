//! Questions about the applied state, and files of the ledger's tree.

use super::{Service, no_ledger};
use crate::peer::Standing;
use bytes::Bytes;
use mictlan::cluster::state::{Outcome, RootMark, State};
use mictlan::id::{Label, PrincipalId, TimeMs};
use mictlan::ledger::record::body::{PeerState, Role};
use mictlan::ledger::tile::{Row, TileId};
use mictlan::wire::{Answer, Failure, Join, Joined, Member, PeerInfo, Query, RootInfo, VolumeInfo};
use std::ops::Range;

/// What the state says about a key, over all volumes.
pub fn standing(state: &State, principal: &PrincipalId) -> Standing {
    let people = state.people();
    let network = state.network();
    let now = state.head().t;
    let peer = network
        .peers()
        .find(|peer| peer.keys.signing == *principal && peer.state != PeerState::Removed);
    let name = people
        .name_of(principal)
        .filter(|name| people.find(name).is_some_and(|person| person.is_active()));
    let role = |wanted: &[Role]| {
        name.is_some_and(|name| {
            people.grants().any(|(who, _, role, until)| {
                who == name && wanted.contains(&role) && until.is_none_or(|until| now <= until)
            })
        })
    };
    Standing {
        known: name.is_some() || peer.is_some(),
        peer: peer.map(|peer| peer.peer),
        voter: peer.is_some_and(|peer| peer.voter),
        reads: role(&[Role::Owner, Role::Writer, Role::Reader, Role::Auditor]),
        writes: role(&[Role::Owner, Role::Writer]),
    }
}

pub fn answer(state: &State, _asker: &PrincipalId, query: Query) -> Result<Answer, Failure> {
    Ok(match query {
        Query::Peers => {
            Answer::Peers { layout: state.network().layout().version(), peers: peers(state) }
        }
        Query::Volumes => Answer::Volumes(state.volumes().iter().map(volume).collect()),
        Query::Members(volume) => {
            let now = state.head().t;
            let people = state.people();
            let member = |name: &Label| {
                let role = people.role_in(name, volume, now)?;
                let keys = &people.find(name)?.keys;
                Some(Member {
                    principal: keys.signing,
                    agreement: keys.agreement,
                    name: name.clone(),
                    role,
                    until: None,
                })
            };
            Answer::Members(people.members(volume, now).into_iter().filter_map(member).collect())
        }
        Query::LastOf(session) => {
            let last = state.session(session).ok().and_then(|session| session.last);
            Answer::LastOf(last.map(|(turn, _)| (turn.attempt, turn.n)))
        }
        Query::Roots(volume) => {
            let volume = state.volumes().get(&volume);
            Answer::Roots(volume.into_iter().flat_map(|volume| volume.roots()).map(root).collect())
        }
    })
}

pub fn peers(state: &State) -> Vec<PeerInfo> {
    let network = state.network();
    let layout = network.layout();
    let active = network.peers().filter(|peer| peer.state != PeerState::Removed);
    let info = |peer: &mictlan::ledger::record::body::Peer| {
        let place = layout.member(peer.peer);
        PeerInfo {
            id: peer.peer,
            name: peer.name.clone(),
            principal: peer.keys.signing,
            addresses: peer.addresses.clone(),
            storage: peer.storage,
            voter: peer.voter,
            domain: place.map_or_else(|| peer.name.to_string(), |place| place.domain.to_string()),
            weight: place.map_or(0, |place| place.weight.0),
        }
    };
    active.map(info).collect()
}

fn volume((id, volume): (&mictlan::id::VolumeId, &mictlan::cluster::state::Volume)) -> VolumeInfo {
    VolumeInfo {
        id: *id,
        name: volume.settings.name.clone(),
        epoch: volume.epoch(),
        copies: u8::try_from(volume.settings.replicas).unwrap_or(u8::MAX),
        compress: volume.settings.compress,
        made: volume.made,
        root: volume.roots().next_back().map(root),
    }
}

fn root(mark: &RootMark) -> RootInfo {
    RootInfo {
        record: mark.record,
        position: mark.position,
        address: mark.address,
        identity: mark.identity,
        epoch: mark.key_epoch,
    }
}

impl Service {
    /// A newcomer's record, signed by its invite's key.
    pub(super) async fn welcome(&self, join: Join) -> Result<Joined, Failure> {
        let outcome = self.have_ordered(join.submission).await?;
        let position = match &outcome {
            Outcome::Refused(refusal) => return Err(Failure::InviteRefused(refusal.to_string())),
            other => other.position().ok_or_else(no_ledger)?,
        };
        let peers = self.sequencer.with_state(peers).ok_or_else(no_ledger)?;
        Ok(Joined { position, peers, wraps: Vec::new() })
    }

    /// A file of the static tree: the newest note, a tile, an entry bundle.
    pub(super) fn file(
        &self,
        path: &str,
        range: Option<Range<u64>>,
    ) -> Result<Option<Bytes>, Failure> {
        let files = &self.sequencer.applied().files;
        let whole = match path {
            "checkpoint" => self.sequencer.published().map(|published| published.note),
            path => TileId::parse(path).and_then(|tile| {
                let (index, width) = (tile.index, u64::from(tile.width));
                let bytes = match tile.row {
                    Row::Level(level) => files.hashes(level, index, width),
                    Row::Entries => files.bundle(index, width),
                };
                bytes.ok().map(Bytes::from)
            }),
        };
        let cut = |bytes: Bytes| match &range {
            Some(range) => {
                let end = (range.end as usize).min(bytes.len());
                bytes.slice((range.start as usize).min(end)..end)
            }
            None => bytes,
        };
        Ok(whole.map(cut))
    }

    /// The time that a record would get if this peer ordered it now.
    pub(super) fn now(&self) -> TimeMs {
        let last = self.sequencer.with_state(|state| state.head().t).unwrap_or_default();
        crate::host::now().max(last)
    }
}
