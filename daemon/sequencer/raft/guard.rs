//! What a voter may answer when it has lost its log, or never had one, while it asks the others what
//! it had (`recall`), and when histories differ.
//!
//! Owns: the mark on disk that says that the log is not complete yet; what is refused meanwhile.
//! Never: grants a vote, or takes entries from a leader that could be an old one, by a log that has
//! forgotten what it promised.
//! Invariant: the mark is on disk before an empty log is used, and goes only when this voter has
//! applied all that a leader had of whom enough others said, after the loss, that none is newer.
//!
//! Why that is enough: whatever was ordered with this voter's help was ordered by a quorum. Of each
//! quorum with it one other voter is among those who were asked (`enough`), and it has promised
//! nothing to a newer leader: so the leader that they know has all of it.

use super::log::LogStore;
use super::machine::Applied;
use super::network::{Call, CallError, RaftTransport, pack, unpack};
use super::recall::{self, Known, Recall, Verdict, Voters};
use super::{LogId, Raft, Types, Vote};
use crate::store::durable::{self, DiskError};
use bytes::Bytes;
use futures::future::join_all;
use mictlan::id::PeerId;
use openraft::RaftLogId;
use openraft::raft::{AppendEntriesRequest, VoteRequest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::watch;

const FILE_MODE: u32 = 0o600;
const MARK: &str = "incomplete";
const MARK_TEXT: &str = "This voter's log is not complete: it grants no vote until it is.\n";
/// One voter's answer; a vote waits for it, so it is shorter than an election.
const STAND_WITHIN: Duration = Duration::from_millis(600);
/// A leader's answer, who asks all others first.
const VOUCH_WITHIN: Duration = Duration::from_secs(3);
/// A voter's answer to one that starts, who can do nothing without it.
const RECALL_WITHIN: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// "How do you stand?", or, to a leader, "ask the others whether they know a newer one".
#[derive(Serialize, Deserialize)]
struct Stand {
    vouch: bool,
}

/// Answered only by a voter whose log is complete.
#[derive(Serialize, Deserialize)]
struct Stood {
    vote: Vote,
    /// The last entry of its log.
    last: u64,
    /// Who votes; two sets while that changes.
    voters: Vec<BTreeSet<u64>>,
}

/// What is known while the log is not complete.
#[derive(Default)]
struct Lack {
    /// The leader that others know as the newest, and the last entry that it had then.
    vouched: Option<(Vote, u64)>,
    asking: bool,
}

/// What is known while the others are asked what this voter had.
struct Doubt {
    recall: Recall,
    verdict: Verdict,
}

pub struct Guard {
    me: PeerId,
    dir: PathBuf,
    mark: PathBuf,
    transport: Arc<dyn RaftTransport>,
    /// Covers what is lacking; none when the log is complete. Held for no wait.
    lack: Mutex<Option<Lack>>,
    /// Covers what others said since the start; none when this voter takes its full part as far
    /// as they know. Held for no wait.
    doubt: Mutex<Option<Doubt>>,
    /// Why this voter can go on no more.
    ended: watch::Sender<Option<String>>,
}

/// Whether `dir` says that its log is not complete.
pub fn is_marked(dir: &Path) -> Result<bool, DiskError> {
    let mark = dir.join(MARK);
    mark.try_exists().map_err(|e| DiskError::new("read", &mark, e))
}

impl Guard {
    /// `empty` is a log without any entry or vote: it is marked before anything is put into it.
    pub fn open(
        dir: &Path,
        me: PeerId,
        empty: bool,
        transport: Arc<dyn RaftTransport>,
    ) -> Result<Arc<Self>, DiskError> {
        let mark = dir.join(MARK);
        if empty {
            durable::replace_file(&mark, FILE_MODE, MARK_TEXT.as_bytes())?;
        }
        let lack = is_marked(dir)?.then(Lack::default);
        let (dir, lack, doubt) = (dir.to_owned(), Mutex::new(lack), Mutex::default());
        let ended = watch::Sender::new(None);
        Ok(Arc::new(Self { me, dir, mark, transport, lack, doubt, ended }))
    }

    fn lack(&self) -> MutexGuard<'_, Option<Lack>> {
        self.lack.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this voter's log is not complete.
    pub fn lacks(&self) -> bool {
        self.lack().is_some()
    }

    /// Nothing is missing: it is a new network's first log, or has caught up.
    pub fn is_complete(&self) -> Result<(), DiskError> {
        recall::settle(&self.dir)?;
        durable::remove_file(&self.mark)?;
        *self.lack() = None;
        Ok(())
    }

    /// Whether entries or a snapshot may be taken from this leader. Where that is not known yet,
    /// it is asked, and the leader's next try finds the answer.
    pub fn may_follow(self: &Arc<Self>, from: PeerId, vote: Vote) -> Result<(), CallError> {
        self.has_recalled()?;
        let mut lack = self.lack();
        let Some(lack) = lack.as_mut() else { return Ok(()) };
        if lack.vouched.is_some_and(|(known, _)| known == vote) {
            return Ok(());
        }
        if !std::mem::replace(&mut lack.asking, true) {
            let guard = self.clone();
            tokio::spawn(async move { guard.have_vouched(from, vote).await });
        }
        Err(CallError::Refused("its log is not complete, and it asks who leads".into()))
    }

    async fn have_vouched(&self, from: PeerId, vote: Vote) {
        let stood = self.ask(from, true, VOUCH_WITHIN).await;
        if let Err(error) = &stood {
            tracing::info!(%error, "this voter's log is not complete, and no leader is sure yet");
        }
        let mut lack = self.lack();
        let Some(lack) = lack.as_mut() else { return };
        lack.asking = false;
        if let Some(stood) = stood.ok().filter(|stood| stood.vote == vote) {
            lack.vouched = Some((vote, stood.last));
        }
    }

    /// Whether a vote may be granted. Without a complete log only to the other one of two voters:
    /// nothing was ever ordered without it.
    pub async fn may_vote(&self, from: PeerId, last: Option<LogId>) -> Result<(), CallError> {
        let recalled = self.has_recalled().and_then(|floor| match floor {
            Some(floor) if last < Some(floor) => {
                Err(CallError::Refused(format!("others have entries up to {floor}")))
            }
            _ => Ok(()),
        });
        if let Err(why) = recalled {
            tracing::info!(candidate = %from, %why, "it grants no vote");
            return Err(why);
        }
        if !self.lacks() {
            return Ok(());
        }
        let stood = self.ask(from, false, STAND_WITHIN).await?;
        match enough(&stood.voters, &BTreeSet::from([from.0])) {
            true => Ok(()),
            false => {
                let why = "its log is not complete: it grants no vote";
                tracing::info!(candidate = %from, "{why}");
                Err(CallError::Refused(why.into()))
            }
        }
    }

    async fn ask(&self, peer: PeerId, vouch: bool, within: Duration) -> Result<Stood, CallError> {
        let answer = self.transport.call(peer, Call::Stand, pack(&Stand { vouch }), within).await;
        unpack(&answer?)
    }

    /// Waits until a peer says that its log is complete.
    pub async fn wait_complete(&self, peer: PeerId) {
        while self.ask(peer, false, VOUCH_WITHIN).await.is_err() {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Answers another voter's `Call::Stand`.
    pub async fn stand(&self, raft: &Raft, from: PeerId, body: &[u8]) -> Result<Bytes, CallError> {
        let Stand { vouch } = unpack(body)?;
        self.has_recalled()?;
        if self.lacks() {
            return Err(CallError::Refused("its own log is not complete".into()));
        }
        let vote = raft.with_raft_state(|state| *state.vote_ref()).await;
        let vote = vote.map_err(|e| CallError::Refused(e.to_string()))?;
        if vouch {
            self.vouch(raft, from, vote).await?;
        }
        // After the answers: all that anyone ordered under this vote or before is in it.
        let last = raft.metrics().borrow().last_log_index.unwrap_or(0);
        Ok(pack(&Stood { vote, last, voters: voters(raft) }))
    }

    /// Whether enough voters beside `from` know no newer leader than this one.
    async fn vouch(&self, raft: &Raft, from: PeerId, vote: Vote) -> Result<(), CallError> {
        if !vote.committed || vote.leader_id.node_id != self.me.0 {
            return Err(CallError::Refused("it does not lead".into()));
        }
        let voters = voters(raft);
        let all: BTreeSet<u64> = voters.iter().flatten().copied().collect();
        let others = all.into_iter().filter(|id| *id != self.me.0 && *id != from.0);
        let asked = others.map(|id| async move {
            (id, self.ask(PeerId(id), false, STAND_WITHIN).await.ok().map(|stood| stood.vote))
        });
        let mut known = BTreeSet::from([self.me.0]);
        for (id, found) in join_all(asked).await {
            match found {
                Some(found) if found <= vote => drop(known.insert(id)),
                Some(_) => return Err(CallError::Refused("there is a newer leader".into())),
                None => {}
            }
        }
        match enough(&voters, &known) {
            true => Ok(()),
            false => Err(CallError::Refused(
                "too few other voters with a complete log answer to say who leads".into(),
            )),
        }
    }

    /// Until the log is complete; then this voter takes its full part.
    pub async fn catch_up(self: Arc<Self>, raft: Raft) {
        tracing::info!("this peer's log is not complete: it has no vote until a leader brought it");
        let metrics = raft.metrics();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let (ended, vote, applied) = {
                let now = metrics.borrow();
                (now.running_state.is_err(), now.vote, now.last_applied)
            };
            let target = match &*self.lack() {
                None => break,
                Some(lack) => lack.vouched,
            };
            let reached = target.is_some_and(|(known, last)| {
                known == vote && applied.is_some_and(|applied| applied.index >= last)
            });
            match reached.then(|| self.is_complete()) {
                _ if ended => return,
                Some(Ok(())) => break,
                Some(Err(error)) => tracing::error!(%error, "a complete log stays marked"),
                None => {}
            }
        }
        raft.runtime_config().elect(true);
        tracing::info!("this peer's log is complete: it can vote");
    }

    fn doubt(&self) -> MutexGuard<'_, Option<Doubt>> {
        self.doubt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins in doubt where there are others who may know more than the log says, unless it is
    /// known to lack something.
    pub fn ask_first(&self, voters: Voters) -> Result<bool, DiskError> {
        if self.lacks() {
            return Ok(false);
        }
        let recall = Recall::new(self.me.0, recall::is_copy(&self.dir)?, voters);
        if !recall.has_others() {
            recall::settle(&self.dir)?;
            return Ok(false);
        }
        *self.doubt() = Some(Doubt { recall, verdict: Verdict::Ask });
        Ok(true)
    }

    /// Whether others are asked still, and nobody is followed.
    pub fn asks(&self) -> bool {
        self.has_recalled().is_err()
    }

    /// Refuses while others are asked; then the entry that a candidate must have, if it is not in
    /// this voter's own log yet.
    fn has_recalled(&self) -> Result<Option<LogId>, CallError> {
        match self.doubt().as_ref().map(|doubt| doubt.verdict) {
            None | Some(Verdict::Whole) => Ok(None),
            Some(Verdict::Behind(floor)) => Ok(Some(floor)),
            Some(Verdict::Ask | Verdict::Promise(_)) => {
                Err(CallError::Refused("it started, and asks the others what it had".into()))
            }
        }
    }

    /// What this voter has on its disk.
    pub fn known(&self, raft: &Raft, log: &LogStore, applied: &Applied) -> Known {
        let metrics = raft.metrics();
        let voters = {
            let metrics = metrics.borrow();
            let (since, members) =
                (*metrics.membership_config.log_id(), metrics.membership_config.membership());
            Voters { since, sets: members.get_joint_config().clone() }
        };
        let (lacks, vote) = (self.lacks(), log.vote().unwrap_or_default());
        Known { lacks, vote, last: log.last(), applied: applied.last_applied(), voters }
    }

    /// Asks the others until this voter may take its full part.
    pub async fn recall(self: Arc<Self>, raft: Raft, log: LogStore, applied: Arc<Applied>) {
        let mut told = None;
        while raft.metrics().borrow().running_state.is_ok() {
            let voters = self.known(&raft, &log, &applied).voters;
            let asked = match &*self.doubt() {
                Some(doubt) => doubt.recall.others(&voters),
                None => return,
            };
            let asked = asked.into_iter().map(|id| self.recalled(PeerId(id)));
            let answers = join_all(asked).await;
            let own = self.known(&raft, &log, &applied);
            let verdict = self.judge(&own, answers.into_iter().flatten());
            match verdict {
                Verdict::Whole => match self.recalled_all(&raft) {
                    Ok(()) => return,
                    Err(error) => tracing::error!(%error, "this voter does not vote yet"),
                },
                // Given to nobody who waits for it: the promise alone is what matters.
                Verdict::Promise(vote) => {
                    let _ = raft.vote(VoteRequest::new(vote, own.last)).await;
                }
                Verdict::Ask | Verdict::Behind(_) => {}
            }
            if told.replace(verdict) != Some(verdict) {
                self.tell(verdict);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn recalled_all(&self, raft: &Raft) -> Result<(), DiskError> {
        recall::settle(&self.dir)?;
        *self.doubt() = None;
        raft.runtime_config().elect(true);
        tracing::info!("the others have nothing that this voter's log lacks: it can vote");
        Ok(())
    }

    async fn recalled(&self, peer: PeerId) -> Option<(u64, Known)> {
        let answer = self.transport.call(peer, Call::Recall, pack(&()), RECALL_WITHIN).await;
        Some((peer.0, unpack(&answer.ok()?).ok()?))
    }

    fn judge(&self, own: &Known, answers: impl Iterator<Item = (u64, Known)>) -> Verdict {
        let (mut doubt, now) = (self.doubt(), Instant::now());
        let Some(doubt) = doubt.as_mut() else { return Verdict::Whole };
        for (id, known) in answers {
            doubt.recall.hear(id, known, now);
        }
        doubt.verdict = doubt.recall.judge(own, now);
        doubt.verdict
    }

    fn tell(&self, verdict: Verdict) {
        let copy = self.doubt().as_ref().is_some_and(|doubt| doubt.recall.is_copy());
        match verdict {
            Verdict::Ask if copy => tracing::warn!(
                "{} is a copy, which may have forgotten what this voter acknowledged: it has no \
                 vote until enough others say what they have",
                self.dir.display()
            ),
            Verdict::Ask => tracing::info!("this voter waits for the others to say what they have"),
            Verdict::Behind(entry) => tracing::info!(
                "others have entries up to {entry}: until it has them, this voter does not stand \
                 for election, and votes for nobody without them"
            ),
            Verdict::Promise(_) | Verdict::Whole => {}
        }
    }

    /// Refuses a leader whose log contradicts what is applied here: that history was ordered, so
    /// another one means that too many voters forgot it. No guess is made which one is right.
    pub fn refuse_another_history(
        &self,
        applied: Option<LogId>,
        rpc: &AppendEntriesRequest<Types>,
    ) -> Result<(), CallError> {
        let ids = rpc.entries.iter().map(|entry| *entry.get_log_id());
        let Some((ours, theirs)) = contradiction(applied, rpc.prev_log_id.into_iter().chain(ids))
        else {
            return Ok(());
        };
        let leader = rpc.vote.leader_id.node_id;
        let why = format!(
            "two histories: peer {leader} leads with entry {theirs}, where this voter has applied \
             {ours}; more voters lost their logs than the network bears. Nothing was changed here; \
             keep a copy of this peer's directory before anything else is done"
        );
        tracing::error!("{why}");
        self.ended.send_replace(Some(why.clone()));
        Err(CallError::Refused(why))
    }

    /// Ends when this voter must not go on; the reason.
    pub async fn ended(&self) -> String {
        let mut ended = self.ended.subscribe();
        match ended.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }
}

/// Who votes as far as this voter knows; two sets while that changes.
fn voters(raft: &Raft) -> Vec<BTreeSet<u64>> {
    let metrics = raft.metrics();
    let metrics = metrics.borrow();
    metrics.membership_config.membership().get_joint_config().clone()
}

/// Whether every quorum of each set has one of `known` beside the one that forgot: with `known`
/// half of the voters, rounded up.
pub(super) fn enough(voters: &[BTreeSet<u64>], known: &BTreeSet<u64>) -> bool {
    let has_half = |set: &BTreeSet<u64>| set.intersection(known).count() >= set.len().div_ceil(2);
    !voters.is_empty() && voters.iter().all(|set| !set.is_empty() && has_half(set))
}

/// The entry applied here, and the one of a leader at or before its place with a later term.
fn contradiction(
    applied: Option<LogId>,
    theirs: impl IntoIterator<Item = LogId>,
) -> Option<(LogId, LogId)> {
    let ours = applied?;
    let later = |id: &LogId| id.index <= ours.index && *id > ours;
    theirs.into_iter().find(later).map(|id| (ours, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(all: &[u64]) -> BTreeSet<u64> {
        all.iter().copied().collect()
    }

    fn log_id(term: u64, index: u64) -> LogId {
        LogId::new(openraft::CommittedLeaderId::new(term, 1), index)
    }

    /// Every quorum that the forgetful voter may have been part of has another one who was asked.
    #[test]
    fn enough_is_exactly_what_meets_every_quorum_of_the_forgetful() {
        for count in 1..=7u64 {
            let all: BTreeSet<u64> = (0..count).collect();
            let subsets = || {
                (0..1u64 << count).map(|bits| {
                    (0..count).filter(|n| bits >> n & 1 == 1).collect::<BTreeSet<u64>>()
                })
            };
            let quorums = || subsets().filter(|set| set.len() > all.len() / 2 && set.contains(&0));
            for known in subsets().filter(|known| !known.contains(&0)) {
                let meets = quorums().all(|quorum| !quorum.is_disjoint(&known));
                let said = enough(std::slice::from_ref(&all), &known);
                assert_eq!(said, meets, "{count} voters, {known:?} known");
            }
        }
        assert!(!enough(&[], &ids(&[1])), "no voters known is never enough");
        assert!(!enough(&[ids(&[1, 2]), ids(&[1, 2, 3])], &ids(&[1])), "both sets count");
    }

    #[test]
    fn a_later_term_at_or_before_what_is_applied_is_another_history() {
        let ours = Some(log_id(1, 20));
        assert_eq!(contradiction(None, [log_id(2, 1)]), None);
        assert_eq!(contradiction(ours, [log_id(1, 20), log_id(2, 21)]), None);
        assert_eq!(contradiction(ours, [log_id(1, 19)]), None);
        let found = contradiction(ours, [log_id(1, 19), log_id(2, 20)]);
        assert_eq!(found, Some((log_id(1, 20), log_id(2, 20))));
    }
}
