//! Voters in one process: real logs and files, messages by hand, so that a test can cut them.

use super::MemoryChunks;
use crate::sequencer::raft::network::{Call, CallError, RaftTransport};
use crate::sequencer::{Limits, OpenError, Options, ProposeError, Sequencer, WallClock};
use bytes::Bytes;
use futures::future::BoxFuture;
use mictlan::cluster::state::{Item, Outcome, Submission};
use mictlan::id::{Label, NetworkId, PeerId, TimeMs};
use mictlan::ledger::record::body::{
    Body, Genesis, KeyRotate, LogWrap, Note, Peer, PeerState, PublicKeys, log_key_message,
    log_wrap_info,
};
use mictlan::ledger::record::{
    Origin, Proposal, Ulid, genesis_hash, genesis_message, record_message,
};
use mictlan::seal::{self, Principal, Secret};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;

pub const SOON: Duration = Duration::from_secs(30);
const RANDOM: [u8; 32] = [9; 32];

pub fn principal(n: u8) -> Principal {
    Principal::from_seed(Secret::from_bytes([n; 32]))
}

pub fn label(text: &str) -> Label {
    Label::parse(text).expect("a label")
}

fn keys(of: &Principal) -> PublicKeys {
    let public = of.public();
    PublicKeys { agreement: public.agreement, signing: public.signing }
}

pub fn now() -> TimeMs {
    let since = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970");
    TimeMs(since.as_millis() as u64)
}

/// Who can talk to whom.
#[derive(Default)]
pub struct Wires {
    voters: Mutex<BTreeMap<PeerId, Weak<Sequencer>>>,
    cut: Mutex<BTreeSet<PeerId>>,
}

impl Wires {
    fn find(&self, from: PeerId, to: PeerId) -> Option<Arc<Sequencer>> {
        let cut = self.cut.lock().unwrap_or_else(PoisonError::into_inner);
        if cut.contains(&from) || cut.contains(&to) {
            return None;
        }
        let voters = self.voters.lock().unwrap_or_else(PoisonError::into_inner);
        voters.get(&to)?.upgrade()
    }

    pub fn cut(&self, peer: PeerId) {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner).insert(peer);
    }

    pub fn heal(&self, peer: PeerId) {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner).remove(&peer);
    }
}

/// The wires as one voter sees them.
struct End {
    me: PeerId,
    wires: Arc<Wires>,
}

impl RaftTransport for End {
    fn call(
        &self,
        to: PeerId,
        call: Call,
        body: Bytes,
        within: Duration,
    ) -> BoxFuture<'static, Result<Bytes, CallError>> {
        let (me, wires) = (self.me, self.wires.clone());
        Box::pin(async move {
            let peer = wires.find(me, to).ok_or(CallError::Unreachable(to))?;
            let answer = tokio::time::timeout(within, peer.handle_raft(me, call, &body));
            let answer = answer.await.map_err(|_| CallError::Late(to))??;
            // Cut meanwhile: it happened, and nobody hears of it.
            wires.find(me, to).map(|_| answer).ok_or(CallError::Unreachable(to))
        })
    }
}

/// A network under test: the owner signs, peers 1 to 3 are named `p1` to `p3`.
pub struct World {
    pub wires: Arc<Wires>,
    dirs: BTreeMap<PeerId, PathBuf>,
    pub chunks: BTreeMap<PeerId, Arc<MemoryChunks>>,
    pub voters: BTreeMap<PeerId, Arc<Sequencer>>,
    pub network: NetworkId,
    pub origin: Origin,
    genesis: Submission,
    owner: Principal,
    requests: AtomicU64,
    clock: WallClock,
    pub limits: Limits,
    _home: TempDir,
}

impl World {
    pub fn new() -> Self {
        Self::in_dir(tempfile::tempdir().expect("a directory"))
    }

    pub fn in_dir(home: TempDir) -> Self {
        let owner = principal(100);
        let genesis = genesis(&owner);
        let network = genesis_hash(&genesis.p);
        let dirs = (1..=3).map(|n| (PeerId(n), home.path().join(format!("p{n}")))).collect();
        let chunks = (1..=3).map(|n| (PeerId(n), Arc::default())).collect();
        let clock: WallClock = Arc::new(now);
        Self {
            wires: Arc::default(),
            dirs,
            chunks,
            voters: BTreeMap::new(),
            network,
            origin: Origin::new(&label("testnet"), &network),
            genesis,
            owner,
            requests: AtomicU64::new(0),
            clock,
            limits: Limits { wal_segment_bytes: 256 << 10, entries_per_snapshot: 5000 },
            _home: home,
        }
    }

    pub fn dir(&self, n: u64) -> &PathBuf {
        &self.dirs[&PeerId(n)]
    }

    /// Opens peer `n`'s sequencer, new or restarted.
    pub async fn start(&mut self, n: u64) -> Arc<Sequencer> {
        self.try_start(n).await.expect("opened")
    }

    pub async fn try_start(&mut self, n: u64) -> Result<Arc<Sequencer>, OpenError> {
        let me = PeerId(n);
        let options = Options {
            dir: self.dirs[&me].clone(),
            network: self.network,
            me,
            identity: Arc::new(principal(n as u8)),
            chunks: self.chunks[&me].clone(),
            transport: Arc::new(End { me, wires: self.wires.clone() }),
            now: self.clock.clone(),
            limits: self.limits,
            lone: false,
        };
        let voter = Sequencer::open(options).await?;
        let weak = Arc::downgrade(&voter);
        self.wires.voters.lock().expect("not poisoned").insert(me, weak);
        self.voters.insert(me, voter.clone());
        Ok(voter)
    }

    /// Stops a voter as a crash would: nothing is flushed that was not flushed before.
    pub async fn crash(&mut self, n: u64) {
        if let Some(voter) = self.voters.remove(&PeerId(n)) {
            self.wires.voters.lock().expect("not poisoned").remove(&PeerId(n));
            voter.shutdown().await;
        }
    }

    /// One voter, founded.
    pub async fn alone() -> Self {
        let mut world = Self::new();
        world.found().await;
        world
    }

    pub async fn found(&mut self) {
        let first = self.start(1).await;
        let founded = first.bootstrap(self.genesis.clone(), SOON).await.expect("founded");
        assert!(founded.position().is_some(), "{founded:?}");
    }

    /// Three voters that all can sign for the log.
    pub async fn three() -> Self {
        Self::three_in(tempfile::tempdir().expect("a directory")).await
    }

    pub async fn three_in(home: TempDir) -> Self {
        let mut world = Self::in_dir(home);
        world.found().await;
        for n in 2..=3 {
            world.start(n).await;
            let first = world.voters[&PeerId(1)].clone();
            accepted(world.submit(&first, Body::Peer(peer(n))).await);
            first.add_voter(PeerId(n), SOON).await.expect("a voter");
        }
        let first = world.voters[&PeerId(1)].clone();
        accepted(world.submit(&first, Body::KeyRotate(world.rotation())).await);
        world
    }

    fn rotation(&self) -> KeyRotate {
        let key = raw_id(61);
        let wraps = (1..=3)
            .map(|n| {
                let to = principal(n as u8).public().agreement;
                LogWrap { peer: PeerId(n), wrap: log_wrap(&to, &key, 61, n as u8) }
            })
            .collect();
        let old_sig = raw_key(60).sign_message(&log_key_message(&self.origin, 1, &key));
        KeyRotate { log_key: key, old_sig, serial: 1, wraps }
    }

    /// A signed record of the owner under a fresh request name.
    pub fn sign(&self, body: Body) -> Submission {
        let n = self.requests.fetch_add(1, Ordering::Relaxed);
        let mut random = [0; 10];
        random[2..].copy_from_slice(&n.to_be_bytes());
        let req = Ulid::new((self.clock)(), random);
        let p = Proposal::new(label("alice"), req, body).encode().expect("a record");
        let sig = self.owner.sign(&record_message(&self.origin, &p));
        Submission { p, sig, commit: None }
    }

    pub async fn submit(&self, to: &Sequencer, body: Body) -> Result<Outcome, ProposeError> {
        to.propose(Item::Record(self.sign(body)), SOON).await
    }

    pub async fn note(&self, to: &Sequencer, n: u64) -> Result<Outcome, ProposeError> {
        self.submit(to, note(n)).await
    }

    /// Some voter that leads, once there is one among those that can be reached.
    pub async fn leader(&self, among: &[u64]) -> Arc<Sequencer> {
        let find = async {
            loop {
                for n in among {
                    let voter = &self.voters[&PeerId(*n)];
                    if voter.read_position(Duration::from_millis(500)).await.is_ok() {
                        return voter.clone();
                    }
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, find).await.expect("somebody leads")
    }
}

pub fn note(n: u64) -> Body {
    Body::Note(Note { data: serde_json::json!({ "n": n }), topic: label("test") })
}

pub fn accepted(answer: Result<Outcome, ProposeError>) -> (u64, Vec<u8>) {
    match answer {
        Ok(Outcome::Accepted { position, record }) => (position.0, record),
        other => panic!("not accepted: {other:?}"),
    }
}

fn peer(n: u64) -> Peer {
    Peer {
        addresses: Vec::new(),
        keys: keys(&principal(n as u8)),
        name: label(&format!("p{n}")),
        peer: PeerId(n),
        state: PeerState::Active,
        storage: true,
        voter: true,
    }
}

fn log_wrap(to: &[u8; 32], key: &[u8; 32], seed: u8, entropy: u8) -> Vec<u8> {
    let info = log_wrap_info(&RANDOM, key);
    seal::wrap(to, &info, &[seed; 32], Secret::from_bytes([entropy; 32])).expect("wrapped")
}

/// The log's keys are plain Ed25519 seeds.
fn raw_key(seed: u8) -> RawKey {
    let pair = aws_lc_rs::signature::Ed25519KeyPair::from_seed_unchecked(&[seed; 32]);
    RawKey(pair.expect("a seed of 32 bytes"))
}

struct RawKey(aws_lc_rs::signature::Ed25519KeyPair);

impl RawKey {
    fn sign_message(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).as_ref().try_into().expect("64 bytes")
    }
}

fn raw_id(seed: u8) -> [u8; 32] {
    use aws_lc_rs::signature::KeyPair;
    raw_key(seed).0.public_key().as_ref().try_into().expect("32 bytes")
}

fn genesis(owner: &Principal) -> Submission {
    let log_key = raw_id(60);
    let body = Genesis {
        faults: None,
        log_key,
        log_wrap: log_wrap(&principal(1).public().agreement, &log_key, 60, 77),
        network: label("testnet"),
        peer: peer(1),
        principal: keys(owner),
        random: RANDOM,
    };
    let req = Ulid::new(now(), [1; 10]);
    let p = Proposal::new(label("alice"), req, Body::Genesis(body)).encode().expect("a record");
    let sig = owner.sign(&genesis_message(&p));
    Submission { p, sig, commit: None }
}
