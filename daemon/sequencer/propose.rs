//! The grouping proposer: what waits becomes one consensus entry.
//!
//! Owns: who waits for which answer, and how much is on its way.
//! Never: waits for a timer: a group is whatever came while the one before was being written.
//! Invariant: every caller is answered once: an outcome, a refusal before proposing, or an error
//! that says whether the outcome is known.

use super::clock::{AHEAD_MAX_MS, Clocks};
use super::group::Grouped;
use super::raft::machine::Applied;
use super::raft::{Group, Raft};
use bytes::Bytes;
use mictlan::cluster::state::{Entry, Item, Outcome, State};
use mictlan::id::{PeerId, TimeMs};
use openraft::error::ClientWriteError;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

/// Bounds of one group: more would delay heartbeats and replication.
const GROUP_ITEMS_MAX: usize = 1024;
const GROUP_BYTES_MAX: usize = 1 << 20;
/// One group is written while the one before is applied; a third would only wait in raft.
const GROUPS_IN_FLIGHT: usize = 2;
/// Callers beyond this wait in `propose`.
pub const WAITING_MAX: usize = 4096;

/// Why there is no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Certainly not ordered by this call.
    #[error("this voter does not lead{}", hint(*.leader))]
    NotLeader { leader: Option<PeerId> },
    #[error("this leader's clock is {ahead_ms} ms ahead of the other voters'; set it right")]
    ClockAhead { ahead_ms: i64 },
    /// It may or may not be ordered; the same request again tells.
    #[error("leadership was lost meanwhile{}; ask again with the same request", hint(*.leader))]
    Unknown { leader: Option<PeerId> },
    #[error("no majority of voters confirmed it in time; ask again with the same request")]
    Late,
    #[error("the sequencer is stopping; ask again with the same request")]
    Stopped,
}

fn hint(leader: Option<PeerId>) -> String {
    leader.map_or_else(String::new, |peer| format!("; peer {peer} does"))
}

pub type Answer = Result<Outcome, ProposeError>;

/// One caller.
pub struct Waiting {
    pub item: Item,
    pub answer: oneshot::Sender<Answer>,
}

impl Waiting {
    fn reply(self, answer: Answer) {
        // A caller whose deadline passed is gone; the same request again gets this outcome.
        let _ = self.answer.send(answer);
    }
}

/// The proposer's task.
pub struct Proposer {
    pub raft: Raft,
    pub me: PeerId,
    pub applied: Arc<Applied>,
    pub clocks: Arc<Clocks>,
}

impl Proposer {
    /// Runs until every sender is gone.
    pub async fn run(self, mut queue: mpsc::Receiver<Waiting>) {
        let proposer = Arc::new(self);
        let flights = Arc::new(Semaphore::new(GROUPS_IN_FLIGHT));
        let mut left = Vec::new();
        loop {
            let permit = flights.clone().acquire_owned().await;
            let Ok(permit) = permit else { return };
            if left.is_empty() && queue.recv_many(&mut left, GROUP_ITEMS_MAX).await == 0 {
                return;
            }
            let rest = left.split_off(group_len(&left));
            let group = std::mem::replace(&mut left, rest);
            proposer.propose(group, permit).await;
        }
    }

    /// Sends one group to raft; a task of its own waits for the answers.
    async fn propose(self: &Arc<Self>, group: Vec<Waiting>, permit: OwnedSemaphorePermit) {
        if let Err(error) = may_lead(&self.raft, self.me, &self.clocks) {
            group.into_iter().for_each(|w| w.reply(Err(error.clone())));
            return;
        }
        let applied = self.applied.clone();
        let now = self.clocks.now();
        // Signatures take a core's time; they are checked outside of raft's tasks.
        let checked = tokio::task::spawn_blocking(move || check(&applied, now, group)).await;
        let Ok((bytes, waiting)) = checked else { return };
        if waiting.is_empty() {
            return;
        }
        let sent = self.raft.client_write_ff(Group(bytes)).await;
        tokio::spawn(async move {
            let _permit = permit;
            let Ok(receiver) = sent else {
                waiting.into_iter().for_each(|w| drop(w.send(Err(ProposeError::Stopped))));
                return;
            };
            let outcomes = match receiver.await {
                Ok(Ok(response)) => Ok(response.data.0),
                // Raft says this also when the entry is in its log and leadership is lost.
                Ok(Err(ClientWriteError::ForwardToLeader(to))) => {
                    Err(ProposeError::Unknown { leader: to.leader_id.map(PeerId) })
                }
                Ok(Err(ClientWriteError::ChangeMembershipError(_))) | Err(_) => {
                    Err(ProposeError::Stopped)
                }
            };
            answer(waiting, outcomes);
        });
    }
}

/// Whether this voter leads, with a clock that others agree to. One that runs ahead gives its
/// leadership up here, since the time of a record can never be taken back.
pub fn may_lead(raft: &Raft, me: PeerId, clocks: &Clocks) -> Result<(), ProposeError> {
    let metrics = raft.metrics();
    let metrics = metrics.borrow();
    let heartbeats = |on| raft.runtime_config().heartbeat(on);
    if metrics.current_leader != Some(me.0) {
        heartbeats(true);
        return Err(ProposeError::NotLeader { leader: metrics.current_leader.map(PeerId) });
    }
    let voters: Vec<PeerId> = metrics.membership_config.voter_ids().map(PeerId).collect();
    let ahead_ms = clocks.ahead_ms(me, &voters);
    if ahead_ms > AHEAD_MAX_MS {
        // The others hear nothing more of this leader, and elect one of themselves in a second.
        heartbeats(false);
        return Err(ProposeError::ClockAhead { ahead_ms });
    }
    heartbeats(true);
    Ok(())
}

/// How many of those that wait fit into one group; at least one.
fn group_len(waiting: &[Waiting]) -> usize {
    let mut bytes = 0;
    let fits = |w: &&Waiting| {
        bytes += size_bytes(&w.item);
        bytes <= GROUP_BYTES_MAX
    };
    waiting.iter().take(GROUP_ITEMS_MAX).take_while(fits).count().max(1)
}

fn size_bytes(item: &Item) -> usize {
    let Item::Record(submission) = item else { return 64 };
    let parts = submission.commit.as_ref().map_or(0, |c| {
        let inside = [&c.payload, &c.inline].into_iter().flatten().map(Vec::len);
        c.tags.len() + inside.sum::<usize>()
    });
    submission.p.len() + parts + 128
}

type Caller = oneshot::Sender<Answer>;

/// Refuses at once what the state would refuse anyway; the rest becomes a group.
fn check(applied: &Applied, t: TimeMs, group: Vec<Waiting>) -> (Bytes, Vec<Caller>) {
    let (mut items, mut callers) = (Vec::new(), Vec::new());
    {
        let state = applied.state();
        for waiting in group {
            match refusal(state.as_ref(), &waiting.item) {
                Some(outcome) => waiting.reply(Ok(outcome)),
                None => {
                    items.push(waiting.item);
                    callers.push(waiting.answer);
                }
            }
        }
    }
    (Grouped::Entry(Entry { t, items }).encode(), callers)
}

fn refusal(state: Option<&State>, item: &Item) -> Option<Outcome> {
    let (Some(state), Item::Record(submission)) = (state, item) else { return None };
    state.check(submission).err().map(Outcome::Refused)
}

fn answer(callers: Vec<Caller>, outcomes: Result<Vec<Outcome>, ProposeError>) {
    let answers: Vec<Answer> = match outcomes {
        Ok(outcomes) if outcomes.len() == callers.len() => outcomes.into_iter().map(Ok).collect(),
        // A group that did not decode answers nothing, and ordered nothing.
        Ok(_) => vec![Err(ProposeError::Stopped); callers.len()],
        Err(error) => vec![Err(error); callers.len()],
    };
    for (caller, answer) in callers.into_iter().zip(answers) {
        // A caller whose deadline passed is gone; the same request again gets this outcome.
        let _ = caller.send(answer);
    }
}
