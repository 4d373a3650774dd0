//! Who may write what, and what must hold before: one rule a kind of record.
//!
//! Owns: the table of roles, and the checks of every kind but `fs.commit`.
//! Never: changes the state; a rule that is kept gives the `Change` that the record makes.
//! Invariant: the rules read nothing but the state, the ledger's time and the record.
//!
//! | kind | who |
//! |---|---|
//! | `net.key` | the network's owner, a voter; signed by the old log key as well |
//! | `net.peer` | the network's owner; the peer itself, within what its grant or invite allows |
//! | `net.layout` | the network's owner; a storage peer, for itself alone |
//! | `net.fence` | the session's own actor; the volume's owner or a voter, naming no successor |
//! | `id.principal` | the network's owner; an invite, once; the name itself, for new keys |
//! | `id.grant`, `id.revoke` | the network's owner; the volume's owner, in it |
//! | `id.wrap` | a member that holds what it wraps, for a member or for an open invite |
//! | `id.disable` | the network's owner; the name itself |
//! | `fs.volume` | the network's owner, and becomes its owner; the volume's owner afterwards |
//! | `fs.commit`, `fs.root` | the volume's owner or a writer |
//! | `note` | everybody |

use super::people::{InviteTerms, Person, Scope, Standing};
use super::{State, volume::Volume};
use crate::cluster::layout::{self, Delta};
use crate::cluster::refusal::Refusal;
use crate::id::{Epoch, Label, PeerId, TimeMs, VolumeId};
use crate::ledger::record::body::{
    Body, Disable, Fence, Grant, KeyRotate, Layout, Peer, PeerState, Principal, Revoke, Role, Root,
    VolumeMade, Wrap, log_key_message, principal_message,
};
use crate::ledger::record::time;
use crate::ledger::signed_by;

/// What an accepted record does to the state, besides becoming part of the ledger.
#[derive(Debug)]
pub(super) enum Change {
    LogKey(KeyRotate),
    Peer(Peer),
    Layout {
        layout: layout::Layout,
        faults: Option<u32>,
    },
    Fence(Fence),
    /// New keys of a known name, or a new name by the network's owner.
    Principal(Principal, Standing),
    Redeemed {
        invite: Label,
        terms: InviteTerms,
        principal: Principal,
    },
    Grant {
        grant: Grant,
        until: Option<TimeMs>,
    },
    Revoke(Revoke),
    Wrap(Wrap),
    Disable(Disable),
    Commit(super::commit::Certified),
    Root(Root),
    Made(VolumeMade),
    Settings(VolumeMade),
    Nothing,
}

/// A record of `actor`, whose signature is right, at the ledger's time `now`.
pub(super) struct Asked<'a> {
    pub state: &'a State,
    pub actor: &'a Label,
    pub now: TimeMs,
}

type Ruling = Result<Change, Refusal>;

pub(super) fn unfit<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Unfit(why.into()))
}

impl Asked<'_> {
    /// The rule of the body's kind. An invite's key may do one thing alone.
    pub fn rule(&self, body: Body) -> Ruling {
        let person = self.person(self.actor)?;
        match (&person.standing, body) {
            (Standing::Invite(terms), Body::Principal(joiner)) => self.redeem(terms, joiner),
            (Standing::Invite(_), _) => self.not_allowed("an invite only introduces who joins"),
            (Standing::Used, _) => self.not_allowed("the invite was used; ask for another"),
            (Standing::Disabled, _) => self.not_allowed("it was disabled"),
            (Standing::Active, body) => self.rule_of_kind(body),
        }
    }

    fn rule_of_kind(&self, body: Body) -> Ruling {
        match body {
            Body::Genesis(_) => unfit("there is one genesis, record 0"),
            Body::KeyRotate(body) => self.key_rotate(body),
            Body::Peer(body) => self.peer(body),
            Body::Layout(body) => self.layout(body),
            Body::Fence(body) => self.fence(body),
            Body::Principal(body) => self.principal(body),
            Body::Grant(body) => self.grant(body),
            Body::Revoke(body) => self.revoke(body),
            Body::Wrap(body) => self.wrap(body),
            Body::Disable(body) => self.disable(body),
            // A commit comes with its parts; `commit` has its rule.
            Body::Commit(_) => unfit("a commit without its tag list"),
            Body::Root(body) => self.root(body),
            Body::Volume(body) => self.volume(body),
            Body::Note(_) => Ok(Change::Nothing),
        }
    }

    pub fn not_allowed<T>(&self, why: &str) -> Result<T, Refusal> {
        Err(Refusal::NotAllowed { actor: self.actor.clone(), why: why.to_owned() })
    }

    fn person(&self, name: &Label) -> Result<&Person, Refusal> {
        let unknown = || Refusal::UnknownActor { actor: name.clone() };
        self.state.people.find(name).ok_or_else(unknown)
    }

    pub fn known_volume(&self, volume: VolumeId) -> Result<&Volume, Refusal> {
        self.state.volumes.get(&volume).ok_or(Refusal::UnknownVolume { volume })
    }

    fn owns_network(&self) -> bool {
        self.state.people.is_network_owner(self.actor, self.now)
    }

    fn owns(&self, scope: Scope) -> bool {
        self.owns_network()
            || scope.is_some() && self.state.people.has(self.actor, scope, Role::Owner, self.now)
    }

    fn key_rotate(&self, body: KeyRotate) -> Ruling {
        let network = &self.state.network;
        if !self.owns_network() && !network.is_voter(self.actor) {
            return self.not_allowed("the log key is rotated by the network's owner or a voter");
        }
        let old = network.log_key();
        if old.serial.checked_add(1) != Some(body.serial) {
            return unfit(format!("the serial after {} is expected", old.serial));
        }
        let message = log_key_message(&self.state.origin, body.serial, &body.log_key);
        if !signed_by(&old.key, &message, &body.old_sig) {
            return unfit("the old log key did not sign the new one");
        }
        let wrapped = body.wraps.iter().map(|wrap| wrap.peer);
        if !wrapped.eq(network.voters().map(|peer| peer.peer)) {
            return unfit("the log key is wrapped for each voter, by number, and for nobody else");
        }
        Ok(Change::LogKey(body))
    }

    fn peer(&self, body: Peer) -> Ruling {
        let before = self.state.network.peer(body.peer);
        match before {
            None if body.peer != self.state.network.next_peer() => {
                return unfit(format!("the next peer is {}", self.state.network.next_peer()));
            }
            Some(peer) if peer.name != body.name => {
                return unfit(format!("peer {} is {}", peer.peer, peer.name));
            }
            Some(peer) if peer.state == PeerState::Removed => {
                return unfit("it was removed; it joins again under a new number");
            }
            _ => {}
        }
        if before.is_none() && self.state.network.peer_named(&body.name).is_some() {
            return unfit(format!("{} is a peer already", body.name));
        }
        if !self.owns_network() {
            self.own_peer(&body, before)?;
        }
        let last_voter = self.state.network.voters().all(|peer| peer.peer == body.peer);
        if last_voter && (!body.voter || body.state == PeerState::Removed) {
            return unfit("it is the only voter; without one nothing is ordered");
        }
        let registered = self.state.people.find(&body.name);
        if registered.is_some_and(|person| person.keys != body.keys) {
            return unfit(format!("{} is registered with other keys", body.name));
        }
        match self.state.people.misfit(&body.name, &body.keys) {
            Some(why) => unfit(why),
            None => Ok(Change::Peer(body)),
        }
    }

    /// What a peer may say of itself: where it is, and to be what it was granted.
    fn own_peer(&self, body: &Peer, before: Option<&Peer>) -> Result<(), Refusal> {
        let was = |role: fn(&Peer) -> bool| before.is_some_and(role);
        let person = self.person(self.actor)?;
        let granted = self.state.people.has(self.actor, None, Role::Storage, self.now);
        match () {
            () if body.name != *self.actor => {
                self.not_allowed("a peer is registered by itself or by the network's owner")
            }
            () if before.is_none() && !granted => {
                self.not_allowed("it needs the network's storage role to be a peer")
            }
            () if body.storage && !granted && !was(|p| p.storage) => {
                self.not_allowed("it has not the network's storage role")
            }
            () if body.voter && !person.may_vote && !was(|p| p.voter) => {
                self.not_allowed("the network's owner, or its invite, lets a peer vote")
            }
            () if !body.voter && was(|p| p.voter) => {
                self.not_allowed("the network's owner ends a vote")
            }
            () if body.state == PeerState::Removed => {
                self.not_allowed("the network's owner removes a peer")
            }
            () => Ok(()),
        }
    }

    fn layout(&self, body: Layout) -> Ruling {
        let network = &self.state.network;
        if !self.owns_network() && !self.places_itself(&body) {
            return self.not_allowed("the layout is the network's owner's");
        }
        let ascending = |ids: &[PeerId]| ids.windows(2).all(|pair| pair[0] < pair[1]);
        let set: Vec<_> = body.set.iter().map(|place| place.peer).collect();
        if !ascending(&body.remove) || !ascending(&set) {
            return unfit("peers are listed by number, each once");
        }
        let stores =
            |id| network.peer(id).is_some_and(|p| p.storage && p.state == PeerState::Active);
        if let Some(id) = set.into_iter().find(|id| !stores(*id)) {
            return unfit(format!("peer {id} is not an active storage peer"));
        }
        let changed =
            Delta::of(&body).and_then(|delta| network.layout.change(body.version, &delta));
        match changed {
            Ok(layout) => Ok(Change::Layout { layout, faults: body.faults }),
            Err(why) => unfit(why.to_string()),
        }
    }

    /// A storage peer that an owner let in says itself how much it takes, and that it is there.
    fn places_itself(&self, body: &Layout) -> bool {
        let own = self.state.network.peer_named(self.actor).map(|peer| peer.peer);
        let alone = matches!(body.set.as_slice(), [place] if Some(place.peer) == own);
        alone && body.remove.is_empty() && body.faults.is_none()
    }

    fn fence(&self, body: Fence) -> Ruling {
        let session = self.state.sessions.find(body.session)?;
        if session.volume != body.volume {
            return unfit(format!("session {} is one of volume {}", body.session, session.volume));
        }
        let own = session.actor == *self.actor;
        let may_break = self.state.network.is_voter(self.actor) || self.owns(Some(body.volume));
        if !own && (body.successor.is_some() || !may_break) {
            return self.not_allowed("only its own actor names a session's successor, and only a voter or the volume's owner may end another's session");
        }
        self.state.sessions.admit_fence(body.session, body.successor)?;
        Ok(Change::Fence(body))
    }

    fn proof_holds(&self, body: &Principal) -> Result<(), Refusal> {
        let message = principal_message(&self.state.origin, &body.name, &body.keys);
        if !signed_by(&body.keys.signing.0, &message, &body.proof) {
            return unfit("the new key did not sign its registration");
        }
        self.state.people.misfit(&body.name, &body.keys).map_or(Ok(()), unfit)
    }

    fn principal(&self, body: Principal) -> Ruling {
        self.proof_holds(&body)?;
        let known = self.state.people.find(&body.name);
        if known.is_some() && body.name != *self.actor {
            return unfit(format!("the name {} is taken", body.name));
        }
        if known.is_none() && !self.owns_network() {
            return self.not_allowed("the network's owner, or an invite, introduces a principal");
        }
        let standing = match (&body.invite, known) {
            (None, None) => Standing::Active,
            (None, Some(person)) => person.standing.clone(),
            (Some(_), Some(_)) => return unfit(format!("the name {} is taken", body.name)),
            (Some(invite), None) => {
                let Some(until) = time::parse(invite.until.as_bytes()) else {
                    return unfit("the invite's end is not a time of the ledger");
                };
                if let Some(volume) = invite.volume {
                    self.known_volume(volume)?;
                }
                let (role, scope, voter) = (invite.role, invite.volume, invite.voter);
                self.fits_scope(role, scope)?;
                if voter && role != Role::Storage {
                    return unfit("a voter joins with the storage role");
                }
                Standing::Invite(InviteTerms { role, scope, voter, until })
            }
        };
        // A peer's keys are in its own record as well, and the two must not differ.
        if known.is_some_and(|p| p.keys != body.keys)
            && self.state.network.peer_named(&body.name).is_some()
        {
            return unfit("a peer's keys stay; it joins again under a new name");
        }
        Ok(Change::Principal(body, standing))
    }

    /// Single use and end are checked here, in the log's order: two joins of one code cannot both
    /// be first.
    fn redeem(&self, terms: &InviteTerms, principal: Principal) -> Ruling {
        if self.now > terms.until {
            return self.not_allowed("the invite has expired; ask for another");
        }
        if principal.invite.is_some() {
            return self.not_allowed("an invite does not invite");
        }
        if self.state.people.find(&principal.name).is_some() {
            return unfit(format!("the name {} is taken; join under another", principal.name));
        }
        self.proof_holds(&principal)?;
        let (invite, terms) = (self.actor.clone(), terms.clone());
        Ok(Change::Redeemed { invite, terms, principal })
    }

    fn fits_scope(&self, role: Role, scope: Scope) -> Result<(), Refusal> {
        match (role, scope) {
            (Role::Owner, _) | (Role::Storage, None) => Ok(()),
            (Role::Writer | Role::Reader | Role::Auditor, Some(_)) => Ok(()),
            (Role::Storage, Some(_)) => unfit("the storage role is the network's, not a volume's"),
            (_, None) => unfit("this role is in a volume; name one"),
        }
    }

    fn grant(&self, body: Grant) -> Ruling {
        if let Some(volume) = body.volume {
            self.known_volume(volume)?;
        }
        if !self.owns(body.volume) {
            return self.not_allowed("roles are given by the owner");
        }
        if !self.person(&body.member)?.is_active() {
            return unfit(format!("{} is disabled, or an invite", body.member));
        }
        self.fits_scope(body.role, body.volume)?;
        let until = match &body.until {
            None => None,
            Some(text) => match time::parse(text.as_bytes()) {
                Some(end) if end > self.now => Some(end),
                Some(_) => return unfit("the grant would have ended already"),
                None => return unfit("the grant's end is not a time of the ledger"),
            },
        };
        Ok(Change::Grant { grant: body, until })
    }

    fn revoke(&self, body: Revoke) -> Ruling {
        self.person(&body.member)?;
        if !self.owns(body.volume) {
            return self.not_allowed("roles are taken by the owner");
        }
        let owner_here = self.state.people.has(&body.member, body.volume, Role::Owner, self.now);
        if owner_here && !self.state.people.has_other_owner(body.volume, &body.member) {
            return unfit("it is the last owner; give the role to another first");
        }
        match (body.volume, body.key_epoch) {
            (None, None) => {}
            (None, Some(_)) => return unfit("the network has no key epoch"),
            (Some(_), None) => return unfit("a removed member begins a key epoch; name it"),
            (Some(volume), Some(epoch)) => {
                self.may_begin(volume, epoch, Some(&body.member))?;
            }
        }
        Ok(Change::Revoke(body))
    }

    /// An epoch begins when all who stay hold its keys, so that nobody has to wait for them.
    fn may_begin(
        &self,
        volume: VolumeId,
        epoch: Epoch,
        without: Option<&Label>,
    ) -> Result<(), Refusal> {
        let known = self.known_volume(volume)?;
        if known.epoch().0.checked_add(1) != Some(epoch.0) {
            return unfit(format!("the volume is in key epoch {}", known.epoch()));
        }
        let waiting = self.state.people.members(volume, self.now).into_iter().find(|member| {
            let had = known.wrapped(member).is_some_and(|held| held >= known.epoch());
            let has = known.wrapped(member).is_some_and(|held| held >= epoch);
            Some(*member) != without && had && !has
        });
        match waiting {
            Some(member) => unfit(format!("key epoch {epoch} is not wrapped for {member} yet")),
            None if without.is_some_and(|gone| known.wrapped(gone) >= Some(epoch)) => {
                unfit(format!("key epoch {epoch} is wrapped for the one who is removed"))
            }
            None => Ok(()),
        }
    }

    fn wrap(&self, body: Wrap) -> Ruling {
        let volume = self.known_volume(body.volume)?;
        let member = self.person(&body.member)?;
        let role = |name| self.state.people.role_in(name, body.volume, self.now);
        let mine = role(self.actor);
        // An auditor has what it got for itself alone, such as by an invite's key.
        let may = match mine {
            Some(Role::Owner | Role::Writer | Role::Reader) => true,
            Some(Role::Auditor) => body.member == *self.actor,
            _ => false,
        };
        if !may {
            return self.not_allowed("secrets are wrapped by a member that holds them");
        }
        let theirs = match &member.standing {
            Standing::Invite(terms) if terms.scope == Some(body.volume) => Some(terms.role),
            _ => role(&body.member),
        };
        // A network owner's role is not a volume's: without a grant there it gets no secrets.
        let Some(theirs) = theirs else {
            return unfit(format!("{} is no member of the volume", body.member));
        };
        if body.data == (theirs == Role::Auditor) {
            return unfit("an auditor gets no data secret, and every other member does");
        }
        if body.to != member.keys.agreement {
            return unfit(format!("the wrap is not to the present key of {}", body.member));
        }
        let next = volume.epoch().0.checked_add(1);
        if body.key_epoch != volume.epoch() && Some(body.key_epoch.0) != next {
            return unfit(format!("the volume is in key epoch {}", volume.epoch()));
        }
        if Some(body.key_epoch.0) == next && mine != Some(Role::Owner) {
            return self.not_allowed("the owner makes the secrets of the next key epoch");
        }
        Ok(Change::Wrap(body))
    }

    fn disable(&self, body: Disable) -> Ruling {
        if !self.owns_network() && body.name != *self.actor {
            return self.not_allowed("a principal is disabled by itself or the network's owner");
        }
        let person = self.person(&body.name)?;
        if person.standing == Standing::Disabled {
            return unfit(format!("{} is disabled already", body.name));
        }
        let owner = self.state.people.is_network_owner(&body.name, self.now);
        if owner && !self.state.people.has_other_owner(None, &body.name) {
            return unfit("it is the network's last owner; give the role to another first");
        }
        Ok(Change::Disable(body))
    }

    fn root(&self, body: Root) -> Ruling {
        let volume = self.known_volume(body.volume)?;
        if !self.state.people.may_write(self.actor, body.volume, self.now) {
            return self.not_allowed("roots are made by an owner or writer of the volume");
        }
        if body.position.0 >= self.state.size() || body.position < volume.made {
            return unfit(format!("there is nothing of the volume at position {}", body.position));
        }
        if body.key_epoch != volume.epoch() {
            let (epoch, current) = (body.key_epoch, volume.epoch());
            return Err(Refusal::WrongEpoch { epoch, current });
        }
        if let Some(record) = body.confirms {
            let Some(mark) = volume.roots().rev().find(|mark| mark.record == record) else {
                return unfit(format!("record {record} is not one of the last roots"));
            };
            // An identity is hashed under its epoch's key: over epochs only a reader can compare.
            let same_epoch = mark.key_epoch == body.key_epoch;
            if mark.position != body.position || same_epoch && mark.identity != body.identity {
                return unfit(format!("it is not the root that record {record} names"));
            }
        }
        Ok(Change::Root(body))
    }

    fn volume(&self, body: VolumeMade) -> Ruling {
        if !(1..=255).contains(&body.replicas) {
            return unfit("a chunk has 1 to 255 copies");
        }
        let names = self.state.volumes.iter().filter(|(_, v)| v.settings.name == body.name);
        if names.into_iter().any(|(id, _)| *id != body.volume) {
            return unfit(format!("there is a volume {} already", body.name));
        }
        match self.state.volumes.get(&body.volume) {
            None if !self.owns_network() => {
                self.not_allowed("volumes are made by the network's owner")
            }
            None if body.key_epoch != Epoch(1) => unfit("a volume begins in key epoch 1"),
            None => Ok(Change::Made(body)),
            Some(_) if !self.owns(Some(body.volume)) => {
                self.not_allowed("a volume's settings are its owner's")
            }
            Some(known) if known.epoch() == body.key_epoch => Ok(Change::Settings(body)),
            Some(_) => {
                self.may_begin(body.volume, body.key_epoch, None)?;
                Ok(Change::Settings(body))
            }
        }
    }
}
