//! The sequencer: one voter's part in ordering the network's ledger, and the ledger it keeps.
//!
//! Owns: one directory (log, snapshot, ledger files, what it cosigned) and the tasks that work on
//! it. docs/FORMAT.md has the bytes.
//! Never: reads a payload, knows a volume's key, or decides what may be ordered: the replicated
//! state in `cluster` does, the same on every voter.
//! Invariants: an outcome is answered only after a majority has its entry on disk and this voter
//! has applied it; a network of one voter takes the very same path; after a fatal error nothing
//! more is answered, and `ended` says so, for the process to end.
//!
//! | part | promise |
//! | --- | --- |
//! | raft | openraft: log, state machine, messages |
//! | open | what was found in the directory belongs together |
//! | files | tiles, bundles, tag lists on disk |
//! | propose | groups what waits |
//! | follow | applied records for mounts |
//! | publish | checkpoints, signed, cosigned, kept |
//! | log_key | the key that signs them, and its rotation |
//! | catch_up | records from other voters, verified |
//! | clock | who may propose |

pub mod catch_up;
mod chunks;
pub mod clock;
pub mod files;
mod follow;
mod group;
mod log_key;
mod open;
mod propose;
mod publish;
pub mod raft;
mod recent;

#[cfg(test)]
mod tests;

pub use chunks::{Chunks, ChunksError};
pub use clock::WallClock;
pub use follow::{Follow, FollowError, Page};
pub use open::{Limits, OpenError, Options};
pub use propose::ProposeError;
pub use publish::{Pending, PublishError, Published};
pub use raft::network::{Call, CallError, RaftTransport};
pub use recent::Kept;

use crate::store::durable;
use bytes::Bytes;
use clock::Clocks;
use mictlan::cluster::state::{Item, Outcome, State, Submission};
use mictlan::id::{PeerId, Position};
use mictlan::ledger::record::body::KeyRotate;
use openraft::error::{CheckIsLeaderError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, EmptyNode};
use propose::{Proposer, Waiting};
use publish::Publisher;
use raft::guard::Guard;
use raft::log::LogStore;
use raft::machine::{Applied, Machine};
use raft::network::{Network, Piece, is_from, pack, piece_answer, unpack};
use raft::{LogId, Raft, SnapshotMeta};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// Why membership did not change, or no position can be confirmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeadError {
    #[error("this voter does not lead")]
    NotLeader { leader: Option<PeerId> },
    #[error("no majority of voters confirmed it in time")]
    Late,
    #[error("this leader's clock is {ahead_ms} ms ahead of the other voters'; set it right")]
    ClockAhead { ahead_ms: i64 },
    #[error("{0}")]
    Membership(String),
    #[error("the sequencer has stopped: {0}")]
    Stopped(String),
}

/// One voter.
pub struct Sequencer {
    me: PeerId,
    raft: Raft,
    guard: Arc<Guard>,
    log: LogStore,
    applied: Arc<Applied>,
    clocks: Arc<Clocks>,
    transport: Arc<dyn RaftTransport>,
    publisher: Arc<Publisher>,
    proposals: mpsc::Sender<Waiting>,
    /// Covers the snapshot that is being received, if one is.
    receiving: Mutex<Option<(SnapshotMeta, Vec<u8>)>>,
}

impl Sequencer {
    /// Restores what the directory holds and begins to take part. A new directory belongs to no
    /// group of voters until `bootstrap`, or until a leader's `add_voter` brings it in.
    pub async fn open(options: Options) -> Result<Arc<Self>, OpenError> {
        durable::create_dir(&options.dir, 0o700)?;
        let log = LogStore::open(&options.dir.join("wal"), options.limits.wal_segment_bytes)?;
        let guard = options.guard(&log)?;
        let applied =
            Applied::open(options.dir.clone(), options.network, options.me, options.chunks)?;
        let applied = Arc::new(applied);
        let clocks = Arc::new(Clocks::new(options.now));
        let transport = options.transport;
        let publisher = Arc::new(Publisher::open(
            &options.dir,
            options.me,
            options.identity,
            applied.clone(),
            clocks.clone(),
            transport.clone(),
        )?);
        open::nothing_is_gone(&options.dir, &log, &applied, &publisher).await?;
        let network = Network { transport: transport.clone(), clocks: clocks.clone() };
        let machine = Machine { applied: applied.clone() };
        let voters = raft::machine::voters(&log, &machine).await;
        let asks = guard.ask_first(voters.map_err(|e| OpenError::Unreadable(e.to_string()))?)?;
        if asks {
            log.lead_no_longer(options.me.0);
        }
        let elects = !guard.lacks() && !asks;
        let config = raft::config(options.limits.entries_per_snapshot, elects);
        let raft = Raft::new(options.me.0, config, network, log.clone(), machine)
            .await
            .map_err(|e| OpenError::Raft(e.to_string()))?;
        if guard.lacks() {
            tokio::spawn(guard.clone().catch_up(raft.clone()));
        }
        if asks {
            tokio::spawn(guard.clone().recall(raft.clone(), log.clone(), applied.clone()));
        }
        let (proposals, queue) = mpsc::channel(propose::WAITING_MAX);
        let proposer = Proposer {
            raft: raft.clone(),
            me: options.me,
            applied: applied.clone(),
            clocks: clocks.clone(),
        };
        tokio::spawn(proposer.run(queue));
        tokio::spawn(publish::run(publisher.clone(), raft.clone(), options.me));
        Ok(Arc::new(Self {
            me: options.me,
            raft,
            guard,
            log,
            applied,
            clocks,
            transport,
            publisher,
            proposals,
            receiving: Mutex::default(),
        }))
    }

    /// Founds a network of one voter, this one, with record 0. Again with the same record: the
    /// same answer.
    pub async fn bootstrap(
        &self,
        genesis: Submission,
        within: Duration,
    ) -> Result<Outcome, ProposeError> {
        let members: BTreeMap<u64, EmptyNode> = [(self.me.0, EmptyNode {})].into();
        // Crash after the mark is gone: the log is still empty, and the next start marks it again.
        if self.raft.is_initialized().await == Ok(false) {
            self.guard.is_complete().map_err(|_| ProposeError::Stopped)?;
        }
        // Refused where it was done before; the proposal then tells how things stand.
        let _ = self.raft.initialize(members).await;
        let founded = async {
            self.raft
                .wait(None)
                .metrics(|m| m.current_leader == Some(self.me.0), "leads itself")
                .await
                .map_err(|_| ProposeError::Stopped)?;
            if let Some(position) = self.founded_by(&genesis) {
                return Ok(Outcome::Repeated { position });
            }
            let group = group::Grouped::Genesis { t: self.clocks.now(), submission: genesis };
            let written = self.raft.client_write(raft::Group(group.encode())).await;
            let answers = written.map_err(|_| ProposeError::Stopped)?.data.0;
            answers.into_iter().next().ok_or(ProposeError::Stopped)
        };
        timeout(within, founded).await.unwrap_or(Err(ProposeError::Late))
    }

    fn founded_by(&self, genesis: &Submission) -> Option<Position> {
        let state = self.applied.state();
        let id = mictlan::ledger::record::genesis_hash(&genesis.p);
        state.as_ref().filter(|s| s.network_id() == id).map(|_| Position(0))
    }

    /// Has an item ordered. An error says whether that is certainly not so, or not known.
    pub async fn propose(&self, item: Item, within: Duration) -> Result<Outcome, ProposeError> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            let waiting = Waiting { item, answer };
            self.proposals.send(waiting).await.map_err(|_| ProposeError::Stopped)?;
            answered.await.map_err(|_| ProposeError::Stopped)?
        };
        timeout(within, asked).await.unwrap_or(Err(ProposeError::Late))
    }

    /// The end of the ledger at some moment after the call, confirmed by a majority.
    pub async fn read_position(&self, within: Duration) -> Result<Position, LeadError> {
        // Confirming is a heartbeat too, and one that gives way sends none.
        if let Err(ProposeError::ClockAhead { ahead_ms }) =
            propose::may_lead(&self.raft, self.me, &self.clocks)
        {
            return Err(LeadError::ClockAhead { ahead_ms });
        }
        match timeout(within, self.raft.ensure_linearizable()).await {
            Ok(Ok(_)) => Ok(Position(self.applied.files.size())),
            Ok(Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(to)))) => {
                Err(LeadError::NotLeader { leader: to.leader_id.map(PeerId) })
            }
            Ok(Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_)))) | Err(_) => {
                Err(LeadError::Late)
            }
            Ok(Err(RaftError::Fatal(fatal))) => Err(LeadError::Stopped(fatal.to_string())),
        }
    }

    /// Applied records from a position on; waits for the first one.
    pub async fn follow(&self, wanted: follow::Follow) -> Result<Page, FollowError> {
        follow::follow(&self.applied, wanted).await
    }

    /// The newest note that a quorum has cosigned.
    pub fn published(&self) -> Option<Published> {
        self.publisher.published.borrow().clone()
    }

    /// Waits until a published checkpoint covers a record.
    pub async fn wait_published(&self, at: Position, within: Duration) -> Option<Published> {
        let mut published = self.publisher.published.subscribe();
        let covers = |p: &Option<Published>| p.as_ref().is_some_and(|p| p.size > at.0);
        let found = timeout(within, published.wait_for(covers)).await.ok()?.ok()?;
        found.clone()
    }

    /// What waits for cosignatures, since when, and whose.
    pub fn pending(&self) -> Option<Pending> {
        self.publisher.pending()
    }

    /// Brings a peer's copy up to date, then lets it vote. The caller has recorded the peer.
    pub async fn add_voter(&self, peer: PeerId, within: Duration) -> Result<(), LeadError> {
        let change = async {
            let learned = self.raft.add_learner(peer.0, EmptyNode {}, true).await;
            learned.map_err(membership_error)?;
            // A vote without a complete log is none, and could be missed at once.
            self.guard.wait_complete(peer).await;
            let add = ChangeMembers::AddVoterIds(BTreeSet::from([peer.0]));
            self.raft.change_membership(add, true).await.map_err(membership_error)
        };
        timeout(within, change).await.map_err(|_| LeadError::Late)?.map(drop)
    }

    /// Lets a peer receive the log without a vote, in the background.
    pub async fn teach(&self, peer: PeerId, within: Duration) -> Result<(), LeadError> {
        let taught = timeout(within, self.raft.add_learner(peer.0, EmptyNode {}, false)).await;
        taught.map_err(|_| LeadError::Late)?.map_err(membership_error).map(drop)
    }

    /// A peer without a vote receives nothing more.
    pub async fn forget(&self, peer: PeerId, within: Duration) -> Result<(), LeadError> {
        let forget = ChangeMembers::RemoveNodes(BTreeSet::from([peer.0]));
        let changed = timeout(within, self.raft.change_membership(forget, false)).await;
        changed.map_err(|_| LeadError::Late)?.map_err(membership_error).map(drop)
    }

    /// Takes a peer's vote away; it then receives nothing more.
    pub async fn remove_voter(&self, peer: PeerId, within: Duration) -> Result<(), LeadError> {
        let remove = ChangeMembers::RemoveVoters(BTreeSet::from([peer.0]));
        let change = self.raft.change_membership(remove, false);
        let changed = timeout(within, change).await.map_err(|_| LeadError::Late)?;
        changed.map_err(membership_error).map(drop)
    }

    /// Who led when last heard of; nobody while this voter asks what it missed.
    pub fn leader(&self) -> Option<PeerId> {
        if self.guard.asks() {
            return None;
        }
        self.raft.metrics().borrow().current_leader.map(PeerId)
    }

    pub fn leads(&self) -> bool {
        self.leader() == Some(self.me)
    }

    pub fn id(&self) -> PeerId {
        self.me
    }

    pub fn voters(&self) -> Vec<PeerId> {
        self.raft.metrics().borrow().membership_config.voter_ids().map(PeerId).collect()
    }

    /// Who receives the log without a vote.
    pub fn learners(&self) -> Vec<PeerId> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        membership.learner_ids().map(PeerId).collect()
    }

    /// A rotation of the log key to a new one for the voters of now, signed by the old one, which
    /// this voter must hold.
    pub fn rotate_log_key(&self) -> Result<KeyRotate, PublishError> {
        self.publisher.rotate()
    }

    /// Reads the applied state; `None` before record 0. `look` must be quick: applying waits.
    pub fn with_state<T>(&self, look: impl FnOnce(&State) -> T) -> Option<T> {
        self.applied.state().as_ref().map(look)
    }

    pub fn applied(&self) -> &Arc<Applied> {
        &self.applied
    }

    /// Ends when the sequencer can go on no more (a disk that failed, most of all) or was shut
    /// down; the reason. The process is to exit: a voter that cannot write must not answer.
    pub async fn ended(&self) -> String {
        let mut metrics = self.raft.metrics();
        let ended = tokio::select! {
            ended = metrics.wait_for(|m| m.running_state.is_err()) => ended,
            why = self.guard.ended() => return why,
        };
        match ended {
            Ok(m) => m.running_state.as_ref().err().map(ToString::to_string).unwrap_or_default(),
            Err(_) => "the ordering engine is gone".to_owned(),
        }
    }

    pub async fn shutdown(&self) {
        // It fails only when the engine's task is gone already.
        let _ = self.raft.shutdown().await;
    }

    /// Answers another voter. `from` is who the transport knows it talks to.
    pub async fn handle_raft(
        &self,
        from: PeerId,
        call: Call,
        body: &[u8],
    ) -> Result<Bytes, CallError> {
        match call {
            Call::Append | Call::Heartbeat | Call::Vote => {
                let here = (&*self.clocks, self.applied.last_applied());
                raft::network::answer(&self.raft, &self.guard, here, from, call, body).await
            }
            Call::Snapshot => self.receive(from, unpack(body)?).await,
            Call::Stand => self.guard.stand(&self.raft, from, body).await,
            Call::Recall => {
                unpack::<()>(body)?;
                Ok(pack(&self.guard.known(&self.raft, &self.log, &self.applied)))
            }
            Call::Bundle => catch_up::answer(&self.applied.files, body),
            Call::Cosign => Ok(Bytes::from(self.publisher.cosign(body).await?)),
            Call::Published => {
                self.publisher.hear(body).await?;
                Ok(Bytes::new())
            }
        }
    }

    /// One piece of a snapshot. After the last one every record behind it is fetched and verified
    /// before the snapshot counts: a network that fails here only makes the leader try again.
    async fn receive(&self, from: PeerId, piece: Piece) -> Result<Bytes, CallError> {
        is_from(from, &piece.vote)?;
        self.guard.may_follow(from, piece.vote)?;
        let Some(bytes) = self.collect(&piece)? else {
            return Ok(piece_answer(&self.clocks, None));
        };
        let refused = |e: &dyn std::fmt::Display| CallError::Refused(e.to_string());
        self.applied.prepare(&bytes, from, &*self.transport).await.map_err(|e| refused(&e))?;
        let snapshot = Box::new(Cursor::new(bytes));
        let snapshot = openraft::storage::Snapshot { meta: piece.meta, snapshot };
        let reply = self.raft.install_full_snapshot(piece.vote, snapshot).await;
        Ok(piece_answer(&self.clocks, Some(reply.map_err(|e| refused(&e))?.vote)))
    }

    /// The whole bytes with the last piece.
    fn collect(&self, piece: &Piece) -> Result<Option<Vec<u8>>, CallError> {
        let mut receiving = self.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        if piece.offset == 0 {
            *receiving = Some((piece.meta.clone(), Vec::new()));
        }
        let fits = |(meta, bytes): &&mut (SnapshotMeta, Vec<u8>)| {
            *meta == piece.meta && bytes.len() as u64 == piece.offset
        };
        let Some((_, bytes)) = receiving.as_mut().filter(fits) else {
            return Err(CallError::Refused("a piece that does not follow".into()));
        };
        bytes.extend_from_slice(&piece.bytes);
        if bytes.len() as u64 >= piece.total {
            return Ok(receiving.take().map(|(_, bytes)| bytes));
        }
        Ok(None)
    }

    /// Where the log stands, for `status`.
    pub fn last_applied(&self) -> Option<LogId> {
        self.applied.last_applied()
    }
}

fn membership_error(error: RaftError<u64, ClientWriteError<u64, EmptyNode>>) -> LeadError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
            LeadError::NotLeader { leader: to.leader_id.map(PeerId) }
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(why)) => {
            LeadError::Membership(why.to_string())
        }
        RaftError::Fatal(fatal) => LeadError::Stopped(fatal.to_string()),
    }
}
