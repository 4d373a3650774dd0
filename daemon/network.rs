//! The peers of one network, as a mount or a command calls them.
//!
//! Owns: the links, which voter leads, going on to the next peer when one does not answer or is
//! silent, and the ledger's time, by which requests are named.
//! Never: repeats a call that was refused. What may have happened is repeated only where the
//! sequencer answers a repetition like the first (records, commits, sessions: each has a `req`).

use crate::host;
use crate::link::{Link, LinkError, Trouble};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use mictlan::cluster::refusal::Refusal;
use mictlan::id::{PeerId, Position, TimeMs, VolumeId};
use mictlan::ledger::record::{Ulid, time};
use mictlan::wire::{
    Answer, Append, Barrier, Failure, OpenSession, Outcome, PeerInfo, Query, SessionOpened,
};
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
        self.first_word(held_back + PATIENCE, deadline, call).await.map(|(answer, _)| answer)
    }

    /// The same, with whether it is certain that no try but the answered one had an effect.
    async fn first_word<T, F>(
        &self,
        patience: Duration,
        deadline: Duration,
        call: impl Fn(Link) -> F,
    ) -> Result<(T, bool), CallError>
    where
        F: Future<Output = Result<T, LinkError>>,
    {
        let over = Instant::now() + deadline;
        let ask = |known: Known| {
            let answer = call(known.link);
            async move { (known.info.id, answer.await) }
        };
        let mut asked = FuturesUnordered::new();
        // Who was asked in this round, and whose answers are still to come.
        let (mut round, mut silent) = (Vec::new(), Vec::new());
        let (mut last, mut first) = (None, true);
        loop {
            let voters = self.voters_leader_first();
            if voters.is_empty() {
                return Err(CallError::NobodyKnown);
            }
            let unasked =
                |known: &Known| !round.contains(&known.info.id) && !silent.contains(&known.info.id);
            let wait = match voters.into_iter().find(unasked) {
                Some(known) => {
                    round.push(known.info.id);
                    silent.push(known.info.id);
                    asked.push(ask(known));
                    patience
                }
                None => {
                    round.clear();
                    if silent.is_empty() { ROUND_PAUSE } else { patience }
                }
            };
            match timeout_at(over.min(Instant::now() + wait), one_of(&mut asked)).await {
                Ok((voter, Ok(answer))) => {
                    self.leader.store(voter.0, Ordering::Relaxed);
                    return Ok((answer, first && asked.is_empty()));
                }
                Ok((_, Err(LinkError::Refused { why, .. }))) => {
                    return Err(CallError::Refused(why));
                }
                Ok((voter, Err(error))) => {
                    silent.retain(|id| *id != voter);
                    first &= had_no_effect(&error);
                    last = Some(self.learn(error));
                }
                Err(_) if Instant::now() >= over => {
                    let last = last.unwrap_or_else(|| "nothing".to_owned());
                    return Err(CallError::NoVoter { waited: deadline, last });
                }
                Err(_) => {}
            }
        }
    }

    /// Takes a hint to the leader out of an error, and leaves its words.
    fn learn(&self, error: LinkError) -> String {
        if let LinkError::FailedHere { why: Trouble::Said(Failure::NotLeader { leader }), .. } =
            &error
        {
            self.leader.store(leader.map_or(0, |leader| leader.0), Ordering::Relaxed);
        }
        error.to_string()
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
            async move { link.append(append).await }
        });
        let (outcome, first) = answer.await?;
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

/// The next answer; without end while nobody is asked.
async fn one_of<F: Future>(asked: &mut FuturesUnordered<F>) -> F::Output {
    match asked.next().await {
        Some(answer) => answer,
        None => std::future::pending().await,
    }
}

/// Whether a try that failed so can have done nothing.
fn had_no_effect(error: &LinkError) -> bool {
    match error {
        LinkError::FailedHere { why, .. } => matches!(
            why,
            Trouble::NotReached(_) | Trouble::Said(Failure::NotLeader { .. } | Failure::Busy(_))
        ),
        LinkError::Refused { .. } | LinkError::Unknown { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::client::Client;
    use mictlan::id::{Label, PrincipalId};

    fn voter(n: u8) -> Known {
        let principal = PrincipalId([n; 32]);
        let info = PeerInfo {
            id: PeerId(n.into()),
            name: Label::parse("voter").expect("a name"),
            principal,
            addresses: Vec::new(),
            storage: true,
            voter: true,
            domain: String::new(),
            weight: 1,
        };
        let nowhere = Client::new(reqwest::Client::new(), "http://nowhere/".to_owned(), principal);
        Known { info, link: Link::Tls(nowhere) }
    }

    fn does_not_lead(at: PrincipalId, leader: u64) -> LinkError {
        let leader = Some(PeerId(leader));
        LinkError::said(at, Failure::NotLeader { leader }, false)
    }

    #[tokio::test]
    async fn a_silent_voter_holds_nobody_up() {
        let network = Network::new([1, 2, 3].map(voter).to_vec());
        let (asked, long) = (Mutex::new(Vec::new()), Duration::from_secs(60));
        // The first has stopped, and the second does not know it yet.
        let call = |link: Link| {
            let at = link.peer();
            asked.lock().expect("no panic").push(at.0[0]);
            async move {
                match at.0[0] {
                    1 => std::future::pending().await,
                    2 => Err(does_not_lead(at, 1)),
                    _ => Ok(at),
                }
            }
        };
        let (answer, certain) = network.first_word(PATIENCE, long, call).await.expect("answered");
        assert_eq!((answer.0[0], certain), (3, false), "the first may have done it as well");
        assert_eq!(*asked.lock().expect("no panic"), [1, 2, 3], "each once");
        assert_eq!(network.voters_leader_first()[0].info.id, PeerId(3), "asked first from now on");
    }

    #[tokio::test]
    async fn a_voter_that_is_slow_is_heard_whoever_was_asked_since() {
        let network = Network::new([1, 2, 3].map(voter).to_vec());
        let (others, both) = tokio::sync::watch::channel(0);
        let call = |link: Link| {
            let (at, others, mut both) = (link.peer(), others.clone(), both.clone());
            async move {
                if at.0[0] > 1 {
                    others.send_modify(|others| *others += 1);
                    return Err(does_not_lead(at, 1));
                }
                both.wait_for(|others| *others >= 2).await.expect("it is there");
                Ok(at)
            }
        };
        let answered = network.voter(Duration::from_secs(60), call).await;
        assert_eq!(answered.expect("answered").0[0], 1);
    }
}
