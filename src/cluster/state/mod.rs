//! The sequencer's replicated state: consensus entries in, records and outcomes out.
//!
//! Owns: the head of the ledger, and all that decides whether a record may follow it.
//! Never: keeps records, payloads or tag lists (the shell does, as `apply` gives them), reads a
//! clock, draws randomness, or walks a hash map.
//! Invariant: the same entries in the same order give the same state and the same records on
//! every replica, also after a snapshot; a refused item leaves no record.

mod commit;
mod entry;
mod network;
mod people;
mod requests;
mod rules;
mod volume;

pub use crate::cluster::refusal::Refusal;
pub use commit::RECEIPT_MAX_AGE_MS;
pub use entry::{CommitParts, Entry, INSIDE_MAX, Item, Outcome, Submission};
pub use network::{LogKey, Network};
pub use people::{InviteTerms, People, Person, Scope, Standing};
pub use requests::{ActorNo, SKEW_MAX_MS};
pub use volume::{Amount, BEHIND_BYTES_MAX, BEHIND_COMMITS_MAX, RootMark, Volume};

use crate::cluster::session::{Session, Sessions, Turn};
use crate::id::{Label, LedgerHash, NetworkId, Position, PrincipalId, SessionId, TimeMs, VolumeId};
use crate::ledger::merkle::{self, CompactRange};
use crate::ledger::record::body::{Body, Genesis, PeerState, Role};
use crate::ledger::record::{
    self, NO_RECORD, Origin, RecordError, Signed, Ulid, record_message, write_line,
};
use crate::ledger::roster::{Roster, RosterError};
use crate::ledger::signed_by;
use commit::Known;
use requests::Requests;
use rules::{Asked, Change};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Roots kept for cosigning: a voter that is further behind asks for a newer size.
const ROOTS_MAX: usize = 4_096;

/// Where the ledger ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Head {
    pub size: u64,
    /// SHA-256 of the last record.
    pub chain: LedgerHash,
    /// The last record's time; items that make no record do not move it.
    pub t: TimeMs,
    /// The root of the tree of `size` leaves.
    pub root: LedgerHash,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct State {
    /// Keys and peers as every reader of the log sees them: what it refuses, we must not order.
    roster: Roster,
    origin: Origin,
    tree: CompactRange,
    chain: LedgerHash,
    t: TimeMs,
    /// By size: the root after each of the last entries that made records.
    roots: BTreeMap<u64, LedgerHash>,
    requests: Requests,
    people: People,
    network: Network,
    volumes: BTreeMap<VolumeId, Volume>,
    sessions: Sessions,
}

impl State {
    /// The state after record 0, and its line. `t` is the founder's clock.
    pub fn genesis(t: TimeMs, p: &[u8], sig: &[u8; 64]) -> Result<(Self, Vec<u8>), Refusal> {
        let signed = Signed::parse(p).map_err(malformed)?;
        let Body::Genesis(body) = signed.body().map_err(malformed)? else {
            return Err(Refusal::Malformed("record 0 is net.genesis".to_owned()));
        };
        let actor = signed.actor_label();
        if !signed_by(&body.principal.signing.0, &record::genesis_message(p), sig) {
            return Err(Refusal::BadSignature { actor });
        }
        let line = write_line(Position(0), &NO_RECORD, t, p, sig).map_err(too_large)?;
        let roster = Roster::genesis(&signed).map_err(|why| Refusal::Unfit(why.to_string()))?;
        let mut state = Self {
            origin: roster.origin(),
            roster,
            tree: CompactRange::new(),
            chain: NO_RECORD,
            t,
            roots: BTreeMap::new(),
            requests: Requests::default(),
            people: People::default(),
            network: Network::found(&body),
            volumes: BTreeMap::new(),
            sessions: Sessions::default(),
        };
        state.found(&actor, body)?;
        state.append(&line);
        state.keep_root();
        Ok((state, line))
    }

    fn found(&mut self, actor: &Label, body: Genesis) -> Result<(), Refusal> {
        self.people.register(actor, body.principal, Standing::Active);
        let peer = &body.peer;
        if let Some(why) = self.people.misfit(&peer.name, &peer.keys) {
            return Err(Refusal::Unfit(why));
        }
        self.people.grant(actor, None, Role::Owner, None);
        self.enrol_peer(body.peer);
        Ok(())
    }

    /// Applies one entry; outcome `k` is that of item `k`.
    pub fn apply(&mut self, entry: &Entry) -> Vec<Outcome> {
        // Times beyond what the ledger can write would be a hostile leader's.
        let t = entry.t.clamp(self.t, record::time::LAST.max(self.t));
        let size = self.size();
        let outcomes = entry.items.iter().map(|item| self.apply_item(t, item)).collect();
        if self.size() > size {
            self.keep_root();
        }
        outcomes
    }

    fn apply_item(&mut self, t: TimeMs, item: &Item) -> Outcome {
        let outcome = match item {
            Item::Record(submission) => self.apply_record(t, submission),
            Item::OpenSession { volume, principal, req } => {
                self.open_session(t, *volume, *principal, *req)
            }
            Item::CloseSession { session, principal } => self.close_session(*session, *principal),
        };
        outcome.unwrap_or_else(Outcome::Refused)
    }

    /// What can be said of a submission on entry: whether it is well formed and signed. The rest
    /// depends on what is ordered before it.
    pub fn check(&self, submission: &Submission) -> Result<(), Refusal> {
        let (signed, body) = self.examine(submission)?;
        if signed.bytes.len() > record::RECORD_MAX {
            return Err(Refusal::RecordTooLarge { bytes: signed.bytes.len() });
        }
        match (&body, &submission.commit) {
            (Body::Commit(body), Some(parts)) => commit::parts_fit(body, parts).map(drop),
            _ => Ok(()),
        }
    }

    fn examine<'a>(&self, submission: &'a Submission) -> Result<(Signed<'a>, Body), Refusal> {
        let signed = Signed::parse(&submission.p).map_err(malformed)?;
        let actor = signed.actor_label();
        let key = match self.roster.key_of(actor.as_str()) {
            Ok(key) => key,
            Err(RosterError::UnknownActor(_)) => return Err(Refusal::UnknownActor { actor }),
            Err(why) => return Err(Refusal::NotAllowed { actor, why: why.to_string() }),
        };
        let message = record_message(&self.origin, signed.bytes);
        if !signed_by(&key.0, &message, &submission.sig) {
            return Err(Refusal::BadSignature { actor });
        }
        let body = signed.body().map_err(malformed)?;
        if matches!(body, Body::Commit(_)) != submission.commit.is_some() {
            return Err(Refusal::Malformed("a commit, and only a commit, has parts".to_owned()));
        }
        Ok((signed, body))
    }

    fn apply_record(&mut self, t: TimeMs, submission: &Submission) -> Result<Outcome, Refusal> {
        let (signed, body) = self.examine(submission)?;
        let actor = signed.actor_label();
        let p_hash = signed.hash();
        let digest = digest(signed.body);
        let no = self.people.find(&actor).map(|person| person.no).expect("examine found it");
        if let Some(position) = self.requests.find(signed.req, no, &p_hash)? {
            return Ok(Outcome::Repeated { position });
        }
        let turn = match &body {
            Body::Commit(body) => match self.turn_of(body, &actor, digest)? {
                Known::Before(answer) => {
                    return answer.map(|position| Outcome::Repeated { position });
                }
                Known::Next => Some((body.session, commit::turn(body))),
            },
            _ => None,
        };
        let keys = speaks_of_keys(&body).then(|| body.clone());
        let ruled = self.requests.admit(signed.req, t).and_then(|()| {
            let asked = Asked { state: self, actor: &actor, now: t };
            let change = match (body, &submission.commit) {
                (Body::Commit(body), Some(parts)) => asked.commit(body, parts)?,
                (body, _) => asked.rule(body)?,
            };
            let position = Position(self.size());
            let line = write_line(position, &self.chain, t, &submission.p, &submission.sig)
                .map_err(too_large)?;
            Ok((change, position, line))
        });
        let (change, position, record) = match ruled {
            Ok(ruled) => ruled,
            Err(why) => {
                self.end_attempt(turn, &why);
                return Err(why);
            }
        };
        if let Some(body) = keys {
            // On an error nothing has changed, here either.
            let followed = self.roster.apply(&actor, &body);
            followed.map_err(|why| Refusal::Unfit(why.to_string()))?;
        }
        self.t = t;
        self.append(&record);
        self.requests.record(signed.req, no, &p_hash, (position, t));
        self.change(change, &actor, digest, position);
        Ok(Outcome::Accepted { position, record })
    }

    fn end_attempt(&mut self, turn: Option<(SessionId, Turn)>, why: &Refusal) {
        if let Some((session, turn)) = turn
            && why.ends_attempt()
        {
            self.sessions.refused(session, turn, why.clone());
        }
    }

    fn append(&mut self, line: &[u8]) {
        self.chain = record::record_hash(line);
        self.tree.append(merkle::leaf(line));
    }

    fn keep_root(&mut self) {
        self.roots.insert(self.tree.size(), self.tree.root());
        while self.roots.len() > ROOTS_MAX {
            self.roots.pop_first();
        }
    }

    /// The effect of a record that its rule let through, at its position.
    fn change(&mut self, change: Change, actor: &Label, digest: [u8; 8], at: Position) {
        match change {
            Change::Nothing => {}
            Change::LogKey(body) => self.network.log_keys.push(LogKey {
                key: body.log_key,
                since: at,
                serial: body.serial,
                wraps: body.wraps,
            }),
            Change::Peer(body) => self.enrol_peer(body),
            Change::Layout { layout, faults } => {
                self.network.layout = layout;
                self.network.faults = faults.or(self.network.faults);
            }
            Change::Fence(body) => self.sessions.fence(body.session, body.successor, at),
            Change::Principal(body, standing) => {
                self.people.register(&body.name, body.keys, standing);
            }
            Change::Redeemed { invite, terms, principal } => {
                self.people.set_standing(&invite, Standing::Used);
                self.people.register(&principal.name, principal.keys, Standing::Active);
                self.people.grant(&principal.name, terms.scope, terms.role, None);
                if terms.voter {
                    self.people.let_vote(&principal.name);
                }
            }
            Change::Grant { grant, until } => {
                self.people.grant(&grant.member, grant.volume, grant.role, until);
            }
            Change::Revoke(body) => {
                self.people.revoke(&body.member, body.volume);
                if let (Some(volume), Some(epoch)) = (body.volume, body.key_epoch) {
                    self.with_volume(volume, |volume| {
                        volume.wraps.remove(&body.member);
                        volume.forget_roots_of(&body.member);
                        volume.begin_epoch(epoch, at);
                    });
                }
            }
            Change::Wrap(body) => self.with_volume(body.volume, |volume| {
                volume.wraps.insert(body.member, (body.key_epoch, body.to));
            }),
            Change::Disable(body) => self.people.set_standing(&body.name, Standing::Disabled),
            Change::Commit(commit) => self.committed(commit, digest, at),
            Change::Root(body) => {
                let by = actor.clone();
                self.with_volume(body.volume, |volume| volume.add_root(by, body, at));
            }
            Change::Made(body) => {
                self.people.grant(actor, Some(body.volume), Role::Owner, None);
                self.volumes.insert(body.volume, Volume::new(body, at));
            }
            Change::Settings(body) => self.with_volume(body.volume, |volume| {
                let epoch = body.key_epoch;
                let begins = epoch != volume.epoch();
                volume.settings = body;
                if begins {
                    volume.begin_epoch(epoch, at);
                }
            }),
        }
    }

    fn with_volume(&mut self, id: VolumeId, change: impl FnOnce(&mut Volume)) {
        change(self.volumes.get_mut(&id).expect("its rule found the volume"));
    }

    fn committed(&mut self, commit: commit::Certified, digest: [u8; 8], at: Position) {
        let (turn, body) = (commit.turn(), commit.body);
        let lineage = self.sessions.find(body.session).map(|s| s.lineage);
        let lineage = lineage.expect("its rule found the session");
        self.sessions.accepted(body.session, turn, body.base, at, digest);
        self.with_volume(body.volume, |volume| {
            volume.count(&body, at);
            volume.window.record(lineage, at, &commit.tags);
        });
    }

    /// A peer is a principal of its own: what it writes, it signs.
    fn enrol_peer(&mut self, peer: crate::ledger::record::body::Peer) {
        if self.people.find(&peer.name).is_none() {
            self.people.register(&peer.name, peer.keys.clone(), Standing::Active);
        }
        let removed = peer.state == PeerState::Removed;
        if peer.storage && !removed {
            self.people.grant(&peer.name, None, Role::Storage, None);
        }
        if removed {
            self.people.revoke_role(&peer.name, None, Role::Storage);
        }
        self.network.set_peer(peer);
    }

    fn open_session(
        &mut self,
        t: TimeMs,
        volume: VolumeId,
        principal: PrincipalId,
        req: Ulid,
    ) -> Result<Outcome, Refusal> {
        if !self.volumes.contains_key(&volume) {
            return Err(Refusal::UnknownVolume { volume });
        }
        let Some(actor) = self.people.name_of(&principal).cloned() else {
            return Err(Refusal::UnknownKey { principal });
        };
        if self.people.role_in(&actor, volume, t).is_none() {
            let why = format!("it is no member of volume {volume}");
            return Err(Refusal::NotAllowed { actor, why });
        }
        if let Some(session) = self.sessions.opened_by(&actor, volume, req) {
            return Ok(Outcome::Opened { session });
        }
        self.requests.admit(req, t)?;
        let session = self.sessions.open(volume, actor, req, t)?;
        Ok(Outcome::Opened { session })
    }

    fn close_session(
        &mut self,
        session: SessionId,
        principal: PrincipalId,
    ) -> Result<Outcome, Refusal> {
        let found = self.sessions.find(session)?;
        let actor = self.people.name_of(&principal);
        if let Some(actor) = actor.filter(|actor| **actor != found.actor) {
            let why = format!("session {session} is {}'s", found.actor);
            return Err(Refusal::NotAllowed { actor: actor.clone(), why });
        }
        if actor.is_none() {
            return Err(Refusal::UnknownKey { principal });
        }
        self.sessions.close(session)?;
        Ok(Outcome::Closed { session })
    }
}

/// What others read of the state.
impl State {
    pub fn head(&self) -> Head {
        Head { size: self.size(), chain: self.chain, t: self.t, root: self.tree.root() }
    }

    pub fn size(&self) -> u64 {
        self.tree.size()
    }

    /// The root of the tree of `size` leaves, if an entry of late ended there.
    pub fn root_at(&self, size: u64) -> Option<LedgerHash> {
        self.roots.get(&size).copied()
    }

    pub fn tree(&self) -> &CompactRange {
        &self.tree
    }

    pub fn network_id(&self) -> NetworkId {
        self.roster.id()
    }

    /// The network's name and random value, its keys, and whose signatures make a checkpoint.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    pub fn people(&self) -> &People {
        &self.people
    }

    pub fn network(&self) -> &Network {
        &self.network
    }

    pub fn volumes(&self) -> &BTreeMap<VolumeId, Volume> {
        &self.volumes
    }

    pub fn volume_named(&self, name: &Label) -> Option<(VolumeId, &Volume)> {
        let found = self.volumes.iter().find(|(_, volume)| volume.settings.name == *name);
        found.map(|(id, volume)| (*id, volume))
    }

    /// An open or fenced session: its last accepted request, its fence, its successor.
    pub fn session(&self, id: SessionId) -> Result<&Session, Refusal> {
        self.sessions.find(id)
    }

    pub fn open_sessions(&self) -> impl Iterator<Item = (SessionId, &Session)> {
        self.sessions.open_ones()
    }
}

fn speaks_of_keys(body: &Body) -> bool {
    matches!(
        body,
        Body::KeyRotate(_)
            | Body::Peer(_)
            | Body::Layout(_)
            | Body::Principal(_)
            | Body::Disable(_)
    )
}

fn malformed(why: RecordError) -> Refusal {
    Refusal::Malformed(why.to_string())
}

fn too_large(why: RecordError) -> Refusal {
    match why {
        RecordError::TooLarge(bytes) => Refusal::RecordTooLarge { bytes },
        other => malformed(other),
    }
}

/// Enough to tell whether two requests of one session say the same.
fn digest(bytes: &[u8]) -> [u8; 8] {
    let mut out = [0; 8];
    out.copy_from_slice(&crate::hash::sha256(bytes)[..8]);
    out
}
