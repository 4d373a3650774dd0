//! What a commit relied on and changed, as facts and as the tags that a sequencer sees.
//!
//! Owns: the facts, their keyed hashes, and the tag list that travels with a commit.
//! Never: decides a conflict; `cluster::certify` does, over tags alone.
//! Invariant: a tag list holds at most [`TAGS_MAX`] tags, sorted, each once a list; what is
//! written is not read or added beside (a write conflicts with whatever they conflict with).
//!
//! | fact | who reads, writes, adds |
//! |---|---|
//! | `Name(dir, n)` | create, link, unlink, rename (both names) write; a failed lookup that was relied on reads |
//! | `Exists(dir)` | insertions read; rmdir and the end of an inode write |
//! | `Children(dir)` | insertions and removals add (covers the parent's times and link count); an emptiness check reads |
//! | `Data(ino)` | a ranged write adds (covers size and times); truncate, append, punch, last unlink write; a copy source reads |
//! | `Bucket(ino, b)` | a ranged write writes each 1 MiB bucket that it touches |
//! | `Attr(ino)` | setattr and setxattr write; settings of the volume are the root's |
//! | `Links(ino)` | link, unlink, and a rename to another directory write |
//! | `DirMove` | a rename of a directory to another directory reads and writes |
//!
//! What each change *needs* to have said is in [`crate::meta::cover`].

use crate::codec::{DecodeError, Reader, Writer};
use crate::file::BUCKET;
use crate::hash;
use crate::id::{Ino, Name};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ops::Range;

/// A commit's most; larger work is split between operations.
pub const TAGS_MAX: usize = 4_096;
const VERSION: u8 = 1;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Fact {
    /// What a name in a directory stands for.
    Name(Ino, Name),
    /// That a directory (or any inode, when it ends) is there.
    Exists(Ino),
    /// The set of a directory's names, and its times and link count.
    Children(Ino),
    /// The whole content of a file, with its size and times.
    Data(Ino),
    /// One bucket of 1 MiB of a file: `offset / BUCKET`.
    Bucket(Ino, u64),
    /// Owner, mode, times set by hand, extended attributes.
    Attr(Ino),
    /// Link count and home.
    Links(Ino),
    /// The shape of the tree of directories.
    DirMove,
}

impl Fact {
    /// Eight bytes of a keyed hash; keys are of the epoch, so tags of two epochs never meet.
    pub fn tag(&self, tag_key: &[u8; 32]) -> Tag {
        let number = |n: u64| n.to_le_bytes();
        let digest = match self {
            Self::Name(dir, name) => {
                hash::keyed(tag_key, &[b"name", &number(dir.0), name.as_bytes()])
            }
            Self::Exists(dir) => hash::keyed(tag_key, &[b"exists", &number(dir.0)]),
            Self::Children(dir) => hash::keyed(tag_key, &[b"children", &number(dir.0)]),
            Self::Data(ino) => hash::keyed(tag_key, &[b"data", &number(ino.0)]),
            Self::Bucket(ino, bucket) => {
                hash::keyed(tag_key, &[b"bucket", &number(ino.0), &number(*bucket)])
            }
            Self::Attr(ino) => hash::keyed(tag_key, &[b"attr", &number(ino.0)]),
            Self::Links(ino) => hash::keyed(tag_key, &[b"links", &number(ino.0)]),
            Self::DirMove => hash::keyed(tag_key, &[b"dirmove"]),
        };
        let mut tag = [0; 8];
        tag.copy_from_slice(&digest[..8]);
        Tag(tag)
    }
}

/// The facts of an operation, or of several that become one commit.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Facts {
    pub reads: BTreeSet<Fact>,
    pub writes: BTreeSet<Fact>,
    pub adds: BTreeSet<Fact>,
}

impl Facts {
    pub fn read(&mut self, fact: Fact) -> &mut Self {
        self.reads.insert(fact);
        self
    }

    pub fn write(&mut self, fact: Fact) -> &mut Self {
        self.writes.insert(fact);
        self
    }

    pub fn add(&mut self, fact: Fact) -> &mut Self {
        self.adds.insert(fact);
        self
    }

    /// Bytes take the place of those in `range` of a file.
    pub fn write_range(&mut self, ino: Ino, range: Range<u64>) {
        self.add(Fact::Data(ino));
        let last = range.end.saturating_sub(1) / BUCKET;
        self.writes.extend((range.start / BUCKET..=last).map(|bucket| Fact::Bucket(ino, bucket)));
    }

    pub fn merge(&mut self, other: Self) {
        self.reads.extend(other.reads);
        self.writes.extend(other.writes);
        self.adds.extend(other.adds);
    }

    pub fn tags(&self, tag_key: &[u8; 32]) -> Result<TagList, TooManyTags> {
        let set = |facts: &BTreeSet<Fact>| facts.iter().map(|fact| fact.tag(tag_key)).collect();
        TagList::of(set(&self.reads), set(&self.writes), set(&self.adds))
    }
}

/// The keyed hash of a fact; whoever lacks the key learns only that two are equal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tag(pub [u8; 8]);

impl std::fmt::Debug for Tag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{count} tags, and a commit has at most {TAGS_MAX}")]
pub struct TooManyTags {
    pub count: usize,
}

/// The three lists that a sequencer certifies and an actor signs the hash of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TagList {
    reads: Vec<Tag>,
    writes: Vec<Tag>,
    adds: Vec<Tag>,
}

impl TagList {
    pub fn of(
        reads: BTreeSet<Tag>,
        writes: BTreeSet<Tag>,
        adds: BTreeSet<Tag>,
    ) -> Result<Self, TooManyTags> {
        let list = Self {
            reads: reads.difference(&writes).copied().collect(),
            adds: adds.difference(&writes).copied().collect(),
            writes: writes.into_iter().collect(),
        };
        match list.len() {
            0..=TAGS_MAX => Ok(list),
            count => Err(TooManyTags { count }),
        }
    }

    pub fn reads(&self) -> &[Tag] {
        &self.reads
    }

    pub fn writes(&self) -> &[Tag] {
        &self.writes
    }

    pub fn adds(&self) -> &[Tag] {
        &self.adds
    }

    /// Of all three lists.
    pub fn len(&self) -> usize {
        self.reads.len() + self.writes.len() + self.adds.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn is_written(&self, tag: Tag) -> bool {
        self.writes.binary_search(&tag).is_ok()
    }

    pub fn is_added(&self, tag: Tag) -> bool {
        self.adds.binary_search(&tag).is_ok()
    }

    /// The list of a commit that does what both do; `self` is left as it was if that is too much.
    pub fn merge(&mut self, other: &Self) -> Result<(), TooManyTags> {
        let set = |a: &[Tag], b: &[Tag]| a.iter().chain(b).copied().collect();
        let reads = set(&self.reads, &other.reads);
        let writes = set(&self.writes, &other.writes);
        *self = Self::of(reads, writes, set(&self.adds, &other.adds))?;
        Ok(())
    }

    /// `version 1 | reads u16 | writes u16 | adds u16 | 8 bytes a tag, in that order`
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::new();
        out.u8(VERSION);
        let lists = [&self.reads, &self.writes, &self.adds];
        for list in lists {
            out.u16(list.len() as u16);
        }
        for tag in lists.into_iter().flatten() {
            out.raw(&tag.0);
        }
        out.finish()
    }

    /// Strict: unsorted, doubled or needless tags are refused, and more than [`TAGS_MAX`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut input = Reader::new(bytes);
        match input.u8("tag list version")? {
            VERSION => (),
            other => return Err(DecodeError::Version(other)),
        }
        let mut counts = [0; 3];
        for count in &mut counts {
            *count = usize::from(input.u16("tag count")?);
        }
        if counts.iter().sum::<usize>() > TAGS_MAX {
            return Err(DecodeError::TooLarge("tag list"));
        }
        let mut lists = [vec![], vec![], vec![]];
        for (list, count) in lists.iter_mut().zip(counts) {
            for _ in 0..count {
                list.push(Tag(input.array("tag")?));
            }
            if !list.is_sorted_by(|a, b| a < b) {
                return Err(DecodeError::NotCanonical("tag list"));
            }
        }
        input.finish()?;
        let [reads, writes, adds] = lists;
        let list = Self { reads, writes, adds };
        if list.reads.iter().chain(&list.adds).any(|tag| list.is_written(*tag)) {
            return Err(DecodeError::NotCanonical("tag list"));
        }
        Ok(list)
    }

    /// The BLAKE3 of the encoded list, which the commit record carries and the actor signs.
    pub fn b3(&self) -> [u8; 32] {
        hash::address(&self.encode()).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tags() -> impl Strategy<Value = BTreeSet<Tag>> {
        prop::collection::btree_set((0..9u8).prop_map(|n| Tag([n; 8])), 0..6)
    }

    proptest! {
        #[test]
        fn a_tag_list_survives_its_bytes(reads in tags(), writes in tags(), adds in tags()) {
            let list = TagList::of(reads, writes, adds).expect("few");
            prop_assert_eq!(TagList::decode(&list.encode()), Ok(list));
        }

        #[test]
        fn whatever_decodes_is_what_encode_writes(
            counts in prop::collection::vec(0..3u8, 3), rest in prop::collection::vec(0..3u8, 0..6),
        ) {
            let mut bytes = vec![1];
            bytes.extend(counts.iter().flat_map(|n| [*n, 0]));
            bytes.extend(rest.iter().flat_map(|n| [*n; 8]));
            if let Ok(list) = TagList::decode(&bytes) {
                prop_assert_eq!(list.encode(), bytes);
            }
        }
    }

    #[test]
    fn a_commit_has_at_most_4096_tags() {
        let facts = |n: u64| {
            let mut facts = Facts::default();
            facts.writes.extend((0..n).map(|n| Fact::Data(Ino(n))));
            facts.tags(&[1; 32])
        };
        let mut full = facts(4_096).expect("just enough");
        assert_eq!(facts(4_097), Err(TooManyTags { count: 4_097 }));
        let mut other = Facts::default();
        other.read(Fact::DirMove);
        let other = other.tags(&[1; 32]).expect("one");
        let before = full.clone();
        assert_eq!(full.merge(&other), Err(TooManyTags { count: 4_097 }));
        assert_eq!(full, before);
    }

    #[test]
    fn different_facts_have_different_tags() {
        let name = |n: &str| Name::parse(n.as_bytes()).expect("good");
        let facts = [
            Fact::Name(Ino(1), name("a")),
            Fact::Name(Ino(1), name("b")),
            Fact::Name(Ino(2), name("a")),
            Fact::Exists(Ino(1)),
            Fact::Children(Ino(1)),
            Fact::Data(Ino(1)),
            Fact::Bucket(Ino(1), 0),
            Fact::Bucket(Ino(1), 1),
            Fact::Attr(Ino(1)),
            Fact::Links(Ino(1)),
            Fact::DirMove,
        ];
        let tags: BTreeSet<Tag> = facts.iter().map(|fact| fact.tag(&[1; 32])).collect();
        assert_eq!(tags.len(), facts.len());
        assert!(facts.iter().all(|fact| !tags.contains(&fact.tag(&[2; 32]))), "keyed");
    }
}
