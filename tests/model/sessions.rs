//! Two sessions that see each other late: what certification lets pass is some serial order.

use super::ops::{Alphabet, histories};
use super::reference::{ACCESS, acl_bytes};
use super::world::{Map, TAG_KEY, apply, assert_covered, env, founded, seconds};
use mictlan::cluster::certify::Window;
use mictlan::file::{BUCKET, Extent};
use mictlan::id::{ChunkId, Ino, Name, Position, SessionId};
use mictlan::meta::inode::{FileKind, Stamp};
use mictlan::meta::namespace::*;
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
        if planned.writes.is_empty() {
            // It is a read, of what the session sees; there is nothing to commit.
            return;
        }
        assert_covered(&planned, self.id.0);
        let tags = planned.facts.tags(&TAG_KEY).expect("few tags");
        if window.certify(self.id, Position(self.base as u64), &tags).is_ok() {
            let (session, op, writes) = (self.id, op.clone(), planned.writes);
            log.push(Commit { session, now, op, writes });
            window.record(self.id, Position(log.len() as u64), &tags);
        }
    }
}

/// What both sessions find: directories `a` (1), `b` (2), `a/a` (4), files `c` (3), `a/b` (5).
fn beginning() -> Vec<Op> {
    let tree = [
        (Ino::ROOT, "a", FileKind::Dir),
        (Ino::ROOT, "b", FileKind::Dir),
        (Ino::ROOT, "c", FileKind::File),
        (ino(1), "a", FileKind::Dir),
        (ino(1), "b", FileKind::File),
    ];
    let make = |(i, (dir, name, kind)): (usize, (Ino, &str, FileKind))| {
        let at = place(dir, name);
        let (mode, umask, uid, gid, rdev) = (0o755, 0, 0, 0, 0);
        let (ino, target) = (ino(i as u32 + 1), [].into());
        Op::Make(Make { at, ino, kind, mode, umask, uid, gid, rdev, target })
    };
    tree.into_iter().enumerate().map(make).collect()
}

fn ino(n: u32) -> Ino {
    Ino::of(SessionId(1), n)
}

fn work(session: u32) -> impl Strategy<Value = Vec<Op>> {
    let dirs = vec![Ino::ROOT, ino(1), ino(2), ino(4)];
    let inodes = vec![ino(1), ino(2), ino(3), ino(5)];
    histories(Alphabet { dirs, inodes }, Ino::of(SessionId(session), 10), 8)
}

/// Whether two sessions may do these at the same time, neither seeing the other.
fn at_once(before: &[Op], first: &Op, second: &Op) -> bool {
    let (mut log, mut window) = (Vec::new(), Window::starting_at(Position(0)));
    for op in beginning().iter().chain(before) {
        let founder = Session { id: SessionId(1), base: log.len() };
        founder.step(seconds(1), op, &mut log, &mut window);
    }
    let base = log.len();
    for (id, op) in [(1, first), (2, second)] {
        Session { id: SessionId(id), base }.step(seconds(2), op, &mut log, &mut window);
    }
    assert!(log.len() > base, "the first comes through");
    log.len() == base + 2
}

fn place(dir: Ino, name: &str) -> Place {
    Place { dir, name: Name::parse(name.as_bytes()).expect("a letter") }
}

fn rename(from: Place, to: Place) -> Op {
    Op::Rename { from, to, mode: RenameMode::Replace }
}

/// One byte in a bucket of the file `c`.
fn write(bucket: u64) -> Op {
    let offset = bucket * BUCKET;
    let extent = Extent { offset, len: 1, chunk: ChunkId([1; 32]), at: 0, packed: None };
    let (extents, mtime) = (vec![extent], seconds(3));
    Op::Write(Write { ino: ino(3), extents, end: offset + 1, mtime, kill_priv: true })
}

fn append() -> Op {
    let extent = Extent { offset: 0, len: 1, chunk: ChunkId([1; 32]), at: 0, packed: None };
    let (extents, mtime) = (vec![extent], seconds(3));
    Op::Append(Append { ino: ino(3), extents, mtime, kill_priv: false })
}

#[test]
fn of_two_directories_moved_into_each_other_one_stays() {
    let one = rename(place(Ino::ROOT, "a"), place(ino(2), "x"));
    let other = rename(place(Ino::ROOT, "b"), place(ino(4), "x"));
    assert!(!at_once(&[], &one, &other));
    let file = rename(place(Ino::ROOT, "c"), place(ino(4), "x"));
    assert!(at_once(&[], &one, &file), "a file closes no circle");
}

#[test]
fn writes_to_different_buckets_pass_each_other() {
    assert!(at_once(&[], &write(0), &write(1)));
    assert!(!at_once(&[], &write(1), &write(1)));
    assert!(!at_once(&[], &append(), &append()), "each has a place of its own");
    assert!(!at_once(&[], &write(0), &append()));
    let cut = Op::SetAttr(SetAttr { size: Some(0), ..SetAttr::of(ino(3)) });
    assert!(!at_once(&[], &write(1), &cut));
    let chmod = Op::SetAttr(SetAttr { mode: Some(0o600), ..SetAttr::of(ino(3)) });
    assert!(at_once(&[], &write(1), &chmod));
    let (from, to, len) = (ino(3), ino(5), 10);
    let copy = Copy { from, from_offset: 0, to, to_offset: 0, len, kill_priv: false };
    assert!(!at_once(&[write(0)], &write(1), &Op::Copy(copy)), "the source is one version");
}

#[test]
fn an_acl_does_not_bring_back_what_a_write_takes_away() {
    let set = |mode| Op::SetAttr(SetAttr { mode: Some(mode), ..SetAttr::of(ino(3)) });
    let value = acl_bytes(&[(1, 7, !0), (4, 5, !0), (32, 5, !0)]).into();
    let (name, mode) = (ACCESS.into(), XattrMode::Any);
    let (privileged, kill_sgid) = (false, false);
    let acl = SetXattr { ino: ino(3), name, value, mode, privileged, kill_sgid };
    let acl = Op::SetXattr(acl);
    assert!(!at_once(&[set(0o4755)], &write(0), &acl));
    assert!(at_once(&[set(0o755)], &write(0), &acl));
}

#[test]
fn names_of_one_directory_pass_each_other() {
    let (x, y) = (place(ino(2), "x"), place(ino(2), "y"));
    let link = |to: &Place| Op::Link { ino: ino(3), to: to.clone() };
    let mkdir = |n, at: &Place| {
        let (ino, kind, target) = (ino(n), FileKind::Dir, [].into());
        let (mode, umask, uid, gid, rdev) = (0o755, 0, 0, 0, 0);
        Op::Make(Make { at: at.clone(), ino, kind, mode, umask, uid, gid, rdev, target })
    };
    assert!(at_once(&[], &mkdir(20, &x), &link(&y)));
    assert!(!at_once(&[], &mkdir(20, &x), &link(&x)), "one name");
    assert!(!at_once(&[], &link(&x), &link(&y)), "one inode's count");
    assert!(!at_once(&[], &link(&x), &Op::Rmdir(place(Ino::ROOT, "b"))));
    assert!(!at_once(&[], &link(&x), &Op::Unlink(place(Ino::ROOT, "c"))));
    assert!(!at_once(&[], &write(0), &Op::Unlink(place(Ino::ROOT, "c"))), "the last name");
}

/// A write does not read attributes, so that a chmod elsewhere never refuses it; a capability set
/// at the very same time may outlive it.
fn sets_capability(op: &Op) -> bool {
    matches!(op, Op::SetXattr(SetXattr { name, .. }) if **name == *b"security.capability")
}

/// An append of one chunk of its own, across a bucket's end.
fn append_chunk(which: u8, len: u32) -> Op {
    let extent = Extent { offset: 0, len, chunk: ChunkId([which; 32]), at: 0, packed: None };
    let extents = mictlan::file::split_at_buckets(extent);
    Op::Append(Append { ino: ino(3), extents, mtime: seconds(3), kill_priv: false })
}

proptest! {
    #[test]
    fn what_two_sessions_append_is_all_there_and_whole(
        turns in prop::collection::vec((any::<bool>(), any::<bool>(), 1..3_000_000u32), 1..40),
    ) {
        let (mut log, mut window) = (Vec::new(), Window::starting_at(Position(0)));
        for op in beginning() {
            let founder = Session { id: SessionId(1), base: log.len() };
            founder.step(seconds(1), &op, &mut log, &mut window);
        }
        let mut sessions = [1, 2].map(|id| Session { id: SessionId(id), base: log.len() });
        for (chunk, (which, sees, len)) in turns.iter().enumerate() {
            let session = &mut sessions[usize::from(*which)];
            if *sees {
                session.base = log.len();
            }
            let (op, before) = (append_chunk(chunk as u8, *len), log.len());
            session.step(seconds(2), &op, &mut log, &mut window);
            if log.len() == before {
                // The other was first: what it did is seen, and the operation is planned again.
                session.base = log.len();
                session.step(seconds(2), &op, &mut log, &mut window);
            }
        }
        let mut map = founded();
        log.iter().for_each(|commit| apply(&mut map, &commit.writes));
        let extents = read::extents(&map, ino(3), 0..u64::MAX, usize::MAX).expect("a file");
        let mut end = 0;
        let mut whole: Vec<(u8, u32)> = Vec::new();
        for extent in &extents {
            prop_assert_eq!(extent.offset, end, "no hole, no overlap");
            end = extent.end();
            match whole.last_mut() {
                Some((chunk, len)) if *chunk == extent.chunk.0[0] => {
                    prop_assert_eq!(extent.at, *len);
                    *len += extent.len;
                }
                _ => whole.push((extent.chunk.0[0], extent.len)),
            }
        }
        let wanted = turns.iter().enumerate().map(|(chunk, (_, _, len))| (chunk as u8, *len));
        prop_assert_eq!(whole, wanted.collect::<Vec<_>>());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn what_two_sessions_commit_equals_a_serial_order(
        first in work(1),
        second in work(2),
        turns in prop::collection::vec((any::<bool>(), 0..8u8), 24),
    ) {
        let (mut log, mut window) = (Vec::new(), Window::starting_at(Position(0)));
        for op in beginning() {
            let founder = Session { id: SessionId(1), base: log.len() };
            founder.step(seconds(1), &op, &mut log, &mut window);
        }
        let mut sessions = [1, 2].map(|id| Session { id: SessionId(id), base: log.len() });
        let mut left = [first.into_iter(), second.into_iter()];
        for (i, (which, pull)) in turns.into_iter().enumerate() {
            let session = &mut sessions[usize::from(which)];
            if pull == 0 {
                session.base = log.len();
            }
            match left[usize::from(which)].next() {
                Some(op) if !sets_capability(&op) => {
                    session.step(seconds(1_000 + i as i64), &op, &mut log, &mut window);
                }
                _ => {}
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
