//! What is ordered, and under no checkpoint yet.
//!
//! Owns: which entries of the journal belong to it.
//! A leader that lies can call a commit ordered which no other voter has. That is found out within
//! a minute (`belief`), and then the journal should still have what was committed so.
//! Invariant: an entry is let go when every commit that rests on it was found in a tree that a
//! quorum of the voters signed.

use super::Volume;
use super::journal::Seq;
use mictlan::id::{Attempt, Position};
use mictlan::meta::error::FsError;
use std::collections::VecDeque;
use std::time::Duration;

/// At the end of a mount, for the word of most voters.
const WORD_WAIT: Duration = Duration::from_secs(10);
/// More are told together, by the last of them.
const TOLD_MAX: usize = 1_024;

/// Commits by position, each with the oldest entry that it rests on.
#[derive(Debug, Default)]
pub struct Unproven {
    commits: VecDeque<(Position, Seq)>,
    /// The request that was the newest commit.
    last: Option<Turn>,
}

/// A request of a session: which attempt, and its number in that.
type Turn = (Attempt, u64);

impl Unproven {
    /// Positions and turns only grow.
    pub fn committed(&mut self, at: Position, turn: Turn, floor: Seq) {
        self.last = Some(turn);
        let many = self.commits.len() >= TOLD_MAX;
        let before = if many { self.commits.pop_back() } else { None };
        let oldest = before.map_or(floor, |(_, before)| floor.min(before));
        self.commits.push_back((at, oldest));
    }

    /// Every commit before `end` is proven.
    pub fn proven(&mut self, end: Position) {
        while self.commits.front().is_some_and(|(at, _)| *at < end) {
            self.commits.pop_front();
        }
    }

    /// The newest commit, while it is not proven.
    fn last(&self) -> Option<(Position, Turn)> {
        self.commits.back().map(|(at, _)| *at).zip(self.last)
    }

    pub fn floor(&self) -> Option<Seq> {
        self.commits.iter().map(|(_, floor)| *floor).min()
    }
}

impl Volume {
    /// After applied records were compared with a checkpoint.
    pub(super) async fn let_go_of_what_is_proven(&self) {
        // What is being applied may be in the view and not yet among what waits for a checkpoint.
        let applied = self.applying.lock().await;
        let end = self.belief.proven_before(applied.next);
        self.core().unproven.proven(end);
        drop(applied);
        self.trim_journal();
    }

    /// Before the journal goes: that most voters have the newest commit, if no checkpoint says so.
    pub(super) async fn is_ordered_by_most(&self) -> Result<(), FsError> {
        let (session, newest) = {
            let core = self.core();
            (core.session.id, core.unproven.last())
        };
        let Some((at, turn)) = newest else { return Ok(()) };
        let wait = WORD_WAIT.min(self.options.deadline);
        match self.network.last_of(session, Position(at.0 + 1), wait).await {
            Ok(last) if last >= Some(turn) => Ok(()),
            Ok(last) => {
                tracing::error!(record = %at, ?turn, ?last,
                    "a voter said that the commits of this mount are ordered, and most voters do \
                     not have them: they stay in the journal, for the next mount");
                Err(FsError::Io)
            }
            Err(error) => {
                tracing::warn!(%error, "what was committed last stays in the journal: too few \
                    voters say that they have it");
                Err(FsError::TimedOut)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_kept_until_every_commit_that_rests_on_it_is_proven() {
        let mut unproven = Unproven::default();
        for (at, floor) in [(10, 1), (12, 7), (13, 4)] {
            unproven.committed(Position(at), (Attempt(1), at), Seq(floor));
        }
        assert_eq!(unproven.floor(), Some(Seq(1)));
        unproven.proven(Position(10));
        assert_eq!(unproven.floor(), Some(Seq(1)), "10 is not before 10");
        unproven.proven(Position(12));
        assert_eq!(unproven.floor(), Some(Seq(4)), "13 rests on older ones than 12");
        assert_eq!(unproven.last(), Some((Position(13), (Attempt(1), 13))));
        unproven.proven(Position(14));
        assert_eq!((unproven.floor(), unproven.last()), (None, None));
    }

    #[test]
    fn many_are_told_together() {
        let mut unproven = Unproven::default();
        for at in 0..=2 * TOLD_MAX as u64 {
            unproven.committed(Position(at), (Attempt(1), at), Seq(1 + at));
        }
        assert_eq!(unproven.commits.len(), TOLD_MAX);
        unproven.proven(Position(2 * TOLD_MAX as u64));
        assert_eq!(unproven.floor(), Some(Seq(TOLD_MAX as u64)), "the last speaks for them all");
    }
}
