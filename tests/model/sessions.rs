//! Two sessions that see each other late: what certification lets pass is some serial order.

use super::ops::histories;
use super::world::{Map, TAG_KEY, apply, assert_covered, env, founded, seconds};
use mictlan::cluster::certify::Window;
use mictlan::id::{Position, SessionId};
use mictlan::meta::inode::Stamp;
use mictlan::meta::namespace::{Op, SetXattr, plan};
use mictlan::meta::write::WriteSet;
use proptest::prelude::*;

/// A certified operation at its place in the log.
struct Commit {
    session: SessionId,
    now: Stamp,
    op: Op,
    writes: WriteSet,
}

struct Session {
    id: SessionId,
    /// How much of the log it has applied.
    base: usize,
}

impl Session {
    /// The log up to its base, and its own operations after it.
    fn view(&self, log: &[Commit]) -> Map {
        let mut map = founded();
        for (i, commit) in log.iter().enumerate() {
            if i < self.base || commit.session == self.id {
                apply(&mut map, &commit.writes);
            }
        }
        map
    }

    fn step(&self, now: Stamp, op: &Op, log: &mut Vec<Commit>, window: &mut Window) {
        let Ok(planned) = plan(&self.view(log), &env(now), op) else { return };
        assert_covered(&planned, self.id.0);
        let tags = planned.facts.tags(&TAG_KEY).expect("few tags");
        if window.certify(self.id, Position(self.base as u64), &tags).is_ok() {
            let (session, op, writes) = (self.id, op.clone(), planned.writes);
            log.push(Commit { session, now, op, writes });
            window.record(self.id, Position(log.len() as u64), &tags);
        }
    }
}

/// A write does not read attributes, so that a chmod elsewhere never refuses it; a capability set
/// at the very same time may outlive it.
fn sets_capability(op: &Op) -> bool {
    matches!(op, Op::SetXattr(SetXattr { name, .. }) if **name == *b"security.capability")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn what_two_sessions_commit_equals_a_serial_order(
        founding in histories(1, 2, 25),
        first in histories(1, 2, 25),
        second in histories(2, 2, 25),
        turns in prop::collection::vec((any::<bool>(), 0..4u8), 50),
    ) {
        let mut log = Vec::new();
        let mut window = Window::starting_at(Position(0));
        let mut sessions = [1, 2].map(|id| Session { id: SessionId(id), base: 0 });
        // Numbers of a session's block are used once: the second half of its operations goes on.
        let made = founding.iter().filter(|op| matches!(op, Op::Make(_))).count() as u64;
        let first = first.into_iter().map(|mut op| {
            if let Op::Make(make) = &mut op {
                make.ino.0 += made;
            }
            op
        });
        for (i, op) in founding.iter().enumerate() {
            let session = Session { id: SessionId(1), base: log.len() };
            session.step(seconds(i as i64), op, &mut log, &mut window);
        }
        for session in &mut sessions {
            session.base = log.len();
        }
        let mut queues: [Vec<Op>; 2] = [first.rev().collect(), second.into_iter().rev().collect()];
        for (i, (which, pull)) in turns.into_iter().enumerate() {
            let session = &mut sessions[usize::from(which)];
            if pull == 0 {
                session.base = log.len();
            }
            let Some(op) = queues[usize::from(which)].pop() else { continue };
            if !sets_capability(&op) {
                session.step(seconds(1_000 + i as i64), &op, &mut log, &mut window);
            }
        }
        let (mut committed, mut serial) = (founded(), founded());
        for commit in &log {
            apply(&mut committed, &commit.writes);
            let planned = plan(&serial, &env(commit.now), &commit.op);
            let planned = planned.expect("what was certified is allowed in this order");
            apply(&mut serial, &planned.writes);
            prop_assert_eq!(&committed, &serial, "after {:?}", commit.op);
        }
    }
}
