//! The view against a plain map of all commits with the local operations done after them.

use super::*;
use crate::meta::key::Span;
use crate::meta::key::tests::keys;
use crate::meta::tree::tests::Disk;
use crate::meta::write::tests::{Model, apply, write_sets};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Event {
    Apply(WriteSet),
    Push(WriteSet),
    /// So many of the local operations.
    Commit(usize),
    Drop(usize),
    Freeze,
    Rebase,
    Thaw,
    /// What is to be spilled is taken, and put into a file.
    Take,
    Spill,
    Adopt,
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => write_sets().prop_map(Event::Apply),
        4 => write_sets().prop_map(Event::Push),
        2 => (0..4usize).prop_map(Event::Commit),
        1 => (0..3usize).prop_map(Event::Drop),
        1 => Just(Event::Freeze),
        2 => Just(Event::Rebase),
        1 => Just(Event::Thaw),
        2 => Just(Event::Take),
        2 => Just(Event::Spill),
        1 => Just(Event::Adopt),
    ]
}

/// What the view should be, and what it needs beside.
struct World {
    disk: Disk,
    view: View,
    frozen: Option<Frozen>,
    taken: Option<Arc<WriteSet>>,
    committed: Model,
    log: Vec<WriteSet>,
    local: Vec<(u64, WriteSet)>,
    seq: u64,
}

impl World {
    fn new() -> Self {
        let mut disk = Disk::new();
        let tree = disk.build(&Model::new());
        let view = View::new(tree, Position(0));
        let (committed, log, local) = (Model::new(), vec![], vec![]);
        Self { disk, view, frozen: None, taken: None, committed, log, local, seq: 0 }
    }

    fn next(&self) -> Position {
        Position(self.view.position().0 + 1)
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Apply(writes) => {
                self.view.apply(self.next(), &writes);
                apply(&mut self.committed, &writes);
                self.log.push(writes);
            }
            Event::Push(writes) => {
                self.seq += 1;
                self.view.push_local(self.seq, Arc::new(writes.clone()));
                self.local.push((self.seq, writes));
            }
            Event::Commit(count) => self.commit(count),
            Event::Drop(kept) => {
                let gone = self.local.split_off(kept.min(self.local.len()));
                let from = gone.first().map_or(self.seq + 1, |(seq, _)| *seq);
                let dropped = self.view.drop_local(from);
                assert_eq!(dropped, gone.iter().map(|(seq, _)| *seq).collect::<Vec<_>>());
            }
            Event::Freeze if self.frozen.is_none() => self.frozen = Some(self.view.freeze()),
            Event::Rebase => self.rebase(),
            Event::Thaw if self.frozen.take().is_some() => self.view.thaw(),
            Event::Freeze | Event::Thaw => (),
            Event::Take => self.taken = self.view.spillable(),
            Event::Spill => self.spill(),
            Event::Adopt => {
                let tree = self.disk.rebuild(&Model::new());
                let mut fresh = View::new(tree, Position(0));
                for (i, writes) in self.log.iter().enumerate() {
                    fresh.apply(Position(i as u64 + 1), writes);
                }
                self.view.adopt(fresh);
                self.frozen = None;
            }
        }
    }

    /// Whatever happened since it was taken.
    fn spill(&mut self) {
        let Some(set) = self.taken.take() else { return };
        self.disk.handed.clear();
        let (keys, cache, disk) =
            (self.disk.keys.clone(), self.view.tree().cache().clone(), &mut self.disk);
        let run = Run::write(&set, &keys, cache, Arc::new(()), &mut |new| disk.keep(new));
        let (before, behind) = (self.view.overlay_bytes(), self.view.behind());
        self.view.spilled(&set, run.expect("infallible"));
        assert!(self.view.overlay_bytes() <= before, "memory is given back");
        assert_eq!(self.view.behind(), behind, "the tree is as far behind as before");
    }

    fn commit(&mut self, count: usize) {
        let rest = self.local.split_off(count.min(self.local.len()));
        let done = std::mem::replace(&mut self.local, rest);
        let up_to = done.last().map_or(0, |(seq, _)| *seq);
        let mut commit = WriteSet::new();
        for (_, writes) in &done {
            apply(&mut self.committed, writes);
            commit.then(writes);
        }
        self.view.commit_local(up_to, self.next());
        self.log.push(commit);
    }

    fn rebase(&mut self) {
        let Some(frozen) = self.frozen.take() else { return };
        let mut tree = frozen.base.clone();
        for i in 0..frozen.parts() {
            let part = self.disk.ask(|| frozen.part(i));
            tree = self.disk.update(&tree, &part);
        }
        self.view.rebase(tree.root(), frozen.position);
    }

    fn check(&self, key: &Key, span: &Span) {
        let mut model = self.committed.clone();
        self.local.iter().for_each(|(_, writes)| apply(&mut model, writes));
        let value = self.disk.ask(|| self.view.get(key));
        assert_eq!(value.as_ref(), model.get(&key.encode().to_vec()));
        let committed = self.disk.ask(|| self.view.committed(key));
        assert_eq!(committed.as_ref(), self.committed.get(&key.encode().to_vec()));
        for (span, limit) in [(span, 3), (&Span::all(), usize::MAX)] {
            let found = self.disk.ask(|| self.view.range(span.from(), span.to(), limit));
            let inside = model.iter().filter(|(key, _)| span.contains(key)).take(limit);
            let inside = inside.map(|(k, v)| (Key::decode(k).expect("good"), v.clone()));
            assert_eq!(found, inside.collect::<Vec<_>>());
        }
        for (key, value) in &model {
            let key = Key::decode(key).expect("good");
            assert_eq!(self.disk.ask(|| self.view.get(&key)).as_ref(), Some(value));
        }
    }
}

proptest! {
    #[test]
    fn the_view_is_all_commits_and_then_what_is_local(
        steps in prop::collection::vec((events(), keys()), 1..25),
    ) {
        let mut world = World::new();
        for (event, key) in steps {
            world.step(event);
            let span = Span { from: key.encode().to_vec(), to: vec![b'x'] };
            world.check(&key, &span);
        }
    }
}

#[test]
fn memory_is_given_back_when_nothing_is_laid_over_the_tree() {
    let mut world = World::new();
    let before = world.view.overlay_bytes();
    assert_eq!(before, 0);
    let mut writes = WriteSet::new();
    writes.put(Key::Counter(1), Value::Counter(5));
    world.step(Event::Push(writes));
    assert!(world.view.overlay_bytes() > 0);
    world.step(Event::Commit(1));
    assert_eq!(world.view.overlay_bytes(), world.view.spillable_bytes());
    world.step(Event::Freeze);
    assert!(world.view.overlay_bytes() > 0);
    world.step(Event::Rebase);
    assert_eq!(world.view.overlay_bytes(), 0);
    world.check(&Key::Counter(1), &Span::all());
}
