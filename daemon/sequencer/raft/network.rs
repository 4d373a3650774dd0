//! Raft's messages over whatever carries opaque bytes between voters.
//!
//! Owns: the seam `RaftTransport`, the messages' bytes, the voters' clocks as replies tell them.
//! Never: opens a connection, or believes a message's claim of who sent it: the transport knows
//! the sender, and a message that names another one is refused.
//! Invariant: a heartbeat is a call of its own kind, so that it never waits behind a full message.

use super::guard::Guard;
use super::{LogId, Raft, SnapshotMeta, Types, Vote};
use crate::sequencer::clock::Clocks;
use bytes::Bytes;
use futures::future::BoxFuture;
use mictlan::id::{PeerId, TimeMs};
use openraft::error::{
    Fatal, InstallSnapshotError, RPCError, RaftError, ReplicationClosed, StreamingError,
    Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::storage::Snapshot;
use openraft::{EmptyNode, OptionalSend};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Pieces of a snapshot; a transport carries messages of a little more than this.
const SNAPSHOT_PIECE_BYTES: usize = 1 << 20;
const SNAPSHOT_PIECE_WITHIN: Duration = Duration::from_secs(30);
/// How long a voter that did not answer is left alone. Longer only delays its return.
const BACKOFF: Duration = Duration::from_millis(300);

/// What a voter asks another one. The numbers are the wire's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Call {
    /// Entries to append.
    Append = 1,
    /// A sign of life: on a connection of its own.
    Heartbeat = 2,
    Vote = 3,
    /// A piece of a state snapshot.
    Snapshot = 4,
    /// A checkpoint to cosign.
    Cosign = 5,
    /// A checkpoint that a quorum has cosigned.
    Published = 6,
    /// A full entry bundle with its tag lists, for one who catches up.
    Bundle = 7,
    /// How a voter stands, for one whose log is not complete.
    Stand = 8,
    /// What a voter has on its disk, for one that starts.
    Recall = 9,
}

impl Call {
    pub fn parse(number: u8) -> Option<Self> {
        use Call::*;
        [Append, Heartbeat, Vote, Snapshot, Cosign, Published, Bundle, Stand, Recall]
            .into_iter()
            .find(|call| *call as u8 == number)
    }
}

/// Why a call has no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CallError {
    #[error("peer {0} cannot be reached")]
    Unreachable(PeerId),
    #[error("peer {0} did not answer in time")]
    Late(PeerId),
    #[error("the peer refused: {0}")]
    Refused(String),
}

/// Carries calls between voters: in process for one machine and for tests, HTTP between machines.
pub trait RaftTransport: Send + Sync + 'static {
    fn call(
        &self,
        to: PeerId,
        call: Call,
        body: Bytes,
        within: Duration,
    ) -> BoxFuture<'static, Result<Bytes, CallError>>;
}

/// A reply, and the voter's clock when it gave it.
#[derive(Serialize, Deserialize)]
struct Timed<T> {
    now: TimeMs,
    reply: T,
}

/// One piece of a snapshot; `total` of 0 never occurs.
#[derive(Serialize, Deserialize)]
pub struct Piece {
    pub vote: Vote,
    pub meta: SnapshotMeta,
    pub offset: u64,
    pub total: u64,
    pub bytes: Vec<u8>,
}

const VERSION: u8 = 1;

pub fn pack<T: Serialize>(message: &T) -> Bytes {
    let bytes = postcard::to_extend(message, vec![VERSION]).expect("messages encode into memory");
    Bytes::from(bytes)
}

pub fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CallError> {
    let refused = |why: &str| CallError::Refused(why.to_owned());
    match bytes {
        [VERSION, body @ ..] => match postcard::take_from_bytes(body) {
            Ok((message, [])) => Ok(message),
            _ => Err(refused("a message that does not decode")),
        },
        _ => Err(refused("a message of another version")),
    }
}

/// Makes a client for each voter.
pub struct Network {
    pub transport: Arc<dyn RaftTransport>,
    pub clocks: Arc<Clocks>,
}

pub struct Link {
    to: PeerId,
    transport: Arc<dyn RaftTransport>,
    clocks: Arc<Clocks>,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, _: &EmptyNode) -> Link {
        let (transport, clocks) = (self.transport.clone(), self.clocks.clone());
        Link { to: PeerId(target), transport, clocks }
    }
}

type RpcError<E = openraft::error::Infallible> = RPCError<u64, EmptyNode, RaftError<u64, E>>;

impl Link {
    async fn ask<Q: Serialize, A: DeserializeOwned>(
        &self,
        call: Call,
        question: &Q,
        within: Duration,
    ) -> Result<A, CallError> {
        let body = pack(question);
        let sent = Instant::now();
        let bytes = self.transport.call(self.to, call, body, within).await?;
        let answer: Timed<A> = unpack(&bytes)?;
        self.clocks.heard(self.to, sent, answer.now);
        Ok(answer.reply)
    }
}

impl RaftNetwork<Types> for Link {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, RpcError> {
        let call = if rpc.entries.is_empty() { Call::Heartbeat } else { Call::Append };
        let answer = self.ask(call, &rpc, option.hard_ttl()).await;
        answer.map_err(|e| Unreachable::new(&e).into())
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, RpcError> {
        let answer = self.ask(Call::Vote, &rpc, option.hard_ttl()).await;
        answer.map_err(|e| Unreachable::new(&e).into())
    }

    async fn install_snapshot(
        &mut self,
        _: InstallSnapshotRequest<Types>,
        _: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, RpcError<InstallSnapshotError>> {
        // Only openraft's own `full_snapshot` calls this, and ours replaces it.
        let why = CallError::Refused("snapshots travel by full_snapshot".into());
        Err(Unreachable::new(&why).into())
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<Types>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<Types, Fatal<u64>>> {
        let bytes = snapshot.snapshot.into_inner();
        let total = bytes.len() as u64;
        let send = async {
            let mut reply = None;
            for (i, piece) in bytes.chunks(SNAPSHOT_PIECE_BYTES).enumerate() {
                let offset = (i * SNAPSHOT_PIECE_BYTES) as u64;
                let (meta, bytes) = (snapshot.meta.clone(), piece.to_vec());
                let piece = Piece { vote, meta, offset, total, bytes };
                reply = self.ask(Call::Snapshot, &piece, SNAPSHOT_PIECE_WITHIN).await?;
            }
            // Every piece but the last is answered by none.
            let early = || CallError::Refused("no answer to the last piece".into());
            reply.map(SnapshotResponse::new).ok_or_else(early)
        };
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = send => sent.map_err(|e| StreamingError::Unreachable(Unreachable::new(&e))),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(BACKOFF))
    }
}

/// Answers raft's own calls. `from` is who the transport knows it talks to.
pub async fn answer(
    raft: &Raft,
    guard: &Arc<Guard>,
    (clocks, applied): (&Clocks, Option<LogId>),
    from: PeerId,
    call: Call,
    body: &[u8],
) -> Result<Bytes, CallError> {
    let failed = |e: &dyn std::fmt::Display| CallError::Refused(e.to_string());
    match call {
        Call::Append | Call::Heartbeat => {
            let rpc: AppendEntriesRequest<Types> = unpack(body)?;
            is_from(from, &rpc.vote)?;
            guard.may_follow(from, rpc.vote)?;
            guard.refuse_another_history(applied, &rpc)?;
            let reply = raft.append_entries(rpc).await.map_err(|e| failed(&e))?;
            Ok(pack(&Timed { now: clocks.now(), reply }))
        }
        Call::Vote => {
            let rpc: VoteRequest<u64> = unpack(body)?;
            is_from(from, &rpc.vote)?;
            guard.may_vote(from, rpc.last_log_id).await?;
            let reply = raft.vote(rpc).await.map_err(|e| failed(&e))?;
            Ok(pack(&Timed { now: clocks.now(), reply }))
        }
        _ => Err(CallError::Refused("not one of raft's calls".into())),
    }
}

/// The answer to a piece of a snapshot: the vote after the last one.
pub fn piece_answer(clocks: &Clocks, vote: Option<Vote>) -> Bytes {
    pack(&Timed { now: clocks.now(), reply: vote })
}

/// A leader or candidate speaks for itself only.
pub fn is_from(from: PeerId, vote: &Vote) -> Result<(), CallError> {
    if vote.leader_id.node_id == from.0 {
        return Ok(());
    }
    let claimed = vote.leader_id.node_id;
    Err(CallError::Refused(format!("peer {from} speaks in the name of peer {claimed}")))
}
