//! The peers of one network, as a mount or a command calls them.
//!
//! Owns: the links, which voter leads, and going on to the next peer when one does not answer.
//! Never: repeats a call that was refused. What may have happened is repeated only where the
//! sequencer answers a repetition like the first (records, commits, sessions: each has a `req`).

use crate::link::{Link, LinkError, Trouble};
use mictlan::id::{PeerId, Position};
use mictlan::wire::{Answer, Append, Barrier, Failure, Outcome, PeerInfo, Query};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;
use tokio::time::Instant;

/// Between two rounds over all voters: an election takes about a second.
const ROUND_PAUSE: Duration = Duration::from_millis(100);

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
        Self { peers: RwLock::new(Arc::new(peers)), leader: AtomicU64::new(0) }
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
    /// answers, it is refused, or `deadline` passes.
    pub async fn voter<T, F>(
        &self,
        deadline: Duration,
        call: impl Fn(Link) -> F,
    ) -> Result<T, CallError>
    where
        F: Future<Output = Result<T, LinkError>>,
    {
        let started = Instant::now();
        let mut last = None;
        loop {
            let voters = self.voters_leader_first();
            if voters.is_empty() {
                return Err(CallError::NobodyKnown);
            }
            for known in voters {
                let left = deadline.saturating_sub(started.elapsed());
                let answer = tokio::time::timeout(left, call(known.link.clone())).await;
                match answer {
                    Ok(Ok(answer)) => {
                        self.leader.store(known.info.id.0, Ordering::Relaxed);
                        return Ok(answer);
                    }
                    Ok(Err(LinkError::Refused { why, .. })) => return Err(CallError::Refused(why)),
                    Ok(Err(error)) => last = Some(self.learn(error)),
                    Err(_) => {}
                }
                if started.elapsed() >= deadline {
                    let last = last.unwrap_or_else(|| "nothing".to_owned());
                    return Err(CallError::NoVoter { waited: deadline, last });
                }
            }
            tokio::time::sleep(ROUND_PAUSE).await;
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
        self.voter(deadline, |link| {
            let append = append.clone();
            async move { link.append(append).await }
        })
        .await
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
