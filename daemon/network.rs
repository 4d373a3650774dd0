//! The peers of one network, as a mount or a command calls them.
//!
//! Owns: the links, which voter leads, going on to the next peer when one does not answer or is
//! silent, and the ledger's time, by which requests are named.
//! Never: believes one voter's refusal against the others. What may have happened is repeated only
//! where the sequencer answers a repetition like the first (records, commits, sessions: each has a
//! `req`).

mod heard;
#[cfg(test)]
mod tests;

use crate::host;
use crate::link::{Link, LinkError};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use heard::{Heard, hint};
use mictlan::cluster::refusal::Refusal;
use mictlan::id::{Attempt, PeerId, Position, SessionId, TimeMs, VolumeId};
use mictlan::ledger::record::{Ulid, time};
use mictlan::wire::{
    Answer, Append, Barrier, Failure, OpenSession, Outcome, PeerInfo, Query, SessionOpened,
};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Between two rounds over all voters: an election takes about a second.
const ROUND_PAUSE: Duration = Duration::from_millis(100);
/// Who says nothing for so long may have stopped, or the way to it: the next voter is asked too. A
/// follower costs nothing, since it says at once that it does not lead.
const PATIENCE: Duration = Duration::from_secs(1);

/// A request of a session: which attempt, and its number in that.
type Turn = (Attempt, u64);

/// One peer with the way to it.
#[derive(Clone)]
pub struct Known {
    pub info: PeerInfo,
    pub link: Link,
}

pub struct Network {
    peers: RwLock<Arc<Vec<Known>>>,
    /// The voter that led when last heard of; 0 while unknown.
    leader: AtomicU64,
    /// The ledger's time when it was last said, and this machine's `since_start` at that moment.
    told: Mutex<Option<(TimeMs, Duration)>>,
}

#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("{0}")]
    Refused(Failure),
    #[error("no voter answered within {} s; the last said: {last}", .waited.as_secs())]
    NoVoter { waited: Duration, last: String },
    #[error("this network has no voter that is known here")]
    NobodyKnown,
}

impl Network {
    pub fn new(peers: Vec<Known>) -> Self {
        let (leader, told) = Default::default();
        Self { peers: RwLock::new(Arc::new(peers)), leader, told }
    }

    /// The ledger's time as far as it is known here. Its leader's clock may differ from ours, and
    /// it never goes back when clocks do; until a voter said otherwise it is our own clock's.
    pub fn time(&self) -> TimeMs {
        match *self.told.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((told, at)) => {
                let since = host::since_start().saturating_sub(at);
                TimeMs(told.0.saturating_add(since.as_millis() as u64).min(time::LAST.0))
            }
            None => host::now(),
        }
    }

    /// A fresh name for a request, of the ledger's time.
    pub fn request_name(&self) -> Ulid {
        host::ulid_at(self.time())
    }

    fn tell(&self, now: TimeMs) {
        let told = Some((now, host::since_start()));
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = told;
    }

    pub fn peers(&self) -> Arc<Vec<Known>> {
        self.peers.read().expect("nothing panics while it is locked").clone()
    }

    pub fn replace(&self, peers: Vec<Known>) {
        *self.peers.write().expect("nothing panics while it is locked") = Arc::new(peers);
    }

    pub fn link(&self, peer: PeerId) -> Option<Link> {
        self.peers().iter().find(|known| known.info.id == peer).map(|known| known.link.clone())
    }

    /// Calls a voter, the leader first, then each of the others, round after round until one
    /// answers, it is refused, or `deadline` passes. Who is silent for a while is not given up, and
    /// the next is asked beside it: so `call` is only for what may be asked of two voters at once.
    /// A refusal counts when most voters stand behind it, or nobody speaks against it.
    pub async fn voter<T, F>(
        &self,
        deadline: Duration,
        call: impl Fn(Link) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, LinkError>>,
    {
        self.voter_with_news(Duration::ZERO, deadline, call).await
    }

    /// The same for a question that a voter may hold back for so long while it has no news.
    pub async fn voter_with_news<T, F>(
        &self,
        held_back: Duration,
        deadline: Duration,
        call: impl Fn(Link) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, LinkError>>,
    {
        let (word, _) = self.first_word(held_back + PATIENCE, deadline, call).await?;
        word.map_err(CallError::Refused)
    }

    /// The same, with whether it is certain that no try but the answered one had an effect.
    async fn first_word<T, F>(
        &self,
        patience: Duration,
        deadline: Duration,
        call: impl Fn(Link) -> F,
    ) -> Result<(Result<T, Failure>, bool), CallError>
    where
        F: Future<Output = Result<T, LinkError>>,
    {
        let over = Instant::now() + deadline;
        let ask = |known: &Known| {
            let (voter, answer) = (known.info.id, call(known.link.clone()));
            async move { (voter, answer.await) }
        };
        let mut asked = FuturesUnordered::new();
        // Who was asked in this round, and whose answers are still to come.
        let (mut round, mut silent) = (BTreeSet::new(), BTreeSet::new());
        let mut heard = Heard::default();
        loop {
            let voters = self.voters_leader_first();
            if voters.is_empty() {
                return Err(CallError::NobodyKnown);
            }
            let unasked = |id| !round.contains(id) && !silent.contains(id);
            let next = voters.iter().find(|known| unasked(&known.info.id));
            let wait = if next.is_none() && silent.is_empty() { ROUND_PAUSE } else { patience };
            if let Some(known) = next {
                round.insert(known.info.id);
                silent.insert(known.info.id);
                asked.push(ask(known));
            }
            match timeout_at(over.min(Instant::now() + wait), one_of(&mut asked)).await {
                Ok((voter, Ok(answer))) => {
                    self.leader.store(voter.0, Ordering::Relaxed);
                    return Ok((Ok(answer), heard.certain && asked.is_empty()));
                }
                Ok((voter, Err(error))) => {
                    silent.remove(&voter);
                    self.learn(&error);
                    heard.hear(voter, error);
                    if let Some(why) = heard.refused_by_most(voters.len()) {
                        return Ok((Err(why), heard.certain && asked.is_empty()));
                    }
                }
                Err(_) if Instant::now() >= over => return heard.end(deadline),
                Err(_) if next.is_none() => match heard.refused_by_all_who_speak() {
                    Some(why) => return Ok((Err(why), heard.certain && asked.is_empty())),
                    None => round.clear(),
                },
                Err(_) => {}
            }
        }
    }

    /// Takes a hint to the leader out of an error.
    fn learn(&self, error: &LinkError) {
        if let Some(leader) = hint(error) {
            self.leader.store(leader.map_or(0, |leader| leader.0), Ordering::Relaxed);
        }
    }

    fn voters_leader_first(&self) -> Vec<Known> {
        let leader = PeerId(self.leader.load(Ordering::Relaxed));
        let mut voters: Vec<Known> =
            self.peers().iter().filter(|known| known.info.voter).cloned().collect();
        voters.sort_by_key(|known| known.info.id != leader);
        voters
    }

    /// Has a submission ordered. The same one again gets the first answer, so what is not known to
    /// have happened is simply asked again.
    pub async fn append(&self, append: &Append, deadline: Duration) -> Result<Outcome, CallError> {
        self.append_told(append, deadline).await.map(|(outcome, _)| outcome)
    }

    async fn append_told(
        &self,
        append: &Append,
        deadline: Duration,
    ) -> Result<(Outcome, bool), CallError> {
        let answer = self.first_word(PATIENCE, deadline, |link| {
            let append = append.clone();
            async move {
                let peer = link.peer();
                match link.append(append).await? {
                    Outcome::Refused(why) => {
                        Err(LinkError::Refused { peer, why: Failure::Refused(why) })
                    }
                    outcome => Ok(outcome),
                }
            }
        });
        let (word, first) = answer.await?;
        let outcome = match word {
            Ok(outcome) => outcome,
            Err(Failure::Refused(refusal)) => Outcome::Refused(refusal),
            Err(why) => return Err(CallError::Refused(why)),
        };
        if let Outcome::Refused(Refusal::ReqTooOld { now }) = outcome {
            self.tell(now);
        }
        Ok((outcome, first))
    }

    /// Has what `sign` makes of a request's name ordered. A name that is too far from the ledger's
    /// time, because some clock was set, is replaced once, if nothing can have come of it.
    pub async fn order<E: From<CallError>>(
        &self,
        deadline: Duration,
        sign: impl Fn(Ulid) -> Result<Append, E>,
    ) -> Result<Outcome, E> {
        let named = sign(self.request_name())?;
        match self.append_told(&named, deadline).await? {
            (Outcome::Refused(Refusal::ReqTooOld { .. }), true) => {
                let again = sign(self.request_name())?;
                Ok(self.append(&again, deadline).await?)
            }
            (outcome, _) => Ok(outcome),
        }
    }

    /// Opens a session, under a name that is replaced like that of a record: a session that is
    /// opened twice is one too many, and does no harm.
    pub async fn open_session(
        &self,
        volume: VolumeId,
        deadline: Duration,
    ) -> Result<SessionOpened, CallError> {
        let open = || {
            let req = host::ulid_bytes_at(self.time());
            let open = OpenSession { volume, req, read_only: false };
            self.voter(deadline, move |link| {
                let open = open.clone();
                async move { link.open_session(open).await }
            })
        };
        match open().await {
            Err(CallError::Refused(Failure::Refused(Refusal::ReqTooOld { now }))) => {
                self.tell(now);
                open().await
            }
            opened => opened,
        }
    }

    /// Asks for the ledger's time, for what is decided by it later.
    pub async fn ask_time(&self, deadline: Duration) -> Result<TimeMs, CallError> {
        // Only the leader answers this; then it is the one that the next question goes to.
        self.read_position(&Barrier::default(), deadline).await?;
        let said = self.voter(deadline, |link| async move { link.status().await }).await?;
        self.tell(said.head.map_or(said.now, |head| said.now.max(head.t)));
        Ok(self.time())
    }

    pub async fn query(&self, query: Query, deadline: Duration) -> Result<Answer, CallError> {
        self.voter(deadline, |link| {
            let query = query.clone();
            async move { link.query(query).await }
        })
        .await
    }

    /// The last accepted request of a session that ended before `since`, as most of the voters have
    /// it. What it says is not done again, so one that lies, or is behind, must not decide it.
    pub async fn last_of(
        &self,
        session: SessionId,
        since: Position,
        deadline: Duration,
    ) -> Result<Option<Turn>, CallError> {
        self.most_say(deadline, |link| last_at(link, session, since)).await
    }

    /// What more than half of all voters say alike.
    async fn most_say<T: Copy + Ord, F>(
        &self,
        deadline: Duration,
        ask: impl Fn(Link) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, String>>,
    {
        let over = Instant::now() + deadline;
        let mut last = "nothing".to_owned();
        loop {
            let voters = self.voters_leader_first();
            let mut asked: FuturesUnordered<_> =
                voters.iter().map(|known| ask(known.link.clone())).collect();
            let mut said: BTreeMap<T, usize> = BTreeMap::new();
            while let Ok(Some(answer)) = timeout_at(over, asked.next()).await {
                match answer {
                    Ok(word) => *said.entry(word).or_default() += 1,
                    Err(why) => last = why,
                }
                if let Some((word, _)) = said.iter().find(|(_, by)| **by > voters.len() / 2) {
                    return Ok(*word);
                }
            }
            if Instant::now() + ROUND_PAUSE >= over {
                return Err(CallError::NoVoter { waited: deadline, last });
            }
            tokio::time::sleep(ROUND_PAUSE).await;
        }
    }

    /// A position before which everything lies that was acknowledged before the call.
    pub async fn read_position(
        &self,
        barrier: &Barrier,
        deadline: Duration,
    ) -> Result<Position, CallError> {
        self.voter(deadline, |link| {
            let barrier = barrier.clone();
            async move { link.read_position(barrier).await }
        })
        .await
    }
}

/// A session's last request as one voter has it that has applied everything before `since`.
async fn last_at(link: Link, session: SessionId, since: Position) -> Result<Option<Turn>, String> {
    let applied = link.head().await.map_err(|error| error.to_string())?.size;
    if applied < since {
        return Err(format!("a voter has applied {applied} of {since} records"));
    }
    match link.query(Query::LastOf(session)).await.map_err(|error| error.to_string())? {
        Answer::LastOf(last) => Ok(last),
        _ => Err("a voter answered another question".to_owned()),
    }
}

/// The next answer; without end while nobody is asked.
async fn one_of<F: Future>(asked: &mut FuturesUnordered<F>) -> F::Output {
    match asked.next().await {
        Some(answer) => answer,
        None => std::future::pending().await,
    }
}
