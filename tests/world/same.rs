//! The state by properties: exactly once, the same everywhere, and never a panic.

use crate::actors::{Actor, Say, commit, founded, tags};
use mictlan::cluster::state::{Entry, Item, Outcome, State, Submission};
use mictlan::id::{Position, TimeMs};
use mictlan::ledger::record::{Body, Line};
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Debug, Clone)]
struct Plan {
    session: usize,
    lag: u64,
    attempt: u32,
    n: u64,
    reads: Vec<u8>,
    writes: Vec<u8>,
    adds: Vec<u8>,
}

fn plan() -> impl Strategy<Value = Plan> {
    let list = || prop::collection::vec(0..4u8, 0..2);
    (0..3usize, 0..4u64, 1..4u32, 1..5u64, list(), list(), list()).prop_map(
        |(session, lag, attempt, n, reads, writes, adds)| Plan {
            session,
            lag,
            attempt,
            n,
            reads,
            writes,
            adds,
        },
    )
}

fn through_a_snapshot(state: &State) -> State {
    let bytes = postcard::to_allocvec(state).expect("plain data");
    postcard::from_bytes(&bytes).expect("its own bytes")
}

/// Per session: the accepted turns in the ledger's order.
fn turns(lines: &[Vec<u8>]) -> BTreeMap<u32, Vec<(u32, u64)>> {
    let mut by_session: BTreeMap<u32, Vec<_>> = BTreeMap::new();
    for line in lines {
        let line = Line::parse(line).expect("a record");
        if let Ok(Body::Commit(body)) = line.p.body() {
            by_session.entry(body.session.0).or_default().push((body.attempt.0, body.n));
        }
    }
    by_session
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn requests_are_accepted_once_however_often_and_in_whatever_order_they_come(
        plans in prop::collection::vec(plan(), 1..12),
        order in prop::collection::vec((any::<prop::sample::Index>(), 1..4usize), 1..60),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut net = founded();
        let sessions = [net.open("alice"), net.open("alice"), net.open("alice")];
        let actor = Actor::new("alice");
        let submissions: Vec<Submission> = (0u64..).zip(&plans).map(|(content, plan)| {
            let base = Position(2u64.saturating_sub(plan.lag));
            let tags = tags(&plan.reads, &plan.writes, &plan.adds);
            let session = sessions[plan.session];
            let (attempt, n) = (plan.attempt, plan.n);
            let say = Say { session, attempt, n, base, epoch: 1, tags, content };
            commit(&actor, &net.state, net.reqs.next(net.now), &say)
        }).collect();
        let mut entries = Vec::new();
        let mut rest = order.as_slice();
        while let Some((_, len)) = rest.first() {
            let (group, left) = rest.split_at((*len).min(rest.len()));
            let pick = |(index, _): &(prop::sample::Index, usize)| {
                Item::Record(index.get(&submissions).clone())
            };
            entries.push(Entry { t: net.now, items: group.iter().map(pick).collect() });
            rest = left;
        }
        let cut = cut.index(entries.len());
        let mut replica = net.state.clone();
        let mut first_answer: BTreeMap<Vec<u8>, Position> = BTreeMap::new();
        for (number, entry) in entries.iter().enumerate() {
            if number == cut {
                replica = through_a_snapshot(&replica);
            }
            let outcomes = net.state.apply(entry);
            prop_assert_eq!(&replica.apply(entry), &outcomes);
            for (item, outcome) in entry.items.iter().zip(&outcomes) {
                let Item::Record(submission) = item else { continue };
                if let Some(at) = outcome.position() {
                    let first = *first_answer.entry(submission.p.clone()).or_insert(at);
                    prop_assert_eq!(first, at, "a repeat gets its first answer");
                }
                if let Outcome::Accepted { record, .. } = outcome {
                    net.lines.push(record.clone());
                }
            }
        }
        prop_assert_eq!(&through_a_snapshot(&net.state), &net.state);
        prop_assert_eq!(&replica, &net.state);
        for turns in turns(&net.lines).values() {
            for pair in turns.windows(2) {
                let next = (pair[0].0, pair[0].1 + 1) == pair[1];
                prop_assert!(next || pair[1].0 > pair[0].0 && pair[1].1 == 1, "{turns:?}");
            }
        }
    }

    #[test]
    fn no_bytes_make_a_replica_panic(
        at in any::<prop::sample::Index>(), byte: u8, cut in any::<prop::sample::Index>(), t: u64,
        rubbish in prop::collection::vec(any::<u8>(), 0..64), whole: bool,
    ) {
        let mut net = founded();
        let session = net.open("alice");
        let say = Say {
            session, attempt: 1, n: 1, base: Position(2), epoch: 1, tags: tags(&[1], &[2], &[3]),
            content: 5,
        };
        let mut hostile = commit(&net.alice, &net.state, net.reqs.next(net.now), &say);
        let parts = hostile.commit.as_mut().expect("a commit");
        let target = if whole { &mut hostile.p } else { &mut parts.tags };
        let index = at.index(target.len());
        target[index] = byte;
        target.truncate(cut.index(target.len()) + 1);
        let rubbish = Submission { p: rubbish, sig: [1; 64], commit: None };
        let items = vec![Item::Record(hostile), Item::Record(rubbish)];
        let entry = Entry { t: TimeMs(t), items };
        prop_assert_eq!(net.state.apply(&entry).len(), 2);
    }
}
