//! One peer's services in this process: chunks if it stores, the ledger if it orders or follows.
//!
//! Owns: the check, on every request, of what the caller may do, from the applied state.
//! Never: speaks HTTP, and never trusts an address or a connection: only a proven key.
//! Invariant: HTTP, the Unix socket and the embedded mount all come through these methods, so
//! none of them can do what another may not.

use crate::others::Others;
use crate::owing::Owing;
use crate::store::{self, Checked, ReadError, Store, WriteError};
use bytes::Bytes;
use futures::future::BoxFuture;
use mictlan::cluster::place::Copies;
use mictlan::id::{ChunkId, NetworkId, PeerId, Position, PrincipalId, TimeMs};
use mictlan::wire::{
    Answer, Append, Barrier, CloseSession, Failure, Follow, Head, Heartbeat, HeartbeatReply, Join,
    Joined, OpenSession, Outcome, Page, Query, Receipt, Service, SessionOpened, Status,
    StoreStatus, Welcome,
};
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::watch;

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
    /// On a connection of its own, so that it never waits behind entries.
    Heartbeat,
    Snapshot,
    /// A checkpoint to cosign.
    Cosign,
    /// A checkpoint that a quorum has cosigned.
    Published,
    /// Records for a voter that catches up.
    Bundle,
    /// How a voter stands, for one whose log is not complete.
    Stand,
    /// What a voter has on its disk, for one that starts.
    Recall,
}

impl RaftCall {
    pub const ALL: [Self; 9] = [
        Self::Vote,
        Self::Append,
        Self::Heartbeat,
        Self::Snapshot,
        Self::Cosign,
        Self::Published,
        Self::Bundle,
        Self::Stand,
        Self::Recall,
    ];

    /// The last part of its route.
    pub fn path(self) -> &'static str {
        match self {
            RaftCall::Vote => "vote",
            RaftCall::Append => "append",
            RaftCall::Heartbeat => "heartbeat",
            RaftCall::Snapshot => "snapshot",
            RaftCall::Cosign => "cosign",
            RaftCall::Published => "published",
            RaftCall::Bundle => "bundle",
            RaftCall::Stand => "stand",
            RaftCall::Recall => "recall",
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
    fn append(&self, append: Append) -> BoxFuture<'_, Result<Outcome, Failure>>;
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
    /// Confirmed with a majority: everything acknowledged before the call lies before it. Nobody
    /// speaks for a session of others.
    fn read_position(
        &self,
        principal: PrincipalId,
        barrier: Barrier,
    ) -> BoxFuture<'_, Result<Position, Failure>>;
    /// A file of the static tree by its path below `/ledger`: `checkpoint`, `tile/…`, `tags/…`.
    fn ledger_file(
        &self,
        path: String,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'_, Result<Option<Bytes>, Failure>>;
    fn answer(&self, principal: PrincipalId, query: Query) -> Result<Answer, Failure>;
    /// Record 0's line.
    fn genesis(&self) -> Vec<u8>;
    fn join(&self, newcomer: PrincipalId, join: Join) -> BoxFuture<'_, Result<Joined, Failure>>;
    /// `from` is the peer whose key the connection proved.
    fn raft(
        &self,
        from: PeerId,
        call: RaftCall,
        body: Bytes,
    ) -> BoxFuture<'_, Result<Bytes, Failure>>;
}

pub struct Peer {
    pub network: NetworkId,
    pub principal: PrincipalId,
    store: Option<Arc<Store>>,
    sequencing: Option<Arc<dyn Sequencing>>,
    /// Whom it asks for chunks that it lacks.
    others: Option<Arc<Others>>,
    /// Who looks after the copies that others lack.
    owing: Option<Arc<Owing>>,
    /// It is about to stop: nobody is kept waiting for news.
    leaving: watch::Sender<bool>,
}

impl Peer {
    pub fn new(
        network: NetworkId,
        principal: PrincipalId,
        store: Option<Arc<Store>>,
        sequencing: Option<Arc<dyn Sequencing>>,
    ) -> Self {
        let leaving = watch::Sender::new(false);
        Self { network, principal, store, sequencing, others: None, owing: None, leaving }
    }

    /// With a way to the other peers.
    pub fn asking(self, others: Others) -> Self {
        let others = Arc::new(others);
        let owing = match (&self.store, &self.sequencing) {
            (Some(store), Some(ledger)) => {
                let owing = Owing::new(store.clone(), ledger.clone(), others.clone());
                tokio::spawn(Owing::work(Arc::downgrade(&owing)));
                Some(owing)
            }
            _ => None,
        };
        Self { others: Some(others), owing, ..self }
    }

    /// Who waits for news is sent away, to another peer or to this one when it is back.
    pub fn leave(&self) {
        self.leaving.send_replace(true);
    }

    async fn unless_leaving<T>(
        &self,
        answer: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let mut leaving = self.leaving.subscribe();
        tokio::select! {
            answer = answer => answer,
            _ = leaving.wait_for(|leaving| *leaving) => {
                Err(Failure::Busy("this peer is about to stop".to_owned()))
            }
        }
    }

    /// Whether a key is anyone here; all others learn nothing but that.
    pub fn knows(&self, principal: &PrincipalId) -> bool {
        self.standing(principal).known
    }

    /// Asked before a body is read, so that who may not put cannot make us hold one.
    pub fn may_put(&self, caller: Caller) -> Result<(), Failure> {
        self.allow(caller, |who| who.writes || who.peer.is_some())
    }

    /// Hashes the chunks and stores them; the receipts name what they hashed to. With a word of
    /// how many `copies` there shall be, this peer looks after those that are missing later.
    pub async fn put(
        &self,
        caller: Caller,
        chunks: Vec<Bytes>,
        copies: Option<Copies>,
    ) -> Result<Vec<Receipt>, Failure> {
        self.may_put(caller)?;
        let name = move || chunks.into_iter().map(Checked::hashed).collect::<Result<Vec<_>, _>>();
        // 16 MiB take 2 ms: too long for a thread that others' replies wait for.
        let checked = tokio::task::spawn_blocking(name).await;
        let checked = checked.map_err(|why| Failure::StoreFailed(why.to_string()))?;
        let checked = checked.map_err(write_failure)?;
        let owing = self.owing.as_ref();
        let Some((owing, copies)) = owing.and_then(|owing| Some((owing, owing.wanted(copies?)?)))
        else {
            return self.put_checked(caller, checked).await;
        };
        let stored = self.store()?.put_of(checked, Some(copies)).await.map_err(write_failure)?;
        owing.note(stored.iter().map(|receipt| receipt.chunk), copies);
        Ok(stored.into_iter().map(receipt).collect())
    }

    pub async fn put_checked(
        &self,
        caller: Caller,
        chunks: Vec<Checked>,
    ) -> Result<Vec<Receipt>, Failure> {
        self.may_put(caller)?;
        let receipts = self.store()?.put(chunks).await.map_err(write_failure)?;
        Ok(receipts.into_iter().map(receipt).collect())
    }

    /// The stamps are renewed: what is named here will not be collected for the retention.
    pub async fn have(
        &self,
        caller: Caller,
        chunks: Vec<ChunkId>,
    ) -> Result<Vec<Option<Receipt>>, Failure> {
        self.may_put(caller)?;
        let receipts = self.store()?.have(chunks).await.map_err(write_failure)?;
        Ok(receipts.into_iter().map(|found| found.map(receipt)).collect())
    }

    /// How long a reply with this chunk will be; 0 when it is not here.
    pub fn stored_bytes(&self, caller: Caller, chunk: ChunkId) -> Result<usize, Failure> {
        self.allow(caller, |who| who.reads || who.peer.is_some())?;
        let held = self.store()?.held(chunk);
        let held = held.map_err(|why| Failure::StoreFailed(why.to_string()))?;
        Ok(held.map_or(0, |held| held.len as usize))
    }

    /// What this peer has itself.
    pub async fn get(&self, caller: Caller, chunk: ChunkId) -> Result<Option<Bytes>, Failure> {
        self.allow(caller, |who| who.reads || who.peer.is_some())?;
        self.store()?.get(chunk).await.map_err(read_failure)
    }

    /// The same from whatever peer: what this one lacks it fetches from the others, and keeps if
    /// it belongs here. Another peer is answered with what is here: it asks all others itself, and
    /// two that lack a chunk must not ask each other without end.
    pub async fn fetch(&self, caller: Caller, chunk: ChunkId) -> Result<Option<Bytes>, Failure> {
        let own = self.get(caller, chunk).await;
        let lacks = matches!(
            own,
            Ok(None)
                | Err(Failure::ChunkDamaged(_) | Failure::StoreFailed(_) | Failure::NotHere(_))
        );
        let (Some(others), Some(ledger)) = (&self.others, &self.sequencing) else { return own };
        if !lacks || self.standing(&caller.principal).peer.is_some() {
            return own;
        }
        let Some(fetched) = others.fetch(chunk, &**ledger).await? else { return own };
        if fetched.belongs_here
            && let Err(error) = self.keep(fetched.bytes.clone()).await
        {
            tracing::warn!(%chunk, %error, "a chunk that belongs here was fetched and is not kept");
        }
        Ok(Some(fetched.bytes))
    }

    /// Durably and stamped, like any put.
    async fn keep(&self, bytes: Bytes) -> Result<(), Failure> {
        let checked = Checked::hashed(bytes).map_err(write_failure)?;
        self.store()?.put(vec![checked]).await.map_err(write_failure).map(drop)
    }

    /// Bytes of the stored chunk with the path from them to its address (`seal::range`).
    pub async fn get_range(
        &self,
        caller: Caller,
        chunk: ChunkId,
        range: Range<u64>,
    ) -> Result<Option<Bytes>, Failure> {
        self.allow(caller, |who| who.reads || who.peer.is_some())?;
        self.store()?.prove(chunk, range).await.map_err(read_failure)
    }

    /// The actor's signature is what counts, so any known key may hand a submission in.
    pub async fn append(&self, caller: Caller, what: Append) -> Result<Outcome, Failure> {
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
        let ledger = self.ledger()?;
        self.unless_leaving(ledger.heartbeat(caller.principal, heartbeat)).await
    }

    pub async fn follow(&self, caller: Caller, follow: Follow) -> Result<Page, Failure> {
        self.allow(caller, |who| who.known)?;
        let ledger = self.ledger()?;
        self.unless_leaving(ledger.follow(caller.principal, follow)).await
    }

    pub async fn head(&self, caller: Caller) -> Result<Head, Failure> {
        self.allow(caller, |who| who.known)?;
        Ok(self.ledger()?.head())
    }

    pub async fn read_position(
        &self,
        caller: Caller,
        barrier: Barrier,
    ) -> Result<Position, Failure> {
        self.allow(caller, |who| who.known)?;
        self.ledger()?.read_position(caller.principal, barrier).await
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
            store: self.store.as_deref().map(store_status),
            copies_missing: self.copies_missing(),
            now: now(),
        })
    }

    /// Of how many of its chunks it looked for all copies, and did not find them.
    pub fn copies_missing(&self) -> u64 {
        self.owing.as_ref().map_or(0, |owing| owing.missing())
    }

    /// With `join` all that an unknown key is answered.
    pub async fn welcome(&self) -> Result<Welcome, Failure> {
        Ok(Welcome { genesis: self.ledger()?.genesis(), peer: self.principal })
    }

    /// Its submission is signed by an invite's key; the state knows whether that is still good.
    pub async fn join(&self, caller: Caller, join: Join) -> Result<Joined, Failure> {
        self.ledger()?.join(caller.principal, join).await
    }

    /// Voters talk to voters; a storage peer that becomes one is named by a record first.
    pub fn may_vote(&self, caller: Caller) -> Result<(), Failure> {
        self.allow(caller, |who| who.peer.is_some())
    }

    pub async fn raft(
        &self,
        caller: Caller,
        call: RaftCall,
        body: Bytes,
    ) -> Result<Bytes, Failure> {
        let from = self.standing(&caller.principal).peer.ok_or(Failure::NotAllowed)?;
        self.ledger()?.raft(from, call, body).await
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

    fn store(&self) -> Result<&Store, Failure> {
        self.store.as_deref().ok_or(Failure::NotHere(Service::Chunks))
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

fn receipt(stored: store::Receipt) -> Receipt {
    Receipt { chunk: stored.chunk, stamp: stored.stamp }
}

fn read_failure(why: ReadError) -> Failure {
    match why {
        ReadError::Damaged { chunk, .. } => Failure::ChunkDamaged(chunk),
        ReadError::NotProved(why) => Failure::Malformed(why.to_string()),
        why => Failure::StoreFailed(why.to_string()),
    }
}

pub fn write_failure(why: WriteError) -> Failure {
    match why {
        WriteError::WrongAddress { chunk, .. } => Failure::WrongAddress(chunk),
        WriteError::TooLarge { .. } | WriteError::TooMany { .. } => {
            Failure::Malformed(why.to_string())
        }
        WriteError::Full { .. } => Failure::StoreFull,
        WriteError::OutOfService { .. } | WriteError::Closed => {
            Failure::StoreFailed(why.to_string())
        }
    }
}

/// What puts may use: the reserve is none of it.
pub fn store_status(store: &Store) -> StoreStatus {
    let stat = store.stat();
    StoreStatus {
        capacity_bytes: stat.space - stat.reserve,
        used_bytes: stat.used,
        chunks: stat.chunks,
        damaged_chunks: stat.damaged,
        is_new: stat.is_new,
        out_of_service: stat.out_of_service.map(|why| why.to_string()),
    }
}
