//! Operations that become one commit.
//!
//! Owns: what they write together, and which of their facts others could have one about too.
//! Invariant: of plans that are covered, each by itself, the whole is (`cover`).

use super::key::Key;
use super::tag::{Fact, Facts};
use super::write::WriteSet;
use crate::id::Ino;
use std::collections::HashSet;

#[derive(Debug, Clone, Default)]
pub struct Gathered {
    pub writes: WriteSet,
    pub facts: Facts,
    made: HashSet<Ino>,
}

impl Gathered {
    /// Whether an inode begins here, and does not end here as well.
    pub fn begins(&self, ino: Ino) -> bool {
        self.made.contains(&ino)
    }

    pub fn facts_count(&self) -> usize {
        self.facts.reads.len() + self.facts.writes.len() + self.facts.adds.len()
    }

    /// Adds one operation, and the inode that it makes. Facts about inodes that begin here bind
    /// nobody else; but of one that ends here as well, all that is left is its end, which nobody can
    /// tell from that of an older inode, and which the void rule therefore wants covered. It wants
    /// that for an orphan too, whether or not the inode begins here.
    pub fn add(&mut self, writes: &WriteSet, facts: Facts, made: Option<Ino>) {
        self.made.extend(made);
        for key in writes.deletes() {
            if let Key::Inode(ino) = key {
                self.made.remove(&ino);
            }
        }
        let orphan = |ino: Ino| writes.get(&Key::Orphan(ino).encode()).is_some();
        let free = |fact: &Fact| match fact {
            Fact::Links(ino) => self.made.contains(ino) && !orphan(*ino),
            Fact::Data(ino) | Fact::Bucket(ino, _) | Fact::Attr(ino) => self.made.contains(ino),
            // The void rule wants the names of a new directory covered too.
            Fact::Exists(_) | Fact::Children(_) | Fact::Name(..) | Fact::DirMove => false,
        };
        let Facts { reads, writes: written, adds } = facts;
        self.facts.reads.extend(reads.into_iter().filter(|fact| !free(fact)));
        self.facts.writes.extend(written.into_iter().filter(|fact| !free(fact)));
        self.facts.adds.extend(adds.into_iter().filter(|fact| !free(fact)));
        self.writes.then(writes);
    }
}
