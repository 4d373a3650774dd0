//! One way to one peer: the same calls whether it is this process, this machine or another.
//!
//! Owns: the deadline of each call, and what a failure means for the caller.
//! Never: chooses a peer, retries, or hedges; `cluster/put`, `cluster/get` and the engine do.
//! Invariant: an error says whether it was refused, failed at this peer, or may have happened.

use crate::http::client::Client;
use crate::peer::{Caller, Peer, RaftCall};
use bytes::Bytes;
use mictlan::cluster::place::Copies;
use mictlan::id::{ChunkId, Position, PrincipalId};
use mictlan::wire::{
    Answer, Append, Barrier, CloseSession, Failure, Follow, Head, Heartbeat, HeartbeatReply, Join,
    Joined, Kind, OpenSession, Outcome, Page, Query, Receipt, SessionOpened, Status,
};
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// A call that carries no chunk. Shorter than an operation's deadline (60 s), so that another
/// peer can be asked within it.
pub const CALL_DEADLINE: Duration = Duration::from_secs(15);
/// A call that carries chunks: 16 MiB over a slow line.
pub const CHUNKS_DEADLINE: Duration = Duration::from_secs(45);

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("refused by peer {}: {why}", short(.peer))]
    Refused { peer: PrincipalId, why: Failure },
    #[error("peer {}: {why}", short(.peer))]
    FailedHere { peer: PrincipalId, why: Trouble },
    #[error("peer {}: {why}; it may have happened", short(.peer))]
    Unknown { peer: PrincipalId, why: Trouble },
}

/// What went wrong on the way to a peer or at it.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    #[error("{0}")]
    Said(Failure),
    #[error("no connection: {0}")]
    NotReached(String),
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("no answer within {} s", .0.as_secs())]
    Late(Duration),
    #[error("an answer that is not of this protocol: {0}")]
    Rubbish(String),
}

fn short(peer: &PrincipalId) -> String {
    hex::encode(&peer.0[..6])
}

impl LinkError {
    /// Sorts what a peer said; `repeatable` calls change nothing when they are made twice.
    pub fn said(peer: PrincipalId, why: Failure, repeatable: bool) -> Self {
        match why.kind() {
            Kind::Refused => Self::Refused { peer, why },
            Kind::Unknown if !repeatable => Self::Unknown { peer, why: Trouble::Said(why) },
            Kind::FailedHere | Kind::Unknown => Self::FailedHere { peer, why: Trouble::Said(why) },
        }
    }

    /// Sorts what happened on the way, once the request may have reached the peer.
    pub fn on_the_way(peer: PrincipalId, why: Trouble, repeatable: bool) -> Self {
        match repeatable || matches!(why, Trouble::NotReached(_)) {
            true => Self::FailedHere { peer, why },
            false => Self::Unknown { peer, why },
        }
    }
}

#[derive(Clone)]
pub enum Link {
    Embedded(Arc<Peer>, Caller),
    Unix(Client),
    Tls(Client),
}

/// One call on whichever transport, under its deadline.
macro_rules! call {
    ($link:ident, $deadline:expr, $repeatable:literal, $method:ident($($arg:expr),*)) => {
        match $link {
            Link::Embedded(peer, caller) => {
                let answer = peer.$method(*caller, $($arg),*);
                embedded(peer.principal, $deadline, $repeatable, answer).await
            }
            Link::Unix(client) | Link::Tls(client) => {
                client.$method($deadline, $($arg),*).await
            }
        }
    };
}

async fn embedded<T>(
    peer: PrincipalId,
    deadline: Duration,
    repeatable: bool,
    answer: impl Future<Output = Result<T, Failure>>,
) -> Result<T, LinkError> {
    match tokio::time::timeout(deadline, answer).await {
        Ok(answer) => answer.map_err(|why| LinkError::said(peer, why, repeatable)),
        Err(_) => Err(LinkError::on_the_way(peer, Trouble::Late(deadline), repeatable)),
    }
}

type Answered<T> = Result<T, LinkError>;

impl Link {
    /// Whose answers these are: proven before the first byte of a request is sent.
    pub fn peer(&self) -> PrincipalId {
        match self {
            Link::Embedded(peer, _) => peer.principal,
            Link::Unix(client) | Link::Tls(client) => client.peer(),
        }
    }

    /// One receipt a chunk, in order, when all of them are durable. At most one batch
    /// (`wire::chunks::batches`).
    pub async fn put(&self, chunks: Vec<Bytes>) -> Answered<Vec<Receipt>> {
        self.put_of(chunks, None).await
    }

    /// The same; there shall be so many `copies` of each, whatever becomes of who puts them.
    pub async fn put_of(
        &self,
        chunks: Vec<Bytes>,
        copies: Option<Copies>,
    ) -> Answered<Vec<Receipt>> {
        call!(self, CHUNKS_DEADLINE, true, put(chunks, copies))
    }

    /// A receipt for each of `chunks` that the peer has, in order.
    pub async fn have(&self, chunks: Vec<ChunkId>) -> Answered<Vec<Option<Receipt>>> {
        let asked = chunks.clone();
        let receipts = call!(self, CALL_DEADLINE, true, have(chunks))?;
        let fits = |(asked, receipt): (&ChunkId, &Option<Receipt>)| {
            receipt.is_none_or(|receipt| receipt.chunk == *asked)
        };
        match receipts.len() == asked.len() && asked.iter().zip(&receipts).all(fits) {
            true => Ok(receipts),
            false => {
                let why = Trouble::Rubbish("receipts for other chunks than were named".to_owned());
                Err(LinkError::FailedHere { peer: self.peer(), why })
            }
        }
    }

    /// What the peer itself has, as it came: the caller hashes it against the address before use.
    pub async fn get(&self, chunk: ChunkId) -> Answered<Option<Bytes>> {
        call!(self, CHUNKS_DEADLINE, true, get(chunk))
    }

    /// The same, from whichever peer has it: this one asks the others for what it lacks.
    pub async fn fetch(&self, chunk: ChunkId) -> Answered<Option<Bytes>> {
        call!(self, CHUNKS_DEADLINE, true, fetch(chunk))
    }

    /// Bytes with their path to the address; `seal::range` checks them.
    pub async fn get_range(&self, chunk: ChunkId, range: Range<u64>) -> Answered<Option<Bytes>> {
        call!(self, CHUNKS_DEADLINE, true, get_range(chunk, range))
    }

    /// A `Submission` alone, or with the lease units that it passes.
    pub async fn append(&self, append: impl Into<Append>) -> Answered<Outcome> {
        let append = append.into();
        call!(self, CHUNKS_DEADLINE, false, append(append))
    }

    pub async fn open_session(&self, open: OpenSession) -> Answered<SessionOpened> {
        call!(self, CALL_DEADLINE, false, open_session(open))
    }

    pub async fn close_session(&self, close: CloseSession) -> Answered<()> {
        call!(self, CALL_DEADLINE, false, close_session(close))
    }

    pub async fn heartbeat(&self, heartbeat: Heartbeat) -> Answered<HeartbeatReply> {
        let wait = Duration::from_millis(heartbeat.wait_ms.into());
        call!(self, CALL_DEADLINE + wait, true, heartbeat(heartbeat))
    }

    pub async fn follow(&self, follow: Follow) -> Answered<Page> {
        let wait = Duration::from_millis(follow.wait_ms.into());
        call!(self, CALL_DEADLINE + wait, true, follow(follow))
    }

    pub async fn head(&self) -> Answered<Head> {
        call!(self, CALL_DEADLINE, true, head())
    }

    pub async fn read_position(&self, barrier: Barrier) -> Answered<Position> {
        call!(self, CHUNKS_DEADLINE, true, read_position(barrier))
    }

    /// `None`: no such file. `path` is below `/ledger`, without a slash before it.
    pub async fn ledger_file(
        &self,
        path: String,
        range: Option<Range<u64>>,
    ) -> Answered<Option<Bytes>> {
        call!(self, CHUNKS_DEADLINE, true, ledger_file(path, range))
    }

    pub async fn query(&self, query: Query) -> Answered<Answer> {
        call!(self, CALL_DEADLINE, true, query(query))
    }

    pub async fn status(&self) -> Answered<Status> {
        call!(self, CALL_DEADLINE, true, status())
    }

    pub async fn join(&self, join: Join) -> Answered<Joined> {
        call!(self, CALL_DEADLINE, false, join(join))
    }

    /// On the voters' own pool: give a `Client` made by `Transport::voters`.
    pub async fn raft(&self, call: RaftCall, body: Bytes, deadline: Duration) -> Answered<Bytes> {
        call!(self, deadline, true, raft(call, body))
    }
}
