//! Operations that become one commit: it does what they did, and no follower skips it.

use super::ops::{Alphabet, histories};
use super::world::{TAG_KEY, apply, env, founded, seconds};
use mictlan::id::{Ino, SessionId};
use mictlan::meta::cover::covered;
use mictlan::meta::gather::Gathered;
use mictlan::meta::namespace::{Op, Reply, plan};
use proptest::prelude::*;

/// Histories, each cut into commits: `true` where one ends.
fn cut() -> impl Strategy<Value = Vec<(Op, bool)>> {
    let ops = histories(Alphabet::of_session(1), Ino::of(SessionId(1), 1), 60);
    let ends = prop::collection::vec(prop::bool::weighted(0.1), 60);
    (ops, ends).prop_map(|(ops, ends)| ops.into_iter().zip(ends).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn whatever_a_mount_gathers_into_a_commit_is_covered_and_means_the_same(history in cut()) {
        let (mut one_by_one, mut by_commits) = (founded(), founded());
        let mut commit = Gathered::default();
        let last = history.len();
        for (i, (op, ends)) in history.into_iter().enumerate() {
            let now = seconds(1_000 + i as i64);
            if let Ok(planned) = plan(&one_by_one, &env(now), &op) {
                let made = match (&op, &planned.reply) {
                    (Op::Make(_), Reply::Entry { ino, .. }) => Some(*ino),
                    _ => None,
                };
                apply(&mut one_by_one, &planned.writes);
                commit.add(&planned.writes, planned.facts, made);
            }
            if ends || i + 1 == last {
                let commit = std::mem::take(&mut commit);
                let tags = commit.facts.tags(&TAG_KEY).expect("few tags");
                let fresh = |ino| commit.begins(ino);
                prop_assert_eq!(covered(&commit.writes, &tags, &TAG_KEY, fresh), Ok(()));
                apply(&mut by_commits, &commit.writes);
                prop_assert_eq!(&by_commits, &one_by_one);
            }
        }
    }
}
