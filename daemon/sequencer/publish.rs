//! Checkpoints: signed by the leader, cosigned by voters, published when the quorum is in.
//!
//! Owns: what this voter has ever signed, and the newest published note.
//! Never: signs a root that it did not compute itself from all records, or a smaller size than it
//! signed before.
//! Invariant: what is about to be signed is on disk before the signature leaves this process.
//!
//! | file | holds |
//! | --- | --- |
//! | cosigned | size and root of the largest tree that this voter signed |
//! | ledger/checkpoint | the newest published note |
//! | ledger/checkpoints/YYYY/MM/DD/HH/MM/SS-size.note | one published note a second |

use super::clock::Clocks;
use super::files::ReadError;
use super::raft::Raft;
use super::raft::machine::Applied;
use super::raft::network::{Call, CallError, RaftTransport};
use crate::store::durable::{self, DiskError};
use aws_lc_rs::signature::Ed25519KeyPair;
use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};
use mictlan::id::{LedgerHash, PeerId, TimeMs};
use mictlan::ledger::checkpoint::{
    Accepted, Checkpoint, CheckpointError, Note, Policy, VerifierKey, write_note,
};
use mictlan::ledger::record::body::{Peer, PeerState};
use mictlan::seal::Principal;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How often the leader looks whether the ledger grew.
pub const GROWN_EVERY: Duration = Duration::from_millis(200);
/// An unchanged ledger is cosigned anew, so that nobody takes a frozen view for a quiet one.
const IDLE_EVERY: Duration = Duration::from_secs(10);
const COSIGN_WITHIN: Duration = Duration::from_secs(3);
/// A voter a little behind waits for its own copy of the records that it is asked to sign.
const APPLIED_WITHIN: Duration = Duration::from_secs(2);
const PUBLISHED_WITHIN: Duration = Duration::from_secs(5);
const FILE_MODE: u32 = 0o644;

/// Why a checkpoint is not signed or not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("record 0 is not applied here yet")]
    NoNetwork,
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("this voter has applied {have} records, not {asked} yet")]
    NotApplied { asked: u64, have: u64 },
    #[error("this voter has signed {signed} records; it does not sign {asked}")]
    Smaller { asked: u64, signed: u64 },
    #[error("the root of {size} records is {ours} here and {theirs} in the note: two histories")]
    Contradiction { size: u64, ours: LedgerHash, theirs: LedgerHash },
    #[error("a new log key cannot be wrapped: {0}")]
    Wrap(#[from] mictlan::seal::WrapError),
    #[error("the log key is not wrapped for this voter: {0}")]
    NoLogKey(&'static str),
    #[error("peer {0} is not among the network's peers")]
    NotAPeer(PeerId),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Files(#[from] ReadError),
}

/// The newest note that a quorum has cosigned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    pub size: u64,
    pub root: LedgerHash,
    pub note: Bytes,
    /// Names and times (Unix seconds) of the cosignatures.
    pub cosigned: Vec<(String, u64)>,
    /// When this peer learned of it.
    pub at: Instant,
}

/// A round that has no quorum yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    pub size: u64,
    pub since: TimeMs,
    /// Voters whose cosignatures are not in.
    pub missing: Vec<String>,
}

/// The voter's hand on checkpoints.
pub struct Publisher {
    pub(super) me: PeerId,
    pub(super) identity: Arc<Principal>,
    pub(super) applied: Arc<Applied>,
    clocks: Arc<Clocks>,
    transport: Arc<dyn RaftTransport>,
    dir: PathBuf,
    /// Covers size and root last signed, in memory and on disk; held across that write, never
    /// across an await.
    signed: Mutex<Option<(u64, LedgerHash)>>,
    /// Covers the round under way.
    pending: Mutex<Option<Pending>>,
    pub published: watch::Sender<Option<Published>>,
}

/// A round's work, read from the state at one moment.
struct Round {
    checkpoint: Checkpoint,
    policy: Policy,
    log_key: Ed25519KeyPair,
    others: Vec<PeerId>,
    everyone: Vec<PeerId>,
}

impl Publisher {
    pub fn open(
        dir: &Path,
        me: PeerId,
        identity: Arc<Principal>,
        applied: Arc<Applied>,
        clocks: Arc<Clocks>,
        transport: Arc<dyn RaftTransport>,
    ) -> Result<Self, PublishError> {
        let signed = read_signed(&dir.join("cosigned"))?;
        let note = read(&dir.join("ledger/checkpoint"))?;
        let now = Instant::now();
        let published = note.and_then(|note| {
            // It was accepted before it was written; what a disk did to it since shows here.
            let text = Note::parse(&note).ok()?.text.to_owned();
            let checkpoint = Checkpoint::parse(&text).ok()?;
            let Checkpoint { size, root, .. } = checkpoint;
            Some(Published { size, root, note: note.into(), cosigned: Vec::new(), at: now })
        });
        let (published, _) = watch::channel(published);
        let (signed, pending) = (Mutex::new(signed), Mutex::default());
        let dir = dir.to_owned();
        Ok(Self { me, identity, applied, clocks, transport, dir, signed, pending, published })
    }

    /// How many records this voter has signed and published, and the files that say so.
    pub fn sizes(&self) -> [(u64, &'static str); 2] {
        let signed = *self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        let published = self.published.borrow().as_ref().map_or(0, |p| p.size);
        [(signed.map_or(0, |(size, _)| size), "cosigned"), (published, "ledger/checkpoint")]
    }

    pub fn pending(&self) -> Option<Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the leader has something to sign: a larger ledger, or an old signature.
    pub fn is_due(&self, size: u64) -> bool {
        let published = self.published.borrow();
        size > 0
            && published.as_ref().is_none_or(|p| {
                p.size < size || p.at.elapsed() >= IDLE_EVERY || p.cosigned.is_empty()
            })
    }

    /// One round of the leader: sign, collect, publish, tell everyone.
    pub async fn round(&self) -> Result<(), PublishError> {
        let round = self.plan()?;
        let log_line = {
            let signature = round.log_key.sign(round.checkpoint.text().as_bytes());
            round.policy.log.log_line(&sixty_four(signature.as_ref()))
        };
        let request = write_note(&round.checkpoint, std::slice::from_ref(&log_line));
        self.begin(&round);
        let mut lines = vec![log_line, self.cosign_own(&round.checkpoint)?];
        let mut answers: FuturesUnordered<_> = round
            .others
            .iter()
            .map(|peer| {
                let body = Bytes::from(request.clone());
                self.transport.call(*peer, Call::Cosign, body, COSIGN_WITHIN)
            })
            .collect();
        let need = round.policy.quorum();
        while lines.len() - 1 < need
            && let Some(answer) = answers.next().await
        {
            let line = answer.ok().and_then(|bytes| String::from_utf8(bytes.into()).ok());
            let Some(line) = line else { continue };
            // One voter's rubbish must not spoil the note.
            let with = write_note(&round.checkpoint, &[lines[0].clone(), line.clone()]);
            if round.policy.read(with.as_bytes()).is_ok_and(|a| a.cosigned.len() == 1) {
                lines.push(line);
                self.progress(&round.policy, &write_note(&round.checkpoint, &lines));
            }
        }
        let note = write_note(&round.checkpoint, &lines);
        self.publish(note.as_bytes())?;
        for peer in round.everyone {
            let note = Bytes::from(note.clone());
            let told = self.transport.call(peer, Call::Published, note, PUBLISHED_WITHIN);
            // A peer that is away asks, or hears the next one.
            tokio::spawn(told);
        }
        Ok(())
    }

    fn plan(&self) -> Result<Round, PublishError> {
        let state = self.applied.state();
        let state = state.as_ref().ok_or(PublishError::NoNetwork)?;
        let head = state.head();
        let peer = |p: &&Peer| p.peer != self.me && p.state != PeerState::Removed;
        let ids = |p: &Peer| p.peer;
        Ok(Round {
            checkpoint: Checkpoint::new(state.origin(), head.size, head.root),
            policy: state.roster().policy(),
            log_key: self.log_key(state)?,
            others: state.network().voters().filter(peer).map(ids).collect(),
            everyone: state.network().peers().filter(peer).map(ids).collect(),
        })
    }

    fn begin(&self, round: &Round) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let since = pending.as_ref().map_or_else(|| self.clocks.now(), |p| p.since);
        let missing = round.policy.voters.iter().map(|v| v.name.clone()).collect();
        *pending = Some(Pending { size: round.checkpoint.size, since, missing });
    }

    fn progress(&self, policy: &Policy, note: &str) {
        let Ok(read) = policy.read(note.as_bytes()) else { return };
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pending) = pending.as_mut() {
            pending.missing.retain(|name| read.cosigned.iter().all(|(n, _)| n != name));
        }
    }

    /// Answers the leader's request: this voter's cosignature line.
    pub async fn cosign(&self, note: &[u8]) -> Result<String, PublishError> {
        // First, because the records up to there say whose signatures these are.
        self.applied_up_to(Checkpoint::parse(Note::parse(note)?.text)?.size).await;
        let asked = {
            let state = self.applied.state();
            let state = state.as_ref().ok_or(PublishError::NoNetwork)?;
            state.roster().policy().read(note)?.checkpoint
        };
        self.cosign_own(&asked)
    }

    /// Takes the note that the leader distributes.
    pub async fn hear(&self, note: &[u8]) -> Result<(), PublishError> {
        let text = Note::parse(note)?.text;
        self.applied_up_to(Checkpoint::parse(text)?.size).await;
        self.publish(note)
    }

    async fn applied_up_to(&self, size: u64) {
        let mut applied = self.applied.size.subscribe();
        // Late or gone: the caller's check then says what is missing.
        let _ = tokio::time::timeout(APPLIED_WITHIN, applied.wait_for(|s| *s >= size)).await;
    }

    /// Signs a checkpoint that agrees with what this voter computed itself.
    fn cosign_own(&self, asked: &Checkpoint) -> Result<String, PublishError> {
        let key = {
            let state = self.applied.state();
            let state = state.as_ref().ok_or(PublishError::NoNetwork)?;
            let have = state.size();
            let not_applied = PublishError::NotApplied { asked: asked.size, have };
            let ours = state.root_at(asked.size).ok_or(not_applied)?;
            agree(asked.size, ours, asked.root)?;
            let me = state.network().peer(self.me).ok_or(PublishError::NotAPeer(self.me))?;
            VerifierKey::voter(state.origin(), me.name.as_str(), me.keys.signing.0)
        };
        self.remember(asked.size, asked.root)?;
        // Crash here: remembered and not signed, which costs nothing: the same can be signed again.
        let time = self.clocks.now().0 / 1000;
        let signature = self.identity.sign(&asked.cosigned_message(time));
        Ok(key.cosigned_line(time, &signature))
    }

    /// Brings to disk what is about to be signed.
    fn remember(&self, size: u64, root: LedgerHash) -> Result<(), PublishError> {
        let mut signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        match *signed {
            Some((last, _)) if size < last => {
                return Err(PublishError::Smaller { asked: size, signed: last });
            }
            Some((last, ours)) if size == last => return agree(size, ours, root),
            _ => {}
        }
        let text = format!("{size}\n{root}\n");
        durable::replace_file(&self.dir.join("cosigned"), FILE_MODE, text.as_bytes())?;
        *signed = Some((size, root));
        Ok(())
    }

    /// Takes a note for the newest published one, if the policy and our own records agree.
    pub fn publish(&self, note: &[u8]) -> Result<(), PublishError> {
        let Accepted { checkpoint, cosigned } = {
            let state = self.applied.state();
            let state = state.as_ref().ok_or(PublishError::NoNetwork)?;
            let accepted = state.roster().policy().accept(note)?;
            let (asked, have) = (accepted.checkpoint.size, state.size());
            let ours = state.root_at(asked).ok_or(PublishError::NotApplied { asked, have })?;
            agree(asked, ours, accepted.checkpoint.root)?;
            accepted
        };
        let (size, root, at) = (checkpoint.size, checkpoint.root, Instant::now());
        if self.published.borrow().as_ref().is_some_and(|p| p.size > size) {
            return Ok(()); // an older one that came late
        }
        self.applied.files.write_partial(size)?;
        durable::replace_file(&self.dir.join("ledger/checkpoint"), FILE_MODE, note)?;
        self.keep(size, self.clocks.now(), note)?;
        let note = Bytes::copy_from_slice(note);
        self.published.send_replace(Some(Published { size, root, note, cosigned, at }));
        *self.pending.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(())
    }

    /// One note a second stays for ever.
    fn keep(&self, size: u64, at: TimeMs, note: &[u8]) -> Result<(), DiskError> {
        let text = mictlan::ledger::record::time::format(TimeMs(at.0 / 1000 * 1000));
        // 2026-11-21T19:27:14.000Z
        let parts: Vec<&str> = text.split(['-', 'T', ':', '.']).collect();
        let [year, month, day, hour, minute, second, ..] = parts[..] else {
            unreachable!("a time has a date and a time of day");
        };
        let dir = self.dir.join("ledger/checkpoints");
        let dir = dir.join(format!("{year}/{month}/{day}/{hour}/{minute}"));
        let has_one = std::fs::read_dir(&dir).is_ok_and(|entries| {
            let of_second = |name: std::ffi::OsString| {
                name.to_string_lossy().starts_with(&format!("{second}-"))
            };
            entries.flatten().any(|e| of_second(e.file_name()))
        });
        if has_one {
            return Ok(());
        }
        durable::create_dir(&dir, 0o755)?;
        durable::replace_file(&dir.join(format!("{second}-{size}.note")), FILE_MODE, note)
    }
}

/// The publishing task: rounds while this voter leads, until raft ends.
pub async fn run(publisher: Arc<Publisher>, raft: Raft, me: PeerId) {
    let mut ticks = tokio::time::interval(GROWN_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let metrics = raft.metrics();
    loop {
        ticks.tick().await;
        let leads = {
            let metrics = metrics.borrow();
            if metrics.running_state.is_err() {
                return;
            }
            metrics.current_leader == Some(me.0)
        };
        if leads && publisher.is_due(publisher.applied.files.size()) {
            match publisher.round().await {
                Ok(()) => {}
                // Absent voters are shown by `status`; work goes on meanwhile.
                Err(PublishError::Checkpoint(CheckpointError::NoQuorum { .. })) => {}
                Err(error) => tracing::warn!(%error, "no checkpoint was published"),
            }
        }
    }
}

fn agree(size: u64, ours: LedgerHash, theirs: LedgerHash) -> Result<(), PublishError> {
    if ours == theirs {
        return Ok(());
    }
    tracing::error!(size, %ours, %theirs, "two histories: a checkpoint contradicts our records");
    Err(PublishError::Contradiction { size, ours, theirs })
}

pub(super) fn sixty_four(signature: &[u8]) -> [u8; 64] {
    signature.try_into().expect("an Ed25519 signature has 64 bytes")
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, DiskError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(DiskError::new("read", path, e)),
    }
}

fn read_signed(path: &Path) -> Result<Option<(u64, LedgerHash)>, DiskError> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let mut lines = text.strip_suffix('\n').unwrap_or_default().split('\n');
    let signed = match (lines.next(), lines.next(), lines.next()) {
        (Some(size), Some(root), None) => size.parse().ok().zip(LedgerHash::from_hex(root)),
        _ => None,
    };
    // Without it this voter could sign a second history: better not to start.
    let damaged = || DiskError::new("understand", path, std::io::ErrorKind::InvalidData);
    signed.map(Some).ok_or_else(damaged)
}

impl From<PublishError> for CallError {
    fn from(error: PublishError) -> Self {
        CallError::Refused(error.to_string())
    }
}
