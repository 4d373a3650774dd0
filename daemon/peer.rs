//! One peer's services in this process: chunks if it stores, the ledger if it orders or follows.
//!
//! Owns: the check, on every request, of what the caller may do, from the applied state.
//! Never: speaks HTTP, and never trusts an address or a connection: only a proven key.
//! Invariant: HTTP, the Unix socket and the embedded mount all come through these methods, so
//! none of them can do what another may not.

use bytes::Bytes;
use futures::future::BoxFuture;
use mictlan::id::{ChunkId, NetworkId, PeerId, Position, PrincipalId, TimeMs};
use mictlan::wire::{
    Answer, CloseSession, Failure, Follow, Head, Heartbeat, HeartbeatReply, Join, Joined,
    OpenSession, Outcome, Page, Query, Receipt, Service, SessionOpened, Status, Submission,
};
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

/// Who asks: proven by a TLS handshake, by a signed challenge, or by being this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    pub principal: PrincipalId,
    /// On this machine: a Unix socket or this process.
    pub local: bool,
}

/// What the applied state says about a principal, over all volumes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Standing {
    /// Named by an `id.principal` or `net.peer` record, and not disabled.
    pub known: bool,
    /// The peer whose key it is.
    pub peer: Option<PeerId>,
    pub voter: bool,
    /// Reads some volume: owner, writer, reader or auditor.
    pub reads: bool,
    /// Writes some volume: owner or writer.
    pub writes: bool,
}

/// A message between voters; its body is the sequencer's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RaftCall {
    Vote,
    Append,
    Snapshot,
}

impl RaftCall {
    /// The last part of its route.
    pub fn path(self) -> &'static str {
        match self {
            RaftCall::Vote => "vote",
            RaftCall::Append => "append",
            RaftCall::Snapshot => "snapshot",
        }
    }
}

/// The ledger as this peer has it: a voter's, or a follower's who sends writers to the leader.
///
/// Implemented by `daemon/sequencer` and by the scripted one that the transport's tests use.
pub trait Sequencing: Send + Sync {
    fn standing(&self, principal: &PrincipalId) -> Standing;
    fn id(&self) -> Option<PeerId>;
    fn leader(&self) -> Option<PeerId>;
    fn head(&self) -> Head;
    /// The size of the newest checkpoint with a quorum of cosignatures.
    fn published(&self) -> Option<Position>;
    fn append(&self, submission: Submission) -> BoxFuture<'_, Result<Outcome, Failure>>;
    fn open_session(
        &self,
        principal: PrincipalId,
        open: OpenSession,
    ) -> BoxFuture<'_, Result<SessionOpened, Failure>>;
    fn close_session(
        &self,
        principal: PrincipalId,
        close: CloseSession,
    ) -> BoxFuture<'_, Result<(), Failure>>;
    fn heartbeat(
        &self,
        principal: PrincipalId,
        heartbeat: Heartbeat,
    ) -> BoxFuture<'_, Result<HeartbeatReply, Failure>>;
    fn follow(
        &self,
        principal: PrincipalId,
        follow: Follow,
    ) -> BoxFuture<'_, Result<Page, Failure>>;
    /// Confirmed with a majority: everything acknowledged before the call lies before it.
    fn read_position(&self) -> BoxFuture<'_, Result<Position, Failure>>;
    /// A file of the static tree by its path below `/ledger`: `checkpoint`, `tile/…`, `tags/…`.
    fn ledger_file(
        &self,
        path: String,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'_, Result<Option<Bytes>, Failure>>;
    fn answer(&self, principal: PrincipalId, query: Query) -> Result<Answer, Failure>;
    fn join(&self, newcomer: PrincipalId, join: Join) -> BoxFuture<'_, Result<Joined, Failure>>;
    fn raft(&self, call: RaftCall, body: Bytes) -> BoxFuture<'_, Result<Bytes, Failure>>;
    fn cosign(&self, body: Bytes) -> BoxFuture<'_, Result<Bytes, Failure>>;
}

pub struct Peer {
    pub network: NetworkId,
    pub principal: PrincipalId,
    sequencing: Option<Arc<dyn Sequencing>>,
}

impl Peer {
    pub fn new(
        network: NetworkId,
        principal: PrincipalId,
        sequencing: Option<Arc<dyn Sequencing>>,
    ) -> Self {
        Self { network, principal, sequencing }
    }

    /// Whether a key is anyone here; all others learn nothing but that.
    pub fn knows(&self, principal: &PrincipalId) -> bool {
        self.standing(principal).known
    }

    pub async fn put(&self, caller: Caller, _chunks: Vec<Bytes>) -> Result<Vec<Receipt>, Failure> {
        self.allow(caller, |who| who.writes || who.peer.is_some())?;
        Err(Failure::NotHere(Service::Chunks))
    }

    /// The stamps are renewed: what is named here will not be collected for the retention.
    pub async fn have(
        &self,
        caller: Caller,
        _chunks: Vec<ChunkId>,
    ) -> Result<Vec<Option<Receipt>>, Failure> {
        self.allow(caller, |who| who.writes || who.peer.is_some())?;
        Err(Failure::NotHere(Service::Chunks))
    }

    pub async fn get(&self, caller: Caller, _chunk: ChunkId) -> Result<Option<Bytes>, Failure> {
        self.allow(caller, |who| who.reads || who.peer.is_some())?;
        Err(Failure::NotHere(Service::Chunks))
    }

    /// Bytes of the stored chunk with the path from them to its address (`seal::range`).
    pub async fn get_range(
        &self,
        caller: Caller,
        _chunk: ChunkId,
        _range: Range<u64>,
    ) -> Result<Option<Bytes>, Failure> {
        self.allow(caller, |who| who.reads || who.peer.is_some())?;
        Err(Failure::NotHere(Service::Chunks))
    }

    /// The actor's signature is what counts, so any known key may hand a submission in.
    pub async fn append(&self, caller: Caller, what: Submission) -> Result<Outcome, Failure> {
        self.allow(caller, |who| who.known)?;
        self.ledger()?.append(what).await
    }

    pub async fn open_session(
        &self,
        caller: Caller,
        open: OpenSession,
    ) -> Result<SessionOpened, Failure> {
        self.allow(caller, |who| who.reads)?;
        self.ledger()?.open_session(caller.principal, open).await
    }

    pub async fn close_session(&self, caller: Caller, close: CloseSession) -> Result<(), Failure> {
        self.allow(caller, |who| who.reads)?;
        self.ledger()?.close_session(caller.principal, close).await
    }

    pub async fn heartbeat(
        &self,
        caller: Caller,
        heartbeat: Heartbeat,
    ) -> Result<HeartbeatReply, Failure> {
        self.allow(caller, |who| who.reads)?;
        self.ledger()?.heartbeat(caller.principal, heartbeat).await
    }

    pub async fn follow(&self, caller: Caller, follow: Follow) -> Result<Page, Failure> {
        self.allow(caller, |who| who.known)?;
        self.ledger()?.follow(caller.principal, follow).await
    }

    pub async fn head(&self, caller: Caller) -> Result<Head, Failure> {
        self.allow(caller, |who| who.known)?;
        Ok(self.ledger()?.head())
    }

    pub async fn read_position(&self, caller: Caller) -> Result<Position, Failure> {
        self.allow(caller, |who| who.known)?;
        self.ledger()?.read_position().await
    }

    pub async fn ledger_file(
        &self,
        caller: Caller,
        path: String,
        range: Option<Range<u64>>,
    ) -> Result<Option<Bytes>, Failure> {
        self.allow(caller, |who| who.known)?;
        self.ledger()?.ledger_file(path, range).await
    }

    pub async fn query(&self, caller: Caller, query: Query) -> Result<Answer, Failure> {
        self.allow(caller, |who| who.known)?;
        self.ledger()?.answer(caller.principal, query)
    }

    pub async fn status(&self, caller: Caller) -> Result<Status, Failure> {
        self.allow(caller, |who| who.known)?;
        let ledger = self.sequencing.as_deref();
        Ok(Status {
            network: self.network,
            principal: self.principal,
            id: ledger.and_then(Sequencing::id),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            leader: ledger.and_then(Sequencing::leader),
            head: ledger.map(Sequencing::head),
            published: ledger.and_then(Sequencing::published),
            store: None,
            now: now(),
        })
    }

    /// The one call that an unknown key may make.
    pub async fn join(&self, caller: Caller, join: Join) -> Result<Joined, Failure> {
        self.ledger()?.join(caller.principal, join).await
    }

    pub async fn raft(
        &self,
        caller: Caller,
        call: RaftCall,
        body: Bytes,
    ) -> Result<Bytes, Failure> {
        self.allow(caller, |who| who.peer.is_some())?;
        self.ledger()?.raft(call, body).await
    }

    pub async fn cosign(&self, caller: Caller, body: Bytes) -> Result<Bytes, Failure> {
        self.allow(caller, |who| who.peer.is_some())?;
        self.ledger()?.cosign(body).await
    }

    fn standing(&self, principal: &PrincipalId) -> Standing {
        // Our own key is always someone: a peer that has not yet learned its ledger still serves
        // the process that runs it.
        match &self.sequencing {
            Some(ledger) => ledger.standing(principal),
            None => Standing { known: *principal == self.principal, ..Standing::default() },
        }
    }

    fn allow(&self, caller: Caller, rule: impl Fn(Standing) -> bool) -> Result<(), Failure> {
        match rule(self.standing(&caller.principal)) {
            true => Ok(()),
            false => Err(Failure::NotAllowed),
        }
    }

    fn ledger(&self) -> Result<&dyn Sequencing, Failure> {
        self.sequencing.as_deref().ok_or(Failure::NotHere(Service::Ledger))
    }
}

/// For people who compare clocks; nothing is decided by it.
fn now() -> TimeMs {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    TimeMs(since.as_millis() as u64)
}
