//! What must hold of a world at its end, read from its ledger and its journals alone.

use super::{VOTERS, World, commits, payload};
use crate::client::Fate;
use mictlan::cluster::certify::conflict;
use mictlan::id::{Position, SessionId};
use mictlan::ledger::merkle::{self, CompactRange};
use mictlan::ledger::record::{Body, Line};
use mictlan::meta::tag::TagList;
use std::collections::BTreeMap;

impl World {
    /// The promises, read from the ledger and the journals alone.
    fn keeps_its_promises(&mut self) {
        (0..VOTERS).for_each(|voter| drop(self.follow(voter)));
        self.replicas_are_the_same();
        self.nothing_acknowledged_is_lost_or_doubled();
        self.no_fenced_session_committed_and_no_conflict_passed();
    }

    fn replicas_are_the_same(&self) {
        let mut tree = CompactRange::new();
        self.lines.iter().for_each(|line| tree.append(merkle::leaf(line)));
        for voter in &self.voters {
            assert_eq!(voter.state, self.voters[0].state, "replicas differ");
            assert_eq!(voter.state.head().root, tree.root(), "a root is not the ledger's");
        }
    }

    fn nothing_acknowledged_is_lost_or_doubled(&self) {
        let mut seen = BTreeMap::new();
        for (at, commit) in commits(&self.lines) {
            let before = seen.insert(commit.payload.b3, at);
            assert_eq!(before, None, "an operation twice, again at {at}");
        }
        for op in self.hosts.iter().flat_map(|host| &host.journal) {
            let there = seen.get(&payload(op.content)).copied();
            match op.fate {
                Fate::Committed(at) => assert_eq!(there, Some(at), "{op:?}"),
                Fate::Recovered => {
                    assert_eq!(there, None, "reported as refused, and ordered: {op:?}");
                    assert!(op.local || !op.acknowledged, "acknowledged and refused: {op:?}");
                }
                Fate::Pending => panic!("never answered: {op:?}"),
            }
        }
    }

    /// Against the whole history, pair by pair, with lineages from the fences in the ledger.
    fn no_fenced_session_committed_and_no_conflict_passed(&self) {
        let mut lineage: BTreeMap<SessionId, SessionId> = BTreeMap::new();
        let mut fenced: BTreeMap<SessionId, Position> = BTreeMap::new();
        let mut heirs: BTreeMap<SessionId, SessionId> = BTreeMap::new();
        let root = |lineage: &BTreeMap<_, _>, id| lineage.get(&id).copied().unwrap_or(id);
        let mut history: Vec<(Position, SessionId, &TagList)> = Vec::new();
        for line in &self.lines {
            let line = Line::parse(line).expect("a record");
            match line.p.body() {
                Ok(Body::Fence(fence)) => {
                    fenced.entry(fence.session).or_insert(line.i);
                    if let Some(heir) = fence.successor {
                        assert_eq!(heirs.insert(fence.session, heir), None, "two successors");
                        let first = root(&lineage, fence.session);
                        assert_eq!(lineage.insert(heir, first), None, "two predecessors");
                    }
                }
                Ok(Body::Commit(commit)) => {
                    assert!(!fenced.contains_key(&commit.session), "fenced, and committed");
                    let (mine, tags) = (root(&lineage, commit.session), &self.lists[&line.i]);
                    for (at, theirs, earlier) in &history {
                        let blind = *at > commit.base && *theirs != mine;
                        let clash = if blind { conflict(earlier, tags) } else { None };
                        assert_eq!(clash, None, "{at} and {} conflict", line.i);
                    }
                    history.push((line.i, mine, tags));
                }
                _ => {}
            }
        }
    }
}

fn check(seed: u64) -> (usize, usize, usize) {
    println!("world seed {seed}: to see it alone, SEED={seed} cargo test -p mictlan-tests world");
    let mut world = World::new(seed).run();
    world.keeps_its_promises();
    let journal = world.hosts.iter().flat_map(|host| &host.journal);
    let recovered = journal.clone().filter(|op| op.fate == Fate::Recovered).count();
    let local = journal.filter(|op| op.local).count();
    (commits(&world.lines).count(), local, recovered)
}

#[test]
fn the_promises_hold_in_a_world_of_faults() {
    let chosen = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = chosen.map_or(1..=8, |seed: u64| seed..=seed);
    let (mut ordered, mut local, mut recovered) = (0, 0, 0);
    for seed in seeds {
        let (a, b, c) = check(seed);
        (ordered, local, recovered) = (ordered + a, local + b, recovered + c);
    }
    // A world in which nothing happens keeps every promise.
    println!("{ordered} ordered, {local} acknowledged under a lease, {recovered} refused");
    assert!(chosen.is_some() || ordered > 400 && local > 50 && recovered > 10);
}
