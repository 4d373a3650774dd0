//! A small network to test with: its founder, its keys, and how they sign.
//!
//! Invariant: everything follows from numbers, so two runs make the same bytes.

use mictlan::cluster::state::{CommitParts, Entry, Item, Outcome, Refusal, State, Submission};
use mictlan::hash;
use mictlan::id::{Attempt, Epoch, Label, PeerId, Position, SessionId, TimeMs, VolumeId};
use mictlan::ledger::record::body::{
    Body, ChunkRef, Commit, Genesis, Invite, Peer, PeerState, Principal as PrincipalBody,
    PublicKeys, TagsRef, VolumeMade, Wrap, principal_message,
};
use mictlan::ledger::record::{Proposal, Ulid, genesis_message, record_message};
use mictlan::meta::tag::{Tag, TagList};
use mictlan::seal::{Principal, Secret};

pub const MAIN: VolumeId = VolumeId([7; 16]);
/// When the network of every test begins.
pub const START: TimeMs = TimeMs(1_800_000_000_000);

pub fn label(text: &str) -> Label {
    Label::parse(text).expect("a good name")
}

/// A principal whose keys follow from its name.
pub struct Actor {
    pub name: Label,
    keys: Principal,
}

impl Actor {
    pub fn new(name: &str) -> Self {
        let seed = hash::derive("mictlan tests actor", name.as_bytes());
        Self { name: label(name), keys: Principal::from_seed(Secret::from_bytes(seed)) }
    }

    pub fn id(&self) -> mictlan::id::PrincipalId {
        self.keys.id()
    }

    pub fn keys(&self) -> PublicKeys {
        let public = self.keys.public();
        PublicKeys { agreement: public.agreement, signing: public.signing }
    }

    pub fn submit(&self, state: &State, req: Ulid, body: Body) -> Submission {
        let p = Proposal::new(self.name.clone(), req, body).encode().expect("a good record");
        let sig = self.keys.sign(&record_message(state.origin(), &p));
        Submission { p, sig, commit: None }
    }

    pub fn principal(&self, state: &State, invite: Option<Invite>) -> Body {
        let message = principal_message(state.origin(), &self.name, &self.keys());
        let proof = self.keys.sign(&message);
        Body::Principal(PrincipalBody { invite, keys: self.keys(), name: self.name.clone(), proof })
    }

    pub fn peer(&self, peer: u64, storage: bool, voter: bool) -> Peer {
        Peer {
            addresses: vec![format!("{}:4510", self.name)],
            keys: self.keys(),
            name: self.name.clone(),
            peer: PeerId(peer),
            state: PeerState::Active,
            storage,
            voter,
        }
    }

    pub fn wrap(&self, epoch: u32) -> Body {
        Body::Wrap(Wrap {
            data: true,
            key_epoch: Epoch(epoch),
            member: self.name.clone(),
            to: self.keys().agreement,
            volume: MAIN,
            wrap: vec![1; 48],
        })
    }
}

/// Request names, in order.
pub struct Requests(u64);

impl Requests {
    pub fn new() -> Self {
        Self(0)
    }

    pub fn next(&mut self, now: TimeMs) -> Ulid {
        self.0 += 1;
        let mut random = [0; 10];
        random[2..].copy_from_slice(&self.0.to_be_bytes());
        Ulid::new(now, random)
    }
}

/// The founder's network: `alice` owns it, `peer-1` is its first voter, the volume is `MAIN`.
pub struct Founded {
    pub state: State,
    pub alice: Actor,
    pub peer: Actor,
    pub reqs: Requests,
    pub now: TimeMs,
    pub lines: Vec<Vec<u8>>,
}

pub fn founded() -> Founded {
    let (alice, peer) = (Actor::new("alice"), Actor::new("peer-1"));
    let mut reqs = Requests::new();
    let body = Body::Genesis(Genesis {
        faults: None,
        log_key: [9; 32],
        log_wrap: vec![1; 48],
        network: label("home"),
        peer: peer.peer(1, true, true),
        principal: alice.keys(),
        random: [3; 32],
    });
    let p = Proposal::new(alice.name.clone(), reqs.next(START), body).encode().expect("genesis");
    let sig = alice.keys.sign(&genesis_message(&p));
    let (state, line) = State::genesis(START, &p, &sig).expect("a network");
    let mut network = Founded { state, alice, peer, reqs, now: START, lines: vec![line] };
    network.ok("alice", volume(1));
    let wrap = network.alice.wrap(1);
    network.ok("alice", wrap);
    network
}

pub fn volume(epoch: u32) -> Body {
    Body::Volume(VolumeMade {
        compress: true,
        key_epoch: Epoch(epoch),
        name: label("main"),
        replicas: 3,
        volume: MAIN,
    })
}

impl Founded {
    pub fn apply(&mut self, item: Item) -> Outcome {
        let entry = Entry { t: self.now, items: vec![item] };
        let outcome = self.state.apply(&entry).pop().expect("one item, one outcome");
        if let Outcome::Accepted { record, .. } = &outcome {
            self.lines.push(record.clone());
        }
        outcome
    }

    pub fn say(&mut self, actor: &str, body: Body) -> Outcome {
        let req = self.reqs.next(self.now);
        let submission = Actor::new(actor).submit(&self.state, req, body);
        self.apply(Item::Record(submission))
    }

    pub fn ok(&mut self, actor: &str, body: Body) -> Position {
        match self.say(actor, body) {
            Outcome::Accepted { position, .. } => position,
            other => panic!("{actor}: {other:?}"),
        }
    }

    pub fn refused(&mut self, actor: &str, body: Body) -> Refusal {
        let before = self.state.head();
        match self.say(actor, body) {
            Outcome::Refused(why) => {
                assert_eq!(self.state.head(), before, "a refused record leaves no trace");
                why
            }
            other => panic!("{actor}: {other:?}"),
        }
    }

    pub fn open(&mut self, actor: &str) -> SessionId {
        let (principal, req) = (Actor::new(actor).id(), self.reqs.next(self.now));
        match self.apply(Item::OpenSession { volume: MAIN, principal, req }) {
            Outcome::Opened { session } => session,
            other => panic!("{actor}: {other:?}"),
        }
    }
}

/// What a commit of the tests says, besides who says it.
#[derive(Clone, Debug)]
pub struct Say {
    pub session: SessionId,
    pub attempt: u32,
    pub n: u64,
    pub base: Position,
    pub epoch: u32,
    pub tags: TagList,
    /// The content, which stands for the write set.
    pub content: u64,
}

pub fn commit(actor: &Actor, state: &State, req: Ulid, say: &Say) -> Submission {
    let (tags, payload) = (say.tags.encode(), say.content.to_be_bytes().to_vec());
    let body = Commit {
        attempt: Attempt(say.attempt),
        base: say.base,
        changes: 1,
        inline: None,
        key_epoch: Epoch(say.epoch),
        n: say.n,
        payload: ChunkRef { b3: hash::address(&payload), size: payload.len() as u64 },
        session: say.session,
        tags: TagsRef { b3: hash::address(&tags).0, count: say.tags.len() as u32 },
        volume: MAIN,
    };
    let mut submission = actor.submit(state, req, Body::Commit(body));
    let parts = CommitParts { tags, payload: Some(payload), inline: None, oldest_receipt: None };
    submission.commit = Some(parts);
    submission
}

pub fn tags(reads: &[u8], writes: &[u8], adds: &[u8]) -> TagList {
    let set = |list: &[u8]| list.iter().map(|n| Tag([*n; 8])).collect();
    TagList::of(set(reads), set(writes), set(adds)).expect("few")
}
