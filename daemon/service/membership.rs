//! Who orders the ledger follows what the ledger says: the leader brings peers in and lets them go.
//!
//! Owns: the next step from the voters that there are to those that the records name.
//! Never: decides who votes; `net.peer` records do.
//! Invariant: a voter holds the log key before it can lead, and has the ledger before a quorum
//! counts it.
//!
//! The order, so that publication never waits: every peer that listens first receives the log
//! without a vote; once it has the ledger it says so by a `net.peer` record (from then on a
//! checkpoint's quorum counts it, and it can cosign); the log key is rotated and wrapped for all
//! voters of that moment; last, its vote counts. One who leaves loses its vote first, and then the
//! key is rotated without it.

use super::Service;
use crate::sequencer::ProposeError;
use mictlan::cluster::state::{Item, Outcome, State, Submission};
use mictlan::id::PeerId;
use mictlan::ledger::record::body::{Body, PeerState};
use mictlan::wire::Failure;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// How often the leader compares.
const EVERY: Duration = Duration::from_millis(250);
/// A peer that is let vote has the ledger, so it catches up within this or is away.
const WITHIN: Duration = Duration::from_secs(20);

type Peers = BTreeSet<PeerId>;

/// What the records say, and what is.
#[derive(Clone, Default, Debug)]
struct Seen {
    /// Peers that listen and were not removed.
    listening: Peers,
    /// Those of them that shall vote.
    voters: Peers,
    /// For whom the log key is wrapped.
    keyed: Peers,
    /// Who votes.
    voting: Peers,
    /// Who receives the log without a vote.
    learning: Peers,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// Its vote ends.
    Dismiss(PeerId),
    /// The log key is wrapped for exactly the voters.
    Rotate,
    /// Its vote counts.
    Admit(PeerId),
    /// It receives the log.
    Teach(PeerId),
    /// It receives nothing more.
    Forget(PeerId),
}

impl Seen {
    fn of(state: &State) -> Self {
        let network = state.network();
        let listens = |peer: &&mictlan::ledger::record::body::Peer| {
            peer.state != PeerState::Removed && !peer.addresses.is_empty()
        };
        Self {
            listening: network.peers().filter(listens).map(|peer| peer.peer).collect(),
            voters: network.voters().map(|peer| peer.peer).collect(),
            keyed: network.log_key().wraps.iter().map(|wrap| wrap.peer).collect(),
            ..Self::default()
        }
    }

    /// The first thing that is not as it should be.
    fn step(&self) -> Option<Step> {
        let dismissed = self.voting.difference(&self.voters).next().copied();
        let admitted = self.voters.difference(&self.voting).next().copied();
        let taught = self.listening.iter().find(|peer| !self.follows(**peer)).copied();
        let forgotten = self.learning.difference(&self.listening).next().copied();
        dismissed
            .map(Step::Dismiss)
            .or_else(|| (self.keyed != self.voters).then_some(Step::Rotate))
            .or(admitted.map(Step::Admit))
            .or(taught.map(Step::Teach))
            .or(forgotten.map(Step::Forget))
    }

    fn follows(&self, peer: PeerId) -> bool {
        self.voting.contains(&peer) || self.learning.contains(&peer)
    }
}

impl Service {
    /// Compares while this voter leads, until the sequencer ends.
    pub(super) async fn keep_voters(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Some(mut seen) = self.sequencer.with_state(Seen::of) else { continue };
            seen.voting = self.sequencer.voters().into_iter().collect();
            seen.learning = self.sequencer.learners().into_iter().collect();
            let leader = self.sequencer.leader();
            // A leader without the key cannot make the next one: then whoever has it does.
            let keyless = leader.is_some_and(|leader| !seen.keyed.contains(&leader));
            let mine = seen.keyed.contains(&self.me) && seen.voters.contains(&self.me);
            match seen.step() {
                Some(Step::Rotate) if mine && (keyless || self.sequencer.leads()) => {
                    self.rotate().await;
                }
                Some(step) if step != Step::Rotate && self.sequencer.leads() => {
                    self.take(step).await;
                }
                _ => {}
            }
        }
    }

    async fn take(&self, step: Step) {
        let done = match step {
            Step::Dismiss(peer) => self.sequencer.remove_voter(peer, WITHIN).await,
            Step::Admit(peer) => self.sequencer.add_voter(peer, WITHIN).await,
            Step::Teach(peer) => self.sequencer.teach(peer, WITHIN).await,
            Step::Forget(peer) => self.sequencer.forget(peer, WITHIN).await,
            Step::Rotate => return self.rotate().await,
        };
        match done {
            Ok(()) => tracing::info!(?step, "the voters changed as the ledger says"),
            Err(error) => tracing::warn!(?step, %error, "the voters did not change yet"),
        }
    }

    /// The log signs with a new key, wrapped for each voter of now.
    async fn rotate(&self) {
        let made = self.sequencer.rotate_log_key();
        let origin = self.sequencer.with_state(|state| state.origin().clone());
        let (Ok(body), Some(origin)) = (&made, origin) else {
            if let Err(error) = made {
                tracing::warn!(%error, "the log key is not rotated");
            }
            return;
        };
        let ordered = match self.signed(&origin, Body::KeyRotate(body.clone())) {
            Ok(submission) => self.have_ordered(submission).await,
            Err(error) => return tracing::error!(%error, "a rotation cannot be written down"),
        };
        match ordered {
            Ok(Outcome::Refused(why)) => tracing::debug!(%why, "another rotation was first"),
            Ok(_) => tracing::info!(serial = body.serial, "the log key is wrapped for each voter"),
            Err(error) => tracing::warn!(%error, "the log key is not rotated yet"),
        }
    }

    /// Has a signed record ordered, here or by whoever leads.
    pub(super) async fn have_ordered(&self, submission: Submission) -> Result<Outcome, Failure> {
        let item = Item::Record(submission.clone());
        let leader = match self.sequencer.propose(item, super::WITHIN).await {
            Ok(outcome) => return Ok(outcome),
            Err(ProposeError::NotLeader { leader }) => leader,
            Err(error) => return Err(super::propose_failure(error)),
        };
        let link =
            leader.filter(|leader| *leader != self.me).and_then(|leader| self.voters.link(leader));
        let link = link.ok_or(Failure::NotLeader { leader })?;
        link.append(submission).await.map_err(|error| Failure::OutcomeUnknown(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(ids: &[u64]) -> Peers {
        ids.iter().map(|id| PeerId(*id)).collect()
    }

    /// All steps, each taken as it would be.
    fn steps(mut seen: Seen) -> Vec<Step> {
        let mut taken = Vec::new();
        while let Some(step) = seen.step() {
            match step {
                Step::Dismiss(peer) => drop(seen.voting.remove(&peer)),
                Step::Rotate => seen.keyed = seen.voters.clone(),
                Step::Admit(peer) => {
                    seen.learning.remove(&peer);
                    seen.voting.insert(peer);
                }
                Step::Teach(peer) => drop(seen.learning.insert(peer)),
                Step::Forget(peer) => drop(seen.learning.remove(&peer)),
            }
            taken.push(step);
            assert!(taken.len() < 20, "it comes to an end");
        }
        taken
    }

    #[test]
    fn a_peer_learns_first_and_holds_the_key_before_its_vote_counts() {
        let one = peers(&[1]);
        let mut seen = Seen {
            listening: peers(&[1, 2]),
            voters: one.clone(),
            keyed: one.clone(),
            voting: one,
            ..Seen::default()
        };
        assert_eq!(steps(seen.clone()), [Step::Teach(PeerId(2))]);
        seen.learning = peers(&[2]);
        seen.voters = peers(&[1, 2]);
        assert_eq!(steps(seen), [Step::Rotate, Step::Admit(PeerId(2))]);
    }

    #[test]
    fn who_leaves_loses_its_vote_and_then_the_key() {
        let three = peers(&[1, 2, 3]);
        let seen = Seen {
            listening: peers(&[1, 2]),
            voters: peers(&[1, 2]),
            keyed: three.clone(),
            voting: three,
            ..Seen::default()
        };
        assert_eq!(steps(seen), [Step::Dismiss(PeerId(3)), Step::Rotate]);
    }
}
