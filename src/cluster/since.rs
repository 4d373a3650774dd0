//! What others committed since the operations of an ended session were planned.
//!
//! Owns: the rule by which such an operation, done now, would undo what another session did after
//! its base; and which inodes of its session are kept apart for that.
//! Never: reads the log; the driver shows it every commit since the oldest base, in any order.
//! Invariant: nothing that another lineage committed after an operation's base is overwritten or
//! removed by it. What is not remembered counts as changed.

use crate::id::{Epoch, Ino, Position, SessionId};
use crate::meta::tag::{Fact, Facts, Tag, TagList};
use std::collections::{HashMap, HashSet};

/// Tags that are remembered: 8 MiB.
const TAGS_MAX: usize = 1 << 20;

/// The commits that were shown, whoever made them.
#[derive(Debug, Default)]
pub struct Shown {
    commits: Vec<Commit>,
    tags: usize,
    /// The newest that is not remembered.
    lost: Option<Position>,
}

#[derive(Debug)]
struct Commit {
    at: Position,
    session: SessionId,
    epoch: Epoch,
    tags: TagList,
}

impl Shown {
    pub fn add(&mut self, at: Position, session: SessionId, epoch: Epoch, tags: TagList) {
        if self.tags + tags.len() > TAGS_MAX {
            self.lost = self.lost.max(Some(at));
            return;
        }
        self.tags += tags.len();
        self.commits.push(Commit { at, session, epoch, tags });
    }
}

/// When others last used a fact.
#[derive(Debug, Clone, Copy, Default)]
struct Last {
    written: Option<Position>,
    added: Option<Position>,
}

/// One ended session's side of it.
#[derive(Debug)]
pub struct Since {
    /// Itself, and those that went on in its place.
    lineage: HashSet<SessionId>,
    used: HashMap<Epoch, HashMap<Tag, Last>>,
    taken_in: usize,
    /// Inodes with an operation on their bytes that was not done, because of which record: what
    /// came after it is not done either.
    apart: HashMap<Ino, Position>,
}

/// What an operation is about, where that is one inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    Bytes(Ino),
    Attributes(Ino),
    Names,
}

impl Since {
    pub fn of(lineage: HashSet<SessionId>) -> Self {
        Self { lineage, used: HashMap::new(), taken_in: 0, apart: HashMap::new() }
    }

    fn take_in(&mut self, shown: &Shown) {
        for commit in &shown.commits[self.taken_in..] {
            if self.lineage.contains(&commit.session) {
                continue;
            }
            let used = self.used.entry(commit.epoch).or_default();
            let at = Some(commit.at);
            for tag in commit.tags.writes() {
                let last = used.entry(*tag).or_default();
                last.written = last.written.max(at);
            }
            for tag in commit.tags.adds() {
                let last = used.entry(*tag).or_default();
                last.added = last.added.max(at);
            }
        }
        self.taken_in = shown.commits.len();
    }

    /// The record that an operation with these facts, planned at `base`, would undo. Once that is
    /// so for the bytes of an inode, all that is about it is kept apart.
    pub fn undone<'k>(
        &mut self,
        shown: &Shown,
        facts: &Facts,
        base: Position,
        about: About,
        key: impl Fn(Epoch) -> Option<&'k [u8; 32]>,
    ) -> Option<Position> {
        self.take_in(shown);
        let (About::Bytes(ino) | About::Attributes(ino)) = about else {
            return self.newest(shown, facts, base, key);
        };
        if let Some(at) = self.apart.get(&ino) {
            return Some(*at);
        }
        let found = self.newest(shown, facts, base, key)?;
        if about == About::Bytes(ino) {
            self.apart.insert(ino, found);
        }
        Some(found)
    }

    fn newest<'k>(
        &self,
        shown: &Shown,
        facts: &Facts,
        base: Position,
        key: impl Fn(Epoch) -> Option<&'k [u8; 32]>,
    ) -> Option<Position> {
        let lost = shown.lost.filter(|at| *at > base);
        lost.or_else(|| {
            let later = self.used.iter().filter_map(|(epoch, used)| match key(*epoch) {
                Some(key) => newest(used, facts, key),
                // Whoever has no key of it cannot tell.
                None => used.values().filter_map(|last| last.written.max(last.added)).max(),
            });
            later.max().filter(|at| *at > base)
        })
    }
}

/// The newest commit that an operation with these facts would undo. What it relies on is looked at
/// again when it is planned, but for the bytes that it copies; and the same is true of the shape
/// of the tree.
fn newest(used: &HashMap<Tag, Last>, facts: &Facts, key: &[u8; 32]) -> Option<Position> {
    let last = |fact: &Fact| used.get(&fact.tag(key)).copied().unwrap_or_default();
    let either = |fact: &Fact| last(fact).written.max(last(fact).added);
    let writes = facts.writes.iter().filter(|fact| **fact != Fact::DirMove).filter_map(either);
    let copied = facts.reads.iter().filter(|fact| matches!(fact, Fact::Data(_)));
    let adds = facts.adds.iter().filter_map(|fact| last(fact).written);
    writes.chain(copied.filter_map(either)).chain(adds).max()
}

/// The same of one commit: a fact on which it meets an operation that was planned before.
pub fn clash(theirs: &TagList, facts: &Facts, key: &[u8; 32]) -> Option<Tag> {
    let written = |tag: &Tag| theirs.is_written(*tag);
    let either = |tag: &Tag| theirs.is_written(*tag) || theirs.is_added(*tag);
    let tag = |fact: &Fact| fact.tag(key);
    let mut writes = facts.writes.iter().filter(|fact| **fact != Fact::DirMove).map(tag);
    let mut adds = facts.adds.iter().map(tag);
    writes.find(either).or_else(|| adds.find(written))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Name;

    const KEYS: [[u8; 32]; 2] = [[1; 32], [2; 32]];

    fn key(epoch: Epoch) -> Option<&'static [u8; 32]> {
        KEYS.get(epoch.0 as usize - 1)
    }

    fn facts(change: impl Fn(&mut Facts)) -> Facts {
        let mut facts = Facts::default();
        change(&mut facts);
        facts
    }

    fn ranged(bucket: u64) -> Facts {
        facts(|facts| {
            facts.add(Fact::Data(Ino(7))).write(Fact::Bucket(Ino(7), bucket));
        })
    }

    fn whole() -> Facts {
        facts(|facts| {
            facts.write(Fact::Data(Ino(7)));
        })
    }

    fn shown(commits: &[(u64, u32, u32, Facts)]) -> Shown {
        let mut shown = Shown::default();
        for (at, session, epoch, facts) in commits {
            let key = key(Epoch(*epoch)).expect("one of two");
            let tags = facts.tags(key).expect("few");
            shown.add(Position(*at), SessionId(*session), Epoch(*epoch), tags);
        }
        shown
    }

    fn since() -> Since {
        Since::of(HashSet::from([SessionId(1), SessionId(2)]))
    }

    #[test]
    fn what_another_changed_after_the_base_is_not_undone() {
        let name = || Fact::Name(Ino(1), Name::parse(b"n").expect("good"));
        let renamed = facts(|facts| {
            facts.write(name());
        });
        let chmod = facts(|facts| {
            facts.write(Fact::Attr(Ino(7)));
        });
        let copied = facts(|facts| {
            facts.read(Fact::Data(Ino(7)));
        });
        for (theirs, mine, undone) in [
            (ranged(0), ranged(0), true),
            (ranged(0), ranged(1), false),
            (ranged(0), whole(), true),
            (whole(), ranged(1), true),
            (ranged(0), chmod.clone(), false),
            (chmod.clone(), chmod, true),
            (renamed.clone(), renamed.clone(), true),
            (renamed, ranged(0), false),
            (whole(), copied.clone(), true),
            (copied, whole(), false),
        ] {
            for epoch in [1, 2] {
                let shown = shown(&[(20, 3, epoch, theirs.clone())]);
                let ask = |base| since().undone(&shown, &mine, Position(base), About::Names, key);
                assert_eq!(ask(19), undone.then_some(Position(20)), "{theirs:?} {mine:?}");
                assert_eq!(ask(20), None, "it was seen");
            }
        }
    }

    #[test]
    fn what_its_own_line_did_counts_for_nothing() {
        let shown = shown(&[(20, 1, 1, whole()), (21, 2, 1, whole())]);
        assert_eq!(since().undone(&shown, &whole(), Position(9), About::Names, key), None);
    }

    #[test]
    fn what_comes_after_something_that_was_kept_is_kept_with_it() {
        let mut shown = shown(&[(20, 3, 1, ranged(5))]);
        let mut since = since();
        let mut ask = |shown: &Shown, facts, of| {
            since.undone(shown, &facts, Position(9), About::Bytes(Ino(of)), key).is_some()
        };
        assert!(!ask(&shown, ranged(0), 7), "in another place");
        assert!(ask(&shown, whole(), 7));
        assert!(ask(&shown, ranged(0), 7), "it was cut off before");
        assert!(!ask(&shown, ranged(0), 8));
        shown.add(Position(30), SessionId(3), Epoch(1), whole().tags(&KEYS[0]).expect("one"));
        assert!(ask(&shown, whole(), 9), "shown later");
    }

    #[test]
    fn what_is_not_remembered_or_cannot_be_read_counts_as_changed() {
        let mut shown = shown(&[(20, 3, 1, ranged(5))]);
        let nobody = |_: Epoch| None;
        let ask = |shown: &Shown, base| {
            since().undone(shown, &whole(), Position(base), About::Names, nobody).is_some()
        };
        assert_eq!((ask(&shown, 19), ask(&shown, 20)), (true, false));
        shown.tags = TAGS_MAX;
        shown.add(Position(30), SessionId(3), Epoch(1), whole().tags(&KEYS[0]).expect("one"));
        let other = facts(|facts| {
            facts.write(Fact::Attr(Ino(9)));
        });
        let ask = |base| since().undone(&shown, &other, Position(base), About::Names, key);
        assert_eq!((ask(29), ask(30)), (Some(Position(30)), None));
    }
}
