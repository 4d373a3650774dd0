//! Whether a commit changed an inode, and whether what it made of it is what is there.
//!
//! Owns: which tags a commit that changes an inode has, what of a payload counts as its change.
//! Never: reads the log, or asks for times: those of a file are whatever its writer said.
//! Invariant: by the rules of [`crate::meta::cover`] alone. A commit that changed the inode and is
//! not void is marked, says so, and as long as no later one did, what it left is there.

use crate::id::Ino;
use crate::meta::inode::{Inode, InodeMerge};
use crate::meta::key::{Key, Span};
use crate::meta::tag::{Fact, Tag, TagList};
use crate::meta::value::Value;
use crate::meta::write::{Change, Merge, WriteSet};

/// An inode at one place of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    pub ino: Ino,
    pub inode: Inode,
}

/// The tags by which a commit may be known, under the keys of one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks([Tag; 5]);

impl Marks {
    /// Whether the commit of these tags may have changed the inode.
    pub fn are_among(&self, tags: &TagList) -> bool {
        self.0.iter().any(|tag| tags.is_written(*tag) || tags.is_added(*tag))
    }
}

impl Subject {
    pub fn marks(&self, tag_key: &[u8; 32]) -> Marks {
        let ino = self.ino;
        let facts = [
            Fact::Data(ino),
            Fact::Children(ino),
            Fact::Attr(ino),
            Fact::Links(ino),
            // Where it begins nothing of its own is tagged, but the directory that its name is in;
            // and had it moved to another one since, that would be a later change.
            Fact::Children(self.inode.home),
        ];
        Marks(facts.map(|fact| fact.tag(tag_key)))
    }

    /// Whether what `writes` makes of the inode, if it is not void, is what is there.
    pub fn is_left_by(&self, writes: &WriteSet) -> bool {
        match writes.get(&Key::Inode(self.ino).encode()) {
            None => true,
            Some(Change::Put(value)) => matches!(value, Value::Inode(put) if *put == self.inode),
            Some(Change::Merge(Merge::Inode(merge))) => {
                // What is added cannot be told from its sum; all else is there, or was not set.
                let mut after = self.inode.clone();
                InodeMerge { bytes: 0, nlink: 0, ..merge.clone() }.apply(&mut after);
                after == self.inode
            }
            Some(_) => false,
        }
    }
}

/// Whether `writes` changes the inode: itself, its extents or attributes, or what a directory
/// holds.
pub fn changes(writes: &WriteSet, ino: Ino) -> bool {
    let spans = [Span::extents_from(ino, 0), Span::xattrs(ino), Span::children(ino)];
    let within = |span: &Span| {
        let mut ranges = writes.ranges();
        writes.changes_in(span.from(), span.to()).next().is_some()
            || ranges.any(|(from, to)| from < span.to() && span.from() < to)
    };
    writes.get(&Key::Inode(ino).encode()).is_some() || spans.iter().any(within)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Name;
    use crate::meta::cover::covered;
    use crate::meta::inode::Stamp;
    use crate::meta::inode::tests::plain_file;
    use crate::meta::tag::Facts;
    use crate::meta::write::tests::{built, steps, write_sets};
    use proptest::prelude::*;

    const KEY: [u8; 32] = [9; 32];
    const INOS: [Ino; 3] = [Ino(1), Ino(1 << 32 | 1), Ino(1 << 32 | 2)];

    fn inode() -> Inode {
        let at = Stamp { secs: 5, nanos: 0 };
        Inode { atime: at, mtime: at, ctime: at, btime: at, home: Ino(77), ..plain_file() }
    }

    fn subject(ino: Ino) -> Subject {
        Subject { ino, inode: inode() }
    }

    /// Whatever can be said of the inodes of these tests, but what marks the one.
    fn all_but_the_marks_of(ino: Ino) -> TagList {
        let of = |ino| {
            let buckets = (0..9).map(move |bucket| Fact::Bucket(ino, bucket));
            let rest = [Fact::Data(ino), Fact::Children(ino), Fact::Attr(ino), Fact::Links(ino)];
            buckets.chain(rest).chain([Fact::Exists(ino)])
        };
        let marks = subject(ino).marks(&KEY);
        let unmarked = |fact: &Fact| !marks.0.contains(&fact.tag(&KEY));
        let writes = INOS.into_iter().flat_map(of).filter(unmarked).collect();
        Facts { writes, ..Facts::default() }.tags(&KEY).expect("few")
    }

    proptest! {
        #[test]
        fn what_is_not_marked_changes_no_inode_that_is_there(step in steps()) {
            let writes = built(&[step]);
            for ino in INOS.into_iter().filter(|ino| changes(&writes, *ino)) {
                let tags = all_but_the_marks_of(ino);
                let covered = covered(&writes, &tags, &KEY, |_| false);
                prop_assert!(covered.is_err(), "{ino:?} is changed by what is not marked");
            }
        }

        #[test]
        fn what_a_commit_left_is_there_until_the_next(
            before in write_sets(), last in write_sets(),
        ) {
            for ino in INOS {
                let key = Key::Inode(ino).encode();
                let begun = before.apply(&key, Some(Value::Inode(inode())));
                let after = last.apply(&key, begun);
                if let Some(Value::Inode(inode)) = after {
                    let subject = Subject { ino, inode };
                    prop_assert!(subject.is_left_by(&last));
                }
            }
        }
    }

    #[test]
    fn every_fact_that_is_enough_for_a_change_marks_it() {
        let ino = INOS[1];
        let nothing = InodeMerge::default;
        let enough = [
            (Fact::Data(ino), InodeMerge { bytes: 1, ..nothing() }),
            (Fact::Children(ino), InodeMerge { nlink: 1, ..nothing() }),
            (Fact::Attr(ino), InodeMerge { uid: Some(1), ..nothing() }),
            (Fact::Links(ino), InodeMerge { home: Some(Ino(1)), ..nothing() }),
        ];
        for (fact, merge) in enough {
            let (mut writes, mut facts) = (WriteSet::new(), Facts::default());
            writes.merge_inode(ino, merge);
            facts.write(fact.clone());
            let tags = facts.tags(&KEY).expect("one");
            assert_eq!(covered(&writes, &tags, &KEY, |_| false), Ok(()), "{fact:?}");
            assert!(changes(&writes, ino) && subject(ino).marks(&KEY).are_among(&tags), "{fact:?}");
            assert!(!subject(INOS[2]).marks(&KEY).are_among(&tags), "{fact:?} of another");
        }
    }

    #[test]
    fn an_inode_that_begins_is_marked_by_the_directory_of_its_name() {
        let (ino, dir) = (INOS[1], Ino(77));
        let mut facts = Facts::default();
        facts.write(Fact::Name(dir, Name::parse(b"a").expect("good"))).add(Fact::Children(dir));
        let tags = facts.tags(&KEY).expect("few");
        assert!(subject(ino).marks(&KEY).are_among(&tags));
        let mut moved = subject(ino);
        moved.inode.home = Ino(78);
        assert!(!moved.marks(&KEY).are_among(&tags), "it came to where it is by a later commit");
        assert!(!subject(ino).marks(&[8; 32]).are_among(&tags), "of another epoch");
    }

    #[test]
    fn what_would_have_left_something_else_did_not_happen() {
        let mut writes = WriteSet::new();
        let early = Stamp { secs: 4, nanos: 0 };
        writes.merge_inode(INOS[1], InodeMerge { ctime: Some(early), ..InodeMerge::default() });
        assert!(changes(&writes, INOS[1]) && !changes(&writes, INOS[2]));
        assert!(!subject(INOS[1]).is_left_by(&writes));
        let mut writes = WriteSet::new();
        writes.put(Key::Inode(INOS[1]), Value::Inode(Inode { size: 1, ..inode() }));
        assert!(!subject(INOS[1]).is_left_by(&writes));
    }
}
