//! One voter's sequencer as its peer's callers use it: records, sessions, leases, questions.
//!
//! Owns: what a request of the wire asks of the sequencer, and what its answer means to a caller.
//! Never: checks who asks; `peer` did. Never decides what may be ordered; the state does.
//! Invariant: whatever is answered from the state or the lease table is answered by a voter that a
//! majority has just confirmed as leader, except where the question says otherwise.

mod answers;
mod credit;
mod leases;
mod membership;

pub use answers::peers;

use crate::host;
use crate::peer::{RaftCall, Sequencing, Standing};
use crate::sequencer::raft::network::{Call, CallError};
use crate::sequencer::{LeadError, ProposeError, Sequencer};
use crate::store::Store;
use crate::voters::Voters;
use bytes::Bytes;
use credit::Account;
use futures::FutureExt;
use futures::future::BoxFuture;
use leases::Desk;
use mictlan::cluster::lease::Mode;
use mictlan::cluster::refusal::Refusal;
use mictlan::cluster::state::{Item, Outcome, Submission};
use mictlan::id::LedgerHash;
use mictlan::id::{Attempt, Label, PeerId, Position, PrincipalId, SessionId};
use mictlan::ledger::record::body::{Body, Fence};
use mictlan::ledger::record::{Origin, Proposal, record_message};
use mictlan::seal::Principal;
use mictlan::wire::{
    Answer, Append, Barrier, CloseSession, Failure, Follow, Followed, Head, Heartbeat,
    HeartbeatReply, Join, Joined, OpenSession, Page, Query, SessionOpened,
};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// A proposal, or a confirmation of leadership, takes no longer; the caller's own deadline is
/// longer, so that it can ask another voter.
const WITHIN: Duration = Duration::from_secs(10);
/// How long a synchronous commit waits for others to give their leases back.
const PASS_WITHIN: Duration = Duration::from_secs(40);

pub struct Service {
    sequencer: Arc<Sequencer>,
    desk: Desk,
    account: Account,
    identity: Arc<Principal>,
    /// This peer's actor name, for the fences that it orders.
    name: Label,
    me: PeerId,
    /// Voters that are believed before this peer has a ledger that names them.
    seeds: Vec<(PeerId, PrincipalId)>,
    voters: Arc<Voters>,
}

/// What a service is made with.
pub struct Options {
    pub sequencer: Arc<Sequencer>,
    pub identity: Arc<Principal>,
    pub name: Label,
    pub me: PeerId,
    pub seeds: Vec<(PeerId, PrincipalId)>,
    /// The ways to the other voters.
    pub voters: Arc<Voters>,
    /// This peer's own, whose room it knows without asking.
    pub store: Arc<Store>,
    /// Nobody can have a lease from before: this process is the network's only peer, and nothing
    /// but this process speaks to it.
    pub alone: bool,
}

impl Service {
    /// Starts the lease table's clock beside the calls.
    pub fn start(options: Options) -> Arc<Self> {
        let service = Arc::new(Self {
            sequencer: options.sequencer,
            desk: Desk::new(options.alone),
            account: Account::new(options.store),
            identity: options.identity,
            name: options.name,
            me: options.me,
            seeds: options.seeds,
            voters: options.voters,
        });
        tokio::spawn(service.clone().keep_time());
        tokio::spawn(service.clone().keep_fences());
        tokio::spawn(service.clone().keep_voters());
        tokio::spawn(service.clone().keep_account());
        service
    }

    async fn propose(&self, item: Item) -> Result<Outcome, Failure> {
        self.sequencer.propose(item, WITHIN).await.map_err(propose_failure)
    }

    /// The end of the ledger, confirmed: everything acknowledged before lies before it.
    async fn confirmed(&self) -> Result<Position, Failure> {
        self.sequencer.read_position(WITHIN).await.map_err(lead_failure)
    }

    /// Has a record ordered; a commit that passes others' leases first waits for them.
    async fn append_record(&self, append: Append) -> Result<Outcome, Failure> {
        let Append { submission, pass } = append;
        let body = Proposal::parse(&submission.p).map(|proposal| proposal.body);
        let mut commit = match &body {
            Ok(Body::Commit(commit)) if !pass.is_empty() => Some((commit.volume, commit.session)),
            _ => None,
        };
        let mut ticket = None;
        if let Some((volume, session)) = commit {
            self.confirmed().await?;
            // What will be refused takes nobody's lease back.
            match self.is_of_its_session(&submission, session) {
                true => ticket = Some(self.pass(volume, session, pass, Mode::Write).await?),
                false => commit = None,
            }
        }
        let outcome = self.propose(Item::Record(submission)).await;
        if let (Some(ticket), Some((volume, _))) = (ticket, commit) {
            self.desk.done(volume, ticket);
        }
        let outcome = outcome?;
        if let (Ok(Body::Fence(fence)), Outcome::Accepted { .. }) = (&body, &outcome) {
            self.desk.ended(fence.volume, fence.session);
            self.account.ended(fence.session);
        }
        Ok(outcome)
    }

    /// Whether a commit is signed by whom its session belongs to.
    fn is_of_its_session(&self, submission: &Submission, session: SessionId) -> bool {
        let Ok(proposal) = Proposal::parse(&submission.p) else { return false };
        let own = self.sequencer.with_state(|state| {
            let owner = state.session(session).map(|session| session.actor == proposal.actor);
            state.check(submission).is_ok() && owner == Ok(true)
        });
        own == Some(true)
    }

    async fn open(
        &self,
        principal: PrincipalId,
        open: OpenSession,
    ) -> Result<SessionOpened, Failure> {
        let item =
            Item::OpenSession { volume: open.volume, principal, req: host::ulid_of(open.req) };
        // Confirmed first, so that the state knows of every session that another leader opened.
        self.confirmed().await?;
        self.prepare(open.volume);
        let session = match self.propose(item).await? {
            Outcome::Opened { session } => session,
            Outcome::Refused(refusal) => return Err(Failure::Refused(refusal)),
            other => return Err(Failure::OutcomeUnknown(format!("{other:?}"))),
        };
        let at = self.confirmed().await?;
        self.with_table(open.volume, |_| ())?;
        self.desk.opened(open.volume, session);
        let epoch = self
            .sequencer
            .with_state(|state| state.volumes().get(&open.volume).map(|volume| volume.epoch()))
            .flatten()
            .ok_or(Failure::Refused(Refusal::UnknownVolume { volume: open.volume }))?;
        Ok(SessionOpened {
            session,
            attempt: Attempt(1),
            epoch,
            at,
            term_ms: mictlan::cluster::lease::TERM_MS as u32,
            credit: 0, // it asks before its first write
        })
    }

    async fn close(&self, principal: PrincipalId, close: CloseSession) -> Result<(), Failure> {
        let item = Item::CloseSession { session: close.session, principal };
        match self.propose(item).await? {
            Outcome::Closed { session } => {
                self.desk.ended(close.volume, session);
                self.account.ended(session);
                Ok(())
            }
            Outcome::Refused(Refusal::SessionEnded { .. }) => Ok(()),
            Outcome::Refused(refusal) => Err(Failure::Refused(refusal)),
            other => Err(Failure::OutcomeUnknown(format!("{other:?}"))),
        }
    }

    /// Orders the fence of a session that died holding a lease, in this peer's name. `false`: it is
    /// to be tried again.
    async fn fence(&self, volume: mictlan::id::VolumeId, session: SessionId) -> bool {
        let Some(origin) = self.sequencer.with_state(|state| state.origin().clone()) else {
            return false;
        };
        let reason = "it held a lease and was silent for its term".to_owned();
        let body = Body::Fence(Fence { reason, session, successor: None, volume });
        let submission = match self.signed(&origin, body) {
            Ok(submission) => submission,
            Err(error) => {
                tracing::error!(%error, "a fence cannot be written down");
                return true;
            }
        };
        match self.propose(Item::Record(submission)).await {
            Ok(Outcome::Accepted { position, .. }) => {
                tracing::warn!(%session, record = %position, "a silent session was fenced");
                self.desk.ended(volume, session);
                self.account.ended(session);
            }
            Ok(Outcome::Refused(Refusal::Fenced { .. } | Refusal::SessionEnded { .. })) => {
                self.desk.ended(volume, session);
            }
            Ok(other) => tracing::error!(%session, ?other, "a silent session was not fenced"),
            Err(error) => {
                tracing::warn!(%session, %error, "a silent session is not fenced yet");
                return false;
            }
        }
        true
    }

    fn signed(
        &self,
        origin: &Origin,
        body: Body,
    ) -> Result<Submission, mictlan::ledger::record::RecordError> {
        let p = Proposal::new(self.name.clone(), host::ulid_at(self.now()), body).encode()?;
        let sig = self.identity.sign(&record_message(origin, &p));
        Ok(Submission { p, sig, commit: None })
    }

    async fn follow_log(&self, follow: Follow) -> Result<Page, Failure> {
        let wanted = crate::sequencer::Follow {
            volume: follow.volume,
            from: follow.from,
            max_bytes: follow.max_bytes as usize,
            wait: Duration::from_millis(follow.wait_ms.into()),
        };
        let page = self.sequencer.follow(wanted).await;
        let page = page.map_err(|error| Failure::Busy(error.to_string()))?;
        let entries = page.records.into_iter().map(|kept| Followed {
            position: kept.position,
            line: kept.line.to_vec(),
            tags: kept.tags.map(|bytes| bytes.to_vec()),
            payload: kept.payload.map(|bytes| bytes.to_vec()),
            inline: kept.inline.map(|bytes| bytes.to_vec()),
        });
        let head = page.head.map(wire_head).ok_or_else(no_ledger)?;
        Ok(Page { entries: entries.collect(), next: page.next, head })
    }

    async fn voters_call(&self, from: PeerId, call: Call, body: Bytes) -> Result<Bytes, Failure> {
        let answer = self.sequencer.handle_raft(from, call, &body).await;
        answer.map_err(|error| match error {
            CallError::Refused(why) => Failure::Malformed(why),
            other => Failure::Busy(other.to_string()),
        })
    }
}

impl Sequencing for Service {
    fn standing(&self, principal: &PrincipalId) -> Standing {
        let known = self.sequencer.with_state(|state| answers::standing(state, principal));
        known.unwrap_or_else(|| {
            let peer = self.seeds.iter().find(|(_, key)| key == principal).map(|(id, _)| *id);
            Standing { known: peer.is_some(), peer, voter: peer.is_some(), ..Standing::default() }
        })
    }

    fn id(&self) -> Option<PeerId> {
        Some(self.me)
    }

    fn leader(&self) -> Option<PeerId> {
        self.sequencer.leader()
    }

    fn head(&self) -> Head {
        let head = self.sequencer.with_state(|state| state.head()).map(wire_head);
        let none = Head { size: Position(0), chain: [0; 32], t: Default::default() };
        head.unwrap_or(none)
    }

    fn published(&self) -> Option<Position> {
        self.sequencer.published().map(|published| Position(published.size))
    }

    fn append(&self, append: Append) -> BoxFuture<'_, Result<Outcome, Failure>> {
        self.append_record(append).boxed()
    }

    fn open_session(
        &self,
        principal: PrincipalId,
        open: OpenSession,
    ) -> BoxFuture<'_, Result<SessionOpened, Failure>> {
        self.open(principal, open).boxed()
    }

    fn close_session(
        &self,
        principal: PrincipalId,
        close: CloseSession,
    ) -> BoxFuture<'_, Result<(), Failure>> {
        self.close(principal, close).boxed()
    }

    fn heartbeat(
        &self,
        principal: PrincipalId,
        heartbeat: Heartbeat,
    ) -> BoxFuture<'_, Result<HeartbeatReply, Failure>> {
        self.beat(principal, heartbeat).boxed()
    }

    fn follow(&self, _: PrincipalId, follow: Follow) -> BoxFuture<'_, Result<Page, Failure>> {
        self.follow_log(follow).boxed()
    }

    fn read_position(
        &self,
        principal: PrincipalId,
        barrier: Barrier,
    ) -> BoxFuture<'_, Result<Position, Failure>> {
        self.barrier(principal, barrier).boxed()
    }

    fn ledger_file(
        &self,
        path: String,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'_, Result<Option<Bytes>, Failure>> {
        async move { self.file(&path, range) }.boxed()
    }

    fn answer(&self, principal: PrincipalId, query: Query) -> Result<Answer, Failure> {
        let answer = self.sequencer.with_state(|state| answers::answer(state, &principal, query));
        answer.unwrap_or_else(|| Err(no_ledger()))
    }

    fn genesis(&self) -> Vec<u8> {
        self.sequencer.applied().files.record(Position(0)).unwrap_or_default()
    }

    fn join(&self, _: PrincipalId, join: Join) -> BoxFuture<'_, Result<Joined, Failure>> {
        self.welcome(join).boxed()
    }

    fn raft(
        &self,
        from: PeerId,
        call: RaftCall,
        body: Bytes,
    ) -> BoxFuture<'_, Result<Bytes, Failure>> {
        self.voters_call(from, call.into(), body).boxed()
    }
}

impl From<RaftCall> for Call {
    fn from(call: RaftCall) -> Call {
        match call {
            RaftCall::Vote => Call::Vote,
            RaftCall::Append => Call::Append,
            RaftCall::Heartbeat => Call::Heartbeat,
            RaftCall::Snapshot => Call::Snapshot,
            RaftCall::Cosign => Call::Cosign,
            RaftCall::Published => Call::Published,
            RaftCall::Bundle => Call::Bundle,
            RaftCall::Stand => Call::Stand,
            RaftCall::Recall => Call::Recall,
        }
    }
}

fn wire_head(head: mictlan::cluster::state::Head) -> Head {
    let LedgerHash(chain) = head.chain;
    Head { size: Position(head.size), chain, t: head.t }
}

fn no_ledger() -> Failure {
    Failure::Busy("this peer has no ledger yet".to_owned())
}

fn propose_failure(error: ProposeError) -> Failure {
    match error {
        ProposeError::NotLeader { leader } => Failure::NotLeader { leader },
        ProposeError::ClockAhead { .. } => Failure::Busy(error.to_string()),
        other => Failure::OutcomeUnknown(other.to_string()),
    }
}

fn lead_failure(error: LeadError) -> Failure {
    match error {
        LeadError::NotLeader { leader } => Failure::NotLeader { leader },
        LeadError::Late => Failure::DeadlinePassed,
        other => Failure::Busy(other.to_string()),
    }
}
