//! A small ledger with everything that can happen to keys in it, the same bytes every time.
//!
//! Owns: the seeds of its keys, the order of its records, and its published checkpoints.
//! Invariant: nothing in it depends on a clock or on randomness, so its files are golden vectors.

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use mictlan::id::{
    Attempt, ChunkId, Epoch, Label, LedgerHash, PeerId, Position, PrincipalId, SessionId, TimeMs,
    VolumeId,
};
use mictlan::ledger::checkpoint::{Checkpoint, VerifierKey, write_note};
use mictlan::ledger::merkle::{self, CompactRange};
use mictlan::ledger::record::body::{
    ChunkRef, Commit, Disable, Fence, Genesis, Grant, KeyRotate, Layout, LayoutPeer, LogWrap, Note,
    Peer, PeerState, Principal, PublicKeys, Revoke, Role, Root, TagsRef, VolumeMade, Wrap,
    log_key_message, principal_message,
};
use mictlan::ledger::record::{
    Body, NO_RECORD, Proposal, Ulid, genesis_message, record_hash, record_message, write_line,
};
use mictlan::ledger::roster::Roster;
use mictlan::ledger::tile::{Edge, TileId, encode_bundle, grown};
use std::collections::BTreeMap;

/// 2026-11-21T19:27:14.000Z
pub const START: TimeMs = TimeMs(1_795_289_234_000);

pub fn pair(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).expect("any 32 bytes are a seed")
}

pub fn public(seed: u8) -> [u8; 32] {
    pair(seed).public_key().as_ref().try_into().expect("32 bytes")
}

pub fn sign(seed: u8, message: &[u8]) -> [u8; 64] {
    pair(seed).sign(message).as_ref().try_into().expect("64 bytes")
}

fn label(text: &str) -> Label {
    Label::parse(text).expect("a label")
}

fn keys(seed: u8) -> PublicKeys {
    PublicKeys { agreement: [seed; 32], signing: PrincipalId(public(seed)) }
}

/// The seeds of who signs.
pub const ALICE: u8 = 1;
pub const BOB: u8 = 2;
pub const BOB_LATER: u8 = 3;
pub const CAROL: u8 = 4;
pub const PEERS: [u8; 3] = [11, 12, 13];
pub const LOG: u8 = 21;
pub const LOG_LATER: u8 = 22;

/// A ledger as it grows; what is appended is signed by whoever is said to.
#[derive(Clone, Default)]
pub struct Log {
    pub lines: Vec<Vec<u8>>,
    pub roster: Option<Roster>,
    pub notes: BTreeMap<u64, String>,
    range: CompactRange,
    log_seed: u8,
}

impl Log {
    /// A network of one voter.
    pub fn new() -> Self {
        let peer = peer(1, true);
        let body = Body::Genesis(Genesis {
            faults: None,
            log_key: public(LOG),
            log_wrap: vec![0x5a; 80],
            network: label("sample"),
            peer,
            principal: keys(ALICE),
            random: [0x77; 32],
        });
        let mut log = Self { log_seed: LOG, ..Self::default() };
        log.append("alice", ALICE, body);
        log
    }

    /// The whole sample: 300 records, 3 voters in the end, changed keys, checkpoints on the way.
    pub fn sample() -> Self {
        let mut log = Self::new();
        log.publish();
        log.people();
        log.network();
        while log.lines.len() < 256 {
            log.commit(BOB);
        }
        log.publish();
        log.changes();
        while log.lines.len() < 299 {
            log.commit(BOB_LATER);
        }
        log.publish();
        log.note(
            "alice",
            ALICE,
            serde_json::json!({"text": "ñandú \"quoted\" \\ \u{1f480}\n\t\u{1}"}),
        );
        log.publish();
        log
    }

    fn people(&mut self) {
        self.append("alice", ALICE, self.principal("bob", BOB));
        self.append("alice", ALICE, self.principal("carol", CAROL));
        let volume = Some(VOLUME);
        let made = VolumeMade {
            compress: true,
            key_epoch: Epoch(1),
            name: label("main"),
            replicas: 3,
            volume: VOLUME,
        };
        self.append("alice", ALICE, Body::Volume(made));
        for (member, role, until) in [
            ("bob", Role::Writer, None),
            ("carol", Role::Reader, Some("2027-01-01T00:00:00.000Z".to_owned())),
        ] {
            let grant = Grant { member: label(member), role, until, volume };
            self.append("alice", ALICE, Body::Grant(grant));
        }
        for (member, seed) in [("alice", ALICE), ("bob", BOB), ("carol", CAROL)] {
            let wrap = Wrap {
                data: true,
                key_epoch: Epoch(1),
                member: label(member),
                to: [seed; 32],
                volume: VOLUME,
                wrap: vec![seed; 160],
            };
            self.append("alice", ALICE, Body::Wrap(wrap));
        }
    }

    fn network(&mut self) {
        self.append("alice", ALICE, Body::Peer(peer(2, true)));
        self.append("alice", ALICE, Body::Peer(peer(3, true)));
        let on = |n| LayoutPeer { domain: format!("rack{n}"), peer: PeerId(n), weight: 100 };
        let set = vec![on(1), on(2), on(3)];
        let layout = Layout { faults: None, remove: vec![], set, version: 1 };
        self.append("p1", PEERS[0], Body::Layout(layout));
        let fence = Fence {
            reason: "no heartbeat for 30 s".to_owned(),
            session: SessionId(1),
            successor: Some(SessionId(2)),
            volume: VOLUME,
        };
        self.append("p1", PEERS[0], Body::Fence(fence));
        self.publish();
    }

    fn changes(&mut self) {
        let message = log_key_message(
            &self.roster().origin(),
            self.roster().next_rotation(),
            &public(LOG_LATER),
        );
        let wraps = [1, 2, 3].map(|n| LogWrap { peer: PeerId(n), wrap: vec![n as u8; 80] });
        let rotate = KeyRotate {
            log_key: public(LOG_LATER),
            old_sig: sign(LOG, &message),
            serial: 1,
            wraps: wraps.to_vec(),
        };
        self.append("p1", PEERS[0], Body::KeyRotate(rotate));
        self.log_seed = LOG_LATER;
        self.publish();
        self.append("bob", BOB, self.principal("bob", BOB_LATER));
        let (member, reason) = (label("carol"), "left".to_owned());
        let revoke = Revoke {
            key_epoch: Some(Epoch(2)),
            member: member.clone(),
            reason: reason.clone(),
            volume: Some(VOLUME),
        };
        self.append("alice", ALICE, Body::Revoke(revoke));
        self.append("alice", ALICE, Body::Disable(Disable { name: member, reason }));
        let root = Root {
            address: ChunkId([0x31; 32]),
            confirms: None,
            identity: [0x32; 32],
            key_epoch: Epoch(2),
            position: Position(250),
            volume: VOLUME,
        };
        self.append("bob", BOB_LATER, Body::Root(root));
    }

    pub fn principal(&self, name: &str, seed: u8) -> Body {
        let (name, keys) = (label(name), keys(seed));
        let message = principal_message(&self.roster().origin(), &name, &keys);
        Body::Principal(Principal { invite: None, keys, name, proof: sign(seed, &message) })
    }

    pub fn roster(&self) -> &Roster {
        self.roster.as_ref().expect("the genesis record is first")
    }

    pub fn note(&mut self, actor: &str, seed: u8, data: serde_json::Value) {
        self.append(actor, seed, Body::Note(Note { data, topic: label("greetings") }));
    }

    pub fn commit(&mut self, seed: u8) {
        let n = self.lines.len() as u64;
        let small = ChunkRef { b3: ChunkId([n as u8; 32]), size: 900 + n };
        let commit = Commit {
            attempt: Attempt(1),
            base: Position(n - 1),
            changes: 4,
            inline: n.is_multiple_of(3).then_some(small),
            key_epoch: Epoch(1),
            n,
            payload: ChunkRef { b3: ChunkId([n as u8 ^ 0xff; 32]), size: 2_000 + n },
            session: SessionId(2),
            tags: TagsRef { b3: [n as u8 ^ 0x55; 32], count: 6 },
            volume: VOLUME,
        };
        self.append("bob", seed, Body::Commit(commit));
    }

    /// Orders a record that `seed` signs as `actor`.
    pub fn append(&mut self, actor: &str, seed: u8, body: Body) {
        let i = self.lines.len() as u64;
        let t = TimeMs(START.0 + i * 500);
        let proposal = Proposal::new(label(actor), Ulid::new(TimeMs(t.0 - 3), [i as u8; 10]), body);
        let p = proposal.encode().expect("in the profile");
        let message = match &self.roster {
            None => genesis_message(&p),
            Some(roster) => record_message(&roster.origin(), &p),
        };
        self.push(i, t, &p, &sign(seed, &message));
        let signed = mictlan::ledger::record::Signed::parse(&p).expect("just written");
        match &mut self.roster {
            None => self.roster = Some(Roster::genesis(&signed).expect("a good genesis")),
            Some(roster) => roster.apply(&proposal.actor, &proposal.body).expect("a good record"),
        }
    }

    /// Orders any bytes of `p`, as a lying sequencer could.
    pub fn push(&mut self, i: u64, t: TimeMs, p: &[u8], sig: &[u8; 64]) {
        let prev = self.lines.last().map_or(NO_RECORD, |line| record_hash(line));
        let line = write_line(Position(i), &prev, t, p, sig).expect("a record");
        self.range.append(merkle::leaf(&line));
        self.lines.push(line);
    }

    pub fn root(&self) -> LedgerHash {
        self.range.root()
    }

    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint::new(&self.roster().origin(), self.range.size(), self.range.root())
    }

    /// Signs the log as it is, by its key and by the first `voters` voters.
    pub fn signed(&self, voters: usize) -> String {
        let (checkpoint, policy) = (self.checkpoint(), self.roster().policy());
        let text = checkpoint.text();
        let mut lines = vec![policy.log.log_line(&sign(self.log_seed, text.as_bytes()))];
        let time = START.0 / 1000 + checkpoint.size;
        for (voter, seed) in policy.voters.iter().zip(PEERS).take(voters) {
            let signature = sign(seed, &checkpoint.cosigned_message(time));
            lines.push(VerifierKey::cosigned_line(voter, time, &signature));
        }
        write_note(&checkpoint, &lines)
    }

    pub fn publish(&mut self) {
        self.notes.insert(self.range.size(), self.signed(self.roster().policy().quorum()));
    }

    /// The newest published note.
    pub fn newest(&self) -> &str {
        self.notes.last_key_value().expect("something was published").1
    }

    /// All tiles and bundles of the log, by id.
    pub fn tiles(&self) -> BTreeMap<TileId, Vec<u8>> {
        let (mut edge, mut full) = (Edge::new(), Vec::new());
        self.lines.iter().for_each(|line| edge.append(merkle::leaf(line), &mut full));
        let mut tiles: BTreeMap<_, _> = full.into_iter().chain(edge.partial()).collect();
        for id in grown(0, self.range.size()) {
            let start = id.index as usize * 256;
            let records = || &self.lines[start..start + usize::from(id.width)];
            tiles.entry(id).or_insert_with(|| encode_bundle(records()));
        }
        tiles
    }
}

const VOLUME: VolumeId = VolumeId([0x42; 16]);

fn peer(n: u64, voter: bool) -> Peer {
    Peer {
        addresses: vec![format!("192.0.2.{n}:4510")],
        keys: keys(PEERS[n as usize - 1]),
        name: label(&format!("p{n}")),
        peer: PeerId(n),
        state: PeerState::Active,
        storage: true,
        voter,
    }
}
